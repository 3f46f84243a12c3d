"""Next items: ranks, negatives and losses against plain Python, and what blocks and resuming must keep."""

import math
from collections.abc import Callable
from random import Random
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn import functional

from components.run import Run
from nascore import group, metrics, negatives
from nascore.methods import from_json
from nascore.ragged import Ragged
from nascore.rows import Shown
from nascore.schema import Batch, Schema
from nascore.tasks import next_item
from nascore.tasks.next_item import NextItem, Ranking, aligned, shifted

RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
USERS, ITEMS = 60, 300
Lists = list[list[int]]


def ragged(lists: Lists) -> Ragged:
    at = torch.tensor([0, *np.cumsum([len(one) for one in lists])])
    return Ragged(at, torch.tensor([item for one in lists for item in one], dtype=torch.int32))


class Split:
    """A split by lists: each user's past, which is also what it has seen, and what came; user 0 is nobody."""

    device = home = "cpu"
    folder = "nowhere"

    def __init__(self, pasts: Lists, came: Lists, items: int = ITEMS, split: str = "test", cold: int = 3) -> None:
        self.pasts, self.came, self.split = pasts, came, split
        self.schema = Schema("u", "i", len(pasts), items, (), "leave_one_out")
        self.history = self.seen = ragged(pasts)
        self.relevant = ragged(came)
        self.trained = torch.arange(len(pasts)) != cold
        rows = [(user, item) for user, own in enumerate(came) for item in own]
        self.pairs = Random(1).sample(rows, len(rows))
        self.rows = len(rows)

    def keys(self, row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        user_B, item_B = torch.tensor(self.pairs, dtype=torch.int32)[row_B].unbind(1)
        return user_B, item_B, torch.zeros_like(user_B)


def one_each(users: int = USERS, items: int = ITEMS, split: str = "test") -> Any:
    """Users with 1 to 20 events by a skewed law, some of them repeated, who come to one more; a third to an old one."""
    rng = Random(0)
    pasts = [[1 + min(int(rng.expovariate(0.02)), items - 2) for _ in range(rng.randint(1, 20))] for _ in range(users)]
    came = [[rng.choice(past) if rng.random() < 1 / 3 else rng.randrange(1, items)] for past in pasts]
    return Split([[], *pasts], [[], *came], items, split)


class Vectors:
    """An encoder for `rank`: ties, a padding that would be the best, and for a row and an item what is no number."""

    def __init__(self, data: Split, seed: int = 0, lost: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.row = torch.randint(-2, 3, (data.rows, 3), generator=generator).double()
        self.item = torch.randint(-2, 3, (data.schema.items, 3), generator=generator).double()
        self.item[0] = self.row.sign().mean(0) * 1e6
        if lost:
            self.row[4], self.item[7] = torch.nan, torch.nan

    def __call__(self, row_B: Tensor) -> tuple[Tensor, Tensor]:
        return self.row[row_B], self.item


def ranks(task: NextItem, encode: Any, data: Any) -> dict[str, dict[int, int]]:
    """The rank of each user's item by ranking, told by 1/rank."""
    task.ks = (10**9,)
    scores = task.rank(encode, data)
    names = [one for one in scores.values if one.startswith("mrr")]
    found = [(1 / scores.values[name]).round().astype(int).tolist() for name in names]
    units = scores.units.tolist()
    return {name: dict(zip(units, own, strict=True)) for name, own in zip(task.rankings, found, strict=True)}


def others(task: NextItem, data: Any, ranking: Ranking) -> list[list[int]]:
    """Whatever counts of the items that the task has drawn last for each row."""
    *_, last = [known for known in task.drawn if known[0] == ranking and known[-1] == data.split]
    other, valid = (part.tolist() for part in task.drawn[last])
    return [[one for one, counts in zip(*both, strict=True) if counts] for both in zip(other, valid, strict=True)]


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("ranking", RANKINGS)
def test_ranks_equal_a_loop(ranking: Ranking, lost: bool) -> None:
    data, task = one_each(), NextItem(rankings=(ranking,))
    encode = Vectors(data, lost=lost)
    found = ranks(task, encode, data)[ranking]
    kinds = {"old": 0, "new": 0, "lost": 0}
    for row, (user, own) in enumerate(data.pairs):
        score = (encode.item @ encode.row[row]).tolist()
        hidden = {own, *(data.pasts[user] if ranking == "full_unseen" else ())}
        every = [item for item in range(1, ITEMS) if item not in hidden]
        rivals = every if ranking.startswith("full") else others(task, data, ranking)[row]
        assert len(set(rivals)) == len(rivals) and 0 not in rivals and own not in rivals
        higher = sum(not score[item] < score[own] for item in rivals)
        assert found[user] == 1 + higher, "ties and NaN stand before it"
        assert not math.isnan(score[own]) or higher == len(rivals), "the last"
        kinds["lost" if math.isnan(score[own]) else "old" if own in data.pasts[user] else "new"] += 1
    assert min(kinds["old"], kinds["new"]) > 10 and (kinds["lost"] > 0) == lost


def test_metrics_of_a_rank_are_those_by_hand() -> None:
    found = metrics.of_rank(torch.tensor([1, 2, 3, 5, 6]), (1, 5))
    golden = {
        **dict.fromkeys(("recall@1", "mrr@1", "ndcg@1"), [1, 0, 0, 0, 0]),
        "recall@5": [1, 1, 1, 1, 0],
        "mrr@5": [1, 1 / 2, 1 / 3, 1 / 5, 0],
        "ndcg@5": [1, 1 / math.log2(3), 1 / 2, 1 / math.log2(6), 0],
    }
    assert {name: values.tolist() for name, values in found.items()} == {
        name: pytest.approx(values, rel=1e-12) for name, values in golden.items()
    }


def test_a_user_with_several_rows_counts_once() -> None:
    data: Any = Split([[], [1, 2], [3], [4]], [[], [3, 4, 5], [1], []], items=9, cold=2)
    item = torch.arange(9.0)[:, None]
    scores = NextItem(ks=(4, 5)).rank(lambda row: (torch.ones(len(row), 1), item), data)
    assert scores.units.tolist() == [1, 2] and scores.cold.tolist() == [False, True]
    assert scores.values["recall@4"].tolist() == [1 / 3, 0], "ranks 6, 5 and 4 of the first, 8 of the second"
    assert scores.values["mrr@5"] == pytest.approx([(1 / 5 + 1 / 4) / 3, 0])
    assert scores.values["ndcg@5"] == pytest.approx([(1 / math.log2(6) + 1 / math.log2(5)) / 3, 0])


def test_metrics_are_named_by_their_ranking_but_for_the_first() -> None:
    data, task = one_each(9), NextItem(rankings=("full_unseen", "pop100_fixed"), ks=(5, 10))
    named = [f"{metric}@{k}" for k in (5, 10) for metric in ("recall", "mrr", "ndcg")]
    assert task.metrics == (*named, *(f"{name}/pop100_fixed" for name in named))
    assert task.headline == "ndcg@10" and NextItem(ks=(3, 7)).headline == "ndcg@3"
    scores = task.rank(Vectors(data), data)
    assert set(scores.values) == set(task.metrics) and scores.protocol == "leave_one_out/full_unseen+pop100_fixed"
    wrong: tuple[tuple[Any, Any, str], ...] = (
        ("hinge", ("full",), "'hinge' is none of: softmax, bce, bpr"),
        ("bce", ("full", "most"), "'most' is none of: full, full_unseen, pop100_fixed"),
        ("bce", (), "by one ranking or more, each once, of: full, full_unseen"),
    )
    for loss, rankings, why in wrong:
        with pytest.raises(ValueError, match=why):
            NextItem(loss, rankings)


@pytest.mark.parametrize("rows", [1, 7])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    data, task = one_each(), NextItem(rankings=RANKINGS)
    encode, sizes = Vectors(data), list[int]()
    whole = ranks(task, encode, data)
    monkeypatch.setattr(next_item, "CELLS", rows * ITEMS + 1)
    assert ranks(task, lambda row: (sizes.append(len(row)), encode(row))[1], data) == whole
    assert max(sizes) == rows and sum(sizes) == data.rows == USERS


@pytest.mark.parametrize("protocol", ["leave_one_out", "user_temporal"])
def test_a_split_is_judged_by_what_its_model_says(prepared: Callable[..., Run], protocol: str) -> None:
    data = prepared(protocol).rows("test", shown=Shown(4))
    items = data.schema.items
    item = torch.randn(items, 3, generator=torch.Generator().manual_seed(0))

    def model(batch: Batch) -> dict[str, Tensor]:
        return {"user": item[batch["history"].long()].sum(1) + batch.keys["user"][:, None] / 50, "item": item}

    scores = NextItem(rankings=("full", "full_unseen"), ks=(7,)).evaluate(model, data)
    user, own, before = (key.tolist() for key in data.keys(torch.arange(data.rows)))
    found: dict[str, dict[int, list[float]]] = {"recall@7": {}, "recall@7/full_unseen": {}}
    for row in range(data.rows):
        shown = data.history.item[data.history.at[user[row]] :][: before[row]].tolist()[-4:]
        score = (item @ (item[shown].sum(0) + item[0] * (4 - len(shown)) + user[row] / 50)).tolist()
        seen = data.seen.item[data.seen.at[user[row]] : data.seen.at[user[row] + 1]].tolist()
        for name, hidden in (("recall@7", []), ("recall@7/full_unseen", seen)):
            left = set(range(1, items)) - {*hidden, own[row]}
            above = sum(score[one] >= score[own[row]] for one in left)
            found[name].setdefault(user[row], []).append(float(above < 7))
    assert scores.units.tolist() == sorted(set(user)) and (protocol == "leave_one_out") == (len(user) == len(set(user)))
    for name, values in found.items():
        golden = [sum(values[one]) / len(values[one]) for one in sorted(values)]
        np.testing.assert_allclose(scores.values[name], golden, rtol=1e-12)


@pytest.mark.parametrize("ranking", ["pop100_fixed", "uniform100_fixed"])
def test_fixed_negatives_are_the_same_for_all_and_never_met(ranking: Ranking) -> None:
    data, tasks = one_each(), [NextItem(rankings=(ranking,)), NextItem("bpr", rankings=("full", ranking))]
    found = []
    for seed, task in enumerate((*tasks, tasks[0])):
        torch.manual_seed(seed)
        task.rank(Vectors(data, seed), data)
        found.append(others(task, data, ranking))
    assert found[0] == found[1] == found[2], "whatever the model, the epoch and the seed"
    popular = {item for past in data.pasts for item in past}
    for row, (user, own) in enumerate(data.pairs):
        free = (popular if ranking == "pop100_fixed" else set(range(1, ITEMS))) - {own, *data.pasts[user]}
        assert len(found[0][row]) == len(set(found[0][row])) == 100 < len(free) and set(found[0][row]) <= free
    valid = one_each(split="valid")
    tasks[0].rank(Vectors(valid), valid)
    assert all(one != other for one, other in zip(others(tasks[0], valid, ranking), found[0], strict=True))
    assert others(tasks[0], data, ranking) == found[0], "both splits are kept"


def test_all_free_items_are_drawn_where_they_are_few() -> None:
    data, task = one_each(items=40), NextItem(rankings=("uniform100_fixed", "recbole_pop100"))
    task.rank(Vectors(data), data)
    uniform, recbole = (others(task, data, ranking) for ranking in task.rankings)
    for row, (user, own) in enumerate(data.pairs):
        free = set(range(1, 40)) - {own, *data.pasts[user]}
        assert sorted(uniform[row]) == sorted(free)
        assert set(recbole[row]) <= free | {data.pasts[user][0]}


WEIGHTS = (9.0, 4.0, 0.0, 1.0, 2.0, 3.0, 0.5)
FREE = (0, 3, 4, 5)


def taken(rows: int) -> np.ndarray[Any, Any]:
    return np.tile(np.isin(range(7), FREE, invert=True) & (np.array(WEIGHTS) > 0), (rows, 1))


@pytest.mark.parametrize("rounds", [0, 8])
def test_distinct_draws_follow_one_after_the_other_by_weight(monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """By both ways: with replacement leaving out what came before, and by noise."""
    monkeypatch.setattr(negatives, "ROUNDS", rounds)
    other, valid = negatives.distinct(np.random.default_rng(0), np.array(WEIGHTS), taken(5_000), 2)
    counts, expected = [], []
    for one in FREE:
        for two in set(FREE) - {one}:
            counts.append(int(((other[:, 0] == one) & (other[:, 1] == two)).sum()))
            expected.append(5_000 * WEIGHTS[one] / 15 * WEIGHTS[two] / (15 - WEIGHTS[one]))
    assert valid.all() and sum(counts) == 5_000 and chisquare(counts, expected).pvalue > 1e-3


def test_draws_with_replacement_follow_their_weights_and_duplicates_do_not_count() -> None:
    none_free = taken(2_000)
    none_free[0] = True
    other, valid = negatives.with_replacement(np.random.default_rng(0), np.array(WEIGHTS), none_free, 3)
    counts = np.bincount(other[1:].ravel(), minlength=7)[list(FREE)]
    assert counts.sum() == 3 * 1_999 and not valid[0].any()
    assert chisquare(counts, [counts.sum() * WEIGHTS[item] / 15 for item in FREE]).pvalue > 1e-3
    for items, known in zip(other[1:].tolist(), valid[1:].tolist(), strict=True):
        assert known == [item not in items[:place] for place, item in enumerate(items)]


@pytest.mark.parametrize("ranking", ["pop100_fixed", "uniform100_fixed", "recbole_pop100"])
def test_the_first_drawn_follow_the_law_of_their_ranking(ranking: Ranking) -> None:
    data, task = one_each(users=1_200, items=200), NextItem(rankings=(ranking,))
    task.rank(Vectors(data), data)
    recbole = ranking == "recbole_pop100"  # it counts targets of rows, which first events are not
    counted = [item for past in data.pasts for item in past[recbole:]]
    counted += [item for one in data.came for item in one] if recbole else []
    weight = np.bincount(range(1, 200) if ranking == "uniform100_fixed" else counted, minlength=200).astype(float)
    found, expected = np.zeros(200), np.zeros(200)
    for (user, own), known in zip(data.pairs, others(task, data, ranking), strict=True):
        free = weight.copy()
        free[[own, *data.pasts[user][recbole:]]] = 0
        found[known[0]] += 1
        expected += free / free.sum()
    seen, golden = (one.reshape(20, 10).sum(1) for one in (found, expected))
    assert not found[expected == 0].any() and chisquare(seen, golden).pvalue > 1e-3


def test_recboles_negatives_are_drawn_anew_but_the_same_in_a_resumed_run() -> None:
    data, task, resumed = one_each(), NextItem(rankings=("recbole_pop100",)), NextItem(rankings=("recbole_pop100",))
    encode, found, first_met = Vectors(data), [], 0
    for hidden, item, batch in [problem(5)] * 3:
        task.train().loss({"user": hidden, "item": item}, batch)
        task.eval().rank(encode, data)
        found.append(others(task, data, "recbole_pop100"))
        task.rank(encode, data)
        assert others(task, data, "recbole_pop100") == found[-1], "a model is judged alike whenever it is judged"
    resumed.load_state_dict(task.state_dict())
    resumed.rank(encode, data)
    assert others(resumed, data, "recbole_pop100") == found[2] and len(task.drawn) == 1
    for row, (user, own) in enumerate(data.pairs):
        first, *later = data.pasts[user]
        assert found[0][row] != found[1][row] != found[2][row]
        assert not {own, *later} & {item for one in found for item in one[row]}
        first_met += any(first in one[row] for one in found)
    assert first_met > 5, "a known flaw"
    assert all(20 < len(one) < 100 for drawn in found for one in drawn), "with replacement, fewer are distinct"


def problem(rows: int, items: int = 11) -> tuple[Tensor, Tensor, Batch]:
    """Vectors of rows and items in double, and a batch with pasts of 4, 3, 2, 1, 0, 4, … events."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    item = torch.randn(items, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    history = torch.randint(1, items, (rows, 4), generator=generator, dtype=torch.int32)
    for row in range(rows):
        history[row, : row % 5] = 0
    target = torch.randint(1, items, (rows,), generator=generator, dtype=torch.int32)
    return hidden, item, Batch({"history": history}, {"item": target}, torch.arange(rows))


@pytest.mark.parametrize("cells", [1 << 22, 25, 1])
def test_softmax_is_cross_entropy_over_all_items_but_the_padding(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(next_item, "CELLS", cells)
    hidden, item, batch = problem(9)
    golden = functional.cross_entropy(hidden @ item[1:].T, batch.keys["item"].long() - 1)
    found = NextItem().loss({"user": hidden, "item": item}, batch)
    assert found.item() == pytest.approx(golden.item(), rel=1e-12)
    for own, wanted in zip(*(torch.autograd.grad(one, (hidden, item)) for one in (found, golden)), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(lambda h, i: NextItem().loss({"user": h, "item": i}, batch), (hidden, item))
    large = NextItem().loss({"user": (hidden * 1e4).float(), "item": item.float()}, batch)
    assert all(one.isfinite().all() for one in (large, *torch.autograd.grad(large, (hidden, item))))


@pytest.mark.parametrize("kind", ["bce", "bpr"])
def test_pairwise_losses_equal_a_loop_with_the_same_negatives(kind: Any) -> None:
    hidden, item, batch = problem(60, items=8)
    torch.manual_seed(5)
    other = torch.randint(1, 8, (60,)).tolist()
    torch.manual_seed(5)
    found = NextItem(kind).loss({"user": hidden, "item": item}, batch)
    total, free = torch.zeros((), dtype=torch.float64), []
    for row in range(60):
        own = int(batch.keys["item"][row])
        free.append(other[row] != own and other[row] not in batch["history"][row].tolist())
        up, down = hidden[row] @ item[own], hidden[row] @ item[other[row]]
        if kind == "bce":
            total = total - up.sigmoid().log() - ((1 - down.sigmoid()).log() if free[-1] else 0.0)
        elif free[-1]:
            total = total - (up - down).sigmoid().log()
    assert 10 < sum(free) < 50, "some negatives were the target or shown, and count for nothing"
    assert found.item() == pytest.approx(total.item() / 60, rel=1e-9)
    for own, wanted in zip(*(torch.autograd.grad(one, (hidden, item)) for one in (found, total / 60)), strict=True):
        torch.testing.assert_close(own, wanted)


@pytest.mark.parametrize("kind", ["softmax", "bce", "bpr"])
def test_with_a_vector_for_each_position_every_event_is_learned(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    """As if each followed in a row of its own; also in shares of two ranks."""
    _, item, batch = problem(10)
    hidden = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def drawn_alike(of: Callable[..., Tensor], hidden: Tensor, batch: Batch) -> float:
        torch.manual_seed(1)
        return of({"user": hidden, "item": item}, batch).item()

    task, pairs = NextItem(kind).train(), []
    for row in range(10):
        past = [one for one in batch["history"][row].tolist() if one]
        pairs += [(row, place, one) for place, one in enumerate([*past[1:], int(batch.keys["item"][row])])]
    assert len(pairs) == 2 * (4 + 3 + 2 + 1 + 1), "an empty past teaches its target alone"
    row, place, target = (torch.tensor(one) for one in zip(*pairs, strict=True))
    flat = Batch({"history": batch["history"][row]}, {"item": target}, row)
    found = drawn_alike(task.loss, hidden, batch)
    assert found == pytest.approx(drawn_alike(task.loss, hidden[row, place], flat), rel=1e-12)
    last = torch.tensor([3, 2, 1, 0, 0] * 2)
    for of in (task.validation_loss, NextItem(kind).eval().loss):
        ends = drawn_alike(of, hidden[torch.arange(10), last], batch)
        assert drawn_alike(of, hidden, batch) == pytest.approx(ends, rel=1e-12), "to judge, the last position alone"
    if kind == "softmax":
        monkeypatch.setattr(group, "total", lambda count: torch.full_like(count, len(pairs)))
        shares = []
        for own in (slice(0, 3), slice(3, 10)):
            part = Batch({"history": batch["history"][own]}, {"item": batch.keys["item"][own]}, batch.rows[own])
            shares.append(drawn_alike(task.loss, hidden[own], part))
        assert sum(shares) == pytest.approx(found, rel=1e-12)


BARE = {"name": "sasrec", "hidden": 8, "inner": 6, "heads": 2, "dropout": 0.0, "attention_dropout": 0.0}
CAUSAL = (BARE, {**BARE, "attention": "linear", "mask": "causal"}, {"name": "gru4rec", "hidden": 6, "dropout": 0.0})


@pytest.mark.parametrize("known", CAUSAL, ids=["softmax", "linear", "gru"])
def test_all_positions_at_once_are_all_prefixes_one_by_one(prepared: Callable[..., Run], known: dict[str, Any]) -> None:
    method = from_json({**known, "training": {"length": 70, "targets": "all"}})
    run = prepared("leave_one_out")
    ends, prefixes = (run.rows("train", shown=shown) for shown in (method.shown, Shown(70, sets=True)))
    assert int(prefixes.history.at.diff().max()) <= 71, "one window holds a user's past"
    torch.manual_seed(0)
    net, task = method.net(run.schema, method.space(run.schema)).double(), method.task(run.schema)
    batch, single = (data.batch(torch.arange(data.rows)) for data in (ends, prefixes))
    assert 10 * len(batch) < len(single)
    found = task.train().loss(net.train().only()(batch), batch)
    golden = task.eval().loss(net.eval().only()(single), single)
    assert found.item() == pytest.approx(golden.item(), rel=1e-9)
    gradients = [torch.autograd.grad(loss, list(net.parameters())) for loss in (found, golden)]
    for own, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-7, atol=1e-9)


def test_pasts_are_moved_to_the_left() -> None:
    pasts = ([], [5], [5, 6], [7, 5, 5], [1, 2, 3, 4])
    left = torch.tensor([[0] * (4 - len(one)) + one for one in pasts])
    right = torch.tensor([one + [0] * (4 - len(one)) for one in pasts])
    event, last = aligned(left)
    assert torch.equal(event, right) and last.tolist() == [0, 0, 1, 2, 3], "an empty past ends at 0"
    tens, more = shifted(torch.stack([left * 10, left * 10 + 1], 2), (left != 0).sum(1)).unbind(2)
    assert torch.equal(tens, right * 10) and torch.equal(more, torch.where(right != 0, right * 10 + 1, 0))
