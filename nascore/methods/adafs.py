"""AdaFS: a controller weighs the fields of each row (Lin et al., 2022), softly or by its best half alone.

The controller normalises the vectors and takes them through a perceptron and a softmax over the fields. The net is
trained with equal weights first, then by turns with the controller, which learns on validation batches. What was
trained is the model: there is nothing to cut out, and all fields are looked up. Equal weights are scaled to 1.

Ours: of the validation rows every second one teaches the controller and the others judge the model; where the same rows
do both, log loss on 80,000 rows of Criteo fell to 0.21 there and rose to 0.61 on the test split.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.gated_net import WHOLE
from nascore.methods._gated import GatedMethod
from nascore.net import Supernet
from nascore.plugins import bounded
from nascore.rows import seed_of
from nascore.samplers import Sampler
from nascore.schema import Schema
from nascore.space import Decision, Mix, Space
from nascore.training import Learning


class _Controller(Sampler):
    """A weight a field and row, from x["kept"] (B, inputs).

    kept: how many fields keep a weight; 0 for all. closed: steps before any is weighed; `begun` says whether they are
    over.
    """

    begun: Tensor

    def __init__(self, space: Space, seed: int, inputs: int, hidden: int, kept: int, closed: int) -> None:
        super().__init__(space, seed)
        self.kept, self.closed, self.fields = kept, closed, len(space.decisions)
        self.norm = nn.BatchNorm1d(inputs, affine=False)
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, self.fields))
        self.register_buffer("begun", torch.tensor(not closed))
        self.macs = (inputs + self.fields) * hidden

    def forward(self, x: Any, step: int) -> Mix:
        if step < self.closed:
            return {name: (1.0,) for name in self.space.decisions}
        self.begun.fill_(True)
        with torch.no_grad():
            return self.split(self.weights(x))

    def relaxed(self, x: Any, step: int) -> Mix:
        return self.split(self.weights(x))

    def steady(self, x: Any) -> Mix:
        return self.split(torch.where(self.begun, self.weights(x), 1.0))

    def split(self, weight_BF: Tensor) -> Mix:
        """A weight (B, 1) a field."""
        return dict(zip(self.space.decisions, weight_BF.split(1, 1), strict=True))

    def weights(self, x: Any) -> Tensor:
        """What the controller says. Shape (B, F)."""
        weight_BF: Tensor = self.layers(self.norm(x["kept"].detach())).softmax(1) * self.fields
        if self.kept:
            least_B1 = weight_BF.topk(self.kept, 1).values[:, -1:]
            weight_BF = torch.where(weight_BF >= least_B1, weight_BF, 0.0)
            weight_BF = weight_BF * self.kept / weight_BF.sum(1, keepdim=True)
        return weight_BF

    def cost(self) -> Cost:
        return Cost(params=sum(parameter.numel() for parameter in self.parameters()), macs=self.macs)


@dataclass(frozen=True, kw_only=True)
class AdaFS(GatedMethod):
    """A perceptron over weighed fields; `steps` says nothing here.

    Args:
        kind: soft, or hard.
        share: Of the fields, how many hard weights leave.
        hidden: Width of the controller's layer.
        pretrained: Steps with equal weights; the authors' are two epochs.
        learner: How the controller is learned.
    """

    kind: Literal["soft", "hard"] = "soft"
    share: float = 0.5
    hidden: int = 64
    pretrained: int = 36_000
    learner: Learning = Learning(every=10, learning_rate=1e-3, weight_decay=1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, hidden=1, pretrained=0)
        self.share_of("share")

    def check(self, schema: Schema, space: Space) -> None:
        """Raise where no epoch ends behind the controller's first lesson."""
        plan, rows = self.retrain, schema.rows["train"]
        steps = plan.epochs * max(1, rows // plan.batch)
        if steps <= self.learning.after:
            raise ValueError(
                f"AdaFS: the controller begins after {self.learning.after:,} steps, but {plan.epochs} epochs of "
                f"{rows:,} rows are {steps:,}: lower pretrained, as in --rivals '[\"adafs:pretrained={steps // 5}\"]', "
                "or raise --method.training.epochs"
            )

    @property
    def label(self) -> str:
        return f"AdaFS, {self.kind}"

    def space(self, schema: Schema) -> Space:
        return Space([Decision(column.name, (WHOLE,)) for column in schema.columns])

    def sampler(self, space: Space, seed: int) -> Sampler:
        fields = len(space.decisions)
        kept, hard = max(1, ceil(round(self.share * fields, 9))), self.kind == "hard"
        return _Controller(space, seed, fields * self.embedding, self.hidden, kept if hard else 0, self.pretrained)

    def supernet(self, schema: Schema, space: Space, seed: int, searching: bool = False) -> Supernet:
        torch.manual_seed(seed_of(seed, "weights"))
        return Supernet(self.net(schema, space), self.sampler(space, seed))

    @property
    def learning(self) -> Learning:
        return replace(self.learner, after=max(self.learner.after, self.pretrained))
