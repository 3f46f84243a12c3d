"""SASRec: self-attention over the past, scored by tied item vectors (Kang and McAuley, 2018), as RecBole builds it.

Norms stand behind the residuals and GELU inside. With attention=linear it is SASRec + LinRec (Liu et al., 2023), with
the settings of DNS-Rec's experiments.

Ours: linear maps and norms begin as PyTorch's do, not as RecBole's (normal weights of deviation 0.02, epsilon 1e-12).
"""

from dataclasses import dataclass

from torch import Tensor

from nascore.attention import Keys, Kind, Mask
from nascore.cost import Cost
from nascore.methods import SequenceBaseline
from nascore.net import Net
from nascore.plugins import bounded
from nascore.schema import Batch, Schema
from nascore.sequence_net import Encoder, Events, Inputs, SequenceNet, Training
from nascore.space import Mix, Space


class SASRecNet(SequenceNet):
    """Layers over the sum of item and position."""

    def __init__(self, method: "SASRec", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.training, method.hidden)
        self.events = Events(method.dropout, I=schema.items, T=self.length, D=self.width)
        self.encoder = Encoder(method.layers, method.layer, T=self.length, D=self.width)

    def embed(self, batch: Batch) -> Inputs:
        x = super().embed(batch)
        return {**x, "events": self.events.looked_up(x["history"])}

    def first(self, x: Inputs) -> Tensor:
        """What the first layer sees. Shape (B, T, D)."""
        normed: Tensor = self.events.dropout(self.events(x["events"]))
        return normed

    def forward(self, x: Inputs, mix: Mix) -> dict[str, Tensor]:
        encoded: Tensor = self.encoder(self.first(x), x["mask"], self.ends)
        return {"user": encoded, "item": self.events.items.weight}

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return {"item/events": self.events.cost(), "user/layers": self.encoder.cost()}


@dataclass(frozen=True, kw_only=True)
class SASRec(SequenceBaseline):
    """Layers of self-attention.

    Args:
        layers: Their number.
        heads: Of each attention.
        hidden: Width of an item's vector and of every layer.
        inner: Units of each feed-forward net.
        dropout: Behind the look-up, each attention and each feed-forward net.
        attention: softmax, or linear, LinRec's.
        attention_dropout: On the weights of softmax.
        mask: What linear attention hides: none, padding or causal.
        keys: How linear attention brings keys to unit length: token, or column.
        training: How it is trained.
    """

    layers: int = 2
    heads: int = 4
    hidden: int = 128
    inner: int = 256
    dropout: float = 0.2
    attention: Kind = "softmax"
    attention_dropout: float = 0.2
    mask: Mask = "none"
    keys: Keys = "token"
    training: Training = Training()

    def __post_init__(self) -> None:
        bounded(self, layers=1, heads=1, hidden=1, inner=1, dropout=0, attention_dropout=0)
        self.training.check(self, self.attention, self.mask)

    @property
    def label(self) -> str:
        return type(self).__name__ + (" + LinRec" if self.attention == "linear" else "")

    @property
    def layer(self) -> str:
        """The settings of a layer, as in a spec."""
        names = ("inner", "heads", "attention", "mask", "keys", "dropout", "attention_dropout")
        return ",".join(f"{name}={getattr(self, name)}" for name in names)

    def net(self, schema: Schema, space: Space) -> Net:
        return SASRecNet(self, schema, space)
