"""A gated recurrent unit over a past (Cho et al., 2014), as GRU4Rec has it (Hidasi et al., 2016)."""

from typing import ClassVar

from torch import Tensor, nn

from nascore.ops import Op


class Gru(Op):
    """`layers` recurrent layers of O units; the state at every position."""

    signature: ClassVar[str] = "BTD -> BTO"
    examples: ClassVar[tuple[str, ...]] = ("gru", "gru:layers=2")

    def __init__(self, layers: int = 1, *, T: int, D: int, O: int) -> None:
        super().__init__()
        self.length = T
        self.units = nn.GRU(D, O, layers, batch_first=True)

    def forward(self, x_BTD: Tensor) -> Tensor:
        state_BTO: Tensor = self.units(x_BTD)[0]
        return state_BTO

    def macs(self) -> int:
        return self.length * sum(weight.numel() for weight in self.units.parameters() if weight.dim() == 2)

    def core_macs(self) -> int:
        return self.macs()
