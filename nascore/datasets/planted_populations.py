"""Made-up clicks of two populations that need different fields.

Ten categories, whose values are equally likely. `telling` tells the population: the first half of its values is of one,
the second half of the other. The logit of a click is a constant plus, by the fields of the row's population,

- a table of each; `shared` is among those of both, and what speaks for a click in one speaks against it in the other;
- for the two in `pairs`, the dot product of two random orthonormal vectors of `RANK` entries, which no fewer than
  `RANK` products express; over the values of either field it averages to 0.

Each population's fields are noise to the other, and those in `noise` to both. A perceptron too small for both laws has
room for one.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nascore.datasets import CHUNK, Dataset, Feature, Layout, OnBadRow

SIZES = (16, 16, 16, 12, 12, 16, 12, 12, 64, 64)
CATEGORIES = tuple(f"category_{place}" for place in range(len(SIZES)))
LAWS = (
    ("category_1", "category_2", "category_3", "category_4"),
    ("category_1", "category_5", "category_6", "category_7"),
)
RANK = 4
CONSTANT, MAIN, PAIR = -0.6, 0.6, 1.5
LABEL = "click"
Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]


class PlantedPopulations(Dataset):
    """`rows` independent rows of `populations` populations, 1 or 2; nothing is read from `raw`.

    useful: the fields that each population's law reads. noise: those that tell nothing; with one population this is
    every other field, `telling` too. values (rows, 10): the features. population (rows,): each row's population, 0 or
    1. tables: each population's terms by the names of their fields, of shapes (values,) and (values of the first,
    values of the second).
    """

    protocols: ClassVar[tuple[str, ...]] = ("stratified", "temporal")
    telling: ClassVar[str] = "category_0"
    shared: ClassVar[str] = "category_1"
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (("category_3", "category_4"), ("category_6", "category_7"))

    def __init__(
        self, raw: str = "", on_bad_row: OnBadRow = "error", rows: int = 60_000, seed: int = 0, populations: int = 2
    ) -> None:
        super().__init__(raw, on_bad_row)
        if populations not in (1, 2):
            raise ValueError(f"populations is 1 or 2, not {populations}")
        self.seed = seed
        self.useful = LAWS[:populations]
        told = {field for fields in self.useful for field in fields} | ({self.telling} if populations == 2 else set())
        self.noise = tuple(field for field in CATEGORIES if field not in told)
        rng = np.random.default_rng(seed)
        sizes = dict(zip(CATEGORIES, SIZES, strict=True))
        mains = {field: MAIN * sizes[field] ** 0.5 * _spread(rng, sizes[field], 1)[:, 0] for field in CATEGORIES}
        laws: list[dict[tuple[str, ...], Numbers]] = []
        for fields, (one, two) in zip(LAWS, self.pairs, strict=True):
            scale = PAIR * (sizes[one] * sizes[two] / RANK) ** 0.5
            pair = scale * _spread(rng, sizes[one], RANK) @ _spread(rng, sizes[two], RANK).T
            laws.append({**{(field,): mains[field] for field in fields}, (one, two): pair})
        laws[1][self.shared,] = -mains[self.shared]
        self.tables = tuple(laws[:populations])
        self.values = rng.integers(SIZES, size=(rows, len(SIZES)))
        self.population: Ids = populations * self.values[:, CATEGORIES.index(self.telling)] // sizes[self.telling]

    def layout(self) -> Layout:
        return Layout("", "", "", tuple(Feature(name) for name in CATEGORIES), label=LABEL)

    def logits(self) -> Numbers:
        """The log of the odds of a click. Shape (rows,)."""
        values = dict(zip(CATEGORIES, self.values.T, strict=True))
        by_law = np.full((len(self.tables), len(self.values)), CONSTANT)
        for law, tables in enumerate(self.tables):
            for fields, table in tables.items():
                by_law[law] += table[tuple(values[field] for field in fields)]
        logits: Numbers = by_law[self.population, np.arange(len(self.values))]
        return logits

    def clicks(self) -> NDArray[np.int8]:
        """Which rows are clicked. Shape (rows,)."""
        chances = np.random.default_rng((self.seed, 1)).random(len(self.values))
        return (chances < 1 / (1 + np.exp(-self.logits()))).astype(np.int8)

    def rows(self) -> Iterator[pa.Table]:
        log = pa.table({LABEL: self.clicks(), **dict(zip(CATEGORIES, self.values.T, strict=True))})
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
