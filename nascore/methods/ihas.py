"""iHAS: which embedding dimensions each kind of row needs (Yu et al., 2023).

A supernet is trained with all gates open at first, then with a gate before every dimension of every field, whose
probability hangs on the row (§3.3). What the gates learned says for every row which dimensions are open; k-means tells
kinds of rows apart by what is left of their vectors (§3.4), and each kind gets a model of its own with the dimensions
that most of its rows keep (§3.5). To infer, a router keeps the supernet's tables and gates.

Ours: gradients of the weights' own steps do not pass through the gates; the penalty is a mean over gates and rows with
a weight for each of its two terms, where Eq. 5 lacks the one that joins it to the loss; thresholds are sought in 20
bins of means of three. The paper's perceptron is the default; it does not tell how many steps and epochs it took.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nascore import plugins
from nascore.buckets import bucketed
from nascore.click_net import ClickNet, ClickTraining
from nascore.gated_net import GatedNet, decision
from nascore.methods import ClickBaseline, Derived, Method
from nascore.methods._gated import GatedMethod
from nascore.net import Net, Supernet
from nascore.plugins import bounded
from nascore.routing import Kind, Router
from nascore.samplers import Sampler
from nascore.samplers.bernoulli import Bernoulli, Scope
from nascore.schema import Schema
from nascore.space import Genotype, Infeasible, Mix, Space
from nascore.training import Learning, Penalty

MOST, COLDEST = 127, 0.01
ADAM = ClickTraining(
    batch=2048,
    learning_rate=1e-3,
    weight_decay=1e-6,
    clip=0.0,
    warmup=0.0,
    epochs=50,
    patience=2,
    optimizer="adam",
    schedule="constant",
)
"""How the paper trains all models (§4.4); the most epochs and the patience are those of the library it builds on."""


@dataclass(frozen=True, kw_only=True)
class IHAS(GatedMethod):
    """The paper's settings (§4.4).

    Args:
        behind: Another click net in the perceptron's place, such as deepfm:width=16,depth=2.
        instances: Whether a gate's probability hangs on the row; iHAS-4 has one for all rows.
        pretrained: Steps of the supernet in which all gates are open.
        temperature: Of the straight-through gradient.
        sparsity: Weight of the mean probability in what the gates minimise.
        polarization: Weight of the mean distance from it, which they are to raise; iHAS-3 has 0.
        scope: From what the threshold of settled gates is sought: each row (sample), many rows (batch), or none: 1/2.
        clusters: Kinds of rows.
        fewest: Training rows, and validation rows, that a kind must have; rows of smaller ones go to the nearest other.
        majority: The share of a kind's rows that must keep a dimension.
        models: What is tested: clusters, a model for each kind; single, one for all rows (iHAS-2); open, one that keeps
            all dimensions (Base); gates, the supernet itself with settled gates (iHAS-1). The latter two only where a
            budget allows all dimensions.
        wearers: Other click nets to train, each behind the settled gates of every row and without (Table 3), where a
            budget allows all dimensions.
        inherit: Whether what is cut out keeps its weights when it is trained alone.
        learner: How the gates are learned.
    """

    behind: str = ""
    instances: bool = True
    pretrained: int = 36_000
    steps: int = 72_000
    temperature: float = 0.1
    sparsity: float = 0.1
    polarization: float = 0.1
    scope: Scope = "sample"
    clusters: int = 2
    fewest: int = 100
    majority: float = 0.5
    models: tuple[Kind, ...] = ("clusters", "single")
    wearers: tuple[str, ...] = ()
    inherit: bool = False
    learner: Learning = Learning(every=100, learning_rate=1e-3, weight_decay=1e-6)
    training: ClickTraining = ADAM

    routes: ClassVar[bool] = True
    budgets: ClassVar[Mapping[str, str]] = {"whole": ""}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "ihas_1": {"models": ("gates",)},
        "ihas_2": {"models": ("single",)},
        "ihas_3": {"polarization": 0.0},
        "ihas_4": {"instances": False},
        "base": {"models": ("open",)},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, pretrained=0, sparsity=0, polarization=0, clusters=1, fewest=1, majority=0)
        if not self.models or len({*self.models}) < len(self.models):
            raise ValueError(f"IHAS: models must name one or more, each once, not {list(self.models)}")
        if not all(self.wearers) or len({*self.wearers}) < len(self.wearers):
            raise ValueError(f"IHAS: wearers are click nets, each once, not {list(self.wearers)}")
        if self.learning.lessons(self.steps) < 1:
            raise ValueError(
                f"IHAS: no lesson is due within {self.steps} steps, {self.pretrained} of them with all gates open"
            )
        if self.temperature < COLDEST:
            raise ValueError(f"IHAS: temperature is at least {COLDEST}, not {self.temperature}")
        if self.clusters > MOST:
            raise ValueError(f"IHAS: clusters are at most {MOST}, not {self.clusters}")
        if self.majority > 1:
            raise ValueError(f"IHAS: majority is a share of rows, not {self.majority}")
        for spec in (self.behind, *self.wearers):
            worn(spec, self.embedding, self.training)

    @property
    def label(self) -> str:
        return "iHAS"

    def space(self, schema: Schema) -> Space:
        fields = [column.name for column in schema.columns]
        return Space([decision(name, self.embedding, "dimension") for name in fields])

    def net(self, schema: Schema, space: Space) -> Net:
        return self.behind_them(schema, space, self.behind)

    def behind_them(self, schema: Schema, space: Space, spec: str) -> GatedNet:
        """The net of a spec, or our perceptron, behind gates over a space."""
        behind = worn(spec, self.embedding, self.training)
        net = behind.net(bucketed(schema), Space([])) if behind is not None else None
        assert net is None or isinstance(net, ClickNet)
        return GatedNet(schema, space, self.embedding, self.layers, net)

    def sampler(self, space: Space, seed: int) -> Sampler:
        inputs = len(space.decisions) * self.embedding if self.instances else 0
        known = {"apart": True, "closed": self.pretrained, "temperature": self.temperature, "scope": self.scope}
        return Bernoulli(space, seed, inputs, **known)  # type: ignore[arg-type]

    @property
    def learning(self) -> Learning:
        return replace(self.learner, after=max(self.learner.after, self.pretrained))

    @property
    def inherits(self) -> bool:
        return self.inherit

    def penalty(self, net: Net, measured: Mapping[str, float]) -> Penalty | None:
        """Eq. 5, a mean over gates and rows."""
        if not (self.sparsity or self.polarization):
            return None

        def penalty(mix: Mix, sampler: Sampler) -> Tensor:
            assert isinstance(sampler, Bernoulli) and sampler.last is not None
            p = sampler.last
            apart = (p - p.mean(-1, keepdim=True)).abs().mean()
            return self.sparsity * p.mean() - self.polarization * apart

        return penalty

    @property
    def kinds(self) -> int:
        return self.clusters if "clusters" in self.models else 1

    def router(self, supernet: Supernet, kinds: int) -> Router:
        return Router(supernet, kinds)

    def check(self, schema: Schema, space: Space) -> None:
        """Few draws keep a budget that what is derived keeps, so the least that it may be is looked at."""
        if not {*self.models} & {"clusters", "single"} and not space.allows(whole := everything(space)):
            raise Infeasible(
                f"all of --method.models keep all dimensions, more than the budget allows: {why(space, whole)}"
            )
        ones = [
            {name: one.options[: name == field] for name, one in space.decisions.items()} for field in space.decisions
        ]
        if not any(map(space.allows, ones)):
            least = min(ones, key=space.excess)
            raise Infeasible(
                f"not one dimension of any field is within --budgets: the cheapest needs {why(space, least)}"
            )

    def derive(self, space: Space, open_PG: NDArray[np.float64], row_P: NDArray[np.int64]) -> list[Derived]:
        whole, derived = everything(space), dict[str, Derived]()
        for kind in self.models:
            if kind == "clusters" and len(open_PG) > 1:
                told = [f"the {rows:,} training rows of kind {place + 1}" for place, rows in enumerate(row_P)]
                derived[kind] = Derived(kind, tuple(map(partial(self.kept, space), open_PG, told)))
            elif kind in ("clusters", "single") and "single" not in derived:
                derived["single"] = Derived("single", (self.kept(space, row_P @ open_PG / row_P.sum()),))
            elif kind in ("open", "gates") and space.allows(whole):
                derived[kind] = Derived(kind, (whole,), kept=kind == "gates")
        for spec in self.wearers if space.allows(whole) else ():
            derived[spec] = Derived(f"gates on {spec}", ({},), wearer=spec)
            derived[f"bare {spec}"] = Derived(f"{spec} without gates", (whole,), wearer=spec, gated=False)
        return [*derived.values()]

    def wearing(self, spec: str, gated: bool) -> Method:
        if not gated:
            return replace(self, behind=spec, inherit=False)
        method: Method = plugins.build("methods", "worn", gates=self, behind=spec, training=self.training)
        return method

    def kept(self, space: Space, open_G: NDArray[np.float64], of: str = "all training rows") -> Genotype:
        """The options that a majority of rows keeps; within a budget, of as large a majority as that takes."""
        genotype: dict[str, tuple[str, ...]] = {}
        for share in sorted({self.majority, *open_G[open_G > self.majority].tolist()}):
            each, least = iter(open_G.tolist()), genotype
            genotype = {
                name: tuple(option for option in one.options if next(each) >= share)
                for name, one in space.decisions.items()
            }
            if not any(genotype.values()):
                break
            if space.allows(genotype):
                return genotype
        if share == self.majority and not any(genotype.values()):
            raise Infeasible(
                f"no dimension is kept by {share:.2f} of {of}: lower --method.sparsity, --method.majority or "
                "--method.clusters, or train the supernet for longer"
            )
        needs = why(space, genotype if any(genotype.values()) else least)
        raise Infeasible(
            f"even what the most of {of} keep needs more than the budget allows: {needs}; raise it, or lower "
            "--method.sparsity"
        )


def everything(space: Space) -> Genotype:
    """The genotype that keeps all dimensions."""
    return {name: one.options for name, one in space.decisions.items()}


def why(space: Space, genotype: Genotype) -> str:
    """What a genotype needs of each limit of a space."""
    return "; ".join(one.explain(genotype) for one in space.constraints)


def worn(spec: str, embedding: int, training: ClickTraining) -> ClickBaseline | None:
    """The click net that stands behind the gates, if there is one."""
    if not spec:
        return None
    kind = plugins.load("methods", spec.partition(":")[0])
    if not issubclass(kind, ClickBaseline) or "embedding" not in kind.__dataclass_fields__:
        raise ValueError(f"{spec!r} cannot stand behind gates: it is no hand-made click net that has vectors")
    behind: ClickBaseline = plugins.build("methods", spec, embedding=embedding, training=training)
    return behind
