"""Your own logs: parquet files under any fsspec URL, and a `schema.yaml` beside them that says what they hold.

    rows: "clicks-*.parquet"      # default: "*.parquet" without the files of `tables`; read in the order of their names
    user: user_id                 # the two keys: integers or text
    item: article_id
    timestamp: clicked_at         # integers; dates and timestamps become microseconds since 1970
    label: clicked                # rows above 0 are positives; without a label every row is one
    history: {features: [article_id, category], length: 20}     # default: the item key, 20; features: [] for none
    features:                     # default: the two keys
      - {name: user_id, side: user}
      - {name: article_id, side: item}
      - {name: category, side: item}
      - {name: tags, side: item, kind: set}                     # a list column
      - {name: price, side: item, kind: number, bins: 20}
      - {name: hour, side: row}
    tables: {item: "items.parquet"}     # one row a user or item, under the name of its key

A feature of a user or an item is looked for in the table of its side, then in the log, of which `prepare` takes the
earliest row of each user or item.

Without both keys the rows stand by themselves, as in click prediction, and so do their features:

    label: clicked
    timestamp: clicked_at         # default: the order of the files and of their rows
    features:
      - {name: site, fewest: 2, most: 100000}     # ids for values of so many training rows, and for so many values
      - {name: price, kind: number}

`parquet:days=2026-01-30+2026-01-31` reads of the rows only those in the folders `day=<date>`. Where rows stand by
themselves their timestamps are then seconds within that day, by the order of the rows unless there are dates or times.
"""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, ClassVar, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from pyarrow import types

from nascore import days as partitions
from nascore.datasets import CHUNK, DataError, Dataset, Feature, Layout, OnBadRow
from nascore.datasets._columns import TYPES, batches, converted, plain, serves
from nascore.schema import Kind, Side

SCHEMA = "schema.yaml"
SETTINGS = ("rows", "user", "item", "timestamp", "label", "history", "features", "tables")
HISTORY_LENGTH = 20
NEEDED = ("key", "timestamp", "label")
TAKEN = {
    "row": ("row", "before", "user", "item", "label", "timestamp"),
    "user": ("history",),
    "item": ("history", "mask"),
}
"""Names of what stands beside the features of a side: in packed rows of logs of users, and in batches and nets."""
SPECIMEN = """\
rows: clicks.parquet
user: user_id
item: article_id
timestamp: clicked_at
label: clicked
history: {features: [article_id, category, tags], length: 5}
features:
  - {name: user_id, side: user}
  - {name: country, side: user}
  - {name: article_id, side: item}
  - {name: category, side: item}
  - {name: tags, side: item, kind: set}
  - {name: price, side: item, kind: number, bins: 2}
  - {name: hour, side: row}
tables: {item: articles.parquet}
"""

Footer = dict[str, pa.DataType]


@dataclass(frozen=True)
class _Source:
    """Files that hold the same columns. `roles`: what each column serves as, one of `TYPES`."""

    files: tuple[str, ...]
    roles: Mapping[str, str]


@dataclass(frozen=True)
class _Plan:
    """What `schema.yaml` and the footers say together."""

    layout: Layout
    log: _Source
    tables: Mapping[Side, _Source]


class Parquet(Dataset):
    """Logs in parquet as `schema.yaml` describes them; all but the rows is checked before any row is read."""

    protocols: ClassVar[tuple[str, ...]] = (
        "user_temporal",
        "global_temporal",
        "authors",
        "leave_one_out",
        "stratified",
        "temporal",
        "newest_day",
    )

    def __init__(self, raw: str, on_bad_row: OnBadRow = "error", days: str = "") -> None:
        super().__init__(raw, on_bad_row)
        self.days = partitions.dates(days)

    def layout(self) -> Layout:
        return self._plan.layout

    def rows(self) -> Iterator[pa.Table]:
        return self._read(self._plan.log)

    def entities(self, side: Side) -> Iterator[pa.Table]:
        return self._read(self._plan.tables[side]) if side in self._plan.tables else iter(())

    @cached_property
    def _plan(self) -> _Plan:
        with self.open(SCHEMA) as stream:
            described = _Description(f"{self.raw}/{SCHEMA}", stream.read())
        layout = described.layout
        tables = {side: self._matching(f"tables: {side}", pattern) for side, pattern in described.tables.items()}
        patterns = [f"{partitions.COLUMN}={day}/{described.rows.rpartition('/')[2]}" for day in self.days]
        beside = {file for files in tables.values() for file in files}
        log = [file for one in patterns or [described.rows] for file in self._matching("rows", one, beside)]
        footers = {file: self._footer(file) for files in (*tables.values(), log) for file in files}

        in_log = {layout.user: "key", layout.item: "key", layout.timestamp: "timestamp", layout.label or "": "label"}
        in_log.pop("", None)
        keys: dict[Side, str] = {"user": layout.user, "item": layout.item}
        in_table = {side: {keys[side]: "key"} for side in tables}
        for feature in layout.features:
            if feature.name in keys.values():
                continue
            roles = in_log
            if feature.side in tables:
                table = tables[feature.side][0]
                self.require(f"{table} or {log[0]}", [feature.name], [*footers[table], *footers[log[0]]])
                roles = in_table[feature.side] if feature.name in footers[table] else in_log
            roles[feature.name] = feature.kind

        self._check(log, in_log, footers)
        for side, files in tables.items():
            self._check(files, in_table[side], footers)
            key, table = keys[side], files[0]
            here, there = footers[table][key], footers[log[0]][key]
            if types.is_integer(here) != types.is_integer(there):
                raise DataError(f"{self.raw}/{table}: column {key!r} is {here}, but in {log[0]} it is {there}")
            if len(in_table[side]) == 1:
                raise DataError(f"{self.raw}/{SCHEMA}: tables: {side}: no feature stands in {table}; name one")
        sources = {side: _Source(tuple(files), in_table[side]) for side, files in tables.items()}
        if self.days and not layout.user:
            layout = replace(layout, timestamp=layout.timestamp or partitions.COLUMN)
        return _Plan(layout, _Source(tuple(log), in_log), sources)

    def _matching(self, setting: str, pattern: str, but: Collection[str] = ()) -> list[str]:
        files = [file for file in self.files(pattern) if file not in but]
        if not files:
            others = f" besides {', '.join(but)}" if but else ""
            missing = self.missing(f"file for {setting}: {pattern!r}{others}")
            if setting != "rows" or self.days:
                raise missing
            there = {partitions.day_of(file) for file in self.files(f"{partitions.COLUMN}=*/*.parquet")} - {""}
            named = f". Of folders of days name those to read: --dataset parquet:days={'+'.join(sorted(there)[-2:])}"
            raise DataError(f"{missing}{named if there else ''}")
        return files

    def _footer(self, file: str) -> Footer:
        """The columns of a file with their plain types."""
        with self.open(file) as stream:
            try:
                schema = pq.read_schema(stream)
            except pa.ArrowInvalid as error:
                raise DataError(f"{self.raw}/{file}: cannot be read as parquet: {error}") from None
        columns = {field.name: plain(field.type) for field in schema}
        if len(columns) < len(schema):
            raise DataError(f"{self.raw}/{file}: a column is there twice: {', '.join(schema.names)}")
        return columns

    def _check(self, files: Sequence[str], roles: Mapping[str, str], footers: Mapping[str, Footer]) -> None:
        """Every file must have every column, of a type that can serve and that is the same in all files."""
        for file in files:
            self.require(file, roles, list(footers[file]))
            for name, role in roles.items():
                kind, before = footers[file][name], footers[files[0]][name]
                if not serves(role, kind):
                    raise DataError(f"{self.raw}/{file}: column {name!r} is {kind}; a {role} must be {TYPES[role]}")
                if kind != before:
                    raise DataError(f"{self.raw}/{file}: column {name!r} is {kind}, but in {files[0]} it is {before}")

    def _read(self, source: _Source) -> Iterator[pa.Table]:
        dated = partitions.Clock(self.open, source.files) if self.days and not self._plan.layout.user else None
        for file in source.files:
            self.bad.pop(file, None)
            first = 1
            with self.open(file) as stream:
                for batch in batches(stream, list(source.roles), CHUNK):
                    columns, broken = {}, {}
                    for name, role in source.roles.items():
                        if role in NEEDED:
                            broken[f"the {role} {name!r} is missing"] = pc.is_null(batch[name], nan_is_null=True)
                        columns[name] = converted(batch[name], role)
                    if dated is not None:
                        name = self._plan.layout.timestamp
                        known = name in source.roles and not types.is_integer(batch[name].type)
                        columns[name] = dated.seconds(file, first, len(batch), columns[name] if known else None)
                    if len(table := self.sound(file, first, pa.table(columns), broken)):
                        yield table
                    first += len(batch)

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        clicks = {
            "user_id": ["ann", "bob", "ann", None, "bob"],
            "article_id": [10, 30, 20, 10, 10],
            "clicked_at": [5000, 1000, 3000, 2000, 4000],
            "clicked": [True, True, False, True, True],
            "country": ["FR", "BR", "FR", "BR", "DE"],
            "hour": [7, 8, 9, 7, 8],
        }
        articles = {
            "article_id": [10, 20, 30],
            "category": ["news", "sports", None],
            "tags": [["city", "art"], [], ["art"]],
            "price": [0.5, 2.0, None],
        }
        return {
            SCHEMA: SPECIMEN.encode(),
            "clicks.parquet": _written(pa.table(clicks)),
            "articles.parquet": _written(pa.table(articles)),
        }


class _Description:
    """`schema.yaml`, checked as far as that goes without the other files; `where` opens its errors."""

    def __init__(self, where: str, text: bytes) -> None:
        self.where = where
        try:
            loaded = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DataError(f"{where}: not YAML: {error}") from None
        given = self._mapping("the file", loaded, SETTINGS)
        self.alone = not {"user", "item"} & given.keys()
        self._mapping("the file", given, SETTINGS, needed=() if self.alone else ("user", "item", "timestamp"))
        for name, needed in {"label": True, "features": True, "history": False, "tables": False}.items():
            if self.alone and needed != bool(given.get(name)):
                verb = "need" if needed else "have no"
                raise self._error("the file", f"rows without 'user' and 'item' stand by themselves; they {verb} {name}")
        self.rows = self._text("rows", given.get("rows", "*.parquet"))
        sides: tuple[Side, ...] = ("user", "item")
        tables = self._mapping("tables", given.get("tables", {}), sides)
        self.tables = {side: self._text(f"tables: {side}", tables[side]) for side in sides if side in tables}
        roles = [role for role in ("user", "item", "timestamp", "label") if role in given]
        self.columns: dict[str, str] = {role: self._column(role, given[role]) for role in roles}
        self._once(", ".join(roles), list(self.columns.values()))
        keys = [{"name": self.columns[side], "side": side} for side in sides if not self.alone]
        listed = self._list("features", given.get("features", keys))
        features = tuple(self._feature(f"features[{place}]", about) for place, about in enumerate(listed))
        self._once("features", [feature.name for feature in features])
        history, length = ((), 0) if self.alone else self._history(given.get("history", {}), features)
        columns = {"user": "", "item": "", "timestamp": "", **self.columns}
        self.layout = Layout(**columns, features=features, history=history, history_length=length)

    def _feature(self, what: str, given: Any) -> Feature:
        allowed = ("name", "side", "kind", "bins", "fewest", "most")
        about = self._mapping(what, given, allowed, needed=("name",) if self.alone else ("name", "side"))
        name = self._column(f"{what}: name", about["name"])
        what = f"{what} ({name})"
        sides, kinds = (("row",), ("category", "number")) if self.alone else (get_args(Side), get_args(Kind))
        side = self._one_of(f"{what}: side", about.get("side", "row"), sides)
        kind = self._one_of(f"{what}: kind", about.get("kind", "category"), kinds)
        limits = {name: self._count(f"{what}: {name}", about[name], 1) for name in ("fewest", "most") if name in about}
        if limits and not (self.alone and kind == "category"):
            raise self._error(what, f"{' and '.join(limits)}: only for categories of rows without 'user' and 'item'")
        bins = self._count(f"{what}: bins", about["bins"], least=2) if "bins" in about else 0
        if bins and kind != "number":
            raise self._error(what, f"bins are for kind number, not {kind}")
        if bins and self.alone:
            raise self._error(what, "bins are for numbers of users and items; those of rows are read as they are")
        if kind == "number" and side != "row" and not bins:
            raise self._error(what, f"a number of side {side} needs bins, such as bins: 20")
        for role, column in self.columns.items():
            if name == column and role in ("timestamp", "label"):
                raise self._error(what, f"this is the {role}, which no model may read")
            if name == column and (side, kind) != (role, "category"):
                raise self._error(what, f"this is the {role} key, whose side is {role} and whose kind is category")
        if not self.alone and name in TAKEN[side]:
            raise self._error(what, f"a feature of side {side} cannot be called {', '.join(TAKEN[side])}; rename it")
        return Feature(name, side, kind, bins, **limits)

    def _history(self, given: Any, features: tuple[Feature, ...]) -> tuple[tuple[str, ...], int]:
        about = self._mapping("history", given, ("features", "length"))
        names = self._list("history: features", about.get("features", [self.columns["item"]]))
        of_items = [feature.name for feature in features if feature.side == "item"]
        for name in names:
            if name not in of_items:
                raise self._error("history: features", f"{name!r} is no item feature; these are: {', '.join(of_items)}")
        self._once("history: features", names)
        return tuple(names), self._count("history: length", about.get("length", HISTORY_LENGTH), 1) if names else 0

    def _error(self, what: str, why: str) -> DataError:
        return DataError(f"{self.where}: {what}: {why}")

    def _mapping(self, what: str, given: Any, allowed: Sequence[str], needed: Sequence[str] = ()) -> dict[str, Any]:
        if not isinstance(given, dict):
            raise self._error(what, f"must be a mapping with keys among {', '.join(allowed)}, not {given!r}")
        for key in given:
            if key not in allowed:
                close = get_close_matches(str(key), allowed, n=1)
                meant = f"; did you mean {close[0]!r}?" if close else ""
                raise self._error(what, f"unknown key {key!r}; the keys are {', '.join(allowed)}{meant}")
        for key in needed:
            if key not in given:
                raise self._error(what, f"the key {key!r} is missing")
        return given

    def _list(self, what: str, given: Any) -> list[Any]:
        if not isinstance(given, list):
            raise self._error(what, f"must be a list, not {given!r}")
        return given

    def _text(self, what: str, given: Any) -> str:
        if not isinstance(given, str) or not given:
            raise self._error(what, f"must be text, not {given!r}")
        return given

    def _column(self, what: str, given: Any) -> str:
        name = self._text(what, given)
        if "." in name or "/" in name:
            raise self._error(what, f"{name!r}: the name of a column must hold neither '.' nor '/'")
        return name

    def _count(self, what: str, given: Any, least: int) -> int:
        if type(given) is not int or given < least:
            raise self._error(what, f"must be an integer of at least {least}, not {given!r}")
        return given

    def _one_of(self, what: str, given: Any, allowed: tuple[Any, ...]) -> Any:
        if given not in allowed:
            raise self._error(what, f"must be one of {', '.join(allowed)}, not {given!r}")
        return given

    def _once(self, what: str, names: Sequence[str]) -> None:
        for name in names:
            if names.count(name) > 1:
                raise self._error(what, f"column {name!r} is named twice")


def _written(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
