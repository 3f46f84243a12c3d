"""GoogleDNN: two plain multi-layer towers with sampling-bias correction (Yi et al., 2019), in AutoTower's three sizes.

The user tower reads the user's features and the mean of its history, the item tower the item's features; every hidden
layer is followed by batch normalisation and ReLU (AutoTower, Table 3; sizes equal its Table 4).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.methods import Method, Round
from nascore.net import Net, Row
from nascore.ops import build
from nascore.samplers.uniform import Uniform
from nascore.schema import Schema
from nascore.space import Mix, Space
from nascore.tasks.retrieval import Retrieval
from nascore.training import Fitness, Plan
from nascore.two_tower import Inputs, Side, Training, TwoTower


class _GoogleDNN(TwoTower):
    def __init__(self, schema: Schema, space: Space, embedding: int, hidden: tuple[int, ...], output: int) -> None:
        super().__init__(schema, space, embedding)
        self.pool = build("pool:mean", T=schema.history_length, D=self.history_width)
        inputs = {"user": self.user_width + self.history_width, "item": self.item_width}
        self.towers = nn.ModuleDict({side: _layers((width, *hidden), output) for side, width in inputs.items()})

    def user_input(self, x: Inputs, mix: Mix) -> Tensor:
        return torch.cat([x["user"], self.pool(x["history"], x["mask"])], 1) if "history" in x else x["user"]

    def tower(self, side: Side, x_BD: Tensor, mix: Mix) -> Tensor:
        output: Tensor = self.towers[side](x_BD)
        return output

    def costs(self, mix: Mix) -> dict[str, Cost]:
        towers = {f"{side}/layers": tower.cost() for side, tower in self.towers.items()}  # type: ignore[operator]
        return self.table_costs() | towers


def _layers(widths: tuple[int, ...], output: int) -> Row:
    modules: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        modules += [build("linear", D=before, O=after), build("batch_norm", O=after), nn.ReLU()]
    return Row(*modules, build("linear", D=widths[-1], O=output))


@dataclass(frozen=True, kw_only=True)
class GoogleDNN(Method):
    """Two plain towers.

    Args:
        size: The hidden layers of AutoTower's Table 3.
        embedding: Width of a feature's vector.
        output: Width of a tower's vector.
        fitness: See `Fitness`.
        training: See `Training`.
    """

    size: Literal["L", "M", "H"] = "M"
    embedding: int = 16
    output: int = 64
    fitness: Fitness = Fitness()
    training: Training = Training()

    layers: ClassVar[dict[str, tuple[int, ...]]] = {
        "L": (256, 192, 128),
        "M": (512, 256, 128),
        "H": (1024, 512, 256, 128),
    }

    @property
    def label(self) -> str:
        return f"GoogleDNN {self.size}"

    def space(self, schema: Schema) -> Space:
        return Space([])

    def net(self, schema: Schema, space: Space) -> Net:
        return _GoogleDNN(schema, space, self.embedding, self.layers[self.size], self.output)

    def sampler(self, space: Space, seed: int) -> Uniform:
        return Uniform(space, seed)

    def task(self, schema: Schema) -> Retrieval:
        return self.training.task(schema)

    @property
    def train(self) -> Plan:
        return self.training.alone()

    @property
    def stop(self) -> Fitness:
        return Fitness(self.training.stop)

    @property
    def retrain(self) -> tuple[Round, ...]:
        return (Round(self.training.alone()),)
