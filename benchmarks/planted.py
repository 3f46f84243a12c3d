"""`python -m benchmarks.planted`: is the planted answer of the made-up data the best? docs/planted.md shows its output.

Trains each of 24 members, 4 poolings times 6 operators of the last item block with all else fixed, exactly as the demo
retrains what it finds, then the planted one and the next best from more seeds, and members drawn at random. Beside a
finished demo it also says how good what was found there is. What is trained stays in the folder, so the same command
continues an interrupted one.
"""

import argparse
import multiprocessing
from collections.abc import Iterable
from itertools import product
from random import Random
from statistics import mean, median, stdev

from components import prepare
from components.evaluate import measure
from components.finalists import Finalist
from components.folder import Folder
from components.job import Job
from components.models import opened
from components.run import Run, environment
from components.trainings import train_alone
from nascore.space import Genotype, parse
from pipelines.__main__ import parse as parse_run

POOLS = ("pool:sum", "pool:mean", "self_attentive_pool", "self_attention_pool")
FAMILY = ("elementwise:sum", "elementwise:mean", "elementwise:max", "elementwise:min")
OPERATORS = (*FAMILY, "mlp:16", "attention:1")
FIXED = {"user/0": "mlp:64", "item/0": "mlp:16"}
Member = tuple[str, str]
PLANTED: Member = (POOLS[0], FAMILY[0])


def genotype(member: Member) -> Genotype:
    pool, operator = member
    return parse({"user/pool": pool, **FIXED, "item/1": operator})


def test_recall(task: tuple[str, Genotype, int]) -> float:
    """Mean test recall@50 over users of one genotype trained from one seed."""
    root, genotype, seed = task
    run = Run.load(root)
    model_id = run.method.model_id(genotype, run.schema.split_digest)
    train_alone(run, Job.make(f"retrain/{model_id}/part=0/seed={seed}", run.method, genotype, seed))
    finalist = Finalist("", "found", run.method, (genotype,), model_id)
    return measure(opened(run, finalist, seed), finalist, run.rows("test")).means()["recall@50"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=__doc__.split("\n")[0])
    parser.add_argument("--root", default="runs/planted", help="folder of the trained models")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every member")
    parser.add_argument("--more", type=int, default=5, help="seeds of the planted member and the next three")
    parser.add_argument("--random", type=int, default=11, help="members drawn at random, a seed each")
    parser.add_argument("--demo", default="runs/demo", help="a finished run of demo.yaml")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    environment()
    run = parse_run("autotower", ["--config", "demo.yaml", "--root", asked.root])
    run.save()
    if not (run.folder / "prepare").done:
        prepare.main(run)
    members, budget = list(product(POOLS, OPERATORS)), run.members(run.budgets[0])
    beyond = [member for member in members if genotype(member) not in budget]
    if beyond:
        raise SystemExit(f"not within {run.budgets[0]}: {beyond}")
    found: dict[Member, list[float]] = {member: [] for member in members}
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:

        def train(some: Iterable[Member], seeds: int) -> None:
            tasks = [(member, seed) for member in some for seed in range(len(found[member]), seeds)]
            asked_for = [(run.root, genotype(member), seed) for member, seed in tasks]
            for (member, _), value in zip(tasks, pool.imap(test_recall, asked_for), strict=True):
                found[member].append(value)

        train(members, asked.seeds)
        others = sorted((m for m in members if not planted(m)), key=lambda member: -mean(found[member]))
        leaders = [*(member for member in members if planted(member)), *others[:3]]
        train(leaders, asked.more)
        rng = Random("planted")
        drawn = pool.map(test_recall, [(run.root, budget.sample(rng), 0) for _ in range(asked.random)], chunksize=1)
    show(found, leaders)
    print(f"\n{len(drawn)} members drawn at random: {min(drawn):.4f} to {max(drawn):.4f}, median {median(drawn):.4f}.")
    report = Folder(asked.demo) / "evaluate"
    if report.done:
        rows = [row for row in report.read_json("report.json")["rows"] if row["metric"] == "recall@50"]
        best, value = rows[0], mean(found[PLANTED])
        told = f"{best['model']} in {asked.demo}: {best['value']:.4f}, {best['value'] / value:.3f} of the planted one's"
        print(f"{told} {value:.4f}.")


def planted(member: Member) -> bool:
    """Whether a member can express what was planted."""
    return member[0] == PLANTED[0] and member[1] in FAMILY


def show(found: dict[Member, list[float]], leaders: list[Member]) -> None:
    """Print both tables and the lead."""
    print(f"| test recall@50 | {' | '.join(OPERATORS)} |\n|---|{'---|' * len(OPERATORS)}")
    for pool in POOLS:
        print(f"| {pool} | {' | '.join(f'{mean(found[pool, operator]):.4f}' for operator in OPERATORS)} |")
    print("\n| member | seeds | mean | standard deviation |\n|---|---|---|---|")
    for member in leaders:
        values = found[member]
        print(f"| {', '.join(member)} | {len(values)} | {mean(values):.4f} | {stdev(values):.4f} |")
    best = max((m for m in leaders if not planted(m)), key=lambda member: mean(found[member]))
    worst = min((m for m in leaders if planted(m)), key=lambda member: mean(found[member]))
    print(f"\nThe first that cannot express it: {', '.join(best)}.")
    for member in (PLANTED, worst):
        lead, deviation = mean(found[member]) - mean(found[best]), max(stdev(found[member]), stdev(found[best]))
        print(f"{', '.join(member)} leads it by {lead:.4f}: {lead / deviation:.1f} standard deviations.")


if __name__ == "__main__":
    main()
