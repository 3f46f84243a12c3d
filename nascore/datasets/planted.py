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

RANK = 16
SEGMENTS = 12
BUCKETS = (8, 16)
ACTIVITY = (8, 16, 32, 64)
SHARES = (1 / 3, 1 / 3, 1 / 6, 1 / 6)
SHOWN = 24
SHARPNESS = 14.0
WEIGHT = 1.5
START, SPAN = 1_600_000_000, 64 * 86_400
Matrix = NDArray[np.float64]


class Planted(Dataset):
    """`users` users, and an item for each pair of `left` values of a and `right` of b; all drawn from `seed`.

    A user has 8, 16, 32 or 64 events, so each bucket, of fewer than 8, fewer than 16, and more events, holds all that
    a third of the users are tested on.
    """

    protocols: ClassVar[tuple[str, ...]] = ("user_temporal", "global_temporal")

    def __init__(
        self,
        raw: str = "",
        on_bad_row: OnBadRow = "error",
        users: int = 2_400,
        left: int = 32,
        right: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(raw, on_bad_row)
        rng = np.random.default_rng(seed)
        a, b = (_centred(rng.standard_normal((count, RANK))) for count in (left, right))
        self.items = _unit((a[:, None] * b).reshape(-1, RANK))
        segments = _unit(rng.standard_normal((SEGMENTS, RANK)))
        buckets = np.linalg.qr(rng.standard_normal((RANK, len(BUCKETS) + 1)))[0].T
        self.preferences = _unit(segments[:, None] + WEIGHT * buckets)
        self.segment = rng.integers(SEGMENTS, size=users)
        self.activity = rng.choice(ACTIVITY, users, p=SHARES)
        self.left, self.right, self.seed = left, right, seed

    def layout(self) -> Layout:
        features = (Feature("segment", "user"), Feature("a", "item"), Feature("b", "item"), Feature("event", "item"))
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
            yield pa.table({"user": np.arange(len(self.segment)), "segment": self.segment})
        else:
            item = np.arange(len(self.items))
            yield pa.table({"item": item, "a": item // self.right, "b": item % self.right, "event": np.ones_like(item)})

    def draw(self):
        rng = np.random.default_rng((self.seed, 1))
        taken = np.zeros((len(self.segment), len(self.items)), bool)
        drawn = np.full((len(self.segment), max(ACTIVITY)), -1)
        edges = (0, *BUCKETS, max(ACTIVITY))
        for bucket, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
            (user,) = np.nonzero(self.activity > first)
            utility = SHARPNESS * (self.preferences[self.segment[user], bucket] @ self.items.T)
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
