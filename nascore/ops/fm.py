"""The square of a sum less the sum of squares: twice all pairs of fields at once (Rendle, 2010)."""

from typing import ClassVar

from torch import Tensor, nn

from nascore.ops import EVERY, Elastic, Live, weights


class Fm(Elastic):
    """(sum of N vectors)^2 less the sum of their squares, then Linear(E -> O), norm; as in NASRec's public code."""

    signature: ClassVar[str] = "BEN -> BO"
    examples: ClassVar[tuple[str, ...]] = ("fm", "fm:norm=false")

    def __init__(self, norm: bool = True, *, E: int, N: int, O: int) -> None:
        super().__init__()
        self.map = weights(E, O, bias=not norm)
        self.axes = {"map.weight": "OE"}
        if norm:
            self.norm = nn.LayerNorm(O)
            self.axes |= {"norm.weight": "O", "norm.bias": "O"}
        else:
            self.axes |= {"map.bias": "O"}

    def forward(self, x_BEN: Tensor, live: Live = EVERY) -> Tensor:
        pair_BE = x_BEN.sum(2).square() - x_BEN.square().sum(2)
        return self.normed("norm", self.linear("map", pair_BE, live), live)

    def macs(self, live: Live = EVERY) -> int:
        outputs, width = self.shape("map.weight", live)
        return outputs * width
