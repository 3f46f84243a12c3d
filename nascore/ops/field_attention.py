"""Attention of fields to fields without weights of its own (NASRec §3.1, Self-Attention)."""

from typing import ClassVar

from torch import Tensor, nn

from nascore.ops import EVERY, Elastic, Live, weights


class FieldAttention(Elastic):
    """softmax(X Xt / sqrt(E)) X over N fields, then Linear(N -> M), norm over M."""

    signature: ClassVar[str] = "BEN -> BEM"
    examples: ClassVar[tuple[str, ...]] = ("field_attention", "field_attention:norm=false")

    def __init__(self, norm: bool = True, *, E: int, N: int, M: int) -> None:
        super().__init__()
        self.width = E
        self.map = weights(N, M, bias=not norm)
        self.axes = {"map.weight": "MN"}
        if norm:
            self.norm = nn.LayerNorm(M)
            self.axes |= {"norm.weight": "M", "norm.bias": "M"}
        else:
            self.axes |= {"map.bias": "M"}

    def forward(self, x_BEN: Tensor, live: Live = EVERY) -> Tensor:
        score_BNN = x_BEN.transpose(1, 2) @ x_BEN / x_BEN.shape[1] ** 0.5
        mixed_BEN = x_BEN @ score_BNN.softmax(2).transpose(1, 2)
        return self.normed("norm", self.linear("map", mixed_BEN, live), live)

    def macs(self, live: Live = EVERY) -> int:
        outputs, fields = self.shape("map.weight", live)
        return len(live.get("E", range(self.width))) * (outputs * fields + 2 * fields * fields)
