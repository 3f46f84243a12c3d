"""Douban Movie Short Comments, as on Kaggle: DMSC.csv, comments on films with the day of each.

It holds 28 films only, so all lists are short and any ranking scores high: good for a smoke test, not for a comparison.
Every comment is a positive. Days order a user's comments, the file those of one day.
"""

import csv
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nascore.datasets import CHUNK, Dataset, Feature, Frequent, Layout, OnBadRow

USER, ITEM, DAY, TIME = "Username", "Movie_Name_EN", "Date", "timestamp"
NEEDED = (USER, ITEM, DAY)
COMMENTS = "DMSC.csv"
FORMAT = "%Y-%m-%d"


class Douban(Dataset):
    """Users of at least `user_rows` comments."""

    protocols: ClassVar[tuple[str, ...]] = ("leave_one_out", "user_temporal", "global_temporal")

    def __init__(self, raw: str, on_bad_row: OnBadRow = "error", user_rows: int = 5) -> None:
        super().__init__(raw, on_bad_row)
        self.least = {USER: user_rows}

    def layout(self) -> Layout:
        file = self.one_of(COMMENTS)
        self.require(file, NEEDED, self.header(file, ","))
        features = (Feature(USER, "user"), Feature(ITEM, "item"))
        return Layout(USER, ITEM, TIME, features, history=(ITEM,), history_length=100)

    def rows(self) -> Iterator[pa.Table]:
        yield from self._frequent.rows(self._comments())

    @cached_property
    def _frequent(self) -> Frequent:
        return Frequent(self._comments(), self.least)

    def _comments(self) -> Iterator[pa.Table]:
        file = self.one_of(COMMENTS)
        names = self.header(file, ",")
        self.require(file, NEEDED, names)
        records = self._records(file, len(names), [names.index(name) for name in NEEDED])
        count = f"is not {len(names)} fields ({', '.join(names)}), quoted where they hold ',' or a line break"
        while some := list(islice(records, CHUNK)):
            lines, fields = zip(*some, strict=True)
            whole = np.array([field is not None for field in fields])
            values = zip(*(field or ("",) * len(NEEDED) for field in fields), strict=True)
            table = pa.table({name: pa.array(column, pa.string()) for name, column in zip(NEEDED, values, strict=True)})
            time = pc.strptime(table[DAY], FORMAT, unit="s", error_is_null=True)
            same = pc.fill_null(pc.equal(pc.strftime(time, FORMAT), table[DAY]), False)
            broken = {count: ~whole}
            for name in (USER, ITEM):
                broken[f"{name} is missing"] = pc.equal(table[name], "")
                broken[f"{name} is not utf-8 text"] = pc.match_substring(table[name], "\ufffd")
            broken[f"{DAY} is no day such as 2017-01-22"] = pc.invert(same)
            columns = pa.table({USER: table[USER], ITEM: table[ITEM], TIME: time.cast(pa.int64())})
            if len(rows := self.sound(file, np.array(lines), columns, broken)):
                yield rows

    def _records(self, file: str, count: int, places: list[int]) -> Iterator[tuple[int, tuple[str, ...] | None]]:
        """The first line of each record and its fields at some places; None unless it has `count` fields.

        A carriage return by itself ends no line, so it may stand in a comment without quotes.
        """
        lines = (line.replace("\r", " ") for _, block in self.lines(file) for line in block.to_pylist())
        reader = csv.reader(f"{line}\n" for line in lines)
        next(reader, None)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error:
                fields = []
            yield line, tuple(fields[place] for place in places) if len(fields) == count else None

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        head = "ID,Movie_Name_EN,Movie_Name_CN,Crawl_Date,Number,Username,Date,Star,Comment,Like\n"
        said = {"小雨": "不错", "Ann": '"Fine, ""really"",\n\ntwice."'}
        rows = [
            f"{turn},{film},电影,2017-01-22,{turn},{user},2015-05-1{turn},3,{comment},24\n"
            for film in ("Zootopia", "Big Hero 6")
            for turn in range(3)
            for user, comment in said.items()
        ]
        once = rows[-2].replace("小雨", "阿南")
        rows[3:3] = [once]
        rows[-2:] = [once.replace("2015-05", "2015-13"), rows[-2]]
        return {COMMENTS: (head + "".join(rows)).encode()}
