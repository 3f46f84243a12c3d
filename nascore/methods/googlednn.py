"""GoogleDNN: two plain multi-layer towers with sampling-bias correction (Yi et al., 2019), in AutoTower's three sizes.

The user tower reads the user's features and the mean of its history, the item tower the item's features; every hidden
layer is followed by batch normalisation and ReLU (AutoTower, Table 3; sizes equal its Table 4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.fitness import Fitness
from nascore.methods import HandMade, TwoTowerMethod
from nascore.net import Net
from nascore.ops import build
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Mix, Space
from nascore.two_tower import HIDDEN, Inputs, Side, Size, Training, TwoTower, layers


class PlainTowers(TwoTower):
    """A stack of layers a side, the history pooled by the operator of a spec."""

    def __init__(
        self, schema: Schema, space: Space, embedding: int, hidden: tuple[int, ...], output: int, pool: str
    ) -> None:
        super().__init__(schema, space, embedding)
        self.pool = build(pool, T=schema.history_length, D=self.history_width) if self.history_width else None
        inputs = {"user": self.user_width + self.history_width, "item": self.item_width}
        self.towers = nn.ModuleDict({side: layers(width, hidden, output) for side, width in inputs.items()})

    def user_input(self, x: Inputs, mix: Mix) -> Tensor:
        return x["user"] if self.pool is None else torch.cat([x["user"], self.pool(x["history"], x["mask"])], 1)

    def tower(self, side: Side, x_BD: Tensor, mix: Mix) -> Tensor:
        output: Tensor = self.towers[side](x_BD)
        return output

    def costs(self, mix: Mix) -> dict[str, Cost]:
        pool = {} if self.pool is None else {"user/pool": self.pool.cost()}
        towers = {f"{side}/layers": tower.cost() for side, tower in self.towers.items()}  # type: ignore[operator]
        return self.table_costs() | pool | towers


@dataclass(frozen=True, kw_only=True)
class GoogleDNN(TwoTowerMethod, HandMade):
    """Two plain towers.

    Args:
        size: The hidden layers of AutoTower's Table 3.
        embedding: Width of a feature's vector.
        output: Width of a tower's vector.
        fitness: See `Fitness`.
        training: See `Training`.
    """

    size: Size = "M"
    embedding: int = 16
    output: int = 64
    fitness: Fitness = Fitness()
    training: Training = Training()

    def __post_init__(self) -> None:
        bounded(self, embedding=1, output=1)

    @property
    def label(self) -> str:
        return f"{type(self).__name__} {self.size}"

    def net(self, schema: Schema, space: Space) -> Net:
        return PlainTowers(schema, space, self.embedding, HIDDEN[self.size], self.output, "pool:mean")
