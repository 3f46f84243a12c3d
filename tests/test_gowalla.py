"""Gowalla: values of its file, the filter, and lines that are none."""

import bz2
import gzip
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from nascore import datasets
from nascore.datasets import DataError, Feature, Layout
from nascore.datasets.gowalla import CHECK_INS, Gowalla

Write = Callable[..., str]


def line(user: object, place: object, when: str = "2010-10-19T23:55:27Z") -> bytes:
    return f"{user}\t{when}\t30.2359091167\t-97.7951395833\t{place}\n".encode()


SMALL = line(0, 22847) + line(0, 420315, "2010-10-18T22:17:43Z") + line(1, 22847, "1969-12-31T23:59:59Z")


@pytest.fixture
def put(tmp_path: Path) -> Write:
    """Writes the check-ins to a folder on the disk and returns it."""

    def written(content: bytes, name: str = CHECK_INS) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    return written


def small(raw: str, on_bad_row: datasets.OnBadRow = "error") -> Gowalla:
    """A reader that leaves nobody out."""
    return Gowalla(raw, on_bad_row, user_rows=1, item_rows=1)


def read(dataset: Gowalla) -> pa.Table:
    return pa.concat_tables(list(dataset.rows()))


def test_layout(put: Write) -> None:
    features = (Feature("user", "user"), Feature("location_id", "item"))
    expected = Layout("user", "location_id", "timestamp", features, history=("location_id",), history_length=100)
    assert Gowalla(put(SMALL)).layout() == expected


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("block_bytes", [1, 60, datasets.BLOCK_BYTES])
def test_values(block_bytes: int, end: bytes, put: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    seconds = [int(datetime(2010, 10, *at, tzinfo=UTC).timestamp()) for at in ((19, 23, 55, 27), (18, 22, 17, 43))]
    assert read(small(put(SMALL.replace(b"\n", end)))).to_pydict() == {
        "user": [0, 0, 1],
        "location_id": [22847, 420315, 22847],
        "timestamp": [*seconds, -1],
    }


def test_the_filter_counts_once_and_keeps_repeated_check_ins(put: Write) -> None:
    rng = Random(3)
    pairs = [(int(rng.expovariate(0.1)), 500 + int(rng.expovariate(0.1))) for _ in range(400)]
    of_user, of_item = Counter(u for u, _ in pairs), Counter(p for _, p in pairs)
    expected = [(u, p) for u, p in pairs if of_user[u] >= 5 and of_item[p] >= 5]
    assert min(Counter(u for u, _ in expected).values()) < 5, "a user that stays may keep fewer"
    assert max(Counter(expected).values()) > 1
    log = read(Gowalla(put(b"".join(line(*pair) for pair in pairs))))
    assert list(zip(log["user"].to_pylist(), log["location_id"].to_pylist(), strict=True)) == expected


def test_five_check_ins_are_needed_unless_told_otherwise(put: Write) -> None:
    with pytest.raises(DataError, match="no row is left: .*user 5 and location_id 5"):
        list(Gowalla(put(line(0, 1) * 4)).rows())
    assert len(read(Gowalla(put(line(0, 1) * 5)))) == 5


@pytest.mark.parametrize(
    "wrong, why",
    [
        (b"", "is not 5 fields (user, check_in_time, latitude, longitude, location_id) separated by '\\t'"),
        (line(0, 1)[:-1] + b"\t7", "is not 5 fields"),
        (line(0, 1).rpartition(b"\t")[0], "is not 5 fields"),
        (line(0, 1).replace(b"\t", b" "), "is not 5 fields"),
        (line("ann", 1), "user is not an integer"),
        (line(0, "1.5"), "location_id is not an integer"),
        (line(0, ""), "location_id is not an integer"),
        (line("é", 1).replace("é".encode(), b"\xe9"), "is not utf-8 text"),
        *(
            (line(0, 1, when), "check_in_time is no time such as 2010-10-19T23:55:27Z")
            for when in (
                "",
                "soon",
                "2010-10-19",
                "2010-10-19 23:55:27",
                "2010-10-19T23:55:27",
                "2010-10-19T23:55:27+02:00",
                " 2010-10-19T23:55:27Z",
                "2010-1-19T23:55:27Z",
                "2010-02-30T23:55:27Z",
                "2010-10-19T24:00:00Z",
                "2010-10-19T23:55:60Z",
                "1287532527",
            )
        ),
    ],
)
def test_malformed_lines(wrong: bytes, why: str, put: Write) -> None:
    expected, rows = read(small(put(SMALL))), SMALL.splitlines(keepends=True)
    for place in range(len(rows) + 1):
        raw = put(b"".join([*rows[:place], wrong.removesuffix(b"\n") + b"\n", *rows[place:]]))
        with pytest.raises(DataError, match=re.escape(f"{raw}/{CHECK_INS}, row {place + 1}: {why}")):
            read(small(raw))
        lenient = small(raw, "skip")
        assert read(lenient).equals(expected) and lenient.bad == Counter({CHECK_INS: 1})


@pytest.mark.parametrize("ending, pack", [("gz", gzip.compress), ("bz2", bz2.compress)])
def test_the_file_may_be_packed_but_not_there_twice(ending: str, pack: Callable[[bytes], bytes], put: Write) -> None:
    raw = put(pack(SMALL), f"{CHECK_INS}.{ending}")
    assert small(raw).layout().user == "user" and len(read(small(raw))) == 3
    put(SMALL)
    with pytest.raises(DataError, match=rf"{CHECK_INS} and {CHECK_INS}\.{ending} are there; keep one"):
        Gowalla(raw).layout()
