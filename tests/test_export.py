"""Bundles of finished runs: whole, equal to the model without nascore, at any number of rows, and from raw rows."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from safetensors.torch import load_file

from components import item_index
from components.export import chosen, export, main
from components.finalists import contenders
from components.folder import Folder
from components.models import opened
from components.programs import TOLERANCE, Unexportable, distance, programs, to_onnx
from components.run import Run
from pipelines.__main__ import main as command
from tests import bundles
from tests.bundles import AUTOTOWER, module_of, script, without_onnx

ALONE = """\
import sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("nascore", "components", "pipelines", "ray"):
            raise ImportError(f"{name} is forbidden here")
sys.meta_path.insert(0, Forbidden())
import os, runpy
folders, sys.argv = sys.argv[1:], ["score.py", "--check"]
for folder in folders:
    os.chdir(folder)
    try:
        runpy.run_path("score.py", run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, folder
assert not [name for name in sys.modules if name.partition(".")[0] == "nascore"]
"""
Runs = Callable[[str], Run]
Bundles = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shop: Any) -> Runs:
    """A finished run of each method, only to be read but for its bundles."""
    made: dict[str, Run] = {}

    def run_of(name: str) -> Run:
        if name not in made:
            made[name] = bundles.run_of(name, tmp_path_factory.mktemp("runs") / name, shop)
        return made[name]

    return run_of


@pytest.fixture(scope="module")
def bundle(runs: Runs) -> Bundles:
    """The folder of a bundle; the same model is exported once."""

    def bundle_of(name: str, model: str = "") -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("components.export.to_onnx", without_onnx)
            return Path(export(runs(name), model).path)

    return bundle_of


FILES = {"card.md", "done.json", "export.json", "golden.safetensors", "model.json", "schema.json", "score.py"}
FILES |= {"vocabulary", "weights.safetensors"}
ITEMS = {"items.safetensors", "items.parquet"}


@pytest.mark.parametrize(
    "name, parts",
    [
        ("autotower", {"user.pt2", "item.pt2"} | ITEMS),
        ("nasrec", {"model.pt2"}),
        ("dnsrec", {"model.pt2"} | ITEMS),
        ("ihas", {"model.pt2", "router.pt2", "router.safetensors"}),
    ],
)
def test_a_bundle_is_whole(bundle: Bundles, runs: Runs, name: str, parts: set[str]) -> None:
    folder, run = bundle(name), runs(name)
    there = {file.name for file in folder.iterdir() if file.suffix not in (".onnx", ".faiss")} - {"index.json"}
    assert there == FILES | parts
    card, one = (folder / "card.md").read_text(), contenders(run)[0]
    told = [
        one.label,
        one.model_id,
        run.schema.split_digest,
        run.schema.protocol,
        "score.py --check",
        torch.__version__.partition("+")[0],
    ]
    report = run.folder.read_json("evaluate/report.json")
    told += [report["verdict"], *(f"{row['value']:.4f}" for row in report["rows"] if row["model"] == one.label)]
    for words in told:
        assert words in card
    assert "ONNX: not converted, as onnxscript is not installed" in card
    assert len(next(iter(load_file(folder / "golden.safetensors").values()))) in (64, run.schema.rows["valid"])
    known = opened(run, one, 0)
    weights = load_file(folder / "weights.safetensors")
    own = {f"{part}.{key}": v for part, module in known.modules.items() for key, v in module.state_dict().items()}
    assert weights.keys() == own.keys() and all(torch.equal(weights[key], own[key]) for key in own)


def test_golden_rows_are_scored_where_nothing_of_ours_can_be_imported(bundle: Bundles) -> None:
    folders = [str(bundle(name)) for name in ("autotower", "nasrec", "dnsrec", "ihas")]
    command = [sys.executable, "-I", "-c", ALONE, *folders]
    done = subprocess.run(command, capture_output=True, text=True, env={}, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout.splitlines()
    assert len(told) == 4 and all(line.startswith("largest difference from the golden outputs: ") for line in told)


@pytest.mark.parametrize(
    "name, model",
    [("autotower", "MIND L"), ("autotower", "ItemKNN"), ("autotower", "Popularity"), ("nasrec", "DNN"), ("dnsrec", "")]
    + [("dnsrec", "GRU4Rec"), ("ihas", "iHAS , gates")],
)
def test_programs_give_what_the_model_gives_for_any_number_of_rows(
    runs: Runs, bundle: Bundles, name: str, model: str
) -> None:
    run = runs(name)
    one = chosen(contenders(run), model)
    folder, known = bundle(name, model), opened(run, one, 0)
    mine, valid = script(folder), run.rows("valid", shown=one.method.shown)
    assert mine.check() <= TOLERANCE
    row_B = torch.arange(valid.rows).flip(0)[:100]
    whole = getattr(known.task, "whole", False)
    for rows in (1, 3, len(row_B)):
        for program, described in mine.schema["programs"].items():
            user_B, item_B, before_B = valid.keys(row_B[:rows]) if run.schema.user else (None, None, None)
            if program == "user":
                batch = valid.user_batch(user_B, before_B.clamp(min=2) if whole and rows == 1 else before_B, whole)
            else:
                batch = valid.item_batch(item_B) if program == "item" else valid.batch(row_B[:rows])
            values = {**{run.schema.user: user_B, run.schema.item: item_B}, **batch.columns}
            with torch.inference_mode():
                golden = known.model(batch)
            golden = {"logit": golden} if torch.is_tensor(golden) else golden
            found = mine.run(program, {one["name"]: values[one["name"]] for one in described["inputs"]})
            assert found and distance(found, {key: golden[key] for key in found}) <= TOLERANCE


def test_a_routed_program_is_the_model_that_each_row_is_sent_to(runs: Runs, bundle: Bundles) -> None:
    run = runs("ihas")
    one = contenders(run)[0]
    assert one.routed and len(one.parts) == 2
    known, mine, valid = opened(run, one, 0), script(bundle("ihas")), run.rows("valid")
    batch = valid.batch(torch.arange(valid.rows))
    found = mine.run("model", dict(batch.columns))["logit"]
    part = mine.run("router", dict(batch.columns))["part"]
    assert set(part.tolist()) == {0, 1}
    assert part.tolist() == (run.folder / "derive").read_table("kinds-valid.parquet")["kind"].to_pylist()
    with torch.inference_mode():
        golden = known.model(batch)
    assert float((found - golden).abs().max()) <= TOLERANCE


def test_a_program_converts_to_onnx_or_says_why_not(runs: Runs, tmp_path: Path) -> None:
    run = runs("nasrec")
    (program,) = programs(opened(run, chosen(contenders(run), "DNN"), 0), run.schema, run.rows("valid"))
    assert "converted; onnxruntime gives the golden outputs to" in to_onnx(program, str(tmp_path / "model.onnx"))
    run = runs("ihas")
    model, _ = programs(opened(run, contenders(run)[0], 0), run.schema, run.rows("valid"))
    if any(column.kind == "number" for column in run.schema.columns):
        with pytest.raises(Unexportable, match="frexp"):
            to_onnx(model, str(tmp_path / "other.onnx"))


# From raw rows


def test_raw_users_and_items_are_scored_as_prepared_ones(runs: Runs, bundle: Bundles, shop: Any) -> None:
    run, folder = runs("autotower"), bundle("autotower")
    mine, valid = script(folder), run.rows("valid")
    keys = (run.folder / "prepare").read_table("vocabulary/article.parquet")
    raw = dict(zip(keys["id"].to_pylist(), keys["value"].to_pylist(), strict=True))
    buyers = (run.folder / "prepare").read_table("vocabulary/buyer.parquet")
    user_B, _, before_B = valid.keys(torch.arange(40))
    batch = valid.user_batch(user_B, before_B)
    first = {row["buyer"]: row["country"] for row in sorted(shop.bought(), key=lambda row: -row["at"])}
    names = [buyers["value"][int(user) - 1].as_py() for user in user_B]
    past = [
        [raw[int(item)] for item in valid.history.item[valid.history.at[user] :][:before]]
        for user, before in zip(user_B.tolist(), before_B.tolist(), strict=True)
    ]
    rows = pa.table({"buyer": names, "country": [first[name] for name in names], "history": past})
    inputs = mine.inputs("user", rows)
    assert inputs.keys() <= {"country", *batch.columns}
    for name in inputs.keys() - {"country"}:
        assert torch.equal(inputs[name], batch[name].to(inputs[name].dtype)), name
    articles = pa.Table.from_pylist(shop.articles).filter(
        pa.array([a["article"] in raw.values() for a in shop.articles])
    )
    shelves = {row["article"]: row["shelf"] for row in sorted(shop.bought(), key=lambda row: -row["at"])}
    articles = articles.append_column("shelf", pa.array([shelves[one.as_py()] for one in articles["article"]]))
    ids = {value: number for number, value in raw.items()}
    golden = valid.item_batch(torch.tensor([ids[one.as_py()] for one in articles["article"]], dtype=torch.int32))
    for name, value in mine.inputs("item", articles).items():
        assert name == "shelf" or torch.equal(value, golden[name]), name
    best = mine.best(rows, 5, unseen=True).to_pylist()
    vector_IO = load_file(folder / "items.safetensors")["vector"]
    score_BI = mine.run("user", inputs)["user"] @ vector_IO.T
    for row, score_I in zip(best, score_BI, strict=True):
        ranked = [raw[i] for i in score_I.argsort(descending=True).tolist() if i and raw[i] not in row["history"]]
        assert row["items"] == ranked[:5]


def test_unknown_values_have_id_0(bundle: Bundles) -> None:
    mine = script(bundle("autotower"))
    rows = pa.table({"article": [103, 999], "category": ["none such", None], "shelf": [1, -7], "weight": [None, 9e9]})
    rows = rows.append_column("tags", pa.array([["a", "none such"], None]))
    found = mine.inputs("item", rows)
    assert found["article"].tolist()[1] == 0 < found["article"].tolist()[0]
    assert found["category"].tolist() == [0, 0] and found["shelf"].tolist()[1] == 0
    assert found["weight"].tolist() == [0, 4] and found["tags"][1].tolist() == [0, 0, 0] and found["tags"][0, 1] == 0
    assert mine.run("item", found)["item"].isfinite().all()


def test_clicks_are_scored_from_a_csv_file(
    bundle: Bundles, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = runs("nasrec"), bundle("nasrec")
    table = next(run.raw_data().rows()).slice(0, 50)
    text = pa.table({name: table[name].cast(pa.string()) for name in table.column_names})
    pyarrow.csv.write_csv(text, tmp_path / "rows.csv")
    monkeypatch.setattr(sys, "argv", ["score.py", str(tmp_path / "rows.csv"), f"--to={tmp_path}/scores.csv"])
    assert module_of(folder).main() == 0
    scored = pyarrow.csv.read_csv(tmp_path / "scores.csv")
    mine = script(folder)
    logit = mine.run("model", mine.inputs("model", table))["logit"]
    np.testing.assert_allclose(scored["logit"].to_numpy(), logit.numpy(), atol=1e-4)
    np.testing.assert_allclose(scored["score"].to_numpy(), logit.sigmoid().numpy(), atol=1e-4)


# The index


@pytest.mark.parametrize("kind, least", [("flat", 1.0), ("hnsw", 0.95), ("ivf", 0.3)])
def test_an_index_is_compared_with_exact_search(kind: str, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vector_IO, query_QKO = torch.randn(2_001, 16), torch.randn(90, 2, 16)
    monkeypatch.setattr(item_index, "FLAT", 50_000 if kind == "flat" else 10)
    monkeypatch.setattr(item_index, "GRAPH", 50_000 if kind == "hnsw" else 20)
    index, told = item_index.build(vector_IO)
    assert told.startswith(kind)
    for query in (query_QKO, query_QKO[:, 0]):
        known = item_index.searched(index, told, vector_IO, query)
        assert (
            known.items == 2_000
            and known.queries == 90
            and set(known.recall) == {"recall@1", "recall@10", "recall@100"}
        )
        _, ids = index.search(query.reshape(-1, 16).numpy(), 10)
        exact = (query.reshape(-1, 16) @ vector_IO[1:].T).topk(10).indices + 1
        shared = [len({*a} & {*b}) / 10 for a, b in zip(ids.tolist(), exact.tolist(), strict=True)]
        assert known.recall["recall@10"] >= least - 0.02 and np.mean(shared) >= least
        if query.dim() == 2:
            assert known.recall["recall@10"] == pytest.approx(np.mean(shared), abs=1e-6)


def test_a_bundle_says_how_its_index_did_or_that_it_has_none(bundle: Bundles) -> None:
    for name in ("autotower", "dnsrec"):
        folder = bundle(name)
        card = (folder / "card.md").read_text()
        if importlib.util.find_spec("faiss") is None:
            assert "no FAISS index: faiss is not installed" in card and not (folder / "items.faiss").exists()
            continue
        assert json.loads((folder / "index.json").read_text())["recall"]["recall@10"] == 1.0
        assert "FAISS, flat" in card and "recall@10 1.0000" in card
        vectors, mine = load_file(folder / "items.safetensors")["vector"], script(folder)
        import faiss

        index = faiss.read_index(str(folder / "items.faiss"))
        assert index.ntotal == len(vectors) - 1 == len(mine.items)
        rows = pa.table({"buyer": ["u1", "u2"], "country": ["FR", None], "history": [[110, 111], []]})
        exact, by_index = (mine.best(rows, 4, index=how) for how in (False, True))
        assert exact["items"] == by_index["items"]


# What can go wrong


def test_a_killed_export_is_not_taken_for_whole(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, write = runs("nasrec"), Folder.write_text

    def dies(folder: Folder, name: str, text: str) -> None:
        if name == "card.md":
            raise KeyboardInterrupt
        write(folder, name, text)

    to = str(tmp_path / "bundle")
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(Folder, "write_text", dies)
        export(run, "DNN", to=to)
    assert not Folder(to).done and (tmp_path / "bundle/model.pt2").exists()
    (tmp_path / "bundle/stale").write_text("")
    assert main([run.root, "--model=DNN", f"--to={to}"]) == 0
    assert Folder(to).done and not (tmp_path / "bundle/stale").exists()
    before = (tmp_path / "bundle/card.md").stat().st_mtime_ns
    capsys.readouterr()
    assert command(["export", run.root, "--model=DNN", f"--to={to}"]) == 0
    assert capsys.readouterr().out == f"done before\nBundle: {to}\n"
    assert (tmp_path / "bundle/card.md").stat().st_mtime_ns == before


def test_what_cannot_be_exported_is_told_in_one_line(
    runs: Runs, run_with: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, unfinished, other = runs("nasrec"), run_with(AUTOTOWER), tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("keep me")

    def told(*arguments: str) -> Iterator[str]:
        yield str(main([*arguments]))
        yield capsys.readouterr().err

    for arguments, words in (
        ([str(tmp_path / "nowhere")], "holds no run.json"),
        ([unfinished.root], "is not finished: retrain is not done"),
        ([run.root, "--model=none such"], "--model 'none such': the run compares NASRec"),
        ([run.root, "--seed=7"], "--seed 7: the run's seeds are 0"),
        ([run.root, f"--to={other}"], "holds other files; choose another --to"),
    ):
        code, line = told(*arguments)
        assert code == "2" and words in line and line.count("\n") == 1
    assert (other / "mine.txt").read_text() == "keep me"
    (run.folder / "retrain").fs.mv(f"{run.folder.path}/evaluate/done.json", f"{run.folder.path}/evaluate/was.json")
    try:
        assert "evaluate is not done" in [*told(run.root)][1]
    finally:
        run.folder.fs.mv(f"{run.folder.path}/evaluate/was.json", f"{run.folder.path}/evaluate/done.json")


def test_a_program_that_gives_something_else_is_refused(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs("nasrec")
    known = opened(run, chosen(contenders(run), "DNN"), 0)
    calls = []

    def drifts(batch: Any) -> torch.Tensor:
        calls.append(1)
        return known.model(batch) + 1e-3 * len(calls)

    with pytest.raises(Unexportable, match="the program 'model' is 0.001 from the model, more than 1e-05"):
        programs(replace(known, model=drifts), run.schema, run.rows("valid"))


def test_vectors_too_large_for_files_are_refused_before_a_file_is_written(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, to = runs("autotower"), tmp_path / "bundle"
    items = run.schema.items
    monkeypatch.setattr(item_index, "LARGEST", items * 40 * 4 / 2**30)
    with pytest.raises(ValueError, match=f"has {items} numbers here: those of {items} items take .* another --model"):
        export(run, "ItemKNN", to=str(to))
    assert not to.exists() or not list(to.iterdir())
