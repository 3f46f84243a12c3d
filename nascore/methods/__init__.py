"""Methods: one paper, one file. A method is its configuration: its fields are the paper's hyper-parameters.

To add one: write `nascore/methods/<name>.py` with one frozen dataclass that extends `Method`, the paper's values as
defaults. A hand-made baseline extends `HandMade`, a space of one member, so that every stage works on it unchanged. By
existing it inherits tests: the law of weight sharing, a training step, and its price against counted weights.
"""

import hashlib
import json
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Self, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray

from nascore import fitness, plugins
from nascore.click_net import JUDGED, ClickTraining
from nascore.cost import Cost, Price, parse_limits
from nascore.fitness import Fitness
from nascore.net import Net, Supernet
from nascore.routing import Router
from nascore.rows import Data, Shown, seed_of
from nascore.samplers import Sampler
from nascore.samplers.uniform import Uniform
from nascore.schema import Schema
from nascore.sequence_net import Training as SequenceTraining
from nascore.space import Decision, Genotype, Space, key
from nascore.tasks import Task
from nascore.training import Learning, Penalty, Plan
from nascore.two_tower import TUNABLES
from nascore.two_tower import Training as RetrievalTraining

CACHE = 2 << 30
Scorer = Callable[[Sequence[Genotype]], list[float]]


@dataclass(frozen=True)
class Derived:
    """What a method decided by itself. parts: one member of its space for each kind of rows, or one for all.

    kept: whether it is the supernet as it is, not trained anew. wearer: the spec of another method, whose models use
    what the supernet learned, see `Method.wearing`. gated: whether they do, or are trained alike without it.
    """

    name: str
    parts: tuple[Genotype, ...]
    kept: bool = False
    wearer: str = ""
    gated: bool = True


@dataclass(frozen=True, kw_only=True)
class Method(metaclass=ABCMeta):
    """presets: named changes of the fields. budgets: named limits, such as the paper's.

    apart: whether it learns from rows that stand by themselves, not from those of users. routes: whether it tells
    kinds of rows apart, by `router`. decides: whether, as a rival, it trains a supernet of its own and takes from it
    what `decide` says.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    apart: ClassVar[bool] = False
    routes: ClassVar[bool] = False
    decides: ClassVar[bool] = False
    budgets: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def space(self, schema: Schema) -> Space:
        """What may be decided on this data."""

    @abstractmethod
    def net(self, schema: Schema, space: Space) -> Net:
        """The net over a space; over a narrow one, the model itself."""

    def searching(self, schema: Schema, space: Space) -> Net:
        """The net of the supernet, where it is no net over the whole space."""
        return self.net(schema, space)

    @abstractmethod
    def sampler(self, space: Space, seed: int) -> Sampler:
        """What runs at a training step."""

    @abstractmethod
    def task(self, schema: Schema) -> Task:
        """What to train for."""

    @property
    @abstractmethod
    def train(self) -> Plan:
        """How the supernet is trained."""

    @property
    @abstractmethod
    def retrain(self) -> Plan:
        """How a model is trained alone."""

    def final(self, schema: Schema) -> "Method":
        """The method by which the best candidate is trained once more for the test, where that differs."""
        return self

    @property
    def paths_per_step(self) -> int:
        """How many paths a step of the supernet trains."""
        return 1

    @property
    def learning(self) -> Learning | None:
        """How the sampler learns, if it does."""
        return None

    def penalty(self, net: Net, measured: Mapping[str, float]) -> Penalty | None:
        """What is added to the loss that the sampler learns by, if anything; `measured` is what `measure` gave."""
        return None

    def measure(self, net: Net) -> dict[str, float]:
        """What has to be measured on the machine that trains the supernet, by name; a run measures once."""
        return {}

    @property
    def inherits(self) -> bool:
        """Whether a model of the space begins its own training with the supernet's weights."""
        return False

    @property
    def source(self) -> "Method":
        """The method of the supernet that its models inherit from."""
        return self

    def begin(self, net: Net, source: Supernet) -> None:
        """Give a model of the space the weights that it begins its own training with, where it `inherits`."""
        net.inherit(source.net)

    @property
    def shown(self) -> Shown:
        """What its models are shown of a user's past."""
        return Shown()

    @property
    def fitness(self) -> Fitness:
        """How candidates are scored with the supernet's weights."""
        return Fitness()

    @property
    def stop(self) -> Fitness:
        """The validation value that ends a training and picks its best epoch."""
        return self.fitness

    @property
    def candidates(self) -> int:
        """How many genotypes a search scores."""
        return 1

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def label(self) -> str:
        """What tables and pictures call it."""
        return type(self).__name__

    def check(self, schema: Schema, space: Space) -> None:  # noqa: B027
        """Raise where the method can do nothing on these data within a space."""

    @property
    def kinds(self) -> int:
        """How many kinds of rows it tells apart."""
        return 1

    @property
    def fewest(self) -> int:
        """Training rows, and validation rows, that a kind has at least."""
        return 1

    def router(self, supernet: Supernet, kinds: int) -> Router:
        """What sends rows to so many kinds, its centroids still to be found."""
        raise TypeError(f"{self.name} tells no kinds of rows apart")

    def derive(self, space: Space, open_PG: NDArray[np.float64], row_P: NDArray[np.int64]) -> list["Derived"]:
        """What is to be trained and compared, given the share of each kind's rows that keep each option of `space`."""
        raise TypeError(f"{self.name} tells no kinds of rows apart")

    def wearing(self, spec: str, gated: bool) -> "Method":
        """The method by which another model is trained with what our supernet learned, or alike but without that."""
        raise TypeError(f"{self.name} has nothing that {spec} could use")

    def decide(self, supernet: Supernet, task: Task, train: Data, valid: Data) -> Genotype:
        """The member that its trained supernet stands for: what the sampler learned, or the only one."""
        decided = supernet.sampler.decide(supernet.net.space)
        return decided if decided is not None else next(supernet.net.space.members())

    def tunables(self) -> Space:
        """Settings that are worth tuning: each decision is a field by its dotted name, its options are values."""
        return Space([])

    def tuned(self, settings: Mapping[str, str]) -> Self:
        """The method with other values of some fields, by their dotted names."""
        changes: dict[str, Any] = {}
        for name, value in settings.items():
            *outer, last = name.split(".")
            inner = changes
            for part in outer:
                inner = inner.setdefault(part, {})
            inner[last] = value
        changed: Self = _replaced(self, changes)
        return changed

    def canonical(self, genotype: Genotype) -> Genotype:
        """The genotype that stands for all that are the same network; it is what is hashed, priced and told."""
        return genotype

    def price(self, schema: Schema) -> Price:
        """The cost of a genotype, or of its parts under a name."""
        space = self.space(schema)
        with torch.device("meta"):
            net = self.net(schema, space)

        def price(genotype: Genotype, under: str) -> Cost:
            return net.cost(space.mix(genotype), under)

        return price

    def limits(self, budget: str) -> dict[str, float]:
        """The limits of a budget: one of `budgets` by name, or as text such as "macs=3e5,user/params=1e5"."""
        if budget in self.budgets:
            return parse_limits(self.budgets[budget])
        try:
            return parse_limits(budget)
        except ValueError as error:
            named = ", ".join(self.budgets) or "none"
            raise ValueError(f"{error}; budgets with a name in {self.name}: {named}") from None

    def supernet(self, schema: Schema, space: Space, seed: int, searching: bool = False) -> Supernet:
        """A freshly initialised net over `space`, its own or a narrower one, with its sampler, if there is a choice.

        Weights hang on the seed alone. searching: whether it is the net that searches.
        """
        torch.manual_seed(seed_of(seed, "weights"))
        net = self.searching(schema, space) if searching else self.net(schema, space)
        if space.size() == 1:
            return Supernet(net, Uniform(space, seed))
        return Supernet(net, self.sampler(space, seed), self.paths_per_step)

    def scorer(self, net: Net, task: Task, train: Data, valid: Data, cache_bytes: int = CACHE) -> Scorer:
        """Scores genotypes by the net's weights; an override must be faster, equal, and keep within `cache_bytes`."""
        return fitness.scorer(net, task, train, valid, self.fitness)

    def model_id(self, genotype: Genotype, split_digest: str, *others: Genotype | str) -> str:
        """12 hex digits that name one model on one split; others: its further parts, or what else it is."""
        further = [one if isinstance(one, str) else key(self.canonical(one)) for one in others]
        parts = [key(self.canonical(genotype)), split_digest, *further]
        known = json.dumps([self.name, asdict(self), *parts], sort_keys=True)
        return hashlib.sha256(known.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}


class TwoTowerMethod(Method):
    """A method of two towers, searched or hand-made; `training` is a field of each."""

    training: RetrievalTraining

    def task(self, schema: Schema) -> Task:
        return self.training.task(schema)

    @property
    def stop(self) -> Fitness:
        return Fitness(self.training.stop)

    @property
    def retrain(self) -> Plan:
        return self.training.alone()

    def tunables(self) -> Space:
        return TUNABLES


@dataclass(frozen=True, kw_only=True)
class HandMade(Method):
    """A method with nothing to decide: its space has one member."""

    def space(self, schema: Schema) -> Space:
        return Space([])

    def sampler(self, space: Space, seed: int) -> Sampler:
        return Uniform(space, seed)

    @property
    def train(self) -> Plan:
        return self.retrain


class ClickBaseline(HandMade):
    """A hand-made click model; `training` is a field of each.

    widths: values of its field `width` that are worth trying, if it has one.
    """

    training: ClickTraining

    apart: ClassVar[bool] = True
    widths: ClassVar[tuple[str, ...]] = ()

    def task(self, schema: Schema) -> Task:
        return self.training.task()

    @property
    def fitness(self) -> Fitness:
        return JUDGED

    @property
    def retrain(self) -> Plan:
        return self.training.alone()

    def tunables(self) -> Space:
        return Space([*self.training.tunables, *([Decision("width", self.widths)] if self.widths else [])])


class ClosedForm(HandMade):
    """A floor of retrieval, computed in one pass and not trained."""

    @property
    def stop(self) -> Fitness:
        return Fitness("recall@50")

    @property
    def retrain(self) -> Plan:
        return Plan(batch=1024)


class SequenceBaseline(HandMade):
    """A hand-made next-item model; `training` is a field of each."""

    training: SequenceTraining

    def task(self, schema: Schema) -> Task:
        return self.training.task()

    @property
    def shown(self) -> Shown:
        return self.training.shown

    @property
    def fitness(self) -> Fitness:
        return self.training.judged

    @property
    def retrain(self) -> Plan:
        return self.training.alone()

    def tunables(self) -> Space:
        return Space(SequenceTraining.tunables)


CONTRACT = Method


def from_json(known: Mapping[str, Any]) -> Method:
    """A method from what `to_json` gave."""
    method: Method = _restored(plugins.load("methods", known["name"]), {k: v for k, v in known.items() if k != "name"})
    return method


def _replaced(settings: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with other values of some fields; a text becomes what the field holds, inner changes go inside."""
    changed: dict[str, Any] = {}
    known = [one.name for one in fields(settings)]
    for name, change in changes.items():
        if name not in known:
            raise ValueError(f"{type(settings).__name__} has no setting {name!r}; it has: {', '.join(known)}")
        own = getattr(settings, name)
        if isinstance(change, Mapping):
            changed[name] = _replaced(own, change)
        elif isinstance(own, bool):
            if change not in ("true", "false"):
                raise ValueError(f"{name} is true or false, not {change!r}")
            changed[name] = change == "true"
        else:
            changed[name] = type(own)(change)
    return replace(settings, **changed)


def _restored(kind: type[Any], known: Mapping[str, Any]) -> Any:
    """A dataclass from JSON: inner dataclasses restored, lists as tuples."""
    hints = get_type_hints(kind)
    settings: dict[str, Any] = {}
    for name, value in known.items():
        if is_dataclass(hints[name]) and isinstance(value, dict):
            settings[name] = _restored(hints[name], value)
        else:
            settings[name] = tuple(value) if isinstance(value, list) else value
    return kind(**settings)
