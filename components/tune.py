"""Hyper-parameters of every method, ours and rivals alike, by real trainings judged on the validation split.

Of each method's `tunables` the default is tried first, then others in a random order. Ours is tuned once a budget, with
the best candidate that the search found there, and settings that keep all its candidates within the budget. What may be
used is training examples seen: a rival may try as long as it has seen fewer than our supernet, our search and our own
tuning used together, and at most `configurations` in any case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from components.run import Run
from components.workers import Job, train_all
from nascore.cost import Budget
from nascore.methods import Method
from nascore.space import Genotype, parse

WAVE = 4
Settings = Mapping[str, str]


@dataclass
class Tuning:
    """One method's tuning: what is left to try, and what was tried with what result."""

    of: str
    label: str
    method: Method
    genotype: Genotype
    left: list[Settings]
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def examples(self) -> int:
        return sum(one["examples"] for one in self.tried)

    def told(self) -> dict[str, Any]:
        """The best settings and all that was tried; among equals the first."""
        best = max(self.tried, key=lambda one: one["value"])
        known = {"of": self.of, "label": self.label, "settings": best["settings"], "value": best["value"]}
        return {**known, "examples": self.examples, "tried": self.tried}


def main(run: Run) -> None:
    """Write `tuned.json`."""
    run.check_prepared()
    with run.stage("tune", resumes=True) as folder:
        wanted = run.tuning.configurations
        plan, learning = run.method.train, run.method.learning
        steps = plan.steps + (plan.steps // learning.every if learning else 0)
        spent = {"supernet": steps * plan.batch, "search": calibrated(run), "tuning": 0}
        done: list[Tuning] = []
        if wanted:
            done = ours(run, wanted)
            advance(run, done, inf)
            spent["tuning"] = sum(one.examples for one in done)
            others = rivals(run, wanted)
            advance(run, others, sum(spent.values()))
            done += others
        folder.write_json("tuned.json", {"spent": spent, "methods": [one.told() for one in done]})


def calibrated(run: Run) -> int:
    """Training examples that scored genotypes were calibrated on."""
    trials = (run.folder / "search").read_table("trials.parquet")
    return len(set(trials["genotype"].to_pylist())) * min(run.method.fitness.calibration, run.rows("train").rows)


def ours(run: Run, wanted: int) -> list[Tuning]:
    """The searched method with the best candidate of each budget; settings that break the budget are left out."""
    tunings, candidates = [], (run.folder / "search").read_json("candidates.json")
    for budget in run.budgets:
        own = [one for one in candidates if one["budget"] == budget]
        found = [one for one in own if one["strategy"] in run.strategies] or own
        if not found:
            continue
        best, limits = max(found, key=lambda one: one["score"]), run.method.limits(budget)
        genotype, every = parse(best["genotype"]), [parse(one["genotype"]) for one in own]
        left = []
        for one in configurations(run.method):
            kept = Budget(limits, run.method.tuned(one).price(run.schema))
            if all(kept.excess(each) <= 0 for each in every):
                left.append(one)
        tunings.append(Tuning(budget, f"{run.method.label} {budget}", run.method, genotype, left[:wanted]))
    return tunings


def rivals(run: Run, wanted: int) -> list[Tuning]:
    """Every rival that has something to tune."""
    tunings = []
    for rival in run.methods[1:]:
        (member,) = rival.space(run.schema).members()
        left = configurations(rival)[:wanted]
        if len(left) > 1:
            of = rival.model_id(member, run.schema.split_digest)
            tunings.append(Tuning(of, rival.label, rival, member, left))
    return tunings


def configurations(method: Method) -> list[Settings]:
    """The method as it is, then all other settings of its tunables in a random order."""
    every = [{name: value for name, (value,) in one.items()} for one in method.tunables().members()]
    Random(f"tune/{method.name}").shuffle(every)
    return [{}, *(settings for settings in every if method.tuned(settings) != method)]


def advance(run: Run, tunings: Sequence[Tuning], allowance: float) -> None:
    """Try settings, a few of every tuning at a time, until none is left or the allowance of examples is used up."""
    while opened := [one for one in tunings if one.left and one.examples < allowance]:
        wave = [(one, settings) for one in opened for settings in one.left[:WAVE]]
        jobs = []
        for one, settings in wave:
            method = one.method.tuned(settings)
            model_id = method.model_id(one.genotype, run.schema.split_digest)
            jobs.append(Job.of(f"tune/{model_id}/seed={run.seeds[0]}", method, one.genotype, run.seeds[0]))
        rows = {one.method.shown: run.rows("train", shown=one.method.shown).rows for one in opened}
        for (one, settings), result in zip(wave, train_all(run, "tune", jobs), strict=True):
            taught = rows[one.method.shown]
            examples = result["steps"] * min(one.method.tuned(settings).retrain.batch, taught) or taught
            tried = {name: result[name] for name in ("model_id", "value", "best_epoch", "seconds")}
            one.tried.append({"settings": settings, "examples": examples, **tried})
        for one in opened:
            del one.left[:WAVE]
