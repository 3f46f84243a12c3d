"""What rivals of iHAS share: a perceptron over gated or pruned vectors, and a supernet of their own."""

from dataclasses import dataclass
from typing import ClassVar

from nascore.click_net import JUDGED, ClickTraining
from nascore.fitness import Fitness
from nascore.gated_net import GatedNet
from nascore.methods import Method
from nascore.net import Net
from nascore.plugins import bounded
from nascore.samplers import Sampler
from nascore.samplers.uniform import Uniform
from nascore.schema import Schema
from nascore.space import Space
from nascore.tasks import Task
from nascore.training import Plan


@dataclass(frozen=True, kw_only=True)
class GatedRival(Method):
    """A click model whose own supernet decides what of its vectors a perceptron reads; see `Method.decides`.

    Args:
        embedding: Width of every field's vectors.
        layers: Widths of the perceptron's hidden layers.
        steps: Steps of its supernet.
        training: How its supernet and what is taken of it are trained.
    """

    embedding: int = 16
    layers: tuple[int, ...] = (16, 8)
    steps: int = 36_000
    training: ClickTraining = ClickTraining()

    apart: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        bounded(self, embedding=1, steps=1)
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"{type(self).__name__}: layers are widths of 1 or more, not {list(self.layers)}")

    def net(self, schema: Schema, space: Space) -> Net:
        return GatedNet(schema, space, self.embedding, self.layers)

    def task(self, schema: Schema) -> Task:
        return self.training.task()

    @property
    def train(self) -> Plan:
        return self.training.supernet(self.steps)

    @property
    def retrain(self) -> Plan:
        return self.training.alone()

    @property
    def fitness(self) -> Fitness:
        return JUDGED

    def sampler(self, space: Space, seed: int) -> Sampler:
        return Uniform(space, seed)

    def tunables(self) -> Space:
        return Space(self.training.tunables)
