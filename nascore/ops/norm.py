"""Layer normalisation over the live positions of an axis that can be searched (Ba, Kiros and Hinton, 2016)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import EVERY, Elastic, Live


class Norm(Elastic):
    """Mean 0 and variance 1 over the last axis, then scaled and shifted; moments are those of the live positions."""

    signature: ClassVar[str] = "BD -> BD"
    examples: ClassVar[tuple[str, ...]] = ("norm",)
    axes: Mapping[str, str] = {"weight": "D", "bias": "D"}

    def __init__(self, *, D: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor, live: Live = EVERY) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.kept("weight", live), self.kept("bias", live), self.epsilon)

    def macs(self, live: Live = EVERY) -> int:
        return 0
