"""A transformer layer whose feed-forward net is scaled by what gates make of the embedded past (DNS-Rec eq. 5-8)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.attention import Keys, Kind, Mask
from nascore.ops import Op
from nascore.ops.transformer_layer import TransformerLayer, ended

SCALE = 2.0


class GatedLayer(Op):
    """F1 = GELU((g1 * S) W1 + b1), F2 = (g2 * F1) W2 + b2, output norm(S + F2), S the attention's normed output.

    Its second input X is the embedded past, the first one of all layers. A gate is `gates` linear maps of each position
    of X, ReLU between them and twice a sigmoid behind: D -> D … for g1, D -> inner -> inner … for g2. The other
    settings are those of the layer.
    """

    signature: ClassVar[str] = "BTD,BTD,BT -> BTD"
    examples: ClassVar[tuple[str, ...]] = (
        "gated_layer:inner=7,heads=1,gates=1",
        "gated_layer:inner=6,heads=1,gates=3,attention=linear,mask=causal",
    )

    def __init__(
        self,
        inner: int,
        gates: int = 2,
        heads: int = 4,
        attention: Kind = "linear",
        mask: Mask = "none",
        keys: Keys = "token",
        dropout: float = 0.2,
        attention_dropout: float = 0.0,
        *,
        T: int,
        D: int,
    ) -> None:
        super().__init__()
        if gates < 1:
            raise ValueError(f"gated_layer: gates is at least 1, not {gates}; without any it is a transformer_layer")
        self.layer = TransformerLayer(inner, heads, attention, mask, keys, dropout, attention_dropout, T=T, D=D)
        self.hidden_gate, self.inner_gate = _gate(gates, D, D), _gate(gates, D, inner)

    def forward(self, x_BTD: Tensor, first_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return self.every(x_BTD, first_BTD, mask_BT)

    def every(self, x_BTD: Tensor, first_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The output at all positions. Shape (B, T, D)."""
        return self.fed(self.layer.attended(x_BTD, mask_BT), first_BTD)

    def at(self, x_BTD: Tensor, first_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The output for the last event of each past alone. Shape (B, D)."""
        last_B = ended(mask_BT)
        first_BD = first_BTD[torch.arange(last_B.shape[0], device=last_B.device), last_B]
        return self.fed(self.layer.attended_at(x_BTD, mask_BT, last_B), first_BD)

    def fed(self, x: Tensor, first: Tensor) -> Tensor:
        """The gated feed-forward net, its residual and norm; over the last axis."""
        layer = self.layer
        hidden = functional.gelu(layer.widen(x * SCALE * self.hidden_gate(first).sigmoid()))
        hidden = layer.narrow(hidden * SCALE * self.inner_gate(first).sigmoid())
        normed: Tensor = layer.second_norm(x + layer.dropout(hidden))
        return normed

    def macs(self, last: bool = False) -> int:
        gates = sum(one.weight.numel() for gate in (self.hidden_gate, self.inner_gate) for one in _maps(gate))
        return self.layer.macs(last) + (1 if last else self.layer.length) * gates

    def core_macs(self, last: bool = False) -> int:
        return self.layer.core_macs(last)


def _gate(count: int, inputs: int, outputs: int) -> nn.Sequential:
    modules: list[nn.Module] = [nn.Linear(inputs, outputs)]
    for _ in range(count - 1):
        modules += [nn.ReLU(), nn.Linear(outputs, outputs)]
    return nn.Sequential(*modules)


def _maps(gate: nn.Sequential) -> list[nn.Linear]:
    return [one for one in gate if isinstance(one, nn.Linear)]
