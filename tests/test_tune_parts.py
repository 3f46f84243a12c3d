"""Tuning a model for each kind of rows: all its parts are tried together, and count by the rows they are judged on."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components import tune
from components.derive import candidate
from components.finalists import Finalist, finalists
from components.job import Job
from components.run import Run
from components.settings import Tuning as Wanted
from nascore.methods import Derived, Method
from nascore.methods.autofield import AutoField
from nascore.methods.fm import FM
from nascore.methods.ihas import ADAM, IHAS
from nascore.space import Genotype
from nascore.training import Learning

METHOD = IHAS(
    embedding=4, layers=(6,), steps=60, pretrained=20, learner=Learning(every=40), training=replace(ADAM, batch=128)
)
RIVAL = FM(training=ADAM)
STAGES = ("prepare", "supernet", "derive", "tune", "retrain", "evaluate", "report")


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Supernets that were trained to the end."""
    monkeypatch.setattr(tune, "steps_taken", lambda run, of: run.method.train.steps)


@pytest.fixture
def derived(clicks: Run, tmp_path: Path) -> Callable[..., Run]:
    """A run that has told kinds of rows apart; what each keeps is made up."""

    def run_of(*rivals: Method, models: Sequence[str] = ("clusters", "single"), **changes: Any) -> Run:
        shutil.copytree(f"{clicks.root}/prepare", tmp_path / "run/prepare")
        known: dict[str, Any] = {"strategies": (), "budgets": ("whole",), "stages": STAGES, "seeds": (3, 4)}
        run = replace(clicks, root=str(tmp_path / "run"), methods=(METHOD, *rivals), **{**known, **changes})
        run.save()
        names = [column.name for column in run.schema.columns]
        one: Genotype = {name: ("0", "2") for name in names}
        two: Genotype = {name: ("1",) for name in names}
        whole: Genotype = {name: tuple("0123") for name in names}
        parts = {"clusters": (one, two), "single": (one,), "open": (whole,), "gates": (whole,)}
        every = [
            candidate(Derived(name, parts[name], kept=name == "gates"), budget)
            for budget in run.budgets
            for name in models
        ]
        (run.folder / "derive").write_json("candidates.json", {"": every})
        return run

    return run_of


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Every job; of the second kind values are twice as large, and four times as many rows are judged."""
    jobs: list[Job] = []

    def value(job: Job) -> float:
        rate: float = job.method["training"]["learning_rate"]
        return -abs(rate - 0.003) * (2 if job.part == 1 else 1)

    def train_all(run: Run, stage: str, wave: Sequence[Job], cut: bool) -> list[dict[str, Any]]:
        jobs.extend(wave)
        known = {"best_epoch": 2, "seconds": 0.1, "examples": 100}
        return [{**known, "value": value(job), "judged": 40 if job.part == 1 else 10} for job in wave]

    monkeypatch.setattr(tune, "train_all", train_all)
    return jobs


def told(run: Run) -> tuple[dict[str, Any], dict[str, int]]:
    known = (run.folder / "tune").read_json("tuned.json")
    return {one["of"]: one for one in known["methods"]}, known["spent"]


def test_parts_are_tried_together_and_count_by_their_rows(derived: Callable[..., Run], trained: list[Job]) -> None:
    run = derived(RIVAL, tuning=Wanted(4))
    tune.main(run)
    found, spent = told(run)
    ours, rival = found.values()
    own = [job for job in trained if job.method["name"] == "ihas"]
    assert [job.part for job in own] == [0, 1] * 4 and len({job.folder for job in trained}) == 8 + 4
    assert {job.part for job in trained if job.method["name"] == "fm"} == {-1} and {job.seed for job in trained} == {3}
    assert [dict(job.genotype) for job in own[:2]] == [
        {name: list(chosen) for name, chosen in part.items()} for part in finalists(run)[0].parts
    ]
    for one, job in zip(ours["tried"], own[::2], strict=True):
        rate = job.method["training"]["learning_rate"]
        assert one["value"] == pytest.approx(-abs(rate - 0.003) * (1 * 10 + 2 * 40) / 50)
        assert (one["examples"], one["best_epoch"], one["seconds"]) == (200, 2, 0.2)
    assert spent == {"supernet": (60 + 1) * 128, "search": 0, "tuning": 4 * 200}
    assert len(rival["tried"]) == 4 and ours["tried"][0]["settings"] == {}


def test_a_model_of_which_one_part_diverged_did() -> None:
    known = {"judged": 5, "seconds": 0.1, "best_epoch": 1, "examples": 10}
    parts = [{**known, "value": value} for value in (-0.5, None, -0.3)]
    assert tune.joined(parts)["value"] is None and tune.joined(parts)["examples"] == 30
    assert tune.joined(parts[::2])["value"] == pytest.approx(-0.4)


@pytest.mark.parametrize("batch, rows", [(0, 128), (50, 50)])
def test_lessons_count_as_examples(derived: Callable[..., Run], trained: list[Job], batch: int, rows: int) -> None:
    method = replace(METHOD, learner=replace(METHOD.learner, every=3, batch=batch))
    run = derived(tuning=Wanted(1))
    run = replace(run, methods=(method,))
    tune.main(run)
    assert told(run)[1]["supernet"] == 60 * 128 + (60 - 20) // 3 * rows


def test_a_rivals_own_supernet_counts_against_it(derived: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    rival = AutoField(training=replace(ADAM, batch=32))
    run = derived(rival)
    one = Finalist("AutoField", "baseline", rival, ({},), "x", of="derive/autofield")
    monkeypatch.setattr(tune, "untuned", lambda run: [one])
    monkeypatch.setattr(tune, "steps_taken", lambda run, of: {"derive/autofield": 100}[of])
    (own,) = tune.rivals(run, 3)
    assert own.examples == tune.seen(100, rival.train.batch, rival.learning) > 100 * rival.train.batch


def test_what_was_tuned_is_used_by_every_model(derived: Callable[..., Run], trained: list[Job]) -> None:
    run = derived(RIVAL, models=("clusters", "single", "open", "gates"))
    plain = finalists(run)
    tune.main(run)
    settings = told(run)[0]["whole"]["settings"]
    assert settings["training.learning_rate"] == "0.003"
    tuned = finalists(run)
    assert [one.label for one in tuned] == [one.label for one in plain] and len(tuned) == 5
    assert all(one.method == METHOD.tuned(settings) for one in tuned[:4])
    assert len({one.model_id for one in (*plain[:4], *tuned[:4])}) == 8


def test_gates_alone_have_nothing_to_tune(derived: Callable[..., Run], trained: list[Job]) -> None:
    run = derived(models=("gates",))
    tune.main(run)
    assert told(run)[0] == {} and not trained


@pytest.mark.parametrize("models", [("clusters", "open"), ("clusters", "single", "open", "gates")])
def test_a_model_over_the_budget_does_not_stop_the_tuning(
    clicks: Run, derived: Callable[..., Run], trained: list[Job], models: Sequence[str]
) -> None:
    """No setting changes what a model costs, and what is derived for comparison may cost more."""
    half = {column.name: ("0", "2") for column in clicks.schema.columns}
    limit = int(METHOD.price(clicks.schema)(half, "").table_params)
    run = derived(models=models, budgets=(f"table_params={limit}",), tuning=Wanted(3))
    tune.main(run)
    (tuning,) = told(run)[0].values()
    assert len(tuning["tried"]) == 3 and {job.part for job in trained} == {0, 1}


def test_budgets_are_held_fast_by_what_was_derived_for_them(derived: Callable[..., Run]) -> None:
    """A further budget would have no models, and nothing would say so."""
    run = derived()
    with pytest.raises(ValueError, match="holds another run"):
        replace(run, budgets=("whole", "macs=1e5")).save()
