"""Rows that stand by themselves, drawn 80/10/10 at equal click rates (NASRec §5.1, after AutoCTR)."""

from collections import Counter
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nascore.protocols import TEST, TRAIN, VALID, Log, Protocol

FOLDS = (TRAIN,) * 8 + (VALID, TEST)
BLOCKS = 4_096


class Stratified(Protocol):
    """Of every ten rows of a label, in file order, eight train, one selects and one tests, at random.

    The authors draw ten folds of the whole file at once, which needs all labels in memory.
    """

    apart: ClassVar[bool] = True
    leaks: ClassVar[str] = "rows of all times train, so a model knows what came after the rows it is tested on"

    def survey(self, log: Log) -> None:
        self.met: Counter[int] = Counter()

    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        split = np.empty(len(user), np.int8)
        for label in np.unique(user).tolist():
            own = user == label
            split[own] = self._drawn(label, self.met[label], int(own.sum()))
            self.met[label] += int(own.sum())
        return split

    @staticmethod
    def _drawn(label: int, first: int, count: int) -> NDArray[np.int8]:
        """The splits of a label's rows from its `first` on."""
        size = BLOCKS * len(FOLDS)
        numbers = range(first // size, (first + count - 1) // size + 1)
        tens = np.broadcast_to(np.array(FOLDS, np.int8), (BLOCKS, len(FOLDS)))
        drawn = [np.random.default_rng((label, number)).permuted(tens, axis=1).ravel() for number in numbers]
        start = first - numbers[0] * size
        return np.concatenate(drawn)[start : start + count]
