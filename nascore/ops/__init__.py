"""Operators: what can be built into a net. One a file, the file's name is the operator's.

To add one: write `nascore/ops/<name>.py` with one class that extends `Op`. Its `signature` names the shapes of its
inputs and output; every letter but B is a keyword of its constructor, set by the net that builds it: `build("mlp:64",
N=3, D=64, O=64)`. What the spec holds after the colon are its other parameters, by their annotations. An input BT is a
mask: true where a position is valid. `examples` are specs that the tests build; they then hold the operator to its
shapes, its gradients, its masks, to treating each example by itself in eval mode, and to its declared cost against
counted weights and against MACs counted from outside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nascore import plugins
from nascore.cost import Cost

Live = Mapping[str, Sequence[int]]
EVERY: Live = MappingProxyType({})


class Op(nn.Module, ABC):
    """An operator with a known cost. `signature`: "BND -> BO", one word an input, the output's shape last.

    `forward` maps tensors of the signature's input shapes to one of its output shape.
    """

    signature: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]
    forward: Callable[..., Tensor]
    __call__: Callable[..., Tensor]

    @abstractmethod
    def macs(self) -> int:
        """Multiply-adds for one example."""

    def core_macs(self) -> int:
        """Those of `macs` in an attention core written without matrix products, which no outside count sees."""
        return 0

    def cost(self) -> Cost:
        return Cost(params=sum(parameter.numel() for parameter in self.parameters()), macs=self.macs())


class Elastic(Op, ABC):
    """An operator that runs on kept positions of its axes: searchable among slices of one tensor.

    `axes` names, for each parameter, the letter of each of its dimensions: {"weight": "OD", "bias": "O"}. Under `live`,
    a letter's kept positions, inputs and outputs have only those positions, norms count only those, and the cost is
    that of those; a letter that is not in `live` is kept whole. The same operator built at the kept sizes, with
    `inherit`ed weights, is equal.
    """

    axes: ClassVar[Mapping[str, str]]

    @abstractmethod
    def forward(self, x: Tensor, live: Live = EVERY) -> Tensor:
        """Run at full size, or on the live positions of each letter in `live`."""

    @abstractmethod
    def macs(self, live: Live = EVERY) -> int: ...

    def cost(self, live: Live = EVERY) -> Cost:
        """The cost at full size, or that of the live positions."""
        return Cost(params=sum(prod(self.shape(name, live)) for name in self.axes), macs=self.macs(live))

    def shape(self, name: str, live: Live) -> tuple[int, ...]:
        """The shape of the parameter's slice at the live positions."""
        whole = getattr(self, name).shape
        return tuple(len(live.get(letter, range(size))) for letter, size in zip(self.axes[name], whole, strict=True))

    def kept(self, name: str, live: Live) -> Tensor:
        """The parameter's slice at the live positions."""
        sliced: Tensor = getattr(self, name)
        for dim, letter in enumerate(self.axes[name]):
            if letter in live:
                sliced = sliced.index_select(dim, torch.as_tensor(live[letter], device=sliced.device))
        return sliced

    @torch.no_grad()
    def inherit(self, source: "Elastic", live: Live) -> None:
        """Take the weights of a wider operator at its live positions."""
        for name in self.axes:
            getattr(self, name).copy_(source.kept(name, live))


CONTRACT = Op


def build(spec: str, **sizes: Any) -> Op:
    """Build the operator of a spec at the given sizes, by the letters of its signature."""
    op: Op = plugins.build("ops", spec, **sizes)
    return op


def inputs_of(signature: str) -> list[str]:
    """The words of a signature's input side: "BTD,BT -> BD" has ["BTD", "BT"]."""
    return [word.strip() for word in signature.partition("->")[0].split(",")]
