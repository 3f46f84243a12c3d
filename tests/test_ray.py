"""The stages that run on a cluster: equal to what one process computes, whatever the number of workers."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from components import diagnose, evaluate, retrain, search, supernet
from components.run import Diagnosis, Run, Workers
from components.supernet import continue_training
from nascore.methods.autotower import AutoTower
from nascore.methods.googlednn import GoogleDNN
from nascore.methods.popularity import Popularity
from nascore.training import Fitness
from nascore.two_tower import Training

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

TRAINING = Training(batch=128, epochs=2)
METHOD = AutoTower(
    blocks=2, width=16, output=16, embedding=8, steps=40, candidates=24, training=TRAINING, fitness=Fitness(batch=64)
)
RunWith = Callable[..., Run]


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return run.checkpoint().read_tensors("weights.safetensors")


def scored(run: Run) -> pa.Table:
    """What the searches of a run found, without what depends on time."""
    return (run.folder / "search").read_table("trials.parquet").drop_columns(["seconds"])


def test_two_train_workers_come_close_to_one_process_on_the_joined_batch(run_with: RunWith) -> None:
    together, alone = (run_with(METHOD, workers=Workers(train=n, checkpoint=20)) for n in (2, 1))
    supernet.main(together)
    continue_training(alone)
    assert together.folder.exists("supernet/done.json")
    ours, theirs = weights_of(together), weights_of(alone)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-2, msg=name)
    curves = [run.checkpoint().read_json("curve.json") for run in (together, alone)]
    assert [point["step"] for point in curves[0]] == [20, 40]
    assert curves[0][0]["loss"] == pytest.approx(curves[1][0]["loss"], rel=1e-3)


def test_searches_do_not_depend_on_the_evaluators_and_leave_the_weights_alone(run_with: RunWith) -> None:
    found = []
    for evaluators in (1, 2):
        run = run_with(
            METHOD,
            strategies=("evolution:population=8", "random:batch=8"),
            budgets=("macs=100000",),
            seeds=(0, 1),
            keep=2,
            workers=Workers(evaluators=evaluators),
        )
        continue_training(run)
        file = Path(run.checkpoint().path, "weights.safetensors")
        before = hashlib.sha256(file.read_bytes()).hexdigest()
        search.main(run)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == before
        found.append(run)
    one, two = (scored(run) for run in found)
    assert one.equals(two)
    assert one.num_rows == 2 * 2 * METHOD.candidates
    assert max(one["macs"].to_pylist()) <= 100_000
    candidates = [(run.folder / "search").read_json("candidates.json") for run in found]
    assert candidates[0] == candidates[1]
    assert len(candidates[0]) == 4


def test_models_are_trained_diagnosed_and_tested(run_with: RunWith) -> None:
    run = run_with(
        METHOD,
        GoogleDNN(size="L", embedding=8, output=16, training=TRAINING),
        Popularity(),
        budgets=("macs=100000",),
        seeds=(0, 1),
        keep=1,
        diagnosis=Diagnosis(genotypes=3, seeds=2),
    )
    continue_training(run)
    search.main(run)
    diagnose.main(run)
    found = (run.folder / "diagnose").read_json("diagnose.json")
    assert found["n"] == len(found["points"]) == 3
    assert all(len(point["alone"]) == 2 for point in found["points"])
    retrain.main(run)
    evaluate.main(run)
    report = (run.folder / "evaluate").read_json("report.json")
    assert {row["role"] for row in report["rows"]} == {"found", "baseline"}
    assert {row["model"] for row in report["rows"]} == {"AutoTower macs=100000, evolution", "GoogleDNN L", "Popularity"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in report["rows"])
    assert len(report["paired"]) == 2


SHARED = """
import sys, time
from safetensors.torch import load_file

def held(kind):
    total, inside = 0, False
    for line in open("/proc/self/smaps"):
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            inside = sys.argv[1] in line
        elif inside and head == kind + ":":
            total += int(line.split()[1])
    return total

tensors = load_file(sys.argv[1])
first = float(tensors["weight"].sum())
print("read", first, flush=True)
sys.stdin.readline()
print(held("Rss"), held("Pss"), flush=True)
sys.stdin.readline()
if sys.argv[2] == "writer":
    tensors["weight"].add_(1)
print("wrote", flush=True)
sys.stdin.readline()
print(float(tensors["weight"].sum()), flush=True)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs /proc/self/smaps to see shared pages")
def test_evaluators_share_the_pages_of_the_weights_and_keep_their_writes_private(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.ones(4_000_000)}, file)
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(file), role], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for role in ("writer", "reader")
    ]

    def answers() -> list[str]:
        lines = []
        for process in both:
            assert process.stdout is not None
            lines.append(process.stdout.readline().strip())
        return lines

    def go_on() -> None:
        for process in both:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    assert answers() == ["read 4000000.0"] * 2
    go_on()
    for line in answers():
        rss, pss = (int(number) for number in line.split())
        assert rss > 15_000
        assert pss < 0.7 * rss
    go_on()
    assert answers() == ["wrote"] * 2
    go_on()
    assert answers() == ["8000000.0", "4000000.0"]
    for process in both:
        process.communicate(timeout=20)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
