"""Another click net behind the gates that iHAS learned, which stay as they are (Yu et al., 2023, §4.6).

The gates see the vectors that they were learned with, whose tables are kept for them, and the net's own vectors are
multiplied by what they settle for each row. All dimensions of its own tables stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nascore.click_net import ClickTraining, Inputs
from nascore.cost import Cost
from nascore.gated_net import GatedNet
from nascore.methods import ClickBaseline, Method
from nascore.methods.ihas import IHAS
from nascore.net import Net, Supernet
from nascore.routing import Router
from nascore.schema import Batch, Schema
from nascore.space import Mix, Space


class _Worn(Net):
    def __init__(self, method: "Worn", schema: Schema, space: Space) -> None:
        super().__init__(schema, space)
        gates = method.gates
        with torch.random.fork_rng(devices=[]):
            self.router = Router(gates.supernet(schema, gates.space(schema), 0), 1).requires_grad_(False)
        self.own = method.gates.behind_them(schema, Space([]), method.behind)

    def embed(self, batch: Batch) -> Inputs:
        """What its own net looks up, "kept" (B, K) without what the gates close."""
        x = self.own.embed(batch)
        with torch.no_grad():
            _, open_BG = self.router.masked(batch)
        return self.own.without(x, open_BG)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        logit_B: Tensor = self.own(x, {})
        return logit_B

    def costs(self, mix: Mix) -> Mapping[str, Cost]:
        return {**self.own.costs({}), "gates": self.router.vectors.tables.cost() + self.router.gates.cost()}


@dataclass(frozen=True, kw_only=True)
class Worn(ClickBaseline):
    """A click net that wears settled gates.

    Args:
        gates: The method whose supernet learned them.
        behind: The click net; empty for the perceptron of the gates' own supernet.
        training: See `ClickTraining`.
    """

    gates: IHAS = IHAS()
    behind: str = "deepfm:width=16,depth=2"
    training: ClickTraining = ClickTraining()

    @property
    def label(self) -> str:
        return f"{self.behind or 'perceptron'} behind gates"

    def net(self, schema: Schema, space: Space) -> Net:
        return _Worn(self, schema, space)

    @property
    def inherits(self) -> bool:
        return True

    @property
    def source(self) -> Method:
        return self.gates

    def begin(self, net: Net, source: Supernet) -> None:
        """Take the gates and the tables that they look at."""
        assert isinstance(net, _Worn) and isinstance(source.net, GatedNet)
        net.router.load_state_dict({**Router(source, 1).state_dict(), "centroids": net.router.centroids})
