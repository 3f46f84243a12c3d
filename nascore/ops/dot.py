"""Inner products of all pairs of vectors, with as many vectors as give about O of them (NASRec §3.1 and 4.2)."""

from typing import ClassVar

import torch
from torch import Tensor

from nascore.ops import EVERY, Elastic, Live


class Dot(Elastic):
    """The dense input as one vector beside the N fields; the products of all pairs of different ones, mapped to O.

    inner: to how many vectors the fields are mapped before (operator balancing); it is a constant of the supernet, as
    narrower models must share its weights. 0 takes all fields, whose products then need (N + 1)N/2 x O weights.
    """

    signature: ClassVar[str] = "BD,BEN -> BO"
    examples: ClassVar[tuple[str, ...]] = ("dot:4", "dot:0", "dot:3,norm=false")

    def __init__(self, inner: int, norm: bool = True, *, D: int, E: int, N: int, O: int) -> None:
        super().__init__()
        self.inner, self.fields = inner, N
        vectors = inner or N
        maps = {"dense": ("ED", E, D), "sparse": ("kN", inner, N), "out": ("Op", O, vectors * (vectors + 1) // 2)}
        for name, (letters, outputs, inputs) in maps.items():
            if outputs:
                self.give_map(name, letters, outputs, inputs, bias=not norm)
                if norm:
                    self.give_norm(f"{name}_norm", letters[0], outputs)

    def forward(self, x_BD: Tensor, x_BEN: Tensor, live: Live = EVERY) -> Tensor:
        live = self._with_pairs(live)
        vector_BE = self.normed("dense_norm", self.linear("dense", x_BD, live), live)
        if self.inner:
            x_BEN = self.normed("sparse_norm", self.linear("sparse", x_BEN, live), live)
        x_BEV = torch.cat([vector_BE[:, :, None], x_BEN], 2)
        product_BVV = x_BEV.transpose(1, 2) @ x_BEV
        vectors = x_BEV.shape[2]
        row_P, column_P = torch.tril_indices(vectors, vectors, -1, device=x_BD.device)
        pair_BP = product_BVV.flatten(1).index_select(1, row_P * vectors + column_P)
        return self.normed("out_norm", self.linear("out", pair_BP, live), live)

    def _with_pairs(self, live: Live) -> Live:
        """With the positions of the pairs of live vectors: row i of the triangle holds the pairs of i and all before.

        The dense vector is the first and always live.
        """
        if self.inner or "N" not in live:
            return live
        kept = [0, *(field + 1 for field in live["N"])]
        starts = (row * (row - 1) // 2 for row in kept)
        pairs = [start + column for row, start in zip(kept, starts, strict=True) for column in kept if column < row]
        return {**live, "p": pairs}

    def shape(self, name: str, live: Live) -> tuple[int, ...]:
        return super().shape(name, self._with_pairs(live) if name == "out.weight" else live)

    def kept(self, name: str, live: Live) -> Tensor:
        return super().kept(name, self._with_pairs(live) if name == "out.weight" and "p" not in live else live)

    def macs(self, live: Live = EVERY) -> int:
        width, dense = self.shape("dense.weight", live)
        fields = len(live.get("N", range(self.fields)))
        vectors = self.inner or fields
        outputs, pairs = self.shape("out.weight", live)
        mapped = width * self.inner * fields
        return width * dense + mapped + (vectors + 1) ** 2 * width + outputs * pairs
