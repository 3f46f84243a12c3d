"""Embedding tables: how they begin, what they are called, and the gradient of a look-up."""

import pytest
import torch
from torch import nn

from nascore.embedding import Embedding, embeddings
from nascore.schema import Column


def test_tables_are_xavier_with_a_zero_row_for_the_missing() -> None:
    torch.manual_seed(0)
    tables = embeddings((Column("a", "user", size=200), Column("b", "item", size=4)), 16)
    assert {name: tuple(table.weight.shape) for name, table in tables.items()} == {"a": (200, 16), "b": (4, 16)}
    for table in tables.values():
        assert not table.weight[0].any() and table.weight[1:].all() and table.padding_idx == 0
        bound = (6 / (table.weight.shape[0] + 16)) ** 0.5
        assert 0.9 * bound < table.weight.abs().max() <= bound


def test_a_column_may_have_any_name() -> None:
    columns = [Column(name, size=3) for name in ("type", "items", "training", "forward", "color")]
    tables = embeddings(columns, 2)
    assert [*tables] == [column.name for column in columns] and tables["type"].weight.shape == (3, 2)
    assert [name for name, _ in tables.named_parameters()] == [f"{column.name}.weight" for column in columns]
    other = embeddings(columns, 2)
    other.load_state_dict(tables.state_dict())
    assert torch.equal(other["items"].weight, tables["items"].weight)


@pytest.mark.parametrize("shape", [(300,), (1_024, 20), (2, 3, 5), (0, 3)])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_a_gradient_is_torchs_to_the_bit(shape: tuple[int, ...], kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(9, shape, generator=generator).to(kind)
    table, plain = Embedding(9, 3), nn.Embedding(9, 3, padding_idx=0)
    plain.load_state_dict(table.state_dict())
    weight = torch.randn(*shape, 6, generator=generator)
    for each in (table, plain):
        found = each(ids)
        assert found.shape == (*shape, 3)
        (torch.cat([found, found.detach()], -1) * weight).sum().backward()  # its gradient is no block of memory
    assert table.weight.grad is not None and plain.weight.grad is not None
    assert torch.equal(table.weight.grad, plain.weight.grad)
    assert not table.weight.grad[0].any()
