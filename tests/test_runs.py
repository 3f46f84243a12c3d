"""A whole run of AutoTower by the command line, and one that is stopped on its way."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL, finish, start


@pytest.mark.slow
def test_a_run_ends_with_a_report_and_does_nothing_when_done(tmp_path: Path, shop: Any) -> None:
    options = (f"--raw={shop.raw}", *SMALL["autotower"])
    assert finish("autotower", tmp_path, *options).strip().endswith(f"Report: {tmp_path}/report/index.html")
    started, again = time.monotonic(), finish("autotower", tmp_path, *options)
    assert time.monotonic() - started < 20
    assert again.count("done before") == 8
    assert "Report:" in again


@pytest.mark.long
@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_is_not_done(tmp_path: Path, shop: Any, signalled: signal.Signals) -> None:
    process = start("autotower", tmp_path, f"--raw={shop.raw}", *SMALL["autotower"], "--method.candidates=4000")
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("search/*/generation-00002.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signalled)
    output, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, None), output
    assert "Traceback" not in output and not (tmp_path / "search/done.json").exists()
