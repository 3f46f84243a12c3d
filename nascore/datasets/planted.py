"""Made-up data whose signal one pooling and one operator can express within few MACs; docs/planted.md proves it.

A user prefers t = unit(p[segment] + q[bucket]), where the bucket tells how many events lie behind it; an item of the
two features a and b is unit(u[a] * v[b]), a product of two vectors of mean 0. The next item is drawn by softmax(SHARPNESS
<t, item>) among those the user has not had. A history shows of each event only that it happened.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nascore.datasets import CHUNK, Dataset, Feature, Layout, OnBadRow
from nascore.schema import Side

RANK = 48
KINDS = 24
VALUES = 16
BUCKETS = (8, 16)
ACTIVITY = (8, 16, 32, 64)
SHARES = (1 / 3, 1 / 3, 1 / 6, 1 / 6)
SHOWN = 24
SHARPNESS = 20.0
WEIGHT = 1.5
START, SPAN = 1_600_000_000, 64 * 86_400
Matrix = NDArray[np.float64]


class Planted(Dataset):
    protocols: ClassVar[tuple[str, ...]] = ("user_temporal", "global_temporal")

    def __init__(
        self,
        raw: str = "",
        on_bad_row: OnBadRow = "error",
        users: int = 2_400,
        items: int = 1_024,
        seed: int = 0,
    ) -> None:
        super().__init__(raw, on_bad_row)
        rng = np.random.default_rng(seed)
        code = rng.permutation(VALUES**3)[:items]
        self.a, self.b, self.c = code // VALUES**2, code // VALUES % VALUES, code % VALUES
        first, second, gate = rng.standard_normal((3, VALUES, RANK))
        x = first[self.a] + second[self.b]
        self.items = _unit((x - x.mean(0)) * gate[self.c].clip(0))
        one, other = _unit(rng.standard_normal((2, KINDS, RANK)))
        buckets = np.linalg.qr(rng.standard_normal((RANK, len(BUCKETS) + 1)))[0].T
        self.kinds = rng.integers(KINDS, size=(2, users))
        self.users = _unit(one[self.kinds[0]] + other[self.kinds[1]])
        self.preferences = _unit(self.users[:, None] + WEIGHT * buckets)
        self.activity = rng.choice(ACTIVITY, users, p=SHARES)
        self.seed = seed

    def layout(self) -> Layout:
        features = (Feature("segment", "user"), Feature("region", "user"), Feature("a", "item"), Feature("b", "item"), Feature("c", "item"), Feature("event", "item"))
        return Layout("user", "item", "timestamp", features, history=("event",), history_length=SHOWN)

    def rows(self) -> Iterator[pa.Table]:
        item = self.draw()
        user, place = np.nonzero(item >= 0)
        rng = np.random.default_rng((self.seed, 2))
        late = rng.random(len(item))[user]
        timestamp = START + (SPAN * (place + late) / self.activity[user]).astype(np.int64)
        log = pa.table({"user": user, "item": item[user, place], "timestamp": timestamp})
        for start in range(0, len(log), CHUNK):
            yield log.slice(start, CHUNK)

    def entities(self, side: Side) -> Iterator[pa.Table]:
        if side == "user":
            yield pa.table({"user": np.arange(len(self.users)), "segment": self.kinds[0], "region": self.kinds[1]})
        else:
            item = np.arange(len(self.items))
            yield pa.table({"item": item, "a": self.a, "b": self.b, "c": self.c, "event": np.ones_like(item)})

    def draw(self):
        rng = np.random.default_rng((self.seed, 1))
        taken = np.zeros((len(self.users), len(self.items)), bool)
        drawn = np.full((len(self.users), max(ACTIVITY)), -1)
        edges = (0, *BUCKETS, max(ACTIVITY))
        for bucket, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
            (user,) = np.nonzero(self.activity > first)
            utility = SHARPNESS * (self.preferences[user, bucket] @ self.items.T)
            utility += rng.gumbel(size=utility.shape)
            utility[taken[user]] = -np.inf
            drawn[user, first:last] = np.argsort(-utility, axis=1)[:, : last - first]
            np.put_along_axis(taken, drawn[:, first:last].clip(0), True, axis=1)
        drawn[np.arange(max(ACTIVITY)) >= self.activity[:, None]] = -1
        return drawn

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        return {}


def _unit(x: Matrix) -> Matrix:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _centred(x: Matrix) -> Matrix:
    return x - x.mean(0)
