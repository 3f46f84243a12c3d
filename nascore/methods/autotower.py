"""AutoTower: architecture search for two-tower retrieval (Zhu et al., 2023).

One decision pools the user's history, one decides each block of the user and the item tower; every block sees the tower's
input and all blocks before it (§3.2). The supernet is trained one uniform path a step (Algorithm 1) with an in-batch softmax
(eq. 4-6) and searched under limits on parameters and MACs (Algorithm 2).

Where the public code differs from the paper, the preset `authors` follows the code: no ReLU inside an MLP block but one
after the last block, position tables in the attentive poolings, a penalty on the embeddings' norms, weight decay and
gradient clipping. Its FLOPs are half our MACs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.methods import CACHE, Method, Round, Scorer
from nascore.net import Choose, Net, Row
from nascore.ops import build
from nascore.prefix_scoring import Chain, PrefixScorer
from nascore.rows import Data
from nascore.samplers.uniform import Uniform
from nascore.schema import Schema
from nascore.space import Decision, Genotype, Mix, Space
from nascore.tasks import Task
from nascore.tasks.retrieval import Retrieval
from nascore.training import Fitness, Plan
from nascore.two_tower import Inputs, Side, Training, TwoTower

HIDDEN = (16, 32, 64, 128, 256, 512, 1024)
REDUCTIONS = ("sum", "mean", "product", "max", "min")
HEADS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class AutoTower(Method):
    """blocks: choice blocks of the user tower, and of the item tower unless `item_blocks` says otherwise.

    embedding, width, output: sizes of a feature's embedding, of every block's output, and of the towers' vectors.
    shortcuts: whether a block sees all blocks before it or only the last. hidden_activation: inside MLP blocks.
    positions: position tables and an output map in the attentive poolings; pool_dropout: on their attention.
    rectify: whether the last block ends in a ReLU as all others do.
    steps: of the supernet. candidates: genotypes that a search scores, and fitness, by what.
    """

    blocks: int = 5
    item_blocks: int | None = None
    embedding: int = 16
    width: int = 64
    output: int = 64
    shortcuts: bool = True
    hidden_activation: str = "relu"
    positions: bool = False
    pool_dropout: float = 0.0
    rectify: bool = False
    steps: int = 50_000
    candidates: int = 2_550
    fitness: Fitness = Fitness()
    training: Training = Training()

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "authors": {
            "hidden_activation": "identity",
            "positions": True,
            "pool_dropout": 0.2,
            "rectify": True,
            "training": {"weight_decay": 1e-6, "clip": 5.0, "regularizer": 1e-5, "stop": "loss@1"},
        }
    }
    budgets: ClassVar[Mapping[str, str]] = {
        "L": "params=240000,macs=300000",
        "M": "params=480000,macs=560000",
        "H": "params=1200000,macs=1600000",
    }

    def space(self, schema: Schema) -> Space:
        decisions = [Decision("user/pool", self._pools())] if schema.history_length else []
        for side, blocks in (("user", self.blocks), ("item", self._item_blocks)):
            for block in range(blocks):
                decisions.append(Decision(f"{side}/{block}", self._options(self._inputs(block))))
        return Space(decisions)

    @property
    def _item_blocks(self) -> int:
        return self.blocks if self.item_blocks is None else self.item_blocks

    def _inputs(self, block: int) -> int:
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

    def sampler(self, space: Space, seed: int) -> Uniform:
        return Uniform(space, seed)

    def task(self, schema: Schema) -> Retrieval:
        return self.training.task(schema)

    @property
    def train(self) -> Plan:
        return self.training.supernet(self.steps)

    @property
    def stop(self) -> Fitness:
        return Fitness(self.training.stop)

    @property
    def retrain(self) -> tuple[Round, ...]:
        return (Round(self.training.alone()),)

    def scorer(self, net: Net, task: Task, train: Data, valid: Data, cache_bytes: int = CACHE) -> Scorer:
        assert isinstance(net, _AutoTowerNet) and isinstance(task, Retrieval)
        return PrefixScorer(net.chain("user"), net.chain("item"), task, train, valid, self.fitness, cache_bytes)

    def paper_meter(self, schema: Schema, genotype: Genotype) -> dict[str, Cost]:
        """Each tower's cost as the paper's tables count it, in MACs: twice their FLOPs (spec §1.5).

        Embedding tables apart; batch norms count 64 of their FLOPs each; of the element-wise reductions only mean and
        product count; the poolings count as in the public code, with position tables and output map.
        """
        event, length = self.embedding * len(schema.history), schema.history_length
        width_in = {"user": self.embedding * len(schema.of("user")) + event, "item": self.embedding * len(schema.of("item"))}
        costs = {side: Cost((width + 1) * 64, 0, width * 64) for side, width in width_in.items()}
        pooling = 2 * length * event
        pool = genotype["user/pool"][0].partition(":")[0]
        if pool == "pool":
            costs["user"] += Cost(0, 0, length * event)
        elif pool == "self_attentive_pool":
            costs["user"] += Cost(event * (length + event + 1), 0, length * (event * event + event) + pooling // 2)
        else:
            square = event * event
            core = 2 * length * length * event
            costs["user"] += Cost(length * event + 4 * (square + event), 0, 4 * length * square + core + pooling)
        for name, (option,) in genotype.items():
            side, block = name.split("/")
            if block != "pool":
                costs[side] += _paper_block(option, int(block) + 1)
        return costs


def _paper_block(option: str, n: int) -> Cost:
    """One block with n inputs of width 64, batch norm included."""
    name, _, argument = option.partition(":")
    value = argument.partition(",")[0]
    if name == "mlp":
        h = int(value)
        return Cost(64 * n * h + h + 64 * h + 64 + 128, 0, 64 * n * h + 64 * h + 128)
    if name == "elementwise":
        return Cost(4288, 0, 4096 + {"mean": 64, "product": 64 * n}.get(value, 0) + 128)
    heads = int(value)
    return Cost(
        heads * (1560 + 520) + 512 * n * heads + 64 + 128, 0, heads * (2048 * n + 16 * n * n) + 512 * n * heads + 128
    )


class _Tower(nn.Module):
    """A stem and blocks, each block choosing one operator over what came before it."""

    def __init__(self, method: AutoTower, inputs: int, options: list[tuple[str, ...]]) -> None:
        super().__init__()
        self.shortcuts = method.shortcuts
        self.stem = build("linear", D=inputs, O=method.width)
        self.blocks = nn.ModuleList()
        for block, names in enumerate(options):
            last = block == len(options) - 1
            sizes = {"N": block + 1 if method.shortcuts else 1, "D": method.width}
            sizes["O"] = method.output if last else method.width
            self.blocks.append(Choose({name: self._option(name, last, method, sizes) for name in names}))

    @staticmethod
    def _option(name: str, last: bool, method: AutoTower, sizes: dict[str, int]) -> Row:
        if last:
            return Row(build(name, **sizes), *([nn.ReLU()] if method.rectify else []))
        return Row(build(name, **sizes), build("batch_norm", O=sizes["O"]), nn.ReLU())

    def forward(self, x_BD: Tensor, weights: list[Any]) -> Tensor:
        outputs = [self.stem(x_BD)]
        for block, weight in zip(self.blocks, weights, strict=True):
            outputs.append(block(weight, self.inputs(outputs)))
        return outputs[-1]

    def inputs(self, outputs: list[Tensor]) -> Tensor:
        """What the next block sees. Shape (B, N, D)."""
        return torch.stack(outputs, 1) if self.shortcuts else outputs[-1][:, None]


class _AutoTowerNet(TwoTower):
    def __init__(self, method: AutoTower, schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        options = {name: decision.options for name, decision in space.decisions.items()}
        pools = options.get("user/pool", ())
        sizes = {"T": schema.history_length, "D": self.history_width}
        self.pool = Choose({pool: build(pool, **sizes) for pool in pools})
        inputs = {"user": self.user_width + self.history_width, "item": self.item_width}
        self.blocks = {
            side: [name for name in options if name.startswith(f"{side}/") and name != "user/pool"] for side in inputs
        }
        self.towers = nn.ModuleDict(
            {side: _Tower(method, inputs[side], [options[name] for name in self.blocks[side]]) for side in inputs}
        )

    def user_input(self, x: Inputs, mix: Mix) -> Tensor:
        if "history" not in x:
            return x["user"]
        return torch.cat([x["user"], self.pool(mix["user/pool"], x["history"], x["mask"])], 1)

    def tower(self, side: Side, x_BD: Tensor, mix: Mix) -> Tensor:
        output: Tensor = self.towers[side](x_BD, [mix[name] for name in self.blocks[side]])
        return output

    def chain(self, side: Side) -> Chain:
        """One tower, choice by choice."""
        tower, first = self.towers[side], "user/pool" if side == "user" and "user/pool" in self.space.decisions else ""

        def stem(data: Data, key: Tensor, before: Tensor, pool: str) -> Tensor:
            batch = data.user_batch(key, before) if side == "user" else data.item_batch(key)
            x = self.embed(batch)
            mix = {"user/pool": tuple(float(pool == option) for option in self.pool.options)}
            output: Tensor = tower.stem(self.user_input(x, mix) if side == "user" else x["item"])
            return output

        return Chain(self.blocks[side], list(tower.blocks), tower.inputs, stem, first)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        costs = self.table_costs()
        if "user/pool" in mix:
            costs["user/pool"] = self.pool.cost(mix["user/pool"])
        for side, names in self.blocks.items():
            tower = self.towers[side]
            costs[f"{side}/stem"] = tower.stem.cost()
            costs |= {name: block.cost(mix[name]) for name, block in zip(names, tower.blocks, strict=True)}
        return costs
