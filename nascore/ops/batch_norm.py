"""Batch normalisation whose moments are those of the joined batch of all ranks (Ioffe and Szegedy, 2015)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore import group
from nascore.ops import Op


class BatchNorm(Op):
    """Standardises each of the O outputs, then scales and shifts it.

    In training by the batch's moments, which `running_mean` and `running_var` follow with `momentum`; else by those.
    """

    signature: ClassVar[str] = "BO -> BO"
    examples: ClassVar[tuple[str, ...]] = ("batch_norm",)
    epsilon: ClassVar[float] = 1e-5
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, *, O: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(O)), nn.Parameter(torch.zeros(O))
        self.register_buffer("running_mean", torch.zeros(O))
        self.register_buffer("running_var", torch.ones(O))
        self.momentum = 0.1

    def forward(self, x_BO: Tensor) -> Tensor:
        if not self.training or group.size() == 1:
            return functional.batch_norm(
                x_BO,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.epsilon,
            )
        rows = len(x_BO) * group.size()
        mean_O = group.total(x_BO.sum(0)) / rows
        var_O = group.total((x_BO - mean_O).square().sum(0)) / rows
        with torch.no_grad():
            self.running_mean.lerp_(mean_O, self.momentum)
            self.running_var.lerp_(var_O * rows / (rows - 1), self.momentum)
        return (x_BO - mean_O) * torch.rsqrt(var_O + self.epsilon) * self.weight + self.bias

    def standardize(self, x_BO: Tensor, mean_O: Tensor, var_O: Tensor) -> Tensor:
        """Normalise by given moments instead of the running ones."""
        return functional.batch_norm(x_BO, mean_O, var_O, self.weight, self.bias, False, 0.0, self.epsilon)

    def macs(self) -> int:
        return 0
