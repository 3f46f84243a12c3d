"""Rows that stand by themselves, in days: the newest day tests, as it was still ahead when the model was trained."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nascore.protocols import TEST, TRAIN, VALID, Log, Protocol, value_at

DAY = 86_400


class NewestDay(Protocol):
    """Timestamps are seconds. The rows of the newest day test, the later half of the day before selects, others train.

    Days are 86,400 seconds from 0 on; a day without rows is none.
    """

    apart: ClassVar[bool] = True

    def survey(self, log: Log) -> None:
        self.newest = max(int(timestamp.max()) for _, timestamp in log()) // DAY * DAY
        before = [int(earlier.max()) for _, timestamp in log() if len(earlier := timestamp[timestamp < self.newest])]
        start = max(before, default=self.newest) // DAY * DAY

        def day() -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
            for label, timestamp in log():
                inside = (start <= timestamp) & (timestamp < self.newest)
                if inside.any():
                    yield label[inside], timestamp[inside]

        rows = sum(len(timestamp) for _, timestamp in day())
        self.middle = value_at(day, rows // 2) if rows else self.newest

    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        return np.select([timestamp < self.middle, timestamp < self.newest], [TRAIN, VALID], TEST).astype(np.int8)
