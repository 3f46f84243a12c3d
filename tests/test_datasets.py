"""Datasets: what every room inherits, then the two formats and their errors, then the real files."""

import gzip
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import types

from nascore import datasets, plugins
from nascore.datasets import CHUNK, DataError, Dataset, Feature, Layout
from nascore.datasets.movielens import Movielens
from nascore.datasets.parquet import Parquet
from nascore.schema import Side

Files = dict[str, bytes]
Write = Callable[[Files], str]
SIDES: tuple[Side, ...] = ("user", "item")

ONE_MILLION: Files = {
    "ratings.dat": b"1::10::5::978300760\n2::20::3::978300100\n1::30::4::978300100\n1::10::4\n2::10::1::978300400\n",
    "users.dat": b"1::F::1::10::00000\n2::M::56::16::00000-1234\n",
    "movies.dat": (
        "10::First: a Film (1995)::Drama|Comedy\n20::Café (1st) (2000)::Musical\n30::No year::Action|War|Drama\n"
    ).encode("latin-1"),
}
CSV: Files = {
    "ratings.csv": (
        b"userId,movieId,rating,timestamp\r\n1,10,5.0,978300760\r\n2,20,3.5,978300100\r\n1,30,4.0,978300100\r\n"
        b"1,,4.0,978300300\r\n2,10,0.5,978300400\r\n"
    ),
    "movies.csv": (
        "movieId,title,genres\r\n"
        '10,"First Film, The (1995)",Drama|Comedy\r\n'
        '20,"The ""Café"" (2006–2007)",Musical\r\n'
        "30,No year,(no genres listed)\r\n"
    ).encode(),
}


def cases() -> dict[str, tuple[type[Dataset], Files]]:
    """The specimen of every room, and specimens of the other formats that a room reads."""
    rooms = {name: plugins.load("datasets", name) for name in plugins.names("datasets")}
    more = {"movielens-1M": (Movielens, ONE_MILLION), "movielens-csv": (Movielens, CSV)}
    return {**{name: (room, room.specimen()) for name, room in rooms.items()}, **more}


CASES = cases()
WITH_FILES = [name for name, (_, files) in CASES.items() if files]


@pytest.fixture(params=["local", "memory"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Write]:
    """Writes files to a new folder on the disk or in memory and returns its URL."""
    made = []

    def written(files: Files) -> str:
        folder = f"raw-{len(made)}"
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
        fs.rm(path, recursive=True)


@pytest.fixture
def put(tmp_path: Path) -> Write:
    """Writes files to a folder on the disk and returns it."""

    def written(files: Files) -> str:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    return written


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


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
    kept = pa.concat_tables([rows.slice(0, len(rows) - 2), rows.slice(len(rows) - 1)])
    return parquet(**{column: kept[column] for column in kept.column_names})


def log_of(dataset: Dataset) -> str:
    """The file whose broken row the dataset left out."""
    list(dataset.rows())
    (file,) = dataset.bad
    return file


def sound(name: str, write: Write) -> Dataset:
    """The case's dataset over its specimen without the broken row."""
    room, files = CASES[name]
    if not files:
        return room(write({"README": b""}))
    log = log_of(room(write(files), "skip"))
    return room(write({**files, log: mended(log, files[log])}))


def read(dataset: Dataset) -> dict[str, pa.Table]:
    """Everything a dataset holds, by table."""
    tables = {"log": list(dataset.rows()), **{side: list(dataset.entities(side)) for side in SIDES}}
    return {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}


@pytest.mark.parametrize("name", CASES)
def test_the_tables_hold_what_the_layout_says(name: str, write: Write) -> None:
    dataset = sound(name, write)
    layout, tables = dataset.layout(), read(dataset)
    log = tables["log"]
    for key in (layout.user, layout.item):
        assert types.is_integer(log[key].type) or types.is_string(log[key].type)
        assert log[key].null_count == 0
    assert log[layout.timestamp].type == pa.int64() and log[layout.timestamp].null_count == 0
    if layout.label:
        assert log[layout.label].type == pa.int8() and set(log[layout.label].to_pylist()) <= {0, 1}
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
    layout = sound(name, write).layout()
    by_name = {feature.name: feature for feature in layout.features}
    assert len(by_name) == len(layout.features)
    for key, side in ((layout.user, "user"), (layout.item, "item")):
        assert key not in by_name or (by_name[key].side, by_name[key].kind) == (side, "category")
    assert not {layout.timestamp, layout.label} & by_name.keys()
    assert all(by_name[past].side == "item" for past in layout.history)
    assert bool(layout.history) == bool(layout.history_length)


@pytest.mark.parametrize("name", CASES)
def test_its_protocols_exist(name: str) -> None:
    protocols = CASES[name][0].protocols
    assert protocols and set(protocols) <= set(plugins.names("protocols"))


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
    expected = read(sound(name, write))
    for _ in range(2):
        tables = read(dataset)
        assert sorted(dataset.bad.values()) == [1]
        assert tables.keys() == expected.keys()
        assert all(tables[part].equals(expected[part]) for part in tables)


@pytest.mark.parametrize("name", CASES)
def test_chunks_are_bounded_and_change_nothing(name: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = sound(name, write)
    assert all(0 < len(table) <= CHUNK for table in dataset.rows())
    whole = read(dataset)
    for module in (datasets, plugins.import_module(type(dataset).__module__)):
        if hasattr(module, "CHUNK"):
            monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(datasets, "BLOCK_BYTES", 7)
    assert {len(table) for table in dataset.rows()} <= {1, 2, 3}
    assert all(table.equals(whole[part]) for part, table in read(dataset).items())


@pytest.mark.parametrize("name", CASES)
def test_reading_twice_gives_the_same(name: str, write: Write) -> None:
    dataset = sound(name, write)
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


KEYS = (Feature("user_id", "user"), Feature("movie_id", "item"))
ABOUT_ITEMS = (Feature("movie_id", "item"), Feature("decade", "item"), Feature("genres", "item", "set"))
ABOUT_USERS = tuple(Feature(name, "user") for name in ("user_id", "age", "gender", "occupation"))


@pytest.mark.parametrize(
    "name, features",
    [
        ("movielens", ABOUT_USERS + ABOUT_ITEMS),
        ("movielens-1M", ABOUT_USERS + ABOUT_ITEMS),
        ("movielens-csv", ABOUT_USERS[:1] + ABOUT_ITEMS),
    ],
)
def test_movielens_layout(name: str, features: tuple[Feature, ...], write: Write) -> None:
    history = ("movie_id", "decade", "genres")
    expected = Layout("user_id", "movie_id", "timestamp", features, history=history, history_length=20)
    assert sound(name, write).layout() == expected


MOVIELENS: dict[str, dict[str, list[tuple[Any, ...]]]] = {
    "movielens": {
        "log": [(1, 10, 880000300), (2, 30, 880000100), (1, 20, 880000100), (2, 10, 880000400)],
        "user": [(1, "1-7", "F", "student"), (2, "60+", "M", "writer")],
        "item": [(10, 1990, ["Comedy", "Drama"]), (20, 1960, ["Drama"]), (30, None, ["unknown"])],
    },
    "movielens-1M": {
        "log": [(1, 10, 978300760), (2, 20, 978300100), (1, 30, 978300100), (2, 10, 978300400)],
        "user": [(1, "1", "F", "10"), (2, "56", "M", "16")],
        "item": [(10, 1990, ["Drama", "Comedy"]), (20, 2000, ["Musical"]), (30, None, ["Action", "War", "Drama"])],
    },
    "movielens-csv": {
        "log": [(1, 10, 978300760), (2, 20, 978300100), (1, 30, 978300100), (2, 10, 978300400)],
        "item": [(10, 1990, ["Drama", "Comedy"]), (20, 2000, ["Musical"]), (30, None, [])],
    },
}


@pytest.mark.parametrize("name", MOVIELENS)
def test_movielens_values(name: str, write: Write) -> None:
    tables = read(sound(name, write))
    values = {part: list(zip(*table.to_pydict().values(), strict=True)) for part, table in tables.items()}
    assert values == MOVIELENS[name]


@pytest.mark.parametrize(
    "age, bucket",
    [
        (0, "<1"), (1, "1-7"), (7, "1-7"), (8, "8-16"), (16, "8-16"), (17, "17-29"), (29, "17-29"), (30, "30-39"),
        (39, "30-39"), (40, "40-49"), (49, "40-49"), (50, "50-59"), (59, "50-59"), (60, "60+"), (99, "60+"),
    ],
)  # fmt: skip
def test_ages_of_100k_fall_into_eight_buckets(age: int, bucket: str, put: Write) -> None:
    raw = put({**Movielens.specimen(), "u.user": f"1|{age}||student|00000\n".encode()})
    (table,) = Movielens(raw).entities("user")
    assert table.to_pylist() == [{"user_id": 1, "age": bucket, "gender": None, "occupation": "student"}]


@pytest.mark.parametrize(
    "title, decade",
    [
        ("Film (1999)", 1990), ("Film (2000)", 2000), ("1984 (1956)", 1950), ("(500) Days (2009)", 2000),
        ("Film (1931) (V)", 1930), ("Film (1950) (1995)", 1990), ("Film (1996) ", 1990), ("Series (2009– )", 2000),
        ("Series (1989-2001)", 1980), ("Film", None), ("2001", None), ("Film (19955)", None), ("Film (199)", None),
    ],
)  # fmt: skip
def test_decades_of_titles(title: str, decade: int | None, put: Write) -> None:
    raw = put({**CSV, "movies.csv": f'movieId,title,genres\n1,"{title}",Drama\n'.encode()})
    (table,) = Movielens(raw).entities("item")
    assert table["decade"].to_pylist() == [decade]


def with_line(files: Files, file: str, line: str, number: int) -> Files:
    """The files with one line put in, to stand at `number` from 1."""
    lines = files[file].splitlines(keepends=True)
    return {**files, file: b"".join([*lines[: number - 1], line.encode("latin-1") + b"\n", *lines[number - 1 :]])}


@pytest.mark.parametrize(
    "files, file, line, number, why",
    [
        (Movielens.specimen(), "u.data", "1\t10\t5", 1, "is not 4 fields (user_id, movie_id, rating, timestamp)"),
        (Movielens.specimen(), "u.data", "1\t10\t5\t6\t7", 2, "is not 4 fields"),
        (Movielens.specimen(), "u.data", "", 2, "is not 4 fields"),
        (Movielens.specimen(), "u.data", "\t10\t5\t6", 3, "user_id is not an integer"),
        (Movielens.specimen(), "u.data", "1\t1.5\t5\t6", 1, "movie_id is not an integer"),
        (Movielens.specimen(), "u.data", "1\t10\t5\t 6", 1, "timestamp is not an integer"),
        (Movielens.specimen(), "u.data", "1\t10\t5\t9999999999999999999", 1, "timestamp is not an integer"),
        (Movielens.specimen(), "u.data", "1\t10\té\t6", 1, "is not utf-8 text"),
        (Movielens.specimen(), "u.user", "3|old|F|writer|0", 2, "age is not an integer"),
        (Movielens.specimen(), "u.item", "40|A film (1990)|||u|0|1", 2, "is not 8 fields"),
        (Movielens.specimen(), "u.item", "40|A film (1990)|||u|0|1|yes", 2, "Drama is not an integer"),
        (ONE_MILLION, "ratings.dat", "1:10:5:6", 2, "is not 4 fields"),
        (ONE_MILLION, "movies.dat", "1::A film (1990)", 2, "is not 3 fields (movie_id, title, genres)"),
        (ONE_MILLION, "users.dat", "::F::1::10::0", 3, "user_id is not an integer"),
        (CSV, "ratings.csv", "1,10,5.0,soon", 2, "timestamp is not an integer"),
        (CSV, "movies.csv", "5,Film, The (1990),Drama", 3, "is not 3 fields"),
        (CSV, "movies.csv", '5,"Film, The (1990),Drama', 4, "is not 3 fields"),
    ],
)
def test_malformed_lines(files: Files, file: str, line: str, number: int, why: str, put: Write) -> None:
    log = next(iter(files))
    whole = {**files, log: mended(log, files[log])}
    raw = put(with_line(whole, file, line, number))
    with pytest.raises(DataError, match=re.escape(f"{raw}/{file}, row {number}: {why}")):
        read(Movielens(raw))
    lenient = Movielens(raw, "skip")
    tables = read(lenient)
    assert lenient.bad == Counter({file: 1})
    put(whole)
    assert all(table.equals(tables[part]) for part, table in read(Movielens(raw)).items())


def test_every_broken_line_is_counted_with_its_number(put: Write) -> None:
    lines = [f"{i}\t{i}\t1\t{i}" if i % 1000 else "?" for i in range(1, 300_001)]
    raw = put({**Movielens.specimen(), "u.data": "\n".join(lines).encode()})
    dataset = Movielens(raw, "skip")
    tables = list(dataset.rows())
    assert max(map(len, tables)) <= CHUNK
    assert pa.concat_tables(tables)["user_id"].to_pylist() == [i for i in range(1, 300_001) if i % 1000]
    assert dataset.bad == Counter({"u.data": 300})
    lines[999::1000] = [str(i) + "\t1\t1\t1" for i in range(300)]
    lines[250_000] = "?"
    put({"u.data": "\n".join(lines).encode()})
    with pytest.raises(DataError, match="u.data, row 250001: "):
        list(Movielens(raw).rows())


@pytest.mark.parametrize("file", ["ratings.csv", "movies.csv"])
def test_every_column_of_a_header_is_needed(file: str, put: Write) -> None:
    header = CSV[file].split(b"\r\n")[0].decode()
    for column in header.split(","):
        raw = put({**CSV, file: CSV[file].replace(header.encode(), header.replace(column, "other").encode())})
        if column == "rating":
            Movielens(raw).layout()
        else:
            with pytest.raises(DataError, match=rf"{file}: no column '{column}'; there are: .*other"):
                Movielens(raw).layout()


def test_an_unknown_folder_names_the_files_looked_for(put: Write) -> None:
    raw = put({"clicks.txt": b""})
    with pytest.raises(
        DataError, match=r"u\.data \(100K\) or ratings\.dat \(1M\) or ratings\.csv \(csv\).* clicks\.txt"
    ):
        Movielens(raw).layout()


def test_two_releases_in_one_folder_are_an_error(put: Write) -> None:
    raw = put({**ONE_MILLION, **CSV})
    with pytest.raises(DataError, match=r"ratings\.dat and ratings\.csv are of different releases"):
        Movielens(raw).layout()


def test_genres_out_of_order_are_an_error(put: Write) -> None:
    raw = put({**Movielens.specimen(), "u.genre": b"unknown|0\nDrama|2\nComedy|1\n"})
    with pytest.raises(DataError, match="u.genre, row 2: "):
        list(Movielens(raw).entities("item"))
