"""Made-up data whose signal one pooling and one family of operators express within few MACs; see docs/planted.md.

Users and items have three features each, of 16 values. The k-th feature of a user and the k-th of an item attract each
other by a random orthogonal 16 x 16 table, so preferences spread evenly over 48 dimensions: vectors squeezed through
fewer lose the rest. The fourth feature of an item attracts by how many events lie behind the user, and a history shows
of each event only that it happened.
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nascore.datasets import CHUNK, Dataset, Feature, Layout, OnBadRow
from nascore.schema import Side

VALUES = 16
TABLES = 3
STAGES = (6, 14)
ACTIVITY = (8, 16, 40)
SHARES = (0.4, 0.3, 0.3)
HISTORY = 24
ATTRACTION, STAGE_ATTRACTION = 1.2, 2.0
START, STEP = 1_600_000_000, 3_600
Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]


class Planted(Dataset):
    """Users with 8, 16 or 40 events each, drawn by softmax(preference) without repetition; nothing is read from `raw`.

    user_values (users, 3), item_values (items, 4): the features. attraction (3, 16, 16), stage_attraction (3, 16): the
    tables behind the preferences. activity (users,): events of each user.
    """

    protocols: ClassVar[tuple[str, ...]] = ("user_temporal", "global_temporal", "leave_one_out")

    def __init__(
        self, raw: str = "", on_bad_row: OnBadRow = "error", users: int = 2_000, items: int = 1_000, seed: int = 0
    ) -> None:
        super().__init__(raw, on_bad_row)
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.user_values = rng.integers(VALUES, size=(users, TABLES))
        self.item_values = rng.integers(VALUES, size=(items, TABLES + 1))
        turns = np.linalg.qr(rng.standard_normal((TABLES, VALUES, VALUES)))[0]
        self.attraction = ATTRACTION * VALUES**0.5 * turns
        self.stage_attraction = STAGE_ATTRACTION * rng.standard_normal((len(STAGES) + 1, VALUES))
        self.activity = rng.choice(ACTIVITY, users, p=SHARES)

    def layout(self) -> Layout:
        features = [Feature(f"user_{k}", "user") for k in range(TABLES)]
        features += [Feature(f"item_{k}", "item") for k in range(TABLES + 1)]
        return Layout(
            "user",
            "item",
            "timestamp",
            (*features, Feature("event", "item")),
            history=("event",),
            history_length=HISTORY,
        )

    def preferences(self, stage: int) -> Numbers:
        """What every user prefers at a stage. Shape (users, items)."""
        own = sum(self.attraction[k][self.user_values[:, k]][:, self.item_values[:, k]] for k in range(TABLES))
        preferred: Numbers = own + self.stage_attraction[stage][self.item_values[:, TABLES]]
        return preferred

    def draw(self) -> Ids:
        """Each user's items in order, -1 after its last. Shape (users, most events)."""
        rng = np.random.default_rng((self.seed, 1))
        taken = np.zeros((len(self.user_values), len(self.item_values)), bool)
        drawn = np.full((len(taken), max(ACTIVITY)), -1)
        edges = (0, *STAGES, max(ACTIVITY))
        for stage, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
            noisy = self.preferences(stage) + rng.gumbel(size=taken.shape)
            noisy[taken] = -np.inf
            drawn[:, first:last] = np.argsort(-noisy, axis=1)[:, : last - first]
            np.put_along_axis(taken, drawn[:, first:last], True, axis=1)
        drawn[np.arange(max(ACTIVITY)) >= self.activity[:, None]] = -1
        return drawn

    def rows(self) -> Iterator[pa.Table]:
        drawn = self.draw()
        place, user = np.nonzero(drawn.T >= 0)
        log = pa.table({"user": user, "item": drawn[user, place], "timestamp": START + STEP * place})
        for start in range(0, len(log), CHUNK):
            yield log.slice(start, CHUNK)

    def entities(self, side: Side) -> Iterator[pa.Table]:
        values = self.user_values if side == "user" else self.item_values
        columns = {f"{side}_{k}": values[:, k] for k in range(values.shape[1])}
        always = {"event": np.ones(len(values), np.int64)} if side == "item" else {}
        yield pa.table({side: np.arange(len(values)), **columns, **always})

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        return {}
