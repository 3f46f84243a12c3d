"""GRU4Rec: a recurrent net over the past, scored by tied item vectors (Hidasi et al., 2016), as RecBole builds it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.embedding import Embedding
from nascore.methods import SequenceBaseline
from nascore.net import Net
from nascore.ops import build
from nascore.plugins import bounded
from nascore.schema import Batch, Schema
from nascore.sequence_net import Inputs, SequenceNet, Training
from nascore.space import Mix, Space


class _GRU4RecNet(SequenceNet):
    def __init__(self, method: "GRU4Rec", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.training, method.embedding)
        self.items = Embedding(schema.items, self.width)
        nn.init.xavier_uniform_(self.items.weight[1:])
        self.dropout = nn.Dropout(method.dropout)
        self.units = build(f"gru:{method.layers}", T=self.length, D=self.width, O=method.hidden)
        self.output = build("linear", D=method.hidden, O=self.width)

    def embed(self, batch: Batch) -> Inputs:
        x = super().embed(batch)
        return {**x, "events": self.items(x["history"])}

    def forward(self, x: Inputs, mix: Mix) -> dict[str, Tensor]:
        state = self.units(self.dropout(x["events"]))
        if self.ends:
            last_B = (x["mask"].sum(1) - 1).clamp(min=0)
            state = state[torch.arange(last_B.shape[0], device=last_B.device), last_B]
        output: Tensor = self.output(state)
        return {"user": output, "item": self.items.weight}

    def costs(self, mix: Mix) -> dict[str, Cost]:
        table = Cost(table_params=self.items.weight.numel())
        return {"item/events": table, "user/units": self.units.cost(), "user/output": self.output.cost()}


@dataclass(frozen=True, kw_only=True)
class GRU4Rec(SequenceBaseline):
    """A recurrent net.

    Args:
        layers: Recurrent layers.
        hidden: Their units.
        embedding: Width of an item's vector.
        dropout: Behind the look-up.
        training: How it is trained.
    """

    layers: int = 1
    hidden: int = 128
    embedding: int = 64
    dropout: float = 0.3
    training: Training = Training()

    def __post_init__(self) -> None:
        bounded(self, layers=1, hidden=1, embedding=1, dropout=0)
        self.training.check(self)

    def net(self, schema: Schema, space: Space) -> Net:
        return _GRU4RecNet(self, schema, space)
