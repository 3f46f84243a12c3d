"""Two dates, at 50 % and 75 % of the rows: what a system would have known on those days; leak-free."""

import numpy as np
from numpy.typing import NDArray

from nascore.protocols import TEST, TRAIN, VALID, Log, Protocol

BINS = 65_536


class GlobalTemporal(Protocol):
    """Rows before the first date train, rows before the second select, the others test."""

    def survey(self, log: Log) -> None:
        rows = sum(len(timestamp) for _, timestamp in log())
        self.dates = value_at(log, rows // 2), value_at(log, rows * 3 // 4)

    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        first, second = self.dates
        return np.select([timestamp < first, timestamp < second], [TRAIN, VALID], TEST).astype(np.int8)


def value_at(log: Log, rank: int) -> int:
    """The timestamp at a rank of the sorted log, exactly, by histograms of ever narrower ranges in bounded memory."""
    low = min(int(timestamp.min()) for _, timestamp in log())
    high = max(int(timestamp.max()) for _, timestamp in log())
    while low < high:
        width = -(-(high - low + 1) // BINS)
        counts = np.zeros(BINS, np.int64)
        for _, timestamp in log():
            inside = timestamp[(timestamp >= low) & (timestamp <= high)]
            counts += np.bincount((inside - low) // width, minlength=BINS)
        bin_ = int(np.searchsorted(counts.cumsum(), rank, side="right"))
        rank -= int(counts[:bin_].sum())
        low, high = low + bin_ * width, min(low + (bin_ + 1) * width - 1, high)
    return low
