"""Two dates, at 50 % and 75 % of the rows: what a system would have known on those days; leak-free."""

import numpy as np
from numpy.typing import NDArray

from nascore.protocols import TEST, TRAIN, VALID, Log, Protocol, value_at


class GlobalTemporal(Protocol):
    """Rows before the first date train, rows before the second select, the others test."""

    def survey(self, log: Log) -> None:
        rows = sum(len(timestamp) for _, timestamp in log())
        self.dates = value_at(log, rows // 2), value_at(log, rows * 3 // 4)

    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        first, second = self.dates
        return np.select([timestamp < first, timestamp < second], [TRAIN, VALID], TEST).astype(np.int8)
