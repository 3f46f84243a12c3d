"""FDSA: self-attention over the items and, apart from it, over their features; both ends joined (Zhang et al., 2019).

Several features of an event are weighed by a small attention of their own. Without features the item stands for one, as
in the public code behind DNS-Rec's tables.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.methods.sasrec import SASRec, SASRecNet
from nascore.net import Net
from nascore.ops import build
from nascore.schema import Batch, Schema
from nascore.sequence_net import Encoder, Features, Inputs, feature_columns
from nascore.space import Mix, Space


class _FDSANet(SASRecNet):
    def __init__(self, method: "FDSA", schema: Schema, space: Space) -> None:
        super().__init__(method, schema, space)
        self.columns = feature_columns(schema)
        self.features = Features(self.columns, self.width)
        self.weigh = build("linear", D=self.width, O=1)
        self.feature_norm, self.feature_dropout = nn.LayerNorm(self.width), nn.Dropout(method.dropout)
        self.feature_encoder = Encoder(method.layers, method.layer, T=self.length, D=self.width)
        self.join = build("linear", D=2 * self.width, O=self.width)

    def embed(self, batch: Batch) -> Inputs:
        x = super().embed(batch)
        return {**x, "features": self.features(x)}

    def forward(self, x: Inputs, mix: Mix) -> dict[str, Tensor]:
        weight_BTF1 = self.weigh(x["features"]).softmax(2)
        feature_BTD = (weight_BTF1 * x["features"]).sum(2) + self.events.positions
        feature_BTD = self.feature_dropout(self.feature_norm(feature_BTD))
        ends = [
            self.encoder(self.first(x), x["mask"], self.ends),
            self.feature_encoder(feature_BTD, x["mask"], self.ends),
        ]
        joined: Tensor = self.join(torch.cat(ends, -1))
        return {"user": joined, "item": self.events.items.weight}

    def costs(self, mix: Mix) -> dict[str, Cost]:
        weigh, positions = self.weigh.cost(), self.length * len(self.columns)
        norm = Cost(params=sum(weight.numel() for weight in self.feature_norm.parameters()))
        own = Cost(params=weigh.params, macs=weigh.macs * positions) + norm + self.feature_encoder.cost()
        return {
            **super().costs(mix),
            "item/features": self.features.cost(),
            "user/features": own,
            "user/join": self.join.cost(),
        }


@dataclass(frozen=True, kw_only=True)
class FDSA(SASRec):
    """Two encoders; the fields are those of `SASRec`, for both."""

    def net(self, schema: Schema, space: Space) -> Net:
        return _FDSANet(self, schema, space)
