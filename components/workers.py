"""Where the stages meet Ray: the connection, live progress, weights on a node, and models trained alone as tasks."""

import hashlib
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file

from components.run import Folder, Run, running_cluster
from nascore.methods import Scorer

LINE_EVERY = 30.0
TELL_EVERY = 0.5
UNITS = {"CPU": ("CPUs", 1), "GPU": ("GPUs", 1), "memory": ("GiB", 1 << 30)}
RESTARTS = 16
"""How often a piece of work may lose its worker or node. Ray does not count actors whose node it drained in time."""


def connect() -> None:
    """Join the cluster that `components.run.environment` found, or start a local one that takes every core."""
    if ray.is_initialized():
        return
    if running_cluster():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=256 << 20,
        )


def fits(run: Run, workers: int) -> None:
    """Raise if so many workers can never run on a local cluster; say so where one may still grow."""
    for unit, each in needs(run).items():
        there, (title, size) = ray.cluster_resources().get(unit, 0), UNITS[unit]
        if workers * each > there:
            lacking = f"{workers} workers of {each / size:g} {title} each need more than the cluster's {there / size:g}"
            if not running_cluster():
                raise ValueError(f"{lacking}; lower --workers.train, --workers.evaluators, .cpus, .gpus or .memory")
            print(f"  {lacking}; waiting for more", flush=True)


def needs(run: Run, spared: float = 0.0) -> dict[str, float]:
    """What one worker asks of a node, as Ray counts it; `spared` is what it leaves of its CPUs."""
    memory = int(run.workers.memory * UNITS["memory"][1])
    wanted = {"CPU": run.workers.cpus - spared, "GPU": run.workers.gpus, "memory": memory}
    return {unit: each for unit, each in wanted.items() if each}


def granted(run: Run, spared: float = 0.0) -> dict[str, float]:
    """The same as options of a task or an actor of Ray."""
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    return {names[unit]: each for unit, each in needs(run, spared).items()}


def settle(run: Run) -> str:
    """Bound this worker process's threads and give its device: "cuda" where the run grants GPUs, else "cpu"."""
    torch.set_num_threads(run.workers.cpus)
    torch.set_flush_denormal(True)
    return "cuda" if run.workers.gpus else "cpu"


@dataclass(frozen=True)
class News:
    """How far one piece of work is: `done` of `total` units, the best value so far; lasting news stay when done."""

    done: int
    total: int
    unit: str
    best: float | None = None
    label: str = "best"
    lasting: bool = True


@ray.remote(num_cpus=0)
class _Board:
    """Holds the last news of each piece of work."""

    def __init__(self) -> None:
        self.news: dict[str, News] = {}
        self.failed: Exception | None = None

    def tell(self, key: str, news: News) -> None:
        self.news[key] = news

    def read(self) -> dict[str, News]:
        return self.news

    def fail(self, why: Exception) -> None:
        self.failed = self.failed or why

    def failure(self) -> Exception | None:
        return self.failed


def beside() -> dict[str, Any]:
    """Options of an actor that is to live as long as this driver does: on the same node."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)}


class Teller:
    """What a worker tells its progress to; at most two messages a second, but always the last one."""

    def __init__(self, board: Any, key: str) -> None:
        self.board, self.key, self.told = board, key, 0.0

    def __call__(self, news: News) -> None:
        if news.done >= news.total or time.monotonic() - self.told >= TELL_EVERY:
            self.told = time.monotonic()
            self.board.tell.remote(self.key, news)


@contextmanager
def watching(stage: str) -> Iterator[Any]:
    """A board to tell progress to, shown live on a terminal and as a plain line every 30 s elsewhere."""
    connect()
    board, over = _Board.options(**beside()).remote(), threading.Event()  # type: ignore[attr-defined]
    show = _live if sys.stdout.isatty() else _lines
    thread = threading.Thread(target=show, args=(stage, board, over), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        over.set()
        thread.join()
        ray.kill(board)


def _live(stage: str, board: Any, over: threading.Event) -> None:
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(24),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[best]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console()) as progress:
        bars: dict[str, TaskID] = {}
        while True:
            last = over.wait(TELL_EVERY)
            for key, news in ray.get(board.read.remote()).items():
                if key not in bars:
                    bars[key] = progress.add_task(f"{stage} {key}", unit=news.unit, rate="", best="")
                bar = progress.tasks[progress.task_ids.index(bars[key])]
                rate = f"{bar.speed:,.1f}/s" if bar.speed else ""
                progress.update(bar.id, completed=news.done, total=news.total, rate=rate, best=_best(news))
                progress.update(bar.id, visible=news.lasting or news.done < news.total)
            if last:
                return


def _lines(stage: str, board: Any, over: threading.Event) -> None:
    started = time.monotonic()
    begun: dict[str, tuple[float, int]] = {}
    while not over.wait(LINE_EVERY):
        for key, news in ray.get(board.read.remote()).items():
            if news.done == news.total and not news.lasting:
                continue
            since, first = begun.setdefault(key, (started, 0))
            rate = (news.done - first) / (time.monotonic() - since)
            left = f"{(news.total - news.done) / rate:,.0f} s left" if rate and news.done < news.total else ""
            line = (f"{stage} {key}", f"{news.done:,}/{news.total:,} {news.unit}", f"{rate:,.1f}/s", _best(news), left)
            print("  " + "  ".join(filter(None, line)), flush=True)
            begun[key] = time.monotonic(), news.done


def _best(news: News) -> str:
    return "" if news.best is None else f"{news.label} {news.best:.4f}"


def staged(folder: Folder, name: str) -> str:
    """A path on this node's disk to a finished file of a run, fetched once a node; to be memory-mapped by many."""
    if "file" in folder.fs.protocol:
        return f"{folder.path}/{name}"
    known = hashlib.sha256(f"{folder.url}/{name}/{folder.fs.info(f'{folder.path}/{name}')}".encode()).hexdigest()
    local = Path(tempfile.gettempdir()) / "nascore-staged" / known
    if not local.exists():
        local.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=local.parent) as scratch:
            folder.fs.get_file(f"{folder.path}/{name}", f"{scratch}/file")
            os.replace(f"{scratch}/file", local)
    return str(local)


def open_scorer(run: Run, cache_bytes: int) -> Scorer:
    """The scorer of the run's supernet, whose weights are the node's memory-mapped file: shared, never written to."""
    device = settle(run)
    method, schema = run.method, run.schema
    weights = load_file(staged(run.checkpoint(), "weights.safetensors"), device)
    with torch.device("meta"):
        supernet, task = method.supernet(schema, method.space(schema), 0), method.task(schema)
    for part, module in (("supernet.", supernet), ("task.", task)):
        own = {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
        module.load_state_dict(own, assign=True)
        module.eval().requires_grad_(False)
    fitness = method.fitness
    train = run.rows("train", device=device, first=max(1, fitness.calibration), shown=method.shown)
    valid = run.rows("valid", device=device, first=0 if fitness.ranks else fitness.rows, shown=method.shown)
    return method.scorer(supernet.net, task, train, valid, cache_bytes)
