"""Hyper-parameters of every method, ours and rivals alike, by real trainings judged on the validation split.

Of each method's `tunables` the default is tried first, then others, in an order that methods share. Ours is tuned once
a budget, with the best candidate that the search found there, and settings that keep all its candidates within the
budget. What may be used is training examples seen: a rival may try as long as it has seen fewer than our supernet, our
search and our own tuning used together, and at most `configurations` in any case. Where the run's budget is used up
before all that is done, every method keeps its own settings: half of it would favour who came first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf
from random import Random
from typing import Any

from components.finalists import Finalist, known_as, untuned
from components.run import Run
from components.trainings import seen, steps_taken, train_all
from nascore.cost import Budget
from nascore.methods import Method

WAVE = 4
Settings = Mapping[str, str]


@dataclass
class Tuning:
    """One method's tuning: what is left to try, and what was tried with what result; None where it diverged.

    begun: examples that a supernet of its own has seen.
    """

    of: str
    label: str
    model: Finalist
    left: list[Settings]
    begun: int = 0
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def examples(self) -> int:
        return self.begun + sum(one["examples"] for one in self.tried)

    def told(self) -> dict[str, Any]:
        """The best settings and all that was tried; among equals the first."""
        best = max(self.tried, key=lambda one: -inf if one["value"] is None else one["value"])
        known = {"of": self.of, "label": self.label, "settings": best["settings"], "value": best["value"]}
        return {**known, "examples": self.examples, "tried": self.tried}


def main(run: Run) -> None:
    """Write `tuned.json`."""
    run.check_prepared()
    with run.stage("tune", resumes=True) as folder:
        wanted = run.tuning.configurations
        spent = {"supernet": trained(run, run.method), "search": calibrated(run), "tuning": 0}
        done: list[Tuning] = []
        if wanted:
            done = ours(run, wanted)
            whole = advance(run, done, inf)
            spent["tuning"] = sum({one["model_id"]: one["examples"] for each in done for one in each.tried}.values())
            others = rivals(run, wanted) if whole else []
            whole = whole and advance(run, others, sum(spent.values()))
            done = [*done, *others] if whole else []
            if not whole:
                run.cut()
        folder.write_json("tuned.json", {"spent": spent, "methods": [one.told() for one in done]})


def trained(run: Run, method: Method, of: str = "supernet") -> int:
    """Training examples that a method's supernet has seen."""
    return seen(steps_taken(run, of), method.train.batch, method.learning)


def calibrated(run: Run) -> int:
    """Training examples that scored genotypes were calibrated on."""
    if run.method.routes:
        return 0
    trials = (run.folder / "search").read_table("trials.parquet")
    return len(set(trials["genotype"].to_pylist())) * min(run.method.fitness.calibration, run.rows("train").rows)


def ours(run: Run, wanted: int) -> list[Tuning]:
    """The searched method with the best candidate of each budget; settings that break the budget are left out."""
    tunings, found = [], [one for one in untuned(run) if one.role == "found"]
    everyone = [one for one in found if one.method == run.method and not one.kept]
    scores = {}
    if not run.method.routes:
        candidates = (run.folder / "search").read_json("candidates.json")
        scores = {one["model_id"]: one["score"] for one in candidates}
    for budget in run.budgets:
        limits = run.method.limits(budget)
        within = Budget(limits, run.method.price(run.schema))
        own = [one for one in everyone if one.budget == budget and all(within.excess(part) <= 0 for part in one.parts)]
        found = [one for one in own if one.strategy in run.strategies] or own
        if not found:
            continue
        best = max(found, key=lambda one: scores.get(one.candidate, 0.0))
        left = []
        for settings in configurations(run.method):
            kept = Budget(limits, run.method.tuned(settings).price(run.schema))
            if all(kept.excess(part) <= 0 for one in own for part in one.parts):
                left.append(settings)
        tunings.append(Tuning(budget, f"{run.method.label} {budget}", best, left[:wanted]))
    return tunings


def rivals(run: Run, wanted: int) -> list[Tuning]:
    """Every rival that has something to tune."""
    tunings, models = [], [one for one in untuned(run) if one.role != "found"]
    for rival, model in zip(run.methods[1:], models, strict=True):
        left = configurations(rival)[:wanted]
        if len(left) > 1:
            begun = trained(run, rival, model.of) if model.of != "supernet" else 0
            tunings.append(Tuning(known_as(run, rival), model.label, model, left, begun))
    return tunings


def configurations(method: Method) -> list[Settings]:
    """The method as it is, then all other settings of its tunables, for equal tunables the same in the same order.

    Each decision takes its values in a random order of its own, over and over; what was met before is passed by in
    favour of the next with the later decisions one place on. So a few settings have as many values of each as they can.
    """
    values = []
    for name, decision in method.tunables().decisions.items():
        options = list(decision.options)
        Random(f"tune/{name}").shuffle(options)
        values.append([(name, option) for option in options])
    found = dict[tuple[tuple[str, str], ...], None]()
    for shift in product(*(range(len(options)) for options in values[1:])):
        for place in range(max(map(len, values), default=0)):
            at = (place + moved for moved in (0, *shift))
            found.setdefault(tuple(options[n % len(options)] for options, n in zip(values, at, strict=True)))
    return [{}, *(dict(one) for one in found if method.tuned(dict(one)) != method)]


def advance(run: Run, tunings: Sequence[Tuning], allowance: float) -> bool:
    """Try settings, a few of every tuning at a time, until none is left or the allowance of examples is used up.

    Whether that was reached, or the run's budget was used up before.
    """
    while opened := [one for one in tunings if one.left and one.examples < allowance]:
        wave = [(one, settings) for one in opened for settings in one.left[:WAVE]]
        each = []
        for one, settings in wave:
            tried = replace(one.model, method=one.model.method.tuned(settings))
            name = tried.method.model_id(tried.parts[0], run.schema.split_digest, *tried.parts[1:])
            place = f"tune/{name}/part={{part}}" if tried.routed else f"tune/{name}"
            each.append((name, [replace(job, tried=True) for job in tried.jobs(run.seeds[0], place)]))
        distinct = {job.folder: job for _, jobs in each for job in jobs}
        told = train_all(run, "tune", [*distinct.values()], cut=True)
        if None in told:
            return False
        results = dict(zip(distinct, told, strict=True))
        for (one, settings), (name, jobs) in zip(wave, each, strict=True):
            one.tried.append({"settings": settings, "model_id": name, **joined([results[job.folder] for job in jobs])})
        for one in opened:
            del one.left[:WAVE]
    return True


def joined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One result of those of all parts of a model: values count by the rows they were judged on; None if one is."""
    value, rows = results[0]["value"], sum(one["judged"] for one in results)
    if None in [one["value"] for one in results]:
        value = None
    elif len(results) > 1:
        value = sum(one["value"] * one["judged"] for one in results) / rows
    seconds = round(sum(one["seconds"] for one in results), 3)
    known = {"value": value, "best_epoch": max(one["best_epoch"] for one in results), "seconds": seconds}
    return {"examples": sum(one["examples"] for one in results), **known}
