"""Gowalla (Cho et al., 2011): the check-ins of the SNAP archive in loc-gowalla_totalCheckins.txt.

Every check-in is a positive, repeated ones too; an item is a location. Users and locations of few check-ins are counted
once, so some that stay may keep fewer than asked for; RecBole's filter repeats until nobody has.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nascore.datasets import Dataset, Feature, Frequent, Layout, OnBadRow

USER, ITEM, TIME = "user", "location_id", "timestamp"
CHECK_INS = "loc-gowalla_totalCheckins.txt"
WHEN = "check_in_time"
FIELDS = (USER, WHEN, "latitude", "longitude", ITEM)
FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class Gowalla(Dataset):
    """Users of at least `user_rows` check-ins and locations of at least `item_rows`, counted once over all rows."""

    protocols: ClassVar[tuple[str, ...]] = ("leave_one_out", "user_temporal", "global_temporal")

    def __init__(self, raw: str, on_bad_row: OnBadRow = "error", user_rows: int = 5, item_rows: int = 5) -> None:
        super().__init__(raw, on_bad_row)
        self.least = {USER: user_rows, ITEM: item_rows}

    def layout(self) -> Layout:
        self.one_of(CHECK_INS)
        features = (Feature(USER, "user"), Feature(ITEM, "item"))
        return Layout(USER, ITEM, TIME, features, history=(ITEM,), history_length=100)

    def rows(self) -> Iterator[pa.Table]:
        yield from self._frequent.rows(self._check_ins())

    @cached_property
    def _frequent(self) -> Frequent:
        return Frequent(self._check_ins(), self.least)

    def _check_ins(self) -> Iterator[pa.Table]:
        for table in self.delimited(self.one_of(CHECK_INS), "\t", FIELDS, (USER, ITEM)):
            yield pa.table({USER: table[USER], ITEM: table[ITEM], TIME: _parsed(table[WHEN]).cast(pa.int64())})

    def sound(
        self, file: str, first: int | NDArray[np.int64], table: pa.Table, broken: Mapping[str, pa.Array]
    ) -> pa.Table:
        """Also rejects rows whose time is none; written again, it must be what was read, which February 30 is not."""
        same = pc.fill_null(pc.equal(pc.strftime(_parsed(table[WHEN]), FORMAT), table[WHEN]), False)
        wrong = {f"{WHEN} is no time such as 2010-10-19T23:55:27Z": pc.invert(same)}
        return super().sound(file, first, table, {**broken, **wrong})

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        rows = [
            f"{user}\t2010-10-1{9 - turn}T23:55:2{turn}Z\t30.2359091167\t-97.7951395833\t{place}\n"
            for user in (0, 7)
            for turn in range(5)
            for place in (22847, 420315)
        ]
        once = "9\t2010-02-28T08:00:00Z\t59.93\t10.71\t22847\n"
        rows[10:10] = [once]
        rows[-1:-1] = [once.replace("02-28", "02-30")]
        return {CHECK_INS: "".join(rows).encode()}


def _parsed(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """The time that a text stands for; null where it cannot be read at all."""
    return pc.strptime(text, FORMAT, unit="s", error_is_null=True)
