"""iHAS by the command line: every kind of model, and populations that it tells apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from nascore.datasets.planted_populations import CATEGORIES, PlantedPopulations
from nascore.methods.ihas import IHAS
from pipelines.__main__ import parse
from pipelines.ihas import ihas
from tests.commands import SMALL, finish, read, report


def by_label(told: dict[str, Any], metric: str = "log_loss") -> dict[str, Any]:
    return {row["model"]: row for row in told["rows"] if row["metric"] == metric}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("runs") / "first"
    output = finish("ihas", root, *SMALL["ihas"])
    assert output.strip().endswith(f"Report: {root}/report/index.html") and "Warning" not in output
    return root


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_tests_what_it_found_and_does_nothing_when_done(first: Path) -> None:
    told = report(first)
    assert (told["headline"], told["protocol"]) == ("log_loss", "stratified/all-rows")
    rows = by_label(told)
    ours = [f"iHAS whole, {kind}" for kind in ("clusters", "single", "open", "gates")]
    assert [*rows][:4] == ours and len(rows) == 6
    assert all(0.3 < row["low"] <= row["value"] <= row["high"] < 1.0 for row in rows.values())

    models = {one["label"]: one for one in told["models"].values()}
    assert [len(models[label]["parts"]) for label in ours] == [2, 1, 1, 1]
    assert [models[label]["kept"] for label in ours] == [False, False, False, True]
    cost = {label: (rows[label]["params"], rows[label]["table_params"], rows[label]["macs"]) for label in ours}
    tables = 4 * sum(read(first, "prepare/schema.json")["columns"][n]["size"] for n in range(10))
    base = (40 * 6 + 6 + 6 + 1, tables, 40 * 6 + 6)
    assert cost[ours[2]] == base, "all dimensions"
    assert cost[ours[3]] == (base[0] + 40 * 40 + 40, tables, base[2] + 40 * 40), "all dimensions and the gates"
    dims = [sum(map(len, part.values())) for part in (*models[ours[0]]["parts"], *models[ours[1]]["parts"])]
    assert cost[ours[1]][0] == dims[2] * 6 + 6 + 6 + 1 and cost[ours[1]][1] < tables
    assert cost[ours[0]][0] == 6 * (dims[0] + dims[1]) + 2 * 13 + 40 * 40 + 40 + 2 * 40

    (pair,) = [one for one in told["paired"] if (one["a"], one["b"]) == (ours[0], ours[1])]
    helps = pair["high"] < 0
    assert told["kinds"].startswith(f"A model for each of 2 kinds of rows {'helps' if helps else 'does not help'}")
    assert f"log_loss against one model for all {pair['delta']:+.4f}" in told["kinds"]
    page = (first / "report/index.html").read_text()
    assert told["kinds"] in page and "Kinds of rows" in page and "0 leaves the field out" in page

    kinds = read(first, "derive/kinds.json")
    assert sum(kinds["rows"]) == read(first, "prepare/schema.json")["rows"]["train"]
    clusters = next(name for name, one in told["models"].items() if one["label"] == ours[0])
    for part in (0, 1):
        for seed in (0, 1):
            assert (first / f"retrain/{clusters}/part={part}/seed={seed}/result.json").exists()
    gates = next(name for name, one in told["models"].items() if one["label"] == ours[3])
    assert not (first / f"retrain/{gates}").exists()
    tuned = {one["label"]: one for one in read(first, "tune/tuned.json")["methods"]}
    assert len(tuned) == 3 and all(len(one["tried"]) == 2 for one in tuned.values())
    spent = read(first, "tune/tuned.json")["spent"]
    assert spent["supernet"] == (60 + 40) * 128, "lessons count"
    assert finish("ihas", first, *SMALL["ihas"]).count("done before") == 7


@pytest.mark.parametrize("preset", ["ihas_1", "ihas_2", "ihas_3", "ihas_4", "base"])
def test_presets_are_read_and_checked(preset: str, tmp_path: Path) -> None:
    options = [f"--root={tmp_path}", "--dataset=planted_populations:rows=100", f"--preset={preset}"]
    run = parse("ihas", [*options, "--method.embedding=8"])
    run.check()
    assert isinstance(run.method, IHAS) and run.method.embedding == 8
    for name, value in IHAS.presets[preset].items():
        assert getattr(run.method, name) == value != getattr(IHAS(), name)
    assert run.planned == ("prepare", "supernet", "derive", "tune", "retrain", "evaluate", "report")
    assert all(rival.retrain == run.method.retrain for rival in run.methods[1:]), "trained exactly as ours"


def test_the_command_line_is_checked(tmp_path: Path) -> None:
    def checked(**settings: Any) -> None:
        ihas(root=str(tmp_path / "run"), dataset="planted_populations:rows=100", **settings).check()

    checked()
    with pytest.raises(ValueError, match="--stages must hold derive"):
        checked(stages=("prepare", "supernet", "retrain", "evaluate"))
    with pytest.raises(ValueError, match="budgets with a name in ihas: whole"):
        checked(budgets=("M",))
    for wrong, why in (
        ({"models": ()}, "models must name one or more"),
        ({"models": ("single", "single")}, "each once"),
        ({"majority": 1.5}, "majority is a share of rows, not 1.5"),
        ({"clusters": 0}, "clusters is at least 1"),
        ({"layers": ()}, "layers are one or more widths"),
        ({"behind": "nasrec"}, "is no hand-made click net"),
    ):
        with pytest.raises(ValueError, match=why):
            IHAS(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"pretrained": 50, "steps": 50}, {"temperature": 0.001}, {"clusters": 200}])
def test_settings_that_cannot_work_are_errors_at_once(wrong: Any) -> None:
    """No lesson would be taken; the coldest temperature is 0.01; kinds are written as bytes."""
    with pytest.raises(ValueError):
        IHAS(**wrong)


# Populations

KNOWN = (
    "--method.steps=3000",
    "--method.pretrained=800",
    "--method.learner.every=2",
    "--method.learner.learning_rate=0.003",
    "--method.training.batch=512",
    "--method.training.learning_rate=0.003",
    "--method.sparsity=0.3",
    "--method.polarization=0.3",
    "--rivals=[]",
    "--seeds=[0]",
    "--tuning.configurations=0",
)


def values(root: Path, name: str) -> dict[str, NDArray[np.int64]]:
    """A field's ids by split, in the order of rows."""
    found = {}
    for split in ("train", "valid", "test"):
        parts = sorted((root / f"prepare/split={split}").glob("part-*.parquet"))
        found[split] = np.concatenate([pq.read_table(part)[name].to_numpy() for part in parts])
    return found


def population(root: Path, planted: PlantedPopulations) -> dict[str, NDArray[np.int64]]:
    """Each row's population, by split. An id is the value of the telling field that occurs as often."""
    known = values(root, planted.telling)
    ids, counts = np.unique(np.concatenate([*known.values()]), return_counts=True)
    column = planted.values[:, CATEGORIES.index(planted.telling)]
    value_by_count = {int((column == value).sum()): value for value in range(16)}
    assert len(value_by_count) == 16 == len(ids), "no two values occur equally often"
    law = {int(one): int(value_by_count[int(count)] >= 8) for one, count in zip(ids, counts, strict=True)}
    return {split: np.array([law[int(one)] for one in column]) for split, column in known.items()}


@pytest.mark.long
@pytest.mark.ray
def test_two_populations_are_told_apart(tmp_path: Path) -> None:
    root, planted = tmp_path / "run", PlantedPopulations()
    finish("ihas", root, "--dataset=planted_populations", *KNOWN)
    true, own = population(root, planted), dict[int, int]()
    for split in ("train", "valid"):
        kind = pq.read_table(root / f"derive/kinds-{split}.parquet")["kind"].to_numpy()
        assert adjusted_rand_score(true[split], kind) >= 0.9
        own = {part: int(true[split][kind == part].mean() > 0.5) for part in (0, 1)}
    assert sorted(own.values()) == [0, 1]
    told = report(root)
    clusters = next(one for one in told["models"].values() if len(one["parts"]) == 2)
    dims = [{name: len(chosen) for name, chosen in part.items()} for part in clusters["parts"]]
    for part, law in own.items():
        pairs = [sum(dims[part][field] for field in pair) for pair in planted.pairs]
        assert pairs[law] > pairs[1 - law], "each keeps more of its own pair's fields than of the other's"
        assert all(dims[part][field] < 16 for field in planted.noise)
        useful = np.mean([dims[part][field] for field in planted.pairs[law]])
        assert np.mean([dims[part][field] for field in planted.noise]) < useful
    (pair,) = [one for one in told["paired"] if one["a"].endswith("clusters") and one["b"].endswith("single")]
    assert pair["high"] < 0
    assert told["kinds"].startswith("A model for each of 2 kinds of rows helps here: log_loss")


@pytest.mark.long
@pytest.mark.ray
def test_one_population_needs_one_model(tmp_path: Path) -> None:
    root = tmp_path / "run"
    finish("ihas", root, "--dataset=planted_populations:populations=1", *KNOWN)
    told = report(root)
    (pair,) = [one for one in told["paired"] if one["a"].endswith("clusters") and one["b"].endswith("single")]
    assert pair["high"] >= 0 and told["kinds"].startswith("A model for each of 2 kinds of rows does not help")
