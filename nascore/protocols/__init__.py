"""Protocols: which rows train, select and test, what a history may show, and which items are candidates. One a file.

To add one: write `nascore/protocols/<name>.py` with one class that extends `Protocol`; its file name is the id that
every number measured under it carries. By existing it inherits tests that its splits are disjoint and complete, that
the same log gives the same split, and, unless `leaks` says otherwise, that no user is shown its own future.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

TRAIN, VALID, TEST = 0, 1, 2
BINS = 65_536
OTHERS = "rows of other users that are later than those tested train the models too"
Log = Callable[[], Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]]


class Protocol(ABC):
    """`survey` may walk the whole log in chunks; `split` then labels the rows of whole users.

    apart: whether it splits rows that stand by themselves instead: `split` is then called for chunks in file order, and
    in place of the users both get the rows' labels.
    history_from: the splits that a split's histories are made of. seen_in: the splits whose items are no candidates
    when a split is ranked. least_before: how many earlier events a row needs to be one; rows with fewer stand in
    histories only. leaks: what the protocol shows that it should not, "" if nothing.
    sees: what models learn of other users' later rows, which no forecast could know, "" if nothing.
    """

    history_from: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train",),
        "valid": ("train",),
        "test": ("train", "valid"),
    }
    seen_in: ClassVar[Mapping[str, tuple[str, ...]]] = {"train": (), "valid": ("train",), "test": ("train", "valid")}
    strictly_earlier: ClassVar[bool] = True
    least_before: ClassVar[int] = 0
    leaks: ClassVar[str] = ""
    sees: ClassVar[str] = ""
    apart: ClassVar[bool] = False

    def survey(self, log: Log) -> None:  # noqa: B027 (most protocols need none)
        """Learn what a split depends on beyond one user; each call of `log` walks chunks of (user, timestamp)."""

    @abstractmethod
    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        """TRAIN, VALID or TEST for each row; rows of whole users, ordered by (user, timestamp, file order)."""


CONTRACT = Protocol


def starts(keys: NDArray[np.generic]) -> NDArray[np.int64]:
    """Where each run of equal values begins."""
    changed = np.flatnonzero(keys[1:] != keys[:-1]) + 1
    return np.concatenate([np.zeros(min(1, len(keys)), np.int64), changed])


def moved_back(cut: int, timestamp: NDArray[np.int64]) -> int:
    """The cut, or the start of the equal timestamps that it would tear apart."""
    if not 0 < cut < len(timestamp):
        return cut
    return int(np.searchsorted(timestamp, timestamp[cut], side="left"))


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
