"""OptFS: each value of each field has a gate, and values whose gate closes are left out (Lyu et al., 2023).

A vector is multiplied by sigmoid(T g) / sigmoid(1/2), T growing geometrically from 1, g from 1/2; the sum of all gates
is penalised. Weights and gates are learned together on training rows. Values with g above 0 stay, and the model is
trained anew from the weights that it had early on. Ours: that is a step, not an epoch, and T grows from step to step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.click_net import Inputs
from nascore.methods._gated import PrunedMethod
from nascore.net import Net
from nascore.plugins import bounded
from nascore.pruned_net import PrunedNet, SearchedNet
from nascore.schema import Schema
from nascore.space import Space

OPEN = 0.5


class _Searched(SearchedNet):
    early: Tensor
    row: Tensor

    def __init__(self, method: "OptFS", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding, method.layers)
        self.steps, self.sharpest, self.rewind, self.weight = (
            method.steps,
            method.sharpness,
            int(method.rewind * method.steps),
            method.weight,
        )
        rows_N = torch.tensor([*self.sizes.values()])
        self.register_buffer("row", rows_N.cumsum(0) - rows_N, persistent=False)
        self.gates = nn.Parameter(torch.full((len(self.matrix), 1), OPEN))
        self.scale = torch.tensor(OPEN).sigmoid().item()
        self.sharpness = self.sharpest
        self.register_buffer("early", self.matrix.detach().clone())
        for name, value in self.layers():
            self.register_buffer(f"early_{name.replace('.', '_')}", value.detach().clone())

    def layers(self) -> list[tuple[str, nn.Parameter]]:
        """The weights that are not in tables, by name."""
        return [(name, value) for name, value in self.named_parameters() if name.startswith(("first.", "rest."))]

    def at(self, step: int) -> None:
        self.sharpness = self.sharpest ** (step / self.steps)
        if step == self.rewind:
            self.early.copy_(self.matrix.detach())
            for name, value in self.layers():
                self.get_buffer(f"early_{name.replace('.', '_')}").copy_(value.detach())

    def searched(self, x: Inputs) -> Tensor:
        gate_BN1 = functional.embedding(x["ids"].long() + self.row, self.gates)
        opened_BN1 = (self.sharpness * gate_BN1).sigmoid() / self.scale
        return x["kept"] * opened_BN1.expand(-1, -1, self.width).flatten(1)

    def penalty(self) -> Tensor:
        return self.weight * (self.sharpness * self.gates).sigmoid().sum()

    def found(self) -> Tensor:
        return (self.gates.detach() > 0).to(self.gates.dtype)

    def give(self, net: PrunedNet) -> None:
        super().give(net)
        net.tables.take(self.early)
        with torch.no_grad():
            for name, _ in self.layers():
                net.get_parameter(name).copy_(self.get_buffer(f"early_{name.replace('.', '_')}"))


@dataclass(frozen=True, kw_only=True)
class OptFS(PrunedMethod):
    """A perceptron over the values of fields that stay.

    Args:
        weight: Of the sum of all gates, in what is minimised.
        sharpness: The last T.
        rewind: The share of the steps after which the weights are those that a model of what was found begins with;
            the first of 15 epochs there.
    """

    weight: float = 5e-9
    sharpness: float = 200.0
    rewind: float = 0.067

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, weight=0, sharpness=1, rewind=0)
        if self.rewind >= 1:
            raise ValueError(f"OptFS: rewind is a share of the steps below 1, not {self.rewind}")

    @property
    def label(self) -> str:
        return "OptFS"

    def searching(self, schema: Schema, space: Space) -> Net:
        return _Searched(self, schema, space)
