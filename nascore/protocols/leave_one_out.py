"""Each user's last row tests, the one before it selects: as in work on sequences; other users' future is seen."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from nascore.protocols import OTHERS, TEST, TRAIN, VALID, Protocol, starts


class LeaveOneOut(Protocol):
    """All rows before those two train. Of two rows the first trains and the last tests; a single one trains.

    Their order decides, also among equal times. A user's first row has nothing before it, so it stands in histories
    only, as in RecBole.
    """

    strictly_earlier: ClassVar[bool] = False
    least_before: ClassVar[int] = 1
    sees: ClassVar[str] = OTHERS

    def split(self, user: NDArray[np.int32], timestamp: NDArray[np.int64]) -> NDArray[np.int8]:
        label = np.full(len(user), TRAIN, np.int8)
        edges = np.append(starts(user), len(user))
        rows, last = np.diff(edges), edges[1:] - 1
        label[last[rows > 1]] = TEST
        label[last[rows > 2] - 1] = VALID
        return label
