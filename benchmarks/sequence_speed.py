"""`python -m benchmarks.sequence_speed [--part step]`: DNS-Rec's costs against benchmarks/sequence_reference.py.

On a made-up log of MovieLens-1M's shape, in one process and one thread. As in benchmarks/speed.py both sides take
turns, and what is told are CPU seconds, medians over the turns. The limit is the multiply-adds at the machine's
measured rate for matrix products of the shapes that occur, three times those of the forward pass with gradients, or
bytes at its copy rate.

step: of the supernet, every tenth followed by a lesson; then an event where a step learns all those of a past.
score: the twelve members of the space. rank: of items by given vectors. rows: batches of prefixes. layer: softmax
(as the reference) against linear attention. What the reference does on fewer rows is drawn out.
"""

import argparse
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import sequence_reference as reference
from benchmarks.sequence_reference import Copies, Reference
from benchmarks.speed import ROWS, Line, Machine, Turns, cpu, write_log
from components import prepare
from components.run import Run, environment
from nascore.dnsrec_net import DNSRecNet
from nascore.methods.dnsrec import DNSRec
from nascore.ops import build
from nascore.rows import Data
from nascore.sequence_net import Training
from nascore.tasks.next_item import NextItem, aligned
from nascore.training import Fit

PARTS = ("step", "score", "rank", "rows", "layer")
LENGTHS = (50, 100, 200, 400)
POSITIONS = 12_800
PASTS = 8
PREFIXES = 200_000
SCORED = 512
ROW_BATCH = 256
LAYERS = 5


@dataclass(frozen=True)
class Size:
    """Hidden and inner width, events of a past, rows of a batch."""

    hidden: int
    inner: int
    length: int
    batch: int

    def method(self, **changes: object) -> DNSRec:
        """Ours at this size."""
        training = Training(length=self.length, rankings=("full",))
        return replace(DNSRec(hidden=self.hidden, inner=self.inner, batch=self.batch, training=training), **changes)  # type: ignore[arg-type]

    def every(self) -> DNSRec:
        """Ours that learns all events of a past, of an eighth as many pasts."""
        method, pasts = self.method(), max(1, self.batch // PASTS)
        training = replace(method.training, targets="all")
        return replace(method, mask="causal", batch=pasts * self.length, training=training)

    def __str__(self) -> str:
        return f"d={self.hidden} D={self.inner} N={self.length}"


SIZES = {"small": Size(64, 128, 50, 256), "paper": Size(128, 256, 200, 16)}


def layers_of(net: DNSRecNet, every: bool = False) -> int:
    """Multiply-adds of all widths and depths for a past; every: at all positions of the last layer too."""
    ends = 0 if every else net.depths[-1]
    return sum(net.block(number, name).macs(last=number == ends) for number in net.depths for name in net.options)


class SequenceMachine(Machine):
    """Multiply-adds a second at the shapes of a net's linear maps over a batch, and of its logits."""

    def __init__(self, net: DNSRecNet, rows: int) -> None:
        super().__init__()
        shapes = [(rows, net.schema.items, net.width)]
        for number in net.depths:
            places = rows * (net.length if number < net.depths[-1] else 1)
            for name in net.options:
                maps = [one for one in net.block(number, name).modules() if isinstance(one, nn.Linear)]
                shapes += [(places, *one.weight.shape) for one in maps]
        spent = {}
        for count, outputs, inputs in set(shapes):
            x, w = torch.rand(count, inputs), torch.rand(outputs, inputs)
            spent[count, outputs, inputs] = min(cpu(lambda x=x, w=w: [x @ w.T for _ in range(5)]) / 5 for _ in range(3))
        self.each = [count * outputs * inputs / s for (count, outputs, inputs), s in spent.items()]
        work = sum(count * outputs * inputs for count, outputs, inputs in shapes)
        self.macs = work / sum(spent[shape] for shape in shapes)

    def __str__(self) -> str:
        return super().__str__().replace("MLP blocks", "the linear maps")


class Bench:
    """The prepared log, and a size with ours, untrained, and what the machine can do at it."""

    def __init__(self, run: Run, size: Size, times: int) -> None:
        self.run, self.schema, self.size, self.times = run, run.schema, size, times
        self.method = size.method()
        self.space, self.task = self.method.space(self.schema), self.method.task(self.schema)
        self.net = self.of(self.method)
        self.machine = SequenceMachine(self.net, size.batch)
        self.train, self.valid, self.test = (
            run.rows(split, shown=self.method.shown) for split in ("train", "valid", "test")
        )
        for data in (self.train, self.valid, self.test):
            assert len(data.packed) and len(data.history.item)

    def of(self, method: DNSRec) -> DNSRecNet:
        net = method.supernet(self.schema, method.space(self.schema), 0).net
        assert isinstance(net, DNSRecNet)
        return net

    def fit(self, method: DNSRec) -> Fit:
        supernet = method.supernet(self.schema, method.space(self.schema), 0)
        train, held = (self.run.rows(split, shown=method.shown) for split in ("train", "valid"))
        penalty, task = method.penalty(supernet.net, {}), method.task(self.schema)
        fit = Fit(supernet, task, train, method.train, 0, method.learning, held, penalty)
        fit.advance(method.learner.every)
        return fit

    def step(self, steps: int) -> Iterator[Line]:
        size, method, every = self.size, self.method, self.method.learner.every
        fit, net = self.fit(method), Reference(method, self.schema.items)
        plain = reference.Training(net, method)
        rows, held = (Copies(one, size.length).batches(size.batch) for one in (some(self.train, PREFIXES), self.valid))

        def walk(turn: int) -> None:
            for _ in range(steps):
                plain.step(*next(rows))
                if plain.steps % every == 0:
                    plain.learn(*next(held))

        plain.step(*next(rows))
        plain.steps = 0
        used = Turns(lambda turn: fit.advance(steps), walk, self.times)
        lessons = 1 + 1 / every
        logits = size.hidden * self.schema.items
        work = size.batch * (layers_of(self.net) + logits)
        widest = self.net.layer_cost(self.net.options[0]).macs
        whole = size.batch * (len(self.net.options) * method.layers * float(widest) + logits)
        note = f"batch {size.batch}, {len(self.net.options)} widths, {method.layers} layers; forward "
        note += f"{1e-9 * work:.2f} G multiply-adds, the reference {1e-9 * whole:.2f}"
        limit = 3 * lessons * work / self.machine.macs
        yield Line(f"supernet step, {size}", used.ours / steps, used.other / steps, "", limit, note)
        plain_event = used.other / steps / size.batch
        fit = self.fit(size.every())
        pasts = fit.plan.batch
        learned = pasts * float(fit.data.packed[:, 2].clamp(1, size.length).double().mean())
        own = Turns(lambda turn: fit.advance(steps), lambda turn: None, self.times)
        net_all, last = self.of(size.every()), pasts / every * (layers_of(self.net) + logits)
        limit = 3 * (pasts * layers_of(net_all, True) + learned * logits + last) / self.machine.macs
        each = own.ours / steps / learned
        note = (
            f"{pasts} pasts, {learned:,.0f} events a step; ours by last ones {1e3 * used.ours / steps / size.batch:.3g}"
        )
        yield Line(
            f"1,000 events, all of a past, {size}", 1e3 * each, 1e3 * plain_event, "", 1e3 * limit / learned, note
        )

    def score(self) -> Iterator[Line]:
        members, net = [*self.space.members()], Reference(self.method, self.schema.items)
        net.take(self.net)
        scorer, rows = self.method.scorer(self.net, self.task, self.train, self.valid), self.valid.rows
        copies = Copies(some(self.valid, SCORED), self.size.length)

        def plain(turn: int) -> None:
            for one in members:
                reference.score(net, copies, one["width"][0], one["depth"][0])

        used = Turns(lambda turn: scorer(members), plain, self.times)
        logits = sum(self.net.sizes[one["width"][0]][0] for one in members) * self.schema.items
        limit = rows * (layers_of(self.net) + logits) / self.machine.macs
        note = f"{len(members)} members, {rows:,} rows; the reference on {SCORED:,} of them"
        yield Line(f"the space scored, {self.size}", used.ours, used.other * rows / SCORED, "", limit, note)

    def rank(self) -> Iterator[Line]:
        test, width = self.test, self.size.hidden
        user_UD, item_ID = torch.randn(test.rows, width), torch.randn(self.schema.items, width)
        target_R = test.keys(torch.arange(test.rows))[1].long()
        task, found = NextItem(rankings=("full",), ks=(10,)), list[float]()

        def encode(row_B: Tensor) -> tuple[Tensor, Tensor]:
            return user_UD[row_B], item_ID

        def ours(turn: int) -> None:
            found.append(float(task.rank(encode, test).values["ndcg@10"].mean()))

        def plain(turn: int) -> None:
            found.append(reference.ndcg(reference.rank(encode, target_R), 10))

        ours(-1)
        used = Turns(ours, plain, self.times)
        apart = max(found) - min(found)
        limit = test.rows * self.schema.items * width / self.machine.macs
        note = f"{test.rows:,} users x {self.schema.items - 1:,} items; ndcg@10 apart by {apart:.0e}"
        yield Line(f"full ranking, d={width}", used.ours, used.other, "", limit, note)

    def rows(self) -> Iterator[Line]:
        length, size = self.size.length, max(ROW_BATCH, self.size.batch)
        data, made = some(self.train, PREFIXES), list[Copies]()
        once = cpu(lambda: made.append(Copies(data, length))) / data.rows
        (copies,), steps = made, data.rows // size
        batches = copies.batches(size)

        def ours(turn: int) -> None:
            for batch in islice(data.batches(size, turn), steps):
                aligned(batch["history"])

        used = Turns(ours, lambda turn: [None for _ in islice(batches, steps)], self.times)
        held = sum(one.nbytes for one in (self.train.packed, self.train.history.item, self.train.history.at))
        note = (
            f"a row takes {held / self.train.rows:.0f} bytes, a copy {copies.bytes} and once before {1e6 * once:.2g} s"
        )
        limit = 2e6 * 4 * length / self.machine.bytes
        what, million = f"a million prefixes in batches of {size}, N={length}", 1e6 / (steps * size)
        yield Line(what, used.ours * million, used.other * million, "", limit, note)

    def layer(self) -> Iterator[Line]:
        size = self.size
        for length in LENGTHS:
            rows, settings = POSITIONS // length, f"inner={size.inner},heads={self.method.heads},dropout=0"
            x_BTD, mask_BT = torch.randn(rows, length, size.hidden), torch.ones(rows, length, dtype=torch.bool)
            x_BTD.requires_grad_()
            own, other = (
                build(f"transformer_layer:{settings},attention={kind}", T=length, D=size.hidden)
                for kind in ("linear", "softmax")
            )

            def walk(layer: nn.Module, x: Tensor = x_BTD, mask: Tensor = mask_BT) -> Callable[[int], object]:
                return lambda turn: [layer(x, mask).sum().backward() for _ in range(LAYERS)]

            for one in (own, other):
                walk(one)(0)
            used = Turns(walk(own), walk(other), self.times)
            work = rows * own.macs()
            note = f"{rows} pasts; forward {1e-9 * work:.2f} G multiply-adds, softmax {1e-9 * rows * other.macs():.2f}"
            limit = 3 * work / self.machine.macs
            yield Line(
                f"a layer, N={length}, d={size.hidden}", used.ours / LAYERS, used.other / LAYERS, "", limit, note
            )


def some(data: Data, rows: int) -> Data:
    """The first rows of a split; what is in memory is shared."""
    view = copy(data)
    view.rows = min(rows, data.rows)
    return view


def log(root: str, rows: int) -> Run:
    """A prepared run over a log of so many rows."""
    raw = Path(root) / f"raw-{rows}"
    if not (raw / "schema.yaml").exists():
        write_log(raw, rows)
    run = Run(root=f"{root}/run-{rows}", dataset="parquet", raw=str(raw), methods=(DNSRec(),), protocol="leave_one_out")
    run.save()
    if not (run.folder / "prepare").done:
        prepare.main(run)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequence_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["small"], help="paper: that of MovieLens 1M")
    parser.add_argument("--root", default="runs/sequence_speed", help="folder of the log and what is prepared of it")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the log: about a multiple of MovieLens-1M's")
    parser.add_argument("--times", type=int, default=3, help="turns of ours and the reference")
    parser.add_argument("--steps", type=int, default=10, help="steps of the supernet a turn")
    asked = parser.parse_args()
    environment()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    run = log(asked.root, asked.rows)
    print("| CPU seconds | ours | reference | ratio | aim | limit | |\n|---|---|---|---|---|---|---|")
    machines = []
    for name in asked.size:
        bench = Bench(run, SIZES[name], asked.times)
        machines.append(f"{bench.size}: {bench.machine}")
        parts: dict[str, Callable[[], Iterator[Line]]] = {
            "step": lambda bench=bench: bench.step(asked.steps),  # type: ignore[misc]
            "score": bench.score,
            "rank": bench.rank,
            "rows": bench.rows,
            "layer": bench.layer,
        }
        for part, lines in parts.items():
            if part in asked.part:
                for line in lines():
                    print(line, flush=True)
    print("\n" + "\n".join(machines))


if __name__ == "__main__":
    main()
