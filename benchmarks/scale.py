"""`python -m benchmarks.scale [--part memory clicks tune]`: what grows with rows and genotypes, as markdown tables.

memory: peak resident memory and CPU seconds a step of a supernet's training from streamed parquet, on logs of 1, 5 and
20 million rows, each in a process of its own. clicks: the same for NASRec, on logs of Criteo's shape. tune: a whole
search of cheap genotypes through Ray Tune: how much longer it takes than its scoring, and what the driver's memory
does.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.click_speed import log
from benchmarks.speed import write_log
from components.run import Run, environment
from components.settings import Workers
from nascore.fitness import Fitness
from nascore.methods.autotower import AutoTower
from nascore.methods.nasrec import NASRec
from nascore.two_tower import Training

PARTS = ("memory", "clicks", "tune")
MILLION = 1_000_209
STEPS = 1_500  # several windows of rows
CLICK_STEPS = {256: 200, 4_096: 60}  # by batch
PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
PREPARE = f"""\
import sys
from components import prepare
from components.run import Run
prepare.main(Run.load(sys.argv[1]))
{PEAK}
"""
TRAIN = f"""\
import sys, time
import torch
from components.run import Run
from nascore.training import Fit
torch.set_num_threads(1)
torch.set_flush_denormal(True)
run = Run.load(sys.argv[1])
method = run.method
supernet, task = method.supernet(run.schema, method.space(run.schema), 0), method.task(run.schema)
fit = Fit(supernet, task, run.rows("train", "streaming"), method.train, 0)
fit.advance(20)
started, steps = time.process_time(), int(sys.argv[2])
fit.advance(steps)
print((time.process_time() - started) / steps)
{PEAK}
"""


def apart(code: str, *told: str) -> list[float]:
    """The numbers that a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", code, *told], check=True, stdout=subprocess.PIPE, text=True)
    return [float(line) for line in done.stdout.split()]


def logged(root: str, rows: int, method: AutoTower, **changes: object) -> Run:
    """A run over a log of so many rows."""
    raw = Path(root) / f"raw-{rows}"
    if not (raw / "schema.yaml").exists():
        write_log(raw, rows)
    run = Run(root=f"{root}/run-{rows}", dataset="parquet", raw=str(raw), methods=(method,), **changes)  # type: ignore[arg-type]
    run.save()
    return run


def memory(root: str, millions: list[int]) -> None:
    """Peak memory of `prepare` and of a training on streamed rows."""
    print("| million rows | prepare, GiB | s | training streamed, GiB | CPU s a step |\n|---|---|---|---|---|")
    for count in millions:
        run = logged(root, count * MILLION, AutoTower())
        started = time.monotonic()
        (built,) = apart(PREPARE, run.root)
        seconds = time.monotonic() - started
        step, peak = apart(TRAIN, run.root, str(STEPS))
        print(f"| {count} | {built / 2**20:.2f} | {seconds:.0f} | {peak / 2**20:.2f} | {step:.3f} |", flush=True)


def clicks(root: str, millions: list[int]) -> None:
    """Peak memory of `prepare` and of NASRec's training on streamed rows, without the supernet's warm-up."""
    told = " | ".join(f"batch {batch:,}, GiB | rows/CPU s" for batch in CLICK_STEPS)
    print(f"| million rows | prepare, GiB | s | {told} |\n|{'---|' * (3 + 2 * len(CLICK_STEPS))}")
    for count in millions:
        run = log(root, count * 1_000_000, NASRec(warmup=0.0))
        started = time.monotonic()
        (built,) = apart(PREPARE, run.root)
        cells = [f"{count}", f"{built / 2**20:.2f}", f"{time.monotonic() - started:.0f}"]
        for batch, steps in CLICK_STEPS.items():
            run = log(root, count * 1_000_000, NASRec(warmup=0.0, batch=batch))
            step, peak = apart(TRAIN, run.root, str(steps))
            cells += [f"{peak / 2**20:.2f}", f"{batch / step:,.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def tune(root: str, genotypes: int) -> None:
    """Clock of a search through Tune against the seconds of its scoring."""
    from components import prepare, search, supernet

    fitness, training = Fitness(rows=20_480, calibration=2_048), Training()
    method = AutoTower(blocks=3, steps=20, candidates=genotypes, fitness=fitness, training=training)
    run = logged(root, MILLION, method, strategies=("random",), seeds=(0,), workers=Workers(evaluators=1))
    for stage in (prepare, supernet):
        if not (run.folder / stage.__name__.rpartition(".")[2]).done:
            stage.main(run)
    (run.folder / "search").clear()
    print("| genotypes | search, s | scoring, s | overhead | driver's GiB before, after |\n|---|---|---|---|---|")
    before, started = resident(), time.monotonic()
    search.main(run)
    seconds = time.monotonic() - started
    scoring = sum((run.folder / "search").read_table("trials.parquet")["seconds"].to_pylist())
    told = f"{seconds:.0f} | {scoring:.0f} | {seconds / scoring - 1:.1%} | {before:.2f}, {resident():.2f}"
    print(f"| {genotypes:,} | {told} |")


def resident() -> float:
    """This process's memory in GiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.split("\n")[0])
    parser.add_argument("--root", default="runs/scale", help="folder of the logs and runs")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--genotypes", type=int, default=2_000)
    asked = parser.parse_args()
    environment()
    parts: dict[str, Callable[[], None]] = {
        "memory": lambda: memory(asked.root, asked.millions),
        "clicks": lambda: clicks(f"{asked.root}/clicks", asked.millions),
        "tune": lambda: tune(f"{asked.root}/tune-{asked.genotypes}", asked.genotypes),
    }
    for name in asked.part:
        parts[name]()
        print()


if __name__ == "__main__":
    main()
