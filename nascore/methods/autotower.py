"""AutoTower: architecture search for two-tower retrieval (Zhu et al., 2023).

One decision pools the user's history, one decides each block of the user and the item tower; every block sees the
tower's input and all blocks before it (§3.2). The supernet is trained one uniform path a step (Algorithm 1) with an
in-batch softmax (eq. 4-6) and searched under limits on parameters and MACs (Algorithm 2).

Where the public code differs from the paper, the preset `authors` follows the code: no ReLU inside an MLP block but one
after the last block, position tables in the attentive poolings, a penalty on the embeddings' norms, weight decay and
gradient clipping. Its FLOPs are half our MACs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.fitness import Fitness
from nascore.methods import CACHE, Scorer, TwoTowerMethod
from nascore.net import Choose, Net, Row
from nascore.ops import build
from nascore.plugins import bounded
from nascore.prefix_scoring import Chain, PrefixScorer
from nascore.rows import Data
from nascore.samplers import Sampler
from nascore.samplers.nasp import Nasp
from nascore.samplers.uniform import Uniform
from nascore.schema import Schema
from nascore.space import Decision, Genotype, Mix, Space
from nascore.tasks import Task
from nascore.tasks.retrieval import Retrieval
from nascore.training import Learning, Plan, Schedule
from nascore.two_tower import Inputs, Side, Training, TwoTower

POOL = "user/pool"
HIDDEN = (16, 32, 64, 128, 256, 512, 1024)
REDUCTIONS = ("sum", "mean", "product", "max", "min")
HEADS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class AutoTower(TwoTowerMethod):
    """The paper's space and settings.

    Args:
        blocks: Choice blocks of the user tower, and of the item tower unless `item_blocks` says otherwise.
        item_blocks: Choice blocks of the item tower.
        embedding: Width of a feature's vector.
        width: Width of every block's output, D_blk.
        output: Width of the towers' vectors.
        shortcuts: Whether a block sees all blocks before it or only the last.
        shared_stem: Whether all poolings share the weights of the user tower's stem, as in the paper. A sum of
            the events is as many times their mean as there are events.
        hidden_activation: Inside MLP blocks: relu or identity.
        positions: Whether the attentive poolings have position tables and an output map.
        pool_dropout: On the attention of `self_attention_pool` where there are `positions`.
        rectify: Whether the last block ends in a ReLU as the others do.
        steps: Steps of the supernet.
        growth: Share of them over which options open one after the other; at 0 all are open from the start, as in the
            paper.
        schedule: Of the supernet's learning rate: constant, or falling to 0 as linear or cosine.
        lazy: Whether Adam leaves alone what is off a step's path; the public code's moves it on by its moments.
        towers: Towers of each side that a step of the supernet trains, the loss over all their pairs.
        anchor: Whether one of them is always the same, for all others to agree with.
        paths: What draws the supernet's paths: uniform, or nasp, which learns one instead.
        nasp: How that learns; the rates are those of AutoTower's public code, whose SGD for the weights is left out:
            they are trained as those of every supernet.
        candidates: Genotypes that a search scores.
        fitness: What they are scored by.
        training: How the supernet and the candidates are trained.
    """

    blocks: int = 5
    item_blocks: int | None = None
    embedding: int = 16
    width: int = 64
    output: int = 64
    shortcuts: bool = True
    shared_stem: bool = True
    hidden_activation: str = "relu"
    positions: bool = False
    pool_dropout: float = 0.0
    rectify: bool = False
    steps: int = 50_000
    growth: float = 0.0
    schedule: Schedule = "constant"
    lazy: bool = True
    towers: int = 1
    anchor: bool = False
    paths: Literal["uniform", "nasp"] = "uniform"
    nasp: Learning = Learning(weight_decay=0.0)
    candidates: int = 2_550
    fitness: Fitness = Fitness()
    training: Training = Training()

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {
            "hidden_activation": "identity",
            "positions": True,
            "pool_dropout": 0.2,
            "rectify": True,
            "fitness": {"kind": "loss@1"},
            "training": {"weight_decay": 1e-6, "clip": 5.0, "regularizer": 1e-5, "stop": "loss@1"},
        }
    }
    budgets: ClassVar[Mapping[str, str]] = {
        "L": "params=240000,macs=300000",
        "M": "params=480000,macs=560000",
        "H": "params=1200000,macs=1600000",
        "whole": "",
    }

    def __post_init__(self) -> None:
        bounded(self, blocks=1, embedding=1, width=1, output=1, growth=0, steps=1, towers=1, candidates=1)
        if self._item_blocks < 1 or self.growth > 1:
            raise ValueError(f"AutoTower: not 1 <= item_blocks or not growth <= 1: {self.item_blocks}, {self.growth}")
        if self.anchor and self.towers < 2:
            raise ValueError("AutoTower: an anchor needs other towers beside it in a step: towers must be 2 or more")
        if self.paths == "nasp" and (self.growth or self.towers > 1 or not self.shared_stem):
            raise ValueError("AutoTower: paths=nasp learns one path: growth must be 0, towers 1 and shared_stem true")

    def space(self, schema: Schema) -> Space:
        decisions = [Decision(POOL, self._pools())] if schema.history_length else []
        for side, blocks in (("user", self.blocks), ("item", self._item_blocks)):
            for block in range(blocks):
                decisions.append(Decision(f"{side}/{block}", self._options(self.inputs(block))))
        return Space(decisions)

    @property
    def _item_blocks(self) -> int:
        return self.blocks if self.item_blocks is None else self.item_blocks

    def inputs(self, block: int) -> int:
        """How many tensors a block sees."""
        return block + 1 if self.shortcuts else 1

    def _options(self, inputs: int) -> tuple[str, ...]:
        """The 16 operators; with one input the element-wise ones are all the same function and left out."""
        setting = "" if self.hidden_activation == "relu" else f",activation={self.hidden_activation}"
        reductions = tuple(f"elementwise:{reduction}" for reduction in REDUCTIONS) if inputs > 1 else ()
        return (*(f"mlp:{h}{setting}" for h in HIDDEN), *reductions, *(f"attention:{heads}" for heads in HEADS))

    def _pools(self) -> tuple[str, ...]:
        attentive, attention = "self_attentive_pool", "self_attention_pool"
        if self.positions:
            attentive += ":positions=true"
            attention += f":positions=true,output=true,dropout={self.pool_dropout}"
        return ("pool:sum", "pool:mean", attentive, attention)

    def net(self, schema: Schema, space: Space) -> Net:
        return _AutoTowerNet(self, schema, space)

    def sampler(self, space: Space, seed: int) -> Sampler:
        if self.paths == "nasp":
            return Nasp(space, seed)
        return Uniform(space, seed, round(self.growth * self.steps * self.towers), self.towers * self.anchor)

    @property
    def paths_per_step(self) -> int:
        return self.towers

    @property
    def learning(self) -> Learning | None:
        return self.nasp if self.paths == "nasp" else None

    @property
    def train(self) -> Plan:
        return self.training.supernet(self.steps, self.schedule, self.lazy)

    def scorer(self, net: Net, task: Task, train: Data, valid: Data, cache_bytes: int = CACHE) -> Scorer:
        assert isinstance(net, _AutoTowerNet) and isinstance(task, Retrieval)
        net.eval()
        return PrefixScorer(*net.chains(), task, train, valid, self.fitness, cache_bytes)

    def paper_meter(self, schema: Schema, genotype: Genotype) -> dict[str, Cost]:
        """Each tower's cost as the paper's tables count it, in MACs: twice their FLOPs.

        Embedding tables apart; batch norms count 64, that of the last block too; of the element-wise reductions
        only mean and product count; the poolings count as in the public code, with position tables and output map.
        """
        event, length = self.embedding * len(schema.history), schema.history_length
        width_in = {
            "user": self.embedding * len(schema.of("user")) + event,
            "item": self.embedding * len(schema.of("item")),
        }
        costs = {side: Cost((width + 1) * 64, 0, width * 64) for side, width in width_in.items()}
        square = event * event
        pool = genotype[POOL][0].partition(":")[0]
        if pool == "pool":
            costs["user"] += Cost(0, 0, length * event)
        elif pool == "self_attentive_pool":
            macs = length * (square + event) + 2 * length * event + length
            costs["user"] += Cost(event * (length + event + 1), 0, macs)
        else:
            macs = 4 * length * square + 2 * length * length * event + length * event + length * length
            costs["user"] += Cost(length * event + 4 * (square + event), 0, macs)
        for name, (option,) in genotype.items():
            side, block = name.split("/")
            if name != POOL:
                costs[side] += _paper_block(option, int(block) + 1)
        return costs


def _paper_block(option: str, n: int) -> Cost:
    """One block with n inputs of width 64, batch norm included."""
    name, _, argument = option.partition(":")
    value = argument.partition(",")[0]
    if name == "mlp":
        h = int(value)
        return Cost(64 * n * h + h + 64 * h + 64 + 128, 0, 64 * n * h + 64 * h + 64)
    if name == "elementwise":
        return Cost(4288, 0, 4096 + {"mean": 64, "product": 64 * n}.get(value, 0) + 64)
    heads = int(value)
    return Cost(
        heads * (1560 + 520) + 512 * n * heads + 64 + 128, 0, heads * (2048 * n + 16 * n * n) + 512 * n * heads + 64
    )


class _Tower(nn.Module):
    """A stem and blocks, each block choosing one operator over what came before it; `names` are their decisions.

    stems: the poolings that have a stem of their own, if they have.
    """

    def __init__(
        self, method: AutoTower, inputs: int, options: Mapping[str, tuple[str, ...]], stems: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.shortcuts, self.names = method.shortcuts, list(options)
        own = {pool: build("linear", D=inputs, O=method.width) for pool in stems}
        self.stem = Choose(own) if own else build("linear", D=inputs, O=method.width)
        self.blocks = nn.ModuleList()
        for block, specs in enumerate(options.values()):
            last = block == len(options) - 1
            sizes = {"N": method.inputs(block), "D": method.width, "O": method.output if last else method.width}
            ending = self._output if last else self._inner
            self.blocks.append(Choose({spec: Row(build(spec, **sizes), *ending(method)) for spec in specs}))

    @staticmethod
    def _inner(method: AutoTower) -> list[nn.Module]:
        return [build("batch_norm", O=method.width), nn.ReLU()]

    @staticmethod
    def _output(method: AutoTower) -> list[nn.Module]:
        return [nn.ReLU()] if method.rectify else []

    def chooses(self) -> list[Choose]:
        return [block for block in self.blocks if isinstance(block, Choose)]

    def forward(self, x_BD: Tensor, mix: Mix) -> Tensor:
        outputs = [self.start(x_BD, mix)]
        for name, block in zip(self.names, self.chooses(), strict=True):
            outputs.append(block(mix[name], self.inputs(outputs)))
        return outputs[-1]

    def start(self, x_BD: Tensor, mix: Mix) -> Tensor:
        """The stem's output. Shape (B, D)."""
        started: Tensor = self.stem(mix[POOL], x_BD) if isinstance(self.stem, Choose) else self.stem(x_BD)
        return started

    def inputs(self, outputs: list[Tensor]) -> Tensor:
        """What the next block sees. Shape (B, N, D)."""
        return torch.stack(outputs, 1) if self.shortcuts else outputs[-1][:, None]

    def costs(self, side: str, mix: Mix) -> dict[str, Cost]:
        blocks = {name: block.cost(mix[name]) for name, block in zip(self.names, self.chooses(), strict=True)}
        stem = self.stem.cost(mix[POOL]) if isinstance(self.stem, Choose) else self.stem.cost()
        return {f"{side}/stem": stem} | blocks


class _AutoTowerNet(TwoTower):
    def __init__(self, method: AutoTower, schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        options = {name: decision.options for name, decision in space.decisions.items()}
        sizes = {"T": schema.history_length, "D": self.history_width}
        self.pool = Choose({pool: build(pool, **sizes) for pool in options.pop(POOL, ())})
        users = {name: specs for name, specs in options.items() if name.startswith("user/")}
        items = {name: specs for name, specs in options.items() if name.startswith("item/")}
        stems = () if method.shared_stem else self.pool.names
        self.user_tower = _Tower(method, self.user_width + self.history_width, users, stems)
        self.item_tower = _Tower(method, self.item_width, items)

    def user_input(self, x: Inputs, mix: Mix) -> Tensor:
        if "history" not in x:
            return x["user"]
        return torch.cat([x["user"], self.pool(mix[POOL], x["history"], x["mask"])], 1)

    def tower(self, side: Side, x_BD: Tensor, mix: Mix) -> Tensor:
        output: Tensor = (self.user_tower if side == "user" else self.item_tower)(x_BD, mix)
        return output

    def chains(self) -> tuple[Chain, Chain]:
        """The user and the item tower, choice by choice."""

        def user_stem(data: Data, user: Tensor, before: Tensor, pool: str) -> Tensor:
            mix = {POOL: tuple(float(pool == option) for option in self.pool.names)}
            return self.user_tower.start(self.user_input(self.embed(data.user_batch(user, before)), mix), mix)

        def item_stem(data: Data, item: Tensor, nothing: Tensor, none: str) -> Tensor:
            return self.item_tower.start(self.embed(data.item_batch(item))["item"], {})

        first, user, item = POOL if POOL in self.space.decisions else "", self.user_tower, self.item_tower
        return (
            Chain(user.names, user.chooses(), user.inputs, user_stem, first),
            Chain(item.names, item.chooses(), item.inputs, item_stem),
        )

    def costs(self, mix: Mix) -> dict[str, Cost]:
        pool = {POOL: self.pool.cost(mix[POOL])} if POOL in mix else {}
        return self.table_costs() | pool | self.user_tower.costs("user", mix) | self.item_tower.costs("item", mix)
