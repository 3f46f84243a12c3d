"""Whole runs by the command line: the same seed gives the same report, also when the run was killed on its way."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import outside, report

OPTIONS = (
    "--dataset=parquet",
    "--method.blocks=2",
    "--method.width=16",
    "--method.steps=200",
    "--method.candidates=48",
    "--method.fitness.batch=64",
    "--method.training.batch=128",
    "--method.training.epochs=2",
    "--strategies=[evolution:population=8,random:batch=8]",
    "--budgets=[macs=100000]",
    "--rivals=[googlednn:size=L,popularity]",
    "--seeds=[0,1]",
    "--keep=1",
    "--diagnosis.genotypes=3",
    "--diagnosis.seeds=1",
    "--tuning.configurations=2",
    "--workers.checkpoint=20",
)


def start(root: Path, shop: Any, *more: str) -> subprocess.Popen[str]:
    """The pipeline in a process group of its own, on a Ray cluster of its own."""
    command = [sys.executable, "-m", "pipelines", "autotower", f"--root={root}", f"--raw={shop.raw}", *OPTIONS, *more]
    return subprocess.Popen(
        command,
        env=outside(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
    )


def finish(root: Path, shop: Any) -> str:
    process = start(root, shop)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shop: Any) -> dict[str, Any]:
    """The report of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    finish(root, shop)
    return report(root)


@pytest.mark.slow
def test_a_run_gives_the_same_report_twice_and_does_nothing_when_done(
    tmp_path: Path, shop: Any, undisturbed: dict[str, Any]
) -> None:
    first = tmp_path / "first"
    output = finish(first, shop)
    assert output.strip().endswith(f"Report: {first}/report/index.html")
    assert report(first) == undisturbed
    started, again = time.monotonic(), finish(first, shop)
    assert time.monotonic() - started < 20
    assert again.count("done before") == 8
    assert "Report:" in again


@pytest.mark.long
@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_is_not_done(tmp_path: Path, shop: Any, signalled: signal.Signals) -> None:
    process = start(tmp_path / "run", shop, "--method.candidates=4000")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "run").glob("search/*/generation-00002.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signalled)
    output, _ = process.communicate(timeout=120)
    assert process.returncode not in (0, None), output
    assert "Traceback" not in output and not (tmp_path / "run/search/done.json").exists()


@pytest.mark.long
@pytest.mark.parametrize("stage", ["supernet", "search", "diagnose", "tune", "retrain"])
def test_a_run_killed_at_a_random_moment_ends_with_the_same_report(
    tmp_path: Path, shop: Any, undisturbed: dict[str, Any], stage: str
) -> None:
    disturbed = tmp_path / "disturbed"
    begun = {
        "supernet": "supernet/step-*/done.json",
        "search": "search/*/generation-*.parquet",
        "diagnose": "diagnose/*/*/done.json",
        "tune": "tune/*/*/done.json",
        "retrain": "retrain/*/*/*/checkpoint.safetensors",
    }[stage]
    process = start(disturbed, shop)
    deadline = time.monotonic() + 300
    while not list(disturbed.glob(begun)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 2))  # the moment is random on purpose
    assert process.poll() is None, f"{stage} was over before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (disturbed / "evaluate/report.json").exists()
    finish(disturbed, shop)
    assert report(disturbed) == undisturbed
