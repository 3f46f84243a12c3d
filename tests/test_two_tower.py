"""The frame of two towers: look-ups against a plain loop, histories that share tables, and what a side may lack."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from components.run import Run
from nascore.methods.autotower import AutoTower
from nascore.methods.googlednn import GoogleDNN
from nascore.rows import Data
from nascore.schema import Batch, Column, Schema
from nascore.training import Plan
from nascore.two_tower import Training, TwoTower

METHODS = (AutoTower(blocks=2, embedding=3, width=8, output=6), GoogleDNN(size="L", embedding=3, output=6))


@pytest.fixture
def data(prepared: Callable[..., Run]) -> Data:
    return prepared().rows("train")


def net_of(method: Any, schema: Schema) -> TwoTower:
    torch.manual_seed(0)
    space = method.space(schema)
    genotype = {name: (decision.options[-1],) for name, decision in space.decisions.items()}
    net = method.net(schema, space.narrow(genotype)).eval()
    assert isinstance(net, TwoTower)
    return net


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_look_ups_equal_a_loop(data: Data, method: Any) -> None:
    net, batch = net_of(method, data.schema), data.batch(torch.arange(30))
    with torch.no_grad():
        for table in net.tables.values():
            table.weight[0] = 0.0
    x = net.embed(batch)
    for row in range(30):
        for side, names in (
            ("user", ("buyer", "country")),
            ("item", ("article", "category", "shelf", "tags", "weight")),
        ):
            parts = []
            for name in names:
                ids = [one for one in batch[name][row].reshape(-1).tolist() if one or name != "tags"]
                vectors = [net.tables[name].weight[one] for one in ids]
                parts.append(torch.stack(vectors).mean(0) if vectors else torch.zeros(3))
            torch.testing.assert_close(x[side][row], torch.cat(parts))
        for place in range(6):
            shown = [net.tables[name].weight[batch[f"history/{name}"][row, place]] for name in data.schema.history]
            torch.testing.assert_close(x["history"][row, place], torch.cat(shown))
    assert torch.equal(x["mask"], batch["history"] != 0) and not x["mask"].all() and x["mask"].any()
    assert set(net.tables) == {"buyer", "country", "article", "category", "shelf", "tags", "weight"}, (
        "shared with items"
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_outputs_have_unit_length_and_sides_stand_alone(data: Data, method: Any) -> None:
    net, rows = net_of(method, data.schema), torch.arange(40)
    model = net.only()
    both = model(data.batch(rows))
    user, item, before = data.keys(rows)
    users, items = model(data.user_batch(user, before)), model(data.item_batch(item))
    assert set(both) == {"user", "user/input", "item", "item/input"}
    assert set(users) == {"user", "user/input"} and set(items) == {"item", "item/input"}
    for name, value in (users | items).items():
        torch.testing.assert_close(value, both[name])
    for side in ("user", "item"):
        torch.testing.assert_close(both[side].norm(dim=1), torch.ones(40))
    assert both["user/input"].shape == (40, net.user_width + net.history_width) == (40, 2 * 3 + 3 * 3)
    assert both["item/input"].shape == (40, net.item_width) == (40, 5 * 3)


def schema_with(schema: Schema, *names: str, history: tuple[str, ...]) -> Schema:
    columns = tuple(column for column in schema.columns if column.name in names)
    return replace(schema, columns=columns, history=history, history_length=6 if history else 0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(
    "names, history, tables",
    [
        (("buyer", "article"), (), {"buyer", "article"}),
        (("article", "category"), ("article", "category"), {"article", "category"}),
        (("country", "category"), ("article",), {"country", "category", "article"}),
    ],
    ids=["no history", "no user feature", "an item key that is no feature"],
)
def test_a_side_may_be_known_by_little(
    data: Data, method: Any, names: tuple[str, ...], history: tuple[str, ...], tables: set[str]
) -> None:
    data.schema = schema_with(data.schema, *names, history=history)
    data.__dict__.pop("_tables", None)
    net = net_of(method, data.schema)
    assert set(net.tables) == tables
    output = net.only()(data.batch(torch.arange(20)))
    assert output["user"].shape == output["item"].shape == (20, 6)
    assert method.price(data.schema)(method.space(data.schema).sample(Random(0)), "").table_params == sum(
        table.weight.numel() for table in net.tables.values()
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_cannot_be_embedded_is_an_error(data: Data, method: Any) -> None:
    users, items = Column("u", "user", size=3), Column("i", "item", size=3)
    price = Column("price", "item", "number")
    for columns, why in (
        ((users, items, price), "column 'price' is a number: give it `bins`"),
        ((items,), "nothing is known of a user"),
        ((users,), "nothing is known of a item"),
    ):
        schema = Schema("u", "i", 3, 3, columns, "user_temporal")
        with pytest.raises(ValueError, match=why):
            method.net(schema, method.space(schema).narrow(method.space(schema).sample(Random(0))))


def test_a_rate_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="not 0 <= rate < 1: 1.0"):
        Training(rate=1.0)


def test_a_training_is_two_plans_and_a_task(data: Data) -> None:
    training = Training(
        batch=7,
        learning_rate=0.1,
        weight_decay=0.2,
        clip=0.3,
        regularizer=0.4,
        temperature=0.5,
        correct=False,
        rate=0.6,
    )
    assert training.supernet(9, "cosine") == Plan(7, 9, 0, 0, 0.1, 0.2, 0.3, "cosine")
    assert training.supernet(9, "constant", lazy=False) == Plan(7, 9, 0, 0, 0.1, 0.2, 0.3, lazy=False)
    assert training.alone() == Plan(7, 0, 100, 5, 0.1, 0.2, 0.3)
    task = training.task(data.schema)
    assert (task.temperature, task.correct, task.rate, task.regularizer) == (0.5, False, 0.6, 0.4)
    assert len(task.gap) == data.schema.items and task.gap[0] == (data.schema.items - 1) // 7


def test_a_batch_moves_whole(data: Data) -> None:
    batch = data.batch(torch.arange(3))
    moved = batch.to("meta")
    assert isinstance(moved, Batch) and len(moved) == 3
    assert {tensor.device.type for tensor in (*moved.columns.values(), *moved.keys.values(), moved.rows)} == {"meta"}
    assert moved.columns.keys() == batch.columns.keys() and "buyer" in moved and "nothing" not in moved
