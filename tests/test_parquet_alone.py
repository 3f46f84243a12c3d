"""Logs in parquet whose rows stand by themselves: what `schema.yaml` may say without the two keys."""

import io
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from nascore.datasets import DataError, Feature, Layout
from nascore.datasets._columns import batches
from nascore.datasets.parquet import Parquet

Put = Callable[..., str]
DESCRIBED: dict[str, Any] = {
    "rows": "log-*.parquet",
    "label": "clicked",
    "timestamp": "day",
    "features": [
        {"name": "site", "fewest": 3, "most": 100},
        {"name": "hour", "side": "row"},
        {"name": "price", "kind": "number"},
    ],
}
LOG: dict[str, Any] = {
    "clicked": [0.0, 2.0, 1.0],
    "day": [date(1970, 1, 3), date(1970, 1, 1), date(1970, 1, 2)],
    "site": ["a", None, "a"],
    "hour": [23, 0, None],
    "price": [1, None, 3],
    "unread": ["x", "y", "z"],
}


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Writes the description, changed or without what is None, and a log in two files; returns the folder."""

    def written(log: dict[str, Any] | None = None, **changes: Any) -> str:
        merged = {name: value for name, value in {**DESCRIBED, **changes}.items() if value is not None}
        (tmp_path / "schema.yaml").write_text(yaml.safe_dump(merged))
        table = pa.table(LOG if log is None else log)
        for name, part in (("log-2", table.slice(2)), ("log-1", table.slice(0, 2))):
            sink = io.BytesIO()
            pq.write_table(part, sink)
            (tmp_path / f"{name}.parquet").write_bytes(sink.getvalue())
        return str(tmp_path)

    return written


def feature(**about: Any) -> dict[str, Any]:
    return {"features": [about]}


def test_layout_and_values(put: Put) -> None:
    dataset = Parquet(put())
    features = (Feature("site", fewest=3, most=100), Feature("hour"), Feature("price", "row", "number"))
    assert dataset.layout() == Layout("", "", "day", features, label="clicked")
    day = 86_400_000_000
    assert pa.concat_tables(dataset.rows()).to_pydict() == {
        "day": [2 * day, 0, day],
        "clicked": [0, 1, 1],
        "site": ["a", None, "a"],
        "hour": [23, 0, None],
        "price": [1.0, None, 3.0],
    }
    assert not list(dataset.entities("user")) and not list(dataset.entities("item"))


def test_without_a_timestamp_the_order_is_that_of_the_files(put: Put) -> None:
    dataset = Parquet(put(timestamp=None, features=[{"name": "hour"}]))
    assert dataset.layout() == Layout("", "", "", (Feature("hour"),), label="clicked")
    assert pa.concat_tables(dataset.rows()).to_pydict() == {"clicked": [0, 1, 1], "hour": [23, 0, None]}


def test_a_limit_alone(put: Put) -> None:
    assert Parquet(put(**feature(name="site", most=7))).layout().features == (Feature("site", fewest=1, most=7),)
    assert Parquet(put(**feature(name="site", fewest=7))).layout().features == (Feature("site", fewest=7, most=0),)


@pytest.mark.parametrize("column, role", [("clicked", "label"), ("day", "timestamp")])
def test_rows_that_lack_what_is_needed(column: str, role: str, put: Put) -> None:
    raw = put({**LOG, column: [LOG[column][0], None, LOG[column][2]]})
    with pytest.raises(DataError, match=re.escape(f"{raw}/log-1.parquet, row 2: the {role} {column!r} is missing")):
        list(Parquet(raw).rows())
    lenient = Parquet(raw, "skip")
    assert pa.concat_tables(lenient.rows())["hour"].to_pylist() == [23, None]
    assert lenient.bad == {"log-1.parquet": 1}


@pytest.mark.parametrize(
    "changes, culprit",
    [
        ({"user": "site"}, "the file: the key 'item' is missing"),
        ({"item": "site"}, "the file: the key 'user' is missing"),
        ({"label": None}, "rows without 'user' and 'item' stand by themselves; they need label"),
        ({"features": None}, "rows without 'user' and 'item' stand by themselves; they need features"),
        ({"features": []}, "rows without 'user' and 'item' stand by themselves; they need features"),
        ({"history": {"length": 3}}, "stand by themselves; they have no history"),
        ({"tables": {"item": "log-2.parquet"}}, "stand by themselves; they have no tables"),
        ({"timestamp": "clicked"}, "timestamp, label: column 'clicked' is named twice"),
        ({"features": [{"name": "site"}, {"name": "site"}]}, "features: column 'site' is named twice"),
        (feature(side="row"), r"features\[0\]: the key 'name' is missing"),
        (feature(name="site", side="user"), r"\(site\): side: must be one of row, not 'user'"),
        (feature(name="site", kind="set"), r"\(site\): kind: must be one of category, number, not 'set'"),
        (feature(name="price", kind="number", bins=3), r"\(price\): bins are for numbers of users and items"),
        (feature(name="site", bins=3), r"\(site\): bins are for kind number, not category"),
        (feature(name="price", kind="number", fewest=3), r"\(price\): fewest: only for categories of rows without"),
        (feature(name="price", kind="number", most=3, fewest=1), r"\(price\): fewest and most: only for categories"),
        (feature(name="site", fewest=0), r"\(site\): fewest: must be an integer of at least 1, not 0"),
        (feature(name="site", most=1.5), r"\(site\): most: must be an integer of at least 1, not 1\.5"),
        (feature(name="site", fewst=2), "unknown key 'fewst'.*did you mean 'fewest'"),
        (feature(name="clicked"), r"\(clicked\): this is the label, which no model may read"),
        (feature(name="day"), r"\(day\): this is the timestamp, which no model may read"),
        (feature(name="sites"), r"log-1\.parquet: no column 'sites'.*did you mean site"),
        (feature(name="site", kind="number"), "column 'site' is string; a number must be integers"),
        ({"label": "site", **feature(name="hour")}, "column 'site' is string; a label must be numbers or booleans"),
    ],
)
def test_a_wrong_description_names_the_culprit(changes: dict[str, Any], culprit: str, put: Put) -> None:
    raw = put(**changes)
    with pytest.raises(DataError, match=rf"(?s)^{re.escape(raw)}.*{culprit}"):
        Parquet(raw).layout()


@pytest.mark.parametrize("setting", ["fewest", "most"])
def test_rows_with_keys_have_no_limits(setting: str, put: Put) -> None:
    keyed = {"user": "site", "item": "unread", "features": [{"name": "hour", "side": "row", setting: 3}]}
    with pytest.raises(DataError, match=rf"\(hour\): {setting}: only for categories of rows without 'user' and 'item'"):
        Parquet(put(**keyed)).layout()


@pytest.mark.parametrize("rows", [[], [1] * 20, [3] * 5, [2, 2, 0, 7, 1, 1, 1, 1, 4], [40]])
def test_row_groups_are_read_in_order_a_few_at_a_time(rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    table, sink, start = pa.table({"a": list(range(sum(rows))), "b": ["x"] * sum(rows)}), io.BytesIO(), 0
    with pq.ParquetWriter(sink, table.schema) as writer:
        for count in rows:
            writer.write_table(table.slice(start, count))
            start += count
    asked: list[list[int]] = []
    read = pq.ParquetFile.iter_batches

    def noted(*told: Any, row_groups: list[int], **more: Any) -> Any:
        asked.append(row_groups)
        return read(*told, row_groups=row_groups, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    found = list(batches(sink, ["a"], 3))
    assert [value for batch in found for value in batch["a"].to_pylist()] == list(range(sum(rows)))
    assert all(0 < len(batch) <= 3 for batch in found)
    groups = pq.ParquetFile(sink).metadata
    assert sum(asked, []) == list(range(groups.num_row_groups))
    assert all(sum(groups.row_group(group).num_rows for group in part[:-1]) < 2 * 3 for part in asked)
