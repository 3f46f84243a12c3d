"""Nets that can be searched: weighted choices among modules, the net over a space, and the supernet that samples it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.ops import Live, Op
from nascore.rows import Data
from nascore.samplers import Sampler
from nascore.schema import Batch, Schema
from nascore.space import Mix, Space, Weights
from nascore.tasks import Model


class Priced(Protocol):
    """A module with a known cost: an operator, or operators in a row."""

    def __call__(self, *xs: Tensor) -> Tensor: ...

    def cost(self) -> Cost: ...


class Row(nn.Sequential):
    """Operators one after the other; modules without weights between them cost nothing."""

    def forward(self, *xs: Tensor) -> Tensor:
        first, *rest = self
        x: Tensor = first(*xs)
        for module in rest:
            x = module(x)
        return x

    def cost(self) -> Cost:
        total = Cost()
        for module in self:
            if isinstance(module, Op):
                total += module.cost()
            elif any(True for _ in module.parameters()):
                raise TypeError(f"{type(module).__name__} has weights but no cost")
        return total


class Choose(nn.Module):
    """A weighted sum of options: Σ w·option(*xs). Options of weight 0 on the host do not run.

    A tensor of weights is (n,), or (B, n) where each example weighs the options by itself.
    """

    def __init__(self, options: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(options)
        self.options = nn.ModuleDict({_path(name): option for name, option in options.items()})

    def option(self, name: str) -> nn.Module:
        """The module of a name."""
        return self.options[_path(name)]

    def forward(self, weights: Weights, *xs: Tensor) -> Tensor:
        if isinstance(weights, Tensor):
            parts = [weights[..., n, None] * option(*xs) for n, option in enumerate(self.options.values())]
        else:
            opened = [(w, option) for w, option in zip(weights, self.options.values(), strict=True) if w]
            parts = [option(*xs) if w == 1.0 else w * option(*xs) for w, option in opened]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    @cached_property
    def prices(self) -> tuple[Cost, ...]:
        """The cost of each option."""
        return tuple(option.cost() for option in self.options.values())  # type: ignore[operator]

    def cost(self, weights: Weights) -> Cost:
        """Σ w·price: exact for a path, expected for a relaxation (over the batch, if the weights differ by example)."""
        each: Sequence[float | Tensor] = weights if isinstance(weights, tuple) else ()
        if isinstance(weights, Tensor):
            each = weights.reshape(-1, len(self.options)).mean(0).unbind()
        total = Cost()
        for w, price in zip(each, self.prices, strict=True):
            if isinstance(w, Tensor) or w:
                total += price if isinstance(w, float) and w == 1.0 else price * w
        return total


def _path(name: str) -> str:
    """A name as a part of a parameter's name, where "." separates parts."""
    return name.replace(".", "_")


class Net(nn.Module, ABC):
    """A net over a space: under a mix it is one member of the space, or a blend of members.

    The square, the law of weight sharing: for every member g the net under `space.mix(g)` equals the net built over
    `space.narrow(g)` that inherits its weights.
    """

    def __init__(self, schema: Schema, space: Space) -> None:
        super().__init__()
        self.schema, self.space = schema, space

    @abstractmethod
    def embed(self, batch: Batch) -> Any:
        """Look-ups only: whatever does not depend on the mix but on tables."""

    @abstractmethod
    def forward(self, x: Any, mix: Mix) -> Any:
        """The output for embedded inputs under a mix."""

    @abstractmethod
    def costs(self, mix: Mix) -> Mapping[str, Cost]:
        """The cost of each part under a mix, by part names such as "user/pool"."""

    def cost(self, mix: Mix, under: str = "") -> Cost:
        """The cost of all parts, or of the part or parts under a name: "user" has "user/pool"."""
        parts = self.costs(mix)
        chosen = [cost for name, cost in parts.items() if not under or f"{name}/".startswith(f"{under.rstrip('/')}/")]
        if not chosen:
            raise ValueError(f"no part {under!r}; there are: {', '.join(parts)}")
        return sum(chosen, Cost())

    def at(self, step: int) -> None:
        """Told before each training step; for nets that change as their training goes on."""

    def penalty(self) -> Tensor | None:
        """What the net adds to the loss of its weights, if anything. A scalar."""
        return None

    def under(self, mix: Mix) -> Model:
        """The model that the net is under a mix."""
        return lambda batch: self(self.embed(batch), mix)

    def only(self) -> Model:
        """The model of a net whose space has one member."""
        return self.under(self.only_mix())

    def only_mix(self) -> Mix:
        """The mix of the only member of its space."""
        (member,) = self.space.members()
        return self.space.mix(member)

    def live(self) -> Mapping[str, Live]:
        """For each module by name that is a slice of the wider net's, the positions that this narrower one keeps.

        Such a module names its `sliced` weights and takes them by `inherit`, as `Elastic` does.
        """
        return {}

    def inherit(self, source: "Net") -> "Net":
        """Take every weight and buffer from a net over a wider space, by name; raises if one has no source."""
        known, live = source.state_dict(), self.live()
        narrow = {name: module for name, module in self.named_modules() if name in live}
        sliced = {f"{name}.{own}" for name, module in narrow.items() for own in module.sliced}
        wanted = self.state_dict()
        missing = [
            name
            for name, value in wanted.items()
            if name not in sliced and getattr(known.get(name), "shape", None) != value.shape
        ]
        if missing:
            raise ValueError(f"the wider net has no weights of the right shape for: {', '.join(missing)}")
        with torch.no_grad():
            for name, value in wanted.items():
                if name not in sliced:
                    value.copy_(known[name])
        for name, module in narrow.items():
            wider = source.get_submodule(name)
            if type(wider) is not type(module):
                raise ValueError(
                    f"{name} is a {type(module).__name__} here and a {type(wider).__name__} in the wider net"
                )
            module.inherit(wider, live[name])  # type: ignore[operator]
        return self

    def solve(self, data: Data) -> None:
        """Set the weights in closed form from a training split; for models that are not trained by gradient."""
        raise TypeError(f"{type(self).__name__} has no closed form; train it")


class Supernet(nn.Module):
    """A net and the sampler that says what runs at each training step.

    paths: how many mixes a step draws; the outputs under all of them are then one list, which the task must know to
    take.
    """

    def __init__(self, net: Net, sampler: Sampler, paths: int = 1) -> None:
        super().__init__()
        self.net, self.sampler, self.paths = net, sampler, paths

    def forward(self, batch: Batch, step: int) -> tuple[Any, list[Mix]]:
        """The output at a training step and the mixes it was computed under."""
        x = self.net.embed(batch)
        mixes = [self.sampler(x, step * self.paths + place) for place in range(self.paths)]
        outputs = [self.net(x, mix) for mix in mixes]
        return outputs[0] if self.paths == 1 else outputs, mixes

    def cost(self) -> Cost:
        """The cost of the model that `steadily` is, which has all options of every decision, and keeps its sampler."""
        options = {name: len(decision.options) for name, decision in self.net.space.decisions.items()}
        return self.net.cost({name: (1.0,) * count for name, count in options.items()}) + self.sampler.cost()

    def steadily(self, batch: Batch) -> Any:
        """The output under what its sampler says once and for all; without such a one, that of the one member."""
        x = self.net.embed(batch)
        mix = self.sampler.steady(x)
        return self.net(x, self.net.only_mix() if mix is None else mix)
