"""Two tensors brought to one width and added (NASRec §3.1, Sum)."""

from typing import ClassVar

from torch import Tensor

from nascore.ops import EVERY, Elastic, Live


class Add(Elastic):
    """Linear(L -> O) of the left, plus Linear(R -> O) of the right, norm.

    Both are always projected, as the inputs of a block have a width for each path through the supernet.
    """

    signature: ClassVar[str] = "BL,BR -> BO"
    examples: ClassVar[tuple[str, ...]] = ("add", "add:norm=false")

    def __init__(self, norm: bool = True, *, L: int, R: int, O: int) -> None:
        super().__init__()
        self.give_map("left", "OL", O, L, bias=False)
        self.give_map("right", "OR", O, R, bias=not norm)
        if norm:
            self.give_norm("norm", "O", O)

    def forward(self, left_BL: Tensor, right_BR: Tensor, live: Live = EVERY) -> Tensor:
        sum_BO = self.linear("left", left_BL, live) + self.linear("right", right_BR, live)
        return self.normed("norm", sum_BO, live)

    def macs(self, live: Live = EVERY) -> int:
        outputs, left = self.shape("left.weight", live)
        return outputs * (left + self.shape("right.weight", live)[1])
