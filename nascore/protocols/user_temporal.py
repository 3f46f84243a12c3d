"""Each user's rows cut 50/25/25 in time: no leak of a user's own future, though other users' future is seen."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nascore.protocols import OTHERS, TEST, TRAIN, VALID, Protocol, moved_back, starts


class UserTemporal(Protocol):
    """The first half of a user's rows trains, the next quarter selects, the last tests; equal times stay together."""

    sees: ClassVar[str] = OTHERS

    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        label = np.full(len(user), TEST, np.int8)
        first = starts(user)
        for start, end in zip(first, [*first[1:], len(user)], strict=True):
            times = timestamp[start:end]
            half, three_quarters = moved_back(len(times) // 2, times), moved_back(len(times) * 3 // 4, times)
            label[start : start + half] = TRAIN
            label[start + half : start + three_quarters] = VALID
        return label
