"""A real S3 server for tests: OpenStack Swift with its `s3api`, in an environment of its own, on this machine.

`python -m tests.swift` builds that environment, `.venv-swift`, which needs a package index; the tests do so themselves
where it is missing, and are skipped where it cannot be built.
"""

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent
HOME = Path(os.environ.get("NASCORE_SWIFT", ROOT / ".venv-swift"))
PACKAGE = "swift==2.38.3"
KEY, SECRET = "test:tester", "testing"
OTHER_KEY, OTHER_SECRET = "test:reader", "reading"
PIPELINE = "catch_errors gatekeeper listing_formats bulk s3api tempauth slo dlo proxy-server"
SERVERS = ("account", "container", "object")
START_SECONDS = 60


class Unavailable(Exception):
    """Why there is no Swift on this machine."""


@dataclass(frozen=True)
class Server:
    """A Swift that answers on `url`; its log is at `log`."""

    url: str
    log: Path


def build() -> None:
    """Make the environment, once; raises `Unavailable` with the reason where that is not possible."""
    commands = (
        [sys.executable, "-m", "venv", str(HOME)],
        [f"{HOME}/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--retries=1", PACKAGE],
        [f"{HOME}/bin/python", "-c", "import swift.proxy.server, swift.obj.server"],
    )
    HOME.mkdir(parents=True, exist_ok=True)
    with open(HOME / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes that share the tests need it at once
        if (HOME / "built").exists():
            return
        for command in commands:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
            if done.returncode:
                raise Unavailable(f"{PACKAGE} cannot be installed: {done.stdout.strip()[-300:]}")
        (HOME / "built").write_text(PACKAGE)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server whose files are in `folder`, which must be on a disk with extended attributes."""
    build()
    _check_disk(folder)
    ports = dict(zip((*SERVERS, "proxy"), free_ports(4), strict=True))
    _configure(folder, ports)
    with open(folder / "log", "wb") as log:
        started = [
            subprocess.Popen([f"{HOME}/bin/swift-{name}-server", f"{folder}/{name}.conf"], stdout=log, stderr=log)
            for name in ports
        ]
        try:
            url = f"http://127.0.0.1:{ports['proxy']}"
            _wait(url, started, folder / "log")
            yield Server(url, folder / "log")
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens to."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def _check_disk(folder: Path) -> None:
    try:
        (folder / "probe").touch()
        os.setxattr(folder / "probe", "user.swift", b"x")
    except OSError as error:
        raise Unavailable(f"{folder} has no extended attributes: {error}") from None


def _configure(folder: Path, ports: dict[str, int]) -> None:
    """One disk, one copy, one worker; no cache, which only saves time."""
    (folder / "disks/d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = p\nswift_hash_path_suffix = s\n"
        "[storage-policy:0]\nname = only\ndefault = yes\n"
    )
    common = f"swift_dir = {folder}\nworkers = 1\nbind_ip = 127.0.0.1\nlog_level = WARNING\n"
    common += f"user = {subprocess.run(['id', '-un'], capture_output=True, text=True).stdout.strip()}\n"
    for name in SERVERS:
        builder = f"{folder}/{name}.builder"
        for words in (
            ["create", "4", "1", "0"],
            ["add", f"r1z1-127.0.0.1:{ports[name]}/d1", "1"],
            ["rebalance"],
        ):
            subprocess.run([f"{HOME}/bin/swift-ring-builder", builder, *words], check=True, capture_output=True)
        (folder / f"{name}.conf").write_text(
            f"[DEFAULT]\n{common}bind_port = {ports[name]}\ndevices = {folder}/disks\nmount_check = false\n"
            f"[pipeline:main]\npipeline = {name}-server\n[app:{name}-server]\nuse = egg:swift#{name}\n"
        )
    filters = {
        name: f"use = egg:swift#{name.replace('-', '_')}\n" for name in PIPELINE.split() if name != "proxy-server"
    }
    filters["s3api"] += "s3_acl = false\nallow_multipart_uploads = yes\ncheck_bucket_owner = false\n"
    filters["tempauth"] += f"user_{KEY.replace(':', '_')} = {SECRET} .admin\n"
    filters["tempauth"] += f"user_{OTHER_KEY.replace(':', '_')} = {OTHER_SECRET}\n"
    (folder / "proxy.conf").write_text(
        f"[DEFAULT]\n{common}bind_port = {ports['proxy']}\n[pipeline:main]\npipeline = {PIPELINE}\n"
        "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
        + "".join(f"[filter:{name}]\n{text}" for name, text in filters.items())
    )


def _wait(url: str, started: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and all(process.poll() is None for process in started):
        try:
            urlopen(url, timeout=5).close()
            return
        except HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise Unavailable(f"Swift did not start: {log.read_text(errors='replace')[-500:]}")


if __name__ == "__main__":
    build()
    print(f"{PACKAGE} stands in {HOME}")
