"""Datasets: what every room of the gallery inherits by existing."""

import gzip
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow import types

from nascore import datasets, plugins
from nascore.datasets import CHUNK, DataError, Dataset
from nascore.datasets.movielens import Movielens
from nascore.datasets.parquet import Parquet
from nascore.schema import Side

Files = dict[str, bytes]
Write = Callable[[Files], str]
SIDES: tuple[Side, ...] = ("user", "item")
BY_THEMSELVES = """{rows: log.parquet, label: clicked, timestamp: at, features: [
    {name: site, fewest: 2, most: 9}, {name: hour}, {name: price, kind: number}]}"""


def packed(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def by_themselves() -> Files:
    """A specimen of `parquet` whose rows stand by themselves."""
    log = {"clicked": [1, 0, None, 1], "at": [3, 1, 2, 2], "site": ["a", None, "b", "b"], "hour": [7, 8, 9, None]}
    return {
        "schema.yaml": BY_THEMSELVES.encode(),
        "log.parquet": packed(pa.table({**log, "price": [0.5, None, 2, 1]})),
    }


ROOMS: dict[str, type[Dataset]] = {name: plugins.load("datasets", name) for name in plugins.names("datasets")}
CASES: dict[str, tuple[type[Dataset], Files]] = {
    **{name: (room, room.specimen()) for name, room in ROOMS.items()},
    "parquet, rows by themselves": (Parquet, by_themselves()),
}
WITH_FILES = [name for name, (_, files) in CASES.items() if files]


@pytest.fixture(params=["local", "memory"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Write]:
    """Writes files to a new folder on the disk or in memory and returns its URL."""
    made: list[tuple[fsspec.AbstractFileSystem, str]] = []

    def written(files: Files) -> str:
        folder = f"raw[{len(made)}]"
        url = f"{tmp_path}/{folder}" if request.param == "local" else f"memory://{tmp_path.name}/{folder}"
        fs, path = fsspec.core.url_to_fs(url)
        fs.makedirs(path)
        for name, content in files.items():
            fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
            fs.pipe_file(f"{path}/{name}", content)
        made.append((fs, path))
        return url

    yield written
    for fs, path in made:
        for file in fs.find(path):
            fs.rm_file(file)


def stored(name: str, content: bytes) -> pa.Table | list[bytes]:
    """The rows of a raw file: a table, or lines with their ends."""
    if name.endswith(".parquet"):
        return pq.read_table(io.BytesIO(content))
    return (gzip.decompress(content) if name.endswith(".gz") else content).splitlines(keepends=True)


def mended(name: str, content: bytes) -> bytes:
    """The file without its second last row."""
    rows = stored(name, content)
    if isinstance(rows, list):
        text = b"".join(rows[:-2] + rows[-1:])
        return gzip.compress(text) if name.endswith(".gz") else text
    return packed(pa.concat_tables([rows.slice(0, len(rows) - 2), rows.slice(len(rows) - 1)]))


def log_of(dataset: Dataset) -> str:
    """The file whose broken row the dataset left out."""
    list(dataset.rows())
    (file,) = dataset.bad
    return file


def whole(name: str, write: Write) -> Dataset:
    """The case's dataset over its specimen without the broken row."""
    room, files = CASES[name]
    if not files:
        return room(write({"README": b""}))
    log = log_of(room(write(files), "skip"))
    return room(write({**files, log: mended(log, files[log])}))


def read(dataset: Dataset) -> dict[str, pa.Table]:
    """Everything a dataset holds, by table."""
    tables: dict[str, list[pa.Table]] = {side: list(dataset.entities(side)) for side in SIDES}
    tables["log"] = list(dataset.rows())
    return {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}


@pytest.mark.parametrize("name", CASES)
def test_the_tables_hold_what_the_layout_says(name: str, write: Write) -> None:
    dataset = whole(name, write)
    layout, tables = dataset.layout(), read(dataset)
    log = tables["log"]
    for key in filter(None, (layout.user, layout.item)):
        assert types.is_integer(log[key].type) or types.is_string(log[key].type)
        assert log[key].null_count == 0
    if layout.timestamp:
        assert log[layout.timestamp].type == pa.int64() and log[layout.timestamp].null_count == 0
    if layout.label:
        assert log[layout.label].type == pa.int8() and set(log[layout.label].to_pylist()) <= {0, 1}
    assert layout.user or tables.keys() == {"log"}
    assert {*filter(None, (layout.user, layout.item, layout.timestamp, layout.label))} <= {*log.column_names}
    for side, key in (("user", layout.user), ("item", layout.item)):
        if side in tables:
            assert types.is_integer(tables[side][key].type) == types.is_integer(log[key].type)
            assert tables[side][key].null_count == 0 and len(pc.unique(tables[side][key])) == len(tables[side])
    for feature in layout.features:
        where = tables.get(feature.side, log)
        column = (where if feature.name in where.column_names else log)[feature.name]
        if feature.kind == "set":
            assert types.is_list(column.type)
        elif feature.kind == "number":
            assert types.is_floating(column.type) or types.is_integer(column.type)
            assert feature.bins > 1 or feature.side == "row"
        else:
            assert types.is_integer(column.type) or types.is_string(column.type) or types.is_boolean(column.type)


@pytest.mark.parametrize("name", CASES)
def test_the_layout_is_consistent(name: str, write: Write) -> None:
    layout = whole(name, write).layout()
    by_name = {feature.name: feature for feature in layout.features}
    assert len(by_name) == len(layout.features)
    for key, side in ((layout.user, "user"), (layout.item, "item")):
        assert key not in by_name or (by_name[key].side, by_name[key].kind) == (side, "category")
    assert not {layout.timestamp, layout.label} & by_name.keys()
    assert bool(layout.user) == bool(layout.item)
    if not layout.user:
        assert layout.label and by_name and not layout.history
        assert all(feature.side == "row" and feature.kind != "set" for feature in layout.features)
    for feature in layout.features:
        plain = layout.user or feature.kind != "category"
        assert (feature.fewest, feature.most) == (1, 0) if plain else feature.fewest >= 1 and feature.most >= 0
    assert all(by_name[past].side == "item" for past in layout.history)
    assert bool(layout.history) == bool(layout.history_length)


@pytest.mark.parametrize("name", CASES)
def test_its_protocols_exist_and_one_splits_such_rows(name: str, write: Write) -> None:
    protocols = CASES[name][0].protocols
    assert set(protocols) <= set(plugins.names("protocols"))
    by_itself = not whole(name, write).layout().user
    assert by_itself in {plugins.load("protocols", protocol).apart for protocol in protocols}


@pytest.mark.parametrize("name", WITH_FILES)
def test_the_broken_row_raises(name: str, write: Write) -> None:
    room, files = CASES[name]
    url = write(files)
    log = log_of(room(url, "skip"))
    row = len(stored(log, files[log])) - 1
    with pytest.raises(DataError, match=rf"{re.escape(f'{url}/{log}')}, row {row}: .*--on-bad-row skip"):
        list(room(url).rows())


@pytest.mark.parametrize("name", WITH_FILES)
def test_the_broken_row_is_left_out_and_counted(name: str, write: Write) -> None:
    room, files = CASES[name]
    dataset = room(write(files), "skip")
    expected = read(whole(name, write))
    for _ in range(2):
        tables = read(dataset)
        assert sorted(dataset.bad.values()) == [1]
        assert tables.keys() == expected.keys()
        assert all(tables[part].equals(expected[part]) for part in tables)


@pytest.mark.parametrize("name", CASES)
def test_chunks_are_bounded_and_change_nothing(name: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = whole(name, write)
    assert all(0 < len(table) <= CHUNK for table in dataset.rows())
    expected = read(dataset)
    for module in (datasets, sys.modules[type(dataset).__module__]):
        if hasattr(module, "CHUNK"):
            monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(datasets, "BLOCK_BYTES", 7)
    assert {len(table) for table in dataset.rows()} <= {1, 2, 3}
    assert all(table.equals(expected[part]) for part, table in read(dataset).items())


@pytest.mark.parametrize("name", CASES)
def test_reading_twice_gives_the_same(name: str, write: Write) -> None:
    dataset = whole(name, write)
    once, again = read(dataset), read(dataset)
    assert once.keys() == again.keys() and all(once[part].equals(again[part]) for part in once)


@pytest.mark.parametrize("name", WITH_FILES)
def test_every_file_is_needed(name: str, write: Write) -> None:
    room, files = CASES[name]
    for file in files:
        url = write({other: content for other, content in files.items() if other != file})
        with pytest.raises(DataError, match=rf"{re.escape(url)}: .*{re.escape(file)}"):
            room(url).layout()


def test_a_setting_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="on_bad_row is one of error, skip, not 'ignore'"):
        Movielens("memory://nowhere", "ignore")  # type: ignore[arg-type]
