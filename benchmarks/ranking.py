"""`python -m benchmarks.ranking --config FILE`: how well supernets of several settings rank, by each fitness.

Genotypes drawn uniformly from the first budget are trained alone; supernets with the settings asked for are trained for
each number of steps, from one seed or more, and score the same genotypes; "together" is a genotype's mean rank under
those of all seeds. Tau and Pearson's rho are against the mean of a genotype's own trainings; where settings are chosen,
even genotypes are for that and odd ones, the second half, for the figure to report. What is done stays in the folder,
so the same command continues an interrupted one. docs/ranking.md shows its output.
"""

import argparse
import multiprocessing
from dataclasses import replace

import numpy as np
import torch
from scipy.stats import pearsonr, rankdata

from components import prepare
from components.diagnose import draw, judged
from components.job import Job
from components.run import Run, environment
from components.trainings import train_alone
from nascore.fitness import Fitness
from nascore.space import Genotype
from nascore.training import Fit
from pipelines.__main__ import parse as parse_run

KINDS = {"autotower": ("objective", "loss@1", "recall@50"), "nasrec": ("objective", "auc")}
PARTS = slice(0, None, 2), slice(1, None, 2)


def alone(task: tuple[str, Genotype, int]) -> float:
    """The validation value of one genotype trained from one seed."""
    root, genotype, seed = task
    run = Run.load(root)
    model_id = run.method.model_id(genotype, run.schema.split_digest)
    job = Job.make(f"diagnose/{model_id}/seed={seed}", run.method, genotype, seed)
    return float(train_alone(run, job)["value"])


def scored(task: tuple[str, list[Genotype], str, int, int]) -> dict[str, list[float]]:
    """The genotypes' scores by each fitness, with and without what is done anew for each of them, of one supernet."""
    root, genotypes, variant, steps, seed = task
    run = Run.load(root)
    folder, name = run.folder / "ranking", f"{variant or 'paper'}-{steps}-seed={seed}.json"
    if folder.exists(name):
        known: dict[str, list[float]] = folder.read_json(name)
        return known
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    changes = dict(part.split("=") for part in variant.split(",")) if variant else {}
    method = run.method.tuned({**changes, "steps": str(steps)})
    train, valid = run.rows("train"), run.rows("valid")
    supernet, net_task = method.supernet(run.schema, method.space(run.schema), seed), method.task(run.schema)
    Fit(supernet, net_task, train, method.train, seed).advance(steps)
    supernet.eval()
    scores = {}
    for kind in KINDS[method.name]:
        for calibration in (method.fitness.calibration, 0):
            fitness: Fitness = replace(method.fitness, kind=kind, calibration=calibration)
            judge = replace(method, fitness=fitness).scorer(supernet.net, net_task, train, valid)  # type: ignore[call-arg]
            scores[f"{kind}{'' if calibration else ', nothing anew'}"] = judge(genotypes)
    folder.write_json(name, scores)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranking", description=__doc__.split("\n")[0])
    parser.add_argument("--pipeline", choices=KINDS, default="autotower")
    parser.add_argument("--genotypes", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each genotype alone")
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 2000, 4000])
    parser.add_argument("--variants", nargs="+", default=["", "growth=0.5,schedule=linear"], help="'' is as configured")
    parser.add_argument("--supernets", type=int, default=1, help="seeds of each supernet, from 0 on")
    parser.add_argument("--processes", type=int, default=2)
    asked, options = parser.parse_known_args()
    environment()
    run = parse_run(asked.pipeline, options)
    run.save()
    if not (run.folder / "prepare").done:
        prepare.main(run)
    genotypes = draw(run, asked.genotypes)
    cases = [(v, steps, seed) for v in asked.variants for steps in asked.steps for seed in range(asked.supernets)]
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        coming = pool.map_async(alone, [(run.root, g, s) for g in genotypes for s in range(asked.seeds)], chunksize=1)
        scores = pool.map(scored, [(run.root, genotypes, *case) for case in cases], chunksize=1)
        values = np.array(coming.get()).reshape(len(genotypes), asked.seeds)
    known = dict[tuple[str, int, str], dict[str, list[float]]]()
    for place in range(0, len(cases), asked.supernets):
        seeds = scores[place : place + asked.supernets]
        variant, steps, _ = cases[place]
        known |= {(variant, steps, str(seed)): by_fitness for seed, by_fitness in enumerate(seeds)}
        if len(seeds) > 1:
            ranks = {name: np.mean([rankdata(one[name]) for one in seeds], 0).tolist() for name in seeds[0]}
            known[variant, steps, "together"] = ranks
    show(values, known, run)


def show(values: np.ndarray, scores: dict[tuple[str, int, str], dict[str, list[float]]], run: Run) -> None:
    """Print one row a supernet and fitness."""
    whole = judged(values.mean(1), values)
    spread = f"from {values.mean(1).min():.4f} to {values.mean(1).max():.4f}"
    print(f"{len(values)} genotypes of {run.budgets[0]}, alone: {run.method.stop.kind} {spread}", end="")
    print(f"; tau between two seeds, the ceiling: {whole['ceiling']:.2f}\n")
    about = KINDS[run.method.name][-1]
    print(f"| settings | steps | seed | fitness | inherited {about}, worst / median / best | tau, all | ", end="")
    print("halves | rho | top 10 |\n|---|---|---|---|---|---|---|---|---|")
    for (variant, steps, seed), by_fitness in scores.items():
        for fitness, known in by_fitness.items():
            found = np.array(known)
            both, *halves = (judged(found[part], values[part]) for part in (slice(None), *PARTS))
            levels = [] if seed == "together" else np.quantile(by_fitness[about], [0, 0.5, 1])
            level = " / ".join(f"{value:.4f}" for value in levels)
            tau = f"{both['kendall']:.2f} [{both['low']:.2f}, {both['high']:.2f}]"
            cells = (variant or "as configured", f"{steps:,}", seed, fitness, level, tau)
            top = both["overlap"]
            cells += (
                ", ".join(f"{half['kendall']:.2f}" for half in halves),
                f"{pearsonr(found, values.mean(1))[0]:.2f}",
            )
            print(f"| {' | '.join(cells)} | {'' if top is None else f'{top:.0%}'} |")


if __name__ == "__main__":
    main()
