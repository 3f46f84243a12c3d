"""One hidden layer over the concatenated inputs, aligned to the output width (AutoTower, Table 1 and §3.2.3)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import Op


class Mlp(Op):
    """Linear(N·D -> hidden), ReLU, Linear(hidden -> O). The public code has no ReLU there: `activation=identity`.

    Without activation the two maps are one, of the product of their weights; it is used where that is less work for the
    batch at hand. The cost is that of the two.
    """

    signature: ClassVar[str] = "BND -> BO"
    examples: ClassVar[tuple[str, ...]] = ("mlp:16", "mlp:64,activation=identity")

    def __init__(
        self, hidden: int, activation: Literal["relu", "identity"] = "relu", *, N: int, D: int, O: int
    ) -> None:
        super().__init__()
        self.widen = nn.Linear(N * D, hidden)
        self.activation = {"relu": nn.ReLU(), "identity": nn.Identity()}[activation]
        self.align = nn.Linear(hidden, O)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BI = x_BND.flatten(1)
        if isinstance(self.activation, nn.Identity) and self._merges(x_BI.shape[0]):
            bias_O = torch.addmv(self.align.bias, self.align.weight, self.widen.bias)
            return functional.linear(x_BI, self.align.weight @ self.widen.weight, bias_O)
        aligned_BO: Tensor = self.align(self.activation(self.widen(x_BI)))
        return aligned_BO

    def _merges(self, batch: int) -> bool:
        """Whether to multiply the weights first is less work; costs are counted for one example, where it never is.

        An exported program must hold for any batch, so it has the two maps.
        """
        if torch.compiler.is_exporting():
            return False
        inputs, hidden, output = self.widen.in_features, self.widen.out_features, self.align.out_features
        return batch > 1 and output * inputs * (hidden + batch) < batch * self.macs()

    def macs(self) -> int:
        return self.widen.weight.numel() + self.align.weight.numel()
