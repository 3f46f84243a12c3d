"""Every metric against a plain loop, and where scikit-learn has it, against scikit-learn."""

from math import log2

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score
from torch import Tensor

from nascore import metrics

KS = (1, 2, 5, 10, 20)


@pytest.fixture(scope="module")
def ranked() -> tuple[Tensor, Tensor]:
    """Hits of 60 units at 20 ranks, and more relevant items than ranks for some, no hit for others."""
    rng = np.random.default_rng(0)
    hits = rng.random((60, 20)) < rng.choice([0.0, 0.05, 0.3, 1.0], size=(60, 1))
    relevant = np.maximum(1, hits.sum(axis=1) + rng.choice([0, 1, 7, 40], size=60))
    return torch.from_numpy(hits), torch.from_numpy(relevant)


def by_loop(hits: list[bool], relevant: int, k: int) -> dict[str, float]:
    """hit, recall and ndcg of one unit."""
    found, gained = 0, 0.0
    for rank, is_hit in enumerate(hits[:k], start=1):
        if is_hit:
            found += 1
            gained += 1 / log2(rank + 1)
    ideal = sum(1 / log2(rank + 1) for rank in range(1, min(relevant, k) + 1))
    return {"hit": float(found > 0), "recall": found / relevant, "ndcg": gained / ideal}


@pytest.mark.parametrize("k", KS)
def test_ranking_metrics_equal_a_plain_loop(ranked: tuple[Tensor, Tensor], k: int) -> None:
    hits, relevant = ranked
    golden = [by_loop(row, int(n), k) for row, n in zip(hits.tolist(), relevant, strict=True)]
    got = {
        "hit": metrics.hit(hits, k),
        "recall": metrics.recall(hits, relevant, k),
        "ndcg": metrics.ndcg(hits, relevant, k),
    }
    for name, values in got.items():
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx([unit[name] for unit in golden], abs=1e-12), name


def test_ndcg_equals_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    relevance = (rng.random((40, 100)) < 0.1).astype(float)
    relevance[:, 0] = 1
    scores = rng.random((40, 100))
    hits = torch.from_numpy(np.take_along_axis(relevance, np.argsort(-scores, axis=1)[:, :20], axis=1))
    got = metrics.ndcg(hits, torch.from_numpy(relevance.sum(axis=1)), 10)
    assert float(got.mean()) == pytest.approx(ndcg_score(relevance, scores, k=10), abs=1e-12)


@pytest.mark.parametrize("k", KS)
def test_ndcg_of_retrieved_takes_the_hits_themselves_as_ideal(ranked: tuple[Tensor, Tensor], k: int) -> None:
    hits, relevant = ranked
    golden = [by_loop(row, sum(row), k)["ndcg"] if any(row) else 0.0 for row in hits.tolist()]
    got = metrics.ndcg_of_retrieved(hits, k)
    assert got.tolist() == pytest.approx(golden, abs=1e-12)
    assert bool((got >= metrics.ndcg(hits, relevant, k) - 1e-12).all())


@pytest.mark.parametrize("values", [2, 5, 50, 100_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_auc_is_exact_with_ties(values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = (rng.random(500) < 0.2).astype(np.float32)
    score = (rng.integers(values, size=500) + 0.3 * values * label).round() / values
    got = float(metrics.auc(torch.from_numpy(score), torch.from_numpy(label)))
    positive, negative = score[label > 0], score[label == 0]
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert got == pytest.approx(wins / len(positive) / len(negative), abs=1e-12)
    assert got == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_auc_at_its_edges() -> None:
    assert float(metrics.auc(torch.tensor([0.1, 0.2]), torch.tensor([0, 1]))) == 1
    assert float(metrics.auc(torch.tensor([0.1, 0.2]), torch.tensor([1, 0]))) == 0
    assert float(metrics.auc(torch.tensor([0.1, 0.1]), torch.tensor([1, 0]))) == 0.5
    assert torch.isnan(metrics.auc(torch.tensor([0.1, 0.2]), torch.tensor([1, 1])))


def test_auc_does_not_round_with_many_rows() -> None:
    """Rank sums of millions of rows do not fit into float32."""
    rows = 2_000_001
    label = torch.arange(rows) % 2
    assert float(metrics.auc(torch.arange(rows), label)) == pytest.approx(0.5, abs=1e-12)
    assert float(metrics.auc(torch.zeros(rows), label)) == 0.5


def test_log_loss_equals_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    logit, label = rng.normal(scale=4, size=300), (rng.random(300) < 0.3).astype(np.int8)
    got = metrics.log_loss(torch.from_numpy(logit), torch.from_numpy(label))
    assert got.shape == (300,)
    assert float(got.mean()) == pytest.approx(sklearn_log_loss(label, 1 / (1 + np.exp(-logit))), abs=1e-12)


def test_log_loss_of_large_logits_is_finite() -> None:
    got = metrics.log_loss(torch.tensor([800.0, -800.0, 0.0]), torch.tensor([0, 0, 1]))
    assert got.tolist() == pytest.approx([800.0, 0.0, np.log(2)])
