"""Workers killed with -9 while a stage runs on the cluster: Ray restarts them and the results are the same."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from components import retrain, search, supernet
from components.ledger import UNITS
from components.run import Run
from components.settings import Workers
from components.trainings import continue_training
from nascore.fitness import Fitness
from nascore.methods.autotower import AutoTower
from nascore.two_tower import Training

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

METHOD = AutoTower(
    blocks=2,
    width=16,
    output=16,
    embedding=8,
    steps=400,
    candidates=200,
    training=Training(batch=128, epochs=30, patience=30),
    fitness=Fitness(batch=64),
)


@contextmanager
def killing(title: str, once: Callable[[], bool]) -> Iterator[list[int]]:
    """Kill one worker process with this title as soon as `once` holds; gives the list of those killed."""
    killed, over = list[int](), threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if once():
                for process in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        command = process.read_bytes().decode(errors="replace")
                    except OSError:
                        continue
                    if command.startswith("ray::") and title in command:
                        killed.append(int(process.parent.name))
                        os.kill(killed[0], signal.SIGKILL)
                        return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.long
def test_a_killed_train_worker_resumes_to_the_same_weights(run_with: Callable[..., Run]) -> None:
    disturbed, undisturbed = (run_with(METHOD, workers=Workers(checkpoint=20)) for _ in range(2))
    folder = disturbed.folder / "supernet"
    with killing("TrainWorker", lambda: bool(folder.names("step-*/done.json"))) as killed:
        supernet.main(disturbed)
    assert killed
    continue_training(undisturbed)
    ours = disturbed.checkpoint().read_tensors("weights.safetensors")
    theirs = undisturbed.checkpoint().read_tensors("weights.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert disturbed.checkpoint().url.endswith("step-000000400")


def found_and_retrained(run: Run, disturb: bool) -> tuple[pa.Table, dict[str, Any], dict[str, torch.Tensor]]:
    """What a search found, its best model's result and its weights; one worker of each stage is killed to disturb."""
    continue_training(run)
    folder = run.folder / "search"
    with killing("_Evaluator", lambda: disturb and bool(folder.names("*/generation-00002.parquet"))) as killed:
        search.main(run)
    assert bool(killed) is disturb
    (model_id,) = {one["model_id"] for one in folder.read_json("candidates.json")}
    trained = run.folder / f"retrain/{model_id}/part=0/seed=0"
    with killing("train_alone", lambda: disturb and trained.exists("checkpoint.safetensors")) as killed:
        retrain.main(run)
    assert bool(killed) is disturb
    result = {name: value for name, value in trained.read_json("result.json").items() if name not in UNITS}
    trials = folder.read_table("trials.parquet").drop_columns([*UNITS])
    return trials, result, trained.read_tensors("weights.safetensors")


@pytest.mark.long
def test_a_killed_evaluator_and_a_killed_training_leave_no_trace(run_with: Callable[..., Run]) -> None:
    asked = {"strategies": ("evolution:population=8",), "budgets": ("macs=100000",), "seeds": (0,), "keep": 1}
    trials, result, weights = found_and_retrained(run_with(METHOD, **asked), disturb=True)
    same_trials, same_result, same_weights = found_and_retrained(run_with(METHOD, **asked), disturb=False)
    assert trials.equals(same_trials)
    assert result == same_result
    assert all(torch.equal(weights[name], same_weights[name]) for name in weights)
