"""ItemKNN: an item is scored by its similar items in a user's past (Sarwar et al., 2001), a floor that is not trained.

Similarity is the cosine of two items' columns of the user-item matrix, with shrinkage, of the most similar items only;
the defaults are common values, not tuned. Similarities come from the train split alone. Where models see the last
events of a user, here the whole past counts that the split may show, a repeated event once.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.methods import ClosedForm
from nascore.net import Net
from nascore.plugins import bounded
from nascore.rows import Data
from nascore.schema import Batch, Schema
from nascore.space import Decision, Mix, Space
from nascore.tasks import Model
from nascore.tasks.retrieval import Retrieval

CELLS = 1 << 24


class ItemToItem(Net):
    """Items spoken for by items: both sides' vectors have width I, a user's being 1 at each item of its past."""

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


def pasts(data: Data) -> csr_array:
    """1 where a user has an item in a split, however often. Shape (users, items)."""
    at, item = data.relevant.at.cpu().numpy(), data.relevant.item.cpu().numpy()
    shape = data.schema.users, data.schema.items
    past_UI = csr_array((np.ones(len(item), np.float32), item, at), shape=shape, copy=True)
    past_UI.sum_duplicates()
    past_UI.data[:] = 1
    return past_UI


def shared_users(past_UI: csr_array) -> Iterator[tuple[slice, Tensor]]:
    """How many users have both of two items; of an item with itself, how many have it. Some items (b,) and (b, I)."""
    have_IU = past_UI.T.tocsr()
    items = past_UI.shape[1]
    block = max(1, CELLS // items)
    for start in range(0, items, block):
        some = slice(start, min(start + block, items))
        yield some, torch.from_numpy((have_IU[some] @ past_UI).toarray())


def without_zeros(x_BI: Tensor) -> csr_array:
    """The same numbers, sparse; several times as fast as scipy finds the place of each in two dimensions."""
    x_N = x_BI.cpu().numpy().ravel()
    (place_M,) = (x_N != 0).nonzero()
    rows, width = x_BI.shape
    at = np.searchsorted(place_M, np.arange(rows + 1) * width)
    return csr_array((x_N[place_M], place_M % width, at), shape=(rows, width))


class SparseRetrieval(Retrieval):
    """Ranks by vectors that are mostly zeros: of each side only the others are kept and multiplied, on the CPU."""

    def preferred(self, model: Model, data: Data) -> Callable[[Tensor], Tensor]:
        ids = torch.arange(data.schema.items, dtype=torch.int32, device=data.home)
        dense = (model(data.item_batch(part))["item"] for part in ids.split(max(1, CELLS // data.schema.items)))
        item_OI = vstack([without_zeros(item_bO) for item_bO in dense], "csr").T.tocsr()

        def preferred(user_BO: Tensor) -> Tensor:
            return torch.from_numpy((without_zeros(user_BO) @ item_OI).toarray()).to(user_BO.device)

        return preferred


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
        past_UI = pasts(data)
        length_I = torch.from_numpy(past_UI.sum(0)).sqrt()
        for some, shared_BI in shared_users(past_UI):
            similar_BI = shared_BI.div_((length_I[some, None] * length_I).add_(self.shrinkage).clamp_(min=1))
            similar_BI.diagonal(some.start).zero_()
            best = similar_BI.topk(self.similarity.shape[1])
            self.similarity[some].copy_(best.values)
            self.neighbours[some].copy_(best.indices)


@dataclass(frozen=True, kw_only=True)
class ItemKNN(ClosedForm):
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
        return SparseRetrieval(schema.items, batch=self.retrain.batch, whole=True)

    def tunables(self) -> Space:
        return Space([Decision("neighbours", ("20", "50", "100", "200")), Decision("shrinkage", ("0", "10", "100"))])
