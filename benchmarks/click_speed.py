"""`python -m benchmarks.click_speed [--part step]`: NASRec's costs against benchmarks/click_reference.py, as a table.

On a made-up log of Criteo's shape, in one process and one thread, at the paper's dimensions. As in benchmarks/speed.py
both sides take turns, and what is told are CPU seconds, medians over the turns. The limit is the multiply-adds at the
machine's measured rate for matrix products of the shapes that occur, three times those of the forward pass with
gradients, or bytes at its copy rate.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import click_reference as reference
from benchmarks.click_reference import Reference
from benchmarks.speed import Line, Machine, Turns, cpu
from components import prepare
from components.run import Run, environment
from nascore.methods import Scorer
from nascore.methods.nasrec import NASRec
from nascore.nasrec_net import NasRecNet
from nascore.rows import Data
from nascore.schema import Batch, Schema
from nascore.space import Genotype
from nascore.tasks.click import Click
from nascore.training import Fit, Plan

NUMBERS, CATEGORIES, VALUES = 13, 26, 10_000
ROWS, CHUNK = 1_000_000, 1 << 18
BATCH = 256
SCORED, OWN_SCORED = 8_192, 24_576
TUNED, OWN_TUNED = 4, 40
WARM_STEPS = 10
WINDOW = 1 << 16
TUNING_STEPS = 500
BIG = 20_000_000
PARTS = ("step", "score", "rows", "tables")
COUNTERS = tuple(f"I{place + 1}" for place in range(NUMBERS))
NAMES = tuple(f"C{place + 1}" for place in range(CATEGORIES))


def write_clicks(folder: Path, rows: int) -> None:
    """A log of Criteo's shape: counts with gaps, and texts of 8 digits, of which few values are frequent."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    texts = [pa.array([f"{value:08x}" for value in rng.integers(1 << 32, size=VALUES)]) for _ in NAMES]
    file = pa.schema(
        [
            ("label", pa.int8()),
            *((name, pa.int32()) for name in COUNTERS),
            *((name, pa.dictionary(pa.int32(), pa.string())) for name in NAMES),
        ]
    )
    with pq.ParquetWriter(folder / "log.parquet", file) as writer:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            columns = [pa.array((rng.random(count) < 0.25).astype(np.int8))]
            for _ in COUNTERS:
                value = np.expm1(rng.exponential(1.5, count)).clip(max=1e6).astype(np.int32)
                columns.append(pa.array(value, mask=rng.random(count) < 0.2))
            for text in texts:
                place = (VALUES ** rng.random(count, np.float32)).astype(np.int32) - 1
                columns.append(pa.DictionaryArray.from_arrays(pa.array(place.clip(0, VALUES - 1)), text))
            writer.write_table(pa.table(columns, schema=file))
    features = [f"  - {{name: {name}, kind: number}}" for name in COUNTERS] + [
        f"  - {{name: {name}}}" for name in NAMES
    ]
    (folder / "schema.yaml").write_text("\n".join(["rows: log.parquet", "label: label", "features:", *features, ""]))


class ClickMachine(Machine):
    """Multiply-adds a second at the shapes of matrix products on some paths."""

    def __init__(self, net: NasRecNet, paths: list[Genotype]) -> None:
        super().__init__()
        shapes = []
        for path in paths:
            for op, live in net.elastic(net.frame, net.opened(net.space.mix(path))).values():
                for name, letters in op.axes.items():
                    if len(letters) == 2:
                        rows = BATCH * (net.width if letters[-1] == "N" else 1)
                        shapes.append((rows, *op.shape(name, live)))
        pairs = [(torch.rand(rows, inputs), torch.rand(outputs, inputs)) for rows, outputs, inputs in shapes]
        seconds = [min(cpu(lambda x=x, w=w: [x @ w.T for _ in range(5)]) / 5 for _ in range(3)) for x, w in pairs]
        work = [rows * outputs * inputs for rows, outputs, inputs in shapes]
        self.each = [macs / s for macs, s in zip(work, seconds, strict=True)]
        self.macs = sum(work) / sum(seconds)

    def __str__(self) -> str:
        return super().__str__().replace("MLP blocks", "the paths")


class Bench:
    """The prepared log, our supernet, and the reference with its weights.

    paper: our defaults. same: the paper's sizes, and the operators of the public code, which the reference has.
    """

    def __init__(self, run: Run, paths: int) -> None:
        self.run, self.schema, self.train, self.valid = run, run.schema, run.rows("train"), run.rows("valid")
        self.paper = NASRec(warmup=0.0)
        self.same = replace(self.paper, square_gating=True, attention="transformer")
        self.fits = {method: self.fit_of(method, self.schema, self.train) for method in (self.paper, self.same)}
        self.space = self.paper.space(self.schema)
        sampler = self.paper.sampler(self.space, 0)
        self.drawn: list[Genotype] = []
        for step in range(paths):
            mix = sampler(None, step)
            options = {name: zip(one.options, mix[name], strict=True) for name, one in self.space.decisions.items()}
            self.drawn.append({name: tuple(o for o, w in pairs if w) for name, pairs in options.items()})
        net = self.net(self.paper)
        self.machine = ClickMachine(net, self.drawn[:10])
        self.reference = Reference(self.same, self.schema)
        self.reference.take(self.net(self.same))

    @staticmethod
    def fit_of(method: NASRec, schema: Schema, data: Data) -> Fit:
        fit = Fit(method.supernet(schema, method.space(schema), 0), method.task(schema), data, method.train, 0)
        fit.advance(WARM_STEPS)
        return fit

    def net(self, method: NASRec) -> NasRecNet:
        net = self.fits[method].supernet.net
        assert isinstance(net, NasRecNet)
        return net

    def macs(self, method: NASRec, paths: list[Genotype]) -> float:
        """Mean multiply-adds of a row."""
        net = self.net(method)
        return sum(float(net.cost(self.space.mix(path)).macs) for path in paths) / len(paths)

    def step(self, times: int) -> Iterator[Line]:
        """Training steps on the same paths."""
        plan, paths = self.paper.train, len(self.drawn)
        batches = self.train.batches(BATCH, 1)
        plain = reference.Training(self.reference)

        def walk_plain(turn: int) -> None:
            for path in self.drawn:
                plain.step(next(batches), path, plan.rate(0))

        for method, name in ((self.paper, "preset paper"), (self.same, "operators of the public code")):
            fit, macs = self.fits[method], self.macs(method, self.drawn)

            def walk(turn: int, fit: Fit = fit) -> None:
                fit.step = 0
                fit.advance(paths)

            used = Turns(walk, walk_plain, times)
            note = f"{paths} paths, {1e-6 * macs:.2f} M multiply-adds a row forward"
            limit = 3 * macs * BATCH / self.machine.macs
            yield Line(f"supernet step, {name}", used.ours / paths, used.other / paths, "4", limit, note)

    def score(self, candidates: int, times: int) -> Iterator[Line]:
        """A row scored, a step of tuning, and from both a whole candidate."""
        rng, method = Random("candidates"), self.paper
        drawn = [[self.space.sample(rng) for _ in range(candidates)] for _ in range(times)]
        macs = self.macs(method, [path for some in drawn for path in some]) / self.machine.macs
        plan = Plan(BATCH, TUNING_STEPS, 0, 0, 0.04, 0.0, 5.0, "cosine", "adagrad", 0.1)
        head = {part: value.clone() for part, value in self.reference.head.state_dict().items()}

        def plain_scored(turn: int) -> None:
            for path in drawn[turn]:
                reference.evaluate(self.reference, path, batches)

        def plain_tuned(turn: int) -> None:
            for path in drawn[turn]:
                reference.tune(self.reference, path, batches, plan)
                self.reference.head.load_state_dict(head)

        scorer = self.scorer(method, OWN_SCORED, 0)
        batches = self.batches(self.valid, SCORED, SCORED)
        used = Turns(lambda turn: scorer(drawn[turn]), plain_scored, times)
        rows = [used.ours / candidates / OWN_SCORED, used.other / candidates / SCORED]
        note = f"{candidates} candidates a call; ours scores {OWN_SCORED:,} rows of each, the reference {SCORED:,}"
        yield Line("1,000 rows scored", 1e3 * rows[0], 1e3 * rows[1], "5", 1e3 * macs, note)
        scorer = self.scorer(method, 1, OWN_TUNED * BATCH)
        batches = self.batches(self.train, TUNED * BATCH, BATCH)
        used = Turns(lambda turn: scorer(drawn[turn]), plain_tuned, times)
        steps = [used.ours / candidates / OWN_TUNED, used.other / candidates / TUNED]
        note = f"batch {BATCH}; ours tunes for {OWN_TUNED} steps, the reference for {TUNED}"
        yield Line("a step of tuning", steps[0], steps[1], "5", macs * BATCH, note)
        whole = method.fitness
        both = [step * TUNING_STEPS + row * whole.rows for step, row in zip(steps, rows, strict=True)]
        limit = macs * (whole.rows + TUNING_STEPS * BATCH)
        note = f"{TUNING_STEPS} such steps ({whole.calibration:,} rows) and {whole.rows:,} rows scored, drawn out"
        yield Line("a whole candidate", both[0], both[1], "5", limit, note)

    def scorer(self, method: NASRec, scored: int, tuned: int) -> Scorer:
        fitness = replace(method.fitness, rows=scored, calibration=tuned)
        return replace(method, fitness=fitness).scorer(self.net(method), Click(), self.train, self.valid)

    @staticmethod
    def batches(data: Data, rows: int, size: int) -> list[Batch]:
        return [data.batch(row_B) for row_B in torch.arange(rows).split(size)]

    def rows(self, times: int) -> Iterator[Line]:
        """Parquet to batches; then training streamed (`ours`) against resident (`reference`)."""
        url = f"{self.run.folder.url}/prepare"
        streamed = Data(url, "train", mode="streaming", window=WINDOW)
        once = cpu(lambda: self.run.rows("train").packed) / self.train.rows
        words = 4 * len(self.train.names)
        note = f"{words} bytes a row; a resident split is read once before, in {1e6 * once:.2g} s a million"
        for size in (BATCH, 4_096):
            walks = [data.batches(size, 1) for data in (streamed, self.train)]
            count = 4 * WINDOW // size

            def draw(which: int, walks: list[Iterator[Batch]] = walks, count: int = count) -> Callable[[int], object]:
                return lambda turn: [None for _ in islice(walks[which], count)]

            for which in (0, 1):
                draw(which)(0)
            used, million = Turns(draw(0), draw(1), times), 1e6 / (count * size)
            what = f"a million rows in batches of {size:,}, streamed against resident"
            limit = 2 * words * 1e6 / self.machine.bytes
            yield Line(what, used.ours * million, used.other * million, "1 second", limit, note)
            note = ""
        fits = [self.fit_of(self.paper, self.schema, data) for data in (streamed, self.train)]
        steps = WINDOW // BATCH

        def train(fit: Fit) -> Callable[[int], object]:
            def walk(turn: int) -> None:
                fit.step = 0
                fit.advance(steps)

            return walk

        used = Turns(train(fits[0]), train(fits[1]), 1)
        rate = f"{steps * BATCH / used.ours:,.0f} rows/s streamed, {steps * BATCH / used.other:,.0f} resident"
        yield Line("a step, streamed against resident", used.ours / steps, used.other / steps, "0.9", None, rate)

    def tables(self, times: int) -> Iterator[Line]:
        """Steps of ours with large tables (`ours`) against small ones (`reference`), ids drawn from all rows."""
        large = self.with_tables(BIG // CATEGORIES)
        small, steps = self.with_tables(VALUES), len(self.drawn)

        def train(fit: Fit) -> Callable[[int], object]:
            def walk(turn: int) -> None:
                fit.step = 0
                fit.advance(steps)

            return walk

        used = Turns(train(large), train(small), times)
        weight = large.supernet.net.get_parameter("tables.weight")
        dense = 7 * weight.nbytes / self.machine.bytes  # written, read by the norm, read with sum and row, both written
        note = (
            f"{len(weight) / 1e6:.0f} M rows of {weight.shape[1]} against {CATEGORIES * VALUES:,}, ids equally likely; "
            f"a dense gradient of the large ones would add {dense:.2f} s at the copy rate"
        )
        yield Line("a step, large tables against small", used.ours / steps, used.other / steps, "0.9", None, note)

    def with_tables(self, size: int) -> Fit:
        columns = [replace(one, size=size) if one.kind == "category" else one for one in self.schema.columns]
        return self.fit_of(replace(self.paper, cap=0), replace(self.schema, columns=tuple(columns)), Drawn(self, size))


class Drawn(Data):
    """Batches whose ids are drawn equally from tables of some size."""

    def __init__(self, bench: Bench, size: int) -> None:
        super().__init__(f"{bench.run.folder.url}/prepare", "train")
        self.size = size

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for batch in super().batches(size, seed, start):
            drawn = {name: torch.randint(self.size, (size,), generator=generator, dtype=torch.int32) for name in NAMES}
            yield replace(batch, columns={**batch.columns, **drawn})


def log(root: str, rows: int, method: NASRec) -> Run:
    """A run over a log of so many rows."""
    raw = Path(root) / f"raw-{rows}"
    if not (raw / "schema.yaml").exists():
        write_clicks(raw, rows)
    run = Run(root=f"{root}/run-{rows}", dataset="parquet", raw=str(raw), methods=(method,), protocol="stratified")
    run.save()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.click_speed", description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--root", default="runs/click_speed", help="folder of the log and what is prepared of it")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the log")
    parser.add_argument("--times", type=int, default=3, help="turns of ours and the reference")
    parser.add_argument("--paths", type=int, default=30, help="paths of the supernet's steps")
    parser.add_argument("--candidates", type=int, default=4, help="candidates that a turn scores")
    asked = parser.parse_args()
    environment()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    run = log(asked.root, asked.rows, NASRec())
    if not (run.folder / "prepare").done:
        prepare.main(run)
    bench = Bench(run, asked.paths)
    parts: dict[str, Callable[[], Iterator[Line]]] = {
        "step": lambda: bench.step(asked.times),
        "score": lambda: bench.score(asked.candidates, asked.times),
        "rows": lambda: bench.rows(asked.times),
        "tables": lambda: bench.tables(asked.times),
    }
    print("| CPU seconds | ours | reference | ratio | aim | limit | |\n|---|---|---|---|---|---|---|")
    for name, lines in parts.items():
        if name in asked.part:
            for line in lines():
                print(line, flush=True)
    print(f"\n{bench.machine}")


if __name__ == "__main__":
    main()
