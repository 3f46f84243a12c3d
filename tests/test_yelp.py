"""Yelp: values of its three files, the filter, malformed lines, and how JSON lines are read."""

import bz2
import gzip
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from nascore import datasets
from nascore.datasets import CHUNK, DataError, Feature, Layout
from nascore.datasets.yelp import REVIEWS, TABLES, Yelp

Files = dict[str, bytes]
Write = Callable[[Files], str]
USERS, BUSINESSES = TABLES["user"], TABLES["item"]


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def review(user: str, business: str, date: str = "2019-01-02 03:04:05", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "business_id": business, "date": date, "useful": 99, **more}


def user(name: str, **changes: Any) -> dict[str, Any]:
    about = {"review_count": 3, "yelping_since": "2012-05-06 07:08:09", "useful": 4, "funny": 5, "cool": 6}
    return {"user_id": name, **about, **changes}


def business(name: str, **changes: Any) -> dict[str, Any]:
    about = {"city": "Reno", "state": "NV", "stars": 3.5, "review_count": 7, "is_open": 1}
    return {"business_id": name, **about, **changes}


SMALL: Files = {
    REVIEWS: lines(review("u", "a"), review("v", "b"), review("u", "b"), review("v", "a")),
    USERS: lines(user("u"), user("v")),
    BUSINESSES: lines(business("a"), business("b")),
}


@pytest.fixture
def put(tmp_path: Path) -> Write:
    """Writes files to a folder on the disk and returns it."""

    def written(files: Files) -> str:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    return written


def small(raw: str, on_bad_row: datasets.OnBadRow = "error") -> Yelp:
    """A reader that leaves nobody out."""
    return Yelp(raw, on_bad_row, user_rows=1, item_rows=1)


def read(dataset: Yelp) -> dict[str, pa.Table]:
    """Everything a dataset holds, by table."""
    tables = {"log": list(dataset.rows()), **{side: list(dataset.entities(side)) for side in ("user", "item")}}
    return {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}


def test_layout(put: Write) -> None:
    about_users = ("user_review_count", "yelping_since", "useful", "funny", "cool")
    features = (
        Feature("user_id", "user"),
        *(Feature(name, "user", "number", 100) for name in about_users),
        *(Feature(name, "item") for name in ("business_id", "city", "state")),
        Feature("stars", "item", "number", 5),
        Feature("item_review_count", "item", "number", 20),
        Feature("is_open", "item"),
    )
    history = ("business_id", "city", "state", "stars", "item_review_count", "is_open")
    expected = Layout("user_id", "business_id", "timestamp", features, history=history, history_length=40)
    assert Yelp(put(SMALL)).layout() == expected


@pytest.mark.parametrize("block_bytes", [1, 300, datasets.BLOCK_BYTES])
def test_values_of_the_specimen(block_bytes: int, put: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    tables = read(Yelp(put(Yelp.specimen()), "skip"))
    log = tables["log"].to_pylist()
    assert len(log) == 40 and {row["business_id"] for row in log} == {"bar", "inn"}
    second = datetime(2019, 2, 11, 12, 0, 1, tzinfo=UTC)
    assert log[4] == {"user_id": "ann", "business_id": "bar", "timestamp": int(second.timestamp())}
    assert tables["user"].to_pylist() == [
        {
            "user_id": name, "user_review_count": count, "yelping_since": int(since.timestamp()),
            "useful": useful, "funny": funny, "cool": cool,
        }
        for name, count, since, useful, funny, cool in (
            ("ann", 21, datetime(2012, 5, 6, 7, 8, 9, tzinfo=UTC), 3, 0, 1),
            ("bob", 50, datetime(2015, 1, 1, tzinfo=UTC), 9, 2, 7),
        )
    ]  # fmt: skip
    names = ("business_id", "city", "state", "stars", "item_review_count", "is_open")
    bar, inn = ("bar", "Montréal", "QC", 4.5, 30, 1), ("inn", None, "NV", 3.0, 25, 0)
    assert tables["item"].to_pylist() == [dict(zip(names, row, strict=True)) for row in (bar, inn)]


def test_votes_are_the_users_and_not_those_of_the_review(put: Write) -> None:
    tables = read(small(put(SMALL)))
    assert tables["log"].column_names == ["user_id", "business_id", "timestamp"]
    assert tables["user"]["useful"].to_pylist() == [4, 4]


def test_the_filter_counts_once_and_keeps_repeated_reviews(put: Write) -> None:
    rng = Random(3)
    pairs = [(f"u{int(rng.expovariate(0.2))}", f"b{int(rng.expovariate(0.1))}") for _ in range(600)]
    of_user, of_item = Counter(u for u, _ in pairs), Counter(b for _, b in pairs)
    expected = [(u, b) for u, b in pairs if of_user[u] >= 20 and of_item[b] >= 12]
    left = Counter(u for u, _ in expected), Counter(b for _, b in expected)
    assert min(left[0].values()) < 20 or min(left[1].values()) < 12
    assert max(Counter(expected).values()) > 1
    names = sorted(of_user), sorted(of_item)
    files = {
        REVIEWS: lines(*(review(u, b) for u, b in pairs)),
        USERS: lines(*(user(name) for name in names[0])),
        BUSINESSES: lines(*(business(name) for name in names[1])),
    }
    tables = read(Yelp(put(files), user_rows=20, item_rows=12))
    log = tables["log"]
    assert list(zip(log["user_id"].to_pylist(), log["business_id"].to_pylist(), strict=True)) == expected
    assert tables["user"]["user_id"].to_pylist() == [name for name in names[0] if of_user[name] >= 20]
    assert tables["item"]["business_id"].to_pylist() == [name for name in names[1] if of_item[name] >= 12]


def test_twenty_reviews_are_needed_unless_told_otherwise(put: Write) -> None:
    nineteen = {**SMALL, REVIEWS: lines(*[review("u", "a")] * 19)}
    with pytest.raises(DataError, match="no row is left: .*user_id 20 and business_id 20"):
        list(Yelp(put(nineteen)).rows())
    twenty = {**SMALL, REVIEWS: lines(*[review("u", "a")] * 20)}
    tables = read(Yelp(put(twenty)))
    assert len(tables["log"]) == 20
    assert tables["user"]["user_id"].to_pylist() == ["u"] and tables["item"]["business_id"].to_pylist() == ["a"]


def test_tables_are_read_once_an_entity_and_may_lack_some(put: Write) -> None:
    files = {
        REVIEWS: SMALL[REVIEWS],
        USERS: lines(user("v", cool=1), user("v", cool=2), user("w")),
        BUSINESSES: lines({"business_id": "b"}, business("b"), business("a", city=None)),
    }
    tables = read(small(put(files)))
    assert tables["user"]["user_id"].to_pylist() == ["v"] and tables["user"]["cool"].to_pylist() == [1]
    assert tables["item"]["business_id"].to_pylist() == ["b", "a"]
    assert tables["item"]["city"].to_pylist() == [None, None] and tables["item"]["stars"].to_pylist() == [None, 3.5]
    assert len(tables["log"]) == 4


@pytest.mark.parametrize(
    "file, line, why",
    [
        (REVIEWS, b"", "is not a JSON object"),
        (REVIEWS, b"null", "is not a JSON object"),
        (REVIEWS, b"[]", "is not a JSON object"),
        (REVIEWS, b"5", "is not a JSON object"),
        (REVIEWS, lines(review("u", "a"))[:-3], "is not a JSON object"),
        (REVIEWS, lines(review("u", "a"))[:-1] * 2, "is not a JSON object"),
        (REVIEWS, b'{"a":' * 100_000, "is not a JSON object"),
        (REVIEWS, lines({"user_id": "u", "date": "2019-01-02"}), "business_id is missing"),
        (REVIEWS, lines(review("", "a")), "user_id is missing"),
        (REVIEWS, lines(review("u", "a", date=None)), "date is missing"),
        (REVIEWS, lines(review("u", "a", date="soon")), "date is not of type timestamp[s]"),
        (REVIEWS, lines(review("u", "a", date="2019-02-30 00:00:00")), "date is not of type timestamp[s]"),
        (REVIEWS, lines(review("u", "a", date=1546398245)), "date is not of type timestamp[s]"),
        (REVIEWS, lines(review("u", 5)), "business_id is not of type string"),
        (REVIEWS, lines(review("u", "\ud83d")), "business_id is not of type string"),
        (USERS, lines({"review_count": 3}), "user_id is missing"),
        (USERS, lines(user("u", cool="many")), "cool is not of type int64"),
        (USERS, lines(user("u", review_count=1.5)), "review_count is not of type int64"),
        (BUSINESSES, lines(business("a", stars="4")), "stars is not of type double"),
        (BUSINESSES, lines(business("a", city={"name": "Reno"})), "city is not of type string"),
    ],
)
def test_malformed_lines(file: str, line: bytes, why: str, put: Write) -> None:
    rows = SMALL[file].splitlines(keepends=True)
    for place in range(len(rows) + 1):
        raw = put({**SMALL, file: b"".join([*rows[:place], line.removesuffix(b"\n") + b"\n", *rows[place:]])})
        with pytest.raises(DataError, match=re.escape(f"{raw}/{file}, row {place + 1}: {why}")):
            read(small(raw))
        lenient = small(raw, "skip")
        tables = read(lenient)
        assert lenient.bad == Counter({file: 1})
        assert all(table.equals(tables[part]) for part, table in read(small(put(SMALL))).items())


def test_every_broken_line_is_counted_with_its_number(put: Write) -> None:
    rows = [lines(review(f"u{i}", "a")) if i % 1000 else b"?\n" for i in range(1, 150_001)]
    dataset = small(put({**SMALL, REVIEWS: b"".join(rows)}), "skip")
    tables = list(dataset.rows())
    assert [len(table) for table in tables] == [CHUNK, 149_850 - CHUNK]
    assert pa.concat_tables(tables)["user_id"].to_pylist() == [f"u{i}" for i in range(1, 150_001) if i % 1000]
    assert dataset.bad == Counter({REVIEWS: 150})
    rows[999::1000] = [lines(review("u", "a"))] * 150
    rows[120_000] = b"?\n"
    with pytest.raises(DataError, match=f"{REVIEWS}, row 120001: "):
        list(small(put({REVIEWS: b"".join(rows)})).rows())


@pytest.mark.parametrize(
    "line",
    [
        b'{"user_id":"u","business_id":"a","date":"2019-01-02 03:04:05","text":"half of a pair: \\ud83d"}',
        b'{"user_id":"u","business_id":"a","date":"2019-01-02 03:04:05","text":"tab\tand\x01"}',
        b'{"user_id":"u","business_id":"a","date":"2019-01-02 03:04:05","text":"no utf-8: \xe9"}',
        b'{"user_id":"u","business_id":"a","date":"2019-01-02 03:04:05","user_id":"u"}',
        b' {"date" : "2019-01-02 03:04:05", "user_id" : "\\u0075", "business_id" : "a"} ',
        b'\xef\xbb\xbf{"user_id":"u","business_id":"a","date":"2019-01-02 03:04:05"}\r',
        b'{"user_id":"u","business_id":"a","date":"2019-01-02T03:04:05Z","x":{"date":5,"y":[null,{}]}}',
    ],
)
@pytest.mark.parametrize("beside", [b"", b"null\n"], ids=["alone", "beside a broken line"])
def test_unusual_lines_are_read_wherever_they_stand(line: bytes, beside: bytes, put: Write) -> None:
    (table,) = small(put({**SMALL, REVIEWS: line + b"\n" + beside}), "skip").rows()
    assert table.to_pylist() == [{"user_id": "u", "business_id": "a", "timestamp": 1546398245}]


def test_bytes_that_are_not_utf_8_are_replaced(put: Write) -> None:
    (table,) = small(put({**SMALL, REVIEWS: lines(review("u~", "a")).replace(b"~", b"\xe9")})).rows()
    assert table["user_id"].to_pylist() == ["u\ufffd"]


def test_a_date_alone_is_midnight(put: Write) -> None:
    files = {
        **SMALL,
        REVIEWS: lines(review("u", "a", "2019-01-02")),
        USERS: lines(user("u", yelping_since="1970-01-02")),
    }
    tables = read(small(put(files)))
    assert tables["log"]["timestamp"].to_pylist() == [1546387200]
    assert tables["user"]["yelping_since"].to_pylist() == [86_400]


@pytest.mark.parametrize("file", SMALL)
def test_every_field_is_needed(file: str, put: Write) -> None:
    rows = [json.loads(row) for row in SMALL[file].splitlines()]
    for field in rows[0]:
        raw = put({**SMALL, file: lines(*({k: v for k, v in row.items() if k != field} for row in rows))})
        if file == REVIEWS and field == "useful":
            Yelp(raw).layout()
        else:
            with pytest.raises(DataError, match=rf"{file}: no column '{field}'; there are: "):
                Yelp(raw).layout()


@pytest.mark.parametrize("content", [b"", b"<html>\n", b"null\n"])
def test_a_file_without_objects_is_an_error(content: bytes, put: Write) -> None:
    with pytest.raises(DataError, match=f"{USERS}: no column 'user_id'"):
        Yelp(put({**SMALL, USERS: content})).layout()


@pytest.mark.parametrize("ending, pack", [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_files_may_be_packed(ending: str, pack: Callable[[bytes], bytes], put: Write, tmp_path: Path) -> None:
    expected = read(small(put(SMALL)))
    raw = tmp_path / "packed"
    raw.mkdir()
    for name, content in SMALL.items():
        (raw / f"{name}.{ending}").write_bytes(pack(content))
    dataset = small(str(raw))
    assert dataset.layout().user == "user_id"
    assert all(table.equals(expected[part]) for part, table in read(dataset).items())


def test_a_file_that_is_there_twice_is_an_error(put: Write) -> None:
    raw = put({**SMALL, f"{REVIEWS}.gz": gzip.compress(SMALL[REVIEWS])})
    with pytest.raises(DataError, match=rf"{REVIEWS} and {REVIEWS}\.gz are there; keep one"):
        Yelp(raw).layout()
