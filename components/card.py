"""The model card of a bundle: what the model is, how it was judged, what it costs, and how to score with it."""

import json
from collections.abc import Mapping, Sequence

from components.finalists import Finalist
from components.item_index import Searched
from components.programs import TOLERANCE, Program
from components.run import Run

GIVES = {
    "click": "the logit of a click for each row (`logit`); its sigmoid is the probability",
    "two_tower": "a vector of a user and one of an item; a pair's preference is their inner product, of several "
    "vectors of a user the largest",
    "next_item": "a vector of a past (`user`); an item's score is its inner product with the item's vector",
}
RIVALS_TOLD = 12


def card(
    run: Run,
    one: Finalist,
    seed: int,
    kind: str,
    programs: Sequence[Program],
    onnx: Mapping[str, str],
    index: Searched | str | None,
    versions: Mapping[str, str],
) -> str:
    """Markdown. onnx: what there is to say of each program. index: how it did, or why there is none."""
    report = (run.folder / "evaluate").read_json("report.json")
    schema, refit = run.schema, ", then once more on train and validation rows" if run.refit else ""
    rows = ", ".join(f"{count:,} {split}" for split, count in schema.rows.items())
    parts = [json.dumps({name: list(chosen) for name, chosen in part.items()}) for part in one.parts]
    lines = [
        f"# {one.label}",
        "",
        f"Model `{one.model_id}`, trained from seed {seed}. It gives {GIVES[kind]}.",
        "",
        "## Data and protocol",
        "",
        f"- data set: `{run.dataset}`; rows: {rows}; split digest `{schema.split_digest}`",
        f"- split by `{schema.protocol}`, ranked and judged as `{report['protocol']}`",
        f"- trained on train rows, its epochs chosen on validation rows{refit}; the test rows were read once, to judge",
        *(f"- {told}" for told in (report["leaks"], report["sees"]) if told),
        "",
        "## Quality on test rows",
        "",
        f"Means over the seeds {', '.join(map(str, run.seeds))} with 95 % intervals over units and seeds together. "
        f"This bundle holds seed {seed} alone.",
        "",
        "| metric | value | 95 % interval |",
        "|---|---|---|",
    ]
    own = [row for row in report["rows"] if row["model_id"] == one.model_id and row["model"] == one.label]
    lines += [f"| {row['metric']} | {row['value']:.4f} | {row['low']:.4f} to {row['high']:.4f} |" for row in own]
    lines += ["", f"{report['verdict']}", ""]
    pairs = [pair for pair in report["paired"] if one.label in (pair["a"], pair["b"])][:RIVALS_TOLD]
    if pairs:
        lines += ["| compared | metric | difference | 95 % interval | p |", "|---|---|---|---|---|"]
        lines += [
            f"| {pair['a']} − {pair['b']} | {pair['metric']} | {pair['delta']:+.4f} | {pair['low']:+.4f} to "
            f"{pair['high']:+.4f} | {pair['p']:.2g} |"
            for pair in pairs
        ]
        lines.append("")
    costs = own[0] if own else {}
    lines += [
        "## Cost",
        "",
        *(f"- {name}: {costs[unit]:,.0f}" for unit, name in UNITS_TOLD.items() if unit in costs),
        "",
        "## Architecture",
        "",
        f"Method `{one.method.name}`; its settings and what was chosen stand in `model.json`.",
        "",
        *(f"- part {place}: `{part}`" if one.routed else f"`{part}`" for place, part in enumerate(parts)),
        "",
        "## Intended use and limits",
        "",
        f"- For rows like those it was trained on: the events of `{run.dataset}`, with the features of `schema.json`. "
        "Scores are not made to compare with those of other models.",
        "- What was never met in training has id 0: it is scored as unknown, not refused.",
        "- It learned from logged behaviour, with the bias of what was shown then; nothing here measures fairness, or "
        "how the model ages. Judge it anew on rows from after its training before it serves.",
        "- `vocabulary/` and `items.parquet` hold raw values of the data: share them as you may share the data.",
        "",
        "## How to score",
        "",
        "```",
        "python score.py --check",
        "python score.py ROWS.parquet --to scores.parquet" + ("" if kind == "click" else " --top 10"),
        "```",
        "",
        "`score.py` needs torch, pyarrow and safetensors. `python score.py --help` tells the rest.",
        "",
        "## Files",
        "",
        *(
            f"- `{program.name}.pt2`: torch.export program of any number of rows; its golden outputs are those of the "
            f"trained model to {program.off:.1g} ({TOLERANCE:.0g} is allowed). ONNX: {onnx[program.name]}."
            for program in programs
        ),
        "- `weights.safetensors`, `model.json`: the weights and the method, for nascore itself",
        *(["- `router.safetensors`: the weights of `router.pt2`, which tells a row's part"] if one.routed else []),
        "- `schema.json`, `vocabulary/`: what the programs read, and which ids raw values have",
        f"- `golden.safetensors`: inputs and outputs of {len(next(iter(programs[0].inputs.values())))} validation rows",
        *_of_index(kind, index),
        "",
        "## Versions",
        "",
        *(f"- {name} {version}" for name, version in versions.items()),
        "",
    ]
    return "\n".join(lines)


UNITS_TOLD = {
    "params": "weights outside tables",
    "table_params": "weights in tables",
    "macs": "multiply-adds an example",
}


def _of_index(kind: str, index: Searched | str | None) -> list[str]:
    if kind == "click":
        return []
    known = ["- `items.safetensors`, `items.parquet`: the vector of each item by its id, and the raw value of each id"]
    if isinstance(index, Searched):
        recall = ", ".join(f"{name} {value:.4f}" for name, value in index.recall.items())
        return [
            *known,
            f"- `items.faiss`: FAISS, {index.kind}, by inner product, over {index.items:,} items of width "
            f"{index.width}, known by their ids. Against exact search, for {index.queries:,} validation rows: {recall}",
        ]
    return [*known, f"- no FAISS index: {index}; search exactly, by the vectors"]
