"""Floors in closed form: similarities and EASE against loops and their normal equations, over the whole of a past."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.run import Run
from nascore import plugins
from nascore.methods import Method, itemknn
from nascore.methods.ease import EASE
from nascore.methods.itemknn import ItemKNN
from nascore.net import Net
from nascore.rows import Data
from nascore.schema import Batch, Schema
from nascore.tasks import retrieval

Prepared = Callable[..., Run]


def pasts(data: Data) -> list[set[int]]:
    """Each user's items in a split."""
    at, item = data.relevant.at.tolist(), data.relevant.item.tolist()
    return [set(item[start:end]) for start, end in zip(at, at[1:], strict=False)]


def built(method: Method, schema: Schema) -> Any:
    return method.net(schema, method.space(schema)).eval()


def solved(method: Method, data: Data) -> Any:
    net = built(method, data.schema)
    net.solve(data)
    return net


def columns(net: Net) -> Tensor:
    """The weights of all items, (item scored, item of the past)."""
    return net.only()(Batch({}, {"item": torch.arange(net.schema.items)}, torch.arange(net.schema.items)))["item"]


@pytest.mark.parametrize("cells", [1 << 24, 80 * 7])
def test_similarities_equal_a_loop(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(itemknn, "CELLS", cells)
    data = prepared().rows("train")
    items, users = data.schema.items, pasts(data)
    have = [{user for user, past in enumerate(users) if item in past} for item in range(items)]
    assert any(len(past) < count for past, count in zip(users, data.relevant.at.diff().tolist(), strict=True)), (
        "repeats"
    )
    known = data.relevant.at.clone(), data.relevant.item.clone()
    found = columns(solved(ItemKNN(neighbours=6, shrinkage=3.0), data))
    assert torch.equal(known[0], data.relevant.at) and torch.equal(known[1], data.relevant.item), "only read"
    for item in range(items):
        similar = {
            other: len(have[item] & have[other]) / (math.sqrt(len(have[item]) * len(have[other])) + 3)
            for other in range(items)
            if other != item
        }
        best = sorted(similar.values(), reverse=True)[:6]
        kept = {other: value for other, value in enumerate(found[item].tolist()) if value}
        assert sorted(kept.values(), reverse=True) == pytest.approx([value for value in best if value], rel=1e-5)
        assert kept == pytest.approx({other: similar[other] for other in kept}, rel=1e-5)
    assert (found[0] == 0).all() and (found.diagonal() == 0).all()


@pytest.mark.parametrize("regularization", [0.5, 50.0])
def test_ease_is_the_least_squares_solution_with_a_zero_diagonal(prepared: Prepared, regularization: float) -> None:
    """For every pair of two items the gradient of |X - XB|^2 + regularization |B|^2 is 0, and B's diagonal is."""
    data = prepared().rows("train")
    x_UI = torch.zeros(data.schema.users, data.schema.items, dtype=torch.float64)
    for user, past in enumerate(pasts(data)):
        x_UI[user, list(past)] = 1
    b_II = columns(solved(EASE(regularization=regularization), data)).T.double()
    assert (b_II.diagonal() == 0).all() and (b_II != 0).any()
    gradient_II = x_UI.T @ (x_UI @ b_II - x_UI) + regularization * b_II
    gradient_II.fill_diagonal_(0)
    assert gradient_II.abs().max() < 1e-4 * (x_UI.T @ x_UI).max()
    inverse = np.linalg.inv((x_UI.T @ x_UI).numpy() + regularization * np.eye(data.schema.items))
    golden = -inverse / np.diag(inverse)
    np.fill_diagonal(golden, 0)
    np.testing.assert_allclose(b_II.numpy(), golden, atol=1e-5)


@pytest.mark.parametrize("method", [ItemKNN(neighbours=20), EASE(regularization=9)], ids=lambda method: method.name)
@pytest.mark.parametrize("protocol", ["user_temporal", "authors"])
def test_a_score_sums_over_the_whole_past_that_the_split_shows(
    prepared: Prepared, method: Method, protocol: str
) -> None:
    net = solved(method, prepared(protocol).rows("train"))
    for split in ("valid", "test"):
        data, shown = prepared(protocol).rows(split), {}

        def model(batch: Batch, shown: dict[int, Tensor] = shown) -> dict[str, Tensor]:
            output = net.only()(batch)
            if "user" in output:
                shown |= zip(batch.keys["user"].tolist(), output["user"], strict=True)
            return output

        scores = method.task(data.schema).evaluate(model, data)
        users, before = data.ranked_users()
        assert max(before) > data.schema.history_length and set(scores.units) <= set(users.tolist())
        for user, count in zip(users.tolist(), before.tolist(), strict=True):
            start = int(data.history.at[user])
            past = data.history.item[start : start + count].tolist()
            assert shown[user].nonzero().squeeze(1).tolist() == sorted(set(past)), "each once, none forgotten"
            golden = sum(columns(net)[:, item] for item in set(past)) if past else torch.zeros(data.schema.items)
            torch.testing.assert_close(columns(net) @ shown[user], golden)


def test_a_whole_past_ends_where_the_shown_past_does(prepared: Prepared) -> None:
    data = prepared().rows("test")
    users = torch.arange(1, 6, dtype=torch.int32)
    batch = data.user_batch(users, torch.tensor([0, 1, 9, 3, 12], dtype=torch.int32), whole=True)
    assert batch["history"].shape == (5, 12) and batch["history/category"].shape == (5, 12)
    for user, shown, count in zip(users.tolist(), batch["history"].tolist(), (0, 1, 9, 3, 12), strict=True):
        start = int(data.history.at[user])
        assert shown == [0] * (12 - count) + data.history.item[start : start + count].tolist()
    assert data.user_batch(users[:1], torch.tensor([0]), whole=True)["history"].shape == (1, 0)


@pytest.mark.parametrize("method", [ItemKNN(), EASE()], ids=lambda method: method.name)
def test_what_is_solved_is_restored_and_bounded(prepared: Prepared, method: Method) -> None:
    data = prepared().rows("train")
    net, other = solved(method, data), built(method, data.schema)
    other.load_state_dict(net.state_dict())
    assert torch.equal(columns(net), columns(other)) and columns(net).any()
    assert method.price(data.schema)({}, "").table_params == data.schema.items * min(
        data.schema.items, 100 if method.name == "itemknn" else data.schema.items
    )


def test_only_neighbours_are_kept_of_many_items(prepared: Prepared) -> None:
    many = replace(prepared().schema, items=20_001)
    with pytest.raises(ValueError, match="20,001 items.*EASE takes up to 20,000, itemknn any number"):
        EASE().price(many)
    assert ItemKNN(neighbours=7).price(many)({}, "").table_params == 7 * 20_001


@pytest.mark.parametrize("cells", [1 << 24, 80 * 7])
def test_what_is_mostly_zeros_ranks_as_if_dense(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    monkeypatch.setattr(itemknn, "CELLS", cells)
    method, data = ItemKNN(neighbours=6), prepared().rows("test")
    model = solved(method, prepared().rows("train")).only()
    dense = EASE().task(data.schema).evaluate(model, data)
    monkeypatch.setattr(retrieval, "encode_items", lambda *_: pytest.fail("all items' vectors at once"))
    sparse = method.task(data.schema).evaluate(model, data)
    assert set(sparse.values) == set(dense.values) and (sparse.units == dense.units).all()
    for name, value in sparse.values.items():
        np.testing.assert_allclose(value, dense.values[name], err_msg=name)


def test_the_floors_find_what_goes_together(prepared: Prepared) -> None:
    """Buyers of the shop return to their own few favourites, which what others bought beside them tells."""
    train, valid = prepared().rows("train"), prepared().rows("valid")
    recalls = {}
    for name in ("popularity", "itemknn", "ease"):
        method = plugins.build("methods", name)
        recalls[name] = method.stop.measure(solved(method, train).only(), method.task(train.schema), valid)
    assert min(recalls["itemknn"], recalls["ease"]) > recalls["popularity"]
