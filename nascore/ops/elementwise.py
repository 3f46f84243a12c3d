"""Element-wise interaction of the inputs, aligned to the output width (AutoTower, Table 1 and §3.2.3)."""

from collections.abc import Callable
from functools import partial, reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import Op


class Elementwise(Op):
    """Sum, mean, product, max or min over the N inputs, then Linear(D -> O). `product` is Table 1's inner product."""

    signature: ClassVar[str] = "BND -> BO"
    examples: ClassVar[tuple[str, ...]] = (
        "elementwise:sum",
        "elementwise:mean",
        "elementwise:product",
        "elementwise:max",
        "elementwise:min",
    )

    def __init__(self, how: Literal["sum", "mean", "product", "max", "min"], *, N: int, D: int, O: int) -> None:
        super().__init__()
        reductions: dict[str, Callable[[Tensor], Tensor]] = {
            "sum": partial(torch.sum, dim=1),
            "mean": partial(torch.mean, dim=1),
            "product": _product,
            "max": partial(torch.amax, dim=1),
            "min": partial(torch.amin, dim=1),
        }
        self.reduce = reductions[how]
        self.align = nn.Linear(D, O)

    def forward(self, x_BND: Tensor) -> Tensor:
        return functional.linear(self.reduce(x_BND), self.align.weight, self.align.bias)

    def macs(self) -> int:
        return self.align.weight.numel()


def _product(x_BND: Tensor) -> Tensor:
    # factor by factor: where an input is 0, the gradient of torch.prod waits for the device and is 5 times slower
    return reduce(torch.mul, x_BND.unbind(1))
