"""Retrieval: the loss and its correction against loops of the paper's equations, the ranking against plain Python."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.run import Run
from nascore.rows import Data
from nascore.schema import Batch
from nascore.tasks import Scores, retrieval
from nascore.tasks.retrieval import STEPS, Retrieval, encode_items, hits, preferences

Prepared = Callable[..., Run]


def drawn_items(step: int, items: int = 30, rows: int = 64) -> list[int]:
    """A batch's items, popular ones many times."""
    rng = Random(step)
    return [1 + min(int(rng.expovariate(0.2)), items - 2) for _ in range(rows)]


def test_the_correction_equals_the_rule_item_by_item() -> None:
    task = Retrieval(items=30, batch=8, rate=0.05)
    gap, last = [float(max(1, 29 // 8))] * 30, [0] * 30
    assert task.gap.tolist() == gap, "3 steps between two sights of an item, to begin with"
    for step in range(1, 31):
        items = drawn_items(step)
        assert len(set(items)) < len(items)
        for item in items:
            gap[item] = 0.95 * gap[item] + 0.05 * (step - last[item])
            last[item] = step
        task.observe(torch.tensor(items))
        torch.testing.assert_close(task.gap, torch.tensor(gap, dtype=torch.float64), rtol=1e-12, atol=0)
        assert task.last_seen.tolist() == last
    assert task.gap.max() > 4 * task.gap.min(), "the estimate must have learned who is popular"


def vectors(rows: int, seed: int, width: int = 5) -> Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


def softmax_loss(user: Tensor, item: Tensor, ids: list[int], temperature: float, gap: list[float]) -> float:
    """Eq. 4-6 row by row; log p is that of one over the gap."""
    total = 0.0
    for row, own in enumerate(user.tolist()):
        logits = [
            sum(a * b for a, b in zip(own, other, strict=True)) / temperature - math.log(1 / gap[id_])
            for other, id_ in zip(item.tolist(), ids, strict=True)
        ]
        total -= math.log(math.exp(logits[row]) / sum(math.exp(logit) for logit in logits))
    return total / len(ids)


def output_and_batch(ids: list[int], seed: int = 0) -> tuple[dict[str, Tensor], Batch]:
    output = {"user": vectors(len(ids), seed), "item": vectors(len(ids), seed + 1)}
    output |= {f"{side}/input": torch.randn(len(ids), 3).double() for side in ("user", "item")}
    item = torch.tensor(ids, dtype=torch.int32)
    return output, Batch({}, {"item": item, "user": item}, item)


@pytest.mark.parametrize("temperature, correct", [(0.05, True), (0.05, False), (1.0, True), (0.3, True)])
def test_the_loss_equals_a_loop_of_the_equations(temperature: float, correct: bool) -> None:
    task = Retrieval(items=30, batch=8, temperature=temperature, correct=correct)
    for step in range(3):
        ids = drawn_items(step, rows=16)
        output, batch = output_and_batch(ids, seed=step)
        before = task.gap.clone()
        found = task.train().loss(output, batch)
        assert torch.equal(before, task.gap) != correct, "the estimate follows the batch before it is used"
        gap = task.gap.tolist() if correct else [1.0] * 30
        golden = softmax_loss(output["user"], output["item"], ids, temperature, gap)
        assert float(found) == pytest.approx(golden, rel=1e-9)
        state = {name: value.clone() for name, value in task.state_dict().items()}
        assert float(task.eval().validation_loss(output, batch)) == pytest.approx(golden, rel=1e-9)
        plain = softmax_loss(output["user"], output["item"], ids, 1.0, [1.0] * 30)
        assert float(task.validation_loss(output, batch, plain=True)) == pytest.approx(plain, rel=1e-9)
        assert float(task.loss(output, batch)) == pytest.approx(golden, rel=1e-9)
        assert all(torch.equal(value, state[name]) for name, value in task.state_dict().items()), "in evaluation mode"


def test_the_loss_of_several_paths_is_the_mean_over_all_pairs_of_their_towers() -> None:
    ids = drawn_items(2, rows=16)
    outputs, batch = [output_and_batch(ids, seed=seed)[0] for seed in (1, 4, 9)], output_and_batch(ids)[1]
    task, alone = Retrieval(30, 8, regularizer=0.25), Retrieval(30, 8, regularizer=0.25)
    found = task.train().loss(outputs, batch)
    alone.observe(batch.keys["item"].long())
    items = ("item", "item/input", "user/input")
    pairs = [
        alone.eval().loss({**{name: one[name] for name in items}, "user": other["user"]}, batch)
        for one in outputs
        for other in outputs
    ]
    assert float(found) == pytest.approx(sum(map(float, pairs)) / 9, rel=1e-9)
    assert torch.equal(task.gap, alone.gap), "the items are observed once"


def test_the_regularizer_is_the_norms_of_both_inputs() -> None:
    ids = drawn_items(1, rows=16)
    output, batch = output_and_batch(ids)
    plain, held = (Retrieval(30, 8, regularizer=weight).eval() for weight in (0.0, 0.25))
    norms = [math.sqrt(sum(x * x for x in output[f"{side}/input"].flatten().tolist())) for side in ("user", "item")]
    assert float(held.loss(output, batch) - plain.loss(output, batch)) == pytest.approx(0.25 * sum(norms), rel=1e-9)
    assert float(held.validation_loss(output, batch)) == float(plain.validation_loss(output, batch))


def test_what_the_task_learns_is_saved_with_it() -> None:
    task, other = Retrieval(30, 8), Retrieval(30, 8)
    task.observe(torch.tensor([3, 3, 4]))
    other.load_state_dict(task.state_dict())
    for one in (task, other):
        one.observe(torch.tensor([4, 5]))
    assert torch.equal(task.gap, other.gap) and other.seen_steps == 2


# Ranking


class Model:
    """Vectors by id: what a model would give."""

    def __init__(self, data: Data, seed: int) -> None:
        self.user_UO, self.item_IO = (
            vectors(count, seed + place) for place, count in enumerate((data.schema.users, data.schema.items))
        )

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        output = {}
        if "user" in batch.keys:
            output["user"] = self.user_UO[batch.keys["user"].long()]
        if "item" in batch.keys:
            output["item"] = self.item_IO[batch.keys["item"].long()]
        return output


def lists(ragged: Any, users: int) -> list[list[int]]:
    return [ragged.item[ragged.at[user] : ragged.at[user + 1]].tolist() for user in range(users)]


def ranked(model: Model, data: Data, ks: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """The metrics of each user, by sorting all items in plain Python."""
    users, authors = data.schema.users, data.schema.protocol == "authors"
    seen, relevant = lists(data.seen, users), lists(data.relevant, users)
    found = {}
    depth = min(max(ks), data.schema.items - 1)
    for user in range(users):
        masked = set(seen[user])
        wanted = relevant[user] if authors else list(set(relevant[user]) - masked)
        if not wanted:
            continue
        scores = (model.item_IO @ model.user_UO[user]).tolist()
        candidates = [item for item in range(1, data.schema.items) if item not in masked]
        order = sorted(candidates, key=lambda item: -scores[item])[:depth]
        hits = [item in wanted for item in order]
        values = {}
        for k in ks:
            gained = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits[:k]))
            ideal = sum(hits) if authors else len(wanted)
            best = sum(1 / math.log2(rank + 2) for rank in range(min(k, ideal)))
            values[f"recall@{k}"] = sum(hits[:k]) / len(wanted)
            values[f"hit@{k}"] = float(any(hits[:k]))
            values[f"ndcg@{k}"] = gained / best if best else 0.0
        found[user] = values
    return found


@pytest.mark.parametrize("cells", [1 << 24, 80 * 7, 1])
@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("protocol", ["user_temporal", "global_temporal", "authors"])
def test_ranking_equals_a_loop(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, protocol: str, split: str, cells: int
) -> None:
    monkeypatch.setattr(retrieval, "CELLS", cells)
    data, ks = prepared(protocol).rows(split), (1, 3, 10, 50, 60, 100)
    model, task = Model(data, seed=3), Retrieval(data.schema.items, 64, ks=ks)
    scores, golden = task.evaluate(model, data), ranked(model, data, ks)
    assert scores.units.tolist() == sorted(golden)
    assert set(scores.values) == {f"{name}@{k}" for name in ("recall", "hit", "ndcg") for k in ks} == set(task.metrics)
    for name, values in scores.values.items():
        np.testing.assert_allclose(values, [golden[user][name] for user in sorted(golden)], rtol=1e-12, err_msg=name)
    assert scores.protocol == f"{protocol}/full-ranking"
    train = lists(prepared(protocol).rows("train").relevant, data.schema.users)
    assert scores.cold.tolist() == [not train[user] for user in sorted(golden)]


def test_the_shop_holds_what_a_ranking_can_get_wrong(prepared: Prepared) -> None:
    data = prepared().rows("test")
    seen, relevant = lists(data.seen, data.schema.users), lists(data.relevant, data.schema.users)
    pairs = list(zip(seen, relevant, strict=True))
    assert any(wanted and set(wanted) <= set(known) for known, wanted in pairs), "nothing new to find"
    assert any(len(set(wanted)) < len(wanted) for _, wanted in pairs), "bought twice"
    assert any(wanted and not known for known, wanted in pairs), "a user without training rows"
    authors = prepared("authors").rows("test")
    seen, relevant = lists(authors.seen, data.schema.users), lists(authors.relevant, data.schema.users)
    assert any(set(wanted) & set(known) for known, wanted in zip(seen, relevant, strict=True))


def test_a_split_is_encoded_block_by_block(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = prepared().rows("test"), []
    monkeypatch.setattr(retrieval, "CELLS", data.schema.items * 7)
    model = Model(data, 1)
    users, _ = data.ranked_users()

    def score(part: slice) -> Tensor:
        asked.append(len(users[part]))
        return preferences(model.user_UO[users[part].long()], model.item_IO)

    Retrieval(data.schema.items, 64).rank(score, data)
    assert set(asked[:-1]) == {7} and sum(asked) == len(users)
    blocks: list[int] = []
    items = encode_items(lambda batch: (blocks.append(len(batch)), model(batch))[1], data, block=32)
    assert torch.equal(items, model.item_IO) and max(blocks) == 32 and sum(blocks) == data.schema.items


def test_whole_pasts_are_shown_to_few_users_at_a_time(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    data, shown = prepared().rows("test"), list[tuple[int, ...]]()
    model = Model(data, 1)
    golden = Retrieval(data.schema.items, 64, whole=True).evaluate(model, data)
    monkeypatch.setattr(retrieval, "EVENTS", 3 * int(data.ranked_users()[1].max()))

    def watched(batch: Batch) -> dict[str, Tensor]:
        if "user" in batch.keys:
            shown.append(tuple(batch["history"].shape))
        return model(batch)

    scores = Retrieval(data.schema.items, 64, whole=True).evaluate(watched, data)
    assert all(users * past <= retrieval.EVENTS for users, past in shown) and max(shown)[0] >= 3
    assert (scores.units == golden.units).all()
    for name, value in golden.values.items():
        np.testing.assert_array_equal(scores.values[name], value)


def test_ranking_shows_the_model_what_the_split_allows(prepared: Prepared) -> None:
    data, histories = prepared().rows("test"), []

    def model(batch: Batch) -> dict[str, Tensor]:
        if "user" in batch.keys:
            histories.append(batch["history"])
        return Model(data, 1)(batch)

    Retrieval(data.schema.items, 64).evaluate(model, data)
    assert torch.equal(torch.cat(histories), data.user_batch(*data.ranked_users())["history"])


def test_means_leave_cold_units_apart() -> None:
    cold = np.array([False, True, False])
    values = {"recall@5": np.array([0.0, 1.0, 0.5]), "hit@5": np.array([1.0, 0.0, 1.0])}
    scores = Scores("p", np.arange(3), values, cold)
    assert scores.means() == {"recall@5": 0.25, "recall@5/cold": 1.0, "hit@5": 1.0, "hit@5/cold": 0.0}
    assert Scores("p", np.arange(3), values, ~cold | cold).means() == {"recall@5/cold": 0.5, "hit@5/cold": 2 / 3}
    assert Scores("p", np.arange(3), values, np.zeros(3, bool)).means() == {"recall@5": 0.5, "hit@5": 2 / 3}


@pytest.mark.parametrize("items, depth", [(500, 20), (403, 100), (101, 100), (4000, 7)])
def test_of_equal_scores_the_relevant_come_last(items: int, depth: int) -> None:
    generator = torch.Generator().manual_seed(items)
    score = torch.randn(30, items, generator=generator).mul(4).round()  # some -0.0, which equals 0.0
    score[:, ::3] = -torch.inf
    score[1], score[2, 1::5] = torch.nan, torch.nan
    flag = torch.rand(30, items, generator=generator) < 0.3
    golden = []
    for row, own in zip(score.tolist(), flag.tolist(), strict=True):
        worth = [
            (-math.inf if its else math.inf) if math.isnan(one) else one for one, its in zip(row, own, strict=True)
        ]
        order = sorted(range(items), key=lambda item: (-worth[item], own[item]))
        golden.append([own[item] for item in order[:depth]])
    assert hits(score.clone(), flag, depth).tolist() == golden
    fine = torch.randn(30, items, generator=generator)
    ranked = flag.gather(1, fine.topk(depth, dim=1).indices)
    assert torch.equal(hits(fine, flag, depth), ranked)


@pytest.mark.parametrize("depth", [1, 100])
@pytest.mark.parametrize("kind", ["plain", "ties", "sampled apart", "sorted", "mostly seen", "few"])
def test_the_best_of_many_are_those_of_a_whole_sort(kind: str, depth: int) -> None:
    """A sample of the columns is wrong about the rest where scores follow the columns: then a row is done in full."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(9, 150 if kind == "few" else 4_000, generator=generator)
    flag = torch.rand(score.shape, generator=generator) < 0.02
    if kind == "ties":
        score = score.round()
    if kind == "sampled apart":
        score[:, :: 1 + math.isqrt(score.shape[1] // STEPS)] += torch.tensor([-9.0, 0.0, 9.0]).repeat(3)[:, None]
    if kind == "sorted":
        score = score.sort(1).values
    if kind == "mostly seen":
        score[torch.rand(score.shape, generator=generator) < 0.99] = -torch.inf
    order = np.lexsort((flag.numpy(), -score.numpy()), axis=1)[:, :depth]
    ranked = np.take_along_axis(flag.numpy(), order, 1)
    assert np.array_equal(hits(score, flag, depth).numpy(), ranked)


def test_a_model_that_tells_no_items_apart_finds_none(prepared: Prepared) -> None:
    data = prepared().rows("test")
    task, users = Retrieval(data.schema.items, 64, ks=(1, 2)), len(data.ranked_users()[0])
    for value in (0.0, 1.0, math.nan):
        score_UI = torch.full((users, data.schema.items), value)
        found = task.rank(lambda part, score_UI=score_UI: score_UI[part], data)  # type: ignore[misc]
        assert not found.values["hit@2"].any()
