"""The lease: files that are created once, one holder at a time, its loss, and who may take it over."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from components import lease as leases
from components.folder import Folder
from components.lease import Busy, Lease, Lost, create, leased
from nascore.storage import StorageError


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(leases, "SETTLING", 0.0)
    if request.param == "disk":
        yield Folder(f"{tmp_path}/registry")
    else:
        yield Folder(f"memory://{tmp_path.name}/registry")
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


# What is there is not written again


def test_a_file_is_created_once(folder: Folder) -> None:
    assert create(folder, "a/b.json", b"first") and not create(folder, "a/b.json", b"second")
    assert folder.read_text("a/b.json") == "first" and folder.names("a/*") == ["a/b.json"]


def test_a_file_on_disk_is_as_open_as_others(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        create(Folder(str(tmp_path)), "a.json", b"{}")
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_of_many_that_create_a_file_one_does(folder: Folder) -> None:
    start, done = threading.Barrier(8), list[bool]()

    def race(number: int) -> None:
        start.wait()
        done.append(create(folder, "a", f"{number}".encode()))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count(True) == 1


def test_a_lost_answer_counts_as_written(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is sent anew because its answer did not arrive is refused for what it wrote itself."""
    if "memory" not in folder.fs.protocol:
        pytest.skip("local disk answers at once")
    pipe = folder.fs.pipe_file

    def twice(*given: Any, **named: Any) -> None:
        pipe(*given, **named)
        pipe(*given, **named)

    monkeypatch.setattr(folder.fs, "pipe_file", twice)
    assert create(folder, "a", b"mine")
    assert not create(folder, "a", b"another's")


def test_storage_that_refuses_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(f"memory://{tmp_path.name}/lease")
    pipe = folder.fs.pipe_file
    monkeypatch.setattr(folder.fs, "pipe_file", lambda path, data, mode="overwrite": pipe(path, data))
    with pytest.raises(StorageError, match="does not refuse a file that is there"):
        Lease(folder, 60).take()


# The lease


def test_one_holds_the_lease(folder: Folder) -> None:
    with leased(folder, 60) as first:
        first.check()
        with pytest.raises(Busy, match=rf"process {os.getpid()} on .* holds the lease, for \d+ s more"):
            Lease(folder, 60).take()
        first.check()
    with leased(folder, 60) as second:
        assert second.number == first.number + 1
        with pytest.raises(Lost, match="another run has taken it over"):
            first.check()


def test_the_lease_is_given_back_after_an_error(folder: Folder) -> None:
    with pytest.raises(KeyError), leased(folder, 60):
        raise KeyError("a")
    with leased(folder, 60):
        pass


def test_a_heartbeat_renews_it(folder: Folder) -> None:
    with leased(folder, 0.4) as lease:
        time.sleep(1)
        lease.check()
        with pytest.raises(Busy):
            Lease(folder, 60).take()


def stale(folder: Folder, monkeypatch: pytest.MonkeyPatch, seconds: float = 60) -> Lease:
    """A lease whose holder, on a machine that is not ours, has stopped."""
    there = {"host": "far", "pid": 7, "started": "", "space": ""}
    with monkeypatch.context() as patch:
        patch.setattr(leases, "process", lambda: there)
        lease = Lease(folder, seconds)
        lease.take()
    return lease


def test_a_stale_lease_is_taken_over_after_a_margin(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    old, now = stale(folder, monkeypatch), time.time()
    for later, free in ((59, False), (79, False), (81, True)):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        new = Lease(folder, 60)
        if free:
            new.take()
            new.check()
        else:
            with pytest.raises(Busy, match="process 7 on far"):
                new.take()
    with pytest.raises(Lost):
        old.beat()
    old.release()
    new.check()
    assert new.numbers()[-1] == new.number


def test_an_expired_lease_is_lost_to_its_holder_before_others_may_take_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, now = stale(folder, monkeypatch), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    with pytest.raises(Lost, match="could not be renewed in time"):
        old.check()
    with pytest.raises(Busy):
        Lease(folder, 60).take()


def test_of_many_that_take_over_one_does(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    stale(folder, monkeypatch, 0.001)
    time.sleep(0.01)
    start, taken = threading.Barrier(6), list[Lease]()

    def race() -> None:
        lease = Lease(folder, 60)
        start.wait()
        try:
            lease.take()
            taken.append(lease)
        except Busy:
            pass

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    taken[0].check()


def test_of_two_that_storage_let_create_the_same_lease_the_last_to_write_holds_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Swift does: it looks whether a file is there, and writes, and another may do the same in between."""
    if "file" in folder.fs.protocol:
        pytest.skip("local disk creates a file once")
    other, first = Lease(folder, 60), Lease(folder, 60)
    other.number = 1

    def late(seconds: float) -> None:
        folder.write_text("00000001.json", other._text().decode())

    monkeypatch.setattr(time, "sleep", late)
    with pytest.raises(Busy, match="meanwhile"):
        first.take()
    other.check()


def test_who_was_late_to_take_over_yields_to_a_later_lease(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another has taken, used and given back the number that we create, and a third holds the next one."""
    stale(folder, monkeypatch, 0.001)
    time.sleep(0.01)
    lease, numbers = Lease(folder, 60), iter([[1], [2, 3]])
    monkeypatch.setattr(lease, "numbers", lambda: next(numbers))
    with pytest.raises(Busy, match="meanwhile"):
        lease.take()
    assert not folder.exists("00000002.json")


HOLD = """
import sys, time
from components.folder import Folder
from components.lease import leased
with leased(Folder(sys.argv[1]), 600):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_holder_of_this_machine_is_known_to_be_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(Busy):
        Lease(Folder(str(tmp_path)), 60).take()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    Lease(Folder(str(tmp_path)), 60).take()


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN])
def test_the_loss_of_a_lease_stops_the_work(tmp_path: Path, handler: Any) -> None:
    folder, usual = Folder(str(tmp_path)), signal.signal(signal.SIGINT, handler)
    started = time.monotonic()
    try:
        with pytest.raises(Lost, match="another run has taken it over"), leased(folder, 3.0) as lease:
            create(folder, f"{lease.number + 1:08d}.json", b"{}")
            time.sleep(60)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert time.monotonic() - started < 30, "it is woken"
    assert lease.numbers()[-1] == lease.number + 1
