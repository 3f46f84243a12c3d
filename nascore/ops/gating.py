"""One tensor lets through how much of another (NASRec §3.1, Sigmoid Gating)."""

from typing import ClassVar

from torch import Tensor

from nascore.ops import EVERY, Elastic, Live


class Gating(Elastic):
    """sigmoid(FC(left)) * FC(right), norm.

    square: the gate is as wide as the right, L x R weights, and what passes is mapped to O, as in the public code.
    Otherwise both sides are first mapped to O, which needs no more weights than the other operators.
    """

    signature: ClassVar[str] = "BL,BR -> BO"
    examples: ClassVar[tuple[str, ...]] = ("gating", "gating:square=true", "gating:norm=false")

    def __init__(self, square: bool = False, norm: bool = True, *, L: int, R: int, O: int) -> None:
        super().__init__()
        self.square = square
        self.give_map("gate", *(("RL", R) if square else ("OL", O)), L)
        self.give_map("value", "OR", O, R)
        if norm:
            self.give_norm("norm", "O", O)

    def forward(self, left_BL: Tensor, right_BR: Tensor, live: Live = EVERY) -> Tensor:
        gate = self.linear("gate", left_BL, live).sigmoid()
        if self.square:
            return self.normed("norm", self.linear("value", gate * right_BR, live), live)
        return self.normed("norm", gate * self.linear("value", right_BR, live), live)

    def macs(self, live: Live = EVERY) -> int:
        gates, left = self.shape("gate.weight", live)
        outputs, right = self.shape("value.weight", live)
        return gates * left + outputs * right
