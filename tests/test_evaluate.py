"""Judging: the found model, intervals, paired tests, and the verdict."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from components import evaluate, trainings
from components.evaluate import against, compare, contenders, interval, units, verdict
from components.finalists import Finalist, finalists, labels, trained
from components.job import Job
from components.models import opened
from components.run import Run
from components.trainings import train_alone
from nascore.cost import UNITS, Cost
from nascore.methods.autotower import AutoTower
from nascore.methods.googlednn import GoogleDNN
from nascore.methods.popularity import Popularity
from nascore.methods.sasrec import SASRec
from nascore.protocols.user_temporal import UserTemporal
from nascore.sequence_net import Training as SequenceTraining
from nascore.space import parse
from nascore.tasks import Scores
from nascore.tasks.retrieval import Retrieval
from nascore.two_tower import Training

RunWith = Callable[..., Run]
METHOD = AutoTower(blocks=2, embedding=4, width=8, output=6, training=Training(batch=64, epochs=2, stop="recall@10"))


def test_an_interval_holds_the_spread_of_users_and_of_seeds() -> None:
    rng = np.random.default_rng(3)
    alone = rng.random((1, 200))
    wanted = stats.t.interval(0.95, 199, alone.mean(), stats.sem(alone[0]))
    assert interval(alone) == pytest.approx(wanted, rel=1e-9)
    seeds = np.array([[2.0], [2.3], [2.6]])
    wanted = stats.t.interval(0.95, 2, 2.3, stats.sem(seeds[:, 0]))
    assert interval(np.repeat(seeds, 5, 1)) == pytest.approx(wanted, rel=1e-9)
    assert interval(np.full((2, 5), 0.25)) == (0.25, 0.25)
    few = np.array([[0.0, 0.0, 1.0], [0.1, 1.0, 1.0]])
    assert interval(few)[0] == 0 and interval(few)[1] > 1 and interval(few, 1.0) == (0, 1)


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(5), 0
    for _ in range(400):
        low, high = interval(5 + rng.normal(0, 0.3, (1, 200)) + rng.normal(0, 0.15, (3, 1)))
        held += low < 5 < high
    assert 0.92 < held / 400 < 0.98


def test_two_models_are_compared_user_by_user() -> None:
    rng = np.random.default_rng(4)
    a = rng.random((1, 120))
    b = a - 0.02 + 0.1 * rng.standard_normal(120)
    told, difference = against(a, b), (a - b)[0]
    t = difference.mean() / (difference.std(ddof=1) / math.sqrt(120))
    assert told["delta"] == pytest.approx(difference.mean(), rel=1e-12)
    assert told["p"] == pytest.approx(2 * stats.t.sf(abs(t), 119), rel=1e-9)
    wanted = stats.ttest_rel(a[0], b[0]).confidence_interval(0.95)
    assert (told["low"], told["high"]) == pytest.approx((wanted.low, wanted.high), rel=1e-9)
    swapped = against(b, a)
    assert (swapped["delta"], swapped["low"], swapped["p"]) == pytest.approx((-told["delta"], -told["high"], told["p"]))
    assert against(a, a) == {"delta": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert against(a[:, :1] + 1, a[:, :1]) == {"delta": 1.0, "low": 0.0, "high": 1.0, "p": 1.0}, (
        "one unit tells nothing"
    )


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1])
def test_equal_models_are_seldom_told_apart_however_much_seeds_differ(spread: float) -> None:
    rng, told_apart = np.random.default_rng(6), 0
    for _ in range(400):
        unit = rng.random(80)
        a, b = (unit + spread * rng.standard_normal((3, 1)) + 0.1 * rng.standard_normal((3, 80)) for _ in range(2))
        found = against(a, b)
        assert (found["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)
        told_apart += found["p"] < 0.05
    assert told_apart / 400 < 0.08


def test_a_rival_without_seeds_of_its_own_adds_no_spread() -> None:
    rng = np.random.default_rng(7)
    a, exact = rng.random((3, 50)), np.tile(rng.random(50), (3, 1))
    difference, seeds = a.mean(0) - exact[0], a.mean(1)
    error = math.sqrt(difference.var(ddof=1) / 50 + seeds.var(ddof=1) / 3)
    found = against(a, exact)
    freedom = error**4 / ((difference.var(ddof=1) / 50) ** 2 / 49 + (seeds.var(ddof=1) / 3) ** 2 / 2)
    assert found["high"] - found["delta"] == pytest.approx(stats.t.ppf(0.975, freedom) * error, rel=1e-9)


def scores_of(values: Any, cold: Any = None) -> Scores:
    values = np.asarray(values, float)
    none = np.zeros(len(values), bool) if cold is None else np.array(cold)
    return Scores("user_temporal/full-ranking", np.arange(len(values)) + 10, {"recall@50": values}, none)


def costs(run: Run, those: list[Finalist]) -> dict[str, Cost]:
    return {one.model_id: one.method.price(run.schema)(one.genotype, "") for one in those}


def contender(label: str, role: str) -> Finalist:
    return Finalist(label, role, Popularity(), ({},), label)


@pytest.mark.parametrize(
    "ours, theirs, told",
    [
        (0.4, 0.2, "Ours beats the best rival: recall@50 0."),
        (0.2, 0.4, "Ours did not beat the best rival here but fell behind it: recall@50 0."),
        (0.302, 0.3, "Ours did not beat the best rival here: recall@50 0."),
        (0.298, 0.3, "Ours did not beat the best rival here: recall@50 0."),
    ],
)
def test_the_verdict_on_the_found_model(run_with: RunWith, ours: float, theirs: float, told: str) -> None:
    rng = np.random.default_rng(0)
    run = run_with(Popularity(), seeds=(0, 1))
    means = {"Ours": ours, "Weak": 0.1, "Strong": theirs}
    scores = {
        name: [scores_of(np.clip(mean + 0.1 * rng.standard_normal(300), 0, 1)) for _ in run.seeds]
        for name, mean in means.items()
    }
    those = [contender("Ours", "found"), contender("Weak", "baseline"), contender("Strong", "baseline")]
    report = compare(run, those, scores, costs(run, those))
    pair = report["paired"][1]
    assert report["verdict"].startswith(told)
    assert (pair["a"], pair["b"]) == ("Ours", "Strong")
    assert f"of Strong, difference {pair['delta']:+.4f} [{pair['low']:+.4f}, " in report["verdict"]
    behind = pair["high"] < 0
    counted = f", of 2 rivals {2 * pair['p']:.2g}" if behind else ""
    assert report["verdict"].endswith(f"p = {pair['p']:.2g}{counted}.")
    lonely = compare(run, those[:1], {"Ours": scores["Ours"]}, costs(run, those))["verdict"]
    assert "there was no rival to compare it with" in lonely and lonely.startswith("Ours reaches recall@50 0.")
    assert verdict(those, report["rows"], report["paired"], "recall@50") == report["verdict"]


def test_to_be_behind_the_best_of_many_rivals_takes_more() -> None:
    row = {"metric": "auc", "value": 0.5}
    those = [contender("Ours", "found"), *(contender(f"R{n}", "baseline") for n in range(3))]
    rows = [{**row, "model": one.label} for one in those[:-1]] + [{**row, "model": "R2", "value": 0.6}]
    pair = {"a": "Ours", "b": "R2", "delta": -0.1, "low": -0.2, "high": -0.001, "p": 0.04}
    told = verdict(those, rows, [pair], "auc")
    assert told == (
        "Ours did not beat the best rival here: auc 0.5000 against 0.6000 of R2, "
        "difference -0.1000 [-0.2000, -0.0010], p = 0.04, of 3 rivals 0.12."
    )
    alone = verdict([those[0], those[3]], rows, [pair], "auc")
    assert "fell behind it" in alone and alone.endswith("p = 0.04.")


def test_rows_are_means_over_seeds_and_users_and_the_cold_stand_apart(
    run_with: RunWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(Popularity(), seeds=(3, 4))
    cold = [False, True, False, False]
    scores = {
        "A": [scores_of([0.0, 1.0, 0.5, 1.0], cold), scores_of([0.5, 0.0, 0.5, 0.5], cold)],
        "B": [scores_of([0.0, 0.0, 0.0, 0.5], cold), scores_of([0.5, 1.0, 0.0, 0.0], cold)],
    }
    those = [contender("A", "found"), contender("B", "baseline")]
    report = compare(run, those, scores, costs(run, those))
    values = {(row["model"], row["metric"]): row["value"] for row in report["rows"]}
    assert values == {
        ("A", "recall@50"): 0.5,
        ("A", "recall@50/cold"): 0.5,
        ("B", "recall@50"): 1 / 6,
        ("B", "recall@50/cold"): 0.5,
    }
    (pair,) = report["paired"]
    a, b = np.array([[0.0, 0.5, 1.0], [0.5, 0.5, 0.5]]), np.array([[0.0, 0.0, 0.5], [0.5, 0.0, 0.0]])
    assert pair == {"a": "A", "b": "B", "metric": "recall@50", **against(a, b)}, "the cold are left out"
    assert all(row["low"] <= row["value"] <= row["high"] and row["seeds"] == [3, 4] for row in report["rows"])
    assert (report["protocol"], report["leaks"]) == ("user_temporal/full-ranking", "")
    assert report["sees"] == UserTemporal.sees and report["split_digest"] == run.schema.split_digest
    assert report["rows"][0]["high"] == 1, "a share is no larger"
    monkeypatch.setattr(Retrieval, "ratios", frozenset({"recall@50"}))
    assert compare(run, those, scores, costs(run, those))["rows"][0]["high"] > 1
    table = units(run, scores).to_pylist()
    assert len(table) == 2 * 2 * 4
    assert {"model": "B", "seed": 4, "unit": 11, "cold": True, "metric": "recall@50", "value": 1.0} in table


def test_the_found_model_is_the_best_on_validation(run_with: RunWith) -> None:
    run = run_with(METHOD, Popularity(), seeds=(0, 1), budgets=("L", "M"), strategies=("evolution", "random"))
    told = [
        ("a", "L", "evolution", (0.5, 0.3)),
        ("b", "L", "evolution", (0.45, 0.4)),
        ("c", "L", "evolution", (0.6, 0.2)),
        ("a", "M", "evolution", (0.5, 0.3)),
        ("d", "M", "random", (0.1, 0.1)),
    ]
    candidates, digest = [], run.schema.split_digest
    for model, budget, strategy, values in told:
        genotype = {"user/0": [f"mlp:{ord(model)}"]}
        known = {"model_id": model, "budget": budget, "strategy": strategy, "as": strategy, "score": 0}
        candidates.append({**known, "genotype": genotype})
        model_id = METHOD.model_id(parse(genotype), digest)
        for seed, value in zip(run.seeds, values, strict=True):
            (run.folder / f"retrain/{model_id}/part=0/seed={seed}").write_json("result.json", {"value": value})
    (run.folder / "search").write_json("candidates.json", candidates)
    *kept, rival = contenders(run)
    assert [(one.candidate, one.budget, one.strategy) for one in kept] == [
        ("b", "L", "evolution"),
        ("a", "M", "evolution"),
        ("d", "M", "random"),
    ]
    assert kept[0].label == "AutoTower L, evolution" and kept[0].role == "found"
    assert kept[0].genotype == {"user/0": ("mlp:98",)}
    assert kept[0].model_id == METHOD.model_id(kept[0].genotype, digest)
    twice = finalists(replace(run, methods=(METHOD, GoogleDNN(), GoogleDNN(output=32), Popularity())))[-3:]
    assert [one.label for one in twice] == ["GoogleDNN M (output=64)", "GoogleDNN M (output=32)", "Popularity"]
    deeper = labels([GoogleDNN().tuned({"training.batch": "7", "output": "32"}), GoogleDNN(), GoogleDNN(size="L")])
    assert deeper == [
        "GoogleDNN M (output=32, training.batch=7)",
        "GoogleDNN M (output=64, training.batch=1024)",
        "GoogleDNN L",
    ]
    assert (rival.label, rival.role, rival.genotype) == ("Popularity", "baseline", {})
    assert rival.model_id == Popularity().model_id({}, run.schema.split_digest)


def test_what_was_given_is_compared_with_the_rivals_only(run_with: RunWith) -> None:
    run = run_with(METHOD, Popularity(), seeds=(0, 1), strategies=("evolution", "random"))
    member = next(iter(METHOD.space(run.schema).members()))
    names = ("evolution", "random", "given 1", "given 2")
    found = [Finalist(name, "found", METHOD, (member,), name, "M", name) for name in names]
    rival = Finalist("Popularity", "baseline", Popularity(), ({},), "rival")
    some = Scores("p", np.arange(4), {"recall@50": np.arange(4) / 4}, np.zeros(4, bool))
    those = [*found, rival]
    report = compare(run, those, {one.model_id: [some, some] for one in those}, costs(run, those))
    assert [(one["a"], one["b"]) for one in report["paired"]] == [
        ("evolution", "random"),
        ("evolution", "Popularity"),
        ("random", "evolution"),
        ("random", "Popularity"),
        ("given 1", "Popularity"),
        ("given 2", "Popularity"),
    ]


def test_a_run_is_evaluated_from_its_files(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "settle", lambda run: "cpu")
    monkeypatch.setattr(evaluate, "test_all", lambda run, models: [evaluate.tested(run, one) for one in models])
    run = run_with(METHOD, Popularity(), seeds=(0, 1), budgets=("",))
    ours = next(iter(METHOD.space(run.schema).members()))
    jobs = {}
    for method, genotype in ((METHOD, ours), (Popularity(), {})):
        model_id = method.model_id(genotype, run.schema.split_digest)
        for seed in run.seeds:
            jobs[model_id] = Job.make(f"retrain/{model_id}/part=0/seed={seed}", method, genotype, seed)
            train_alone(run, jobs[model_id])
    first, second = jobs
    listed = {"model_id": first, "budget": "", "strategy": "evolution", "as": "evolution", "genotype": ours, "score": 0}
    (run.folder / "search").write_json("candidates.json", [listed])
    evaluate.main(run)
    folder = run.folder / "evaluate"
    report, table = folder.read_json("report.json"), folder.read_table("units.parquet").to_pydict()
    assert folder.done and set(report["models"]) == {first, second}
    assert report["models"][first]["label"] == "AutoTower , evolution" and parse(report["models"][first]["parts"][0])
    for row in report["rows"]:
        metric, _, cold = row["metric"].partition("/")
        values = [
            value
            for model, name, value, one in zip(*(table[n] for n in ("model", "metric", "value", "cold")), strict=True)
            if (model, name, one) == (row["model_id"], metric, bool(cold))
        ]
        assert row["value"] == pytest.approx(np.mean(values), rel=1e-12)
        method = METHOD if row["model_id"] == first else Popularity()
        cost = method.price(run.schema)(ours if row["model_id"] == first else {}, "")
        assert [row[unit] for unit in UNITS] == [float(getattr(cost, unit)) for unit in UNITS]
    popular = run.rows("train").relevant.item.bincount(minlength=run.schema.items).double()
    data = run.rows("test")
    golden = Popularity().task(run.schema).rank(lambda part: popular.repeat(len(data.ranked_users()[0][part]), 1), data)
    value = next(row["value"] for row in report["rows"] if (row["model_id"], row["metric"]) == (second, "recall@10"))
    assert value == pytest.approx(golden.means()["recall@10"], rel=1e-6)
    assert "beat" in report["verdict"] and report["timing"].keys() >= {"prepare"}
    assert report["diagnose"]["kendall"] is None


def test_each_model_is_shown_the_past_that_it_was_trained_on(run_with: RunWith) -> None:
    """One reading of the test split serves models of different lengths, shorter and longer than the data's own."""
    run = run_with(protocol="leave_one_out", seeds=(0,))
    test = run.rows("test")
    for length in (3, 9):
        method = SASRec(
            hidden=8, inner=8, heads=2, layers=1, training=SequenceTraining(length=length, targets="all", epochs=1)
        )
        one = Finalist("SASRec", "baseline", method, ({},), method.model_id({}, run.schema.split_digest))
        train_alone(run, Job.make(trained(one, 0), method, {}, 0))
        known = opened(run, one, 0)
        found = evaluate.measure(known, one, test)
        own = evaluate.measure(known, one, run.rows("test", shown=method.shown))
        assert found.means() == own.means() and "ndcg@10" in found.means()
    assert test.length == 6, "the split itself is left as it was"
