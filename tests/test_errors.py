"""What a person is told of an error, and the exit codes by class."""

import errno
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from botocore.exceptions import EndpointConnectionError
from ray.exceptions import RayActorError, RayTaskError

from components.errors import exit_code, told
from components.folder import Folder
from nascore.datasets import DataError
from nascore.space import Infeasible
from nascore.storage import StorageError, spill
from pipelines import __main__ as command


def of_task(error: Exception) -> RayTaskError:
    return RayTaskError("train", "Traceback …", error)


class Failed(Exception):
    """As Ray Train raises it: the errors of its workers by rank, each in one more."""

    def __init__(self, error: Exception) -> None:
        super().__init__("Training failed due to worker errors:\n…")
        inner = RuntimeError("Traceback …")
        inner._base_exc = error  # type: ignore[attr-defined]
        self.worker_failures = {1: inner}


CLASSES: list[tuple[BaseException, int, str | None]] = [
    (TypeError("ours"), 1, None),
    (ZeroDivisionError("ours"), 1, None),
    (FloatingPointError("the loss is nan"), 2, "the loss is nan"),
    (ValueError("a bad name"), 2, "a bad name"),
    (FileNotFoundError("holds no run.json"), 2, "holds no run.json"),
    (DataError("a row is broken"), 3, "a row is broken"),
    (pa.ArrowInvalid("a page is broken"), 3, "a page is broken"),
    (Infeasible("no member"), 4, "no member"),
    (StorageError("no such bucket"), 5, "no such bucket"),
    (PermissionError(errno.EACCES, "denied", "x"), 5, "[Errno 13] denied: 'x'"),
    (ConnectionError("no cluster"), 5, "no cluster"),
    (EndpointConnectionError(endpoint_url="http://x"), 5, 'Could not connect to the endpoint URL: "http://x"'),
    (RayActorError(), 5, "The actor experienced an error before finishing this task."),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize("error, code, line", CLASSES, ids=lambda value: type(value).__name__)
def test_errors_have_a_line_and_a_code(error: BaseException, code: int, line: str | None) -> None:
    assert (exit_code(error), told(error)) == (code, line)
    if isinstance(error, Exception) and not isinstance(error, RayActorError):
        for carried in (of_task(error), of_task(error).as_instanceof_cause(), Failed(error), of_task(Failed(error))):
            assert (exit_code(carried), told(carried)) == (code, line), "whatever carried it here"


def test_the_codes_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Exit codes: 0 done, 1 a bug of ours, 2 a wrong command line" in said
    assert all(f" {code} " in said for _, code, _ in CLASSES)


@pytest.fixture
def options(tmp_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("components.run.environment", lambda: None)
    return ["autotower", f"--root={tmp_path}/run", "--dataset=parquet", f"--raw={shop.raw}", "--stages=[prepare]"]


@pytest.mark.parametrize(
    "error, code", [(StorageError("full"), 5), (Infeasible("none"), 4), (DataError("broken"), 3), (ValueError("no"), 2)]
)
def test_a_command_ends_with_the_code(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def fails(run: Any) -> None:
        raise of_task(error)

    monkeypatch.setattr("components.prepare.main", fails)
    assert command.main(options) == code
    assert capsys.readouterr().err.startswith(f"error: {error}\nWhat is finished stays")


# A full disk


def limited() -> None:
    """Of a file that grows too long, the system says what it says of a full disk, under another number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


FULL = """
import sys, torch, pyarrow as pa
from components.folder import Folder
from nascore.storage import StorageError
folder, value = Folder(sys.argv[1]), torch.arange(100_000.0)
writes = {
    "tensors": lambda: folder.write_tensors("deep/a", {"a": value}),
    "table": lambda: folder.write_table("deep/a", pa.table({"a": value.numpy()})),
    "text": lambda: folder.write_text("deep/a", "x" * 100_000),
}
try:
    writes[sys.argv[2]]()
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["tensors", "table", "text"])
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    Folder(str(tmp_path)).write_text("deep/before", "x")
    program = [sys.executable, "-c", FULL, str(tmp_path), kind]
    done = subprocess.run(program, preexec_fn=limited, capture_output=True, text=True, timeout=60)
    assert f"{tmp_path}/deep/a: " in done.stdout and "free some space there or in" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["before"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_a_file_is_published_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = Folder(str(tmp_path))
    folder.write_tensors("a", {"a": torch.ones(3)})

    def fills(local: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(folder.fs, "put_file", fills)
    with pytest.raises(StorageError, match="/a: .*No space left on device; free some space"):
        folder.write_tensors("a", {"a": torch.zeros(3)})
    monkeypatch.undo()
    assert folder.read_tensors("a")["a"].sum() == 3 and folder.names("*") == ["a"]


def test_another_error_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), Folder(str(tmp_path)).writing("a"):
        raise OSError("mine")


def test_records_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(StorageError, match="/dev/full: .*No space left on device; free some space"):
        spill(Path("/dev/full"), np.zeros(3, [("a", "i4"), ("b", "f4")]))


CUT = """
import resource, sys
from components import prepare
from nascore.storage import StorageError
from pipelines.__main__ import parse
run = parse("nasrec", ["--root", sys.argv[1], "--dataset", "planted_clicks:rows=6000", "--rivals=[]"])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    prepare.main(run)
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize("room", [100, 50_000, 119_000])
def test_rows_that_do_not_fit_are_an_error(tmp_path: Path, room: int) -> None:
    """Whatever is cut off, be it the end of a block that nobody asked to be written yet."""
    program = [sys.executable, "-c", CUT, str(tmp_path / "run"), str(room)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert "free some space there or in" in done.stdout, done.stderr
    assert not (tmp_path / "run/prepare/done.json").exists()


def test_nothing_is_written_by_what_drops_the_end_of_it() -> None:
    root = Path(__file__).parent.parent
    files = [path for folder in ("nascore", "components", "pipelines") for path in (root / folder).rglob("*.py")]
    assert files and not [path for path in files if re.search(r"\.tofile\(\w", path.read_text(encoding="utf-8"))]


PAST = """
import resource, sys
from nascore.rows import Data
from nascore.storage import StorageError
data = Data(sys.argv[1], "train")
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    data.history
except StorageError as error:
    print(error)
"""


def test_histories_that_do_not_fit_are_an_error(prepared: Any) -> None:
    program = [sys.executable, "-c", PAST, f"{prepared().folder.url}/prepare"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("histories: ") and "free some space there or in" in done.stdout, done.stderr
