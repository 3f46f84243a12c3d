"""The floor of next items: for every user the items that came most often, after whatever past."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.methods import SequenceBaseline
from nascore.net import Net
from nascore.rows import Data
from nascore.schema import Schema
from nascore.sequence_net import Inputs, SequenceNet, Training
from nascore.space import Mix, Space
from nascore.training import Plan


class _PopularNextNet(SequenceNet):
    """An item's vector is its number of training events, a past's is 1."""

    def __init__(self, schema: Schema, space: Space, training: Training) -> None:
        super().__init__(schema, space, training, width=1)
        self.events = nn.Parameter(torch.zeros(schema.items, 1), requires_grad=False)

    def forward(self, x: Inputs, mix: Mix) -> dict[str, Tensor]:
        return {"user": self.events.new_ones(x["history"].shape[0], 1), "item": self.events}

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return {"item/events": Cost(table_params=self.events.numel())}

    def solve(self, data: Data) -> None:
        counts = torch.bincount(data.relevant.item.long(), minlength=len(self.events))
        self.events.copy_(counts[:, None])


@dataclass(frozen=True, kw_only=True)
class PopularNext(SequenceBaseline):
    """Most popular items first; nothing to decide, nothing to tune.

    Args:
        training: Says how next items are ranked.
    """

    training: Training = Training()

    @property
    def label(self) -> str:
        return "Popularity"

    def net(self, schema: Schema, space: Space) -> Net:
        return _PopularNextNet(schema, space, self.training)

    @property
    def retrain(self) -> Plan:
        return Plan(self.training.batch)

    def tunables(self) -> Space:
        return Space([])
