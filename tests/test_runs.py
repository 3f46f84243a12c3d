"""Whole runs of AutoTower by the command line: the same seed gives the same report; one that is stopped is not done."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL, finish, report, start


@pytest.mark.slow
def test_a_run_gives_the_same_report_twice_and_does_nothing_when_done(tmp_path: Path, shop: Any) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = (f"--raw={shop.raw}", *SMALL["autotower"])
    assert finish("autotower", first, *options).strip().endswith(f"Report: {first}/report/index.html")
    finish("autotower", second, *options)
    assert report(second) == report(first)
    started, again = time.monotonic(), finish("autotower", first, *options)
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
