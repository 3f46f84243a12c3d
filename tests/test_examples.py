"""Rows that stand by themselves, prepared and read again: against plain loops over the raw rows."""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components import examples, prepare, spills
from components.run import Run
from nascore.datasets import DataError, Dataset, Feature, Layout
from nascore.datasets.planted_clicks import PlantedClicks
from nascore.methods.dnn import Dnn
from nascore.methods.popularity import Popularity
from nascore.protocols import stratified
from nascore.rows import Data
from nascore.schema import SPLITS
from nascore.tables import Vocabulary

PROTOCOLS = ("stratified", "temporal")
FEATURES = (
    Feature("place", kind="number"),
    Feature("price", kind="number"),
    Feature("site", fewest=4),
    Feature("user", most=6),
    Feature("both", fewest=3, most=9),
    Feature("hour"),
)
Row = dict[str, Any]
Prepare = Callable[..., Run]


def drawn(rows: int = 437, seed: int = 0) -> list[Row]:
    """Rows in file order; times go up and down, values are skewed and some come late."""
    rng = np.random.default_rng(seed)
    return [
        {
            "at": int(rng.integers(0, 90)) * 10,
            "click": int(rng.random() < 0.3),
            "place": float(place),
            "price": None if rng.random() < 0.2 else float(np.float32(rng.normal())),
            "site": None if rng.random() < 0.1 else f"s{int(rng.exponential(12))}",
            "user": int(rng.integers(100, 130)),
            "both": None if rng.random() < 0.1 else f"b{int(rng.exponential(8))}",
            "hour": None if place < 200 else place // 100,
        }
        for place in range(rows)
    ]


class Rows(Dataset):
    """Rows from memory, in tables of `size`."""

    protocols: ClassVar[tuple[str, ...]] = (*PROTOCOLS, "user_temporal")

    def __init__(self, rows: list[Row], size: int = 1_000, stamped: bool = True, features: Any = FEATURES) -> None:
        super().__init__("")
        self.known, self.size = rows, size
        self.about = Layout("", "", "at" if stamped else "", features, label="click")

    def layout(self) -> Layout:
        return self.about

    def rows(self) -> Iterator[pa.Table]:
        names = {"price": pa.float64(), "site": pa.string(), "both": pa.string(), "hour": pa.int64()}
        for first in range(0, len(self.known), self.size):
            some = self.known[first : first + self.size]
            yield pa.table({name: pa.array([row[name] for row in some], names.get(name)) for name in drawn(1)[0]})

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        return {}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Prepares a dataset of the tests' own."""

    def run_of(dataset: Dataset, protocol: str = "temporal") -> Run:
        root = str(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        run = Run(root=root, dataset="rows", raw="", methods=(Dnn(),), protocol=protocol)
        with monkeypatch.context() as own:
            own.setattr(Run, "raw_data", lambda self: dataset)
            prepare.main(run)
        return run

    return run_of


def stored(run: Run, split: str) -> list[Row]:
    rows: list[Row] = pq.read_table(f"{run.root}/prepare/split={split}").to_pylist()
    return rows


def splits_of(run: Run) -> dict[int, str]:
    """The split of each row by its place in the file."""
    found = [(int(row["place"]), split) for split in SPLITS for row in stored(run, split)]
    assert len(dict(found)) == len(found), "no row stands in two splits"
    return dict(found)


def ids(rows: list[Row], feature: Feature, split: dict[int, str]) -> list[int]:
    """The id of each row's value: numbered as met, shared once there are too many, 0 where too few train."""
    met: dict[Any, int] = {}
    first = []
    for row in rows:
        value = row[feature.name]
        if value is not None and value not in met and not (feature.most and len(met) == feature.most):
            met[value] = len(met) + 1
        shared = zlib.crc32(repr(value).encode()) % feature.most + 1 if feature.most else None
        first.append(0 if value is None else met.get(value, shared))
    counts = Counter(one for one, row in zip(first, rows, strict=True) if split[int(row["place"])] == "train")
    kept = sorted(one for one in set(first) if one and counts[one] >= feature.fewest)
    new = {one: place for place, one in enumerate(kept, 1)}
    return [new.get(one, 0) for one in first]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_row_is_in_one_split_with_its_ids(prepared: Prepare, protocol: str) -> None:
    rows = drawn()
    run = prepared(Rows(rows), protocol)
    split = splits_of(run)
    assert sorted(split) == list(range(len(rows)))
    assert run.schema.rows == dict(Counter(split.values())) and len(run.schema.rows) == 3
    golden = {feature.name: ids(rows, feature, split) for feature in FEATURES if feature.kind == "category"}
    for name in SPLITS:
        for row in stored(run, name):
            place = int(row["place"])
            wanted = rows[place]
            assert (row["label"], row["timestamp"]) == (wanted["click"], wanted["at"])
            assert math.isnan(row["price"]) if wanted["price"] is None else row["price"] == wanted["price"]
            assert {column: row[column] for column in golden} == {c: found[place] for c, found in golden.items()}
    columns = {column.name: (column.side, column.kind, column.size) for column in run.schema.columns}
    sizes = {name: ("row", "category", max(found) + 1) for name, found in golden.items()}
    assert columns == {"place": ("row", "number", 0), "price": ("row", "number", 0), **sizes}
    assert list(columns) == [feature.name for feature in FEATURES]
    assert (run.schema.user, run.schema.item, run.schema.users, run.schema.history) == ("", "", 0, ())
    sites = Counter(row["site"] for row in rows)
    rare = [row for row in rows if row["site"] and not golden["site"][int(row["place"])]]
    assert len({row["site"] for row in rare}) > 5 and any(sites[row["site"]] >= 4 for row in rare), "too few that train"
    assert sizes["user"][2] == 7 and len({row["user"] for row in rows}) > 20, "no more ids than were allowed"


def test_values_that_never_train_are_unknown(prepared: Prepare) -> None:
    rows = [{**row, "hour": 5 if row["at"] >= 850 else 7} for row in drawn()]
    run = prepared(Rows(rows))
    met = {split: [row["hour"] for row in stored(run, split)] for split in SPLITS}
    assert set(met["train"]) == {1} and run.schema["hour"].size == 2
    late = [row["timestamp"] >= 850 for row in stored(run, "test")]
    assert met["test"] == [0 if after else 1 for after in late] and 0 < sum(late) < len(late)


def test_temporal_is_cut_in_time(prepared: Prepare) -> None:
    rows = drawn()
    split = splits_of(prepared(Rows(rows)))
    ordered = sorted(row["at"] for row in rows)
    dates = ordered[437 * 8 // 10], ordered[437 * 9 // 10]
    for row in rows:
        assert split[int(row["place"])] == SPLITS[(row["at"] >= dates[0]) + (row["at"] >= dates[1])]
    plain = splits_of(prepared(Rows(rows, stamped=False)))
    golden = ["train"] * 349 + ["valid"] * 44 + ["test"] * 44
    assert [plain[place] for place in range(437)] == golden, "without a time, the order of the file"


def assert_equal_rates(rows: list[Row], split: dict[int, str]) -> None:
    of = {name: [row["click"] for row in rows if split[int(row["place"])] == name] for name in SPLITS}
    positive = sum(row["click"] for row in rows)
    for label, total in ((1, positive), (0, len(rows) - positive)):
        counts = {name: own.count(label) for name, own in of.items()}
        for name in ("valid", "test"):
            assert counts[name] in (total // 10, -(-total // 10)), "one of every ten rows of a label"
        assert abs(counts["train"] - 0.8 * total) <= 2
    for own in of.values():
        assert abs(sum(own) - len(own) * positive / len(rows)) <= 2


def test_stratified_rates_are_equal(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn()
    split = splits_of(prepared(Rows(rows), "stratified"))
    assert_equal_rates(rows, split)
    for label in (0, 1):
        own = [split[int(row["place"])] for row in rows if row["click"] == label]
        for first in range(0, len(own) - 9, 10):
            assert Counter(own[first : first + 10]) == {"train": 8, "valid": 1, "test": 1}
        assert len({own[first : first + 10].index("test") for first in range(0, len(own) - 9, 10)}) > 4, "at random"
    monkeypatch.setattr(stratified, "BLOCKS", 2)
    few = [splits_of(prepared(Rows(rows), "stratified"))]
    monkeypatch.setattr(examples, "CHUNK", 13)
    few.append(splits_of(prepared(Rows(rows), "stratified")))
    assert few[0] == few[1]
    assert_equal_rates(rows, few[0])


def files(run: Run) -> dict[str, bytes]:
    found = sorted(Path(run.root, "prepare").rglob("*"))
    return {
        str(one.relative_to(run.root)): one.read_bytes() for one in found if one.is_file() and one.name != "done.json"
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files_hang_on_the_rows_alone(prepared: Prepare, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
    wanted = files(prepared(Rows(drawn()), protocol))
    assert len(wanted) == 3 + 4 + 2, "rows, vocabularies, statistics and schema"
    assert files(prepared(Rows(drawn()), protocol)) == wanted
    assert files(prepared(Rows(drawn(), size=7), protocol)) == wanted, "in whatever tables they come"
    monkeypatch.setattr(examples, "CHUNK", 50)
    assert files(prepared(Rows(drawn(), size=64), protocol)) == wanted, "and in whatever chunks they are walked"


def test_small_buckets_hold_the_same_rows(prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepared(Rows(drawn()))
    monkeypatch.setattr(spills, "BUCKET_BYTES", 60 * 36)
    parts = prepared(Rows(drawn()))
    assert parts.schema == whole.schema
    for split in SPLITS:
        assert len(list(Path(parts.root, f"prepare/split={split}").iterdir())) > 4
        assert Counter(map(repr, stored(parts, split))) == Counter(map(repr, stored(whole, split)))
    places = [row["place"] for row in stored(whole, "train")]
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.2, "rows lie in random order"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_planted_clicks_come_through_whole(clicks: Run, tmp_path: Path, protocol: str) -> None:
    run = clicks
    if protocol != clicks.protocol:
        run = replace(clicks, root=str(tmp_path), protocol=protocol)
        prepare.main(run)
    raw = PlantedClicks(rows=2_000)
    labels, met = raw.clicks(), []
    for split in SPLITS:
        for row in stored(run, split):
            met.append(row["timestamp"])
            assert row["label"] == labels[row["timestamp"]]
            assert row["number_1"] == np.float32(raw.numbers[row["timestamp"], 1])
    assert sorted(met) == list(range(2_000)), "without a timestamp, rows are told apart by their place"
    statistics = (run.folder / "prepare").read_json("statistics.json")
    positive = {split: sum(row["label"] for row in stored(run, split)) for split in SPLITS}
    assert statistics == {"rows": 2_000, "positive_in": positive, "bad_rows": {}}
    assert sum(positive.values()) == labels.sum()


def test_digests_change_with_the_data(prepared: Prepare) -> None:
    base = prepared(Rows(drawn())).schema
    assert set(base.vocabulary_digests) == {"site", "user", "both", "hour"}

    def changed(**values: Any) -> tuple[bool, set[str]]:
        rows = drawn()
        rows[5] |= values
        schema = prepared(Rows(rows)).schema
        known = base.vocabulary_digests.items()
        return schema.split_digest != base.split_digest, {k for k, v in known if schema.vocabulary_digests[k] != v}

    assert changed() == (False, set())
    assert changed(click=1 - drawn()[5]["click"]) == (True, set())
    assert changed(price=99.0) == (True, set())
    assert changed(at=5_000)[0]
    assert changed(site="new") == (True, {"site"})
    fewer = tuple(replace(one, fewest=5) if one.name == "site" else one for one in FEATURES)
    other = prepared(Rows(drawn(), features=fewer)).schema
    assert other.split_digest == base.split_digest
    assert other.vocabulary_digests["site"] != base.vocabulary_digests["site"], "which ids there are changes too"
    assert prepared(Rows(drawn()), "stratified").schema.split_digest != base.split_digest


@pytest.mark.parametrize(
    "dataset, why",
    [
        (Rows([]), "holds no usable row"),
        (Rows([{**row, "click": 0} for row in drawn(30)]), "all 30 labels are 0; nothing to learn"),
        (Rows([{**row, "click": 1} for row in drawn(30)]), "all 30 labels are 1; nothing to learn"),
        (Rows([{**row, "at": 3} for row in drawn(30)]), "30 rows under protocol temporal leave train and valid empty"),
        (Rows(drawn(), features=(Feature("site", kind="set"),)), "feature 'site': rows that stand by themselves have"),
        (Rows(drawn(), features=(Feature("price", kind="number", bins=3),)), "feature 'price': rows that stand by"),
        (Rows(drawn(), features=(Feature("site", side="item"),)), "feature 'site': rows that stand by themselves"),
    ],
)
def test_what_cannot_be_learned_from_is_an_error(prepared: Prepare, dataset: Rows, why: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=why):
        prepared(dataset)
    assert not list(tmp_path.rglob("schema.json")) and not list(tmp_path.rglob("done.json"))


def test_protocols_and_methods_are_asked_for_the_rows_they_take(
    shop: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    users = Run(root=str(tmp_path), dataset="parquet", raw=shop.raw, methods=(Popularity(),), budgets=("",))
    users.check_data()
    with pytest.raises(DataError, match="rows of users: --protocol must be user_temporal or global_temporal or a"):
        replace(users, protocol="stratified").check()
    with pytest.raises(DataError, match="dnn learns from rows that stand by themselves, but .* holds rows of users"):
        replace(users, methods=(Popularity(), Dnn())).check()
    with pytest.raises(DataError, match="planted_clicks has no protocol 'user_temporal'"):
        replace(users, dataset="planted_clicks", raw="").check()
    monkeypatch.setattr(Run, "raw_data", lambda self: Rows(drawn()))
    alone = replace(users, methods=(Dnn(),), protocol="temporal")
    alone.check_data()
    with pytest.raises(DataError, match="rows that stand by themselves: --protocol must be stratified or temporal"):
        replace(alone, protocol="user_temporal").check()
    with pytest.raises(DataError, match="popularity learns from rows of users, but .* rows that stand by themselves"):
        replace(alone, methods=(Dnn(), Popularity())).check()
    with pytest.raises(DataError, match="popularity learns from rows of users, .*`python -m pipelines` lists"):
        replace(users, dataset="parquet").check()


def test_a_full_vocabulary_shares_its_ids_by_a_hash() -> None:
    vocabulary = Vocabulary(most=3)
    met = vocabulary.encode(pa.array(["a", None, "b", "a"])).tolist()
    assert met == [1, 0, 2, 1] and len(vocabulary) == 3
    values = ["c", "d", "e", None, "f", "a", "d"]
    shared = {value: zlib.crc32(repr(value).encode()) % 3 + 1 for value in "def"}
    golden = [3, shared["d"], shared["e"], 0, shared["f"], 1, shared["d"]]
    assert vocabulary.encode(pa.array(values)).tolist() == golden and len(vocabulary) == 4
    assert vocabulary.encode(pa.chunked_array([["d"], ["c"]]), grow=False).tolist() == [shared["d"], 3]
    assert Vocabulary(most=9).encode(pa.array(["x"]), grow=False).tolist() == [0], "unknown while there is room"


# Reading them again


def batches(data: Data, size: int, steps: int, start: int = 0) -> list[Any]:
    stream = data.batches(size, seed=4, start=start)
    return [next(stream) for _ in range(steps)]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_batches_hold_what_is_stored(prepared: Prepare, mode: Any) -> None:
    run = prepared(Rows(drawn()))
    data = run.rows("train", mode)
    rows = stored(run, "train")
    (epoch,) = batches(data, 10_000, 1)
    assert sorted(epoch.rows.tolist()) == list(range(len(rows))) and not epoch.keys
    for batch in (epoch, data.batch(torch.tensor([5, 0, 5]))):
        assert set(batch.columns) == {feature.name for feature in FEATURES}
        assert batch["price"].dtype == torch.float32 and batch.label is not None
        assert batch.label.tolist() == [rows[index]["label"] for index in batch.rows.tolist()]
        for name in batch.columns:
            np.testing.assert_array_equal(batch[name], [rows[index][name] for index in batch.rows.tolist()])


def test_streamed_rows_are_the_resident_ones(prepared: Prepare) -> None:
    run = prepared(Rows(drawn()))
    resident, streamed = run.rows("train"), Data(f"{run.root}/prepare", "train", mode="streaming", window=70)
    steps = resident.steps_per_epoch(16)
    assert steps == streamed.steps_per_epoch(16) > 15
    for batch in batches(streamed, 16, steps):
        same = resident.batch(batch.rows)
        assert torch.equal(batch.label, same.label)
        assert all(torch.equal(column.nan_to_num(), same[name].nan_to_num()) for name, column in batch.columns.items())
    later = batches(streamed, 16, 3, start=steps + 4)
    assert [one.rows.tolist() for one in later] == [b.rows.tolist() for b in batches(streamed, 16, steps + 7)[-3:]]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_ranks_share_the_rows(prepared: Prepare, mode: Any) -> None:
    run = prepared(Rows(drawn()))
    shares = [batches(run.rows("train", mode, rank, 2), 32, 8) for rank in range(2)]
    met = [[row for batch in share for row in batch.rows.tolist()] for share in shares]
    assert [len(rows) for rows in met] == [128, 128] and len({*met[0], *met[1]}) == 256
    if mode == "resident":
        for one, other, whole in zip(*shares, batches(run.rows("train"), 32, 8), strict=True):
            assert torch.equal(torch.cat([one.label, other.label]), whole.label)
            assert torch.equal(torch.cat([one["site"], other["site"]]), whole["site"])


def test_train_and_valid_can_be_joined(prepared: Prepare) -> None:
    run = prepared(Rows(drawn()))
    train, valid, both = (run.rows(split) for split in ("train", "valid", "train+valid"))
    assert torch.equal(both.packed, torch.cat([train.packed, valid.packed]))
    assert run.rows("train", first=30).rows == 64 < train.rows, "whole row groups"
