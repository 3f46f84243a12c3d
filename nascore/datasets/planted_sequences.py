"""Made-up sequences whose next item hangs on the last one and on a taste that only the whole past tells.

Items have one of ten categories and one to three of eight tags. What a user takes next is drawn, without repetition, by
softmax of a sum of

- how the last item leads to the next: the dot product of two random vectors of `RANK` entries, one of each;
- how the user's taste, one of `TASTES`, likes the next item's category;
- how it likes the next item's tags, by the square root of their number.

Over tastes the likings average to 0, so popularity tells little; a chain of first order knows the first term and, of
the taste, what one item betrays.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nascore.datasets import CHUNK, Dataset, Feature, Layout, OnBadRow
from nascore.plugins import bounded
from nascore.schema import Side

TASTES, CATEGORIES, TAGS, MOST_TAGS = 8, 10, 8, 3
RANK = 8
LEADING, CATEGORY_LIKING, TAG_LIKING = 1.5, 1.5, 1.5
SHORTEST, LONGEST = 6, 40
HISTORY = 20
TOP = 10
START, STEP = 1_600_000_000, 3_600
Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]


class PlantedSequences(Dataset):
    """Users with 6 to 40 events each; nothing is read from `raw`.

    category (items,), tagged (items, 8): the features. taste (users,), activity (users,): each user's taste and number
    of events. leading (items, items), liking (tastes, items): the terms of what is preferred.
    """

    protocols: ClassVar[tuple[str, ...]] = ("leave_one_out", "user_temporal", "global_temporal")

    def __init__(
        self, raw: str = "", on_bad_row: OnBadRow = "error", users: int = 1_500, items: int = 200, seed: int = 0
    ) -> None:
        super().__init__(raw, on_bad_row)
        self.users, self.items, self.seed = users, items, seed
        bounded(self, users=1, items=LONGEST + TOP)
        rng = np.random.default_rng(seed)
        self.category = rng.integers(CATEGORIES, size=items)
        many = rng.integers(1, MOST_TAGS + 1, items)
        self.tagged = rng.permuted(np.arange(TAGS) < many[:, None], axis=1)
        away, towards = rng.standard_normal((2, items, RANK))
        self.leading = LEADING * away @ towards.T / RANK**0.5
        likings = rng.standard_normal((TASTES, CATEGORIES + TAGS))
        of_category, of_tag = np.split(likings - likings.mean(0), [CATEGORIES], axis=1)
        liked_tags = of_tag @ self.tagged.T / many**0.5
        self.liking = CATEGORY_LIKING * of_category[:, self.category] + TAG_LIKING * liked_tags
        self.taste = rng.integers(TASTES, size=users)
        self.activity = rng.integers(SHORTEST, LONGEST + 1, users)

    def layout(self) -> Layout:
        about = (Feature("item", "item"), Feature("category", "item"), Feature("tags", "item", "set"))
        names = tuple(feature.name for feature in about)
        return Layout(
            "user", "item", "timestamp", (Feature("user", "user"), *about), history=names, history_length=HISTORY
        )

    def preferences(self, taste: Ids, last: Ids) -> Numbers:
        """What users of these tastes prefer after these items; -1 for none. Shape (users, items)."""
        preferred: Numbers = self.liking[taste] + self._led(last)
        return preferred

    @cached_property
    def drawn(self) -> Ids:
        """Each user's items in order, -1 after its last. Shape (users, most events)."""
        rng = np.random.default_rng((self.seed, 1))
        taken = np.zeros((self.users, self.items), bool)
        drawn = np.full((self.users, LONGEST), -1)
        last = drawn[:, 0]
        for place in range(LONGEST):
            noisy = self.preferences(self.taste, last) + rng.gumbel(size=taken.shape)
            last = drawn[:, place] = np.where(taken, -np.inf, noisy).argmax(1)
            taken[np.arange(self.users), last] = True
        drawn[np.arange(LONGEST) >= self.activity[:, None]] = -1
        return drawn

    def belief(self) -> Numbers:
        """How likely each taste is for one who knows the law and each user's events but the last.

        Shape (users, tastes).
        """
        told = np.zeros((self.users, TASTES))
        taken = np.zeros((self.users, self.items), bool)
        last = np.full(self.users, -1)
        for place in range(LONGEST - 1):
            there = np.flatnonzero(place < self.activity - 1)
            item = self.drawn[there, place]
            free = np.exp(self._led(last[there])) * ~taken[there]
            told[there] += self.liking.T[item] - np.log(free @ np.exp(self.liking.T))
            last[there] = item
            taken[there, item] = True
        return _softmax(told)

    def optimum(self, belief: Numbers | None = None) -> float:
        """The expected hit@10 on each user's last event of the ranking by the law after all events before it.

        belief: the chances of the tastes that the ranking goes by, (users, tastes); without it, it is told the taste.
        No ranking from the same events can expect more than that by `belief()`.
        """
        before = np.where(np.arange(LONGEST) < self.activity[:, None] - 1, self.drawn, self.drawn[:, :1])
        taken = np.zeros((self.users, self.items), bool)
        np.put_along_axis(taken, before, True, axis=1)
        last = self.drawn[np.arange(self.users), self.activity - 2]
        true = self._chances(self.taste, last, taken)
        ranked = true
        if belief is not None:
            ranked = np.zeros_like(true)
            for taste, likely in enumerate(belief.T):
                ranked += likely[:, None] * self._chances(np.full(self.users, taste), last, taken)
        best = np.argpartition(-ranked, TOP, axis=1)[:, :TOP]
        return float(np.take_along_axis(true, best, 1).sum(1).mean())

    def _led(self, last: Ids) -> Numbers:
        """How the last items lead to each; -1 for none. Shape (users, items)."""
        return np.where(last[:, None] < 0, 0.0, self.leading[last])

    def _chances(self, taste: Ids, last: Ids, taken: NDArray[np.bool_]) -> Numbers:
        """How likely each item is to be next; 0 for those taken. Shape (users, items)."""
        return _softmax(np.where(taken, -np.inf, self.preferences(taste, last)))

    def rows(self) -> Iterator[pa.Table]:
        place, user = np.nonzero(self.drawn.T >= 0)
        log = pa.table({"user": user, "item": self.drawn[user, place], "timestamp": START + STEP * place})
        for start in range(0, len(log), CHUNK):
            yield log.slice(start, CHUNK)

    def entities(self, side: Side) -> Iterator[pa.Table]:
        if side == "item":
            tags = pa.array([np.flatnonzero(tagged) for tagged in self.tagged], pa.list_(pa.int64()))
            yield pa.table({"item": np.arange(self.items), "category": self.category, "tags": tags})

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        return {}


def _softmax(logits: Numbers) -> Numbers:
    """Chances along the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    chances: Numbers = raised / raised.sum(-1, keepdims=True)
    return chances
