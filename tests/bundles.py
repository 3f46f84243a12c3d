"""Finished runs of a few seconds for the tests of bundles, and the `score.py` of a bundle as a module."""

import importlib.util
import warnings
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from components import derive, evaluate, prepare, trainings
from components.finalists import contenders, finalists
from components.programs import Program
from components.run import Run
from components.trainings import continue_training, train_alone
from nascore.click_net import ClickTraining
from nascore.methods import Method
from nascore.methods.autotower import AutoTower
from nascore.methods.dnn import Dnn
from nascore.methods.dnsrec import DNSRec
from nascore.methods.gru4rec import GRU4Rec
from nascore.methods.ihas import ADAM, IHAS
from nascore.methods.itemknn import ItemKNN
from nascore.methods.mind import MIND
from nascore.methods.nasrec import NASRec
from nascore.methods.popularity import Popularity
from nascore.space import Genotype
from nascore.training import Learning
from nascore.two_tower import Training

TOWERS = Training(batch=128, epochs=1, patience=0, stop="recall@10")
SEQUENCES = replace(DNSRec().training, length=6, batch=256, epochs=1, rankings=("full",))
AUTOTOWER = AutoTower(blocks=2, embedding=4, width=8, output=6, training=TOWERS)
NASREC = NASRec(
    blocks=2,
    embedding=4,
    dense_sizes=(3, 5),
    sparse_sizes=(2, 3),
    tokens=2,
    cap=12,
    training=ClickTraining(batch=128),
)
DNSREC = DNSRec(hidden=12, inner=8, heads=2, ratios=(0.0, 0.5), layers=2, inherit=False, training=SEQUENCES)
IHAS_SMALL = IHAS(
    embedding=4,
    fewest=1,
    layers=(6,),
    pretrained=20,
    steps=60,
    sparsity=0.5,
    polarization=1.0,
    models=("clusters", "gates"),
    learner=Learning(every=1, learning_rate=0.03, weight_decay=0.0),
    training=replace(ADAM, batch=128, learning_rate=0.01, epochs=1),
)


def run_of(name: str, root: Path, shop: Any) -> Run:
    """A finished run of a method, with a rival or more."""
    of_shop: dict[str, Any] = {"dataset": "parquet", "raw": shop.raw}
    of_clicks: dict[str, Any] = {"dataset": "planted_clicks:rows=1200", "raw": "", "protocol": "stratified"}
    dnn = Dnn(embedding=4, width=8, depth=1, training=ClickTraining(batch=128))
    known: dict[str, tuple[tuple[Method, ...], dict[str, Any]]] = {
        "autotower": ((AUTOTOWER, MIND(size="L", embedding=4, training=TOWERS), ItemKNN(), Popularity()), of_shop),
        "nasrec": ((NASREC, dnn), of_clicks),
        "dnsrec": (
            (DNSREC, GRU4Rec(hidden=7, embedding=5, training=SEQUENCES)),
            {**of_shop, "protocol": "leave_one_out"},
        ),
        "ihas": (
            (IHAS_SMALL,),
            {
                "dataset": "planted_populations:rows=2000",
                "raw": "",
                "protocol": "stratified",
                "strategies": (),
                "stages": ("prepare", "supernet", "derive", "retrain", "evaluate"),
            },
        ),
    }

    methods, changes = known[name]
    return finished(root, methods, **changes)


def finished(root: Path, methods: tuple[Method, ...], **known: Any) -> Run:
    """A run through its stages without a cluster: the first member of the first method's space is what was found."""
    common: dict[str, Any] = {"seeds": (0,), "budgets": ("",), "strategies": ("evolution",)}
    run = Run(root=str(root), methods=methods, **{**common, **known})
    with pytest.MonkeyPatch.context() as patch:
        for module in (derive, trainings):
            patch.setattr(module, "settle", lambda run: "cpu")
        patch.setattr(evaluate, "test_all", lambda run, models: [evaluate.tested(run, one) for one in models])
        prepare.main(run)
        run.save()
        listed = dict[str, Any]()
        if run.method.routes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                continue_training(run)
            (run.folder / "derive").write_json("candidates.json", {"": derive.ours(run)})
        else:
            listed = {"budget": "", "strategy": "evolution", "as": "evolution", "score": 0.0}
            listed |= {"genotype": found(run.method, run), "model_id": "x"}
        (run.folder / "search").write_json("candidates.json", [listed] if listed else [])
        for group in (finalists, contenders):
            for one in group(run):
                for job in one.jobs(0, f"retrain/{one.model_id}/part={{part}}"):
                    train_alone(run, job)
        for stage in ("search", "derive", "retrain"):
            (run.folder / stage).write_json("done.json", {"seconds": 1.0})
        evaluate.main(run)
    return run


def found(method: Method, run: Run) -> Genotype:
    space = method.space(run.schema)
    return method.canonical(space.sample(Random(1)))


def without_onnx(program: Program, path: str) -> str:
    """It takes longer than all the rest; it has a test of its own."""
    raise ImportError("none", name="onnxscript")


def script(folder: Path) -> Any:
    """The bundle as its own `score.py` opens it."""
    return module_of(folder).Bundle(folder)


def module_of(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("score_of_a_bundle", folder / "score.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
