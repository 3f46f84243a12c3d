"""Tuning: what is tried in which order, how long a rival may go on, and that what is found is what is tested."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import nan
from types import SimpleNamespace
from typing import Any

import pytest

from components import search_sections, tune
from components.finalists import finalists
from components.job import Job
from components.run import STAGES, Run
from components.search import Search, continue_search, write_results
from components.settings import Tuning as Wanted
from components.trainings import train_alone
from nascore import plugins
from nascore.fitness import Fitness
from nascore.methods import Method, from_json
from nascore.methods.autotower import AutoTower
from nascore.methods.googlednn import GoogleDNN
from nascore.methods.popularity import Popularity
from nascore.rows import seed_of
from nascore.space import key, parse
from nascore.two_tower import Training

RunWith = Callable[..., Run]
TRAINING = Training(batch=64, epochs=3)
METHOD = AutoTower(
    blocks=2, width=8, output=6, steps=40, candidates=8, training=TRAINING, fitness=Fitness(calibration=100)
)
RIVAL = GoogleDNN(size="L", training=TRAINING)
BUDGET = "macs=4000"


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Supernets that were trained to the end."""
    monkeypatch.setattr(tune, "steps_taken", lambda run, of: run.method.train.steps)


@pytest.fixture
def searched(run_with: RunWith) -> Callable[..., Run]:
    """A run whose search is done, over made-up scores."""

    def run_of(*rivals: Method, **changes: Any) -> Run:
        run = run_with(METHOD, *rivals, budgets=(BUDGET, ""), seeds=(3, 4), keep=2, **changes)
        searches = [Search("evolution", budget, seed) for budget in run.budgets for seed in run.seeds]
        for search in searches:
            continue_search(run, search, lambda some: [seed_of(key(one)) / 2**63 for one in some])
        write_results(run, run.folder / "search", searches)
        return run

    return run_of


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[Job]]:
    """Each wave of jobs; a model's value is made up from its settings, and it takes 10 steps."""
    waves: list[list[Job]] = []

    def train_all(run: Run, stage: str, jobs: Sequence[Job], cut: bool) -> list[dict[str, Any]]:
        waves.append(list(jobs))
        assert stage == "tune" and len({job.folder for job in jobs}) == len(jobs)
        known = {"best_epoch": 2, "seconds": 0.1, "steps": 10, "examples": 10 * 64, "judged": 50}
        return [{"model_id": job.folder.split("/")[1], "value": value(job), **known} for job in jobs]

    monkeypatch.setattr(tune, "train_all", train_all)
    return waves


def value(job: Job) -> float:
    """Best at a width of 24, then at a learning rate of .01."""
    method: Any = from_json(job.method)
    return -abs(method.embedding - 24) - abs(method.training.learning_rate - 0.01)


def told(run: Run) -> tuple[dict[str, Any], dict[str, int]]:
    known = (run.folder / "tune").read_json("tuned.json")
    return {one["of"]: one for one in known["methods"]}, known["spent"]


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_a_methods_own_settings_come_first_and_all_others_once(name: str) -> None:
    method: Method = plugins.load("methods", name)()
    tried = [method.tuned(settings) for settings in tune.configurations(method)]
    assert tried[0] == method and len(set(tried)) == len(tried) <= max(1, method.tunables().size()) + 1
    assert tune.configurations(method) == tune.configurations(method)
    again = [from_json(one.to_json()) for one in tried]
    assert again == tried, "settings have the types of the fields"


def test_methods_of_equal_tunables_are_offered_the_same_settings() -> None:
    orders: list[Any] = [tune.configurations(plugins.load("methods", name)()) for name in ("googlednn", "mind", "bst")]
    assert orders[0] == orders[1] == orders[2] == tune.configurations(AutoTower())
    first = orders[0][1:4]
    assert {one["training.learning_rate"] for one in first} == {"0.1", "0.01", "0.001"}, "each value, then each again"
    assert len({one["embedding"] for one in first}) == 3
    nasrec, dnn = (tune.configurations(plugins.load("methods", name)())[1:4] for name in ("nasrec", "dnn"))
    shared = nasrec[0].keys() & dnn[0].keys()
    assert shared and [{name: one[name] for name in shared} for one in nasrec] == [
        {name: one[name] for name in shared} for one in dnn
    ], "and of what methods share the same values"


def test_ours_is_tuned_once_a_budget_and_rivals_within_what_ours_used(
    searched: Callable[..., Run], trained: list[list[Job]]
) -> None:
    run = searched(RIVAL, Popularity())
    tune.main(run)
    found, spent = told(run)
    rival = RIVAL.model_id({}, run.schema.split_digest)
    assert list(found) == [BUDGET, "", rival], "popularity has nothing to tune"
    genotypes = set((run.folder / "search").read_table("trials.parquet")["genotype"].to_pylist())
    ours = sum(found[budget]["examples"] for budget in run.budgets)
    assert spent == {"supernet": 40 * 64, "search": 100 * len(genotypes), "tuning": ours}
    assert len(found[""]["tried"]) == 15 and found[""]["settings"] == {
        "training.learning_rate": "0.01",
        "embedding": "24",
    }
    assert found[rival]["settings"] == found[""]["settings"]
    for one in found.values():
        assert one["examples"] == 10 * 64 * len(one["tried"])
        assert one["tried"][0]["settings"] == {} and one["value"] == max(t["value"] for t in one["tried"])
    assert {job.seed for wave in trained for job in wave} == {3}
    candidates = (run.folder / "search").read_json("candidates.json")
    best = max((one for one in candidates if one["budget"] == BUDGET), key=lambda one: one["score"])["genotype"]
    widths = {int(t["settings"].get("embedding", 16)) for t in found[BUDGET]["tried"]}
    fits = {
        width
        for width in (8, 16, 24, 32, 64)
        if replace(METHOD, embedding=width).price(run.schema)(parse(best), "").macs <= 4_000
    }
    assert widths == fits and len(fits) < 5, "settings that break the budget are left out"


def test_rivals_of_one_name_are_told_apart(searched: Callable[..., Run]) -> None:
    told = [one.label for one in tune.rivals(searched(RIVAL, replace(RIVAL, output=3), Popularity()), 2)]
    assert len(told) == 2 and told[0].endswith(f"(output={RIVAL.output})") and told[1].endswith("(output=3)")


@pytest.mark.parametrize("wanted", [0, 1, 6])
def test_no_more_settings_are_tried_than_asked_for(
    searched: Callable[..., Run], trained: list[list[Job]], wanted: int
) -> None:
    run = searched(RIVAL, tuning=Wanted(wanted))
    tune.main(run)
    found, _ = told(run)
    assert {of: len(one["tried"]) for of, one in found.items() if of != BUDGET} == (
        {} if not wanted else {"": 1} if wanted == 1 else {"": 6, RIVAL.model_id({}, run.schema.split_digest): 6}
    )


def test_settings_that_diverge_are_tried_and_not_taken(
    searched: Callable[..., Run], trained: list[list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = value

    def lost(job: Job) -> float | None:
        method: Any = from_json(job.method)
        return None if method.name == "googlednn" or method.training.learning_rate != 0.01 else own(job)

    monkeypatch.setitem(globals(), "value", lost)
    run = searched(RIVAL, tuning=Wanted(6))
    tune.main(run)
    found, _ = told(run)
    ours, rival = found[""], found[RIVAL.model_id({}, run.schema.split_digest)]
    assert ours["tried"][0]["value"] is None and ours["settings"]["training.learning_rate"] == "0.01"
    assert ours["value"] == max(one["value"] for one in ours["tried"] if one["value"] is not None)
    assert rival["settings"] == {} and rival["value"] is None and len(rival["tried"]) == 6
    assert all(job.tried for wave in trained for job in wave)


@pytest.mark.parametrize("first, best, told", [(0.25, 0.3, "+0.0500 over its own"), (None, 0.3, "its own diverged")])
def test_the_report_says_what_tuning_gained(first: float | None, best: float, told: str) -> None:
    tried = [{"settings": {}, "value": first}, {"settings": {"embedding": "24"}, "value": best}]
    one = {"label": "Ours", "settings": {"embedding": "24"}, "value": best, "examples": 310, "tried": tried}
    known: Any = SimpleNamespace(tuning={"spent": {"supernet": 1, "search": 1, "tuning": 1}, "methods": [one]})
    assert f"0.3000<small>{told}</small>" in search_sections.tuning(known)


def test_only_an_attempt_may_diverge(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    run, rival = run_with(METHOD, RIVAL), replace(RIVAL, training=replace(TRAINING, epochs=1))
    monkeypatch.setattr(Fitness, "measure", lambda *asked: nan)
    result = train_alone(run, replace(Job.make("tune/lost", rival, {}, 0), tried=True))
    assert result["value"] is None and result["examples"] == result["steps"] * 64 > 0
    assert train_alone(run, replace(Job.make("tune/lost", rival, {}, 0), tried=True)) == result
    with pytest.raises(FloatingPointError, match=r"retrain/lost, GoogleDNN L: no epoch gave a finite .*nan\)\]; lower"):
        train_alone(run, Job.make("retrain/lost", rival, {}, 0))
    assert not (run.folder / "retrain/lost").done


def test_what_two_budgets_have_in_common_is_trained_once(
    searched: Callable[..., Run], trained: list[list[Job]]
) -> None:
    run = replace(searched(RIVAL, tuning=Wanted(3)), budgets=("macs=1e8", ""))
    searches = [Search("evolution", budget, seed) for budget in run.budgets for seed in run.seeds]
    for search in searches:
        continue_search(run, search, lambda some: [seed_of(key(one)) / 2**63 for one in some])
    write_results(run, run.folder / "search", searches)
    tune.main(run)
    found, spent = told(run)
    assert found["macs=1e8"]["tried"] == found[""]["tried"] and len(found[""]["tried"]) == 3
    assert spent["tuning"] == found[""]["examples"] == 3 * 10 * 64, "and its examples count once"


def test_a_rival_stops_where_its_examples_are_used_up(
    searched: Callable[..., Run], trained: list[list[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = searched(RIVAL, tuning=Wanted(12))
    monkeypatch.setattr(tune, "calibrated", lambda run: -40 * 64 + 1)
    monkeypatch.setattr(tune, "ours", lambda run, wanted: [])
    tune.main(run)
    found, spent = told(run)
    (only,) = found.values()
    assert sum(spent.values()) == 1 and len(only["tried"]) == tune.WAVE, "a wave that has begun is finished"
    assert [len(wave) for wave in trained] == [tune.WAVE]


def test_what_was_tuned_is_what_is_tested(searched: Callable[..., Run], trained: list[list[Job]]) -> None:
    run = searched(RIVAL, Popularity())
    plain = finalists(run)
    tune.main(run)
    tuned = finalists(run)
    assert [(one.label, one.role, one.genotype) for one in plain] == [(o.label, o.role, o.genotype) for o in tuned]
    assert [one.candidate for one in plain] == [one.candidate for one in tuned]
    assert all(one.model_id == one.candidate for one in plain if one.role == "found")
    best = RIVAL.tuned({"training.learning_rate": "0.01", "embedding": "24"})
    assert [one.method for one in tuned if one.role == "baseline"] == [best, Popularity()]
    ours = {one.budget: one.method for one in tuned if one.role == "found"}
    assert ours[""] == METHOD.tuned({"training.learning_rate": "0.01", "embedding": "24"})
    skipped = replace(run, stages=tuple(stage for stage in STAGES if stage != "tune"))
    assert finalists(skipped) == plain, "a run without the stage tests every method as it is"
