"""DNS-Rec's supernet: in every layer a transformer for each width, after every layer an exit (§2.3-2.5, eq. 5-10)."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.cost import Cost
from nascore.ops import EVERY, Live, Spans, build
from nascore.ops.gated_layer import GatedLayer
from nascore.ops.transformer_layer import TransformerLayer, ended
from nascore.rows import Data
from nascore.schema import Batch, Schema
from nascore.sequence_net import Events, Inputs, SequenceNet, Training
from nascore.space import Genotype, Mix, Space, Weights
from nascore.tasks.next_item import NextItem

WIDTH, DEPTH = "width", "depth"
TIMED_PASTS, TIMES = 64, 7
BLOCK = 1024


class DNSRecNet(SequenceNet):
    """Over several widths or depths the supernet, over one of each a plain transformer of that size."""

    def __init__(
        self,
        schema: Schema,
        space: Space,
        training: Training,
        sizes: Mapping[str, tuple[int, int]],
        layer: str,
        heads: int,
        gates: int,
        gated_from: int,
        dropout: float,
    ) -> None:
        """sizes: hidden and inner width of every option there may be. layer: the settings of a layer, as in a spec."""
        self.options = space.decisions[WIDTH].options
        self.sizes = {name: sizes[name] for name in self.options}
        self.whole = max(hidden for hidden, _ in sizes.values())
        own = self.whole if len(self.options) > 1 else self.sizes[self.options[0]][0]
        super().__init__(schema, space, training, own)
        self.heads = heads
        self.depths = [int(depth) for depth in space.decisions[DEPTH].options]
        self.events = Events(dropout, I=schema.items, T=self.length, D=self.width)
        self.layers = nn.ModuleList()
        for number in range(1, self.depths[-1] + 1):
            gated = gates > 0 and number >= gated_from
            kind = ("gated" if gated else "transformer") + ("_end" if number == self.depths[-1] else "_layer")
            settings = f"gates={gates},{layer}" if gated else layer
            blocks = {
                name: build(f"{kind}:inner={inner},{settings}", T=self.length, D=hidden)
                for name, (hidden, inner) in self.sizes.items()
            }
            self.layers.append(nn.ModuleDict(blocks))

    def embed(self, batch: Batch) -> Inputs:
        x = super().embed(batch)
        return {**x, "events": self.events.looked_up(x["history"])}

    def forward(self, x: Inputs, mix: Mix) -> dict[str, Tensor]:
        weights = _opened(mix[DEPTH], self.depths)
        exits = self.exits(x, mix[WIDTH], list(weights))
        parts = [exits[depth] if weight == 1.0 else weight * exits[depth] for depth, weight in weights.items()]
        return {"user": torch.stack(parts).sum(0) if len(parts) > 1 else parts[0], "item": self.items(mix[WIDTH])}

    def exits(self, x: Inputs, widths: Weights, depths: Sequence[int]) -> dict[int, Tensor]:
        """What each of these depths gives, (B, D) or, where all positions are wanted, (B, T, D)."""
        weights = _opened(widths, self.options)
        mask_BT, found = x["mask"], dict[int, Tensor]()
        first_BTD = self.events.dropout(self._mixed(weights, self._started, x["events"]))
        state = first_BTD
        for number in range(1, max(depths) + 1):
            ends = self.ends and number == max(depths)

            def layer(name: str, x_BTD: Tensor, first: Tensor, number: int = number, ends: bool = ends) -> Tensor:
                block = self.block(number, name)
                if isinstance(block, GatedLayer):
                    return (block.at if ends else block.every)(x_BTD, first, mask_BT)
                return (block.at if ends else block.every)(x_BTD, mask_BT)

            state = self._mixed(weights, layer, state, first_BTD)
            if number in depths:
                found[number] = state
        if self.ends:
            last_B = ended(mask_BT)
            row_B = torch.arange(last_B.shape[0], device=last_B.device)
            found = {depth: out if out.dim() == 2 else out[row_B, last_B] for depth, out in found.items()}
        return found

    def _started(self, name: str, event_BTD: Tensor) -> Tensor:
        started: Tensor = self.events(event_BTD, self.frame(name))
        return started

    def _mixed(self, weights: Mapping[Any, Any], run: Callable[..., Tensor], *xs: Tensor) -> Tensor:
        """The sum of what the open widths make of their parts, at full width; of a single one at its own width."""
        alone = len(weights) == 1
        parts = []
        for name, weight in weights.items():
            part = run(name, *(self._kept(x, name) for x in xs))
            part = part if alone else self._widened(part)
            parts.append(part if isinstance(weight, float) and weight == 1.0 else weight * part)
        return parts[0] if alone else torch.stack(parts).sum(0)

    def _kept(self, x: Tensor, name: str) -> Tensor:
        """The dimensions of a width: the first of each head; `x` itself where it has no others."""
        own = self.sizes[name][0]
        if x.shape[-1] == own:
            return x
        apart: Tensor = x.unflatten(-1, (self.heads, -1))
        return apart[..., : own // self.heads].flatten(-2)

    def _widened(self, x: Tensor) -> Tensor:
        """At full width, 0 elsewhere."""
        missing = (self.width - x.shape[-1]) // self.heads
        if not missing:
            return x
        apart: Tensor = x.unflatten(-1, (self.heads, -1))
        return functional.pad(apart, (0, missing)).flatten(-2)

    def items(self, widths: Weights) -> Tensor:
        """What the output is scored against. Shape (items, D)."""
        weights = _opened(widths, self.options)
        return self.events.kept("items.weight", self.frame(next(iter(weights))) if len(weights) == 1 else EVERY)

    def block(self, number: int, name: str) -> TransformerLayer | GatedLayer:
        """A layer's transformer of a width."""
        blocks = self.layers[number - 1]
        assert isinstance(blocks, nn.ModuleDict)
        block = blocks[name]
        assert isinstance(block, TransformerLayer | GatedLayer)
        return block

    def frame(self, name: str) -> Live:
        """The dimensions of a width among those of this net."""
        return self._live(self.sizes[name][0], self.width)

    def _live(self, own: int, whole: int) -> Live:
        if own == whole:
            return EVERY
        head, kept = whole // self.heads, own // self.heads
        return {"D": Spans(tuple((first * head, first * head + kept) for first in range(self.heads)))}

    def live(self) -> Mapping[str, Live]:
        return {"events": self._live(self.width, self.whole)}

    # Costs

    def costs(self, mix: Mix) -> dict[str, Cost]:
        widths, depths = _opened(mix[WIDTH], self.options), _opened(mix[DEPTH], self.depths)
        events, layers = Cost(), Cost()
        for name, weight in widths.items():
            events += self.events.cost(self.frame(name)) * weight
            for depth, share in depths.items():
                for number in range(1, depth + 1):
                    layers += self.layer_cost(name, number, last=number == depth) * (weight * share)
        return {"item/events": events, "user/layers": layers}

    def layer_cost(self, name: str, number: int = 0, last: bool = False) -> Cost:
        """The cost of a layer of a width, by default the last one's, at all positions or at the last alone."""
        block = self.block(number or self.depths[-1], name)
        return Cost(params=sum(one.numel() for one in block.parameters()), macs=block.macs(last))

    def kind(self, name: str, number: int) -> str:
        """What the layers of a width are known by that cost the same: its name, but for a first layer without gates."""
        first, last = (isinstance(self.block(one, name), GatedLayer) for one in (number, self.depths[-1]))
        return name if first == last else f"{name} without gates"

    @torch.no_grad()
    def seconds(self) -> dict[str, float]:
        """The measured seconds of each kind of layer, for one past: the least of a few, taken in turns.

        Other work on the machine only ever adds to them.
        """
        was, device = self.training, self.events.positions.device
        self.eval()
        mask_BT = torch.ones(TIMED_PASTS, self.length, dtype=torch.bool, device=device)
        blocks = {self.kind(name, number): self.block(number, name) for number in self.depths for name in self.sizes}
        taken = dict.fromkeys(blocks, inf)
        for turn in range(TIMES):
            for kind, block in blocks.items():
                x_BTD = torch.randn(TIMED_PASTS, self.length, self.sizes[kind.split()[0]][0], device=device)
                started = perf_counter()
                out = (
                    block.every(x_BTD, x_BTD, mask_BT) if isinstance(block, GatedLayer) else block.every(x_BTD, mask_BT)
                )
                float(out[0, 0, 0])  # waits for the device
                if turn:
                    taken[kind] = min(taken[kind], (perf_counter() - started) / TIMED_PASTS)
        self.train(was)
        return taken


def _opened(weights: Weights, options: Sequence[Any]) -> dict[Any, Any]:
    """The options that run, with their weights: all of them where weights are a tensor."""
    each = weights.unbind() if isinstance(weights, Tensor) else weights
    return {one: w for one, w in zip(options, each, strict=True) if isinstance(w, Tensor) or w}


def scores(net: DNSRecNet, task: NextItem, valid: Data, kind: str, genotypes: Sequence[Genotype]) -> list[float]:
    """The metric of each genotype; each row is encoded once a width, for all depths."""
    found: dict[tuple[str, int], float] = {}
    wanted = {(width, int(depth)) for (width,), (depth,) in ((g[WIDTH], g[DEPTH]) for g in genotypes)}
    with torch.inference_mode():
        for name in sorted({width for width, _ in wanted}):
            depths = sorted(depth for width, depth in wanted if width == name)
            weights = tuple(float(option == name) for option in net.options)
            parts: dict[int, list[Tensor]] = {depth: [] for depth in depths}
            for row_B in torch.arange(valid.rows, device=valid.home).split(BLOCK):
                for depth, hidden_BD in net.exits(net.embed(valid.batch(row_B)), weights, depths).items():
                    parts[depth].append(hidden_BD)
            for depth in depths:
                encoded = _Encoded(torch.cat(parts.pop(depth)), net.items(weights))
                found[name, depth] = task.rank(encoded, valid).means().get(kind, float("nan"))
    return [found[g[WIDTH][0], int(g[DEPTH][0])] for g in genotypes]


class _Encoded:
    """What was encoded, by rows."""

    def __init__(self, hidden_ND: Tensor, item_ID: Tensor) -> None:
        self.hidden_ND, self.item_ID = hidden_ND, item_ID

    def __call__(self, row_B: Tensor) -> tuple[Tensor, Tensor]:
        return self.hidden_ND[row_B], self.item_ID
