"""What a run has cost: seconds of CPUs and GPUs, by stage, attempt and piece of work.

`ledger/<stage>-<time>-<token>.json` is one attempt at a stage, written anew every 30 s while it lasts, so that what was
killed is counted too. Nothing is ever added up in a file, only when it is read.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from components.folder import Folder
from nascore.storage import StorageError

WRITTEN_EVERY = 30.0
UNITS = ("seconds", "cpu_seconds", "gpu_seconds")


@dataclass(frozen=True)
class Spent:
    """Seconds of CPU time, and seconds for which GPUs were held, times how many."""

    cpu: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.cpu + other.cpu, self.gpu + other.gpu)

    def told(self) -> dict[str, float]:
        return {"cpu_seconds": round(self.cpu, 3), "gpu_seconds": round(self.gpu, 3)}


class Meter:
    """What this process, all its threads together, spends from now on. gpus: how many it holds."""

    def __init__(self, gpus: float = 0.0) -> None:
        self.gpus, self.cpu, self.wall = gpus, time.process_time(), time.monotonic()

    def __call__(self) -> Spent:
        return Spent(time.process_time() - self.cpu, self.gpus * (time.monotonic() - self.wall))


class Attempt:
    """One attempt at a stage, by the driver and by whoever works for it."""

    def __init__(self, stage: str) -> None:
        self.stage, self.began, self.started = stage, time.time(), time.monotonic()
        self.driver, self.workers = Meter(), dict[str, tuple[str, Spent]]()
        self.stopped = ""

    def total(self) -> dict[str, float]:
        """Seconds by unit."""
        spent = sum((own for _, own in self.workers.copy().values()), self.driver())
        return {"seconds": round(time.monotonic() - self.started, 3), **spent.told()}

    def told(self) -> dict[str, Any]:
        """All of it as JSON. `work` says which part was spent on what; the driver's own part is not in it."""
        work = dict[str, Spent]()
        for name, own in self.workers.copy().values():
            work[name] = work.get(name, Spent()) + own
        began = datetime.fromtimestamp(self.began, UTC).isoformat(timespec="seconds")
        known = {"stage": self.stage, "began": began, **self.total(), "stopped": self.stopped}
        return {**known, "work": {name: own.told() for name, own in sorted(work.items())}}


class Ledger:
    """All attempts at all stages of a run. folder: the run's `ledger`."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.open: Attempt | None = None
        self.before = dict[str, float]()

    def attempts(self) -> list[dict[str, Any]]:
        """Those that are written, in the order in which they began."""
        known = [self.folder.read_json(name) for name in self.folder.names("*.json")]
        return sorted(known, key=lambda one: str(one["began"]))

    @contextmanager
    def attempt(self, stage: str) -> Iterator[None]:
        """Count what is spent until this ends."""
        self.before = summed(self.attempts())
        self.open = attempt = Attempt(stage)
        name = f"{stage}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(attempt.began))}-{secrets.token_hex(3)}.json"
        over = threading.Event()

        def keep() -> None:
            while not over.wait(WRITTEN_EVERY):
                with suppress(OSError, StorageError):  # the next one may reach the storage, and the last one must
                    self.folder.write_json(name, attempt.told())

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            over.set()
            thread.join()
            with suppress(OSError, StorageError):
                self.folder.write_json(name, attempt.told())
            raise
        else:
            over.set()
            thread.join()
            self.folder.write_json(name, attempt.told())
        finally:
            self.open = None

    def note(self, known: Mapping[str, tuple[str, Spent]]) -> None:
        """What workers of the attempt that is open have spent so far, and on what, by names of their own."""
        if self.open is not None:
            self.open.workers.update(known)

    def total(self) -> dict[str, float]:
        """Seconds by unit of all attempts, until now."""
        if self.open is None:
            return summed(self.attempts())
        now = self.open.total()
        return {unit: self.before[unit] + now[unit] for unit in UNITS}

    def stop(self, why: str) -> None:
        """Note that the attempt that is open ends before its time."""
        if self.open is not None:
            self.open.stopped = why


def summed(attempts: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by unit."""
    return {unit: float(sum(one[unit] for one in attempts)) for unit in UNITS}
