"""AutoTower's published step, candidate scorer and ranking written plainly: what benchmarks/speed.py measures against.

The mathematics is that of the preset `authors`. What it costs is left as it was published: one linear map for each
head's queries, keys and values, copies of the position table for every row, the item tower on every row, item
frequencies in a Python loop, gradients and Adam over whole embedding tables, candidates scored row by row with
gradients kept while calibrating, and users ranked one after the other. Nothing is cached.
"""

import multiprocessing
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from nascore.net import Net
from nascore.ragged import Ragged
from nascore.rows import Data
from nascore.schema import Batch, Schema
from nascore.space import Genotype, Space

WIDTH, HEAD, EMBEDDING, DROPOUT = 64, 8, 16, 0.2
TEMPERATURE, RATE, REGULARIZER, CLIP = 0.05, 0.01, 1e-5, 5.0
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-6
DEEPEST = 100


class Mlp(nn.Module):
    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.widen, self.align = nn.Linear(inputs * WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, xs: list[Tensor]) -> Tensor:
        return self.align(self.widen(torch.cat(xs, 1)))


class Elementwise(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.align = how, nn.Linear(WIDTH, WIDTH)

    def forward(self, xs: list[Tensor]) -> Tensor:
        x_BND = torch.stack(xs, 1)
        if self.how == "sum":
            x_BD = x_BND.sum(1)
        elif self.how == "mean":
            x_BD = x_BND.mean(1)
        elif self.how == "max":
            x_BD = x_BND.max(1).values
        elif self.how == "min":
            x_BD = x_BND.min(1).values
        else:
            x_BD = xs[0]
            for x in xs[1:]:
                x_BD = x_BD * x
        return self.align(x_BD)


class Attention(nn.Module):
    def __init__(self, inputs: int, heads: int) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (
            nn.ModuleList(nn.Linear(WIDTH, HEAD) for _ in range(heads)) for _ in range(3)
        )
        self.residual = nn.Linear(WIDTH, heads * HEAD)
        self.align = nn.Linear(inputs * heads * HEAD, WIDTH)

    def forward(self, xs: list[Tensor]) -> Tensor:
        x_BND = torch.stack(xs, 1)
        heads = []
        for query, key, value in zip(self.queries, self.keys, self.values, strict=True):
            score_BNN = torch.bmm(query(x_BND), key(x_BND).transpose(1, 2)) / HEAD**0.5
            heads.append(torch.bmm(torch.softmax(score_BNN, 2), value(x_BND)))
        return self.align((torch.cat(heads, 2) + self.residual(x_BND)).flatten(1))


class Pool(nn.Module):
    """Sum or mean of the valid events."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        sum_BD = (x_BTD * mask_BT[:, :, None]).sum(1)
        return sum_BD / (mask_BT.sum(1, keepdim=True) + 1e-8) if self.mean else sum_BD


class SelfAttentivePool(nn.Module):
    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, length, width))
        self.hidden, self.score = nn.Linear(width, width, bias=False), nn.Linear(width, 1, bias=False)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        placed_BTD = x_BTD + self.positions.repeat(len(x_BTD), 1, 1)
        score_BT = self.score(torch.tanh(self.hidden(placed_BTD))).squeeze(2)
        weight_BT = torch.softmax(score_BT.masked_fill(~mask_BT, -1e30), 1) * mask_BT
        return (weight_BT[:, :, None] * x_BTD).sum(1)


class SelfAttentionPool(nn.Module):
    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, length, width))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        x_BTD = x_BTD + self.positions.repeat(len(x_BTD), 1, 1)
        score_BTT = torch.bmm(self.query(x_BTD), self.key(x_BTD).transpose(1, 2)) / x_BTD.shape[2] ** 0.5
        weight_BTT = self.dropout(torch.softmax(score_BTT.masked_fill(~mask_BT[:, None], -1e30), 2))
        output_BTD = self.output(torch.bmm(weight_BTT, self.value(x_BTD)))
        return (output_BTD * mask_BT[:, :, None]).sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)


class Tower(nn.Module):
    """A stem and blocks; each block runs one of its options on the list of all outputs before it."""

    def __init__(self, inputs: int, options: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, WIDTH)
        self.blocks, self.norms = nn.ModuleList(), nn.ModuleList()
        for block, specs in enumerate(options, 1):
            last = block == len(options)
            self.blocks.append(nn.ModuleDict({_key(spec): _operator(spec, block) for spec in specs}))
            norms = {_key(spec): nn.Identity() if last else nn.BatchNorm1d(WIDTH) for spec in specs}
            self.norms.append(nn.ModuleDict(norms))

    def forward(self, x_BD: Tensor, path: Sequence[str]) -> Tensor:
        outputs = [self.stem(x_BD)]
        for spec, block, norm in zip(path, self.blocks, self.norms, strict=True):
            outputs.append(torch.relu(norm[_key(spec)](block[_key(spec)](outputs))))
        return outputs[-1]


def _key(spec: str) -> str:
    """A spec without the settings that all options of the preset share."""
    return spec.partition(",")[0]


def _operator(spec: str, inputs: int) -> nn.Module:
    name, value = _key(spec).split(":")
    if name == "elementwise":
        return Elementwise(value)
    return Mlp(inputs, int(value)) if name == "mlp" else Attention(inputs, int(value))


def _pool(spec: str, length: int, width: int) -> nn.Module:
    name = spec.split(":")[0]
    if name == "pool":
        return Pool(spec == "pool:mean")
    return (SelfAttentivePool if name == "self_attentive_pool" else SelfAttentionPool)(length, width)


class Reference(nn.Module):
    """The supernet over the space of the preset `authors`, with every option of every block."""

    def __init__(self, schema: Schema, space: Space) -> None:
        super().__init__()
        self.schema, self.space = schema, space
        self.names = {
            side: [name for name in space.decisions if name.startswith(f"{side}/")] for side in ("user", "item")
        }
        self.names["user"].remove("user/pool")
        options = {name: decision.options for name, decision in space.decisions.items()}
        columns = (*schema.of("user"), *schema.of("item"))
        self.tables = nn.ModuleDict({c.name: nn.Embedding(c.size, EMBEDDING, padding_idx=0) for c in columns})
        for table in self.tables.values():
            nn.init.xavier_uniform_(table.weight)  # type: ignore[arg-type]
        event = EMBEDDING * len(schema.history)
        pools = {_key(spec): _pool(spec, schema.history_length, event) for spec in options["user/pool"]}
        self.pools = nn.ModuleDict(pools)
        inputs = {"user": EMBEDDING * len(schema.of("user")) + event, "item": EMBEDDING * len(schema.of("item"))}
        self.towers = nn.ModuleDict(
            {side: Tower(inputs[side], [options[name] for name in names]) for side, names in self.names.items()}
        )

    def inputs(self, side: str, batch: Batch, path: Genotype) -> Tensor:
        """Embedded features, and for users the pooled history. Shape (B, D)."""
        parts = []
        for column in self.schema.of("user" if side == "user" else "item"):
            ids = batch[column.name]
            found = self.tables[column.name](ids)
            if column.kind == "set":
                found = (found * (ids != 0)[:, :, None]).sum(1) / (ids != 0).sum(1, keepdim=True).clamp(min=1)
            parts.append(found)
        if side == "user":
            events = torch.cat([self.tables[name](batch[f"history/{name}"]) for name in self.schema.history], 2)
            parts.append(self.pools[_key(path["user/pool"][0])](events, batch["history"] != 0))
        return torch.cat(parts, 1)

    def tower(self, side: str, x_BD: Tensor, path: Genotype) -> Tensor:
        """Unit vectors. Shape (B, 64)."""
        return functional.normalize(self.towers[side](x_BD, [path[name][0] for name in self.names[side]]), dim=1)

    def forward(self, batch: Batch, path: Genotype) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of users and of items, and the penalty on their embedded inputs."""
        user, item = self.inputs("user", batch, path), self.inputs("item", batch, path)
        penalty = REGULARIZER * (torch.norm(user) + torch.norm(item))
        return self.tower("user", user, path), self.tower("item", item, path), penalty

    @torch.no_grad()
    def take(self, source: Net) -> None:
        """Take the weights of our net over the same space."""
        known = dict(source.named_parameters()) | dict(source.named_buffers())

        def of(module: nn.Module, prefix: str) -> None:
            for name, value in module.state_dict().items():
                if f"{prefix}.{name}" in known:
                    value.copy_(known[f"{prefix}.{name}"].reshape(value.shape))

        of(self.tables, "tables")
        for spec in self.space.decisions["user/pool"].options:
            pool, prefix = self.pools[_key(spec)], f"pool.options.{spec.replace('.', '_')}"
            of(pool, prefix)
            if isinstance(pool, SelfAttentionPool):
                _share([pool.query, pool.key], known, f"{prefix}.query_key")
        for side, names in self.names.items():
            tower = self.towers[side]
            of(tower.stem, f"{side}_tower.stem")
            for place, name in enumerate(names):
                for spec in self.space.decisions[name].options:
                    block, prefix = tower.blocks[place][_key(spec)], f"{side}_tower.blocks.{place}.options.{spec}"
                    of(tower.norms[place][_key(spec)], f"{prefix}.1")
                    of(block, f"{prefix}.0")
                    if isinstance(block, Attention):
                        maps = [*block.queries, *block.keys, *block.values, block.residual]
                        _share(maps, known, f"{prefix}.0.project")
                        ours_OCN = block.align.weight.view(WIDTH, len(block.queries) * HEAD, -1)
                        block.align.weight.copy_(ours_OCN.transpose(1, 2).flatten(1))


def _share(maps: Sequence[nn.Linear], known: Mapping[str, Tensor], prefix: str) -> None:
    """Split one linear map among several."""
    for kind in ("weight", "bias"):
        parts = known[f"{prefix}.{kind}"].split([each.out_features for each in maps])
        for each, part in zip(maps, parts, strict=True):
            getattr(each, kind).copy_(part)


class Frequency:
    """How often each item is sampled, item by item: the average gap in steps between two of its occurrences."""

    def __init__(self, items: int, batch: int) -> None:
        self.step, self.last = 0, [0] * items
        self.gap = [float(max(1, (items - 1) // batch))] * items

    def observe(self, item_B: Tensor) -> Tensor:
        """Take note of one batch; log p of each of its items. Shape (B,)."""
        self.step += 1
        items = [item_B[place].item() for place in range(len(item_B))]
        for item in items:
            self.gap[item] = (1 - RATE) * self.gap[item] + RATE * (self.step - self.last[item])
            self.last[item] = self.step
        return torch.log(torch.tensor([1 / self.gap[item] for item in items]))


class Training:
    """The supernet's training, a path a step. dense: whether Adam updates what is not on the path too."""

    def __init__(self, net: Reference, batch: int, dense: bool = False) -> None:
        self.net, self.dense, self.frequency = net.train(), dense, Frequency(net.schema.items, batch)
        decayed = [p for p in net.parameters() if p.dim() >= 2]
        others = [p for p in net.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others}]
        self.optimizer = torch.optim.Adam(groups, lr=LEARNING_RATE)
        if dense:
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)

    def step(self, batch: Batch, path: Genotype) -> float:
        user_BO, item_BO, penalty = self.net(batch, path)
        logit_BB = user_BO @ item_BO.T / TEMPERATURE - self.frequency.observe(batch.keys["item"])
        loss = -torch.log(torch.diag(torch.softmax(logit_BB, 1))).sum() / len(batch) + penalty
        self.optimizer.zero_grad(set_to_none=not self.dense)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step()
        return loss.item()


def score(net: Reference, path: Genotype, train: Iterable[Batch], valid: Iterable[Batch]) -> float:
    """A candidate's mean validation loss at temperature 1, batch norms measured anew on training batches before."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
    net.train()
    for batch in train:
        net(batch, path)
    net.eval()
    losses = []
    with torch.no_grad():
        for batch in valid:
            user_BO, item_BO, _ = net(batch, path)
            losses.append(-torch.log(torch.diag(torch.softmax(user_BO @ item_BO.T, 1))).mean().item())
    return float(np.mean(losses))


@torch.no_grad()
def rank(net: Reference, path: Genotype, data: Data, ks: Sequence[int]) -> dict[str, float]:
    """Mean metrics of a full ranking: users encoded at once, then one after the other judged by another process."""
    net.eval()
    users, before = data.ranked_users()
    user_UO = net.tower("user", net.inputs("user", data.user_batch(users, before), path), path)
    every = data.item_batch(torch.arange(data.schema.items, dtype=torch.int32))
    item_IO = net.tower("item", net.inputs("item", every, path), path)
    seen_of, relevant_of = (by_user(lists, users) for lists in (data.seen, data.relevant))
    results = []
    with multiprocessing.get_context("fork").Pool(1) as pool:
        for place in range(len(users)):
            own_IO = user_UO[place].repeat(len(item_IO), 1)
            distance_I = (own_IO - item_IO).square().sum(1).numpy()
            results.append(pool.apply_async(judge, (distance_I, seen_of[place], relevant_of[place], tuple(ks))))
        values = [result.get() for result in results]
        pool.close()
        pool.join()
    known = [value for value in values if value]
    return {name: float(np.mean([value[name] for value in known])) for name in known[0]}


def by_user(lists: Ragged, users: Tensor) -> list[NDArray[np.int64]]:
    """The items of each of some users."""
    row, item = (each.numpy() for each in lists.gather(users))
    return np.split(item, np.cumsum(np.bincount(row, minlength=len(users)))[:-1])


def judge(
    distance_I: NDArray[np.float32], seen: NDArray[np.int64], relevant: NDArray[np.int64], ks: Sequence[int]
) -> dict[str, float]:
    """One user's metrics; {} for a user all of whose items were seen before."""
    distance_I[0] = np.inf
    distance_I[seen] = np.inf
    wanted = set(relevant.tolist()) - set(seen.tolist())
    if not wanted:
        return {}
    depth = min(DEEPEST, len(distance_I) - 1)
    nearest = np.argpartition(distance_I, depth - 1)[:depth]
    nearest = nearest[np.argsort(distance_I[nearest], kind="stable")]
    hits = np.array([item in wanted for item in nearest.tolist()], float)
    values = {}
    for k in ks:
        gains = 1 / np.log2(np.arange(min(k, depth)) + 2)
        values[f"recall@{k}"] = float(hits[:k].sum() / len(wanted))
        values[f"hit@{k}"] = float(hits[:k].any())
        values[f"ndcg@{k}"] = float((hits[:k] * gains).sum() / gains[: len(wanted)].sum())
    return values
