"""DARTS (Liu et al., 2019), to first order: every option runs, weighted by the softmax of what is learned.

DNS-Rec compares with it as another search strategy (§3.2).
"""

from typing import Any

import torch

from nascore.samplers import Logits
from nascore.space import Mix


class Darts(Logits):
    """Draws nothing, so nothing hangs on the seed. A step of the net's weights leaves the logits without gradient."""

    @torch.no_grad()
    def forward(self, x: Any, step: int) -> Mix:
        return self.softmax(self.logits)

    def relaxed(self, x: Any, step: int) -> Mix:
        return self.softmax(self.logits)
