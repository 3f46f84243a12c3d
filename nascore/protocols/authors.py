"""The split, histories and candidates of AutoTower's public code: for comparison with the paper's tables only."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nascore.protocols import OTHERS, TEST, TRAIN, VALID, Log, Protocol, starts

SEED = 666


class Authors(Protocol):
    """Three quarters of each user's rows are pooled and cut at random into train and valid, the others test.

    The cuts stand at 50 % and 75 % of all rows, so what rounding leaves of the last is filled with random later rows. A
    history holds a user's earlier events of any split, and only train items are no candidates.
    """

    history_from: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train", "valid"),
        "valid": ("train", "valid"),
        "test": ("train", "valid", "test"),
    }
    seen_in: ClassVar[Mapping[str, tuple[str, ...]]] = {"train": (), "valid": ("train",), "test": ("train",)}
    strictly_earlier: ClassVar[bool] = False
    leaks: ClassVar[str] = "history contains test items"
    sees: ClassVar[str] = OTHERS

    def survey(self, log: Log) -> None:
        counts = np.zeros(0, np.int64)
        for user, _ in log():
            more = np.bincount(user)
            counts = np.pad(counts, (0, max(0, len(more) - len(counts))))
            counts[: len(more)] += more
        early = counts * 3 // 4
        rng = np.random.default_rng(SEED)
        pool = np.full(int(early.sum()), VALID, np.int8)
        pool[rng.permutation(len(pool))[: int(counts.sum()) // 2]] = TRAIN
        later = np.full(int((counts - early).sum()), TEST, np.int8)
        later[rng.permutation(len(later))[: int(counts.sum()) * 3 // 4 - len(pool)]] = VALID
        early_at, later_at = np.append(0, early.cumsum()), np.append(0, (counts - early).cumsum())
        self.pools = (early_at, pool), (later_at, later)

    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        label = np.empty(len(user), np.int8)
        first = starts(user)
        (early_at, pool), (later_at, later) = self.pools
        for start, end in zip(first, [*first[1:], len(user)], strict=True):
            who = int(user[start])
            middle = start + (end - start) * 3 // 4
            label[start:middle] = pool[early_at[who] : early_at[who + 1]]
            label[middle:end] = later[later_at[who] : later_at[who + 1]]
        return label
