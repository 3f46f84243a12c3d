"""Operators: what can be built into a net. One a file, the file's name is the operator's.

To add one: write `nascore/ops/<name>.py` with one class that extends `Op`. Its `signature` names the shapes of its
inputs and output; every letter but B is a keyword of its constructor, set by the net that builds it: `build("mlp:64",
N=3, D=64, O=64)`. What the spec holds after the colon are its other parameters, by their annotations. An input BT is a
mask: true where a position is valid. `examples` are specs that the tests build; they then hold the operator to its
shapes, its gradients, its masks, to treating each example by itself in eval mode, and to its declared cost against
counted weights and against MACs counted from outside.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore import plugins
from nascore.cost import Cost

Span = tuple[int, int]


@dataclass(frozen=True)
class Spans(Sequence[int]):
    """Kept positions as spans of neighbours, each (first, end), in order."""

    spans: tuple[Span, ...]

    def __len__(self) -> int:
        return sum(end - first for first, end in self.spans)

    def __getitem__(self, place: Any) -> Any:
        return [*self][place]

    def __iter__(self) -> Iterator[int]:
        return (position for span in self.spans for position in range(*span))

    def shifted(self, by: int) -> tuple[Span, ...]:
        """The same spans, so many positions further on."""
        return tuple((first + by, end + by) for first, end in self.spans)


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

    axes: Mapping[str, str] = MappingProxyType({})
    epsilon: ClassVar[float] = 1e-5

    def give_map(self, name: str, letters: str, outputs: int, inputs: int, bias: bool = True) -> None:
        """Add a linear map, its letters those of its outputs and inputs, for `linear` to run."""
        self.add_module(name, weights(inputs, outputs, bias))
        own = {f"{name}.bias": letters[0]} if bias else {}
        self.axes = {**self.axes, f"{name}.weight": letters, **own}

    def give_norm(self, name: str, letters: str, *sizes: int) -> None:
        """Add a layer normalisation over the last axes, for `normed` to run."""
        self.add_module(name, nn.LayerNorm(sizes))
        self.axes = {**self.axes, f"{name}.weight": letters, f"{name}.bias": letters}

    @abstractmethod
    def macs(self, live: Live = EVERY) -> int: ...

    def core_macs(self, live: Live = EVERY) -> int:
        return 0

    def cost(self, live: Live = EVERY) -> Cost:
        """The cost at full size, or that of the live positions."""
        return Cost(params=sum(prod(self.shape(name, live)) for name in self.axes), macs=self.macs(live))

    def shape(self, name: str, live: Live) -> tuple[int, ...]:
        """The shape of the parameter's slice at the live positions."""
        whole = self.whole(name).shape
        return tuple(len(live.get(letter, range(size))) for letter, size in zip(self.axes[name], whole, strict=True))

    def whole(self, name: str) -> Tensor:
        """A parameter by its name."""
        module, _, own = name.rpartition(".")
        parameter: Tensor = getattr(self.get_submodule(module), own)
        return parameter

    def kept(self, name: str, live: Live) -> Tensor:
        """The parameter's slice at the live positions."""
        whole = self.whole(name)
        spans = tuple(_spans(live[letter]) if letter in live else None for letter in self.axes[name])
        if all(span is None or len(span) == 1 for span in spans):
            for dim, span in enumerate(spans):
                if span is not None:
                    (first, end) = span[0]
                    whole = whole.narrow(dim, first, end - first)
            return whole
        sliced: Tensor = _Sliced.apply(whole, spans)  # type: ignore[no-untyped-call]
        return sliced

    def linear(self, name: str, x: Tensor, live: Live) -> Tensor:
        """The last axis of x through the live part of a linear map."""
        bias = self.kept(f"{name}.bias", live) if f"{name}.bias" in self.axes else None
        return functional.linear(x, self.kept(f"{name}.weight", live), bias)

    def normed(self, name: str, x: Tensor, live: Live) -> Tensor:
        """Layer normalisation of the last axes over their live positions; x itself without a norm of that name."""
        if f"{name}.weight" not in self.axes:
            return x
        weight, bias = self.kept(f"{name}.weight", live), self.kept(f"{name}.bias", live)
        return functional.layer_norm(x, weight.shape, weight, bias, self.epsilon)

    @property
    def sliced(self) -> Iterable[str]:
        """The weights that `inherit` takes."""
        return self.axes

    @torch.no_grad()
    def inherit(self, source: "Elastic", live: Live) -> None:
        """Take the weights of a wider operator at its live positions."""
        for name in self.axes:
            self.whole(name).copy_(source.kept(name, live))


class _Sliced(torch.autograd.Function):
    """The kept spans of each axis, one after the other; its gradient is written into one tensor of zeros."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, spans: tuple[tuple[Span, ...] | None, ...]) -> Tensor:
        ctx.spans, ctx.whole = spans, whole.shape
        for dim, kept in enumerate(spans):
            if kept is not None:
                whole = torch.cat([whole.narrow(dim, first, end - first) for first, end in kept], dim)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = gradient.new_zeros(ctx.whole)
        each = [kept or ((0, size),) for kept, size in zip(ctx.spans, ctx.whole, strict=True)]
        for block in product(*map(_placed, each)):
            whole[tuple(there for there, _ in block)] = gradient[tuple(here for _, here in block)]
        return whole, None


def _placed(spans: Sequence[Span]) -> Iterator[tuple[slice, slice]]:
    """Where each span lies among all positions, and where among the kept ones."""
    start = 0
    for first, end in spans:
        yield slice(first, end), slice(start, start + end - first)
        start += end - first


def _spans(kept: Sequence[int]) -> tuple[Span, ...]:
    if isinstance(kept, Spans):
        return kept.spans
    spans: list[Span] = []
    for position in kept:
        if spans and spans[-1][1] == position:
            spans[-1] = (spans[-1][0], position + 1)
        else:
            spans.append((position, position + 1))
    return tuple(spans)


def weights(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear map with Xavier-uniform weights and no bias at first, as in NASRec's public code."""
    made = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(made.weight)
    if bias:
        nn.init.zeros_(made.bias)
    return made


CONTRACT = Op


def build(spec: str, **sizes: Any) -> Op:
    """Build the operator of a spec at the given sizes, by the letters of its signature."""
    op: Op = plugins.build("ops", spec, **sizes)
    return op


def inputs_of(signature: str) -> list[str]:
    """The words of a signature's input side: "BTD,BT -> BD" has ["BTD", "BT"]."""
    return [word.strip() for word in signature.partition("->")[0].split(",")]
