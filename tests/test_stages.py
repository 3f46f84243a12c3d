"""The file logic of the stages, without a cluster: searches, supernets and trainings that are killed and go on."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import torch

from components import trainings, workers
from components.ledger import UNITS
from components.run import Folder, Run
from components.search import Search, continue_search, front, write_results
from components.settings import Workers
from components.tracking import News
from components.trainings import Job, continue_training, train_alone
from nascore.fitness import Fitness
from nascore.methods.autotower import AutoTower
from nascore.methods.googlednn import GoogleDNN
from nascore.methods.popularity import Popularity
from nascore.rows import seed_of
from nascore.space import Genotype, key, parse
from nascore.training import Fit, load
from nascore.two_tower import Training

RunWith = Callable[..., Run]
METHOD = AutoTower(
    blocks=2,
    embedding=4,
    width=8,
    output=6,
    steps=16,
    candidates=14,
    training=Training(batch=64, epochs=3, patience=0, stop="recall@10", clip=0.5),
)
SEARCH = Search("evolution:population=4", "macs=30000", 0)


@pytest.fixture(autouse=True)
def as_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker sets its process's threads and denormals; the tests' process keeps its own."""
    for module in (trainings, workers):
        monkeypatch.setattr(module, "settle", lambda run: "cpu")


def plain(genotypes: Sequence[Genotype]) -> list[float | None]:
    """Scores without a supernet; one in ten fails."""
    scores = [seed_of(key(genotype)) % 1000 / 1000 for genotype in genotypes]
    return [None if score < 0.1 else score for score in scores]


def recorded(folder: Folder) -> list[pa.Table]:
    return [folder.read_table(name).drop_columns([*UNITS]) for name in folder.names("generation-*.parquet")]


def test_a_search_writes_each_generation(run_with: RunWith) -> None:
    run, news = run_with(METHOD), list[News]()
    best = continue_search(run, SEARCH, plain, news.append)
    folder = run.folder / "search" / SEARCH.id
    assert SEARCH.id == "evolution_population_4-macs_30000-seed0"
    tables = recorded(folder)
    assert [len(table) for table in tables] == [4, 4, 4, 2], "14 candidates in generations of 4"
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["number"] for row in rows] == list(range(14))
    assert [row["generation"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    price = METHOD.price(run.schema)
    for row in rows:
        genotype = parse(row["genotype"])
        assert genotype in run.members("macs=30000") and row["feasible"]
        assert row["score"] == plain([genotype])[0]
        assert row["macs"] == price(genotype, "").macs <= 30_000 and row["params"] == price(genotype, "").params
        assert row["model_id"] == METHOD.model_id(genotype, run.schema.split_digest)
        assert (row["parents"] == "[]") or row["generation"] > 0
    assert any(len(json.loads(row["parents"])) == 2 for row in rows[4:])
    assert best == max(row["score"] for row in rows if row["score"] is not None)
    assert folder.read_json("done.json") == {"scored": 14, "stopped": False}
    assert (news[-1].done, news[-1].total, news[-1].best) == (14, 14, best)
    assert [one.done for one in news] == [0, 4, 8, 12, 14]


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_search_goes_on_to_the_same_files(run_with: RunWith, after: int) -> None:
    whole, killed = run_with(METHOD), run_with(METHOD)
    continue_search(whole, SEARCH, plain)
    calls = []

    def dies(genotypes: Sequence[Genotype]) -> list[float | None]:
        calls.append(genotypes)
        if len(calls) > after:
            raise KeyboardInterrupt
        return plain(genotypes)

    with pytest.raises(KeyboardInterrupt):
        continue_search(killed, SEARCH, dies)
    folders = [run.folder / "search" / SEARCH.id for run in (whole, killed)]
    assert len(recorded(folders[1])) == after and not folders[1].done
    scored = []
    best = continue_search(killed, SEARCH, lambda genotypes: (scored.extend(genotypes), plain(genotypes))[1])
    assert len(scored) == 14 - 4 * after, "nothing is scored twice"
    assert recorded(folders[1]) == recorded(folders[0])
    assert best == continue_search(whole, SEARCH, dies), "a finished search only retells"
    for run in (whole, killed):
        write_results(run, run.folder / "search", [SEARCH])
    for name in ("candidates.json", "front.json"):
        assert killed.folder.read_text(f"search/{name}") == whole.folder.read_text(f"search/{name}")


def test_another_searchs_files_are_refused(run_with: RunWith) -> None:
    run = run_with(METHOD)
    continue_search(run, SEARCH, plain)
    folder = run.folder / "search"
    other = Search("evolution:population=4", "macs=30000", 1)
    folder.fs.copy(f"{folder.path}/{SEARCH.id}", f"{folder.path}/{other.id}", recursive=True)
    with pytest.raises(ValueError, match="generation-00000.parquet was written by another version of this search"):
        continue_search(run, other, plain)


def test_a_search_without_a_finite_score_is_an_error(run_with: RunWith) -> None:
    run = run_with(METHOD)
    with pytest.raises(FloatingPointError, match=f"search {SEARCH.id}: none of 14 genotypes has a finite score"):
        continue_search(run, SEARCH, lambda genotypes: [None] * len(genotypes))
    assert not (run.folder / "search" / SEARCH.id).done


def test_a_search_ends_where_its_space_does(run_with: RunWith) -> None:
    run = run_with(Popularity())
    assert continue_search(run, Search("random", "", 0), lambda genotypes: [0.5] * len(genotypes)) == 0.5
    assert (run.folder / "search/random--seed0").read_json("done.json") == {"scored": 1, "stopped": False}


def test_results_are_the_best_of_each_strategy_and_budget(run_with: RunWith) -> None:
    run = run_with(METHOD, strategies=("evolution:population=4", "random:batch=9"), budgets=("", "macs=30000"), keep=2)
    searches = [Search(s, b, seed) for b in run.budgets for s in run.strategies for seed in (0, 1)]
    for one in searches:
        continue_search(run, one, plain)
    folder = run.folder / "search"
    write_results(run, folder, searches)
    trials = folder.read_table("trials.parquet").to_pylist()
    assert len(trials) == 8 * 14
    assert {(row["trial"], row["strategy"], row["budget"], row["seed"]) for row in trials} == {
        (one.id, one.strategy, one.budget, one.seed) for one in searches
    }
    candidates = folder.read_json("candidates.json")
    assert [(one["budget"], one["strategy"]) for one in candidates] == [
        (budget, strategy) for budget in run.budgets for strategy in run.strategies for _ in range(2)
    ]
    for budget in run.budgets:
        for strategy in run.strategies:
            own = {
                row["model_id"]: row["score"]
                for row in trials
                if (row["budget"], row["strategy"]) == (budget, strategy) and row["score"] is not None
            }
            best = sorted(own.values(), reverse=True)[:2]
            kept = [one for one in candidates if (one["budget"], one["strategy"]) == (budget, strategy)]
            assert [one["score"] for one in kept] == best
            assert all(METHOD.model_id(parse(one["genotype"]), run.schema.split_digest) in own for one in kept)
    told = [(row["macs"], row["score"]) for row in trials if row["score"] is not None]
    golden = {
        (macs, score)
        for macs, score in told
        if not any(m <= macs and s >= score and (m, s) != (macs, score) for m, s in told)
    }
    found = [(one["macs"], one["score"]) for one in folder.read_json("front.json")]
    assert set(found) == golden and found == sorted(found)


def test_a_generation_where_every_score_fails_can_be_joined(run_with: RunWith) -> None:
    run, calls = run_with(METHOD), []

    def first_fails(genotypes: Sequence[Genotype]) -> list[float | None]:
        calls.append(1)
        return [None] * len(genotypes) if len(calls) == 1 else plain(genotypes)

    continue_search(run, SEARCH, first_fails)
    write_results(run, run.folder / "search", [SEARCH])
    scores = (run.folder / "search").read_table("trials.parquet")["score"].to_pylist()
    assert scores[:4] == [None] * 4 and len(scores) == 14


def test_the_front_keeps_what_no_other_beats() -> None:
    told = ((9, 0.9), (9, 0.8), (4, 0.8), (5, 0.7), (4, 0.6), (1, 0.1))
    rows = [{"macs": macs, "score": score} for macs, score in told]
    assert [(row["macs"], row["score"]) for row in front(rows)] == [(1, 0.1), (4, 0.8), (9, 0.9)]
    assert front([]) == []


# The supernet


def trained(run: Run) -> dict[str, torch.Tensor]:
    last = run.checkpoint()
    return {**last.read_tensors("weights.safetensors"), **last.read_tensors("optimizer.safetensors")}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_killed_training_goes_on_to_the_same_weights(
    run_with: RunWith, monkeypatch: pytest.MonkeyPatch, mode: Any
) -> None:
    monkeypatch.setattr(trainings, "TOLD_EVERY", 2)
    jobs = Workers(checkpoint=5, data=mode)
    whole, killed = run_with(METHOD, workers=jobs), run_with(METHOD, workers=jobs)
    continue_training(whole)
    folder = killed.folder / "supernet"
    for death in (2, 8, 12):

        def tell(news: News, death: int = death) -> None:
            if news.done >= death:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            continue_training(killed, tell=tell)
        steps = [int(name[5:14]) for name in folder.names("step-*/done.json")]
        assert steps == [step for step in (5, 10) if step < death]
    torn = folder / "step-000000013"
    torn.write_text("weights.safetensors", "half of a checkpoint")
    seen = []
    continue_training(killed, tell=lambda news: seen.append(news.done))
    assert seen[0] == 12 and seen[-1] == 16, "from the newest whole one on"
    assert_same(trained(killed), trained(whole))
    curves = [run.checkpoint().read_json("curve.json") for run in (whole, killed)]
    assert [(point["step"], point["loss"]) for point in curves[0]] == [(p["step"], p["loss"]) for p in curves[1]]
    assert [point["step"] for point in curves[0]] == [2, 4, 5, 7, 9, 10, 12, 14, 15, 16]
    seconds = [point["seconds"] for point in curves[1]]
    assert seconds == sorted(seconds), "time goes on, too"
    assert [name for name in folder.names("step-*/done.json")] == [f"step-{s:09d}/done.json" for s in (15, 16)]


def test_a_checkpoint_without_its_last_file_is_none(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Workers(checkpoint=5)
    whole, killed = run_with(METHOD, workers=jobs), run_with(METHOD, workers=jobs)
    continue_training(whole)
    write = Folder.write_json

    def dies(self: Folder, name: str, value: Any) -> None:
        if name == "done.json" and value == {"step": 10}:
            raise KeyboardInterrupt
        write(self, name, value)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(Folder, "write_json", dies)
        continue_training(killed)
    assert killed.folder.exists("supernet/step-000000010/weights.safetensors")
    assert killed.checkpoint().url.endswith("step-000000005")
    continue_training(killed)
    assert_same(trained(killed), trained(whole))


def test_a_finished_training_is_left_alone(run_with: RunWith) -> None:
    run = run_with(replace(METHOD, steps=4))
    continue_training(run)
    before, news = trained(run), []
    continue_training(run, tell=news.append)
    assert not news
    assert_same(trained(run), before)
    assert int(before["step"]) == 4


def test_other_ranks_write_nothing(run_with: RunWith) -> None:
    run = run_with(replace(METHOD, steps=4))
    continue_training(run, rank=1, world=2)
    assert not run.folder.exists("supernet")


def test_a_longer_plan_goes_on(run_with: RunWith) -> None:
    """Checkpoints hang on steps alone, so a training can be told to go further."""
    short, whole = run_with(replace(METHOD, steps=12)), run_with(replace(METHOD, steps=20))
    continue_training(short)
    short.folder.fs.rm(f"{short.folder.path}/run.json")
    continue_training(replace(short, methods=whole.methods))
    continue_training(whole)
    assert_same(trained(replace(short, methods=whole.methods)), trained(whole))


# Models alone


def job_of(run: Run, seed: int = 0) -> Job:
    genotype = METHOD.space(run.schema).sample(Random(seed))
    return Job.make(f"retrain/model/part=0/seed={seed}", METHOD, genotype, seed)


def test_a_model_is_trained_alone(run_with: RunWith) -> None:
    run, news = run_with(METHOD), list[News]()
    job = job_of(run)
    result = train_alone(run, job, news.append)
    folder = run.folder / job.folder
    assert sorted(folder.names("*")) == ["done.json", "result.json", "weights.safetensors"]
    assert folder.read_json("result.json") == json.loads(json.dumps(result))
    values = [value for _, value in result["curve"]]
    assert result["value"] == max(values) == values[result["best_epoch"] - 1] and len(values) == 3
    assert result["model_id"] == METHOD.model_id(parse(job.genotype), run.schema.split_digest)
    assert result["steps"] == 3 * run.rows("train").steps_per_epoch(64)
    assert [one.done for one in news] == [1, 2, 3, 3]
    method, schema = METHOD, run.schema
    model = method.supernet(schema, method.space(schema).narrow(parse(job.genotype)), 9)
    task = method.task(schema)
    load(model, task, folder.read_tensors("weights.safetensors"))
    assert method.stop.measure(model.eval().net.only(), task, run.rows("valid")) == pytest.approx(result["value"])


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_killed_model_ends_as_if_it_had_not_been(
    run_with: RunWith, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    whole, killed = run_with(METHOD), run_with(METHOD)
    job = job_of(whole)
    wanted = train_alone(whole, job)

    def tell(news: News) -> None:
        if news.done > epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_alone(killed, job, tell)
    assert not (killed.folder / job.folder).done
    steps, advance = [], Fit.advance
    monkeypatch.setattr(Fit, "advance", lambda fit, count: (steps.append(fit.step), advance(fit, count))[1])
    found = train_alone(killed, job)
    assert steps[0] == epochs * (wanted["steps"] // 3)
    assert found | dict.fromkeys(UNITS) == wanted | dict.fromkeys(UNITS)
    assert found["cpu_seconds"] > 0 and wanted["cpu_seconds"] > 0
    weights = [(run.folder / job.folder).read_tensors("weights.safetensors") for run in (whole, killed)]
    assert_same(*weights)
    assert train_alone(killed, replace(job, seed=99)) == json.loads(json.dumps(found)), "done is done"


@pytest.mark.parametrize("killed_after", [0, 1])
def test_a_refit_trains_on_train_and_valid_for_the_best_number_of_epochs(
    run_with: RunWith, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    run, other = run_with(METHOD), run_with(METHOD)
    job = job_of(run)
    known = train_alone(other, job)
    write, refitted = Folder.write_tensors, list[str]()

    def watched(folder: Folder, name: str, tensors: Any) -> None:
        write(folder, name, tensors)
        refitted.extend([name] if name == trainings.REFITTED else [])
        if killed_after and len(refitted) == killed_after:
            refitted.append("killed")
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "write_tensors", watched)
    if killed_after:
        with pytest.raises(KeyboardInterrupt):
            train_alone(run, replace(job, refit=True))
    result = train_alone(run, replace(job, refit=True))
    assert result | dict.fromkeys(UNITS) == known | dict.fromkeys(UNITS), "what is told comes from validation"
    epochs, seed, folder = known["best_epoch"], seed_of(job.seed, "alone"), run.folder / job.folder
    assert refitted.count(trainings.REFITTED) == epochs
    assert sorted(folder.names("*")) == ["done.json", "result.json", "weights.safetensors"]
    space = METHOD.space(run.schema).narrow(parse(job.genotype))
    both = run.rows("train+valid")
    assert both.rows == run.rows("train").rows + run.rows("valid").rows
    golden = Fit(METHOD.supernet(run.schema, space, seed), METHOD.task(run.schema), both, METHOD.retrain, seed)
    golden.advance(epochs * both.steps_per_epoch(64))
    assert_same(folder.read_tensors("weights.safetensors"), golden.weights())


def test_an_epoch_that_was_not_a_number_is_told_as_none(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, math.nan, 0.2])
    monkeypatch.setattr(Fitness, "measure", lambda *_: next(values))
    run = run_with(METHOD)
    result = train_alone(run, job_of(run))
    assert [value for _, value in result["curve"]] == [0.5, None, 0.2]
    assert (run.folder / job_of(run).folder).read_json("result.json")["curve"][1][1] is None


def test_rivals_train_alone_too(run_with: RunWith) -> None:
    rival = GoogleDNN(size="L", embedding=4, output=6, training=METHOD.training)
    run = run_with(METHOD, rival, Popularity())
    for method in run.methods[1:]:
        result = train_alone(run, Job.make(f"retrain/{method.name}", method, {}, 0))
        assert 0 <= result["value"] <= 1 and result["name"] == method.name
    popular = (run.folder / "retrain/popularity").read_tensors("weights.safetensors")["supernet.net.events"]
    assert popular.sum() == run.rows("train").rows


def test_a_supernet_whose_loss_is_lost_says_so(run_with: RunWith) -> None:
    run = run_with(replace(METHOD, training=replace(METHOD.training, learning_rate=1e30)))
    with pytest.raises(FloatingPointError, match="the supernet's loss is nan at step 16; lower its learning rate"):
        continue_training(run)
    assert not run.folder.exists("supernet")
