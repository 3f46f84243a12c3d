"""`python -m benchmarks.ablations shortcuts --root runs/ablations …`: a run for each value of one setting.

What follows the name and `--root` are options of `python -m pipelines autotower`; nothing is tuned, as that could undo
what was set, unless they ask for it. Runs that are finished are not repeated. The table shows what each run found,
retrained and tested. Transfer of found architectures to other data (AutoTower, Table 9) is a run with `--given` and the
folder of another run.
"""

import argparse
import sys

from components.folder import Folder
from pipelines.__main__ import execute, parse

VALUES = {
    "shortcuts": ("method.shortcuts", ("true", "false")),
    "blocks": ("method.blocks", ("3", "4", "5", "6", "7")),
    "embedding": ("method.embedding", ("8", "16", "24", "32", "64")),
    "output": ("method.output", ("16", "32", "64", "128")),
    "budget": ("budgets", ("[L, M, H]",)),
}
"""AutoTower's Tables 5 and 7 and Figures 5 to 7; one run searches under every budget."""
METRICS = ("recall@50", "ndcg@50")


def main() -> int:
    """The exit code of the first run that failed, or 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=VALUES)
    parser.add_argument("--root", default="runs/ablations", help="folder of the runs")
    parser.add_argument("--values", nargs="+", help="others than AutoTower's")
    asked, options = parser.parse_known_args()
    option, values = VALUES[asked.what]
    lines = []
    for value in asked.values or values:
        root = f"{asked.root}/{asked.what}-{''.join(letter for letter in value if letter.isalnum() or letter in '.-')}"
        try:
            run = parse("autotower", ["--tuning.configurations=0", *options, f"--{option}={value}", f"--root={root}"])
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{asked.what} {value}: {root}", flush=True)
        if code := execute(run):
            return code
        lines += told(root, f"{asked.what} {value}")
    head = ("", "found", *METRICS, "params", "MACs")
    print("\n" + "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)))
    return 0


def told(root: str, label: str) -> list[tuple[str, ...]]:
    """One line for each model that a run found."""
    known = (Folder(root) / "evaluate").read_json("report.json")["rows"]
    lines = []
    for model in dict.fromkeys(row["model"] for row in known if row["role"] == "found"):
        rows = {row["metric"]: row for row in known if row["model"] == model}
        values = [f"{rows[m]['value']:.4f} [{rows[m]['low']:.4f}, {rows[m]['high']:.4f}]" for m in METRICS]
        first = rows[METRICS[0]]
        lines.append((label, model, *values, f"{first['params'] / 1e3:,.0f} k", f"{first['macs'] / 1e3:,.0f} k"))
    return lines


if __name__ == "__main__":
    sys.exit(main())
