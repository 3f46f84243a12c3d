"""Samplers: what runs at a training step, and for those that learn, what they would decide. One a file.

To add one: write `nascore/samplers/<name>.py` with one class that extends `Sampler`. Draws hang on (seed, step);
draws that differ by instance also on the row's global index. What a sampler learns are parameters of its own.
"""

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from nascore.space import Genotype, Mix, Space


class Sampler(nn.Module, ABC):
    """Gives every option of every decision of `space` a weight at each step."""

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__()
        self.space, self.seed = space, seed

    @abstractmethod
    def forward(self, x: Any, step: int) -> Mix:
        """The mix for embedded inputs `x` at a step; the same on every rank."""

    def decide(self) -> Genotype | None:
        """The member that the sampler has learned to prefer; None if it learns nothing."""
        return None


CONTRACT = Sampler
