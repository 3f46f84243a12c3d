"""The supernet's weights, by Ray Train on any number of workers: all take the same path at a step and share its batch.

A checkpoint is a folder `step-*` of safetensors with `done.json` last. Whoever is killed, a worker or the driver, the
training goes on from the newest whole one to the same weights.
"""

import signal
import tempfile
import time
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from components.progress import Teller, watching
from components.run import Run
from components.trainings import continue_training, steps_taken
from components.workers import RESTARTS, fits, needs
from nascore.storage import StorageError


def main(run: Run) -> None:
    """Train to the end of the plan."""
    run.check_prepared()
    with run.stage("supernet", resumes=True) as folder, watching(run, "supernet") as board:
        fits(run, run.workers.train)
        with tempfile.TemporaryDirectory(prefix="nascore-train-") as scratch:
            trainer = TorchTrainer(
                _worker,
                train_loop_config={"root": run.root, "board": board},
                scaling_config=ScalingConfig(
                    num_workers=run.workers.train,
                    use_gpu=bool(run.workers.gpus),
                    resources_per_worker=needs(run),
                ),
                run_config=RunConfig(
                    name=f"supernet-{time.time_ns()}",
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=RESTARTS),
                ),
            )
            interrupt = signal.getsignal(signal.SIGINT)
            try:
                trainer.fit()
            finally:
                signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its own, which later stages would not notice
        if failed := ray.get(board.failure.remote()):
            raise failed
        folder.write_text("curve.json", run.checkpoint().read_text("curve.json"))
        if steps_taken(run) < run.method.train.steps:
            run.cut()


def _worker(config: dict[str, Any]) -> None:
    context, board = ray.train.get_context(), config["board"]
    run, rank, world = Run.load(config["root"]), context.get_world_rank(), context.get_world_size()
    tell = Teller(board, "training", run.workers.gpus, shown=rank == 0)
    try:
        continue_training(run, rank, world, tell)
        tell.spent()
    except (ValueError, ArithmeticError, StorageError) as error:  # starting again would not mend it
        if isinstance(error, StorageError) and world > 1:
            raise  # the other ranks wait for this one
        ray.get(board.fail.remote(error))
