"""The course of a night: facts, decision, run, version, comparison, promotion; each recorded before the next begins.

A night that was killed goes on where it was: its decision stands in the registry, its run continues, its version is
found again, and a promotion that has happened is not made twice.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components import versions, warm
from components.evaluate import against
from components.lease import Busy, Lease, leased
from components.registry import Alias, Moved, Registry, instant
from components.run import Run
from nascore import drift
from nascore.datasets import Dataset
from nascore.methods import Method
from nascore.schema import Schema
from nascore.space import parse
from nascore.tasks.click import UNITS, grouped
from pipelines._asked import Nightly, Stage
from pipelines._deciding import bound, decide
from pipelines._nightreport import write as write_report

DECIDED, COMPARED, DONE = "decided", "compared", "done"
POLL = 5.0
SUPERNET_STAGES = ("supernet", "search", "diagnose", "derive", "tune")
Record = dict[str, Any]
Values = NDArray[np.float64]


def work(settings: Nightly, do: Stage) -> int:
    """Do a night under the lease, or go on with it; 0. Raises `Busy` if another still does after `wait` seconds."""
    registry = Registry(settings.registry)
    with held(registry, settings) as lease:
        registry.show()
        Night(settings, registry, lease, do).work()
    return 0


@contextmanager
def held(registry: Registry, settings: Nightly) -> Iterator[Lease]:
    """The lease, waited for as long as the settings say; that of a night that was killed elsewhere has to expire."""
    until, told = time.monotonic() + settings.wait, False
    with ExitStack() as stack:
        while True:
            try:
                lease = stack.enter_context(leased(registry.folder / "lease", settings.lease))
                break
            except Busy as error:
                if (left := until - time.monotonic()) <= 0:
                    raise
                if not told:
                    print(f"{error}; waiting for it", flush=True)
                told = True
            time.sleep(min(POLL, left))
        yield lease


class Night:
    """One night of a registry. do: runs a stage of a run."""

    def __init__(self, settings: Nightly, registry: Registry, lease: Lease, do: Stage) -> None:
        self.settings, self.registry, self.lease, self.do = settings, registry, lease, do
        self.night = settings.tonight

    def work(self) -> Record:
        """Decide, act, compare, promote; the night's record."""
        known = self.registry.decision(self.night)
        if known is None or (known["state"] == DONE and known["decision"] == "skip" and self.changed(known)):
            known = self.decided()
        if known["state"] == DONE:
            print(f"{self.night}: done before: {known['decision']}; {known['outcome']}", flush=True)
            self.registry.show()
            return known
        print(f"{self.night}: {known['decision']}: {known['why']}", flush=True)
        if known["decision"] == "skip":
            return self.ended(known, "nothing was done")
        run, told = self.run(known)
        number = self.version(known, run, told)
        if known["state"] == DECIDED:
            known = self.kept({**known, "spent": spent(run), "warm": told, **self.compared(known, number)})
        return self.promoted(known, number)

    def changed(self, known: Record) -> bool:
        """Whether a night that was skipped is asked for something else, or a further day is complete by now."""
        newest = self.settings.days()[-1:]
        return self.settings.decide not in ("auto", "skip") or newest > tuple([known["facts"]["newest_day"]])

    def kept(self, known: Record) -> Record:
        """Write the record, if the lease is still held."""
        self.lease.check()
        self.registry.record(self.night, known)
        return known

    def ended(self, known: Record, outcome: str) -> Record:
        known = {**known, "state": DONE, "outcome": outcome, "ended": instant()}
        self.lease.check()
        write_report(self.registry, self.night, known)
        known = self.kept(known)
        print(f"{self.night}: {outcome}", flush=True)
        return known

    # The decision

    def decided(self) -> Record:
        """What this night does, with every number that says so, on record."""
        facts = self.facts()
        decision, why = decide(facts, self.settings.rules)
        if self.settings.decide != "auto" and len(facts["window"]) > 1:
            decision, why = self.settings.decide, f"asked for; the rules say {decision}: {why}"
            if decision == "refresh" and not (facts["champion"] or {}).get("refreshable"):
                raise ValueError("--decide refresh: there is no champion with one architecture to retrain")
        champion = facts["champion"]
        known = {
            "night": self.night,
            "decision": decision,
            "why": why,
            "state": DECIDED,
            "outcome": "",
            "begun": instant(),
            "against": {name: champion[name] for name in ("sequence", "version")} if champion else None,
            "source": self.source() if decision == "warm" else None,
            "facts": facts,
            "settings": asdict(self.settings),
        }
        return self.kept(known)

    def facts(self) -> Record:
        """All that the rules look at."""
        window, earlier = self.settings.days(), self.earlier()
        newest = window[-1] if window else ""
        seen = max((one["facts"]["newest_day"] for one in earlier if one["state"] == DONE), default="")
        known: Record = {"window": window, "newest_day": newest, "new": newest > seen}
        known |= {"champion": None, "differs": [], "method": "", "drift": {}, "loss": None}
        if len(window) > 1 and (known["new"] or self.settings.decide != "auto"):
            for day in window[-2:]:
                self._judges(day)
        champion = self.registry.champion()
        if champion is None or len(window) < 2:
            return known
        about, folder = self.registry.about(champion.version), self.registry.version(champion.version)
        dataset = self.settings.rows(window[-1:])
        tried = [self.registry.about(number) for number in self.registry.versions()]
        searched = [one for one in tried if one["decision"] != "refresh" and not self._other_method(one)]
        since = [one for one in searched if one["newest_day"] > about["searched"]]
        known["champion"] = {
            "sequence": champion.sequence,
            "version": champion.version,
            "label": about["label"],
            "trained_until": about["window"][-2],
            "age": _apart(about["newest_day"], newest),
            "tried_ago": min(_apart(one["newest_day"], newest) for one in tried),
            "searched_ago": min(_apart(one["searched"], newest) for one in (about, *searched)),
            "refreshable": about["refreshable"],
        }
        try:
            model = versions.Version(folder, about)
        except versions.Foreign as error:
            if self.settings.decide != "cold":
                remedy = "run the code that made it, or search anew and judge without it: --decide cold"
                raise ValueError(f"{folder.url}, the champion: {error}; {remedy}") from error
            return {**known, "differs": [str(error)]}
        known["differs"] = versions.differs(model.schema, dataset.layout())
        if known["differs"]:
            return known
        known["method"] = "" if since else self._other_method(about)
        compared = dataset if self.settings.rules.over == "day" else self.settings.rows(window)
        profile = folder.read_json(versions.PROFILE)
        known["drift"] = drift.drift(profile, drift.alike(compared.rows(), compared.layout(), profile))
        own, history = summary(model.losses(dataset), clicked(dataset)), self.history(champion.version, newest)
        known["loss"] = {**own, "history": history}
        known["loss"]["bound"] = bound(history, own["error"], self.settings.rules) if history else None
        return known

    def _judges(self, day: str) -> None:
        """Raise DataError for a day that tells nothing: without rows, or with one label alone."""
        rows, labels = 0, set[int]()
        for _, label in versions.labelled(self.settings.rows((day,))):
            rows, labels = rows + len(label), labels | {*np.unique(label).tolist()}
            if len(labels) > 1:
                return
        raise self.settings.unfit(day, f"all {rows} labels are {labels.pop()}" if rows else "it holds no row")

    def _other_method(self, about: Record) -> str:
        """What of the method asked for is not as it was asked for when a version was made, "" if all is."""
        described = self.registry.version(about["version"]).read_text("schema.json")
        try:
            base = versions.method_of(about, "base")
            if self.asked.name != base.name:
                return f"the method is another, {self.asked.name} instead of {base.name},"
            with versions.understood(about):
                schema = Schema.from_json(described)
                one, other = (method.space(schema).decisions for method in (self.asked, base))
        except versions.Foreign:
            return "the settings are others"
        return "" if one == other else "the search space is another"

    @cached_property
    def asked(self) -> Method:
        """The method to search, before anything of it is tuned or shortened."""
        return self.settings.run("/", ("1970-01-01",)).method

    def earlier(self) -> list[Record]:
        """The records of earlier nights."""
        return [one for one in self.registry.decisions() if one["night"] < self.night]

    def history(self, version: int, before: str) -> list[Record]:
        """How a version did on the days that it was judged on before a day."""
        found = dict[str, Record]()
        for one in self.earlier():
            day, facts, compared = one["facts"]["newest_day"], one["facts"], one.get("compared")
            if compared and compared["challenger"]["version"] == version:
                found[day] = {"day": day, **compared["challenger"]}
            elif facts["loss"] and facts["champion"]["version"] == version:
                found[day] = {"day": day, **facts["loss"]}
        names = ("day", "relative", "error")
        return [{name: one[name] for name in names} for day, one in sorted(found.items()) if day < before]

    # The run

    def run(self, known: Record) -> tuple[Run, Record]:
        """Take the night's run through its stages; the run, and what became of the weights that it began with."""
        root = f"{self.settings.runs or f'{self.registry.folder.url}/runs'}/{self.night}"
        decision, window, told = known["decision"], known["facts"]["window"], Record()
        source = known["source"] if "source" in known else self.source() if decision == "warm" else None
        run = self.settings.run(root, window, warm=source is not None)
        if source is not None:
            front = self.registry.version(source).read_json(versions.FRONT)
            run = replace(run, first=tuple(parse(one["genotype"]) for one in front))
        if decision == "refresh":
            run = self.refreshed(run, known["against"]["version"])
        self.lease.check()
        run.check()
        run.save()
        for stage in run.planned:
            if stage == "supernet" and source is not None:
                base = versions.method_of(self.registry.about(source), "base")
                told = {"version": source, **warm.begin(run, self.registry.version(source), base)}
            if not (run.folder / stage).done:
                self.lease.check()
                started = time.monotonic()
                self.do(run, stage)
                print(f"{self.night}: {stage}: done in {time.monotonic() - started:.1f} s", flush=True)
        return run, told

    def source(self) -> int | None:
        """The newest version with a supernet of the space asked for, made before this night, that no rollback left.

        None makes a warm start cold.
        """
        left = self.registry.left()
        for number in reversed(self.registry.versions()):
            about = self.registry.about(number)
            there = versions.SUPERNET in about["files"] and about["night"] < self.night and number not in left
            if there and not self._other_method(about):
                return number
        return None

    def refreshed(self, run: Run, number: int) -> Run:
        """The run that only retrains a version's architecture: what a search would have written says so."""
        about = self.registry.about(number)
        method, genotype = versions.method_of(about), parse(about["parts"][0])
        budget = "whole" if "whole" in method.budgets else ""
        stages = tuple(stage for stage in run.stages if stage not in SUPERNET_STAGES)
        run = replace(run, methods=(method,), given=(genotype,), strategies=(), budgets=(budget,), stages=stages)
        only = {"model_id": "", "score": 0.0, "budget": budget, "strategy": "given", "as": "champion"}
        (run.folder / "search").write_json("candidates.json", [{**only, "genotype": about["parts"][0]}])
        return run

    # The version

    def version(self, known: Record, run: Run, told: Record) -> int:
        """The night's version, made of its run unless that was done before."""
        for number in reversed(self.registry.versions()):
            if self.registry.about(number)["night"] == self.night:
                return number
        window, decision = known["facts"]["window"], known["decision"]
        trained = self.settings.rows(window[:-1])
        profile = drift.profile(trained.rows(), trained.layout())
        number = self.registry.claim()
        base, searched = self.asked, known["facts"]["newest_day"]
        if decision == "refresh":
            refreshed = self.registry.about(known["against"]["version"])
            base, searched = versions.method_of(refreshed, "base"), refreshed["searched"]
        about = versions.write(run, self.registry.version(number), profile, base)
        dated = {"night": self.night, "decision": decision, "window": window, "newest_day": window[-1]}
        self.lease.check()
        self.registry.seal(number, {**dated, "searched": searched, "made": instant(), **about})
        return number

    # The comparison

    def compared(self, known: Record, number: int) -> Record:
        """Challenger and champion on the same rows of the newest day."""
        folder, dataset = self.registry.version(number), self.settings.rows(known["facts"]["window"][-1:])
        challenger = versions.Version(folder, self.registry.about(number))
        label, ours = clicked(dataset), challenger.losses(dataset)
        told: Record = {"challenger": {"version": number, "label": challenger.about["label"], **summary(ours, label)}}
        if known["against"] and not known["facts"]["differs"]:
            other = known["against"]["version"]
            champion = versions.Version(self.registry.version(other), self.registry.about(other))
            theirs = champion.losses(dataset)
            told["champion"] = {"version": other, "label": champion.about["label"], **summary(theirs, label)}
        else:
            zero, one = folder.read_json(versions.PROFILE)[drift.LABEL]["counts"]
            rate = one / (zero + one)
            theirs = -np.log(np.where(label, rate, 1 - rate))
            always = {"version": None, "label": "the click rate of the training rows"}
            told["champion"] = {**always, **summary(theirs, label)}
        units = min(len(label), UNITS)
        told["difference"] = against(grouped(ours, units)[None], grouped(theirs, units)[None])
        return {"compared": told, "state": COMPARED}

    def promoted(self, known: Record, number: int) -> Record:
        """Make the challenger champion if the evidence says so and the champion has not moved."""
        difference, before = known["compared"]["difference"], known["against"]
        refreshed = known["decision"] == "refresh"
        limit = self.settings.margin if refreshed else 0.0
        told = f"difference {difference['delta']:+.5f} [{difference['low']:+.5f}, {difference['high']:+.5f}] nats"
        champion = self.registry.champion()
        if champion is not None and champion.version == number:
            return self.ended({**known, "promoted": True}, f"version {number} is champion: {told}")
        if not difference["high"] < limit:
            return self.ended({**known, "promoted": False}, f"version {number} is not promoted: {told}")
        if not _same(champion, before):
            return self.ended({**known, "promoted": False}, f"version {number} is not promoted: the champion has moved")
        try:
            self.registry.promote(number, champion, self.lease)
        except Moved:
            return self.ended({**known, "promoted": False}, f"version {number} is not promoted: the champion has moved")
        return self.ended({**known, "promoted": True}, f"version {number} is champion: {told}")


def _same(champion: Alias | None, known: Mapping[str, int] | None) -> bool:
    if champion is None or known is None:
        return champion is None and known is None
    return champion.sequence == known["sequence"]


def _apart(earlier: str, later: str) -> int:
    """Days between two dates."""
    return (date.fromisoformat(later) - date.fromisoformat(earlier)).days


def clicked(dataset: Dataset) -> NDArray[np.int8]:
    """The labels of a log. Shape (rows,)."""
    return np.concatenate([label for _, label in versions.labelled(dataset)])


def summary(loss: Values, label: NDArray[np.int8]) -> Record:
    """Rows, click rate, log loss in nats, and what share it is of always saying that rate, with its standard error."""
    rate = float(label.mean())
    whole = drift.entropy(rate) or 1.0
    error = float(loss.std() / len(loss) ** 0.5)
    known = {"rows": len(loss), "click_rate": rate, "log_loss": float(loss.mean())}
    return {**known, "relative": float(loss.mean()) / whole, "error": error / whole}


def spent(run: Run) -> Record:
    """What a run cost: seconds by stage, steps of the supernet, genotypes scored, examples of all retrainings."""
    stages = [stage for stage in run.planned if (run.folder / stage).done]
    seconds = {stage: (run.folder / stage).read_json("done.json")["seconds"] for stage in stages}
    curve = (run.folder / "supernet").read_json("curve.json") if "supernet" in seconds else []
    searched = (run.folder / "search").exists("trials.parquet")
    scored = (run.folder / "search").read_table("trials.parquet").num_rows if searched else 0
    retrain = run.folder / "retrain"
    results = [retrain.read_json(name) for name in retrain.names("*/part=*/seed=*/result.json")]
    known = {"seconds": seconds, "supernet_steps": int(curve[-1]["step"]) if curve else 0, "genotypes": scored}
    return {**known, "examples": sum(one["examples"] for one in results)}
