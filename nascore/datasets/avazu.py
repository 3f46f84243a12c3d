"""Avazu's clicks on mobile ads (Kaggle, 2014): the labelled file `train`, ten days in the order of time.

Comma-separated fields under a header. All features are categories; of the hour, written YYMMDDHH, models see the hour
of the day, and `timestamp` is its day. NASRec's authors keep the whole hour, and the id, which no two rows share.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nascore.datasets import Dataset, Feature, Layout, OnBadRow
from nascore.plugins import bounded

FILES = ("train", "train.csv")
LABEL, TIME = "click", "day"
ID, HOUR = "id", "hour"
CATEGORIES = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *(f"C{place}" for place in range(14, 22)),
)
Mask = NDArray[np.bool_]
Ids = NDArray[np.int64]


class Avazu(Dataset):
    """Values of fewer than `fewest` training rows, and those beyond the first `most` of a category, have no own id.

    ids: whether the id of the row is a feature.
    """

    protocols: ClassVar[tuple[str, ...]] = ("temporal", "stratified")

    def __init__(
        self, raw: str, on_bad_row: OnBadRow = "error", fewest: int = 2, most: int = 10_000_000, ids: bool = False
    ) -> None:
        super().__init__(raw, on_bad_row)
        self.fewest, self.most = fewest, most
        self.texts = (ID, *CATEGORIES) if ids else CATEGORIES
        bounded(self, fewest=1, most=0)

    def layout(self) -> Layout:
        file = self.one_of(*FILES)
        self.require(file, (LABEL, HOUR, *self.texts), self.header(file, ","))
        features = (Feature(name, fewest=self.fewest, most=self.most) for name in (HOUR, *self.texts))
        return Layout("", "", TIME, tuple(features), label=LABEL)

    def rows(self) -> Iterator[pa.Table]:
        for table in self.delimited(self.one_of(*FILES), ","):
            day, hour, _ = _clock(table[HOUR])
            columns = {LABEL: table[LABEL].cast(pa.int8()), TIME: day, HOUR: hour}
            columns |= {name: pc.if_else(pc.equal(table[name], ""), None, table[name]) for name in self.texts}
            yield pa.table(columns)

    def sound(
        self, file: str, first: int | NDArray[np.int64], table: pa.Table, broken: Mapping[str, pa.Array]
    ) -> pa.Table:
        """Also rejects rows whose label or hour is none."""
        unlabelled = pc.invert(pc.is_in(table[LABEL], pa.array(["0", "1"])))
        wrong = {f"{LABEL} is neither 0 nor 1": unlabelled, f"{HOUR} is not YYMMDDHH": ~_clock(table[HOUR])[2]}
        return super().sound(file, first, table, {**broken, **wrong})

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        lines = (
            ",".join((ID, LABEL, HOUR, *CATEGORIES)),
            "1000000000000000000,0,14102100,1005,0,5173000a,d0a10001,ca7e0001,a9900001,d0a10002,ca7e0002,"
            "de71ce01,19000000,30de1000,1,0,15700,320,50,1702,0,35,-1,79",
            "10000000000000000001,1,14102123,1005,1,5173000a,d0a10001,ca7e0001,a9900001,d0a10002,ca7e0002,"
            "de71ce01,19000001,30de1001,1,1,15701,320,50,1712,0,35,100001,79",
            "1000000000000000002,0,14102206,1005,0,,d0a10001,ca7e0001,a9900001,d0a10002,ca7e0002,"
            "de71ce02,19000002,30de1002,1,2,15702,320,50,1722,0,35,-1,79",
            "10000000000000000003,1,14102224,1005,1,5173000a,d0a10001,ca7e0001,a9900001,d0a10002,ca7e0002,"
            "de71ce01,19000003,30de1003,1,0,15703,320,50,1732,0,35,100003,79",
            "1000000000000000004,0,14102300,1005,0,5173000b,d0a10001,ca7e0001,a9900001,d0a10002,ca7e0002,"
            "de71ce01,19000004,30de1004,1,1,15704,320,50,1742,0,35,-1,79",
        )
        return {FILES[0]: ("\n".join(lines) + "\n").encode()}


def _clock(text: pa.ChunkedArray) -> tuple[Ids, Ids, Mask]:
    """The days since 1970 and the hours of the day of YYMMDDHH, and where there are any. Shapes (rows,)."""
    digits = pc.fill_null(pc.match_substring_regex(text, r"^\d{8}$"), False)
    number = np.asarray(pc.if_else(digits, text, "00010100").cast(pa.int64()))
    year, month, day, hour = (number // place % 100 for place in (1_000_000, 10_000, 100, 1))
    months = (year + 30) * 12 + month - 1
    days = _first_day(months) + day - 1
    known = (1 <= month) & (month <= 12) & (1 <= day) & (days < _first_day(months + 1)) & (hour < 24)
    return days, hour, known & np.asarray(digits)


def _first_day(months: Ids) -> Ids:
    """The first day, in days since 1970, of months since 1970."""
    first: Ids = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    return first
