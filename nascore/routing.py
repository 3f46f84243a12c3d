"""One model for each kind of row, and the router that tells the kinds apart (iHAS §3.4 and 3.5)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.gated_net import GatedNet
from nascore.net import Supernet
from nascore.samplers.bernoulli import Bernoulli
from nascore.schema import Batch
from nascore.tasks import Model

Kind = Literal["clusters", "single", "open", "gates"]


class Router(nn.Module):
    """Sends a row to the part whose centroid is nearest to the row's vectors behind settled gates.

    It keeps the tables that the gates were learned with, and the gates. centroids (parts, K).
    """

    centroids: Tensor

    def __init__(self, supernet: Supernet, parts: int) -> None:
        super().__init__()
        assert isinstance(supernet.net, GatedNet) and isinstance(supernet.sampler, Bernoulli)
        self.vectors, self.gates = supernet.net.vectors, supernet.sampler
        self.register_buffer("centroids", torch.zeros(parts, len(self.vectors.tables.columns)))

    def masked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The vectors with zeros for what is closed, and what is open. (B, K) and (B, gates)."""
        x = self.vectors(batch)
        open_BG = self.gates.opened(x)
        return x["kept"] * open_BG, open_BG

    def forward(self, batch: Batch) -> Tensor:
        """The part of each row. Shape (B,)."""
        return self.nearest(self.masked(batch)[0])

    def nearest(self, point_BK: Tensor) -> Tensor:
        """The part whose centroid is nearest to each point. Shape (B,)."""
        lengths_P = self.centroids.square().sum(1)
        return torch.addmm(lengths_P, point_BK, self.centroids.T, alpha=-2).argmin(1)

    def cost(self) -> Cost:
        """Of telling one row's part."""
        distances = self.centroids.numel()
        return self.vectors.tables.cost() + self.gates.cost() + Cost(params=distances, macs=distances)


class Routed:
    """The model that a router and a model for each part are together; outputs are one number a row."""

    def __init__(self, router: Router, models: Sequence[Model]) -> None:
        self.router, self.models = router, models

    def __call__(self, batch: Batch) -> Tensor:
        part_B = self.router(batch)
        output_B = torch.zeros(len(batch), device=part_B.device)
        for part, model in enumerate(self.models):
            place_R = (part_B == part).nonzero().squeeze(1)
            if len(place_R):
                output_B[place_R] = model(batch.take(place_R))
        return output_B
