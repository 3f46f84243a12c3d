"""Datasets: raw files to tables. One a file.

To add one: write `nascore/datasets/<name>.py` with one class that extends `Dataset`. It reads its official raw files
from any fsspec URL in bounded memory and leaves vocabularies, splits and histories to `prepare`. `specimen()` returns a
few hand-written rows in the official format; by existing it inherits tests of its layout, its columns, its order and
its handling of broken lines. Text files are read with `delimited`, `objects` or `lines`; `sound` drops or reports
broken rows, `one_of`, `missing` and `require` word the error where a file or a column is not there, and `Frequent`
leaves out users and items of few rows.
"""

import csv
import difflib
import glob
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, ClassVar, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from nascore.files import connect
from nascore.schema import Kind, Side

CHUNK = 131_072
BLOCK_BYTES = 1 << 21
PACKED = ("", ".gz", ".bz2", ".xz", ".zip")
OnBadRow = Literal["error", "skip"]


class DataError(ValueError):
    """Raw data that cannot be used: which file, which row or column, what is allowed, what to do next."""


@dataclass(frozen=True)
class Feature:
    """A raw column that a model may read. A number with `bins` becomes a category by its quantiles.

    fewest, most: of a category of rows that stand by themselves: values of fewer training rows count as unknown; once
    so many values have ids of their own, further ones share those (0: no limit).
    """

    name: str
    side: Side = "row"
    kind: Kind = "category"
    bins: int = 0
    fewest: int = 1
    most: int = 0


@dataclass(frozen=True)
class Layout:
    """What the raw tables hold, by their column names.

    user, item: the keys; they are features too if named in `features`. timestamp: integers that order the rows.
    label: None when every row is a positive. history: item features that describe a past event.

    Without keys (user and item "") rows stand by themselves, as in click prediction: they need a label, all features
    are of the row, and timestamp "" stands for the order of the file.
    """

    user: str
    item: str
    timestamp: str
    features: tuple[Feature, ...]
    label: str | None = None
    history: tuple[str, ...] = ()
    history_length: int = 0


class Dataset(ABC):
    """Raw files under the fsspec URL `raw`. Broken rows raise, or are left out and counted.

    bad: how many rows the last reading of each file left out.
    """

    protocols: ClassVar[tuple[str, ...]]

    def __init__(self, raw: str, on_bad_row: OnBadRow = "error") -> None:
        if on_bad_row not in get_args(OnBadRow):
            raise ValueError(f"on_bad_row is one of {', '.join(get_args(OnBadRow))}, not {on_bad_row!r}")
        if not raw and self.specimen():
            raise DataError("--raw is empty; it names the folder of the raw files")
        self.raw = raw.rstrip("/")
        self.on_bad_row = on_bad_row
        self.bad: Counter[str] = Counter()
        self.fs, self.folder = connect(self.raw)

    @abstractmethod
    def layout(self) -> Layout:
        """The tables' columns, read from headers alone; raises DataError if a needed file or column is missing."""

    @abstractmethod
    def rows(self) -> Iterator[pa.Table]:
        """The log in file order, in tables of 1 to `CHUNK` rows, read anew at each call.

        Columns, where the layout names them: the keys (integers or text, never null), the timestamp (int64, never
        null), the label (int8, 1 or 0); the features of the row, and those of users and items that stand in no entity
        table.
        """

    def entities(self, side: Side) -> Iterator[pa.Table]:
        """Tables of one side: its key, once an entity, and those of its features that stand apart from the log."""
        return iter(())

    @classmethod
    @abstractmethod
    def specimen(cls) -> dict[str, bytes]:
        """A few rows in the official format, by file name; the second last row of the log is broken on purpose.

        It holds needed files only; {} where there are no raw files.
        """

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def files(self, pattern: str = "*") -> list[str]:
        """The names of the raw files that match, sorted; a pattern with "/" looks into folders."""
        found = self.fs.glob(f"{glob.escape(self.folder)}/{pattern}", detail=True)
        return sorted(path[len(self.folder) + 1 :] for path, about in found.items() if about["type"] != "directory")

    def missing(self, what: str) -> DataError:
        """The error to raise where something needed is not in the folder."""
        there = self.files()
        more = f" and {len(there) - 20} more" if len(there) > 20 else ""
        return DataError(f"{self.raw}: there is no {what}; the files there: {', '.join(there[:20]) or 'none'}{more}")

    def one_of(self, *names: str) -> str:
        """The one file there that has any of these names, plain or packed; raises if there is none or a choice."""
        there = set(self.files())
        found = [name + ending for name in names for ending in PACKED if name + ending in there]
        if not found:
            raise self.missing(f"{' or '.join(names)}, plain or packed")
        if len(found) > 1:
            raise DataError(f"{self.raw}: {' and '.join(found)} are there; keep one of them in the folder")
        return found[0]

    def require(self, file: str, needed: Iterable[str], there: Sequence[str]) -> None:
        """Raise if a needed column is not among those of the file."""
        for column in needed:
            if column not in there:
                close = difflib.get_close_matches(column, there, n=3)
                meant = f"; did you mean {' or '.join(close)}?" if close else ""
                raise DataError(f"{self.raw}/{file}: no column {column!r}; there are: {', '.join(there)}{meant}")

    def open(self, file: str) -> IO[bytes]:
        """A raw file, unpacked if its name ends in .gz, .bz2, .xz or .zip."""
        try:
            stream: IO[bytes] = self.fs.open(self.path(file), "rb", compression="infer")
        except FileNotFoundError:
            raise self.missing(file) from None
        return stream

    def reject(self, file: str, row: int, why: str) -> None:
        """A broken row: raise, or count it, as `on_bad_row` says. `row` counts from 1; in text files it is the line."""
        if self.on_bad_row == "error":
            raise DataError(f"{self.raw}/{file}, row {row}: {why}. To leave such rows out: --on-bad-row skip")
        self.bad[file] += 1

    def sound(
        self, file: str, first: int | NDArray[np.int64], table: pa.Table, broken: Mapping[str, pa.Array]
    ) -> pa.Table:
        """The rows that no mask in `broken` marks; the others are rejected, and the mask's name says why.

        first: the number of the table's first row in its file, or the numbers of all its rows.
        """
        numbers = first + np.arange(len(table)) if isinstance(first, int) else first
        why: dict[int, str] = {}
        for reason, mask in broken.items():
            for index in np.flatnonzero(np.asarray(mask)).tolist():
                why.setdefault(index, reason)
        for index in sorted(why):
            self.reject(file, int(numbers[index]), why[index])
        return table.take(np.delete(np.arange(len(table)), list(why))) if why else table

    def lines(self, file: str, encoding: str = "utf-8") -> Iterator[tuple[int, pa.StringArray]]:
        """The lines of a text file, at most `CHUNK` at a time, with the number of the first of them.

        Bytes that are not of the encoding become U+FFFD.
        """
        self.bad.pop(file, None)
        first = 1
        with self.open(file) as stream:
            for block in _blocks(stream):
                text = block.decode(encoding, "replace").replace("\r\n", "\n").removesuffix("\n")
                lines = pa.array(text.split("\n"), pa.string())
                for start in range(0, len(lines), CHUNK):
                    yield first + start, lines[start : start + CHUNK]
                first += len(lines)

    def header(self, file: str, delimiter: str) -> list[str]:
        """The fields of the first line."""
        with self.open(file) as stream:
            line = next(iter(_blocks(stream)), b"").partition(b"\n")[0].decode(errors="replace").rstrip("\r")
        return [field.strip('"') for field in line.split(delimiter)]

    def delimited(
        self,
        file: str,
        delimiter: str,
        names: Sequence[str] = (),
        integers: Sequence[str] = (),
        quoted: bool = False,
        encoding: str = "utf-8",
    ) -> Iterator[pa.Table]:
        """The columns of a delimited text file: int64 for those in `integers`, text for the others.

        names: of all fields in order; without them the first line holds them. quoted: a field in double quotes may hold
        the delimiter, but no line break. Lines of another number of fields, and those whose integers are none (of at
        most 18 digits), are rejected.
        """
        headed, names = not names, names or self.header(file, delimiter)
        for first, lines in self.lines(file, encoding):
            if headed and first == 1:
                first, lines = 2, lines[1:]
            if quoted:
                fields = pa.array([_unquoted(line, delimiter) for line in lines.to_pylist()], pa.list_(pa.string()))
            else:
                fields = pc.split_pattern(lines, delimiter)
            broken = {
                f"is not {encoding} text": pc.match_substring(lines, "\ufffd"),
                f"is not {len(names)} fields ({', '.join(names)}) separated by {delimiter!r}": pc.not_equal(
                    pc.list_value_length(fields), len(names)
                ),
            }
            padded = pc.list_slice(fields, 0, len(names), return_fixed_size_list=True)
            columns = {name: pc.list_element(padded, place) for place, name in enumerate(names)}
            for name in integers:
                whole = pc.fill_null(pc.match_substring_regex(columns[name], r"^-?\d{1,18}$"), False)
                broken[f"{name} is not an integer"] = pc.invert(whole)
                columns[name] = pc.if_else(whole, columns[name], None).cast(pa.int64())
            if len(table := self.sound(file, first, pa.table(columns), broken)):
                yield table

    def fields_of(self, file: str) -> list[str]:
        """The fields of the JSON objects in the first lines."""
        with self.open(file) as stream:
            lines = next(iter(_blocks(stream)), b"").split(b"\n")
        return list(dict.fromkeys(name for line in lines for name in _object(line) or {}))

    def objects(self, file: str, fields: Mapping[str, pa.DataType], needed: Sequence[str]) -> Iterator[pa.Table]:
        """The fields named, with their types, of a text file that holds one JSON object a line.

        Null where an object has no such field or empty text in it. Lines that are no object, those whose field is of
        another type, and those where a needed field is null are rejected; times are text such as 2018-07-07 22:09:11.
        """
        self.bad.pop(file, None)
        schema = pa.schema(list(fields.items()))
        first = 1
        with self.open(file) as stream:
            for block in _blocks(stream):
                table, broken = _parsed(block.removesuffix(b"\n"), schema)
                columns = {name: table[name] for name in fields}
                for name in fields:
                    if pa.types.is_string(fields[name]):
                        columns[name] = pc.if_else(pc.equal(columns[name], ""), None, columns[name])
                    if name in needed:
                        broken[f"{name} is missing"] = pc.is_null(columns[name])
                if len(rows := self.sound(file, first, pa.table(columns), broken)):
                    yield rows
                first += len(table)


CONTRACT = Dataset


class Frequent:
    """The users and items of at least so many rows, counted once over the whole log.

    No k-core: once the rare ones are gone, others may keep fewer rows than that. Memory grows with the number of users
    and items, not with the rows.
    """

    def __init__(self, log: Iterable[pa.Table], least: Mapping[str, int]) -> None:
        """least: for each key of the log, the rows that a value needs."""
        self.least = least
        counts: dict[str, Counter[Any]] = {key: Counter() for key in least}
        for table in _gathered(log):
            for key, counter in counts.items():
                counter.update(table[key].to_pylist())
        self.kept = {key: pa.array([v for v, n in counts[key].items() if n >= least[key]]) for key in least}

    def rows(self, log: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The rows of a log whose keys are all frequent, in tables of 1 to `CHUNK`; raises if there is none."""
        left = 0
        for table in _gathered(log):
            for key in self.least:
                table = table.filter(pc.is_in(table[key], value_set=self.kept[key].cast(table[key].type)))
            left += len(table)
            if len(table):
                yield table
        if not left:
            needed = " and ".join(f"{key} {rows}" for key, rows in self.least.items())
            raise DataError(f"no row is left: the rows that each value needs are, by column, {needed}")

    def entities(self, key: str, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The rows of the frequent ones in entity tables; of a key that stands there twice, the first."""
        nowhere = len(self.kept[key])
        met = np.arange(nowhere + 1) == nowhere
        for table in _gathered(tables):
            found = pc.index_in(table[key], value_set=self.kept[key].cast(table[key].type))
            place, first = np.unique(np.asarray(pc.fill_null(found, nowhere)), return_index=True)
            first = np.sort(first[~met[place]])
            met[place] = True
            if len(first):
                yield table.take(first)


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The stream cut after line ends, about `BLOCK_BYTES` at a time."""
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        whole, end, rest = (rest + block).rpartition(b"\n")
        if end:
            yield whole + end
    if rest:
        yield rest


def _unquoted(line: str, delimiter: str) -> list[str]:
    """The fields of a line; none if its quotes cannot be read."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object that a line holds, if it does; bytes that are not of utf-8 become U+FFFD."""
    try:
        held = json.loads(line.decode("utf-8-sig", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None
    return held if isinstance(held, dict) else None


def _read(text: bytes, schema: pa.Schema) -> Any:
    """The schema's fields of one JSON object a line, if all lines can be read; Arrow crashes where one is `null`."""
    lines = text.count(b"\n") + 1
    if not text.startswith(b"{") or text.count(b"\n{") + 1 != lines:
        return None
    reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pyarrow.json.read_json(pa.BufferReader(text), read_options=reading, parse_options=parsing)
        table.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return table if len(table) == lines else None


def _written(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One JSON object a line."""
    return "\n".join(json.dumps(row) for row in rows).encode()


def _parsed(text: bytes, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]]:
    """One row a line, and masks of the broken ones; what Arrow refuses is read line by line."""
    if (table := _read(text, schema)) is not None:
        return table, {}
    held = [_object(line) for line in text.split(b"\n")]
    broken = {"is not a JSON object": np.array([row is None for row in held])}
    columns = {}
    for field in schema:
        alone = pa.schema([field])
        values = [{field.name: row.get(field.name) if row else None} for row in held]
        if (column := _read(_written(values), alone)) is None:
            wrong = np.array([_read(_written([value]), alone) is None for value in values])
            broken[f"{field.name} is not of type {field.type}"] = wrong
            column = _read(_written([{} if bad else value for value, bad in zip(values, wrong, strict=True)]), alone)
        columns[field.name] = column[field.name]
    return pa.table(columns), broken


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of `CHUNK`, the last one shorter."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        while (rows := sum(map(len, waiting))) >= CHUNK:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, CHUNK).combine_chunks()
            waiting = [whole.slice(CHUNK)] if rows > CHUNK else []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
