"""MovieLens: three official formats, their values, and their malformed lines."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nascore import datasets
from nascore.datasets import CHUNK, DataError, Feature, Layout
from nascore.datasets.movielens import Movielens

Files = dict[str, bytes]
Write = Callable[[Files], str]
HUNDRED_K: Files = {
    **Movielens.specimen(),
    "u.data": b"1\t10\t5\t880000300\n2\t30\t3\t880000100\n1\t20\t4\t880000100\n2\t10\t1\t880000400\n",
}
ONE_MILLION: Files = {
    "ratings.dat": b"1::10::5::978300760\n2::20::3::978300100\n1::30::4::978300100\n2::10::1::978300400\n",
    "users.dat": b"1::F::1::10::00000\n2::M::56::16::00000-1234\n",
    "movies.dat": (
        "10::First: a Film (1995)::Drama|Comedy\n20::Café (1st) (2000)::Musical\n30::No year::Action|War|Drama\n"
    ).encode("latin-1"),
}
CSV: Files = {
    "ratings.csv": (
        b"userId,movieId,rating,timestamp\r\n1,10,5.0,978300760\r\n2,20,3.5,978300100\r\n1,30,4.0,978300100\r\n"
        b"2,10,0.5,978300400\r\n"
    ),
    "movies.csv": (
        "movieId,title,genres\r\n"
        '10,"First Film, The (1995)",Drama|Comedy\r\n'
        '20,"The ""Café"" (2006–2007)",Musical\r\n'
        "30,No year,(no genres listed)\r\n"
    ).encode(),
}
RELEASES = {"100K": HUNDRED_K, "1M": ONE_MILLION, "csv": CSV}


@pytest.fixture
def put(tmp_path: Path) -> Write:
    """Writes files to a folder on the disk and returns it."""

    def written(files: Files) -> str:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    return written


def read(dataset: Movielens) -> dict[str, pa.Table]:
    """Everything a dataset holds, by table."""
    tables = {"log": list(dataset.rows()), **{side: list(dataset.entities(side)) for side in ("user", "item")}}
    return {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}


ABOUT_ITEMS = (Feature("movie_id", "item"), Feature("decade", "item"), Feature("genres", "item", "set"))
ABOUT_USERS = tuple(Feature(name, "user") for name in ("user_id", "age", "gender", "occupation"))


@pytest.mark.parametrize(
    "release, features",
    [
        ("100K", ABOUT_USERS + ABOUT_ITEMS),
        ("1M", ABOUT_USERS + ABOUT_ITEMS),
        ("csv", ABOUT_USERS[:1] + ABOUT_ITEMS),
    ],
)
def test_layout(release: str, features: tuple[Feature, ...], put: Write) -> None:
    history = ("movie_id", "decade", "genres")
    expected = Layout("user_id", "movie_id", "timestamp", features, history=history, history_length=20)
    assert Movielens(put(RELEASES[release])).layout() == expected


VALUES: dict[str, dict[str, list[tuple[Any, ...]]]] = {
    "100K": {
        "log": [(1, 10, 880000300), (2, 30, 880000100), (1, 20, 880000100), (2, 10, 880000400)],
        "user": [(1, "1-7", "F", "student"), (2, "60+", "M", "writer")],
        "item": [(10, 1990, ["Comedy", "Drama"]), (20, 1960, ["Drama"]), (30, None, ["unknown"])],
    },
    "1M": {
        "log": [(1, 10, 978300760), (2, 20, 978300100), (1, 30, 978300100), (2, 10, 978300400)],
        "user": [(1, "1", "F", "10"), (2, "56", "M", "16")],
        "item": [(10, 1990, ["Drama", "Comedy"]), (20, 2000, ["Musical"]), (30, None, ["Action", "War", "Drama"])],
    },
    "csv": {
        "log": [(1, 10, 978300760), (2, 20, 978300100), (1, 30, 978300100), (2, 10, 978300400)],
        "item": [(10, 1990, ["Drama", "Comedy"]), (20, 2000, ["Musical"]), (30, None, [])],
    },
}


@pytest.mark.parametrize("block_bytes", [1, 40, datasets.BLOCK_BYTES])
@pytest.mark.parametrize("release", RELEASES)
def test_values(release: str, block_bytes: int, put: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    tables = read(Movielens(put(RELEASES[release])))
    values = {part: list(zip(*table.to_pydict().values(), strict=True)) for part, table in tables.items()}
    assert values == VALUES[release]


@pytest.mark.parametrize("release", RELEASES)
def test_every_file_is_needed(release: str, put: Write) -> None:
    raw = put(RELEASES[release])
    for file, content in RELEASES[release].items():
        (Path(raw) / file).unlink()
        with pytest.raises(DataError, match=rf"there is no .*{re.escape(file)}"):
            Movielens(raw).layout()
        put({file: content})


@pytest.mark.parametrize(
    "age, bucket",
    [
        (0, "<1"), (1, "1-7"), (7, "1-7"), (8, "8-16"), (16, "8-16"), (17, "17-29"), (29, "17-29"), (30, "30-39"),
        (39, "30-39"), (40, "40-49"), (49, "40-49"), (50, "50-59"), (59, "50-59"), (60, "60+"), (99, "60+"),
    ],
)  # fmt: skip
def test_ages_of_100k_fall_into_eight_buckets(age: int, bucket: str, put: Write) -> None:
    raw = put({**HUNDRED_K, "u.user": f"1|{age}||student|00000\n".encode()})
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
        (HUNDRED_K, "u.data", "1\t10\t5", 1, "is not 4 fields (user_id, movie_id, rating, timestamp)"),
        (HUNDRED_K, "u.data", "1\t10\t5\t6\t7", 2, "is not 4 fields"),
        (HUNDRED_K, "u.data", "", 2, "is not 4 fields"),
        (HUNDRED_K, "u.data", "\t10\t5\t6", 3, "user_id is not an integer"),
        (HUNDRED_K, "u.data", "1\t1.5\t5\t6", 1, "movie_id is not an integer"),
        (HUNDRED_K, "u.data", "1\t10\t5\t 6", 1, "timestamp is not an integer"),
        (HUNDRED_K, "u.data", "1\t10\t5\t9999999999999999999", 1, "timestamp is not an integer"),
        (HUNDRED_K, "u.data", "1\t10\té\t6", 1, "is not utf-8 text"),
        (HUNDRED_K, "u.user", "3|old|F|writer|0", 2, "age is not an integer"),
        (HUNDRED_K, "u.item", "40|A film (1990)|||u|0|1", 2, "is not 8 fields"),
        (HUNDRED_K, "u.item", "40|A film (1990)|||u|0|1|yes", 2, "Drama is not an integer"),
        (ONE_MILLION, "ratings.dat", "1:10:5:6", 2, "is not 4 fields"),
        (ONE_MILLION, "movies.dat", "1::A film (1990)", 2, "is not 3 fields (movie_id, title, genres)"),
        (ONE_MILLION, "users.dat", "::F::1::10::0", 3, "user_id is not an integer"),
        (CSV, "ratings.csv", "1,10,5.0,soon", 2, "timestamp is not an integer"),
        (CSV, "movies.csv", "5,Film, The (1990),Drama", 3, "is not 3 fields"),
        (CSV, "movies.csv", '5,"Film, The (1990),Drama', 4, "is not 3 fields"),
    ],
)
def test_malformed_lines(files: Files, file: str, line: str, number: int, why: str, put: Write) -> None:
    raw = put(with_line(files, file, line, number))
    with pytest.raises(DataError, match=re.escape(f"{raw}/{file}, row {number}: {why}")):
        read(Movielens(raw))
    lenient = Movielens(raw, "skip")
    tables = read(lenient)
    assert lenient.bad == Counter({file: 1})
    put(files)
    assert all(table.equals(tables[part]) for part, table in read(Movielens(raw)).items())


def test_every_broken_line_is_counted_with_its_number(put: Write) -> None:
    lines = [f"{i}\t{i}\t1\t{i}" if i % 1000 else "?" for i in range(1, 300_001)]
    raw = put({**HUNDRED_K, "u.data": "\n".join(lines).encode()})
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
    raw = put({**HUNDRED_K, "u.genre": b"unknown|0\nDrama|2\nComedy|1\n"})
    with pytest.raises(DataError, match="u.genre, row 2: "):
        list(Movielens(raw).entities("item"))


@pytest.mark.data
@pytest.mark.parametrize("release, counts", [("ml-100k", (100_000, 943, 1682)), ("ml-1m", (1_000_209, 6040, 3883))])
def test_the_real_releases(release: str, counts: tuple[int, int, int], data_folder: Path) -> None:
    dataset = Movielens(str(data_folder / release))
    tables = read(dataset)
    assert tuple(len(tables[part]) for part in ("log", "user", "item")) == counts
    assert not dataset.bad
    log, users, items = tables["log"], tables["user"], tables["item"]
    assert len(pc.unique(log["user_id"])) == counts[1]
    assert set(pc.unique(log["movie_id"]).to_pylist()) <= set(items["movie_id"].to_pylist())
    bare = Path(data_folder / release / ("u.data" if release == "ml-100k" else "ratings.dat")).read_text().splitlines()
    for row in (0, 1, len(bare) // 2, len(bare) - 1):
        fields = [int(field) for field in re.split(r"\t|::", bare[row])]
        assert list(log.slice(row, 1).to_pylist()[0].values()) == [fields[0], fields[1], fields[3]]
    assert items["decade"].null_count == (1 if release == "ml-100k" else 0)
    first = Counter(genres[0] for genres in items["genres"].to_pylist())
    by_id = dict(zip(items["movie_id"].to_pylist(), items["genres"].to_pylist(), strict=True))
    assert by_id[1] == ["Animation", "Children's", "Comedy"] and sum(first.values()) == counts[2]
    assert len({genre for genres in by_id.values() for genre in genres}) == (19 if release == "ml-100k" else 18)
    assert len(pc.unique(users["age"])) == 7 and len(pc.unique(users["occupation"])) == 21
