"""A layer of attention and feed-forward net, residual and norm behind each (Kang and McAuley, 2018; DNS-Rec eq. 8)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.attention import Keys, Kind, Mask, of_kind
from nascore.ops import Op


class TransformerLayer(Op):
    """Attention of `heads` heads, then Linear(D -> inner), GELU, Linear(inner -> D); dropout before each residual.

    The past is padded on the right. attention, mask, keys, attention_dropout: see `nascore.attention`.
    """

    signature: ClassVar[str] = "BTD,BT -> BTD"
    examples: ClassVar[tuple[str, ...]] = (
        "transformer_layer:inner=10,heads=1",
        "transformer_layer:inner=7,heads=1,attention=linear",
        "transformer_layer:inner=7,heads=1,attention=linear,mask=padding,keys=column",
        "transformer_layer:inner=7,heads=1,attention=linear,mask=causal",
    )

    def __init__(
        self,
        inner: int,
        heads: int = 4,
        attention: Kind = "softmax",
        mask: Mask = "none",
        keys: Keys = "token",
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        *,
        T: int,
        D: int,
    ) -> None:
        super().__init__()
        self.length = T
        self.attention = of_kind(attention, heads, attention_dropout, mask, keys, T, D)
        self.widen, self.narrow = nn.Linear(D, inner), nn.Linear(inner, D)
        self.first_norm, self.second_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return self.every(x_BTD, mask_BT)

    def every(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The output at all positions. Shape (B, T, D)."""
        return self.fed(self.attended(x_BTD, mask_BT))

    def at(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The output for the last event of each past alone. Shape (B, D)."""
        return self.fed(self.attended_at(x_BTD, mask_BT, ended(mask_BT)))

    def attended(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The attention, its residual and norm."""
        normed: Tensor = self.first_norm(x_BTD + self.dropout(self.attention(x_BTD, mask_BT)))
        return normed

    def attended_at(self, x_BTD: Tensor, mask_BT: Tensor, last_B: Tensor) -> Tensor:
        """The same at these places alone. Shape (B, D)."""
        own_BD = x_BTD[torch.arange(last_B.shape[0], device=last_B.device), last_B]
        normed: Tensor = self.first_norm(own_BD + self.dropout(self.attention.at(x_BTD, mask_BT, last_B)))
        return normed

    def fed(self, x: Tensor) -> Tensor:
        """The feed-forward net, its residual and norm; over the last axis."""
        hidden = self.narrow(functional.gelu(self.widen(x)))
        normed: Tensor = self.second_norm(x + self.dropout(hidden))
        return normed

    def macs(self, last: bool = False) -> int:
        return self.attention.macs(last) + (1 if last else self.length) * self.fed_macs()

    def fed_macs(self) -> int:
        """Those of the feed-forward net at one position."""
        return 2 * self.widen.weight.numel()

    def core_macs(self, last: bool = False) -> int:
        return self.attention.core_macs(last)


def ended(mask_BT: Tensor) -> Tensor:
    """The place of each past's last event, 0 of an empty one. Shape (B,)."""
    place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return (place_T * mask_BT).amax(1)
