"""How far the work is and what it costs: told by workers to a board, shown and recorded by the driver."""

import secrets
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError
from ray.util.metrics import Counter, Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from components.ledger import Meter, Spent
from components.run import BUDGETED, Run
from components.tracking import News, trackers
from components.workers import connect

LINE_EVERY = 30.0
TELL_EVERY = 0.5


class _Metrics:
    """What Ray's metrics agent shows of one stage: `nascore_done`, `_total`, `_value`, `_cpu_seconds`, `_gpu_seconds`.

    run and stage are tags, as is work: which piece of it.
    """

    def __init__(self, run: str, stage: str) -> None:
        tags = ("run", "stage", "work")
        self.gauges = {
            name: Gauge(f"nascore_{name}", text, tag_keys=tags)
            for name, text in (
                ("done", "Units of work that are done: steps, genotypes, epochs or models"),
                ("total", "Units of work in all"),
                ("value", "Loss of a supernet; else the best validation value so far"),
            )
        }
        self.counters = [
            Counter(f"nascore_{unit}_seconds", f"{unit.upper()} seconds spent", tag_keys=tags)
            for unit in ("cpu", "gpu")
        ]
        for one in (*self.gauges.values(), *self.counters):
            one.set_default_tags({"run": run, "stage": stage})

    def __call__(self, key: str, news: News | None, more: Spent) -> None:
        work = {"work": key}
        if news is not None:
            for name, value in (("done", news.done), ("total", news.total), ("value", news.best)):
                if value is not None:
                    self.gauges[name].set(value, tags=work)
        for counter, seconds in zip(self.counters, (more.cpu, more.gpu), strict=True):
            if seconds > 0:
                counter.inc(seconds, tags=work)


class Board:
    """An actor that holds each piece of work's last news, what each worker has spent, and whether all are to stop."""

    def __init__(self, run: str, stage: str) -> None:
        self.news: dict[str, News] = {}
        self.spent: dict[str, tuple[str, Spent]] = {}
        self.failed: Exception | None = None
        self.stopped = False
        self.metrics = _Metrics(run, stage)

    def tell(self, key: str, news: News | None, worker: str, spent: Spent) -> bool:
        before = self.spent.get(worker, (key, Spent()))[1]
        self.metrics(key, news, Spent(spent.cpu - before.cpu, spent.gpu - before.gpu))
        self.spent[worker] = key, spent
        if news is not None:
            self.news[key] = news
        return self.stopped

    def read(self) -> tuple[dict[str, News], dict[str, tuple[str, Spent]]]:
        return self.news, self.spent

    def stop(self) -> None:
        self.stopped = True

    def fail(self, why: Exception) -> None:
        self.failed = self.failed or why

    def failure(self) -> Exception | None:
        return self.failed


def beside() -> dict[str, Any]:
    """Options of an actor that is to live as long as this driver does: on the same node."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)}


class Teller:
    """What a worker tells its progress and its cost to; at most two messages a second, but always the last one.

    gpus: how many the worker holds. shown: whether its progress is shown. counted: whether its cost counts, which that
    of the driver does already. The answer is whether to stop in order, with what there is.
    """

    def __init__(self, board: Any, key: str, gpus: float = 0.0, *, shown: bool = True, counted: bool = True) -> None:
        self.board, self.key, self.shown, self.worker = board, key, shown, secrets.token_hex(8)
        self.meter = Meter(gpus) if counted else Spent
        self.told, self.stopped = 0.0, False

    def __call__(self, news: News) -> bool:
        if news.done >= news.total or time.monotonic() - self.told >= TELL_EVERY:
            self._tell(news if self.shown else None)
        return self.stopped

    def spent(self) -> None:
        """Tell only what was spent."""
        self._tell(None)

    def _tell(self, news: News | None) -> None:
        self.told = time.monotonic()
        with suppress(RayActorError):  # the driver, which reads the board, tells that it is gone
            self.stopped = ray.get(self.board.tell.remote(self.key, news, self.worker, self.meter()))


class Shown(Protocol):
    """What is done with the news."""

    def __call__(self, news: Mapping[str, News], last: bool) -> None: ...


@contextmanager
def watching(run: Run, stage: str) -> Iterator[Any]:
    """A board to tell progress to. It is shown live on a terminal and as a plain line every 30 s elsewhere, goes to
    TensorBoard, MLflow and the run's ledger, and tells workers to stop once the run's budget is used up.
    """
    connect()
    title = run.folder.path.rpartition("/")[2]
    board, over = ray.remote(num_cpus=0)(Board).options(**beside()).remote(title, stage), threading.Event()
    failed = list[Exception]()
    with ExitStack() as opened:
        live = opened.enter_context(_live(stage)) if sys.stdout.isatty() else _Lines(stage)
        shown: list[Shown] = [live, *opened.enter_context(trackers(run, stage))]
        thread = threading.Thread(target=_watch, args=(run, stage, board, over, shown, failed), daemon=True)
        thread.start()
        try:
            yield board
        finally:
            over.set()
            thread.join()
            ray.kill(board)
    for error in failed:
        raise error


def _watch(
    run: Run, stage: str, board: Any, over: threading.Event, shown: list[Shown], failed: list[Exception]
) -> None:
    stopped, last = False, False
    try:
        while not last:
            last = over.wait(TELL_EVERY)
            news, spent = ray.get(board.read.remote())
            run.ledger.note(spent)
            if not stopped and stage in BUDGETED and (stopped := bool(run.used_up())):
                board.stop.remote()
            for show in [*shown]:
                try:
                    show(news, last)
                except Exception as error:  # such as of a closed terminal; costs and budget go on being watched
                    failed.append(error)
                    shown.remove(show)
    except Exception as error:  # raised where the stage ends
        failed.append(error)


@contextmanager
def _live(stage: str) -> Iterator[Shown]:
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

        def show(known: Mapping[str, News], last: bool) -> None:
            for key, news in known.items():
                if key not in bars:
                    bars[key] = progress.add_task(f"{stage} {key}", unit=news.unit, rate="", best="")
                bar = progress.tasks[progress.task_ids.index(bars[key])]
                rate = f"{bar.speed:,.1f}/s" if bar.speed else ""
                progress.update(bar.id, completed=news.done, total=news.total, rate=rate, best=_best(news))
                progress.update(bar.id, visible=news.lasting or news.done < news.total)

        yield show


class _Lines:
    def __init__(self, stage: str) -> None:
        self.stage, self.told = stage, time.monotonic()
        self.began, self.begun = self.told, dict[str, tuple[float, int]]()

    def __call__(self, known: Mapping[str, News], last: bool) -> None:
        if last or time.monotonic() - self.told < LINE_EVERY:
            return
        self.told = time.monotonic()
        for key, news in known.items():
            if news.done == news.total and not news.lasting:
                continue
            since, first = self.begun.setdefault(key, (self.began, 0))
            rate = (news.done - first) / (self.told - since)
            left = f"{(news.total - news.done) / rate:,.0f} s left" if rate and news.done < news.total else ""
            line = (
                f"{self.stage} {key}",
                f"{news.done:,}/{news.total:,} {news.unit}",
                f"{rate:,.1f}/s",
                _best(news),
                left,
            )
            print("  " + "  ".join(filter(None, line)), flush=True)
            self.begun[key] = self.told, news.done


def _best(news: News) -> str:
    return "" if news.best is None else f"{news.label} {news.best:.4f}"
