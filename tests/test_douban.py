"""Douban: comments with commas, quotes and line breaks, the filter, and records that are none."""

import csv
import gzip
import io
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
from nascore.datasets import DataError, Feature, Layout, douban
from nascore.datasets.douban import COMMENTS, Douban

Write = Callable[..., str]
NAMES = (
    "ID", "Movie_Name_EN", "Movie_Name_CN", "Crawl_Date", "Number", "Username", "Date", "Star", "Comment", "Like"
)  # fmt: skip
HEAD = ",".join(NAMES).encode() + b"\n"


def record(user: str = "Ann", film: str = "Zootopia", day: str = "2016-03-04", comment: str = "不错") -> bytes:
    text = io.StringIO()
    fields = (7, film, "疯狂动物城", "2017-01-22", 1, user, day, 4, comment, 0)
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()


UNUSUAL = ('He said "no", twice.', "One\nand\n\nmore", '"', '","', "\n", "", "\u2028 \x0b \x1c", "a\r\nb", "c\rd")
LONG = HEAD + b"".join(record(f"u{place}", comment=comment) for place, comment in enumerate(UNUSUAL))
ROWS = (record("Ann", "Big Hero 6", "2015-05-13"), record("小雨", comment="Fine,\nreally."), record(day="1970-01-02"))
SMALL = HEAD + b"".join(ROWS)


@pytest.fixture
def put(tmp_path: Path) -> Write:
    """Writes the comments to a folder on the disk and returns it."""

    def written(content: bytes, name: str = COMMENTS) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    return written


def small(raw: str, on_bad_row: datasets.OnBadRow = "error") -> Douban:
    """A reader that leaves nobody out."""
    return Douban(raw, on_bad_row, user_rows=1)


def read(dataset: Douban) -> pa.Table:
    return pa.concat_tables(list(dataset.rows()))


def test_layout(put: Write) -> None:
    features = (Feature("Username", "user"), Feature("Movie_Name_EN", "item"))
    layout = Douban(put(SMALL)).layout()
    assert layout == Layout("Username", "Movie_Name_EN", "timestamp", features, None, ("Movie_Name_EN",), 100)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("head", [HEAD, b"\xef\xbb\xbf" + HEAD, HEAD.replace(b"Date", b'"Date"')])
def test_values(head: bytes, end: bytes, put: Write) -> None:
    days = [datetime(2015, 5, 13, tzinfo=UTC), datetime(2016, 3, 4, tzinfo=UTC), datetime(1970, 1, 2, tzinfo=UTC)]
    assert read(small(put(SMALL.replace(HEAD, head).replace(b"\n", end)))).to_pydict() == {
        "Username": ["Ann", "小雨", "Ann"],
        "Movie_Name_EN": ["Big Hero 6", "Zootopia", "Zootopia"],
        "timestamp": [int(day.timestamp()) for day in days],
    }


def test_columns_are_found_by_their_names(put: Write) -> None:
    raw = put(b"Date,More,Movie_Name_EN,Username\n2016-03-04,,Zootopia,Ann\n")
    assert read(small(raw)).to_pylist() == [{"Username": "Ann", "Movie_Name_EN": "Zootopia", "timestamp": 1457049600}]


@pytest.mark.parametrize("block_bytes", [1, 50, datasets.BLOCK_BYTES])
def test_comments_may_hold_anything(block_bytes: int, put: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    content = LONG + record("not utf-8", comment="~~").replace(b"~~", b"\xe9\xff")
    users = [*(f"u{place}" for place in range(len(UNUSUAL))), "not utf-8"]
    assert read(small(put(content)))["Username"].to_pylist() == users


def test_memory_is_bounded(put: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more records wait than make a chunk, and no more text than a block."""
    monkeypatch.setattr(datasets, "BLOCK_BYTES", 1_000)
    monkeypatch.setattr(douban, "CHUNK", 10)
    dataset, waiting, most = small(put(HEAD + record() * 200)), Counter[str](), Counter[str]()
    records, sound, lines = dataset._records, dataset.sound, dataset.lines

    def counted(*given: Any) -> Any:
        for one in records(*given):
            waiting["records"] += 1
            most["records"] = max(most["records"], waiting["records"])
            yield one

    def released(*given: Any) -> Any:
        waiting["records"] = 0
        return sound(*given)

    def measured(*given: Any) -> Any:
        for first, block in lines(*given):
            most["bytes"] = max(most["bytes"], block.nbytes)
            yield first, block

    for name, own in (("_records", counted), ("sound", released), ("lines", measured)):
        monkeypatch.setattr(dataset, name, own)
    assert sum(map(len, dataset.rows())) == 200
    assert most["records"] == 10 and most["bytes"] < 2_000


def test_the_filter_counts_users_alone(put: Write) -> None:
    rng = Random(3)
    pairs = [(f"u{int(rng.expovariate(0.1))}", f"film {rng.randrange(28)}") for _ in range(300)]
    times = Counter(user for user, _ in pairs)
    expected = [pair for pair in pairs if times[pair[0]] >= 5]
    assert len(expected) < 300
    log = read(Douban(put(HEAD + b"".join(record(*pair) for pair in pairs))))
    assert list(zip(log["Username"].to_pylist(), log["Movie_Name_EN"].to_pylist(), strict=True)) == expected
    with pytest.raises(DataError, match="no row is left: .*Username 5"):
        read(Douban(put(HEAD + record() * 4)))


@pytest.mark.parametrize(
    "wrong, why",
    [
        (b"\n", "is not 10 fields (ID, Movie_Name_EN, "),
        (record().replace(b",4,", b",4,5,"), "is not 10 fields"),
        (record().replace(b",4,", b","), "is not 10 fields"),
        (record(comment="Fine, really").replace(b'"', b""), "is not 10 fields"),
        (record(comment="x" * (csv.field_size_limit() + 1)), "is not 10 fields"),
        (record(user=""), "Username is missing"),
        (record(film=""), "Movie_Name_EN is missing"),
        (record("~").replace(b"~", b"\xe9"), "Username is not utf-8 text"),
        (record(film="~").replace(b"~", b"\xe9"), "Movie_Name_EN is not utf-8 text"),
        *(
            (record(day=day), "Date is no day such as 2017-01-22")
            for day in ("", "2016", "2016-3-4", "2016-02-30", "2016-03-04 05:06:07", "04/03/2016", "20160304", "~")
        ),
    ],
)
def test_malformed_records_are_named_by_the_line_where_they_begin(wrong: bytes, why: str, put: Write) -> None:
    expected = read(small(put(SMALL)))
    for place, number in ((0, 2), (1, 3), (2, 5), (3, 6)):
        raw = put(b"".join([HEAD, *ROWS[:place], wrong, *ROWS[place:]]))
        with pytest.raises(DataError, match=re.escape(f"{raw}/{COMMENTS}, row {number}: {why}")):
            read(small(raw))
        lenient = small(raw, "skip")
        assert read(lenient).equals(expected) and lenient.bad == Counter({COMMENTS: 1})


@pytest.mark.parametrize("name", ["Username", "Movie_Name_EN", "Date"])
def test_three_columns_are_needed(name: str, put: Write) -> None:
    raw = put(SMALL.replace(f",{name},".encode(), b",Nothing,"))
    with pytest.raises(DataError, match=f"{COMMENTS}: no column '{name}'; there are: ID, "):
        Douban(raw).layout()


@pytest.mark.parametrize("content", [b"", HEAD])
def test_a_file_without_records_is_an_error(content: bytes, put: Write) -> None:
    with pytest.raises(DataError, match="no column 'Username'" if not content else "no row is left"):
        list(Douban(put(content)).rows())


def test_the_file_may_be_packed_but_not_there_twice(put: Write) -> None:
    raw = put(gzip.compress(SMALL), f"{COMMENTS}.gz")
    assert small(raw).layout().user == "Username" and len(read(small(raw))) == 3
    put(SMALL)
    with pytest.raises(DataError, match=rf"{COMMENTS} and {COMMENTS}\.gz are there; keep one"):
        Douban(raw).layout()
