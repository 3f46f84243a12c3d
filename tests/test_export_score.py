"""Raw values to ids as `score.py` looks them up, against what gave the ids; and programs that read a past by hand."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from components import vocabularies
from components.folder import Folder
from components.score import Bundle, Vocabulary, read
from nascore import tables
from nascore.tables import binned, bins_table


def kept(folder: Path, parts: Any) -> Vocabulary:
    """Written as `prepare` does, read as `score.py` does."""
    vocabularies.keep(Folder(str(folder)), "one", parts)
    return Vocabulary(pq.read_table(folder / "vocabulary/one.parquet"))


@pytest.mark.parametrize("kind", [pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.date32(), pa.bool_()])
@pytest.mark.parametrize("size", [2, 1_000])
def test_values_of_any_type_have_their_ids(
    kind: pa.DataType, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "VALUES_A_TABLE", size)
    values = pa.array([3, 1, None, 2, 3, 0, 1], pa.int32())
    values = values.cast(pa.bool_()) if pa.types.is_boolean(kind) else values.cast(kind)
    vocabulary = tables.Vocabulary()
    golden = vocabulary.encode(values).tolist()
    mine = kept(tmp_path, vocabulary.tables())
    assert mine.ids(values).tolist() == golden and max(golden) == len(vocabulary) - 1
    assert mine.ids(pa.nulls(2, kind)).tolist() == [0, 0]
    if pa.types.is_integer(kind):
        assert mine.ids(pa.array(["3", "none", None])).tolist() == [1, 0, 0], "text that is no integer is unknown"
        assert mine.ids(pa.array([1.0, None, 77.0])).tolist() == [2, 0, 0]


def test_one_odd_value_does_not_make_the_others_unknown(tmp_path: Path) -> None:
    """Such as the NaN by which a column of whole numbers becomes one of others, or a word among numbers."""
    whole, other, text = tables.Vocabulary(), tables.Vocabulary(), tables.Vocabulary()
    whole.encode(pa.array([7, 8, 9]))
    other.encode(pa.array([7.0, 0.5]))
    text.encode(pa.array(["7", "x"]))
    mine = kept(tmp_path, whole.tables())
    far = [float("nan"), float("inf"), -1e300, 8.5]
    assert mine.ids(pa.array([7.0, *far, 9.0])).tolist() == [1, 0, 0, 0, 0, 3]
    assert mine.ids(pa.array(["7", "7.0", "1e999", "", "x", "9" * 40, "09"])).tolist() == [1, 0, 0, 0, 0, 0, 3]
    assert mine.ids(pa.array(["8", "x", None]).dictionary_encode()).tolist() == [2, 0, 0]
    assert mine.ids(pa.array([7, 255], pa.uint8())).tolist() == [1, 0]
    assert kept(tmp_path, other.tables()).ids(pa.array(["7", ".5", "5e-1", "x"])).tolist() == [1, 2, 2, 0]
    assert kept(tmp_path, other.tables()).ids(pa.array([7, 8])).tolist() == [1, 0]
    assert kept(tmp_path, text.tables()).ids(pa.array([7, 8])).tolist() == [1, 0]
    with pytest.raises(pa.ArrowNotImplementedError):
        mine.ids(pa.array([[7]]))


@pytest.mark.parametrize("most", [0, 3, 50])
def test_rare_values_are_unknown_and_late_ones_share_ids(most: int, tmp_path: Path) -> None:
    met = pa.array([f"v{n}" for n in (5, 1, 2, 8, 9, 3)])
    vocabulary = tables.Vocabulary(most)
    vocabulary.encode(met)
    new = np.array([0, 0, 1, 2, 3, 0, 4][: len(vocabulary)], np.int32)
    mine = kept(tmp_path, vocabulary.tables(new))
    later = pa.array([*(f"v{n}" for n in range(40)), None])
    assert mine.ids(later).tolist() == new[vocabulary.encode(later, grow=False)].tolist()
    assert mine.unknown == ("crc32" if most == 3 else "0")
    if most == 3:
        assert mine.ids(pa.array(["x"])).tolist() == [new[zlib.crc32(b"'x'") % 3 + 1]]
        assert len(mine.id_V) == 3, "also those that are unknown"
    else:
        assert len(mine.id_V) == int((new > 0).sum())


def test_numbers_have_their_bins(tmp_path: Path) -> None:
    values: list[object] = [3.0, None, 1.0, 2.0, 2.0, float("nan"), 10.0, 4.0]
    for bins in (1, 3):
        mine = kept(tmp_path, [bins_table(values, bins)])
        assert mine.ids(pa.array(values, pa.float64())).tolist() == binned(values, bins).tolist()
        assert mine.ids(pa.array([-1e9, 1e9, float("inf"), None])).tolist() == [1, bins, 0, 0]
        assert mine.ids(pa.array(["2", None])).tolist() == [*binned([*values, 2.0], bins)[3:4], 0]
    assert kept(tmp_path, [bins_table([None, None], 3)]).ids(pa.array([1.0])).tolist() == [0]


def test_a_vocabulary_without_values_knows_nothing(tmp_path: Path) -> None:
    vocabulary = tables.Vocabulary()
    vocabulary.encode(pa.nulls(3))
    assert kept(tmp_path, vocabulary.tables()).ids(pa.array(["a", None])).tolist() == [0, 0]


class Echo(nn.Module):
    """Sums what it reads, each past by its places."""

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        place_T = torch.arange(1, inputs["history"].shape[1] + 1)
        past_B = (inputs["history"] * place_T).sum(1)
        tags_B = inputs["history/tags"].sum((1, 2))
        return {"user": torch.stack([past_B, tags_B, inputs["town"]], 1).float()}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Four items of ids 1 to 4, pasts of three events, and the program above."""
    for name, values in (("item", ["a", "b", "c", "d"]), ("town", ["x", "y"])):
        vocabulary = tables.Vocabulary()
        vocabulary.encode(pa.array(values))
        vocabularies.keep(Folder(str(tmp_path)), name, vocabulary.tables())
    inputs = {
        "history": torch.zeros(3, 3, dtype=torch.int32),
        "history/tags": torch.zeros(3, 3, 2, dtype=torch.int32),
        "town": torch.zeros(3, dtype=torch.int32),
    }
    rows = torch.export.Dim("rows")
    program = torch.export.export(Echo(), (inputs,), dynamic_shapes=({name: {0: rows} for name in inputs},))
    torch.export.save(program, tmp_path / "model.pt2")
    wanted = [
        {"name": "history", "kind": "history", "of": "item", "shape": ["rows", 3]},
        {"name": "history/tags", "kind": "history", "of": "tags", "shape": ["rows", 3, 2]},
        {"name": "town", "kind": "category", "shape": ["rows"]},
    ]
    schema = {
        "kind": "next_item",
        "item": "item",
        "programs": {"model": {"file": "model.pt2", "inputs": wanted}},
        "vocabulary": {name: f"vocabulary/{name}.parquet" for name in ("item", "town")},
    }
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    tags = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 0, 4, 4, 5, 0], pa.int32()), 2)
    pq.write_table(pa.table({"item": ["a", "b", "c", "d"], "feature/tags": tags}), tmp_path / "items.parquet")
    vector = torch.tensor([[9.0, 9, 9], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]])
    save_file({"vector": vector}, tmp_path / "items.safetensors")
    out = Echo()({name: value + 1 for name, value in inputs.items()})["user"]
    golden = {f"model/in/{name}": value + 1 for name, value in inputs.items()} | {"model/out/user": out}
    save_file(golden, tmp_path / "golden.safetensors")
    return Bundle(tmp_path)


def test_a_past_is_the_last_known_events(bundle: Bundle, tmp_path: Path) -> None:
    past = [["a", "b", "c", "d"], ["a", "gone", "b"], [], None, ["d"]]
    rows = pa.table({"history": past, "town": ["x", "z", None, "y", "x"]})
    golden = {
        "history": [[2, 3, 4], [0, 1, 2], [0, 0, 0], [0, 0, 0], [0, 0, 4]],
        "history/tags": [[[3, 0], [4, 4], [5, 0]], [[0, 0], [1, 2], [3, 0]], *[[[0, 0]] * 3] * 2]
        + [[[0, 0], [0, 0], [5, 0]]],
        "town": [1, 0, 0, 2, 1],
    }
    assert {name: value.tolist() for name, value in bundle.inputs("model", rows).items()} == golden
    user = torch.tensor([[20.0, 16, 1], [8, 6, 0], [0, 0, 0], [0, 0, 2], [12, 5, 1]])
    assert torch.equal(bundle.run("model", bundle.inputs("model", rows))["user"], user)
    text = pa.table({"history": ["|".join(one or []) for one in past], "town": ["x", "z", "", "y", "x"]})
    pyarrow.csv.write_csv(text, tmp_path / "rows.csv")
    found = bundle.inputs("model", read(str(tmp_path / "rows.csv")))
    assert {name: value.tolist() for name, value in found.items()} == golden
    assert bundle.vectors(rows, "user")["vector"].to_pylist() == user.tolist()
    with pytest.raises(SystemExit, match="no column 'town'; there are: history"):
        bundle.inputs("model", rows.select(["history"]))


def test_whole_numbers_are_read_as_in_training(bundle: Bundle) -> None:
    bundle.schema["programs"]["model"]["inputs"] = [{"name": "cents", "kind": "number", "shape": ["rows"]}]
    for kind in (pa.int64(), pa.float64(), pa.string()):
        cents = pa.array([1, 20_000_001, None]).cast(kind)
        value = bundle.inputs("model", pa.table({"cents": cents}))["cents"]
        assert value.dtype == torch.float32 and value[:2].tolist() == [1, 20_000_000] and value[2].isnan()


def test_the_best_items_may_leave_out_those_of_the_past(bundle: Bundle) -> None:
    rows = pa.table({"history": [["a", "b", "c", "d"], ["d"], ["b", "gone"]], "town": ["x", "x", "y"]})
    best = bundle.best(rows, 2).to_pydict()
    assert best["items"] == [["a", "d"], ["a", "d"], ["a", "d"]] and best["scores"][0] == [20.0, 18.0]
    best = bundle.best(rows, 2, unseen=True).to_pydict()
    assert best["items"] == [[], ["a", "b"], ["a", "d"]]
    assert best["scores"][1] == [12.0, 5.0]


def test_golden_rows_are_compared_to_1e_5(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.check() == 0.0
    bundle.program("model")
    run = bundle.loaded["model"]
    bundle.loaded["model"] = lambda inputs: {"user": run(inputs)["user"] + 1e-3}
    assert bundle.check() > 1e-5
    bundle.loaded["model"] = lambda inputs: {"user": run(inputs)["user"] * float("nan")}
    assert bundle.check() == float("inf")
