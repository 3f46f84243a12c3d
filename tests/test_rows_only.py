"""Some rows of a split alone, and all rows in their order: against plain indexing, resident and streamed."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from components.run import Run
from nascore.rows import Data
from nascore.schema import Batch

SIZES = (70, 1, 64, 7, 130)
modes = pytest.mark.parametrize("mode", ["resident", "streaming"])


@pytest.fixture(scope="module")
def grouped(clicks: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The planted clicks with each split in files of uneven sizes and row groups of 16."""
    folder = tmp_path_factory.mktemp("grouped")
    prepared = Path(clicks.root) / "prepare"
    (folder / "schema.json").write_bytes((prepared / "schema.json").read_bytes())
    for split in ("train", "valid"):
        target, start = folder / f"split={split}", 0
        target.mkdir()
        table = pq.read_table(sorted((prepared / f"split={split}").glob("part-*.parquet"))[0])
        for number, size in enumerate((*SIZES, len(table))):
            part = table[start : start + size]
            if len(part):
                pq.write_table(part, target / f"part-{number:05d}.parquet", row_group_size=16)
            start += size
    return str(folder)


def chosen(rows: int, kind: str) -> NDArray[np.bool_]:
    """Which rows there are: some, whole row groups and none between them, the last alone, or all."""
    only = np.random.default_rng(1).random(rows) < 0.3
    if kind == "groups":
        only = np.arange(rows) // 16 % 3 == 1
    if kind == "last":
        only = np.arange(rows) == rows - 1
    return np.ones(rows, bool) if kind == "all" else only


def assert_same(found: Batch, whole: Data, places: Any) -> None:
    golden = whole.batch(torch.as_tensor(places))
    assert found.columns.keys() == golden.columns.keys()
    for name, value in golden.columns.items():
        assert np.array_equal(found[name].numpy(), value.numpy(), equal_nan=value.is_floating_point())
    assert found.label is not None and golden.label is not None and torch.equal(found.label, golden.label)


@modes
@pytest.mark.parametrize("kind", ["some", "groups", "last", "all"])
@pytest.mark.parametrize("split", ["train", "valid", "train+valid"])
def test_there_are_no_rows_but_those_told(grouped: str, split: str, kind: str, mode: Any) -> None:
    whole = Data(grouped, split)
    only = chosen(whole.rows, kind)
    places = np.flatnonzero(only)
    data = Data(grouped, split, mode=mode, only=only)
    assert data.rows == len(places)
    assert torch.equal(data.packed, whole.packed[places])
    assert_same(data.batch(torch.arange(data.rows)), whole, places)
    size = min(10, data.rows)
    seen = []
    for batch in islice(data.batches(size, seed=3), data.steps_per_epoch(size)):
        assert_same(batch, whole, places[batch.rows])
        seen += batch.rows.tolist()
    assert len(seen) == len({*seen}) == data.rows // size * size and {*seen} <= {*range(data.rows)}


@modes
def test_the_first_of_some_rows_are_whole_row_groups(grouped: str, mode: Any) -> None:
    whole = Data(grouped, "train")
    only = chosen(whole.rows, "some")
    data = Data(grouped, "train", mode=mode, only=only, first=50)
    assert 50 <= data.rows < 50 + 16
    assert torch.equal(data.packed, whole.packed[np.flatnonzero(only)[: data.rows]])
    assert Data(grouped, "train", only=only, first=10_000).rows == only.sum()


@modes
@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("size", [5, 16, 1_000])
def test_a_sweep_is_all_rows_in_their_order(grouped: str, size: int, only: bool, mode: Any) -> None:
    whole = Data(grouped, "train+valid")
    told = chosen(whole.rows, "some")
    places = np.flatnonzero(told) if only else np.arange(whole.rows)
    data = Data(grouped, "train+valid", mode=mode, only=told if only else None)
    batches, start, groups = list(data.sweep(size)), 0, list[int]()
    for batch in batches:
        assert 0 < len(batch) <= size and batch.rows.tolist() == list(range(start, start + len(batch)))
        assert_same(batch, whole, places[start : start + len(batch)])
        start += len(batch)
    assert start == data.rows == len(places)
    for _, _, rows in data.groups:
        groups += [size] * (rows // size) + [rows % size] * (rows % size > 0)
    assert [len(batch) for batch in batches] == groups, "no batch is of two row groups"
    again = [batch.rows.tolist() for batch in data.sweep(size)]
    assert again == [batch.rows.tolist() for batch in batches]


def test_a_sweep_holds_one_row_group(grouped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = Data(grouped, "train", mode="streaming"), list[int]()
    plain = Data._read

    def counted(self: Data, groups: Any) -> Any:
        read.append(len(list(groups)))
        return plain(self, groups)

    monkeypatch.setattr(Data, "_read", counted)
    assert sum(len(batch) for batch in data.sweep(1_000)) == data.rows
    assert read == [1] * len(data.groups)


def test_every_row_must_be_told_of(grouped: str) -> None:
    rows = Data(grouped, "valid").rows
    with pytest.raises(ValueError, match=f"{rows - 1} rows are told of, but the valid split holds {rows}"):
        Data(grouped, "valid", only=np.ones(rows - 1, bool))
    with pytest.raises(ValueError, match="the valid split is empty"):
        Data(grouped, "valid", only=np.zeros(rows, bool))


def test_two_ranks_share_some_rows(grouped: str) -> None:
    whole = Data(grouped, "train")
    only = chosen(whole.rows, "some")
    joined = Data(grouped, "train", only=only)
    ranks = [Data(grouped, "train", only=only, rank=rank, world=2) for rank in (0, 1)]
    for one, *parts in islice(zip(joined.batches(20, 3), *(data.batches(20, 3) for data in ranks), strict=False), 5):
        assert torch.cat([part.rows for part in parts]).tolist() == one.rows.tolist()
