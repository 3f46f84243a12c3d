"""Whole runs of AutoTower by the command line: the same seed gives the same report; one that is stopped is not done."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL, finish, report, start


@pytest.mark.slow
def test_a_run_gives_the_same_report_twice(tmp_path: Path, shop: Any) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        said = finish("autotower", root, f"--raw={shop.raw}", *SMALL["autotower"])
        assert said.strip().endswith(f"Report: {root}/report/index.html")
    assert report(second) == report(first)


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
