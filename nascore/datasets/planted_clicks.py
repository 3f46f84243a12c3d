"""Made-up clicks that only models of pairs can tell: some useful fields, two pairs of fields, a number that depends.

Eight categories, whose values are equally likely, and two numbers. The logit of a click is a constant plus

- a table of each field in `mains`, the only terms that show without a partner;
- for each two fields in `pairs`, the dot product of two random orthonormal vectors of `RANK` entries. Over the values
  of either field it averages to 0, so neither tells anything alone, and no fewer than `RANK` products express it;
- for the number and the field in `slopes`, the log of 1 + the number, times a slope by the field's value; it averages
  to 0 over both.

The others, `noise`, tell nothing.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nascore.datasets import CHUNK, Dataset, Feature, Layout, OnBadRow

SIZES = (16, 48, 16, 24, 20, 20, 64, 32)
CATEGORIES = tuple(f"category_{place}" for place in range(len(SIZES)))
NUMBERS = ("number_0", "number_1")
RANK = 4
CONSTANT, MAIN, PAIR, SLOPE = -1.6, 0.55, 0.95, 0.65
LABEL = "click"
Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]


class PlantedClicks(Dataset):
    """`rows` independent rows; nothing is read from `raw`.

    mains, pairs, slopes, noise: the names of the fields that each term of the logit reads, and of those that none does.
    values (rows, 8), numbers (rows, 2): the features. tables: the terms by the names of their fields, of shapes
    (values,) for mains and slopes, (values of the first, values of the second) for pairs.
    """

    protocols: ClassVar[tuple[str, ...]] = ("stratified", "temporal")
    mains: ClassVar[tuple[str, ...]] = ("category_0", "category_1")
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (("category_2", "category_3"), ("category_4", "category_5"))
    slopes: ClassVar[tuple[tuple[str, str], ...]] = (("number_0", "category_0"),)
    noise: ClassVar[tuple[str, ...]] = ("category_6", "category_7", "number_1")

    def __init__(self, raw: str = "", on_bad_row: OnBadRow = "error", rows: int = 60_000, seed: int = 0) -> None:
        super().__init__(raw, on_bad_row)
        self.seed = seed
        rng = np.random.default_rng(seed)
        sizes = dict(zip(CATEGORIES, SIZES, strict=True))
        self.tables: dict[tuple[str, ...], Numbers] = {}
        for field in self.mains:
            self.tables[field,] = MAIN * sizes[field] ** 0.5 * _spread(rng, sizes[field], 1)[:, 0]
        for one, two in self.pairs:
            scale = PAIR * (sizes[one] * sizes[two] / RANK) ** 0.5
            self.tables[one, two] = scale * _spread(rng, sizes[one], RANK) @ _spread(rng, sizes[two], RANK).T
        for number, field in self.slopes:
            self.tables[number, field] = SLOPE * sizes[field] ** 0.5 * _spread(rng, sizes[field], 1)[:, 0]
        self.values = rng.integers(SIZES, size=(rows, len(SIZES)))
        self.numbers = np.expm1(rng.uniform(0, 2, (rows, len(NUMBERS))))

    def layout(self) -> Layout:
        numbers = (Feature(name, "row", "number") for name in NUMBERS)
        return Layout("", "", "", (*numbers, *(Feature(name) for name in CATEGORIES)), label=LABEL)

    def logits(self) -> Numbers:
        """The log of the odds of a click. Shape (rows,)."""
        values = dict(zip(CATEGORIES, self.values.T, strict=True))
        levels = dict(zip(NUMBERS, 3**0.5 * (np.log1p(self.numbers.T) - 1), strict=True))
        logits = np.full(len(self.values), CONSTANT)
        for fields, table in self.tables.items():
            if fields in self.slopes:
                logits += levels[fields[0]] * table[values[fields[1]]]
            else:
                logits += table[tuple(values[field] for field in fields)]
        return logits

    def clicks(self) -> NDArray[np.int8]:
        """Which rows are clicked. Shape (rows,)."""
        chances = np.random.default_rng((self.seed, 1)).random(len(self.values))
        return (chances < 1 / (1 + np.exp(-self.logits()))).astype(np.int8)

    def rows(self) -> Iterator[pa.Table]:
        columns = {LABEL: self.clicks(), **dict(zip(NUMBERS, self.numbers.T, strict=True))}
        log = pa.table({**columns, **dict(zip(CATEGORIES, self.values.T, strict=True))})
        for start in range(0, len(log), CHUNK):
            yield log.slice(start, CHUNK)

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        return {}


def _spread(rng: np.random.Generator, values: int, rank: int) -> Numbers:
    """Random orthonormal columns that sum to 0. Shape (values, rank)."""
    drawn = rng.standard_normal((values, rank))
    turned: Numbers = np.linalg.qr(drawn - drawn.mean(0))[0]
    return turned
