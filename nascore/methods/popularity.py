"""The floor: every user is shown the items with the most training events."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.methods import ClosedForm
from nascore.net import Net
from nascore.rows import Data
from nascore.schema import Batch, Schema
from nascore.space import Mix, Space
from nascore.tasks.retrieval import Retrieval


class _Popularity(Net):
    """An item's vector is its number of training events, a user's is 1."""

    def __init__(self, schema: Schema, space: Space) -> None:
        super().__init__(schema, space)
        self.events = nn.Parameter(torch.zeros(schema.items, 1), requires_grad=False)

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        return dict(batch.keys)

    def forward(self, x: dict[str, Tensor], mix: Mix) -> dict[str, Tensor]:
        output = {"user": self.events.new_ones(x["user"].shape[0], 1)} if "user" in x else {}
        return output | ({"item": self.events[x["item"].long()]} if "item" in x else {})

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return {"item/events": Cost(table_params=self.events.numel())}

    def solve(self, data: Data) -> None:
        counts = torch.bincount(data.relevant.item.long(), minlength=len(self.events))
        self.events.copy_(counts[:, None])


@dataclass(frozen=True, kw_only=True)
class Popularity(ClosedForm):
    """Most popular items first; nothing to decide, nothing to tune."""

    def net(self, schema: Schema, space: Space) -> Net:
        return _Popularity(schema, space)

    def task(self, schema: Schema) -> Retrieval:
        return Retrieval(schema.items, batch=self.retrain.batch)
