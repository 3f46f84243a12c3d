"""Replays dated days night by night: what the rules cost and bring, against a cold or a warm search every night.

`python -m benchmarks.replay FOLDER` writes made-up days into FOLDER/raw and replays them under three policies, each
with a registry of its own below FOLDER; `--raw` replays day partitions that are there, such as those of
`benchmarks.globo_days`. What is finished is not done again. The stages run in this process, one after the other,
without a cluster, so that seconds compare.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from math import isfinite
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import planted_days
from components import derive, evaluate, prepare, report, retrain
from components.registry import Registry
from components.run import Run
from components.search import Search, continue_search, write_results
from components.trainings import continue_training, train_alone
from components.workers import open_scorer
from nascore.space import Genotype
from pipelines._asked import Nightly
from pipelines._deciding import Rules
from pipelines._nights import work

OPTIONS: dict[str, Any] = {
    "method.blocks": 2,
    "method.embedding": 8,
    "method.dense_sizes": [16, 32],
    "method.sparse_sizes": [4, 8],
    "method.tokens": 4,
    "method.steps": 500,
    "method.batch": 128,
    "method.candidates": 48,
    "method.fitness.rows": 2_000,
    "method.fitness.calibration": 2_048,
    "method.training.batch": 128,
    "method.training.epochs": 4,
    "method.training.epsilon": 1e-3,
    "method.training.learning_rate": 0.03,
    "strategies": ["regularized:population=16,sample=8,children=8"],
    "keep": 2,
    "seeds": [0],
    "stages": ["prepare", "supernet", "search", "retrain"],
}
WARM: dict[str, Any] = {"method.warmup": 0.0, "method.candidates": 24}
CPU = "cpu.json"
HEAD = ("day", "policy", "decision", "CPU s", "supernet steps", "genotypes", "challenger", "champion", "difference", "")


def plainly(run: Run, stage: str) -> None:
    """A stage in this process, without Ray; its CPU seconds are kept beside what it wrote."""
    begun = time.process_time()
    _staged(run, stage)
    (run.folder / stage).write_json(CPU, {"seconds": time.process_time() - begun})


def _staged(run: Run, stage: str) -> None:
    if stage == "supernet":
        run.check_prepared()
        with run.stage(stage, resumes=True) as folder:
            continue_training(run)
            folder.write_text("curve.json", run.checkpoint().read_text("curve.json"))
    elif stage == "search":
        with run.stage(stage, resumes=True) as folder:
            scorer = open_scorer(run, run.workers.cache)

            def score(genotypes: Sequence[Genotype]) -> list[float | None]:
                return [value if isfinite(value) else None for value in scorer(genotypes)]

            searches = [Search(s, b, seed) for b in run.budgets for s in run.strategies for seed in run.seeds]
            for search in searches:
                if not (folder / search.id).done:
                    continue_search(run, search, score)
            write_results(run, folder, searches)
    elif stage == "derive":
        with run.stage(stage, resumes=True) as folder:
            folder.write_json("candidates.json", {"": derive.ours(run)})
    elif stage == "retrain":
        with patch.object(retrain, "train_all", lambda run, stage, jobs: [train_alone(run, job) for job in jobs]):
            retrain.main(run)
    elif stage == "evaluate":
        with patch.object(evaluate, "test_all", lambda run, models: [evaluate.tested(run, one) for one in models]):
            evaluate.main(run)
    else:
        {"prepare": prepare, "report": report}[stage].main(run)


def nights(raw: str, window: int) -> list[str]:
    """The nights that follow each day from the first whole window on."""
    there = sorted(folder.name.partition("=")[2] for folder in Path(raw).glob("day=*"))
    return [(date.fromisoformat(day) + timedelta(days=1)).isoformat() for day in there[window - 1 :]]


def replay(settings: Nightly, always: str = "auto") -> list[dict[str, Any]]:
    """All nights in turn; their records. always: the decision of each night, "auto" for the rules'."""
    for night in nights(settings.raw, settings.window):
        work(replace(settings, night=night, decide=always), plainly)
    return Registry(settings.registry).decisions()


def row(policy: str, known: dict[str, Any]) -> list[str]:
    """What is shown of a night."""
    loss, spent, compared = known["facts"]["loss"], known.get("spent"), known.get("compared")
    cells = [known["facts"]["newest_day"], policy, known["decision"]]
    if not compared:
        champion = f"{loss['log_loss']:.4f}" if loss else ""
        return [*cells, "0", "0", "0", "", champion, "", ""]
    two = compared["difference"]
    cost = [f"{cpu(known):.0f}", str(spent["supernet_steps"]), str(spent["genotypes"])]
    losses = [f"{compared[role]['log_loss']:.4f}" for role in ("challenger", "champion")]
    interval = f"{two['delta']:+.4f} [{two['low']:+.4f}, {two['high']:+.4f}]"
    return [*cells, *cost, *losses, interval, "promoted" if known["promoted"] else ""]


def cpu(known: dict[str, Any]) -> float:
    """CPU seconds of a night's stages."""
    if not known.get("spent"):
        return 0.0
    root = Path(known["settings"]["registry"]) / "runs" / known["night"]
    return sum(float(json.loads(file.read_text())["seconds"]) for file in root.glob(f"*/{CPU}"))


def served(known: dict[str, Any]) -> float | None:
    """The log loss on the newest day of the model that was champion when that day came."""
    loss = known["facts"]["loss"]
    return float(loss["log_loss"]) if loss else None


def show(records: dict[str, list[dict[str, Any]]]) -> str:
    """The table of all policies, and their sums."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for group in zip(*records.values(), strict=True):
        lines += ["| " + " | ".join(row(policy, one)) + " |" for policy, one in zip(records, group, strict=True)]
    for policy, known in records.items():
        spent = [one["spent"] for one in known if one.get("spent")]
        seconds = sum(cpu(one) for one in known)
        losses = [value for one in known if (value := served(one)) is not None]
        steps, genotypes = (sum(one[name] for one in spent) for name in ("supernet_steps", "genotypes"))
        compared = [one["compared"] for one in known if one.get("compared")]
        apart = [one["difference"]["delta"] for one in compared if one["champion"]["version"] is not None]
        served_by, apart_by = (sum(each) / max(1, len(each)) for each in (losses, apart))
        cost = f"{seconds:.0f} CPU s, {steps} supernet steps, {genotypes} genotypes"
        told = f"log loss of champions {served_by:.4f}, challengers differ from theirs by {apart_by:+.4f}"
        lines.append(f"{policy}: {cost}; {told}")
    return "\n".join(lines)


def main() -> None:
    """Replay all policies; the table, also as `replay.md` and `replay.json`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--raw", default="")
    parser.add_argument("--ignore", nargs="*", default=planted_days.CHURNING, help="their drift does not count")
    parser.add_argument("--options", type=json.loads, default={}, help="of the runs, as JSON")
    for option, value in {"days": 13, "rows": 6_000, "drift": 9, "window": 4, "seed": 0}.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    known = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(known.folder)
    raw = known.raw or str(folder / "raw")
    if not known.raw and not (folder / "raw/schema.yaml").exists():
        planted_days.write(raw, known.days, known.rows, known.drift, known.seed)
    rules = Rules(ignore=tuple(known.ignore), fresh=2, search=0)
    options = OPTIONS | known.options
    base = Nightly(registry="", raw=raw, window=known.window, options=options, warm=WARM, rules=rules)
    records = {
        "always cold": replay(replace(base, registry=str(folder / "cold")), "cold"),
        "always warm": replay(replace(base, registry=str(folder / "warm")), "warm"),
        "rules": replay(replace(base, registry=str(folder / "rules"))),
    }
    table = show(records)
    (folder / "replay.md").write_text(table + "\n", encoding="utf-8")
    (folder / "replay.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
