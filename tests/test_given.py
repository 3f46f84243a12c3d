"""What is retrained beside the best of each search: given genotypes, a sampler's decision, whole fronts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from components import trainings, workers
from components.evaluate import contenders
from components.finalists import finalists, genotypes
from components.run import Run
from components.search import GIVEN, Search, continue_search, front, unsearched, write_results
from components.trainings import continue_training
from components.tune import ours
from nascore.methods.autotower import AutoTower
from nascore.rows import seed_of
from nascore.space import Genotype, key, parse
from nascore.training import Learning
from nascore.two_tower import Training
from pipelines.autotower import autotower

RunWith = Callable[..., Run]
METHOD = AutoTower(
    blocks=1, item_blocks=2, embedding=4, width=8, output=6, steps=12, candidates=14, training=Training(32)
)
SEARCH = Search("random:batch=7", "macs=30000", 0)


@pytest.fixture(autouse=True)
def as_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (trainings, workers):
        monkeypatch.setattr(module, "settle", lambda run: "cpu")


def plain(genotypes: Sequence[Genotype]) -> list[float | None]:
    return [seed_of(key(genotype)) % 1000 / 1000 for genotype in genotypes]


def searched(run: Run, *searches: Search, score: Any = plain) -> list[dict[str, Any]]:
    for one in searches:
        continue_search(run, one, score)
    write_results(run, run.folder / "search", searches)
    candidates: list[dict[str, Any]] = (run.folder / "search").read_json("candidates.json")
    return candidates


def drawn(run: Run, count: int) -> list[Genotype]:
    space, rng = run.members(SEARCH.budget), Random(5)
    return [space.sample(rng) for _ in range(count)]


def test_yesterdays_front_is_proposed_first(run_with: RunWith) -> None:
    space = METHOD.space(run_with(METHOD).schema)
    cheap = {name: (decision.options[0],) for name, decision in space.decisions.items()}
    run = run_with(METHOD, first=(cheap,))
    continue_search(run, SEARCH, plain)
    table = (run.folder / "search" / SEARCH.id).read_table("generation-00000.parquet")
    assert parse(table["genotype"][0].as_py()) == cheap


def test_given_genotypes_are_scored_apart_and_compared_each_by_itself(run_with: RunWith) -> None:
    some = drawn(run_with(METHOD), 3)
    settings: dict[str, Any] = {"strategies": (SEARCH.strategy,), "budgets": (SEARCH.budget,), "keep": 2}
    run = run_with(METHOD, given=tuple(some), **settings)
    assert Run.load(run.root) == run
    candidates = searched(run, SEARCH, Search(GIVEN, SEARCH.budget, 0))
    assert [one["as"] for one in candidates] == [SEARCH.strategy] * 2 + ["given 1", "given 2", "given 3"]
    assert [parse(one["genotype"]) for one in candidates[2:]] == some
    assert [one["score"] for one in candidates[2:]] == plain(some)
    without = run_with(METHOD, **settings)
    assert candidates[:2] == searched(without, SEARCH), "the searches do not see them"
    for one in finalists(run):
        for seed in run.seeds:
            value = plain([one.genotype])[0]
            (run.folder / f"retrain/{one.model_id}/part=0/seed={seed}").write_json("result.json", {"value": value})
    assert [one.label.partition(", ")[2] for one in contenders(run)] == [
        SEARCH.strategy,
        *(f"given {n}" for n in (1, 2, 3)),
    ]
    assert [one.model.genotype for one in ours(run, 9)] == [parse(candidates[0]["genotype"])], (
        "the best that was searched"
    )


def test_given_genotypes_need_no_search_and_may_fail(run_with: RunWith, capsys: pytest.CaptureFixture[str]) -> None:
    some = drawn(run_with(METHOD), 4)
    method = replace(METHOD, candidates=2)
    run = run_with(method, given=tuple(some), strategies=(), budgets=(SEARCH.budget, "macs=1e9"))
    run.check()
    searches = [Search(GIVEN, SEARCH.budget, 0)]
    assert not unsearched(run, "macs=1e9"), "each under the first budget that holds it"

    def fails(asked: Sequence[Genotype]) -> list[float | None]:
        return [None if genotype == some[1] else 0.5 for genotype in asked]

    assert [one["as"] for one in searched(run, *searches, score=fails)] == ["given 1", "given 3", "given 4"]
    assert "given 2 has no finite score under macs=30000 and is left out" in capsys.readouterr().out
    assert [one.of for one in ours(run, 9)] == [SEARCH.budget]
    with pytest.raises(FloatingPointError, match="nothing that was given has a finite score"):
        searched(run_with(method, given=tuple(some), strategies=()), Search(GIVEN, "M", 0), score=lambda g: [None] * 4)
    with pytest.raises(ValueError, match="--strategies needs one or more"):
        run_with(METHOD, strategies=()).check()


def test_what_no_budget_allows_is_refused(run_with: RunWith) -> None:
    (one,) = drawn(run_with(METHOD), 1)
    big = {**one, "item/1": ("mlp:1024",)}
    run_with(METHOD, given=(big,), budgets=("macs=2000", "macs=1e9")).check_given()
    with pytest.raises(ValueError, match="--given: .*mlp:1024.* is within none of --budgets: macs [0-9,]+ of 2,000"):
        run_with(METHOD, given=(big,), budgets=("macs=2000",)).check_given()
    with pytest.raises(ValueError, match=r"--given: .* is no member of this run's space: user/pool \(4 o"):
        run_with(METHOD, given=({"user/0": ("mlp:64",)},)).check_given()


def test_models_of_another_run_are_named_by_its_folder(run_with: RunWith) -> None:
    run, some = run_with(METHOD), drawn(run_with(METHOD), 2)
    listed = [{name: list(chosen) for name, chosen in one.items()} for one in some]
    models = {str(n): {"parts": [one], "candidate": "abc"} for n, one in enumerate(listed)}
    folder = run.folder / "evaluate"
    with pytest.raises(ValueError, match="is neither a genotype as JSON nor the folder of a run that was evaluated"):
        genotypes(run.root)
    folder.write_json("report.json", {"models": {**models, "rival": {"parts": [{}], "candidate": ""}}})
    folder.write_json("done.json", {})
    assert genotypes(run.root) == some
    assert genotypes(json.dumps(listed[0])) == some[:1]
    made = autotower(root="/tmp/r", dataset="parquet", given=(run.root, json.dumps(listed[1])))
    assert made.given == (*some, some[1])
    for wrong in ('{"a": 1}', '{"a": ', '{"a": [1, 2'):
        with pytest.raises(ValueError, match="not a genotype"):
            genotypes(wrong)


def test_a_whole_front_is_retrained_and_compared(run_with: RunWith) -> None:
    run = run_with(METHOD, strategies=("nsga2:population=7",), budgets=(SEARCH.budget,), keep=1, front=True)
    search = replace(SEARCH, strategy="nsga2:population=7")
    candidates = searched(run, search)
    rows = (run.folder / "search").read_table("trials.parquet").to_pylist()
    best = front(sorted(rows, key=lambda row: -row["score"]))
    assert len(best) > 1 and [one["model_id"] for one in candidates[1:]] == [one["model_id"] for one in best]
    assert candidates[0]["score"] == best[-1]["score"] and candidates[0]["as"] == search.strategy
    assert [one["as"] for one in candidates[1:]] == [f"{search.strategy}, front {n + 1}" for n in range(len(best))]
    assert len({one["as"] for one in candidates}) == len(candidates)


def test_a_sampler_that_learns_names_a_candidate_of_each_budget(run_with: RunWith) -> None:
    method = replace(METHOD, paths="nasp", nasp=Learning(every=2, learning_rate=0.2))
    run = run_with(method, strategies=(SEARCH.strategy,), budgets=(SEARCH.budget, "macs=20000"), keep=1)
    continue_training(run)
    whole = (run.folder / "supernet/step-000000012").read_tensors("weights.safetensors")
    strength = whole["supernet.sampler.strength"]
    assert strength.min() >= 0 and strength.max() <= 1 and torch.unique(strength).numel() > 10
    for budget in run.budgets:
        (name, decided), *others = unsearched(run, budget).items()
        assert name == "nasp" and decided in run.members(budget) and not others
    searches = [Search(s, b, 0) for b in run.budgets for s in (SEARCH.strategy, GIVEN)]
    candidates = searched(run, *searches)
    assert [(one["budget"], one["as"]) for one in candidates] == [
        (budget, name) for budget in run.budgets for name in ("nasp", SEARCH.strategy)
    ]
    with pytest.raises(ValueError, match="paths=nasp learns one path"):
        replace(method, growth=0.5)
