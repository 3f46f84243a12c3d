"""Click prediction: the logit of each row, judged by log loss, exact AUC and calibration (NASRec §5)."""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nascore import group, metrics
from nascore.rows import Data
from nascore.schema import Batch
from nascore.tasks import Model, Scores, Task

ROWS = 8_192
UNITS = 50_000


class Click(Task):
    """Outputs are logits (B,); labels are 0 or 1.

    A unit is a row, or, of more than 50,000 rows, a group of rows drawn in turn. AUC is no mean of rows, so its value
    for a row is its influence: AUC + (rows / rows of its label) x (share of the other label on the right side of it -
    AUC). Their mean is the AUC, ties counting half, and the variance of that mean is DeLong's (1988). Calibration is
    the mean prediction over the click rate: 1 is best.
    """

    headline = "log_loss"
    lower: ClassVar[frozenset[str]] = frozenset({"log_loss"})
    ratios: ClassVar[frozenset[str]] = frozenset({"calibration"})

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("log_loss", "auc", "calibration")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """This rank's rows over the joined batch's rows; ranks have equally many."""
        return self.validation_loss(output, batch) / group.size()

    def validation_loss(self, output: Tensor, batch: Batch, plain: bool = False) -> Tensor:
        assert batch.label is not None
        return functional.binary_cross_entropy_with_logits(output, batch.label.to(output.dtype))

    def evaluate(self, model: Model, data: Data) -> Scores:
        """Judge every row of a split."""
        logits, labels = [], []
        with torch.inference_mode():
            for row_B in torch.arange(data.rows, device=data.home).split(ROWS):
                batch = data.batch(row_B)
                assert batch.label is not None
                logits.append(model(batch))
                labels.append(batch.label)
        return self.judged(torch.cat(logits), torch.cat(labels), f"{data.schema.protocol}/all-rows")

    def judged(self, logit_B: Tensor, label_B: Tensor, protocol: str) -> Scores:
        """The scores of given logits and labels."""
        rate = label_B.to(torch.float64).mean()
        values = {
            "log_loss": metrics.log_loss(logit_B, label_B),
            "auc": metrics.auc_influence(logit_B, label_B),
            "calibration": logit_B.to(torch.float64).sigmoid() / rate,
        }
        units = min(len(label_B), UNITS)
        return Scores(
            protocol=protocol,
            units=np.arange(units, dtype=np.int64),
            values={name: grouped(value.cpu().numpy(), units) for name, value in values.items()},
            cold=np.zeros(units, bool),
        )


def grouped(value_B: NDArray[np.float64], units: int) -> NDArray[np.float64]:
    """Values of rows as those of `units` groups, the k-th row in group k mod units; mean and its variance stay."""
    if len(value_B) == units:
        return value_B
    mean = value_B.mean()
    apart = np.bincount(np.arange(len(value_B)) % units, weights=value_B - mean, minlength=units)
    shared: NDArray[np.float64] = mean + apart * units / len(value_B)
    return shared
