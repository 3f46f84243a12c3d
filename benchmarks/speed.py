"""`python -m benchmarks.speed [--part step]`: what ours costs against benchmarks/reference.py, as a markdown table.

On a made-up log of MovieLens-1M's shape, in one process and one thread. Ours and the reference take turns, and what is
told are CPU seconds, medians over the turns: on a machine that others use too, ratios count and absolute times do not.
The limit is what the arithmetic alone would take at the machine's measured matmul rate, or the bytes at its copy rate.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import reference
from benchmarks.reference import Reference
from components import prepare
from components.run import Run, environment
from nascore.methods import from_json
from nascore.methods.autotower import HIDDEN, AutoTower
from nascore.prefix_scoring import PrefixScorer
from nascore.rows import Data, seed_of
from nascore.space import Genotype, Mix
from nascore.strategies import Trial
from nascore.strategies.evolution import Evolution
from nascore.tasks.retrieval import Retrieval
from nascore.training import Fit

USERS, ITEMS, ROWS, FEWEST = 6_040, 3_706, 1_000_209, 20
BATCH = 1_024
CALIBRATION_BATCHES, VALID_BATCHES, TENTH = 200, 40, 10
SEARCHED = 2_550
WARM_STEPS = 60
WINDOW = 1 << 16
PARTS = ("step", "score", "search", "rank", "prepare", "rows")
DESCRIBED = """\
rows: log.parquet
user: user
item: item
timestamp: at
history: {features: [item, decade, genres], length: 20}
features:
  - {name: user, side: user}
  - {name: age, side: user}
  - {name: gender, side: user}
  - {name: occupation, side: user}
  - {name: item, side: item}
  - {name: decade, side: item}
  - {name: genres, side: item, kind: set}
tables: {user: users.parquet, item: items.parquet}
"""


def write_log(folder: Path, rows: int) -> None:
    """A log of MovieLens-1M's shape; `rows` other than that many repeat its shape with more users."""
    rng, copies = np.random.default_rng(0), max(1, round(rows / ROWS))
    folder.mkdir(parents=True, exist_ok=True)
    weight = rng.lognormal(0, 1.1, USERS).clip(max=8)
    activity = FEWEST + rng.multinomial(ROWS - FEWEST * USERS, weight / weight.sum())
    popularity = -np.log(np.arange(ITEMS) + 50)
    items = []
    for count in activity:
        noisy = popularity + rng.gumbel(size=ITEMS)
        items.append(np.argsort(-noisy)[:count])
    item, user = np.concatenate(items), np.repeat(np.arange(USERS), activity)
    at = 956_700_000 + rng.integers(0, 90_000_000, USERS)[user] + 60 * np.arange(ROWS)
    order = rng.permutation(ROWS)
    log = {"user": user[order], "item": item[order], "at": at[order]}
    with pq.ParquetWriter(folder / "log.parquet", pa.table(log).schema) as writer:
        for copy in range(copies):
            writer.write_table(pa.table({**log, "user": log["user"] + copy * USERS}))
    known = {"user": np.arange(USERS * copies)}
    for name, values in (("age", 7), ("gender", 2), ("occupation", 21)):
        known[name] = rng.integers(values, size=USERS * copies)
    pq.write_table(pa.table(known), folder / "users.parquet")
    genres = [rng.choice(18, rng.integers(1, 7), replace=False).tolist() for _ in range(ITEMS)]
    about = {"item": np.arange(ITEMS), "decade": rng.integers(10, size=ITEMS), "genres": genres}
    pq.write_table(pa.table(about), folder / "items.parquet")
    (folder / "schema.yaml").write_text(DESCRIBED)


@dataclass(frozen=True)
class Line:
    """One row of the table, in CPU seconds; limit: the same work at the machine's rates."""

    what: str
    ours: float
    reference: float | None
    aim: str
    limit: float | None = None
    note: str = ""

    def __str__(self) -> str:
        ratio = f"{self.reference / self.ours:.2f}" if self.reference else ""
        limit = f"{self.limit:.3g} ({self.ours / self.limit:.1f} times)" if self.limit else ""
        plain = "" if self.reference is None else f"{self.reference:.3g}"
        return f"| {' | '.join((self.what, f'{self.ours:.3g}', plain, ratio, self.aim, limit, self.note))} |"


def spent() -> tuple[float, float]:
    """CPU seconds of this process and of those that it started and that have ended; seconds on the clock."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime, time.monotonic()


def cpu(work: Callable[[], object]) -> float:
    start, _ = spent()
    work()
    return spent()[0] - start


class Turns:
    """Medians of both sides' CPU seconds and seconds on the clock, taking turns; each is told its turn's number."""

    def __init__(self, ours: Callable[[int], object], other: Callable[[int], object], times: int) -> None:
        marks = [spent()]
        for turn in range(times):
            for work in (ours, other):
                work(turn)
                marks.append(spent())
        used = np.diff(np.array(marks), axis=0)
        (self.ours, self.ours_wall), (self.other, self.other_wall) = (np.median(used[k::2], 0).tolist() for k in (0, 1))


class Machine:
    """What the machine can do: multiply-adds a second at the shapes of the blocks, bytes copied a second."""

    def __init__(self) -> None:
        shapes = [(BATCH, 64 * n, h) for n in range(1, 6) for h in HIDDEN] + [(BATCH, h, 64) for h in HIDDEN]
        pairs = [(torch.rand(b, d), torch.rand(d, o)) for b, d, o in shapes]
        seconds = [min(cpu(lambda x=x, w=w: [x @ w for _ in range(20)]) / 20 for _ in range(3)) for x, w in pairs]
        self.each = [b * d * o / s for (b, d, o), s in zip(shapes, seconds, strict=True)]
        self.macs = sum(b * d * o for b, d, o in shapes) / sum(seconds)
        source = torch.rand(1 << 24)
        target = torch.empty_like(source)
        self.bytes = 2 * source.nbytes / min(cpu(lambda: target.copy_(source)) for _ in range(5))

    def __str__(self) -> str:
        low, high = (2e-9 * rate for rate in (min(self.each), max(self.each)))
        told = f"{2e-9 * self.macs:.0f} GFLOP/s over all shapes of MLP blocks (from {low:.0f} to {high:.0f} by shape)"
        return f"Matmul: {told}; copy: {1e-9 * self.bytes:.1f} GB/s, read and written bytes together."


class Bench:
    """The prepared log, our supernet of the preset `authors` after a few steps, the reference with its weights."""

    def __init__(self, run: Run) -> None:
        self.run, self.schema, self.machine = run, run.schema, Machine()
        self.train, self.valid, self.test = (run.rows(split) for split in ("train", "valid", "test"))
        self.paper = AutoTower()
        method = from_json({"name": "autotower", **AutoTower.presets["authors"]})
        assert isinstance(method, AutoTower)
        self.method, self.space = method, method.space(self.schema)
        fit = self.fit_of(self.method, self.train)
        assert isinstance(fit.task, Retrieval)
        self.net, self.task, self.sampler = fit.supernet.net.eval(), fit.task, fit.supernet.sampler
        self.reference = Reference(self.schema, self.space)
        self.reference.take(self.net)
        self.candidate = 0.0

    def fit_of(self, method: AutoTower, data: Data) -> Fit:
        supernet = method.supernet(self.schema, method.space(self.schema), 0)
        fit = Fit(supernet, method.task(self.schema), data, method.train, 0)
        fit.advance(WARM_STEPS)
        return fit

    def genotypes(self, count: int, seed: object) -> list[Genotype]:
        rng = Random(f"speed/{seed}")
        return [self.space.sample(rng) for _ in range(count)]

    def path(self, step: int) -> Genotype:
        """What our sampler draws at a step."""
        mix: Mix = self.sampler(None, step)
        options = {name: decision.options for name, decision in self.space.decisions.items()}
        return {name: (options[name][list(weights).index(1.0)],) for name, weights in mix.items()}

    def macs(self, genotypes: list[Genotype], side: str = "", blocks: bool = False) -> float:
        """Mean multiply-adds of a row: of both sides or one, whole or only the blocks."""
        costs = [self.net.costs(self.space.mix(genotype)) for genotype in genotypes]
        parts = [(name, cost.macs) for each in costs for name, cost in each.items() if name.startswith(side)]
        return sum(float(macs) for name, macs in parts if name[-1].isdigit() or not blocks) / len(genotypes)

    def step(self, paths: int, times: int) -> Iterator[Line]:
        """Training steps on the same paths: ours of both presets, the reference."""
        drawn = [self.path(step) for step in range(paths)]
        sparse, dense = (reference.Training(Reference(self.schema, self.space), BATCH, way) for way in (False, True))
        methods = self.method, self.paper, *(replace(one, lazy=False) for one in (self.method, self.paper))
        authors, paper, authors_dense, paper_dense = (self.fit_of(one, self.train) for one in methods)
        batches = self.train.batches(BATCH, 1)
        work = self.macs(drawn) * BATCH + BATCH * BATCH * 64

        def plain(training: reference.Training) -> Callable[[int], object]:
            def walk(turn: int) -> None:
                for path in drawn:
                    training.step(next(batches), path)

            return walk

        for fit in (authors, paper, authors_dense, paper_dense):
            from_the_start(fit, paths)(0)
        for training in (sparse, dense):
            plain(training)(0)
        limit = 3 * work / self.machine.macs
        note = f"{paths} paths, {work * 1e-6:.0f} M multiply-adds forward; three times as many with gradients"
        for name, fit, training in (
            ("step, preset authors", authors, dense),
            ("step, preset paper", paper, dense),
            ("step, preset authors; the reference's Adam on the path alone", authors, sparse),
            ("step, preset paper; the same", paper, sparse),
            ("step, preset authors, lazy=false; both Adams on all", authors_dense, dense),
            ("step, preset paper, lazy=false; the same", paper_dense, dense),
        ):
            found = Turns(from_the_start(fit, paths), plain(training), times)
            yield Line(f"supernet {name}", found.ours / paths, found.other / paths, "2, then 3", limit, note)
            note = ""

    def scorer(self) -> PrefixScorer:
        found = self.method.scorer(self.net, self.task, self.train, self.valid)
        assert isinstance(found, PrefixScorer)
        return found

    def plain_score(self, genotypes: list[Genotype]) -> None:
        """The reference's scorer with a tenth of its batches."""
        for genotype in genotypes:
            train = islice(self.train.batches(BATCH, seed_of("train")), CALIBRATION_BATCHES // TENTH)
            valid = islice(self.valid.batches(BATCH, seed_of("valid")), VALID_BATCHES // TENTH)
            reference.score(self.reference, genotype, train, valid)

    def score(self, each: int, times: int) -> Iterator[Line]:
        """Candidates that share little."""
        scorer = self.scorer()
        first = self.genotypes(1, "first")
        pools = self.space.decisions["user/pool"].options
        once = cpu(lambda: scorer([{**first[0], "user/pool": (pool,)} for pool in pools]))
        drawn = [self.genotypes(each, turn) for turn in range(times)]
        found = Turns(lambda turn: scorer(drawn[turn]), lambda turn: self.plain_score(drawn[turn]), times)
        rows = [(len(side.count_C), len(side.first)) for side in scorer.sides.values()]
        every = [genotype for some in drawn for genotype in some]
        work = sum(self.macs(every, side, True) * sum(some) for side, some in zip(scorer.sides, rows, strict=True))
        limit = (work + rows[0][1] * rows[1][1] * 64) / self.machine.macs
        fitness = self.method.fitness
        note = (
            f"ours calibrates on {fitness.calibration:,} rows ({rows[0][0]:,} distinct users, {rows[1][0]:,} items), "
            f"scores {fitness.rows:,} ({rows[0][1]:,} and {rows[1][1]:,}); the reference "
            f"{CALIBRATION_BATCHES * BATCH:,} and {VALID_BATCHES * BATCH:,}, measured on a tenth; the inputs under all "
            f"4 poolings, computed once, with 4 candidates: {once:.2g} s"
        )
        self.candidate = found.other * TENTH / each
        yield Line("one candidate, inputs known", found.ours / each, self.candidate, "20", limit, note)

    def search(self, candidates: int, times: int) -> Iterator[Line]:
        """Evolution on the real scorer; a search cut short is drawn out in proportion."""
        if not self.candidate:
            yield from self.score(4, times)
        strategy = Evolution(self.space, 0)
        seconds: list[float] = []
        start, done, scorer = spent()[0], 0, self.scorer()
        while done < candidates:
            asked = strategy.ask()
            strategy.tell([Trial(g, score) for g, score in zip(asked, scorer(asked), strict=True)])
            done += len(asked)
            seconds.append((spent()[0] - start) / done)
        hits, misses = scorer.cache.hits, scorer.cache.misses
        drawn_out = f", drawn out in proportion from {done:,}" if done < SEARCHED else ""
        note = (
            f"evolution, all inputs computed{drawn_out}; {seconds[0]:.2g} s a candidate in the first generation, "
            f"{seconds[-1]:.2g} over all; {misses:,} blocks and towers computed, {hits:,} found in the cache; the "
            f"reference: {SEARCHED:,} times its candidate"
        )
        yield Line(f"search of {SEARCHED:,}", seconds[-1] * SEARCHED, self.candidate * SEARCHED, "30", None, note)

    def rank(self, times: int) -> Iterator[Line]:
        """Full ranking of the test users."""
        genotypes, net, task = self.genotypes(times, "rank"), self.net, self.task
        self.reference.take(net)
        found, golden = [], []

        def ours(turn: int) -> None:
            with torch.inference_mode():
                scores = task.evaluate(net.under(self.space.mix(genotypes[turn])), self.test)
            found.append(scores.values["recall@50"].mean())

        def plain(turn: int) -> None:
            golden.append(reference.rank(self.reference, genotypes[turn], self.test, task.ks)["recall@50"])

        used = Turns(ours, plain, times)
        users = len(self.test.ranked_users()[0])
        towers = self.macs(genotypes, "user") * users + self.macs(genotypes, "item") * self.schema.items
        work = towers + users * self.schema.items * 64
        apart = max(abs(a - b) for a, b in zip(found, golden, strict=True))
        wall = f"{used.other_wall:.3g} s / {used.ours_wall:.3g} s = {used.other_wall / used.ours_wall:.1f}"
        note = f"{users:,} x {self.schema.items - 1:,}; wall {wall}; recall@50 {found[-1]:.4f}, apart by {apart:.0e}"
        yield Line("full ranking", used.ours, used.other, "15", work / self.machine.macs, note)

    def rows(self, times: int) -> Iterator[Line]:
        """Training batches streamed (`ours`) against resident (`reference`): by themselves, then with steps."""
        resident = self.run.rows("train")
        streamed = Data(f"{self.run.folder.url}/prepare", "train", mode="streaming", window=WINDOW)
        steps = WINDOW // BATCH
        walks = [data.batches(BATCH, 1) for data in (streamed, resident)]

        def draw(which: int) -> Callable[[int], object]:
            return lambda turn: [None for _ in islice(walks[which], 4 * steps)]

        draw(1)(0)
        used, count = Turns(draw(0), draw(1), times), 4 * steps
        batch = resident.batch(torch.arange(BATCH))
        limit = 2 * sum(column.nbytes for column in batch.columns.values()) / self.machine.bytes
        rate = f"{count * BATCH / used.ours:,.0f} rows/s streamed, {count * BATCH / used.other:,.0f} resident"
        yield Line("a batch, streamed against resident", used.ours / count, used.other / count, "", limit, rate)
        fits = [self.fit_of(self.method, data) for data in (streamed, resident)]
        used = Turns(from_the_start(fits[0], steps), from_the_start(fits[1], steps), times)
        rate = f"{steps * BATCH / used.ours:,.0f} rows/s streamed, {steps * BATCH / used.other:,.0f} resident"
        yield Line("a step, streamed against resident", used.ours / steps, used.other / steps, "0.9", None, rate)


def from_the_start(fit: Fit, steps: int) -> Callable[[int], object]:
    """So many steps, on the same paths each time."""

    def walk(turn: int) -> None:
        fit.step = 0
        fit.advance(steps)

    return walk


PREPARE = """\
import sys
from components.__main__ import main
code = main(["prepare", sys.argv[1]])
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def prepared(run: Run) -> Line:
    """The stage `prepare` in a process of its own, with its imports.

    The process tells its memory itself: what is known of it from outside also counts what its parent held.
    """
    with tempfile.TemporaryDirectory() as scratch:
        own = replace(run, root=f"{scratch}/run")
        own.save()
        start = spent()
        told = subprocess.run([sys.executable, "-c", PREPARE, own.root], check=True, capture_output=True, text=True)
        used, wall = (after - before for before, after in zip(start, spent(), strict=True))
    note = f"{wall:.1f} s wall, at most {int(told.stdout.split()[-1]) / (1 << 20):.2f} GiB resident"
    return Line("prepare", used, None, "seconds, 0.5 GiB", None, note)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--root", default="runs/speed", help="folder of the log and what is prepared of it")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the log: about a multiple of MovieLens-1M's")
    parser.add_argument("--times", type=int, default=3, help="turns of ours and the reference")
    parser.add_argument("--paths", type=int, default=30, help="paths of the supernet's steps")
    parser.add_argument("--candidates", type=int, default=SEARCHED, help="candidates that our search scores")
    asked = parser.parse_args()
    environment()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    raw = Path(asked.root) / "raw"
    if not (raw / "schema.yaml").exists():
        write_log(raw, asked.rows)
    run = Run(root=f"{asked.root}/run", dataset="parquet", raw=str(raw), methods=(AutoTower(),))
    run.save()
    if not (run.folder / "prepare").done:
        prepare.main(run)
    print("| CPU seconds | ours | reference | ratio | aim | limit | |\n|---|---|---|---|---|---|---|")
    if "prepare" in asked.part:
        print(prepared(run), flush=True)
    bench = Bench(run)
    parts: dict[str, Callable[[], Iterator[Line]]] = {
        "step": lambda: bench.step(asked.paths, asked.times),
        "score": lambda: bench.score(4, asked.times),
        "search": lambda: bench.search(asked.candidates, asked.times),
        "rank": lambda: bench.rank(asked.times),
        "rows": lambda: bench.rows(asked.times),
    }
    for name, lines in parts.items():
        if name in asked.part:
            for line in lines():
                print(line, flush=True)
    print(f"\n{bench.machine}")


if __name__ == "__main__":
    main()
