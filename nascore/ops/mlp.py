"""One hidden layer over the concatenated inputs, aligned to the output width (AutoTower, Table 1 and §3.2.3)."""

from typing import ClassVar, Literal

from torch import Tensor, nn

from nascore.ops import Op


class Mlp(Op):
    """Linear(N·D -> hidden), ReLU, Linear(hidden -> O). The public code has no ReLU there: `activation=identity`."""

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
        aligned_BO: Tensor = self.align(self.activation(self.widen(x_BND.flatten(1))))
        return aligned_BO

    def macs(self) -> int:
        return self.widen.weight.numel() + self.align.weight.numel()
