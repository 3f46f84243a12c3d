"""Logs in parquet: what `schema.yaml` may say, how columns are read, and errors that name their culprit."""

import io
import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from nascore.datasets import CHUNK, DataError, Feature, Layout
from nascore.datasets.parquet import Parquet

Files = dict[str, bytes]
Write = Callable[[Files], str]


@pytest.fixture
def put(tmp_path: Path) -> Write:
    """Writes files to a folder on the disk and returns it."""

    def written(files: Files) -> str:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    return written


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def read(dataset: Parquet) -> dict[str, pa.Table]:
    """Everything a dataset holds, by table."""
    tables = {"log": list(dataset.rows()), **{side: list(dataset.entities(side)) for side in ("user", "item")}}
    return {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}


SPECIMEN = Parquet.specimen()
SPECIMEN["clicks.parquet"] = parquet(
    user_id=["ann", "bob", "ann", "bob"],
    article_id=[10, 30, 20, 10],
    clicked_at=[5000, 1000, 3000, 4000],
    clicked=[True, True, False, True],
    country=["FR", "BR", "FR", "DE"],
    hour=[7, 8, 9, 8],
)
DESCRIBED: dict[str, Any] = yaml.safe_load(SPECIMEN["schema.yaml"])


def described(**changes: Any) -> bytes:
    """The specimen's description with some settings changed, or dropped where None."""
    merged = {**DESCRIBED, **changes}
    return yaml.safe_dump({name: value for name, value in merged.items() if value is not None}).encode()


def feature(**changes: Any) -> bytes:
    """The specimen's description with one more feature."""
    return described(features=[*DESCRIBED["features"], changes])


def stored(content: bytes) -> dict[str, pa.ChunkedArray]:
    table = pq.read_table(io.BytesIO(content))
    return {name: table[name] for name in table.column_names}


def retyped(file: str, **columns: Any) -> Files:
    """The specimen's files, one of them with other columns, or without those that are None."""
    table = {name: column for name, column in stored(SPECIMEN[file]).items() if name not in columns}
    table |= {name: column for name, column in columns.items() if column is not None}
    return {**SPECIMEN, file: parquet(**table)}


def test_layout_and_values(put: Write) -> None:
    dataset = Parquet(put(SPECIMEN))
    assert dataset.layout() == Layout(
        "user_id",
        "article_id",
        "clicked_at",
        (
            Feature("user_id", "user"),
            Feature("country", "user"),
            Feature("article_id", "item"),
            Feature("category", "item"),
            Feature("tags", "item", "set"),
            Feature("price", "item", "number", 2),
            Feature("hour", "row"),
        ),
        label="clicked",
        history=("article_id", "category", "tags"),
        history_length=5,
    )
    tables = read(dataset)
    assert tables.keys() == {"log", "item"}
    assert tables["log"].to_pydict() == {
        "user_id": ["ann", "bob", "ann", "bob"],
        "article_id": [10, 30, 20, 10],
        "clicked_at": [5000, 1000, 3000, 4000],
        "clicked": [1, 1, 0, 1],
        "country": ["FR", "BR", "FR", "DE"],
        "hour": [7, 8, 9, 8],
    }
    assert tables["item"].to_pydict() == {
        "article_id": [10, 20, 30],
        "category": ["news", "sports", None],
        "tags": [["city", "art"], [], ["art"]],
        "price": [0.5, 2.0, None],
    }


def test_defaults(put: Write) -> None:
    text = b"{user: user_id, item: article_id, timestamp: clicked_at}"
    dataset = Parquet(put({"clicks.parquet": SPECIMEN["clicks.parquet"], "schema.yaml": text}))
    keys = (Feature("user_id", "user"), Feature("article_id", "item"))
    assert dataset.layout() == Layout(
        "user_id", "article_id", "clicked_at", keys, history=("article_id",), history_length=20
    )
    assert read(dataset)["log"].column_names == ["user_id", "article_id", "clicked_at"]


def test_without_a_history(put: Write) -> None:
    layout = Parquet(put({**SPECIMEN, "schema.yaml": described(history={"features": []})})).layout()
    assert (layout.history, layout.history_length) == ((), 0)


def test_files_are_read_by_name(put: Write) -> None:
    parts = {f"day={day}/part.parquet": parquet(u=[day, day], i=[1, 2], t=[day, day]) for day in (3, 1, 2)}
    text = b"{rows: 'day=*/*.parquet', user: u, item: i, timestamp: t}"
    assert read(Parquet(put({**parts, "schema.yaml": text})))["log"]["u"].to_pylist() == [1, 1, 2, 2, 3, 3]


def test_the_files_of_tables_are_no_log(put: Write) -> None:
    log = {"b.parquet": parquet(u=[2], i=[2], t=[2]), "a.parquet": parquet(u=[1], i=[1], t=[1])}
    items = {"c-1.parquet": parquet(i=[1], x=["p"]), "c-0.parquet": parquet(i=[2], x=["q"])}
    text = b"""{user: u, item: i, timestamp: t, tables: {item: "c-*.parquet"},
        features: [{name: i, side: item}, {name: x, side: item}]}"""
    tables = read(Parquet(put({**log, **items, "schema.yaml": text})))
    assert tables["log"].to_pydict() == {"u": [1, 2], "i": [1, 2], "t": [1, 2]}
    assert tables["item"].to_pydict() == {"i": [2, 1], "x": ["q", "p"]}


def test_a_feature_is_taken_from_the_table_before_the_log(put: Write) -> None:
    files = retyped("clicks.parquet", category=["a", "b", "c", "d"])
    tables = read(Parquet(put(files)))
    assert "category" not in tables["log"].column_names
    assert tables["item"]["category"].to_pylist() == ["news", "sports", None]


NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
MICROSECONDS = 1_714_564_800_000_000


@pytest.mark.parametrize(
    "column, expected",
    [
        (pa.array([1, 2, 3, 4], pa.int16()), [1, 2, 3, 4]),
        (pa.array([date(2024, 5, 1)] * 4, pa.date32()), [MICROSECONDS - 43_200_000_000] * 4),
        (pa.array([date(2024, 5, 1)] * 4, pa.date64()), [MICROSECONDS - 43_200_000_000] * 4),
        (pa.array([NOON.replace(tzinfo=None)] * 4, pa.timestamp("s")), [MICROSECONDS] * 4),
        (pa.array([NOON] * 4, pa.timestamp("ms", "Europe/Paris")), [MICROSECONDS] * 4),
        (pa.array([MICROSECONDS * 1000 + 999] * 4, pa.timestamp("ns")), [MICROSECONDS] * 4),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_timestamps_become_int64(column: pa.Array, expected: list[int], put: Write) -> None:
    log = read(Parquet(put(retyped("clicks.parquet", clicked_at=column))))["log"]["clicked_at"]
    assert log.type == pa.int64() and log.to_pylist() == expected


@pytest.mark.parametrize(
    "column",
    [
        [True, True, False, True],
        [1, 5, 0, 2],
        [0.1, 3.0, -1.0, 1.0],
        [Decimal("0.01"), Decimal(2), Decimal(0), Decimal(1)],
    ],
    ids=lambda column: type(column[0]).__name__,
)
def test_labels_above_zero_are_positives(column: list[Any], put: Write) -> None:
    log = read(Parquet(put(retyped("clicks.parquet", clicked=column))))["log"]["clicked"]
    assert log.type == pa.int8() and log.to_pylist() == [1, 1, 0, 1]


def test_encodings_of_columns_make_no_difference(put: Write) -> None:
    plain = read(Parquet(put(SPECIMEN)))
    tags = [["city", "art"], [], ["art"]]
    for text in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        users, countries = (plain["log"][name].cast(pa.string()).cast(text) for name in ("user_id", "country"))
        log = retyped("clicks.parquet", user_id=users, country=countries)["clicks.parquet"]
        categories = plain["item"]["category"].cast(text)
        items = retyped("articles.parquet", category=categories, tags=pa.array(tags, pa.large_list(text)))
        tables = read(Parquet(put({**items, "clicks.parquet": log})))
        for part in ("log", "item"):
            assert tables[part].to_pydict() == plain[part].to_pydict()
            assert dict(zip(tables[part].column_names, tables[part].schema.types, strict=True)) == dict(
                zip(plain[part].column_names, plain[part].schema.types, strict=True)
            )


@pytest.mark.parametrize(
    "file, column, values, why",
    [
        ("clicks.parquet", "user_id", ["a", "b", None, "d"], "the key 'user_id' is missing"),
        ("clicks.parquet", "article_id", [1, 2, None, 4], "the key 'article_id' is missing"),
        ("clicks.parquet", "clicked_at", [1, 2, None, 4], "the timestamp 'clicked_at' is missing"),
        ("clicks.parquet", "clicked_at", [date.min, date.max, None, date.max], "the timestamp 'clicked_at' is missing"),
        ("clicks.parquet", "clicked", [True, True, None, False], "the label 'clicked' is missing"),
        ("clicks.parquet", "clicked", [1.0, 0.0, float("nan"), 0.0], "the label 'clicked' is missing"),
        ("articles.parquet", "article_id", [10, 20, None], "the key 'article_id' is missing"),
    ],
)
def test_rows_that_lack_what_is_needed(file: str, column: str, values: list[Any], why: str, put: Write) -> None:
    raw = put(retyped(file, **{column: values}))
    with pytest.raises(DataError, match=re.escape(f"{raw}/{file}, row 3: {why}")):
        read(Parquet(raw))
    lenient = Parquet(raw, "skip")
    part = "log" if file == "clicks.parquet" else "item"
    assert len(read(lenient)[part]) == len(values) - 1
    assert lenient.bad == Counter({file: 1})


def test_rows_are_numbered_inside_their_file(put: Write) -> None:
    count = CHUNK + 1000
    users = [*range(count - 1), None]
    raw = put(
        {
            "schema.yaml": b"{user: u, item: i, timestamp: t}",
            "a.parquet": parquet(u=[1, 2], i=[1, 2], t=[1, 2]),
            "b.parquet": parquet(u=users, i=[1] * count, t=[1] * count),
        }
    )
    with pytest.raises(DataError, match=f"b.parquet, row {count}: "):
        list(Parquet(raw).rows())
    assert [len(table) for table in Parquet(raw, "skip").rows()] == [2, CHUNK, 999]


@pytest.mark.parametrize(
    "text, culprit",
    [
        (b"user: [", "not YAML"),
        (b"", "the file: must be a mapping with keys among rows, user, .*, not None"),
        (b"- user", "the file: must be a mapping"),
        (described(lable="clicked"), "unknown key 'lable'; the keys are rows, .*did you mean 'label'"),
        (described(user=None), "the key 'user' is missing"),
        (described(item=None), "the key 'item' is missing"),
        (described(timestamp=None), "the key 'timestamp' is missing"),
        (described(user=7), "user: must be text, not 7"),
        (described(user="a.b"), r"user: 'a\.b': the name of a column must hold neither"),
        (described(label=True), "label: must be text, not True"),
        (described(item="user_id"), "user, item, timestamp, label: column 'user_id' is named twice"),
        (described(rows=["a", "b"]), r"rows: must be text, not \['a', 'b'\]"),
        (described(rows="logs-*.parquet"), r"no file for rows: 'logs-\*\.parquet'.*files there: articles\.parquet"),
        (described(rows="articles.parquet"), "no file for rows: 'articles.parquet' besides articles.parquet"),
        (described(tables="articles.parquet"), "tables: must be a mapping"),
        (described(tables={"items": "articles.parquet"}), "tables: unknown key 'items'.*did you mean 'item'"),
        (described(tables={"item": "artciles.parquet"}), "no file for tables: item: 'artciles.parquet'"),
        (described(tables={"item": 3}), "tables: item: must be text, not 3"),
        (described(tables={"user": "articles.parquet"}), r"clicks\.parquet: no column 'category'"),
        (described(features="user_id"), "features: must be a list, not 'user_id'"),
        (described(features=["user_id"]), r"features\[0\]: must be a mapping"),
        (described(features=[{"name": "user_id"}]), r"features\[0\]: the key 'side' is missing"),
        (described(features=[{"side": "user"}]), r"features\[0\]: the key 'name' is missing"),
        (feature(name="x", side="items"), r"features\[7\] \(x\): side: must be one of user, item, row, not 'items'"),
        (feature(name="x", side="row", kind="text"), r"\(x\): kind: must be one of category, set, number, not 'text'"),
        (feature(name="x", side="row", knd="set"), "unknown key 'knd'.*did you mean 'kind'"),
        (feature(name="x", side="row", bins=3), r"\(x\): bins are for kind number, not category"),
        (feature(name="x", side="row", kind="number", bins=1), r"\(x\): bins: must be an integer of at least 2, not 1"),
        (feature(name="x", side="row", kind="number", bins=2.5), r"\(x\): bins: .*not 2\.5"),
        (feature(name="x", side="user", kind="number"), r"\(x\): a number of side user needs bins"),
        (feature(name="x", side="item", kind="number"), r"\(x\): a number of side item needs bins"),
        (feature(name="x/y", side="row"), r"features\[7\]: name: 'x/y'"),
        (feature(name="hour", side="row"), "features: column 'hour' is named twice"),
        (feature(name="clicked", side="row"), r"\(clicked\): this is the label"),
        (feature(name="clicked_at", side="row"), r"\(clicked_at\): this is the timestamp"),
        (described(features=[{"name": "user_id", "side": "item"}]), r"\(user_id\): this is the user key"),
        (described(features=[{"name": "article_id", "side": "item", "kind": "set"}]), "this is the item key"),
        (feature(name="before", side="row"), r"\(before\): a feature of side row cannot be called row, before, user"),
        (feature(name="history", side="user"), r"\(history\): a feature of side user cannot be called history; rename"),
        (feature(name="mask", side="item"), r"\(mask\): a feature of side item cannot be called history, mask; rename"),
        (feature(name="huor", side="row"), r"clicks\.parquet: no column 'huor'; there are: .*did you mean hour"),
        (feature(name="counrty", side="user"), r"clicks\.parquet: no column 'counrty'.*did you mean country"),
        (feature(name="categroy", side="item"), r"articles\.parquet or clicks.*no column 'categroy'.*mean category"),
        (described(user="userid"), r"clicks\.parquet: no column 'userid'.*did you mean user_id"),
        (described(label="click"), r"clicks\.parquet: no column 'click'.*did you mean clicked"),
        (described(timestamp="when"), r"clicks\.parquet: no column 'when'; there are: user_id, article_id"),
        (described(history=["category"]), "history: must be a mapping"),
        (described(history={"features": "category"}), "history: features: must be a list"),
        (described(history={"features": ["country"]}), "history: features: 'country' is no item feature; .*category"),
        (described(history={"features": ["tags", "tags"]}), "history: features: column 'tags' is named twice"),
        (described(history={"length": 0}), "history: length: must be an integer of at least 1, not 0"),
        (described(history={"length": True}), "history: length: .*not True"),
        (described(history={"size": 3}), "history: unknown key 'size'"),
        (described(history=None, features=[{"name": "hour", "side": "row"}]), "'article_id' is no item feature"),
        (
            described(history=None, features=[{"name": "article_id", "side": "item"}]),
            "tables: item: no feature stands in articles.parquet",
        ),
    ],
)
def test_a_wrong_description_names_the_culprit(text: bytes, culprit: str, put: Write) -> None:
    raw = put({**SPECIMEN, "schema.yaml": text})
    with pytest.raises(DataError, match=rf"(?s)^{re.escape(raw)}.*{culprit}"):
        Parquet(raw).layout()


@pytest.mark.parametrize(
    "name, column, values, culprit",
    [
        ("clicks", "user_id", [1.0, 2.0, 3.0, 4.0], "is double; a key must be integers or text"),
        ("clicks", "clicked_at", ["1", "2", "3", "4"], "is string; a timestamp must be integers, dates or timestamps"),
        ("clicks", "clicked_at", [1.0, 2.0, 3.0, 4.0], "is double; a timestamp must be"),
        ("clicks", "clicked_at", pa.array([1] * 4, pa.uint64()), "is uint64; a timestamp must be"),
        ("clicks", "clicked_at", [timedelta(1)] * 4, "is duration[us]; a timestamp must be"),
        ("clicks", "clicked", ["y", "n", "y", "n"], "is string; a label must be numbers or booleans"),
        ("clicks", "country", [1.0, 2.0, 3.0, 4.0], "is double; a category must be"),
        ("clicks", "hour", [{"a": 1}] * 4, "is struct<a: int64>; a category must be"),
        ("articles", "tags", ["a|b", "c", "d"], "is string; a set must be lists"),
        ("articles", "tags", [[1.0], [], []], "is list<item: double>; a set must be lists"),
        ("articles", "price", ["1", "2", "3"], "is string; a number must be integers, floats or decimals"),
        ("articles", "article_id", ["a", "b", "c"], "is string, but in clicks.parquet it is int64"),
    ],
)
def test_columns_that_cannot_serve(name: str, column: str, values: Any, culprit: str, put: Write) -> None:
    raw = put(retyped(f"{name}.parquet", **{column: values}))
    with pytest.raises(DataError, match=re.escape(f"{raw}/{name}.parquet: column {column!r} {culprit}")):
        Parquet(raw).layout()


@pytest.mark.parametrize("content", [b"", b"PAR1", Parquet.specimen()["clicks.parquet"][:-20]])
@pytest.mark.parametrize("file", ["clicks.parquet", "articles.parquet"])
def test_a_file_that_is_no_parquet(file: str, content: bytes, put: Write) -> None:
    raw = put({**SPECIMEN, file: content})
    with pytest.raises(DataError, match=f"{file}: cannot be read as parquet"):
        Parquet(raw).layout()


@pytest.mark.parametrize("file", ["clicks.parquet", "articles.parquet"])
def test_every_column_is_needed(file: str, put: Write) -> None:
    for column in stored(SPECIMEN[file]):
        raw = put(retyped(file, **{column: None}))
        with pytest.raises(DataError, match=rf"{file}.*: no column '{column}'"):
            Parquet(raw).layout()


def test_a_column_that_is_there_twice(put: Write) -> None:
    raw = put({"schema.yaml": b"{user: u, item: i, timestamp: t}"})
    pq.write_table(pa.table([[1], [2], [3]], names=["u", "i", "i"]), f"{raw}/a.parquet")
    with pytest.raises(DataError, match="a.parquet: a column is there twice: u, i, i"):
        Parquet(raw).layout()


@pytest.mark.parametrize(
    "second, culprit",
    [
        ({"u": ["a"], "i": [1], "t": [1]}, "b.parquet: column 'u' is string, but in a.parquet it is int64"),
        ({"u": [1], "i": [1], "t": pa.array([1], pa.int32())}, "b.parquet: column 't' is int32, but in a.parquet"),
        ({"u": [1], "i": [1]}, "b.parquet: no column 't'; there are: u, i"),
    ],
)
def test_files_that_disagree(second: dict[str, Any], culprit: str, put: Write) -> None:
    files = {"a.parquet": parquet(u=[1], i=[1], t=[1]), "b.parquet": parquet(**second)}
    raw = put({**files, "schema.yaml": b"{user: u, item: i, timestamp: t}"})
    with pytest.raises(DataError, match=culprit):
        Parquet(raw).layout()


@pytest.mark.data
@pytest.mark.parametrize(
    "file, text",
    [
        ("globo/clicks.parquet", "{user: user_id, item: click_article_id, timestamp: click_timestamp}"),
        ("frappe/frappe_ctr.parquet", "{user: user, item: item, timestamp: daytime, label: label}"),
    ],
)
def test_the_real_logs(file: str, text: str, data_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "log.parquet").symlink_to((data_folder / file).resolve())
    (tmp_path / "schema.yaml").write_text(text)
    dataset = Parquet(str(tmp_path))
    log, layout = read(dataset)["log"], dataset.layout()
    raw = pq.read_table(data_folder / file, columns=log.column_names)
    assert len(log) == {"globo": 2_988_181, "frappe": 289_400}[file.split("/")[0]]
    assert log[layout.user].equals(raw[layout.user]) and log[layout.item].equals(raw[layout.item])
    assert log[layout.timestamp].equals(raw[layout.timestamp].cast(pa.int64()))
    if layout.label:
        assert pc.sum(log[layout.label]).as_py() == pc.sum(pc.greater(raw[layout.label], 0)).as_py() > 0
