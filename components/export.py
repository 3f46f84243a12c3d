"""`python -m pipelines export RUN`: a model of a finished run as a bundle that scores without nascore.

It is written to `export/<model id>-seed=<n>/` below the run, or to a folder of its own; `done.json` comes last. A
bundle that has it is left as it is, one without it is made anew.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from components import errors, vocabularies
from components.card import card
from components.finalists import Finalist, contenders
from components.folder import Folder
from components.item_index import WIDEST, Searched, build, check_size, item_vectors, queries, searched
from components.models import Opened, opened
from components.programs import Program, Unexportable, kind_of, programs, to_onnx
from components.run import Run
from nascore.rows import Data
from nascore.schema import Schema

BEGUN = "export.json"
USED = ("torch", "nascore", "numpy", "pyarrow", "safetensors", "onnx", "onnxscript", "onnxruntime", "faiss-cpu")
NEEDED = ("prepare", "retrain", "evaluate")


def main(arguments: list[str]) -> int:
    """The exit code, see `components.errors`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines export", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", help="the folder or URL of a finished run")
    parser.add_argument("--model", default="", help="its label or id in the report; the first found model without")
    parser.add_argument("--seed", type=int, help="the seed it was trained from; the first without")
    parser.add_argument("--to", default="", help="the folder or URL of the bundle")
    asked = parser.parse_args(arguments)
    try:
        folder = export(Run.load(asked.run), asked.model, asked.seed, asked.to)
    except (Exception, KeyboardInterrupt) as error:
        if (why := errors.told(error)) is None:
            raise
        print(f"error: {why}", file=sys.stderr)
        return errors.exit_code(error)
    print(f"Bundle: {folder.url}")
    return 0


def export(run: Run, model: str = "", seed: int | None = None, to: str = "") -> Folder:
    """Write the bundle of a model; the folder that it stands in."""
    for stage in NEEDED:
        if not (run.folder / stage).done:
            raise ValueError(
                f"{run.root} is not finished: {stage} is not done. The command that began it continues it; "
                f"so does: python -m components {stage} {run.root}"
            )
    if not (run.folder / "prepare").names(f"{vocabularies.VOCABULARY}/*"):
        raise ValueError(
            f"{run.root} keeps no vocabularies: an earlier version prepared it. Run it anew in another --root"
        )
    one = chosen(contenders(run), model)
    seed = run.seeds[0] if seed is None else seed
    if seed not in run.seeds:
        raise ValueError(f"--seed {seed}: the run's seeds are {', '.join(map(str, run.seeds))}")
    folder = Folder(to) if to else run.folder / "export" / f"{one.model_id}-seed={seed}"
    mine = {"run": run.root, "model": one.label, "model_id": one.model_id, "seed": seed}
    if folder.names("*"):
        there = folder.read_json(BEGUN) if folder.exists(BEGUN) else None
        if there is None or (there["model_id"], there["seed"]) != (one.model_id, seed):
            what = "other files" if there is None else f"the bundle of {there['model']}, seed {there['seed']}"
            raise ValueError(f"{folder.url} holds {what}; choose another --to, or remove that folder")
        if folder.done:
            print("done before", flush=True)
            return folder
        folder.clear()
    known, valid = opened(run, one, seed), run.rows("valid", shown=one.method.shown)
    check_size(known, valid)
    folder.write_json(BEGUN, mine)
    write(run, one, seed, known, valid, folder)
    folder.write_json("done.json", {"files": sorted(folder.names("*"))})
    return folder


def chosen(compared: Sequence[Finalist], model: str) -> Finalist:
    """The model of a label or an id; without, the first one, which the search found."""
    known = [one for one in compared if not model or model in (one.label, one.model_id)]
    if not known:
        there = "; ".join(f"{one.label} ({one.model_id})" for one in compared)
        raise ValueError(f"--model {model!r}: the run compares {there}")
    return known[0]


def write(run: Run, one: Finalist, seed: int, known: Opened, valid: Data, folder: Folder) -> None:
    """All files of a bundle but the first and the last."""
    schema, kind = run.schema, kind_of(known.task)
    made = programs(known, schema, valid)
    said = dict[str, str]()
    for program in made:
        with folder.writing(f"{program.name}.pt2") as local, open(local, "wb") as file:
            torch.export.save(program.exported, file)
        said[program.name] = _onnx(folder, program)
        print(f"  {program.name}.pt2: {program.off:.1g} from the model; ONNX: {said[program.name]}", flush=True)
    folder.write_tensors("weights.safetensors", weights(known))
    if "router" in known.modules:
        folder.write_tensors("router.safetensors", _own(known.modules["router"].state_dict()))
    golden = {
        f"{program.name}/{way}/{name}": value.clone()
        for program in made
        for way, own in (("in", program.inputs), ("out", program.outputs))
        for name, value in own.items()
    }
    folder.write_tensors("golden.safetensors", golden)
    described = description(run, kind, made, known)
    folder.write_json("schema.json", described)
    prepared = run.folder / "prepare"
    for name, file in described["vocabulary"].items():
        folder.write_table(file, prepared.read_table(vocabularies.path(name)))
    parts = [{name: list(picked) for name, picked in part.items()} for part in one.parts]
    about = {"method": one.method.to_json(), "parts": parts, "seed": seed, "model_id": one.model_id, "label": one.label}
    folder.write_json("model.json", {**about, "schema": json.loads(schema.to_json())})
    index = None if kind == "click" else _items(run, known, valid, folder)
    folder.write_text("score.py", Path(__file__).with_name("score.py").read_text(encoding="utf-8"))
    folder.write_text("card.md", card(run, one, seed, kind, made, said, index, _versions()))


def weights(known: Opened) -> dict[str, Tensor]:
    """Those of all modules, by their names."""
    return {f"{part}.{name}": v for part, own in known.modules.items() for name, v in _own(own.state_dict()).items()}


def _own(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone().contiguous() for name, value in state.items()}


def _onnx(folder: Folder, program: Program) -> str:
    """Write it as ONNX where that can be; what there is to say about it."""
    try:
        with folder.writing(f"{program.name}.onnx") as local:
            return to_onnx(program, local)
    except ImportError as error:
        return f"not converted, as {error.name} is not installed"
    except Unexportable as error:
        return f"not converted: {error}"


def _items(run: Run, known: Opened, valid: Data, folder: Folder) -> Searched | str:
    """Write the vectors of items, what is known of them, and an index; how it did, or why there is none."""
    schema, vector_IO = run.schema, item_vectors(known, valid)
    folder.write_tensors("items.safetensors", {"vector": vector_IO})
    prepared = run.folder / "prepare"
    raw = prepared.read_table(vocabularies.path(schema.item))
    about = prepared.read_table("entities/item.parquet").slice(1)
    features = {f"feature/{column.name}": about[column.name] for column in schema.of("item")}
    features.setdefault(f"feature/{schema.item}", raw["id"])
    folder.write_table("items.parquet", pa.table({"item": raw["value"], "id": raw["id"], **features}))
    if vector_IO.shape[1] > WIDEST:
        return f"an item's vector has {vector_IO.shape[1]:,} numbers, more than {WIDEST:,}"
    try:
        index, kind = build(vector_IO)
    except ImportError as error:
        return f"{error.name} is not installed"
    import faiss

    with folder.writing("items.faiss") as local:
        faiss.write_index(index, local)
    found = searched(index, kind, vector_IO, queries(known, valid))
    folder.write_json("index.json", found.to_json())
    print(f"  items.faiss: {kind}, {', '.join(f'{name} {value:.4f}' for name, value in found.recall.items())}")
    return found


def description(run: Run, kind: str, made: Sequence[Program], known: Opened) -> dict[str, Any]:
    """`schema.json`: what the programs read and give, and where raw values are looked up."""
    schema = run.schema
    listed, wanted = dict[str, Any](), dict[str, None]()
    for program in made:
        inputs = [_input(schema, name, value, known) for name, value in program.inputs.items()]
        outputs = {name: ["rows", *value.shape[1:]] for name, value in program.outputs.items()}
        listed[program.name] = {"file": f"{program.name}.pt2", "inputs": inputs, "outputs": outputs}
        for one in inputs:
            if one["kind"] == "history":
                wanted[schema.item] = None
            elif one["kind"] != "number":
                wanted[one["name"]] = None
    if kind != "click":
        wanted[schema.item] = None
    return {
        "kind": kind,
        "zero": "Id 0 is null, what was never met in training, and what pads sets (right) and pasts (left).",
        "user": schema.user,
        "item": schema.item,
        "programs": listed,
        "vocabulary": {name: vocabularies.path(name) for name in wanted},
        "data": {"dataset": run.dataset, "protocol": schema.protocol, "split_digest": schema.split_digest},
    }


def _input(schema: Schema, name: str, value: Tensor, known: Opened) -> dict[str, Any]:
    """One input: `of` says whose ids a past holds, `size` how many ids there are; a length of 0 is any."""
    kinds = {column.name: (column.kind, column.size) for column in schema.columns}
    kinds = {schema.user: ("category", schema.users), schema.item: ("category", schema.items), **kinds}
    shape: list[Any] = ["rows", *value.shape[1:]]
    base: dict[str, Any] = {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape}
    if schema.user and name.partition("/")[0] == "history":
        of = name.partition("/")[2] or schema.item
        if getattr(known.task, "whole", False):
            shape[1] = 0
        return {**base, "kind": "history", "of": of, "size": kinds[of][1]}
    kind, size = kinds[name]
    return {**base, "kind": kind, "size": size}


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in USED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
