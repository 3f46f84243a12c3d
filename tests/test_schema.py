"""Columns, schemas and batches."""

import pytest
import torch

from nascore.schema import Batch, Column, Schema

SCHEMA = Schema(
    user="user_id",
    item="item_id",
    users=5,
    items=7,
    columns=(
        Column("user_id", "user", "category", 5),
        Column("age", "user", "number"),
        Column("genres", "item", "set", 4, 3),
        Column("hour", size=25),
    ),
    protocol="user_temporal",
    rows={"train": 10, "valid": 5, "test": 5},
    history=("genres",),
    history_length=20,
    history_from={"train": ("train",), "valid": ("train",), "test": ("train", "valid")},
    seen_in={"train": (), "valid": ("train",), "test": ("train", "valid")},
    split_digest="abc",
    vocabulary_digests={"user_id": "def"},
)


def test_a_schema_survives_json() -> None:
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA


def test_columns_are_found_by_side_and_by_name() -> None:
    assert [column.name for column in SCHEMA.of("user")] == ["user_id", "age"]
    assert [column.name for column in SCHEMA.of("row")] == ["hour"]
    assert SCHEMA["genres"].width == 3
    with pytest.raises(KeyError, match="'year'; there are: user_id, age, genres, hour"):
        SCHEMA["year"]


@pytest.mark.parametrize("name", ["", "a.b", "history/genres"])
def test_a_name_that_breaks_parameter_or_batch_names_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="neither '.' nor '/'"):
        Column(name)


def test_a_batch_is_asked_by_name() -> None:
    batch = Batch({"hour": torch.tensor([1, 2])}, {"user_id": torch.tensor([3, 4])}, torch.tensor([8, 9]))
    assert len(batch) == 2
    assert "hour" in batch and "user_id" not in batch
    assert batch["hour"].tolist() == [1, 2]
