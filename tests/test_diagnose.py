"""The trust in a supernet's ranking: tau, its ceiling, their intervals, what is drawn, and what is concluded."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from components import diagnose
from components.run import Run
from components.settings import Diagnosis
from nascore.methods.autotower import AutoTower
from nascore.methods.popularity import Popularity
from nascore.space import key
from nascore.two_tower import Training

RunWith = Callable[..., Run]
METHOD = AutoTower(blocks=2, embedding=4, width=8, output=6, training=Training(batch=64, epochs=2, stop="recall@10"))


def tau_b(one: Any, other: Any) -> float:
    """Kendall's tau-b by counting pairs."""
    agree = ties_one = ties_other = pairs = 0
    for a, b in combinations(range(len(one)), 2):
        x, y = np.sign(one[a] - one[b]), np.sign(other[a] - other[b])
        pairs, agree = pairs + 1, agree + x * y
        ties_one, ties_other = ties_one + (x == 0), ties_other + (y == 0)
    return float(agree / math.sqrt((pairs - ties_one) * (pairs - ties_other)))


def quality(count: int = 40, seeds: int = 3, noise: float = 0.3) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    true = rng.random(count)
    return true + noise * rng.random(count), np.round(true[:, None] + noise * rng.random((count, seeds)), 2)


def test_the_tau_the_ceiling_and_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "RESAMPLES", 400)
    scores, alone = quality()
    told = diagnose.judged(scores, alone)
    assert told["n"] == 40
    assert told["kendall"] == pytest.approx(tau_b(scores, alone.mean(1)), rel=1e-12)
    assert told["ceiling"] == pytest.approx(
        np.mean([tau_b(alone[:, a], alone[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))]), rel=1e-12
    )
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, 40, 40) for _ in range(400)]
    low, high = np.quantile([tau_b(scores[d], alone[d].mean(1)) for d in draws], [0.025, 0.975])
    assert told["low"] == pytest.approx(low, abs=0.05) and told["high"] == pytest.approx(high, abs=0.05)
    assert told["low"] < told["kendall"] < told["high"]
    ends = np.quantile([diagnose.agreement(alone[d]) for d in draws], [0.025, 0.975])
    assert [told["ceiling_low"], told["ceiling_high"]] == pytest.approx(ends, abs=0.05)
    assert diagnose.judged(scores, alone) == told, "the bootstrap is seeded"
    assert diagnose.judged(-scores, alone)["kendall"] == pytest.approx(-told["kendall"])


def test_the_overlap_counts_what_is_best_by_both() -> None:
    one, other = np.arange(20.0), np.arange(20.0)
    other[[0, 1, 2]], other[[17, 18, 19]] = other[[17, 18, 19]], other[[0, 1, 2]]
    assert diagnose.overlap(one, one) == 1.0 and diagnose.overlap(one, -one) == 0.0
    assert diagnose.overlap(one, other) == 0.7
    assert diagnose.overlap(one[:19], other[:19]) is None
    assert diagnose.judged(one, other[:, None])["overlap"] == 0.7


def test_few_or_equal_values_are_judged_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "RESAMPLES", 100)
    told = diagnose.judged(np.array([1.0, 2.0, 3.0]), np.array([[1.0], [2.0], [3.0]]))
    assert (told["kendall"], told["ceiling"], told["n"]) == (1.0, None, 3) and told["low"] <= 0
    assert diagnose.correlation(np.ones(5), np.arange(5.0)) == 0.0


@pytest.mark.parametrize(
    "scale, noise, seeds, told",
    [
        (1, 0.3, 2, r"ranks better than chance \(tau 0.\d\d, at least 0.\d\d\)\. That is \d+% of the ceiling 0.\d\d"),
        (1, 0.3, 1, r"ranks better than chance .* With one seed there is no ceiling"),
        (0, 0.3, 2, r"cannot be told from chance here .* That is -?\d+% of the ceiling"),
        (1, 9.0, 2, r"Two seeds of the same models agree by tau -?0.\d\d only: the space hardly matters"),
        (
            1,
            1.5,
            2,
            r"agree by tau 0.\d\d only: whether the space matters here .* cannot tell \(interval to 0.[45]\d\)",
        ),
    ],
)
def test_the_verdict_on_a_ranking(
    monkeypatch: pytest.MonkeyPatch, scale: float, noise: float, seeds: int, told: str
) -> None:
    monkeypatch.setattr(diagnose, "RESAMPLES", 100)
    scores, alone = quality(seeds=seeds, noise=noise)
    shuffled = scores if scale else np.random.default_rng(1).permutation(scores)
    assert re.search(told, diagnose.judged(shuffled, alone)["verdict"])


def test_genotypes_are_drawn_from_the_first_budget_once_each(run_with: RunWith) -> None:
    run = run_with(METHOD, budgets=("macs=30000", "macs=1"))
    drawn = diagnose.draw(run, 12)
    assert len({key(genotype) for genotype in drawn}) == 12
    assert all(genotype in run.members("macs=30000") for genotype in drawn)
    assert diagnose.draw(run, 12) == drawn and diagnose.draw(run, 5) == drawn[:5]
    assert diagnose.draw(replace(run, seeds=(9,)), 12) != drawn
    assert diagnose.draw(run_with(Popularity(), budgets=("",)), 12) == [{}], "a small space is drawn whole"


def test_a_diagnosis_can_be_left_out(run_with: RunWith) -> None:
    run = run_with(METHOD, diagnosis=Diagnosis(0))
    diagnose.main(run)
    told = (run.folder / "diagnose").read_json("diagnose.json")
    assert told["verdict"] == "The supernet's ranking was not tested." and told["points"] == []
    assert (told["metric"], told["fitness"], told["n"], told["kendall"]) == ("recall@10", "objective", 0, None)
    assert (run.folder / "diagnose").done
