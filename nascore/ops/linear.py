"""A linear map whose inputs and outputs can be searched: a slice of its weights is the narrower map."""

from collections.abc import Mapping
from math import prod
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import EVERY, Elastic, Live


class Linear(Elastic):
    """Linear(D -> O) over the last axis, after any others."""

    signature: ClassVar[str] = "BD -> BO"
    examples: ClassVar[tuple[str, ...]] = ("linear",)
    axes: Mapping[str, str] = {"weight": "OD", "bias": "O"}

    def __init__(self, *, D: int, O: int) -> None:
        super().__init__()
        initial = nn.Linear(D, O)
        self.weight, self.bias = initial.weight, initial.bias

    def forward(self, x: Tensor, live: Live = EVERY) -> Tensor:
        return functional.linear(x, self.kept("weight", live), self.kept("bias", live))

    def macs(self, live: Live = EVERY) -> int:
        return prod(self.shape("weight", live))
