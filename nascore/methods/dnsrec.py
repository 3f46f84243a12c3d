"""DNS-Rec: the width and the depth of a linear-attention transformer, learned under a resource constraint (2024).

Every layer holds a transformer for each width; one decision weighs the widths in all layers alike, one weighs after
how many layers to stop (§2.4, eq. 8-10). Gates that see the embedded past scale each feed-forward net (§2.5). Gumbel
weights cool while weights and decisions are trained in turn (§2.6); the likeliest net is cut out of the supernet and
trained on with the weights it has (§2.7).

Where a width keeps a part of the hidden dimensions, it keeps the first of each head, norms count kept ones only, and
attention is scaled by the kept width of a head: so the net that is cut out is equal to what was masked (the paper does
not say which ones its zero-masks keep). The embedded past, T0, is normed for each width, then mixed like any layer.

The paper's space is that of its Table 7, read backwards: widths of hidden and inner size are tied, gates see each
position and stand in every layer; `paper_meter` gives its five figures to the printed digit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from nascore.attention import Keys, Kind, Mask
from nascore.dnsrec_net import DEPTH, WIDTH, DNSRecNet, scores
from nascore.fitness import Fitness
from nascore.methods import CACHE, Method, Scorer
from nascore.net import Net
from nascore.plugins import bounded
from nascore.rows import Data, Shown
from nascore.samplers import Logits, Sampler
from nascore.samplers.darts import Darts
from nascore.samplers.gumbel import Gumbel
from nascore.samplers.proxyless import Proxyless
from nascore.samplers.recnas import RecNas
from nascore.samplers.uniform import Uniform
from nascore.schema import Schema
from nascore.sequence_net import Training
from nascore.space import Decision, Genotype, Mix, Space
from nascore.tasks import Task
from nascore.tasks.next_item import NextItem
from nascore.training import Learning, Penalty, Plan


@dataclass(frozen=True, kw_only=True)
class DNSRec(Method):
    """The paper's space and settings on MovieLens 1M (Table 2).

    Args:
        hidden: Width d of the widest net.
        inner: Inner width D of its feed-forward nets.
        ratios: The shares of both that each candidate width prunes.
        layers: The most layers, L.
        heads: Of every attention.
        gates: Linear maps of each gate, L_d; at 0 there are none.
        gated_from: The first layer with gates, 1 or 2.
        attention: linear, or softmax.
        mask: What linear attention hides: none as in the public code, padding or causal.
        keys: How linear attention brings keys to unit length: token as in the public code, or column as in the paper.
        dropout: Behind the look-up, each attention and each feed-forward net.
        attention_dropout: On the weights of softmax.
        paths: What weighs the options while the supernet is trained: gumbel, or the rivals darts, proxyless and recnas;
            or uniform, one path a step, for strategies to search.
        cooling: By how much a step lowers the temperature of gumbel.
        coldest: The temperature that it ends at.
        tradeoff: Weight of the resource constraint, lambda, which neither darts nor uniform has.
        constraint: paper, eq. 12 as printed, where the depth counts by its likeliest choice of the moment alone and
            gets no gradient but where the first layer costs less; or cumulative, the expected resources of the layers
            up to each depth.
        resource: What is constrained: macs or params of a layer, or the seconds it takes on the machine that trains.
        unit: What one is: largest, the widest candidate's layer; or millions (of seconds: microseconds).
        learner: How the decisions are learned, unless paths are uniform.
        batch: Events learned at a step of the supernet.
        steps: Steps of the supernet.
        candidates: Genotypes that a strategy scores, where paths are uniform and one searches.
        inherit: Whether what is cut out keeps its weights when it is trained alone.
        training: How the supernet and the candidates are trained.
    """

    hidden: int = 128
    inner: int = 256
    ratios: tuple[float, ...] = (0.0, 0.25, 0.5)
    layers: int = 4
    heads: int = 4
    gates: int = 2
    gated_from: int = 1
    attention: Kind = "linear"
    mask: Mask = "none"
    keys: Keys = "token"
    dropout: float = 0.2
    attention_dropout: float = 0.0
    paths: Literal["gumbel", "darts", "proxyless", "recnas", "uniform"] = "gumbel"
    cooling: float = 5e-5
    coldest: float = 0.01
    tradeoff: float = 0.1
    constraint: Literal["paper", "cumulative"] = "paper"
    resource: Literal["macs", "params", "seconds"] = "macs"
    unit: Literal["largest", "millions"] = "largest"
    learner: Learning = Learning(every=10, learning_rate=1e-3, weight_decay=0.0)
    batch: int = 1024
    steps: int = 20_000
    candidates: int = 12
    inherit: bool = True
    training: Training = Training()

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gowalla": {"hidden": 64, "ratios": (0.0, 0.5, 0.75), "training": {"length": 100}},
        "douban": {"ratios": (0.0, 0.5, 0.75), "training": {"length": 100}},
    }
    budgets: ClassVar[Mapping[str, str]] = {"whole": ""}

    def __post_init__(self) -> None:
        bounded(self, hidden=1, inner=1, layers=1, heads=1, gates=0, dropout=0, attention_dropout=0, cooling=0)
        bounded(self, tradeoff=0, batch=1, steps=1, candidates=1)
        if self.gated_from not in (1, 2):
            raise ValueError(f"DNSRec: gated_from is 1 or 2, not {self.gated_from}")
        if not self.ratios or not all(0 <= ratio < 1 for ratio in self.ratios):
            raise ValueError(f"DNSRec: ratios are one or more shares from 0 to below 1, not {list(self.ratios)}")
        if len(self.widths) < len(self.ratios) or any(min(pair) < 1 for pair in self.widths.values()):
            raise ValueError(f"DNSRec: ratios must leave a width each, of 1 or more, not {list(self.widths)}")
        for hidden, _ in self.widths.values():
            if hidden % self.heads:
                raise ValueError(
                    f"DNSRec: {self.heads} heads cannot share a hidden width of {hidden}, which ratios leave of "
                    f"{self.hidden}; all of {sorted(one for one, _ in self.widths.values())} must be multiples of heads"
                )
        self.training.check(self, self.attention, self.mask)

    @property
    def label(self) -> str:
        """That of what learns the paths: its rivals on the same space go by their own names."""
        rivals = {
            "darts": "DARTS",
            "proxyless": "ProxylessNAS",
            "recnas": "RecNAS (approximation)",
            "uniform": "One-shot",
        }
        return rivals.get(self.paths, "DNS-Rec")

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Hidden and inner width by option: "96x192"."""
        kept = [(round(self.hidden * (1 - ratio)), round(self.inner * (1 - ratio))) for ratio in self.ratios]
        return {f"{hidden}x{inner}": (hidden, inner) for hidden, inner in kept}

    def space(self, schema: Schema) -> Space:
        depths = tuple(str(depth) for depth in range(1, self.layers + 1))
        return Space([Decision(WIDTH, tuple(self.widths)), Decision(DEPTH, depths)])

    def net(self, schema: Schema, space: Space) -> Net:
        names = ("heads", "attention", "mask", "keys", "dropout", "attention_dropout")
        layer = ",".join(f"{name}={getattr(self, name)}" for name in names)
        gates = self.gates, self.gated_from
        return DNSRecNet(schema, space, self.training, self.widths, layer, self.heads, *gates, self.dropout)

    def sampler(self, space: Space, seed: int) -> Sampler:
        if self.paths == "gumbel":
            return Gumbel(space, seed, coldest=self.coldest, cooling=self.cooling)
        if self.paths == "recnas":
            return RecNas(space, seed, steps=self.steps)
        kinds: dict[str, type[Sampler]] = {"darts": Darts, "proxyless": Proxyless, "uniform": Uniform}
        return kinds[self.paths](space, seed)

    def task(self, schema: Schema) -> NextItem:
        return self.training.task()

    @property
    def shown(self) -> Shown:
        return self.training.shown

    @property
    def train(self) -> Plan:
        return self.training.supernet(self.batch, self.steps)

    @property
    def retrain(self) -> Plan:
        return self.training.alone()

    @property
    def inherits(self) -> bool:
        return self.inherit

    @property
    def learning(self) -> Learning | None:
        return None if self.paths == "uniform" else self.learner

    @property
    def fitness(self) -> Fitness:
        return self.training.judged

    def tunables(self) -> Space:
        return Space(Training.tunables)

    # The resource constraint

    def measure(self, net: Net) -> dict[str, float]:
        """The seconds of each candidate's layer a past, where they are constrained."""
        assert isinstance(net, DNSRecNet)
        return net.seconds() if self.resource == "seconds" else {}

    def penalty(self, net: Net, measured: Mapping[str, float]) -> Penalty | None:
        """lambda times eq. 12, or its cumulative form. DARTS knows no constraint."""
        assert isinstance(net, DNSRecNet)
        if not self.tradeoff or self.paths == "darts":
            return None

        def price(name: str, number: int) -> float:
            if self.resource == "seconds":
                return measured[net.kind(name, number)]
            return float(getattr(net.layer_cost(name, number), self.resource))

        known = [[price(name, number) for name in self.widths] for number in range(1, self.layers + 1)]
        scale = 1 / max(map(max, known)) if self.unit == "largest" else 1e6 if self.resource == "seconds" else 1e-6
        device, alike = net.events.positions.device, known[0] == known[-1]
        price_LM = torch.tensor(known, device=device) * scale

        def penalty(mix: Mix, sampler: Sampler) -> Tensor:
            assert isinstance(sampler, Logits)
            width_M, share_L = (torch.as_tensor(mix[name], device=device) for name in (WIDTH, DEPTH))
            layer_L = price_LM @ width_M.to(price_LM.dtype)
            if self.constraint == "cumulative":
                return self.tradeoff * (share_L * layer_L.cumsum(0)).sum()
            likeliest = sampler.split(sampler.logits)[DEPTH].argmax() + 1
            layer = layer_L[0] if alike else (share_L * layer_L).sum()
            return self.tradeoff * layer * likeliest / self.layers

        return penalty

    def paper_meter(self, genotype: Genotype) -> float:
        """FLOPs as the paper counts them: multiply-adds of linear maps, twice a norm's numbers, looked-up numbers."""
        (width,), (depth,) = genotype[WIDTH], genotype[DEPTH]
        hidden, inner = self.widths[width]
        layer = 4 * hidden**2 + 2 * hidden * inner + 4 * hidden
        gates = self.gates * hidden**2 + hidden * inner + (self.gates - 1) * inner**2 if self.gates else 0
        gated = max(0, int(depth) - self.gated_from + 1)
        return float(self.training.length * (int(depth) * layer + gated * gates + 4 * hidden))

    def scorer(self, net: Net, task: Task, train: Data, valid: Data, cache_bytes: int = CACHE) -> Scorer:
        """Encodes each row once a width, for all depths."""
        assert isinstance(net, DNSRecNet) and isinstance(task, NextItem)
        if not self.fitness.ranks:
            return super().scorer(net, task, train, valid, cache_bytes)
        return lambda genotypes: scores(net.eval(), task, valid, self.fitness.kind, genotypes)
