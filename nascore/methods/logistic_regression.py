"""LR: logistic regression, a weight an id and a weight a number (Richardson et al., 2007); the wide part of others.

Weights of ids start at 0, so that an id that is never seen in training says nothing.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from nascore.click_net import ClickNet, ClickTraining, Inputs
from nascore.cost import Cost
from nascore.methods import ClickBaseline
from nascore.net import Net
from nascore.ops import build
from nascore.schema import Batch, Schema
from nascore.space import Mix, Space


class LinearNet(ClickNet):
    """A constant, the weights of a row's ids, and its numbers times a weight each."""

    def __init__(self, schema: Schema, space: Space) -> None:
        super().__init__(schema, space, 1)
        nn.init.zeros_(self.tables.weight)
        self.weights = build("linear", D=self.dense_width, O=1)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        return self.weights(x["dense"]).squeeze(1) + x["sparse"].sum((1, 2))

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return self.table_costs() | {"numbers": self.weights.cost()}


class WideNet(ClickNet):
    """A click net with a logistic regression beside its vectors; `linear` is that one's logit."""

    def __init__(self, schema: Schema, space: Space, width: int) -> None:
        super().__init__(schema, space, width)
        self.wide = LinearNet(schema, space)

    def embed(self, batch: Batch) -> Inputs:
        """ "dense" (B, dense_width), "sparse" (B, N, width), "weights" (B, N, 1)."""
        return super().embed(batch) | {"weights": self.wide.tables(self.ids(batch))}

    def linear(self, x: Inputs, mix: Mix) -> Tensor:
        """The logit of the first order. Shape (B,)."""
        logit_B: Tensor = self.wide({"dense": x["dense"], "sparse": x["weights"]}, mix)
        return logit_B

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return self.table_costs() | {"wide": self.wide.cost(mix)}


@dataclass(frozen=True, kw_only=True)
class LogisticRegression(ClickBaseline):
    """A weight an id and a weight a number; no vectors, no layers.

    Args:
        training: See `ClickTraining`.
    """

    training: ClickTraining = ClickTraining()

    @property
    def label(self) -> str:
        return "LR"

    def net(self, schema: Schema, space: Space) -> Net:
        return LinearNet(schema, space)
