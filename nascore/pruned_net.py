"""Gated nets of which single entries or rows of the tables are found to be worth keeping (PEP, OptFS, OptEmbed).

A net that searches says by its own weights what is kept; a net of what was found holds that as a mask. Masked entries
are looked up as zeros, so they cost no weights, but the time of whole rows.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.click_net import Inputs
from nascore.cost import Cost
from nascore.gated_net import GatedNet
from nascore.schema import Batch, Schema
from nascore.space import Mix, Space


class Masks(nn.Module):
    """What is kept of all tables, one after the other: 1 or 0 for each row, or for each entry of each row.

    width: entries of a row that are told apart.
    """

    first: Tensor
    kept: Tensor

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__()
        rows_N = torch.tensor(list(sizes.values()), dtype=torch.int64)
        self.register_buffer("first", rows_N.cumsum(0) - rows_N, persistent=False)
        self.register_buffer("kept", torch.ones(sum(sizes.values()), width))
        self.sizes = sizes

    def places(self, id_BN: Tensor) -> Tensor:
        """Where each row's ids stand among the rows of all tables. Shape (B, N)."""
        return id_BN.long() + self.first

    def forward(self, place_BN: Tensor) -> Tensor:
        """Shape (B, N, width)."""
        return functional.embedding(place_BN, self.kept)

    def counts(self) -> dict[str, float]:
        """How many are kept of each table, by its name; all, where the masks are not known."""
        parts = zip(self.sizes, self.kept.split([*self.sizes.values()]), strict=True)
        return {name: float(part.numel() if part.is_meta else part.sum()) for name, part in parts}


class PrunedNet(GatedNet):
    """A gated net whose vectors are multiplied by masks.

    entries: whether masks are of single entries, not of rows.
    """

    def __init__(self, schema: Schema, space: Space, width: int, layers: Sequence[int], entries: bool) -> None:
        super().__init__(schema, space, width, layers)
        self.masks = Masks(self.sizes, width if entries else 1)

    def embed(self, batch: Batch) -> Inputs:
        """ "kept" (B, K) and "rows" (B,), "places" (B, N)."""
        x = super().embed(batch)
        return {**x, "places": self.masks.places(x["ids"])}

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        mask_BND = self.masks(x["places"]).expand(-1, -1, self.width)
        return super().forward({**x, "kept": x["kept"] * mask_BND.flatten(1)[:, self.tables.columns]}, mix)

    def costs(self, mix: Mix) -> Mapping[str, Cost]:
        """What is masked has no weights; of rows, as many as dimensions are kept."""
        parts, counts = dict(super().costs(mix)), self.masks.counts()
        for name in self.order:
            dims = 1 if self.masks.kept.shape[1] > 1 else sum(self.shares(name, mix))
            parts[f"tables/{name}"] = Cost(table_params=counts[name] * dims)
        return parts


class SearchedNet(GatedNet):
    """A gated net that finds out what of its tables is worth keeping: it looks at vectors as `searched` has them."""

    @abstractmethod
    def searched(self, x: Inputs) -> Tensor:
        """The vectors in the search. Shape (B, K)."""

    @abstractmethod
    def found(self) -> Tensor:
        """What is kept by now, 1 or 0. Shape as that of the masks of `PrunedNet`."""

    def give(self, net: PrunedNet) -> None:
        """Let a model of what was found begin: its masks, and whatever weights it is not to draw anew."""
        with torch.no_grad():
            net.masks.kept.copy_(self.found())

    @property
    def matrix(self) -> Tensor:
        """All tables at full width, one after the other. Shape (rows, width)."""
        return self.tables.group(self.width).weight

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        return super().forward({**x, "kept": self.searched(x)}, mix)
