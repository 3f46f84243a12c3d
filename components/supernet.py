"""The supernet's weights, by Ray Train on any number of workers: all take the same path at a step and share its batch.

A checkpoint is a folder `step-*` of safetensors with `done.json` last. Whoever is killed, a worker or the driver, the
training goes on from the newest whole one to the same weights.
"""

import signal
import tempfile
import time
from math import isfinite
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from components.run import Folder, Run
from components.workers import News, Teller, fits, settle, watching
from nascore import group
from nascore.net import Net
from nascore.training import Fit

TOLD_EVERY = 50
RESTARTS = 3


def main(run: Run) -> None:
    """Train to the end of the plan."""
    run.check_prepared()
    with run.stage("supernet", resumes=True) as folder, watching("supernet") as board:
        fits(run, run.workers.train)
        with tempfile.TemporaryDirectory(prefix="nascore-train-") as scratch:
            trainer = TorchTrainer(
                _worker,
                train_loop_config={"root": run.root, "board": board},
                scaling_config=ScalingConfig(
                    num_workers=run.workers.train,
                    use_gpu=bool(run.workers.gpus),
                    resources_per_worker={
                        "CPU": run.workers.cpus,
                        **({"GPU": run.workers.gpus} if run.workers.gpus else {}),
                    },
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
        failed = ray.get(board.failure.remote())
        if failed:
            raise ValueError(failed)
        folder.write_text("curve.json", run.checkpoint().read_text("curve.json"))


def _worker(config: dict[str, Any]) -> None:
    context, board = ray.train.get_context(), config["board"]
    run = Run.load(config["root"])
    try:
        continue_training(run, context.get_world_rank(), context.get_world_size(), Teller(board, "training"))
    except (ValueError, ArithmeticError) as error:  # starting again would not mend it
        ray.get(board.fail.remote(str(error)))


def continue_training(run: Run, rank: int = 0, world: int = 1, tell: Any = lambda news: None) -> None:
    """Train to the end of the plan as one rank, from the newest whole checkpoint on."""
    device, folder = settle(run), run.folder / "supernet"
    method, schema, seed = run.method, run.schema, run.seeds[0]
    rows = run.rows("train", run.workers.data, rank, world, device, shown=method.shown)
    supernet, task = method.supernet(schema, method.space(schema), seed).to(device), method.task(schema).to(device)
    held = run.rows("valid", run.workers.data, rank, world, device, shown=method.shown) if method.learning else None
    penalty = method.penalty(supernet.net, measured(run, supernet.net, rank)) if method.learning else None
    fit = Fit(supernet, task, rows, method.train, seed, method.learning, held, penalty)
    plan, curve = method.train, list[dict[str, float]]()
    before, started = 0.0, time.monotonic()
    if plan.steps < 1:
        raise ValueError(f"a supernet is trained for 1 step or more, not {plan.steps}")
    if folder.names("step-*/done.json"):
        last = run.checkpoint()
        fit.restore({**last.read_tensors("weights.safetensors"), **last.read_tensors("optimizer.safetensors")})
        curve = last.read_json("curve.json")
        before = curve[-1]["seconds"] if curve else 0.0
    while fit.step < plan.steps:
        upto = min(plan.steps, (fit.step // run.workers.checkpoint + 1) * run.workers.checkpoint)
        loss = fit.advance(min(TOLD_EVERY, upto - fit.step))
        if not isfinite(loss):
            raise FloatingPointError(f"the supernet's loss is {loss} at step {fit.step}; lower its learning rate")
        seconds = round(before + time.monotonic() - started, 3)
        curve.append({"step": fit.step, "loss": loss, "seconds": seconds, **supernet.sampler.facts(fit.step)})
        if rank == 0:
            tell(News(fit.step, plan.steps, "steps", loss, "loss"))
            if fit.step == upto:
                save(folder, fit, curve)


def measured(run: Run, net: Net, rank: int) -> dict[str, float]:
    """What the method wants measured on this machine: by the first rank, once a run, for all."""
    folder = run.folder / "supernet"
    if rank == 0 and not folder.exists("measured.json"):
        folder.write_json("measured.json", run.method.measure(net))
    group.wait()
    known: dict[str, float] = folder.read_json("measured.json")
    return known


def save(folder: Folder, fit: Fit, curve: list[dict[str, float]]) -> None:
    """Write a whole checkpoint, then drop all but it and the one before."""
    target = folder / f"step-{fit.step:09d}"
    state = fit.state()
    weights = fit.weights()
    target.write_tensors("weights.safetensors", weights)
    target.write_tensors("optimizer.safetensors", {name: value for name, value in state.items() if name not in weights})
    target.write_json("curve.json", curve)
    target.write_json("done.json", {"step": fit.step})
    for old in folder.names("step-*/done.json")[:-2]:
        (folder / old.rpartition("/")[0]).clear()
