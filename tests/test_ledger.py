"""What a run costs is counted, whatever ends it, and a budget ends it in order with what there is."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from components import diagnose, ledger, trainings, tune, workers
from components.cost_section import stopped
from components.finalists import Finalist
from components.folder import Folder
from components.ledger import UNITS, Ledger, Meter, Spent, summed
from components.run import Run
from components.search import Search, continue_search
from components.settings import Allowance, Diagnosis, Tuning
from components.told import Told
from components.tracking import News
from components.trainings import Job, continue_training, train_all, train_alone
from nascore.methods.autotower import AutoTower
from nascore.methods.popularity import Popularity
from nascore.space import Genotype, key
from nascore.storage import StorageError
from nascore.two_tower import Training

RunWith = Callable[..., Run]
METHOD = AutoTower(
    blocks=1,
    item_blocks=1,
    embedding=4,
    width=8,
    output=6,
    steps=130,
    candidates=12,
    training=Training(batch=64, epochs=2, patience=0, stop="recall@10"),
)
SEARCH = Search("random:batch=4", "", 0)


@pytest.fixture(autouse=True)
def as_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trainings, workers):
        monkeypatch.setattr(module, "settle", lambda run: "cpu")


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(Folder(str(tmp_path)) / "ledger")


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


# The ledger


def test_a_meter_counts_the_cpu_time_of_all_threads_and_the_wall_time_of_gpus() -> None:
    idle, held = Meter(), Meter(2)
    threads = [threading.Thread(target=spin, args=(0.1,)) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    started = time.monotonic()
    time.sleep(0.05)
    assert idle().cpu >= 0.19 and idle().gpu == 0
    assert held().gpu >= 2 * (0.05 + time.monotonic() - started - 0.05)


def test_an_attempt_is_the_driver_and_all_that_work_for_it(book: Ledger) -> None:
    with book.attempt("search"):
        spin(0.05)
        book.note({"a": ("evaluators", Spent(1, 10)), "b": ("evaluators", Spent(2, 20)), "c": ("one", Spent(4, 0))})
        book.note({"a": ("evaluators", Spent(8, 10))})  # a worker tells all that it has spent so far
        now = book.total()
    (known,) = book.attempts()
    assert known["stage"] == "search" and not known["stopped"]
    assert known["work"]["evaluators"] == {"cpu_seconds": 10, "gpu_seconds": 30}
    assert known["work"]["one"] == {"cpu_seconds": 4, "gpu_seconds": 0}
    assert 14.05 <= now["cpu_seconds"] <= known["cpu_seconds"] < 16 and known["gpu_seconds"] == 30
    assert book.total() == {unit: known[unit] for unit in UNITS}


def test_a_killed_attempt_counts_too(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "WRITTEN_EVERY", 0.02)
    attempt = book.attempt("retrain")
    attempt.__enter__()  # and never left, as by a process that is killed
    book.note({"a": ("one", Spent(5))})
    while not any(one["cpu_seconds"] >= 5 for one in book.attempts()):
        time.sleep(0.01)
    other = Ledger(book.folder)
    with other.attempt("retrain"):
        assert other.total()["cpu_seconds"] >= 5
        other.note({"b": ("one", Spent(7))})
    assert len(other.attempts()) == 2 and summed(other.attempts())["cpu_seconds"] >= 12
    with pytest.raises(KeyboardInterrupt):
        attempt.gen.throw(KeyboardInterrupt())  # type: ignore[attr-defined]


def test_a_failed_attempt_counts_and_its_error_is_not_hidden(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="mine"), book.attempt("tune"):
        raise RuntimeError("mine")
    assert [one["stage"] for one in book.attempts()] == ["tune"]

    def full(*_: Any) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(Folder, "write_json", full)
    with pytest.raises(RuntimeError, match="mine"), book.attempt("tune"):
        raise RuntimeError("mine")
    with pytest.raises(StorageError, match="no room"), book.attempt("tune"):
        pass
    assert book.open is None


def test_every_stage_is_in_the_ledger(run_with: RunWith) -> None:
    run = run_with(Popularity())
    with run.stage("evaluate"):
        spin(0.02)
    (one,) = run.ledger.attempts()
    assert one["stage"] == "evaluate" and one["cpu_seconds"] >= 0.02 and one["seconds"] > 0


def test_a_stage_that_is_done_is_in_the_ledger(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write = run_with(Popularity()), Folder.write_json

    def killed(folder: Folder, name: str, value: Any) -> None:
        if name == "done.json":
            raise KeyboardInterrupt
        write(folder, name, value)

    monkeypatch.setattr(Folder, "write_json", killed)
    with pytest.raises(KeyboardInterrupt), run.stage("search"):
        run.cut()
    (one,) = run.ledger.attempts()
    assert one["stopped"] and not (run.folder / "search").done


# The budget


def test_a_budget_is_hours_of_all_attempts(run_with: RunWith) -> None:
    for budget, unit, words in (
        (Allowance(wall=0.5), "seconds", "--budget.wall 0.5 h"),
        (Allowance(gpu_hours=0.5), "gpu_seconds", "--budget.gpu_hours 0.5"),
    ):
        run = run_with(Popularity(), budget=budget)
        known = {"stage": "search", "began": "2026-01-01", **dict.fromkeys(UNITS, 0.0), "stopped": ""}
        for number, (seconds, used) in enumerate(((1700.0, ""), (99.0, ""), (1.0, words))):
            run.ledger.folder.write_json(f"search-{number}.json", {**known, unit: seconds})
            assert run.used_up() == used
        assert not replace(run, budget=Allowance()).used_up()
    with pytest.raises(ValueError, match="Allowance: wall is at least 0, not -1"):
        Allowance(wall=-1)
    with pytest.raises(ValueError, match="are numbers of hours; 0 stands for no limit"):
        Allowance(gpu_hours=float("inf"))


def test_a_run_of_a_version_without_budgets_goes_on(run_with: RunWith) -> None:
    run = run_with(METHOD)
    known = run.folder.read_json("run.json")
    del known["budget"]
    run.folder.write_json("run.json", known)
    assert Run.load(run.root) == run


def test_a_budget_may_be_changed_in_the_middle_of_a_run(run_with: RunWith) -> None:
    run = run_with(METHOD)
    (run.folder / "search").write_text("begun", "")
    changed = replace(run, budget=Allowance(wall=2))
    changed.save()
    assert Run.load(run.root).budget == Allowance(wall=2)


def test_a_supernet_that_is_told_to_stop_ends_with_a_whole_checkpoint(run_with: RunWith) -> None:
    run, news = run_with(METHOD), list[News]()

    def stops(one: News) -> bool:
        news.append(one)
        return one.done >= 100

    continue_training(run, tell=stops)
    assert [one.done for one in news] == [50, 100]
    checkpoint = run.checkpoint()
    assert checkpoint.read_json("done.json") == {"step": 100}
    assert [point["step"] for point in checkpoint.read_json("curve.json")] == [50, 100]
    continue_training(run)
    assert run.checkpoint().read_json("done.json") == {"step": 130}
    whole = run_with(METHOD)
    continue_training(whole)
    assert all(
        (one == other).all()
        for one, other in zip(
            *(r.checkpoint().read_tensors("weights.safetensors").values() for r in (run, whole)), strict=True
        )
    )


def test_a_search_that_is_told_to_stop_has_scored_at_least_once(run_with: RunWith) -> None:
    run, asked = run_with(METHOD), list[int]()

    def score(genotypes: Sequence[Genotype]) -> list[float | None]:
        asked.append(len(genotypes))
        return [0.5] * len(genotypes)

    assert continue_search(run, SEARCH, score, lambda news: True) == 0.5
    folder = run.folder / "search" / SEARCH.id
    assert asked == [4] and folder.read_json("done.json") == {"scored": 4, "stopped": True}
    failed = Search("random:batch=4", "", 1)
    assert continue_search(
        run, failed, lambda some: [0.5 if len(asked) > 1 else asked.append(1)] * len(some), lambda news: True
    )
    assert (run.folder / "search" / failed.id).read_json("done.json")["scored"] == 8, "until one has a finite score"


def test_genotypes_are_recorded_with_what_they_cost(run_with: RunWith) -> None:
    run, spent = run_with(METHOD), dict[str, Spent]()

    def score(genotypes: Sequence[Genotype]) -> list[float | None]:
        spent.update({key(one): Spent(0.25, 2.0) for one in genotypes[1:]})
        return [0.5] * len(genotypes)

    continue_search(run, SEARCH, score, lambda news: True, spent)
    table = (run.folder / "search" / SEARCH.id).read_table("generation-00000.parquet")
    assert sorted(table["cpu_seconds"].to_pylist()) == [0, 0.25, 0.25, 0.25]
    assert sorted(table["gpu_seconds"].to_pylist()) == [0, 2, 2, 2]


def test_a_ranking_is_not_tested_without_a_budget(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(METHOD, diagnosis=Diagnosis(genotypes=4, seeds=1), budget=Allowance(wall=1e-3))
    known = {"stage": "search", "began": "2026-01-01", **dict.fromkeys(UNITS, 5.0), "stopped": ""}
    run.ledger.folder.write_json("search.json", known)
    monkeypatch.setattr(diagnose, "watching", lambda *_: pytest.fail("there is no budget left for that"))
    diagnose.main(run)
    assert (run.folder / "diagnose").read_json("diagnose.json")["n"] == 0
    assert run.ledger.attempts()[-1]["stopped"] == "--budget.wall 0.001 h"


def test_a_ranking_is_tested_on_what_was_trained_in_time(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [0.1, 0.2, 0.3, 0.4, 0.5]
    for done, n in ((7, 3), (5, 0)):
        run = run_with(METHOD, diagnosis=Diagnosis(genotypes=5, seeds=2), budgets=("",))
        monkeypatch.setattr(diagnose, "watching", lambda run, stage: nullcontext())
        monkeypatch.setattr(diagnose, "fits", lambda run, workers: None)

        class Scored:
            def options(self, **_: Any) -> "Scored":
                return self

            def remote(self, *_: Any) -> list[float]:
                return scores

        monkeypatch.setattr(diagnose, "_scores", Scored())
        monkeypatch.setattr(diagnose.ray, "get", lambda value: value)
        results = [{"value": number / 10} if number < done else None for number in range(10)]
        monkeypatch.setattr(diagnose, "train_all", lambda run, stage, jobs, cut, known=results: known)
        diagnose.main(run)
        told = (run.folder / "diagnose").read_json("diagnose.json")
        assert told["n"] == n == len(told["points"])
        assert [one["score"] for one in told["points"]] == scores[:n]
        assert run.ledger.attempts()[-1]["stopped"]


@pytest.mark.parametrize("waves, tuned", [(0, []), (1, []), (2, []), (9, ["mine", "theirs"])])
def test_no_method_is_tuned_where_not_all_could_be(
    run_with: RunWith, monkeypatch: pytest.MonkeyPatch, waves: int, tuned: list[str]
) -> None:
    run, trained = run_with(METHOD, tuning=Tuning(configurations=9)), list[int]()
    continue_training(run)
    space = METHOD.space(run.schema)
    model = Finalist("x", "found", METHOD, (space.sample(Random(0)),), "x")
    settings: list[tune.Settings] = [{}] * 5
    monkeypatch.setattr(tune, "calibrated", lambda run: 0)
    monkeypatch.setattr(tune, "ours", lambda run, wanted: [tune.Tuning("of", "mine", model, [*settings])])
    monkeypatch.setattr(tune, "rivals", lambda run, wanted: [tune.Tuning("of", "theirs", model, [*settings])])

    def train_all(run: Run, stage: str, jobs: Sequence[Any], cut: bool) -> list[dict[str, Any] | None]:
        trained.append(len(jobs))
        result = {"value": 1.0, "examples": 1, "judged": 1, "seconds": 1.0, "best_epoch": 1}
        return [result if cut and len(trained) <= waves else None for _ in jobs]

    monkeypatch.setattr(tune, "train_all", train_all)
    tune.main(run)
    known = (run.folder / "tune").read_json("tuned.json")
    assert [one["label"] for one in known["methods"]] == tuned
    assert known["spent"]["supernet"] == 130 * METHOD.train.batch
    assert bool(run.ledger.attempts()[-1]["stopped"]) == (not tuned)


@pytest.mark.parametrize("ended", [True, False])
def test_what_is_trained_counts_where_no_budget_is_left(run_with: RunWith, ended: bool) -> None:
    run = run_with(METHOD, budget=Allowance(wall=1e-9))
    space = METHOD.space(run.schema)
    jobs = [Job.make(f"diagnose/{n}", METHOD, space.sample(Random(n)), 0) for n in range(2)]
    if ended:
        train_alone(run, jobs[1])
    known = {"stage": "search", "began": "", **dict.fromkeys(UNITS, 5.0), "stopped": ""}
    run.ledger.folder.write_json("search.json", known)
    first, second = train_all(run, "diagnose", jobs, cut=True)
    assert first is None and (second is not None) == ended


def test_the_report_says_what_a_budget_ended(run_with: RunWith) -> None:
    run = run_with(METHOD)
    assert stopped(Told(run)) == ""
    for stage in ("search", "evaluate"):
        with run.stage(stage):
            if stage == "search":
                run.cut()
    assert "a budget that was smaller then was used up; search ended with what there was" in stopped(Told(run))
    assert {one["stage"]: one["attempts"] for one in Told(run).stages} == {"search": 1, "evaluate": 1}
