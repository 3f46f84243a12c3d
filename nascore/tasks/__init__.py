"""Tasks: what a model is trained for and how it is judged. One a file.

To add one: write `nascore/tasks/<name>.py` with one class that extends `Task`. A task is a module: what it learns
about the data (sampling corrections) is saved and restored with the weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from nascore.rows import Data
from nascore.schema import Batch, Column, Schema

Model = Callable[[Batch], Any]


@dataclass(frozen=True)
class Scores:
    """One value a unit (a user, or a row) for each metric, with the id of the protocol that they hold under.

    A metric's mean is the number to report. `cold` marks units without a training row; they are reported apart.
    """

    protocol: str
    units: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float64]]
    cold: NDArray[np.bool_]

    def means(self) -> dict[str, float]:
        """Each metric over the units that are not cold, and as `<metric>/cold` over those that are."""
        means = {}
        for metric, values in self.values.items():
            for name, chosen in ((metric, ~self.cold), (f"{metric}/cold", self.cold)):
                if chosen.any():
                    means[name] = float(values[chosen].mean())
        return means


class Task(nn.Module, ABC):
    """The loss to train by and the evaluation to report.

    headline: the metric that models are compared by. lower: metrics of which less is better; ratios: those of which 1
    is best. in_batch: whether the loss of a row hangs on the other rows of its batch. unmet: whether it judges by users
    who train, with items that they have not met.
    """

    headline: str
    lower: ClassVar[frozenset[str]] = frozenset()
    ratios: ClassVar[frozenset[str]] = frozenset()
    in_batch: ClassVar[bool] = False
    unmet: ClassVar[bool] = False

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The names of all that `evaluate` measures."""

    @staticmethod
    def reads(schema: Schema) -> tuple[Column, ...]:
        """The columns that nets of this task may read."""
        return schema.columns

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """This rank's share of the loss of the joined batch: a scalar; the shares sum to the loss.

        A supernet that trains several paths a step gives a list of their outputs; a task need not take it.
        """

    @abstractmethod
    def validation_loss(self, output: Any, batch: Batch, plain: bool = False) -> Tensor:
        """The mean loss of a batch by itself; `plain` leaves out temperature and corrections. A scalar."""

    @abstractmethod
    def evaluate(self, model: Model, data: Data) -> Scores:
        """Judge a model, a function from batch to output, on a whole split."""


CONTRACT = Task
