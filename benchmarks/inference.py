"""`python -m benchmarks.inference RUN_FOLDER [--repeats 3]`: what the models of a finished run cost when they are used.

First as in DNS-Rec's Table 4: each tested model, trained from the run's first seed, evaluates the whole test split in a
process of its own, on one thread of a CPU, once to warm up and then `--repeats` times. Told are medians of the seconds
on the clock and of the CPU, and the most memory that an evaluation took beyond what was resident before it, rows and
weights included. `--again ROWS` adds what evaluation costs where a past is encoded anew for each of 101 candidates, as
RecBole does for sampled ones, measured on so many rows and drawn out.

Then as in its Table 5: seconds of training, and of inference drawn out to ten million rows. Training is the supernet,
the search or derive stage (of all strategies, budgets and seeds of the run) and, of a seed, the retraining of all
candidates of the model's budget and strategy; of a rival its own training. Tuning is left out on both sides.
"""

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import sequence_reference as reference
from components import models
from components.errors import told
from components.finalists import Finalist, contenders, finalists
from components.run import Run, environment
from nascore.cost import UNITS
from nascore.rows import Data
from nascore.tasks import Model
from nascore.tasks.next_item import NextItem

SEARCHED = ("search", "derive")
NEEDED = ("prepare", "supernet", *SEARCHED, "retrain")
MILLIONS = 10
OTHERS = 100
HEAD = ("", "s", "CPU s", "ratio", "MiB", "ratio", "params", "of tables", "MACs")


def opened(root: str) -> Run:
    """A run whose models are all trained; raises if it is none."""
    run = Run.load(root)
    missing = [stage for stage in NEEDED if stage in run.planned and not (run.folder / stage).done]
    if missing:
        raise ValueError(
            f"{root} is not finished: {', '.join(missing)} not done; the same pipeline command continues it"
        )
    return run


# In a process of its own


def measured(run: Run, model_id: str, repeats: int, again: int) -> dict[str, float]:
    """What one model costs."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    one = next(one for one in contenders(run) if one.model_id == model_id)
    known = models.opened(run, one, run.seeds[0])
    model, task, test = known.model, known.task, run.rows("test").showing(one.method.shown)
    task.evaluate(model, test)
    trim()
    reset = forget_peak()
    before = memory("VmRSS")
    spent = []
    for turn in range(repeats):
        started = time.monotonic(), time.process_time()
        task.evaluate(model, test)
        spent.append((time.monotonic() - started[0], time.process_time() - started[1]))
        if turn == 0:
            peak = memory("VmHWM")
    wall, cpu = (statistics.median(values) for values in zip(*spent, strict=True))
    found = {"wall": wall, "cpu": cpu, "bytes": peak - before, "reset": float(reset), "rows": float(test.rows)}
    return {**found, "again": encoded_anew(model, test, again) if again else 0.0}


def encoded_anew(model: Model, test: Data, rows: int) -> float:
    """CPU seconds of the whole split where each row's past is encoded for each candidate."""
    rows = min(rows, test.rows)

    def encode(row_X: Tensor) -> tuple[Tensor, Tensor]:
        output = model(test.batch(row_X))
        return output["user"], output["item"]

    target_R = test.keys(torch.arange(rows))[1].long()
    others_RN = torch.randint(1, test.schema.items, (rows, OTHERS))
    started = time.process_time()
    reference.rank_apart(encode, target_R, others_RN)
    return (time.process_time() - started) * test.rows / rows


def trim() -> None:
    """Give freed memory back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> bool:
    """Let the system's peak of this process begin anew; whether it let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(name: str) -> int:
    """A figure of this process's memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


# The tables


def apart(run: Run, one: Finalist, repeats: int, again: int) -> dict[str, float]:
    asked = [run.root, f"--model={one.model_id}", f"--repeats={repeats}", f"--again={again}"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.inference", *asked], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{one.label}: {done.stderr.strip().splitlines()[-1].removeprefix('error: ')}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def training(run: Run, one: Finalist) -> tuple[float, float]:
    """Seconds of supernet and search, and of retraining from one seed."""

    def alone(other: Finalist) -> float:
        jobs = [job for seed in run.seeds for job in other.jobs(seed, f"retrain/{other.model_id}/part={{part}}")]
        return sum((run.folder / job.folder).read_json("result.json")["seconds"] for job in jobs) / len(run.seeds)

    if one.role != "found":
        deriving = (run.folder / one.of).read_json("curve.json")[-1]["seconds"] if one.method.decides else 0.0
        return deriving, alone(one)
    group = [other for other in finalists(run) if (other.role, other.budget, other.strategy) == of(one)]
    group = [*{other.model_id: other for other in [*group, one]}.values()]
    curve = (run.folder / "supernet").read_json("curve.json")
    stages = [stage for stage in ("supernet", *SEARCHED) if stage in run.planned]
    spent = {stage: (run.folder / stage).read_json("done.json")["seconds"] for stage in stages}
    whole = max(spent.pop("supernet"), curve[-1]["seconds"] if curve else 0.0)  # one that went on tells its last part
    return whole + sum(spent.values()), sum(alone(other) for other in group)


def of(one: Finalist) -> tuple[str, str, str]:
    return one.role, one.budget, one.strategy


def table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *lines))


def tables(run: Run, repeats: int, again: int, tell: Callable[[str], Any] = lambda line: None) -> str:
    """Both tables, ratios to the first found model."""
    each = [*{one.model_id: one for one in contenders(run)}.values()]
    costs, lines, spent = list[dict[str, float]](), list[tuple[str, ...]](), list[tuple[str, ...]]()
    for one in each:
        tell(one.label)
        costs.append(apart(run, one, repeats, again))
    first = costs[0]
    for one, cost in zip(each, costs, strict=True):
        price = models.opened(run, one, run.seeds[0]).cost
        sizes = [f"{float(getattr(price, unit)):,.0f}" for unit in UNITS]
        taken = [f"{cost['wall']:.3g}", f"{cost['cpu']:.3g}", f"{cost['cpu'] / first['cpu']:.2f}"]
        held = [f"{cost['bytes'] / 2**20:.1f}", f"{cost['bytes'] / max(1.0, first['bytes']):.2f}"]
        anew = [f"{cost['again']:.3g}", f"{cost['again'] / first['again']:.2f}"] if again else []
        lines.append((one.label, *taken, *held, *sizes, *anew))
        search, own = training(run, one)
        used = cost["cpu"] * MILLIONS * 1e6 / cost["rows"]
        whole = search + own + used
        spent.append(
            (one.label, f"{search:,.0f}", f"{own:,.0f}", f"{cost['cpu']:.3g}", f"{used:,.0f}", f"{whole:,.0f}")
        )
    head = (*HEAD, *(("CPU s, encoded anew", "ratio") if again else ()))
    notes = [
        f"{first['rows']:,.0f} rows of the test split, medians of {repeats}, seed {run.seeds[0]}, one thread of a CPU."
    ]
    if not all(cost["reset"] for cost in costs):
        notes.append("The system kept the peak of the whole process: memory counts what loading took, too.")
    costs_head = (
        "",
        "supernet, search, s",
        "retraining, s",
        "test split, CPU s",
        f"{MILLIONS} M rows, CPU s",
        "together, s",
    )
    return "\n\n".join([table(head, lines), " ".join(notes), table(costs_head, spent)])


def main() -> int:
    """The exit code: 0, or 1 where the run or the command line does not serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.split("\n")[0])
    parser.add_argument("root", help="folder of a finished run")
    parser.add_argument("--repeats", type=int, default=3, help="evaluations of each model after the first")
    parser.add_argument("--again", type=int, default=0, help="rows whose past is encoded for each of 101 candidates")
    parser.add_argument("--model", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    environment()
    try:
        if asked.repeats < 1 or asked.again < 0:
            raise ValueError("--repeats is at least 1 and --again at least 0")
        run = opened(asked.root)
        if asked.again and not isinstance(run.method.task(run.schema), NextItem):
            raise ValueError("--again is for next-item models: others encode nothing for a candidate")
        if asked.model:
            print(json.dumps(measured(run, asked.model, asked.repeats, asked.again)))
        else:
            print(tables(run, asked.repeats, asked.again, lambda line: print(f"{line} …", file=sys.stderr, flush=True)))
    except Exception as error:
        if told(error) is None:
            raise
        print(f"error: {told(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
