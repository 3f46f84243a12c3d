"""EASE: the linear item-to-item model in closed form (Steck, 2019), a floor that is not trained.

It minimises |X - XB|^2 + regularization |B|^2 with diag(B) = 0 over the train split's user-item matrix X: with P the
inverse of X'X + regularization, B is -P over its diagonal, column by column (eq. 8). Users are shown as in `itemknn`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.methods import ClosedForm
from nascore.methods.itemknn import ItemToItem, pasts, shared_users
from nascore.net import Net
from nascore.plugins import bounded
from nascore.rows import Data
from nascore.schema import Schema
from nascore.space import Decision, Space
from nascore.tasks.retrieval import Retrieval

ITEMS = 20_000


class _EASE(ItemToItem):
    """`transposed` is B by columns."""

    def __init__(self, method: "EASE", schema: Schema, space: Space) -> None:
        super().__init__(schema, space)
        if schema.items > ITEMS:
            needed = schema.items**2 * 4 / 2**30
            raise ValueError(
                f"{schema.items:,} items: an item-to-item matrix would take {needed:,.1f} GiB several times over; "
                f"EASE takes up to {ITEMS:,}, itemknn any number"
            )
        self.regularization = method.regularization
        self.transposed = nn.Parameter(torch.zeros(schema.items, schema.items), requires_grad=False)

    def weights(self, item_B: Tensor) -> Tensor:
        return self.transposed[item_B]

    def solve(self, data: Data) -> None:
        gram_II = torch.cat([shared_BI for _, shared_BI in shared_users(pasts(data))]).to(data.home)
        gram_II.diagonal().add_(self.regularization)
        inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(gram_II))
        self.transposed.copy_(inverse_II.div_(-inverse_II.diagonal()[:, None]).fill_diagonal_(0))


@dataclass(frozen=True, kw_only=True)
class EASE(ClosedForm):
    """The linear model.

    Args:
        regularization: Weight of the squares in B; the paper's 500 for MovieLens 20M.
    """

    regularization: float = 500.0

    def __post_init__(self) -> None:
        bounded(self, regularization=1e-3)

    def net(self, schema: Schema, space: Space) -> Net:
        return _EASE(self, schema, space)

    def task(self, schema: Schema) -> Retrieval:
        return Retrieval(schema.items, batch=self.retrain.batch, whole=True)

    def tunables(self) -> Space:
        return Space([Decision("regularization", ("50", "100", "200", "500", "1000", "2000"))])
