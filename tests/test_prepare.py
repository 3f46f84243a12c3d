"""Prepare: rows, histories, entities and digests against plain loops over the raw log, and what must not happen."""

import hashlib
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components import prepare, spills
from components.run import Run
from nascore import plugins
from nascore.datasets import DataError
from nascore.datasets.parquet import Parquet
from nascore.methods.popularity import Popularity
from nascore.methods.sasrec import SASRec
from nascore.protocols import Protocol
from nascore.schema import SPLITS, Schema
from nascore.tables import binned

PROTOCOLS = [name for name in plugins.names("protocols") if not plugins.load("protocols", name).apart]
Prepared = Callable[..., Run]
Row = dict[str, Any]


def ids(values: list[Any]) -> dict[Any, int]:
    """1, 2, … in order of first appearance; null is 0."""
    known: dict[Any, int] = {None: 0}
    for value in values:
        known.setdefault(value, len(known))
    return known


def expected(shop: Any, protocol: str) -> list[Row]:
    """Every bought row with its ids, its split and how many events of its history it may see, in file order."""
    rows = [dict(row) for row in shop.bought()]
    users, items = ids([row["buyer"] for row in rows]), ids([row["article"] for row in rows])
    hours = ids([row["hour"] for row in rows])
    for number, row in enumerate(rows):
        row |= {"user": users[row["buyer"]], "item": items[row["article"]], "row": number}
        row["hour id"] = hours[row["hour"]]
    rule: Protocol = plugins.load("protocols", protocol)()
    ordered = sorted(rows, key=lambda row: (row["user"], row["at"], row["row"]))
    user, at = (np.array([row[name] for row in ordered]) for name in ("user", "at"))
    rule.survey(lambda: iter([(user.astype(np.int32), at)]))
    for place, which in enumerate(rule.split(user.astype(np.int32), at)):
        ordered[place]["split"] = SPLITS[which]
    for place, row in enumerate(ordered):
        own = [other for other in ordered[:place] if other["user"] == row["user"]]
        row["order"] = len(own)
        shown = [other for other in own if other["split"] in rule.history_from[row["split"]]]
        row["before"] = sum(other["at"] < row["at"] or not rule.strictly_earlier for other in shown)
    return rows


def stored(run: Run, split: str) -> list[Row]:
    rows: list[Row] = pq.read_table(f"{run.root}/prepare/split={split}").to_pylist()
    return rows


def entity(run: Run, side: str) -> list[Row]:
    rows: list[Row] = (run.folder / "prepare/entities").read_table(f"{side}.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_row_is_in_its_split_with_what_it_may_see(shop: Any, prepared: Prepared, protocol: str) -> None:
    run, golden = prepared(protocol), expected(shop, protocol)
    least = plugins.load("protocols", protocol).least_before
    for split in SPLITS:
        own = {row["row"]: row for row in golden if row["split"] == split and row["before"] >= least}
        rows = stored(run, split)
        assert len(rows) == len(own) == run.schema.rows[split] > 50
        assert {row["row"] for row in rows} == set(own)
        for row in rows:
            wanted = own[row["row"]]
            assert [row[name] for name in ("user", "item", "timestamp", "before", "hour", "label")] == [
                *(wanted[name] for name in ("user", "item", "at", "before", "hour id")),
                1,
            ]
            price = np.nan if wanted["price"] is None else np.float32(wanted["price"])
            np.testing.assert_equal(np.float32(row["price"]), price)
    before = [row["before"] for row in golden]
    assert max(before) > 6 and before.count(0) > 5


def test_the_protocols_differ_in_what_is_before_a_row(shop: Any) -> None:
    authors, temporal = expected(shop, "authors"), expected(shop, "user_temporal")
    ties = [a["before"] > t["before"] for a, t in zip(authors, temporal, strict=True) if t["split"] == "train"]
    assert any(ties), "the shop must hold rows at the same time, or strictly earlier means nothing"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_history_holds_one_splits_events_in_order(shop: Any, prepared: Prepared, protocol: str) -> None:
    golden = expected(shop, protocol)
    for split in SPLITS:
        table = pq.read_table(f"{prepared(protocol).root}/prepare/history/split={split}")
        own = sorted((row["user"], row["order"], row["item"]) for row in golden if row["split"] == split)
        found = list(zip(*(table[name].to_pylist() for name in ("user", "order", "item")), strict=True))
        assert found == own


def test_entities_hold_ids_sets_bins_and_the_first_row_of_what_stands_in_the_log(shop: Any, prepared: Prepared) -> None:
    run, rows = prepared(), shop.bought()
    by_time = sorted(enumerate(rows), key=lambda numbered: (numbered[1]["at"], numbered[0]))
    for side, key_name, name in (("user", "buyer", "country"), ("item", "article", "shelf")):
        keys = ids([row[key_name] for row in rows])
        first = {row[key_name]: row[name] for _, row in reversed(by_time)}
        coded = ids([first[one] for one in keys if one is not None])
        assert [row[key_name] for row in entity(run, side)] == list(range(len(keys)))
        assert [row[name] for row in entity(run, side)] == [0, *(coded[first[one]] for one in keys if one is not None)]
    articles = {article["article"]: article for article in shop.articles}
    known = [articles.get(one, {}) for one in ids([row["article"] for row in rows])]
    category = ids([article.get("category") for article in known])
    assert [row["category"] for row in entity(run, "item")] == [category[article.get("category")] for article in known]
    tags = ids([tag for article in known for tag in article.get("tags", [])])
    lists = [[tags[tag] for tag in article.get("tags", [])] for article in known]
    assert [row["tags"] for row in entity(run, "item")] == [one + [0] * (3 - len(one)) for one in lists]
    weights = sorted(article["weight"] for article in known if article.get("weight") is not None)
    edges = [float(np.quantile(weights, share)) for share in (0.25, 0.5, 0.75)]
    bins = [
        0 if article.get("weight") is None else 1 + sum(edge <= article["weight"] for edge in edges)
        for article in known
    ]
    assert [row["weight"] for row in entity(run, "item")] == bins and len(set(bins)) > 3
    columns = {column.name: (column.side, column.kind, column.size, column.width) for column in run.schema.columns}
    assert columns == {
        "buyer": ("user", "category", run.schema.users, 1),
        "country": ("user", "category", 4, 1),
        "article": ("item", "category", run.schema.items, 1),
        "category": ("item", "category", len(category), 1),
        "shelf": ("item", "category", 9, 1),
        "tags": ("item", "set", len(tags), 3),
        "weight": ("item", "category", 5, 1),
        "hour": ("row", "category", 6, 1),
        "price": ("row", "number", 0, 1),
    }
    assert run.schema.users == len(ids([row["buyer"] for row in rows])), "articles that never occur have no id"
    assert run.schema.history == ("article", "category", "tags") and run.schema.history_length == 6


def test_quantile_bins_equal_a_loop() -> None:
    values = [3.0, None, 1.0, 2.0, 2.0, float("nan"), 10.0, 4.0]
    edges = np.quantile([3, 1, 2, 2, 10, 4], [1 / 3, 2 / 3])
    golden = [0 if value is None or value != value else 1 + int((edges <= value).sum()) for value in values]
    assert binned(values, 3).tolist() == golden
    assert binned([None, None], 3).tolist() == [0, 0]
    assert set(binned([1.0, 1.0], 3).tolist()) <= {1, 2, 3}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_digests_are_those_of_the_values_in_order(shop: Any, prepared: Prepared, protocol: str) -> None:
    schema, rows = prepared(protocol).schema, expected(shop, protocol)
    for name, column in (("buyer", "buyer"), ("article", "article"), ("hour", "hour")):
        values = [value for value in ids([row[column] for row in rows]) if value is not None]
        assert schema.vocabulary_digests[name] == hashlib.sha256(repr(values).encode()).hexdigest()
    packed = b"".join(
        struct.pack("<iiqb", row["user"], row["item"], row["at"], SPLITS.index(row["split"]))
        for row in sorted(rows, key=lambda row: (row["user"], row["at"], row["row"]))
    )
    assert schema.split_digest == hashlib.sha256(packed).hexdigest()


def test_the_schema_says_what_the_protocol_allows(prepared: Prepared) -> None:
    for protocol in PROTOCOLS:
        rule, schema = plugins.load("protocols", protocol), prepared(protocol).schema
        assert schema.protocol == protocol
        assert (schema.history_from, schema.seen_in) == (dict(rule.history_from), dict(rule.seen_in))
        assert Schema.from_json(schema.to_json()) == schema


def test_rows_stand_in_random_order(prepared: Prepared) -> None:
    rows = np.array([row["row"] for row in stored(prepared(), "train")])
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.1
    users = np.array([row["user"] for row in stored(prepared(), "train")])
    assert (users[1:] == users[:-1]).mean() < 0.1, "a user's rows must not stand together"


def test_a_small_split_has_groups_enough_for_several_workers(prepared: Prepared) -> None:
    (file,) = Path(prepared().root, "prepare/split=train").glob("part-*.parquet")
    footer = pq.read_metadata(file)
    sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    assert len(sizes) == -(-footer.num_rows // 64) > 4 and set(sizes[:-1]) == {64}
    shares = [prepared().rows("train", "streaming", rank, 2) for rank in range(2)]
    drawn = [next(share.batches(128, seed=1)).rows.tolist() for share in shares]
    assert [len(rows) for rows in drawn] == [64, 64] and not set(drawn[0]) & set(drawn[1])


def files(root: str) -> dict[str, bytes]:
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(Path(root, "prepare").rglob("*"))
        if file.is_file() and file.name != "done.json"
    }


def again(run: Run, root: Path, **changes: Any) -> Run:
    run = replace(run, root=str(root), **changes)
    prepare.main(run)
    return run


def test_the_same_log_gives_the_same_files(prepared: Prepared, tmp_path: Path) -> None:
    assert files(again(prepared(), tmp_path).root) == files(prepared().root)
    parts = 3 + 3 + 2 + 8 + 2
    assert len(files(tmp_path.as_posix())) == parts, "rows, histories, entities, vocabularies, statistics and schema"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bounded_parts_give_the_same_rows(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    for where, name, value in (
        (prepare, "USERS_A_PART", 7),
        (spills, "BUCKET_BYTES", 200 * 37),
        (spills, "ROWS_A_GROUP", 16),
    ):
        monkeypatch.setattr(where, name, value)
    held = []
    parts = prepare.Log.parts
    monkeypatch.setattr(prepare.Log, "parts", lambda log: (held.append(part["user"]) or part for part in parts(log)))
    run, whole = again(prepared(protocol), tmp_path), prepared(protocol)
    assert run.schema == whole.schema, "digests included"
    assert {len(np.unique(users)) for users in held} <= set(range(1, 8)), "one range of users at a time"
    for split in SPLITS:
        bucketed = sorted((tmp_path / f"prepare/split={split}").glob("part-*.parquet"))
        assert len(bucketed) == 8, "1,4xx rows in buckets of 200"
        footers = [pq.read_metadata(file) for file in bucketed]
        assert all(footer.row_group(0).num_rows == min(16, footer.num_rows) for footer in footers)
        assert Counter(map(repr, stored(run, split))) == Counter(map(repr, stored(whole, split)))
        assert len(list((tmp_path / f"prepare/history/split={split}").iterdir())) == 61 // 7 + 1
    for side in ("user", "item"):
        assert entity(run, side) == entity(whole, side)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_statistics_count_what_was_kept_and_left_out(shop: Any, prepared: Prepared, protocol: str) -> None:
    golden, run = expected(shop, protocol), prepared(protocol)
    statistics = (run.folder / "prepare").read_json("statistics.json")
    known: dict[str, dict[int, set[int]]] = {split: defaultdict(set) for split in SPLITS}
    for row in golden:
        known[row["split"]][row["user"]].add(row["item"])
    open_to = {
        split: sum(
            any(item not in met for item in items)
            for user, items in known[split].items()
            if user in known["train"]
            for met in [set[int]().union(*(known[source].get(user, set()) for source in run.schema.seen_in[split]))]
        )
        for split in SPLITS
    }
    assert statistics == {
        "rows": len(golden),
        "users": len({row["user"] for row in golden}),
        "items": len({row["item"] for row in golden}),
        "users_in": {split: len(known[split]) for split in SPLITS},
        "open_to": open_to,
        "bad_rows": {},
        "not_positive": len(shop.rows) - len(golden),
        "not_in_table": {"item": len({row["article"] for row in golden} - {a["article"] for a in shop.articles})},
    }
    assert statistics["not_positive"] > 50 and min(open_to.values()) > 0


def test_features_that_the_task_does_not_read_are_told(
    prepared: Prepared, clicks: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(prepared(), root=str(tmp_path))
    prepare.main(run)
    assert "models of this task do not read hour, price\n" in capsys.readouterr().out
    assert run.unread == ("hour", "price"), "those of a row"
    shown = replace(prepared("leave_one_out"), methods=(SASRec(),))
    assert shown.unread == ("buyer", "country", "shelf", "weight", "hour", "price"), (
        "all that no past event is shown by"
    )
    assert clicks.unread == ()


def small(tmp_path: Path, features: str = "[]", **columns: Any) -> Run:
    """A run over a log of eight rows of one user."""
    log = {"u": [1] * 8, "i": list(range(8)), "t": list(range(8))} | columns
    raw = tmp_path / "raw"
    raw.mkdir()
    pq.write_table(pa.table(log), raw / "log.parquet")
    label = "label: l\n" if "l" in columns else ""
    (raw / "schema.yaml").write_text(
        f"user: u\nitem: i\ntimestamp: t\n{label}features: {features}\nhistory: {{features: []}}"
    )
    return Run(root=str(tmp_path / "run"), dataset="parquet", raw=str(raw), methods=(Popularity(),))


def test_an_empty_split_is_an_error_that_names_the_protocol(tmp_path: Path) -> None:
    run = small(tmp_path, t=[5] * 8)
    with pytest.raises(DataError, match="8 rows under protocol user_temporal leave train and valid empty.*--protocol"):
        prepare.main(run)
    assert not (run.folder / "prepare").exists("schema.json") and not (run.folder / "prepare").done


def test_rows_with_too_little_before_them_stand_in_histories_only(tmp_path: Path) -> None:
    run = replace(small(tmp_path, u=[1, 2, 1, 3, 1, 2, 1, 4], t=[5] * 8), protocol="leave_one_out")
    prepare.main(run)
    names = ("user", "item", "before")
    rows = {split: sorted(tuple(row[name] for name in names) for row in stored(run, split)) for split in SPLITS}
    assert rows == {"train": [(1, 3, 1)], "valid": [(1, 5, 2)], "test": [(1, 7, 3), (2, 6, 1)]}
    assert run.schema.rows == {"train": 1, "valid": 1, "test": 2}
    past = pq.read_table(f"{run.root}/prepare/history/split=train").to_pylist()
    assert [(row["user"], row["item"]) for row in past] == [(1, 1), (1, 3), (2, 2), (3, 4), (4, 8)]
    packed = [(1, 1, 0), (1, 3, 0), (1, 5, 1), (1, 7, 2), (2, 2, 0), (2, 6, 2), (3, 4, 0), (4, 8, 0)]
    digest = hashlib.sha256(b"".join(struct.pack("<iiqb", user, item, 5, split) for user, item, split in packed))
    assert run.schema.split_digest == digest.hexdigest(), "of all rows"


@pytest.mark.data
def test_leave_one_out_of_movielens_1m_has_the_rows_of_recbole(data_folder: Path, tmp_path: Path) -> None:
    raw = str(data_folder / "ml-1m")
    run = Run(root=str(tmp_path), dataset="movielens", raw=raw, methods=(Popularity(),), protocol="leave_one_out")
    prepare.main(run)
    assert run.schema.rows == {"train": 982_089, "valid": 6_040, "test": 6_040}
    assert run.rows("test").history.counts(torch.arange(1, 6_041)).sum() == 1_000_209 - 6_040


def test_no_usable_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no usable row.*check"):
        prepare.main(small(tmp_path, l=[0] * 8))


def test_an_unknown_protocol_is_an_error_that_names_the_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="parquet has no protocol 'weekly'; it has: user_temporal, global_temporal"):
        prepare.main(replace(small(tmp_path), protocol="weekly"))


@pytest.mark.parametrize(
    "feature, values, why",
    [
        ("{name: f, side: row, kind: set}", [[1]] * 8, "'f' is a set of a row"),
        ("{name: f, side: row, kind: number, bins: 3}", [1.0] * 8, "'f' is a number of a row, never binned"),
    ],
)
def test_what_a_row_cannot_have_is_an_error(tmp_path: Path, feature: str, values: list[Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        prepare.main(small(tmp_path, f"[{feature}]", f=values))


def test_features_without_any_value_are_unknown_everywhere(tmp_path: Path) -> None:
    columns = {"c": pa.array([None] * 8, pa.string()), "s": pa.array([[]] * 8, pa.list_(pa.string()))}
    run = small(tmp_path, "[{name: c, side: user}, {name: s, side: item, kind: set}]", **columns)
    prepare.main(run)
    assert [row["c"] for row in entity(run, "user")] == [0, 0]
    assert [row["s"] for row in entity(run, "item")] == [[0]] * 9
    assert [(column.size, column.width) for column in run.schema.columns] == [(1, 1), (1, 1)]


def test_a_reading_that_fails_leaves_nothing_that_looks_finished(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Parquet.rows

    def cut(self: Parquet) -> Iterator[pa.Table]:
        yield next(read(self))
        raise OSError("the line is cut")

    def full(*_: Any) -> None:
        raise OSError("the disk is full")

    for owner, name, breaks in ((Parquet, "rows", cut), (prepare, "_write_entities", full)):
        with monkeypatch.context() as broken, pytest.raises(OSError, match="cut|full"):
            broken.setattr(owner, name, breaks)
            again(prepared(), tmp_path)
        assert not list(tmp_path.rglob("done.json")) and not list(tmp_path.rglob("schema.json"))
    assert list(tmp_path.rglob("part-*.parquet")), "the second attempt had written rows"
    (tmp_path / "prepare/split=train/part-00099.parquet").write_bytes(b"left by another attempt")
    assert files(again(prepared(), tmp_path).root) == files(prepared().root)


def test_a_run_can_live_in_an_object_store(shop: Any, prepared: Prepared) -> None:
    run = replace(prepared(), root="memory://bucket/run", raw=shop.raw)
    prepare.main(run)
    fs = fsspec.filesystem("memory")
    names = [name.removeprefix("/bucket/run/") for name in fs.find("/bucket/run/prepare")]
    assert {name for name in names if not name.endswith("done.json")} == set(files(prepared().root))
    assert fs.cat_file("/bucket/run/prepare/schema.json") == Path(prepared().root, "prepare/schema.json").read_bytes()
    assert run.rows("train").rows == prepared().rows("train").rows
    fs.rm("/bucket", recursive=True)
