"""The square of a sum less the sum of squares: twice all pairs of fields at once (Rendle, 2010)."""

from typing import ClassVar

from torch import Tensor

from nascore.ops import EVERY, Elastic, Live


class Fm(Elastic):
    """(sum of N vectors)^2 less the sum of their squares, then Linear(E -> O), norm; as in NASRec's public code."""

    signature: ClassVar[str] = "BEN -> BO"
    examples: ClassVar[tuple[str, ...]] = ("fm", "fm:norm=false")

    def __init__(self, norm: bool = True, *, E: int, N: int, O: int) -> None:
        super().__init__()
        self.give_map("map", "OE", O, E, bias=not norm)
        if norm:
            self.give_norm("norm", "O", O)

    def forward(self, x_BEN: Tensor, live: Live = EVERY) -> Tensor:
        pair_BE = x_BEN.sum(2).square() - x_BEN.square().sum(2)
        return self.normed("norm", self.linear("map", pair_BE, live), live)

    def macs(self, live: Live = EVERY) -> int:
        outputs, width = self.shape("map.weight", live)
        return outputs * width
