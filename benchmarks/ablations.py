"""`python -m benchmarks.ablations shortcuts --root runs/ablations …`: a run for each value of one setting.

What follows the name and `--root` are options of `python -m pipelines autotower`, or `dnsrec` or `ihas` for what is
theirs; nothing is tuned, as that could undo what was set, unless they ask for it, and the latter have no rivals unless
they name some. Runs that are finished are not repeated. The table shows what each run found, retrained and tested.
Transfer of found architectures to other data (AutoTower, Table 9) is a run with `--given` and another run's folder,
that of gates to other nets (iHAS, Table 3) one with `--method.wearers`.

`gates` (DNS-Rec, Tables 6 and 7) has two runs a value. In the first the gates are searched and retrained with. In the
second, "retrain only", the net that the first value's run found is given to a run with other gates: there is nothing
to inherit for these, so all of its values, the first one too, are trained from fresh weights (`inherit=false`), and its
own supernet, which only scores what is given, is trained for a step (`paths=uniform`, `steps=1`).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from components.folder import Folder
from components.run import Run
from nascore.methods.dnsrec import DNSRec
from nascore.space import parse as parse_genotype
from pipelines.__main__ import execute, parse


@dataclass(frozen=True)
class Ablation:
    """The runs of a pipeline, with each value of one of its options. again: options of the "retrain only" runs."""

    option: str
    values: tuple[str, ...]
    pipeline: str = "autotower"
    again: tuple[str, ...] = ()


def of_dnsrec(option: str, *values: str, again: tuple[str, ...] = ()) -> Ablation:
    return Ablation(option, values, "dnsrec", again)


def of_ihas(option: str, *values: str) -> Ablation:
    return Ablation(option, values, "ihas")


METRICS = {
    "autotower": ("recall@50", "ndcg@50"),
    "dnsrec": ("recall@10", "mrr@10", "ndcg@10"),
    "ihas": ("log_loss", "auc"),
}
ALONE = ("--tuning.configurations=0", "--rivals=[]")
USUAL = {
    "autotower": ALONE[:1],
    "dnsrec": ALONE,
    "ihas": (*ALONE, "--method.models=[clusters, single, open, gates]"),
}
FRESH = ("--method.paths=uniform", "--method.steps=1", "--method.inherit=false", "--strategies=[]")
ABLATIONS = {
    "shortcuts": Ablation("method.shortcuts", ("true", "false")),
    "blocks": Ablation("method.blocks", ("3", "4", "5", "6", "7")),
    "embedding": Ablation("method.embedding", ("8", "16", "24", "32", "64")),
    "output": Ablation("method.output", ("16", "32", "64", "128")),
    "budget": Ablation("budgets", ("[L, M, H, whole]",)),
    "lazy": Ablation("method.lazy", ("true", "false")),
    "gates": of_dnsrec("method.gates", "2", "1", "0", again=FRESH),
    "tradeoff": of_dnsrec("method.tradeoff", "0.01", "0.1", "1"),
    "paths": of_dnsrec("method.paths", "gumbel", "darts", "proxyless", "recnas"),
    "constraint": of_dnsrec("method.constraint", "paper", "cumulative"),
    "mask": of_dnsrec("method.mask", "none", "padding", "causal"),
    "polarization": of_ihas("method.polarization", "0.1", "0"),
    "instances": of_ihas("method.instances", "true", "false"),
    "clusters": of_ihas("method.clusters", "2", "3", "4"),
    "scope": of_ihas("method.scope", "sample", "batch", "none"),
}
"""AutoTower's Tables 5 and 7 and Figures 5 to 7, one run searching under every budget, and whether Adam leaves alone
what is off a step's path, which its code's does not; DNS-Rec's Tables 6 and 7, its Figure 4, the rivals among its
searches, and what the paper leaves open: eq. 12, and what linear attention hides; iHAS's Table 4, of which every run
holds iHAS, iHAS-2, Base and iHAS-1, and what is left open: kinds and thresholds."""


def main() -> int:
    """The exit code of the first run that failed, or 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=ABLATIONS)
    parser.add_argument("--root", default="runs/ablations", help="folder of the runs")
    parser.add_argument("--values", nargs="+", help="others than the paper's")
    asked, options = parser.parse_known_args()
    one, lines = ABLATIONS[asked.what], []
    for label, root, arguments in runs(asked.what, asked.root, asked.values or (), options):
        try:
            run = parse(one.pipeline, [*arguments])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{label}: {root}", flush=True)
        if code := execute(run):
            return code
        lines += told(root, label, METRICS[one.pipeline])
    meter = ("FLOPs as the paper counts them",) if one.pipeline == "dnsrec" else ()
    head = ("", "found", *METRICS[one.pipeline], "params", "MACs", *meter)
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)))
    return 0


def runs(
    what: str, root: str, values: Sequence[str], options: Sequence[str]
) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """For each run what it is called, its folder, and its command line; one may need what those before it found."""
    one = ABLATIONS[what]
    values = values or one.values

    def arguments(folder: str, value: str, *more: str) -> tuple[str, ...]:
        return *USUAL[one.pipeline], *options, *more, f"--{one.option}={value}", f"--root={folder}"

    folders = [
        f"{root}/{what}-{''.join(letter for letter in value if letter.isalnum() or letter in '.-')}" for value in values
    ]
    for value, folder in zip(values, folders, strict=True):
        yield f"{what} {value}", folder, arguments(folder, value)
    if one.again:
        for value, folder in zip(values, folders, strict=True):
            alone = f"{folder}-retrained"
            yield f"{what} {value}, retrain only", alone, arguments(alone, value, *one.again, f"--given={folders[0]}")


def told(root: str, label: str, metrics: Sequence[str]) -> list[tuple[str, ...]]:
    """One line for each model that a run found."""
    report, method = (Folder(root) / "evaluate").read_json("report.json"), Run.load(root).method
    known, lines = report["rows"], []
    for model in dict.fromkeys(row["model"] for row in known if row["role"] == "found"):
        rows = {row["metric"]: row for row in known if row["model"] == model}
        values = [f"{rows[m]['value']:.4f} [{rows[m]['low']:.4f}, {rows[m]['high']:.4f}]" for m in metrics]
        first = rows[metrics[0]]
        costs = [f"{first['params'] / 1e3:,.0f} k", f"{first['macs'] / 1e3:,.0f} k"]
        name, genotype = model, parse_genotype(report["models"][first["model_id"]]["parts"][0])
        if isinstance(method, DNSRec):
            name = f"{model}: " + ", ".join(f"{decision} {chosen}" for decision, (chosen,) in genotype.items())
            costs.append(f"{method.paper_meter(genotype) / 1e6:.1f} M")
        lines.append((label, name, *values, *costs))
    return lines


if __name__ == "__main__":
    sys.exit(main())
