"""ItemKNN: an item is scored by its similar items in a user's past (Sarwar et al., 2001), a floor that is not trained.

Similarity is the cosine of two items' columns of the user-item matrix, with shrinkage, of the most similar items only;
the defaults are common values, not tuned. Similarities come from the train split alone. Where models see the last
events of a user, here the whole past counts that the split may show, a repeated event once.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.fitness import Fitness
from nascore.methods import HandMade
from nascore.net import Net
from nascore.plugins import bounded
from nascore.rows import Data
from nascore.schema import Batch, Schema
from nascore.space import Decision, Mix, Space
from nascore.tasks.retrieval import Retrieval
from nascore.training import Plan

ITEMS = 20_000
CELLS = 1 << 24


class ItemToItem(Net):
    """Items spoken for by items: both sides' vectors have width I, a user's being 1 at each item of its past."""

    def __init__(self, schema: Schema, space: Space) -> None:
        super().__init__(schema, space)
        if schema.items > ITEMS:
            needed = schema.items**2 * 4 / 2**30
            raise ValueError(
                f"{schema.items:,} items: an item-to-item matrix would take {needed:,.1f} GiB several times over; "
                f"this method takes up to {ITEMS:,}"
            )

    @abstractmethod
    def weights(self, item_B: Tensor) -> Tensor:
        """How much each item of a past speaks for these. Shape (B, I)."""

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        past = {"past": batch["history"].long()} if "user" in batch.keys else {}
        return past | {name: key.long() for name, key in batch.keys.items() if name == "item"}

    def forward(self, x: dict[str, Tensor], mix: Mix) -> dict[str, Tensor]:
        output = {}
        if "past" in x:
            output["user"] = torch.zeros(x["past"].shape[0], self.schema.items, device=x["past"].device)
            output["user"].scatter_(1, x["past"], 1.0)[:, 0] = 0.0
        return output | ({"item": self.weights(x["item"])} if "item" in x else {})

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return {"item/weights": Cost(table_params=sum(parameter.numel() for parameter in self.parameters()))}


def shared_users(data: Data) -> Tensor:
    """How many users have both of two items in a split; of an item with itself, how many have it. Shape (I, I)."""
    items = data.schema.items
    count_II = torch.zeros(items, items, device=data.home)
    for user_B in torch.arange(data.schema.users, device=data.home).split(max(1, CELLS // items)):
        past_BI = torch.zeros(len(user_B), items, device=data.home)
        past_BI[data.relevant.gather(user_B)] = 1.0
        count_II.addmm_(past_BI.T.to_sparse(), past_BI)
    return count_II


class _ItemKNN(ItemToItem):
    neighbours: Tensor

    def __init__(self, method: "ItemKNN", schema: Schema, space: Space) -> None:
        super().__init__(schema, space)
        self.shrinkage = method.shrinkage
        shape = schema.items, min(method.neighbours, schema.items)
        self.similarity = nn.Parameter(torch.zeros(shape), requires_grad=False)
        self.register_buffer("neighbours", torch.zeros(shape, dtype=torch.int32))

    def weights(self, item_B: Tensor) -> Tensor:
        weight_BI = torch.zeros(item_B.shape[0], self.schema.items, device=item_B.device)
        return weight_BI.scatter_(1, self.neighbours[item_B].long(), self.similarity[item_B])

    def solve(self, data: Data) -> None:
        similar_II = shared_users(data)
        length_I = similar_II.diagonal().sqrt()
        for item, row_I in enumerate(similar_II):
            row_I /= (length_I[item] * length_I + self.shrinkage).clamp(min=1)
        best = similar_II.fill_diagonal_(0).topk(self.similarity.shape[1])
        self.similarity.copy_(best.values)
        self.neighbours.copy_(best.indices)


@dataclass(frozen=True, kw_only=True)
class ItemKNN(HandMade):
    """Neighbours of the past.

    Args:
        neighbours: Similar items that may speak for an item.
        shrinkage: Added to the product of lengths under a cosine: the larger, the less a few shared users count.
    """

    neighbours: int = 100
    shrinkage: float = 10.0

    def __post_init__(self) -> None:
        bounded(self, neighbours=1, shrinkage=0)

    def net(self, schema: Schema, space: Space) -> Net:
        return _ItemKNN(self, schema, space)

    def task(self, schema: Schema) -> Retrieval:
        return Retrieval(schema.items, batch=self.retrain.batch, whole=True)

    @property
    def stop(self) -> Fitness:
        return Fitness("recall@50")

    @property
    def retrain(self) -> Plan:
        return Plan(batch=1024)

    def tunables(self) -> Space:
        return Space([Decision("neighbours", ("20", "50", "100", "200")), Decision("shrinkage", ("0", "10", "100"))])
