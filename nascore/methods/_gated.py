"""What methods over gated or pruned vectors share: a perceptron, a supernet of a number of steps, one training."""

from dataclasses import dataclass
from typing import ClassVar

from nascore.click_net import JUDGED, ClickTraining
from nascore.fitness import Fitness
from nascore.gated_net import GatedNet
from nascore.methods import Method
from nascore.net import Net, Supernet
from nascore.plugins import bounded
from nascore.pruned_net import PrunedNet, SearchedNet
from nascore.samplers import Sampler
from nascore.samplers.uniform import Uniform
from nascore.schema import Schema
from nascore.space import Space
from nascore.tasks import Task
from nascore.training import Plan


@dataclass(frozen=True, kw_only=True)
class GatedMethod(Method):
    """A click model that reads some of what it looks up.

    Args:
        embedding: Width of every field's vectors.
        layers: Widths of the perceptron's hidden layers.
        steps: Steps of the supernet.
        training: How the supernet and all models are trained.
    """

    embedding: int = 16
    layers: tuple[int, ...] = (16, 8)
    steps: int = 36_000
    training: ClickTraining = ClickTraining()

    apart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        bounded(self, embedding=1, steps=1)
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"{self.name}: layers are one or more widths of 1 or more, not {list(self.layers)}")

    def share_of(self, name: str) -> None:
        """Raise where a setting is no share above 0."""
        if not 0 < getattr(self, name) <= 1:
            raise ValueError(f"{self.name}: {name} is above 0 and at most 1, not {getattr(self, name)}")

    def net(self, schema: Schema, space: Space) -> Net:
        return GatedNet(schema, space, self.embedding, self.layers)

    def sampler(self, space: Space, seed: int) -> Sampler:
        return Uniform(space, seed)

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

    def tunables(self) -> Space:
        return Space(self.training.tunables)


@dataclass(frozen=True, kw_only=True)
class PrunedMethod(GatedMethod):
    """A rival whose supernet finds what of its tables is worth keeping; a model begins with what it found.

    entries: whether single entries are kept, not rows.
    """

    decides: ClassVar[bool] = True
    entries: ClassVar[bool] = False

    def space(self, schema: Schema) -> Space:
        return Space([])

    def net(self, schema: Schema, space: Space) -> Net:
        return PrunedNet(schema, space, self.embedding, self.layers, self.entries)

    @property
    def inherits(self) -> bool:
        return True

    def begin(self, net: Net, source: Supernet) -> None:
        assert isinstance(net, PrunedNet) and isinstance(source.net, SearchedNet)
        source.net.give(net)
