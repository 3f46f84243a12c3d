"""KDD Cup 2012, track 2: clicks on search ads of soso.com, in `training.txt` and `userid_profile.txt` of its archive.

Both are tab separated, without headers and in no order of time. A row sums up equal searches of a user: of its
`impression` times, the ad was clicked `click` times; any click makes it a positive. Each user's gender and age stand in
the profiles; who has none there gets null. Their codes for "unknown", and the user 0, who is unknown too, are values
like any other, as with NASRec's authors.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nascore.datasets import Dataset, Feature, Layout, OnBadRow
from nascore.plugins import bounded

LOG, PROFILES = "training.txt", "userid_profile.txt"
CLICK, URL, USER = "click", "DisplayURL", "UserID"
NUMBERS = ("impression", "depth", "position")
IDS = ("AdID", "AdvertiserID", "QueryID", "KeywordID", "TitleID", "DescriptionID", USER)
ABOUT = ("gender", "age")
LOGGED = (CLICK, "impression", URL, "AdID", "AdvertiserID", "depth", "position", *IDS[2:])
USERS, CODES = 10**16, 10
Ids = NDArray[np.int64]


class Kdd12(Dataset):
    """Values of fewer than `fewest` training rows, and those beyond the first `most` of a category, have no own id.

    The profiles are held in memory: while they are read, at most 19 bytes a user, then 10; 0.45 and 0.24 GB for the
    23.7 million of the archive.
    """

    protocols: ClassVar[tuple[str, ...]] = ("stratified",)

    def __init__(self, raw: str, on_bad_row: OnBadRow = "error", fewest: int = 2, most: int = 10_000_000) -> None:
        super().__init__(raw, on_bad_row)
        self.fewest, self.most = fewest, most
        bounded(self, fewest=1, most=0)

    def layout(self) -> Layout:
        for name in (LOG, PROFILES):
            self.one_of(name)
        numbers = (Feature(name, "row", "number") for name in NUMBERS)
        categories = (Feature(name, fewest=self.fewest, most=self.most) for name in (URL, *IDS, *ABOUT))
        return Layout("", "", "", (*numbers, *categories), label=CLICK)

    def rows(self) -> Iterator[pa.Table]:
        profiles = _Profiles(self.delimited(self.one_of(PROFILES), "\t", (USER, *ABOUT), (USER, *ABOUT)))
        for table in self.delimited(self.one_of(LOG), "\t", LOGGED, (CLICK, *NUMBERS, *IDS)):
            columns = {CLICK: pc.greater(table[CLICK], 0).cast(pa.int8())}
            columns |= {name: table[name] for name in (*NUMBERS, *IDS)}
            columns[URL] = pc.if_else(pc.equal(table[URL], ""), None, table[URL])
            yield pa.table({**columns, **profiles.of(np.asarray(table[USER]))})

    def sound(
        self, file: str, first: int | NDArray[np.int64], table: pa.Table, broken: Mapping[str, pa.Array]
    ) -> pa.Table:
        """Also rejects clicks below 0, and profiles whose numbers cannot be packed."""
        wrong = {}
        if CLICK in table.column_names:
            wrong[f"{CLICK} is below 0"] = pc.less(table[CLICK], 0)
        else:
            for name, end in ((USER, USERS), *((name, CODES) for name in ABOUT)):
                outside = pc.or_(pc.less(table[name], 0), pc.greater_equal(table[name], end))
                wrong[f"{name} is not from 0 to {end - 1}"] = outside
        return super().sound(
            file, first, table, {**broken, **{why: pc.fill_null(mask, False) for why, mask in wrong.items()}}
        )

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        log = (
            b"0\t1\t10000000000000000001\t101\t11\t3\t3\t21\t31\t41\t51\t2000\n"
            b"2\t5\t9000000000000000002\t102\t11\t2\t2\t22\t32\t42\t52\t2000\n"
            b"0\t1\t9000000000000000003\t103\t12\t3\t3\t23\t33\t43\t53\t0\n"
            b"1\t1\t10000000000000000001\t101\t11\t3\t1\t21\t31\t41\t51\tnobody\n"
            b"1\t1\t9000000000000000002\t104\t13\t1\t1\t22\t32\t44\t54\t7\n"
        )
        return {LOG: log, PROFILES: b"7\t1\t5\n2000\t2\t3\n"}


class _Profiles:
    """Gender and age by user; of a user who stands there twice, the lower codes."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        parts = [np.array([USERS * CODES**2])]
        for table in tables:
            user, gender, age = (np.asarray(table[name]) for name in (USER, *ABOUT))
            parts.append((user * CODES + gender) * CODES + age)
        packed: Ids = np.concatenate(parts)
        del parts
        packed.sort()
        self.codes: dict[str, NDArray[np.int8]] = {}
        for name in reversed(ABOUT):
            self.codes[name] = (packed % CODES).astype(np.int8)
            packed //= CODES
        self.users = packed

    def of(self, users: Ids) -> dict[str, pa.Array]:
        """Each user's gender and age, null where there is no profile. Shape (rows,)."""
        last = len(self.users) - 1
        place = np.minimum(np.searchsorted(self.users, users), last)
        unknown = (self.users[place] != users) | (place == last)
        return {name: pa.array(self.codes[name][place], pa.int64(), mask=unknown) for name in ABOUT}
