"""Rows that stand by themselves, cut 80/10/10 in time: what a system would have known on two dates; leak-free."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nascore.protocols import TEST, TRAIN, VALID, Log, Protocol, value_at


class Temporal(Protocol):
    """Rows before the date at 80 % of them train, those before the date at 90 % select, the others test.

    Rows of one timestamp stay together: where it counts days, so do the splits.
    """

    apart: ClassVar[bool] = True

    def survey(self, log: Log) -> None:
        rows = sum(len(timestamp) for _, timestamp in log())
        self.dates = value_at(log, rows * 8 // 10), value_at(log, rows * 9 // 10)

    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        first, second = self.dates
        return np.select([timestamp < first, timestamp < second], [TRAIN, VALID], TEST).astype(np.int8)
