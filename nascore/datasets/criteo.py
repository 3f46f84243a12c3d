"""Criteo's display advertising data (Kaggle, 2014): `train.txt` of its archive, a sample in the order of time.

Tab-separated fields without a header: whether the ad was clicked, 13 integers, which count and may be negative, and 26
categories in hexadecimal digits. An empty field is a missing one.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nascore.datasets import Dataset, Feature, Layout, OnBadRow
from nascore.plugins import bounded

FILE = "train.txt"
LABEL = "label"
NUMBERS = tuple(f"I{place}" for place in range(1, 14))
CATEGORIES = tuple(f"C{place}" for place in range(1, 27))
INTEGER = r"^(-?\d{1,18})?$"
DIGITS, MOST_DIGITS = "0123456789abcdefABCDEF", 8


class Criteo(Dataset):
    """Values of fewer than `fewest` training rows, and those beyond the first `most` of a category, have no own id."""

    protocols: ClassVar[tuple[str, ...]] = ("temporal", "stratified")

    def __init__(self, raw: str, on_bad_row: OnBadRow = "error", fewest: int = 2, most: int = 10_000_000) -> None:
        super().__init__(raw, on_bad_row)
        self.fewest, self.most = fewest, most
        bounded(self, fewest=1, most=0)

    def layout(self) -> Layout:
        self.one_of(FILE)
        numbers = (Feature(name, "row", "number") for name in NUMBERS)
        categories = (Feature(name, fewest=self.fewest, most=self.most) for name in CATEGORIES)
        return Layout("", "", "", (*numbers, *categories), label=LABEL)

    def rows(self) -> Iterator[pa.Table]:
        for table in self.delimited(self.one_of(FILE), "\t", (LABEL, *NUMBERS, *CATEGORIES)):
            columns = {name: pc.if_else(pc.equal(table[name], ""), None, table[name]) for name in table.column_names}
            columns[LABEL] = columns[LABEL].cast(pa.int8())
            columns |= {name: columns[name].cast(pa.int64()) for name in NUMBERS}
            yield pa.table(columns)

    def sound(
        self, file: str, first: int | NDArray[np.int64], table: pa.Table, broken: Mapping[str, pa.Array]
    ) -> pa.Table:
        """Also rejects rows whose label, numbers or categories are no such."""
        wrong = {f"{LABEL} is neither 0 nor 1": pc.invert(pc.is_in(table[LABEL], pa.array(["0", "1"])))}
        for name in NUMBERS:
            wrong[f"{name} is not an integer"] = pc.invert(pc.match_substring_regex(table[name], INTEGER))
        for name in CATEGORIES:
            other = pc.not_equal(pc.ascii_trim(table[name], DIGITS), "")
            long = pc.greater(pc.binary_length(table[name]), MOST_DIGITS)
            wrong[f"{name} is not 1 to {MOST_DIGITS} hexadecimal digits"] = pc.or_(other, long)
        masks = {why: pc.fill_null(mask, False) for why, mask in wrong.items()}
        return super().sound(file, first, table, {**broken, **masks})

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        def line(label: str, numbers: str, categories: str) -> str:
            fields = [label, *(numbers.split(",") + [""] * 13)[:13], *(categories.split(",") + [""] * 26)[:26]]
            return "\t".join(fields) + "\n"

        lines = (
            line("0", "1,2,3,4,5000,6,7,8,9,0,1,,2", "a0000001,b0000001,c0000001"),
            line("1", ",-1,,,12", "a0000002,,0a1b,,e0000001"),
            line("0", "3,0,40,1,100,8,2,2,4,1,1,7,4", ",b0000001,,,,,,,,,,,,,,,,,,,,,,,,ffffffff"),
            line("1", "2,0,1", "a0000001,b0000001,no-hash"),
            line("1", "2,0,1", "a0000001,b0000001,c0000001"),
        )
        return {FILE: "".join(lines).encode()}
