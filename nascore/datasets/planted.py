"""Made-up data whose signal one pooling and one operator express within few MACs; docs/planted.md says why.

The next item of a user is drawn by softmax(14 <t, z>), whatever was drawn before. z is the unit vector along
u[a] * v[b], an element-wise product that depends on both features of the item and, on average, on neither alone. t is
the unit vector along p[segment] - 1.5 q for a user with fewer than 8 events, along p[segment] + 1.5 q from then on: its
taste turns with the number of its events. A history shows of each event only that it happened.
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
TURN, WEIGHT = 8, 1.5
SHARPNESS = 14.0
ACTIVITY, SHARES = (8, 32), (0.6, 0.4)
SHOWN = 12
START, SPAN = 1_600_000_000, 64 * 86_400
Vectors = NDArray[np.float64]


class Planted(Dataset):
    """A segment for each user, an item for each pair of `values` values of a and as many of b; drawn from `seed`.

    A user has 8 or 32 events, so half and three quarters of them lie both before or both after the turn of its taste.
    items: z by item, (values², RANK). preferences: t by segment, before and after the turn, (SEGMENTS, 2, RANK).
    segment, activity: of each user, (users,). Nothing is read from `raw`.
    """

    protocols: ClassVar[tuple[str, ...]] = ("user_temporal", "global_temporal")

    def __init__(
        self, raw: str = "", on_bad_row: OnBadRow = "error", users: int = 3_000, values: int = 32, seed: int = 0
    ) -> None:
        super().__init__(raw, on_bad_row)
        self.values, self.seed = values, seed
        rng = np.random.default_rng((seed, 0))
        u, v = (_centred(rng.standard_normal((values, RANK))) for _ in "ab")
        self.items = _unit((u[:, None] * v).reshape(-1, RANK))
        p, q = _unit(rng.standard_normal((SEGMENTS, 1, RANK))), _unit(rng.standard_normal(RANK))
        self.preferences = _unit(p + WEIGHT * np.stack([-q, q]))
        self.segment = rng.integers(SEGMENTS, size=users)
        self.activity = rng.choice(ACTIVITY, users, p=SHARES)

    def layout(self) -> Layout:
        features = (Feature("segment", "user"), *(Feature(name, "item") for name in ("a", "b", "event")))
        return Layout("user", "item", "timestamp", features, history=("event",), history_length=SHOWN)

    def chances(self) -> Vectors:
        """The law of the next item by segment, before and after the turn. Shape (SEGMENTS, 2, items)."""
        chance = np.exp(SHARPNESS * (self.preferences @ self.items.T))
        return np.asarray(chance / chance.sum(-1, keepdims=True))

    def rows(self) -> Iterator[pa.Table]:
        """User after user, each in time order; a user's events are spread evenly over 64 days."""
        rng = np.random.default_rng((self.seed, 1))
        late = rng.random(len(self.segment))
        user = np.repeat(np.arange(len(self.segment)), self.activity)
        place = np.arange(len(user)) - np.repeat(self.activity.cumsum() - self.activity, self.activity)
        timestamp = START + (SPAN * (place + late[user]) / self.activity[user]).astype(np.int64)
        law = 2 * self.segment[user] + (place >= TURN)
        draw, item = rng.random(len(user)), np.empty(len(user), np.int64)
        for number, chance in enumerate(self.chances().reshape(2 * SEGMENTS, -1)):
            item[law == number] = np.searchsorted(chance.cumsum()[:-1], draw[law == number], side="right")
        log = pa.table({"user": user, "item": item, "timestamp": timestamp})
        for start in range(0, len(log), CHUNK):
            yield log.slice(start, CHUNK)

    def entities(self, side: Side) -> Iterator[pa.Table]:
        if side == "user":
            yield pa.table({"user": np.arange(len(self.segment)), "segment": self.segment})
        else:
            item = np.arange(len(self.items))
            a, b = np.divmod(item, self.values)
            yield pa.table({"item": item, "a": a, "b": b, "event": np.zeros_like(item)})

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        return {}


def _unit(x: Vectors) -> Vectors:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def _centred(x: Vectors) -> Vectors:
    return np.asarray(x - x.mean(0))
