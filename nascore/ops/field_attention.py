"""Attention of fields to fields without weights of its own (NASRec §3.1, Self-Attention)."""

from typing import ClassVar

from torch import Tensor

from nascore.ops import EVERY, Elastic, Live


class FieldAttention(Elastic):
    """Linear(N -> M), norm, softmax(X Xt / sqrt(E)) X over the M vectors, norm.

    The paper maps outputs (§3.2) or inputs (§3.1) to the dimension; with the N inputs of a supernet attended to, its
    cost would be that of N x N products.
    """

    signature: ClassVar[str] = "BEN -> BEM"
    examples: ClassVar[tuple[str, ...]] = ("field_attention", "field_attention:norm=false")

    def __init__(self, norm: bool = True, *, E: int, N: int, M: int) -> None:
        super().__init__()
        self.width = E
        self.give_map("map", "MN", M, N, bias=not norm)
        for name in ("map_norm", "norm") if norm else ():
            self.give_norm(name, "M", M)

    def forward(self, x_BEN: Tensor, live: Live = EVERY) -> Tensor:
        x_BME = self.normed("map_norm", self.linear("map", x_BEN, live), live).transpose(1, 2)
        score_BMM = (x_BME / x_BME.shape[2] ** 0.5) @ x_BME.transpose(1, 2)
        mixed_BME = score_BMM.softmax(2) @ x_BME
        return self.normed("norm", mixed_BME.transpose(1, 2), live)

    def macs(self, live: Live = EVERY) -> int:
        outputs, fields = self.shape("map.weight", live)
        return len(live.get("E", range(self.width))) * (outputs * fields + 2 * outputs**2)
