"""The click task: losses and metrics against scikit-learn, the variance of AUC, and that less log loss is better."""

from collections.abc import Callable
from itertools import product
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from components import told
from components.evaluate import compare
from components.finalists import Finalist
from components.report import _metrics, _pair
from components.run import Run
from nascore import group, metrics
from nascore.fitness import Fitness
from nascore.methods.dnn import Dnn
from nascore.rows import Data
from nascore.schema import Batch
from nascore.tasks import Scores, click
from nascore.tasks.click import Click


def drawn(rows: int, seed: int = 0, values: int = 25) -> tuple[Tensor, Tensor]:
    """Logits with ties, and labels that hang on them."""
    rng = np.random.default_rng(seed)
    logit = rng.integers(-values, values, rows) / values * 3
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int32)
    return torch.tensor(logit, dtype=torch.float32), torch.tensor(label)


def known(data: Data) -> tuple[Callable[[Batch], Tensor], Tensor, Tensor]:
    """A model that says what was drawn for each row, with all it says and the labels."""
    logit, label = drawn(data.rows, 3)[0], data.batch(torch.arange(data.rows)).label
    assert label is not None
    return lambda batch: logit[batch.rows], logit, label


def test_shares_of_the_ranks_sum_to_the_loss_of_the_joined_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    task, (logit, label) = Click(), drawn(96)
    logit.requires_grad_()
    loss = task.loss(logit, batch_of(label))
    whole = loss.item()
    (joined,) = torch.autograd.grad(loss, logit)
    assert whole == pytest.approx(log_loss(label, logit.detach().sigmoid()), rel=1e-6)
    for world in (2, 3):
        monkeypatch.setattr(group, "size", lambda world=world: world)
        parts = zip(logit.chunk(world), label.chunk(world), strict=True)
        shares = [task.loss(own, batch_of(theirs)) for own, theirs in parts]
        assert sum(share.item() for share in shares) == pytest.approx(whole, rel=1e-6)
        (summed,) = torch.autograd.grad(torch.stack(shares).sum(), logit)
        torch.testing.assert_close(summed, joined)
        alone = task.validation_loss(logit, batch_of(label)).item()
        assert alone == pytest.approx(whole), "a validation loss is a mean whoever computes it"


def batch_of(label: Tensor) -> Batch:
    return Batch({}, {}, torch.arange(len(label)), label)


def test_a_split_is_judged_as_scikit_learn_judges_it(clicks: Run) -> None:
    data = clicks.rows("valid")
    model, logit, label = known(data)
    scores = Click().evaluate(model, data)
    assert set(scores.values) == set(Click().metrics)
    chance = logit.double().sigmoid().numpy()
    means = scores.means()
    assert means["log_loss"] == pytest.approx(log_loss(label, chance), rel=1e-9)
    assert means["auc"] == pytest.approx(roc_auc_score(label, logit), rel=1e-12)
    assert means["calibration"] == pytest.approx(chance.mean() / label.double().mean().item(), rel=1e-9)
    assert means["calibration"] != pytest.approx(1, abs=0.05)
    each = [-log(1 / (1 + exp(-one if hit else one))) for one, hit in zip(logit.tolist(), label.tolist(), strict=True)]
    np.testing.assert_allclose(scores.values["log_loss"], each, rtol=1e-9)
    assert scores.units.tolist() == list(range(data.rows)) and not scores.cold.any()
    assert scores.protocol == "stratified/all-rows"


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_blocks_change_nothing(clicks: Run, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    data, sizes = clicks.rows("valid"), []
    model, _, _ = known(data)
    whole = Click().evaluate(model, data)
    monkeypatch.setattr(click, "ROWS", rows)
    blocks = Click().evaluate(lambda batch: (sizes.append(len(batch)), model(batch))[1], data)
    assert max(sizes) == rows and sum(sizes) == data.rows > 190
    for name, values in whole.values.items():
        np.testing.assert_array_equal(blocks.values[name], values)


def test_many_rows_are_judged_by_groups_of_the_same_mean() -> None:
    logit, label = drawn(120_003)
    scores = Click().judged(logit, label, "")
    assert len(scores.units) == len(scores.cold) == 50_000 and not scores.cold.any()
    assert {len(values) for values in scores.values.values()} == {50_000}
    chance, means = logit.double().sigmoid().numpy(), scores.means()
    assert means["log_loss"] == pytest.approx(log_loss(label, chance), rel=1e-9)
    assert means["auc"] == pytest.approx(roc_auc_score(label, logit), rel=1e-9)
    assert means["calibration"] == pytest.approx(chance.mean() / label.double().mean().item(), rel=1e-9)
    spread = [metrics.auc_influence(logit, label).numpy().var() / 120_003, scores.values["auc"].var() / 50_000]
    assert spread[1] == pytest.approx(spread[0], rel=0.03), "groups keep the variance of the mean"


@pytest.mark.parametrize("rows", [10, 7, 23])
def test_the_kth_row_is_in_group_k_modulo_groups(rows: int) -> None:
    values = np.random.default_rng(0).random(rows)
    found = click.grouped(values, 7)
    mean = sum(values) / rows
    golden = [mean + sum(values[k] - mean for k in range(unit, rows, 7)) * 7 / rows for unit in range(7)]
    np.testing.assert_allclose(found, golden, rtol=1e-12)
    assert found.mean() == pytest.approx(values.mean(), rel=1e-12)


def delong(scores: NDArray[Any], label: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """AUCs and their covariance of several scores of the same rows, as DeLong et al. (1988) write them down."""
    positives, negatives = np.flatnonzero(label), np.flatnonzero(label == 0)

    def kernel(x: float, y: float) -> float:
        return 1.0 if x > y else 0.5 if x == y else 0.0

    v10 = [[sum(kernel(one[i], one[j]) for j in negatives) / len(negatives) for i in positives] for one in scores]
    v01 = [[sum(kernel(one[i], one[j]) for i in positives) / len(positives) for j in negatives] for one in scores]
    area = np.array([sum(row) / len(row) for row in v10])
    covariance = np.zeros((len(scores), len(scores)))
    for a, b in product(range(len(scores)), repeat=2):
        s10 = sum((x - area[a]) * (y - area[b]) for x, y in zip(v10[a], v10[b], strict=True)) / (len(positives) - 1)
        s01 = sum((x - area[a]) * (y - area[b]) for x, y in zip(v01[a], v01[b], strict=True)) / (len(negatives) - 1)
        covariance[a, b] = s10 / len(positives) + s01 / len(negatives)
    return area, covariance


@pytest.mark.parametrize("rows, values", [(300, 4), (300, 25), (600, 100_000)])
def test_the_influence_on_auc_has_delongs_variance(rows: int, values: int) -> None:
    one, label = drawn(rows, 1, values)
    other = one + torch.tensor(np.random.default_rng(2).standard_normal(rows)).round(decimals=1)
    wanted, covariance = delong(np.stack([one, other]), label.numpy())
    found = [metrics.auc_influence(score, label).numpy() for score in (one, other)]
    assert [values.mean() for values in found] == pytest.approx(wanted.tolist(), rel=1e-12)
    few = min(int(label.sum()), rows - int(label.sum()))
    smaller = (few - 1) / few  # DeLong divides by one less of each label
    assert smaller > 0.98
    for a, b in product(range(2), repeat=2):
        variance = ((found[a] - found[a].mean()) * (found[b] - found[b].mean())).mean() / rows
        assert covariance[a, b] * smaller <= variance < covariance[a, b]
    apart = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert (found[0] - found[1]).var() / rows == pytest.approx(apart, rel=1 - smaller), "of paired differences too"


def test_the_influence_on_auc_equals_a_loop() -> None:
    logit, label = drawn(31, 5, 6)
    scored = list(zip(logit.tolist(), label.tolist(), strict=True))
    right = []
    for own, hit in scored:
        others = [other for other, label in scored if label != hit]
        right.append(sum((own > one) == hit if own != one else 0.5 for one in others) / len(others))
    area = roc_auc_score(label, logit)
    of_label = [sum(label == hit for _, label in scored) for _, hit in scored]
    golden = [area + 31 / count * (share - area) for share, count in zip(right, of_label, strict=True)]
    np.testing.assert_allclose(metrics.auc_influence(logit, label), golden, rtol=1e-12)


# What is better


def finalist(label: str, role: str) -> Finalist:
    return Finalist(label, role, Dnn(width=8, depth=1), ({},), label)


def report_of(run: Run, ours: float, theirs: float) -> dict[str, Any]:
    """The report on three models by their noise: the more, the worse is their log loss and the lower their AUC."""
    logit, label = drawn(2_000, 7, 500)
    noise = torch.tensor(np.random.default_rng(1).standard_normal((3, 2_000)), dtype=torch.float32)
    spread = {"Ours": ours, "Strong": theirs, "Weak": 4.0}
    scores: dict[str, list[Scores]] = {}
    for (name, own), more in zip(spread.items(), noise, strict=True):
        scores[name] = [Click().judged(logit + own * more, label, "") for _ in run.seeds]
    those = [finalist("Ours", "found"), finalist("Weak", "baseline"), finalist("Strong", "baseline")]
    costs = {one.model_id: one.method.price(run.schema)(one.genotype, "") for one in those}
    return compare(run, those, scores, costs)


@pytest.mark.parametrize(
    "ours, theirs, said, reading",
    [
        (0.5, 2.0, "Ours beats the best rival: log_loss 0.", "better"),
        (2.0, 0.5, "Ours did not beat the best rival here but fell behind it: log_loss 0.", "worse"),
        (0.5, 0.5, "Ours did not beat the best rival here: log_loss 0.", "not told apart"),
    ],
)
def test_less_log_loss_wins(clicks: Run, ours: float, theirs: float, said: str, reading: str) -> None:
    report = report_of(clicks, ours, theirs)
    assert report["verdict"].startswith(said) and " of Strong, difference " in report["verdict"]
    by_name = {pair["b"]: pair for pair in report["paired"]}
    assert reading in _pair(by_name["Strong"])[1] and "better" in _pair(by_name["Weak"])[1]
    delta = [row["value"] for row in report["rows"] if row["metric"] == "log_loss"]
    assert by_name["Strong"]["delta"] == pytest.approx(delta[0] - delta[2])


def test_tables_know_which_direction_is_better(clicks: Run) -> None:
    rows = {name: [{"metric": name, "value": value} for value in (0.4, 0.9, 1.2, 0.7)] for name in Click().metrics}
    for name, order in {"log_loss": (0.4, 0.7, 0.9, 1.2), "auc": (1.2, 0.9, 0.7, 0.4)}.items():
        assert [row["value"] for row in sorted(rows[name], key=told.loss)] == list(order), name
    near = [row["value"] for row in sorted(rows["calibration"], key=told.loss)]
    assert near == [0.9, 1.2, 0.7, 0.4], "a ratio is best at 1, from either side"
    assert told.loss({"metric": "log_loss/cold", "value": 0.3}) == 0.3

    class Some:
        found: tuple[()] = ()
        models = [
            {"model": name, "role": "baseline", "metrics": {"log_loss": {"metric": "log_loss", "value": value}}}
            for name, value in (("High", 0.75), ("Low", 0.25))
        ]

    page = _metrics(Some(), "Metrics", ["log_loss"], [])  # type: ignore[arg-type]
    assert '<strong class="best">0.25' in page and page.count('class="best"') == 1


# Fitness


def test_a_fitness_of_which_less_is_better_is_refused() -> None:
    for kind in ("log_loss", "calibration"):
        with pytest.raises(ValueError, match=f"fitness '{kind}': higher must be better; objective is the negated loss"):
            Fitness(kind=kind).check(Click())
    with pytest.raises(ValueError, match="'recall@50' is none of those there are: objective, loss@1, log_loss, auc"):
        Fitness(kind="recall@50").check(Click())
    for kind in ("objective", "auc"):
        Fitness(kind=kind).check(Click())


@pytest.mark.parametrize("rows, batch", [(150, 64), (150, 150), (10_000, 64), (1, 64)])
def test_validation_rows_that_do_not_fill_a_batch_count(clicks: Run, rows: int, batch: int) -> None:
    data = clicks.rows("valid")
    model, logit, label = known(data)
    measured = Fitness(rows=rows, batch=batch).measure(model, Click(), data)
    first = min(rows, data.rows)
    assert measured == pytest.approx(-log_loss(label[:first], logit[:first].sigmoid(), labels=[0, 1]), rel=1e-5)


def test_a_fitness_may_be_a_metric_of_all_rows(clicks: Run) -> None:
    data = clicks.rows("valid")
    model, logit, label = known(data)
    assert Fitness(kind="auc", rows=20).measure(model, Click(), data) == pytest.approx(roc_auc_score(label, logit))
