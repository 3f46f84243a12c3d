"""Squeeze and excitation: every field weighed by all fields' means (Hu et al., 2018; FiBiNET, Huang et al., 2019)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nascore.ops import Op


class SqueezeExcitation(Op):
    """The N inputs scaled by gate(W2 relu(W1 z)), z their means over D; W1 leads to N / `reduction` units, at least 1.

    gate: the original ends in a sigmoid, public code of FiBiNET in a ReLU, which cuts off for good a field whose
    weight starts out negative for every example.
    """

    signature: ClassVar[str] = "BND -> BND"
    examples: ClassVar[tuple[str, ...]] = ("squeeze_excitation:3", "squeeze_excitation:3,gate=relu")

    def __init__(self, reduction: int = 3, gate: Literal["sigmoid", "relu"] = "sigmoid", *, N: int, D: int) -> None:
        super().__init__()
        narrow = max(1, N // reduction)
        self.squeeze = nn.Linear(N, narrow, bias=False)
        self.excite = nn.Linear(narrow, N, bias=False)
        self.gate = {"sigmoid": torch.sigmoid, "relu": torch.relu}[gate]

    def forward(self, x_BND: Tensor) -> Tensor:
        weight_BN: Tensor = self.gate(self.excite(torch.relu(self.squeeze(x_BND.mean(2)))))
        return x_BND * weight_BN[:, :, None]

    def macs(self) -> int:
        return self.squeeze.weight.numel() + self.excite.weight.numel()
