"""SASRecF: SASRec that sees an event's features beside the item, all mapped to one vector (RecBole).

A set is the mean of its members' vectors, where RecBole sums them. Without features the item stands for one, as in the
public code behind DNS-Rec's tables.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nascore.cost import Cost
from nascore.methods.sasrec import SASRec, SASRecNet
from nascore.net import Net
from nascore.ops import build
from nascore.schema import Batch, Schema
from nascore.sequence_net import Features, Inputs, feature_columns
from nascore.space import Mix, Space


class _SASRecFNet(SASRecNet):
    def __init__(self, method: "SASRecF", schema: Schema, space: Space) -> None:
        super().__init__(method, schema, space)
        self.columns = feature_columns(schema)
        self.features = Features(self.columns, self.width)
        self.join = build("linear", D=(1 + len(self.columns)) * self.width, O=self.width)

    def embed(self, batch: Batch) -> Inputs:
        x = super().embed(batch)
        return {**x, "items": self.events.items(x["history"]), "features": self.features(x)}

    def first(self, x: Inputs) -> Tensor:
        side_BTFD = torch.cat([x["items"][:, :, None], x["features"]], 2)
        joined_BTD = self.join(side_BTFD.flatten(2)) + self.events.positions
        normed: Tensor = self.events.dropout(self.events(joined_BTD))
        return normed

    def costs(self, mix: Mix) -> dict[str, Cost]:
        join = self.join.cost()
        joining = Cost(params=join.params, macs=join.macs * self.length)
        return {**super().costs(mix), "item/features": self.features.cost(), "user/join": joining}


@dataclass(frozen=True, kw_only=True)
class SASRecF(SASRec):
    """SASRec with features; its fields are those of `SASRec`."""

    def net(self, schema: Schema, space: Space) -> Net:
        return _SASRecFNet(self, schema, space)
