"""`python -m benchmarks.ranking --config FILE`: how well supernets of several settings rank, by each fitness.

Genotypes drawn uniformly from the first budget are trained alone; supernets with the settings asked for are trained for
each number of steps and score the same genotypes. Even genotypes are for choosing settings, odd ones for the figure to
report. What is done stays in the folder, so the same command continues an interrupted one. docs/ranking.md shows its
output.
"""

import argparse
import multiprocessing
from dataclasses import replace

import numpy as np
import torch

from components import prepare
from components.diagnose import draw, judged
from components.run import Run, environment
from components.workers import Job, train_alone
from nascore.fitness import Fitness
from nascore.space import Genotype
from nascore.training import Fit
from pipelines.__main__ import parse as parse_run

KINDS = ("objective", "loss@1", "recall@50")


def alone(task: tuple[str, Genotype, int]) -> float:
    """The validation value of one genotype trained from one seed."""
    root, genotype, seed = task
    run = Run.load(root)
    model_id = run.method.model_id(genotype, run.schema.split_digest)
    job = Job.of(f"diagnose/{model_id}/seed={seed}", run.method, genotype, seed)
    return float(train_alone(run, job)["value"])


def scored(task: tuple[str, list[Genotype], str, int]) -> dict[str, list[float]]:
    """The genotypes' scores by each fitness, with calibration and without, of one supernet."""
    root, genotypes, variant, steps = task
    run = Run.load(root)
    folder, name = run.folder / "ranking", f"{variant or 'paper'}-{steps}.json"
    if folder.exists(name):
        known: dict[str, list[float]] = folder.read_json(name)
        return known
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    changes = dict(part.split("=") for part in variant.split(",")) if variant else {}
    method = run.method.tuned({**changes, "steps": str(steps)})
    train, valid = run.rows("train"), run.rows("valid")
    supernet, net_task = method.supernet(run.schema, method.space(run.schema), run.seeds[0]), method.task(run.schema)
    Fit(supernet, net_task, train, method.train, run.seeds[0]).advance(steps)
    supernet.eval()
    scores = {}
    for kind in KINDS:
        for calibration in (method.fitness.calibration, 0):
            fitness: Fitness = replace(method.fitness, kind=kind, calibration=calibration)
            judge = replace(method, fitness=fitness).scorer(supernet.net, net_task, train, valid)  # type: ignore[call-arg]
            scores[f"{kind}{'' if calibration else ', not calibrated'}"] = judge(genotypes)
    folder.write_json(name, scores)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking", description=__doc__.split("\n")[0])
    parser.add_argument("--genotypes", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each genotype alone")
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--variants", nargs="+", default=["", "growth=0.5,schedule=linear"], help="'' is as configured")
    parser.add_argument("--processes", type=int, default=2)
    asked, options = parser.parse_known_args()
    environment()
    run = parse_run("autotower", options)
    run.save()
    if not (run.folder / "prepare").done:
        prepare.main(run)
    genotypes = draw(run, asked.genotypes)
    cases = [(variant, steps) for variant in asked.variants for steps in asked.steps]
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        coming = pool.map_async(alone, [(run.root, g, s) for g in genotypes for s in range(asked.seeds)], chunksize=1)
        scores = pool.map(scored, [(run.root, genotypes, *case) for case in cases], chunksize=1)
        values = np.array(coming.get()).reshape(len(genotypes), asked.seeds)
    show(values, dict(zip(cases, scores, strict=True)), run)


def show(values: np.ndarray, scores: dict[tuple[str, int], dict[str, list[float]]], run: Run) -> None:
    """Print one row a supernet and fitness."""
    whole = judged(values.mean(1), values)
    spread = f"from {values.mean(1).min():.4f} to {values.mean(1).max():.4f}"
    print(f"{len(values)} genotypes of {run.budgets[0]}, alone: {run.method.stop.kind} {spread}", end="")
    print(f"; tau between two seeds, the ceiling: {whole['ceiling']:.2f}\n")
    print(
        "| settings | steps | fitness | best inherited recall@50 | tau, chosen on | tau, held out | interval | top 10 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for (variant, steps), by_fitness in scores.items():
        for fitness, known in by_fitness.items():
            found = np.array(known)
            even, odd = (judged(found[start::2], values[start::2]) for start in (0, 1))
            overlap = judged(found, values)["overlap"]
            cells = (variant or "as configured", f"{steps:,}", fitness, f"{max(by_fitness['recall@50']):.4f}")
            told = f"{even['kendall']:.2f} | {odd['kendall']:.2f} | [{odd['low']:.2f}, {odd['high']:.2f}]"
            print(f"| {' | '.join(cells)} | {told} | {'' if overlap is None else f'{overlap:.0%}'} |")


if __name__ == "__main__":
    main()
