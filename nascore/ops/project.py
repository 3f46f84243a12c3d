"""A dense tensor as vectors that stand beside those of the fields (NASRec §3.1, Project-Concatenate)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import EVERY, Elastic, Live


class Project(Elastic):
    """Linear(D -> K vectors of E), norm over all of them."""

    signature: ClassVar[str] = "BD -> BEK"
    examples: ClassVar[tuple[str, ...]] = ("project", "project:norm=false")

    def __init__(self, norm: bool = True, *, D: int, E: int, K: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(E, K, D))
        nn.init.xavier_uniform_(self.weight.view(E * K, D))
        self.axes = {"weight": "EKD"}
        if norm:
            self.norm = nn.LayerNorm((E, K))
            self.axes |= {"norm.weight": "EK", "norm.bias": "EK"}
        else:
            self.bias = nn.Parameter(torch.zeros(E, K))
            self.axes |= {"bias": "EK"}

    def forward(self, x_BD: Tensor, live: Live = EVERY) -> Tensor:
        weight_EKD = self.kept("weight", live)
        bias = self.kept("bias", live).flatten() if "bias" in self.axes else None
        vector_BEK = functional.linear(x_BD, weight_EKD.flatten(0, 1), bias).unflatten(1, weight_EKD.shape[:2])
        return self.normed("norm", vector_BEK, live)

    def macs(self, live: Live = EVERY) -> int:
        width, vectors, dense = self.shape("weight", live)
        return width * vectors * dense
