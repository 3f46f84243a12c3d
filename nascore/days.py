"""Day partitions: folders `day=2026-01-30` of one day each, which of them are whole, and when their rows happened."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DAY = 86_400
COLUMN, SUCCESS = "day", "_SUCCESS"
FOLDER = re.compile(r"day=(\d{4}-\d{2}-\d{2})/(.+)")


def dates(text: str) -> tuple[str, ...]:
    """The dates of "2026-01-30+2026-01-31", rising; raises ValueError for what is none."""
    found = sorted(date.fromisoformat(one).isoformat() for one in text.split("+")) if text else []
    if len({*found}) < len(found):
        raise ValueError(f"days={text}: a day is named twice")
    return tuple(found)


def day_of(file: str) -> str:
    """The day of a file's folder; "" where it is in none."""
    found = FOLDER.fullmatch(file)
    return found[1] if found else ""


def complete(files: Iterable[str], before: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The days before a date that are whole, rising: those marked by `_SUCCESS` where any is, else all with files.

    Besides, the days that are marked but have no parquet file.
    """
    found = [found for file in files if (found := FOLDER.fullmatch(file)) and found[1] < before]
    marked = {one[1] for one in found if one[2] == SUCCESS}
    filled = {one[1] for one in found if one[2].endswith(".parquet")}
    return tuple(sorted(filled & marked if marked else filled)), tuple(sorted(marked - filled))


class Clock:
    """When the rows of day partitions happened, in seconds since 1970, never outside the day of their folder.

    open, files: the partitions' files, those of a day in their order; a row without a time of its own lies as far into
    its day as into the day's rows.
    """

    def __init__(self, open: Callable[[str], IO[bytes]], files: Sequence[str]) -> None:
        self.before, self.rows = dict[str, int](), dict[str, int]()
        for file in files:
            with open(file) as stream:
                rows, day = pq.read_metadata(stream).num_rows, day_of(file)
            self.before[file] = self.rows.get(day, 0)
            self.rows[day] = self.before[file] + rows

    def seconds(self, file: str, first: int, count: int, micros: pa.Array | None = None) -> pa.Array:
        """Those of `count` rows of a file from the `first` on, which counts from 1; int64.

        micros: their own times, in microseconds since 1970.
        """
        start = int(datetime.combine(date.fromisoformat(day_of(file)), time(), UTC).timestamp())
        if micros is not None:
            inside = np.asarray(micros.fill_null(0)) // 1_000_000 - start
        else:
            place = self.before[file] + first - 1 + np.arange(count, dtype=np.int64)
            inside = DAY * place // max(1, self.rows[day_of(file)])
        return pa.array(start + np.clip(inside, 0, DAY - 1))


def latest(days: Sequence[str], count: int) -> tuple[str, ...]:
    """The last `count` of some days."""
    return tuple(sorted(days)[-count:])
