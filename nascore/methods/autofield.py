"""AutoField: keep the fields that learned gates would rather keep (Wang et al., 2022).

Each field has two logits, drop and keep, through a Gumbel-softmax that cools as max(0.01, 1 - 5e-5 t); its vectors are
multiplied by the weight of keep. Gates are learned on validation batches, to first order; the fields with the largest
probabilities stay and a model of them is trained anew. How many is a setting there; half of them is ours, as in AdaFS.
"""

from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from nascore.gated_net import decision
from nascore.methods._gated import GatedMethod
from nascore.net import Supernet
from nascore.plugins import bounded
from nascore.rows import Data
from nascore.samplers import Sampler
from nascore.samplers.bernoulli import Bernoulli, opened
from nascore.schema import Schema
from nascore.space import Genotype, Space
from nascore.tasks import Task
from nascore.training import Learning


@dataclass(frozen=True, kw_only=True)
class AutoField(GatedMethod):
    """A perceptron over the fields that stay.

    Args:
        share: Of the fields, how many stay.
        cooling: By how much a step lowers the temperature of the gates, from 1 to 0.01.
        learner: How gates are learned.
    """

    share: float = 0.5
    cooling: float = 5e-5
    learner: Learning = Learning(every=10, learning_rate=1e-3, weight_decay=1e-6)

    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, cooling=0)
        self.share_of("share")

    @property
    def label(self) -> str:
        return "AutoField"

    def space(self, schema: Schema) -> Space:
        return Space([decision(column.name, self.embedding, "field") for column in schema.columns])

    def sampler(self, space: Space, seed: int) -> Sampler:
        return Bernoulli(space, seed, hard=False, temperature=1.0, cooling=self.cooling)

    @property
    def learning(self) -> Learning:
        return self.learner

    def decide(self, supernet: Supernet, task: Task, train: Data, valid: Data) -> Genotype:
        gates, space = supernet.sampler, supernet.net.space
        assert isinstance(gates, Bernoulli) and gates.logits is not None
        ranked = sorted(zip(gates.logits.tolist(), space.decisions, strict=True), key=lambda one: -one[0])
        count = max(1, ceil(round(self.share * len(ranked), 9)))  # 0.28 · 25 comes out above 7
        kept = ranked[:count]
        return opened(space, [(name, option) for _, name in kept for option in space.decisions[name].options])
