"""A lease in storage: at most one holder at a time, by files that are created only where there is none yet.

`lease/<number>.json` says who holds it and until when. The newest number counts: a lease is taken by creating the next
one, which storage grants to one alone, and the number is a fence: whoever finds a higher one has lost its lease. Its
holder renews it by a heartbeat; one that was not renewed can be taken over once it has expired, a third of its term
later, so that clocks may differ by as much.
"""

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from components.folder import Folder
from nascore.storage import StorageError

PROBE = "probe.json"
BEATS, MARGIN = 4, 1 / 3
"""Heartbeats in a term; the share of a term by which clocks may differ."""
SETTLING = 1.0
"""Seconds after which a new lease is read again where it is not on local disk: some stores that speak S3, such as
Swift, check a condition and write without holding others off in between; the last to write is then the holder."""


class Busy(StorageError):
    """Another holds the lease; it is free again when that ends or expires."""


class Lost(StorageError):
    """The lease went to another, or could not be renewed: what is not yet written must not be."""


def create(folder: Folder, name: str, data: bytes) -> bool:
    """Write a file that is not there yet, whole or not at all; False, with nothing written, where there is one.

    On local disk by a hard link, elsewhere by a conditional request (S3: If-None-Match). What was asked for twice
    because the first answer was lost counts as written, so `data` should be of one writer alone. Raises `StorageError`
    or OSError where storage fails.
    """
    target = f"{folder.path}/{name}"
    if "file" in folder.fs.protocol:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        partial = Path(target).with_name(f".{secrets.token_hex(8)}.partial")
        try:
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, target)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True
    try:
        folder.fs.pipe_file(target, data, mode="create")
    except (OSError, StorageError):
        folder.fs.invalidate_cache()
        if not folder.exists(name):
            raise
    return bool(folder.fs.cat_file(target) == data)


class Lease:
    """The lease of a registry, as one holder sees it.

    folder: where its files stand. seconds: the term for which it holds without a heartbeat.
    """

    def __init__(self, folder: Folder, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"a lease holds for more than 0 seconds, not {seconds}")
        self.folder, self.seconds, self.number = folder, seconds, 0
        self.about = {**process(), "token": secrets.token_hex(8)}
        self.expires, self.lost = 0.0, ""
        self.over = threading.Event()

    def numbers(self) -> list[int]:
        """The numbers that there are, rising."""
        self.folder.fs.invalidate_cache()
        return sorted(int(stem) for name in self.folder.names("*.json") if (stem := name[: -len(".json")]).isdigit())

    def take(self) -> None:
        """Take the lease or raise `Busy`; raises `StorageError` where storage cannot refuse a second file."""
        self._probe()
        newest = max(self.numbers(), default=0)
        if newest:
            self._refuse_living(newest)
        self.number = newest + 1
        if not create(self.folder, f"{self.number:08d}.json", self._text()):
            raise Busy(f"{self.folder.url}: another run took the lease just now; try again when it has ended")
        if "file" not in self.folder.fs.protocol:
            time.sleep(SETTLING)
        if not self._mine():
            raise Busy(f"{self.folder.url}: another run took the lease meanwhile; try again when it has ended")
        if self.numbers()[-1] != self.number:
            self.folder.fs.rm(f"{self.folder.path}/{self.number:08d}.json")
            raise Busy(f"{self.folder.url}: other runs took the lease meanwhile; try again when they have ended")
        for old in self.numbers()[:-2]:
            with suppress(FileNotFoundError):
                self.folder.fs.rm(f"{self.folder.path}/{old:08d}.json")

    def _probe(self) -> None:
        """Find out whether storage refuses what is there: such as some stores that speak S3 do not."""
        create(self.folder, PROBE, b"{}\n")
        if create(self.folder, PROBE, secrets.token_hex(8).encode()):
            raise StorageError(f"{self.folder.url}: this storage does not refuse a file that is there (If-None-Match)")

    def _refuse_living(self, number: int) -> None:
        try:
            held = self.folder.read_json(f"{number:08d}.json")
        except FileNotFoundError:
            raise Busy(f"{self.folder.url}: the lease is changing hands; try again") from None
        if held["released"] or gone(held):
            return
        left = held["expires"] + MARGIN * held["seconds"] - time.time()
        if left > 0:
            who = f"process {held['pid']} on {held['host']}"
            raise Busy(f"{self.folder.url}: {who} holds the lease, for {left:.0f} s more unless it is renewed")

    def _mine(self) -> bool:
        """Whether the file of its number is its own."""
        try:
            return bool(self.folder.read_json(f"{self.number:08d}.json")["token"] == self.about["token"])
        except FileNotFoundError:
            return False

    def _text(self, released: bool = False) -> bytes:
        self.expires = time.time() + self.seconds
        known = {**self.about, "seconds": self.seconds, "expires": self.expires, "released": released}
        return (json.dumps(known, indent=1) + "\n").encode()

    def check(self) -> None:
        """Raise `Lost` unless this is still the newest lease and has not expired."""
        if not self.lost and time.time() > self.expires:
            self.lost = "it could not be renewed in time"
        if not self.lost and (self.numbers()[-1:] != [self.number] or not self._mine()):
            self.lost = "another run has taken it over"
        if self.lost:
            raise Lost(f"{self.folder.url}: the lease is lost: {self.lost}; the same command continues")

    def beat(self) -> None:
        """Renew it, or raise `Lost`."""
        self.check()
        self.folder.write_text(f"{self.number:08d}.json", self._text().decode())

    def release(self) -> None:
        """Give it back, if it is still held."""
        with suppress(Lost):
            self.check()
            self.folder.write_text(f"{self.number:08d}.json", self._text(released=True).decode())

    def _keep(self, interrupt: Callable[[], None]) -> None:
        while not self.over.wait(self.seconds / BEATS):
            try:
                self.beat()
            except Lost:
                interrupt()
                return
            except (OSError, StorageError):
                continue  # the next beat may go well; without one, `check` tells


@contextmanager
def leased(folder: Folder, seconds: float) -> Iterator[Lease]:
    """The lease, held and renewed until the end; its loss interrupts the main thread and is raised as `Lost`."""
    main = threading.main_thread().ident
    assert main is not None
    lease = Lease(folder, seconds)
    lease.take()

    def woken(*_: Any) -> None:
        raise KeyboardInterrupt

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGUSR1)  # also where it waits, which `_thread.interrupt_main` does not end

    usual = signal.signal(signal.SIGUSR1, woken)  # SIGINT is ignored by what runs in the background of a script
    thread = threading.Thread(target=lease._keep, args=(interrupt,), daemon=True)
    thread.start()
    try:
        yield lease
    except KeyboardInterrupt:
        if lease.lost:
            lease.check()
        raise
    finally:
        lease.over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, usual)
        lease.release()


def process() -> dict[str, Any]:
    """This process: its host, its number, when it was started, and which numbering that number is of."""
    known: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "started": "", "space": ""}
    with suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        known["space"] = f"{boot}/{os.readlink('/proc/self/ns/pid')}"
        known["started"] = started(os.getpid())
    return known


def started(pid: int) -> str:
    """When a process was started, in ticks since the machine was; raises OSError if there is none."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def gone(holder: dict[str, Any]) -> bool:
    """Whether a holder is a process of this very machine and container that is no more."""
    if not holder["space"] or holder["space"] != process()["space"]:
        return False
    try:
        return bool(started(holder["pid"]) != holder["started"])
    except OSError:
        return True
