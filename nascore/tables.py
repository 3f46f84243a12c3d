"""Raw values to ids: vocabularies that grow as they read, quantile bins, one row of features for each user or item."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nascore.datasets import DataError, Feature
from nascore.schema import Column, Side

Ids = NDArray[np.int32]
VALUES_A_TABLE = 131_072
UNKNOWN, SHARED, BINS = "0", "crc32", "bins"
"""Under `unknown` in the metadata of a table of values and ids: what becomes of a value that does not stand there.

`0`: it has id 0. `crc32`: the id of row crc32(repr(value)) % rows, null none the less 0. `bins`: there are no values
but numbers `from` which on an id holds, in order; null and what is no finite number have 0, and without rows all have.
"""


class Vocabulary:
    """Ids from 1 on in order of first appearance; 0 is null, or unknown once the vocabulary no longer grows.

    most: once it holds so many values, further ones share their ids by a hash; 0 for no limit. kind: the type of its
    values.
    """

    def __init__(self, most: int = 0) -> None:
        self.ids: dict[object, int] = {}
        self.most = most
        self.kind: pa.DataType = pa.null()

    def __len__(self) -> int:
        return len(self.ids) + 1

    def encode(self, values: pa.Array | pa.ChunkedArray, grow: bool = True) -> Ids:
        """The ids of an array of values. Shape (rows,)."""
        array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if grow and array.type != self.kind:
            both = [pa.schema([("value", kind)]) for kind in (self.kind, array.type)]
            self.kind = pa.unify_schemas(both, promote_options="permissive").field(0).type
        coded = array.dictionary_encode()
        known = self.ids
        values_seen = [value for value in coded.dictionary.to_pylist() if value is not None]
        if grow:
            for value in values_seen:
                if value not in known and not (self.most and len(known) >= self.most):
                    known[value] = len(known) + 1
        full = self.full
        found = [
            known.get(v) or (self._shared(v) if full and v is not None else 0) for v in coded.dictionary.to_pylist()
        ]
        ids = np.array([0, *found], np.int32)
        place = np.asarray(pc.fill_null(pc.add(coded.indices.cast(pa.int32()), 1), 0))
        ids_B: Ids = ids[place]
        return ids_B

    @property
    def full(self) -> bool:
        """Whether further values share ids."""
        return bool(self.most) and len(self.ids) >= self.most

    def tables(self, new: Ids | None = None) -> Iterator[pa.Table]:
        """Its values and their ids in order, in one table or more; see `UNKNOWN`.

        new: other ids in the place of its own, those with 0 left out where the rule allows. Null is never a value.
        """
        kind = pa.string() if pa.types.is_null(self.kind) else self.kind
        about = {"unknown": SHARED if self.full else UNKNOWN}
        schema = pa.schema([("value", kind), ("id", pa.int32())], metadata=about)
        entries = iter(self.ids.items())
        part = list(islice(entries, VALUES_A_TABLE))
        while True:
            id_V = np.array([number for _, number in part], np.int32)
            id_V = id_V if new is None else new[id_V]
            columns = [pa.array([value for value, _ in part], kind), pa.array(id_V)]
            table = pa.table(columns, schema=schema)
            yield table if self.full else table.filter(pa.array(id_V > 0))
            if not (part := list(islice(entries, VALUES_A_TABLE))):
                return

    def _shared(self, value: object) -> int:
        return zlib.crc32(repr(value).encode()) % self.most + 1

    def digest(self) -> str:
        return hashlib.sha256(repr(list(self.ids)).encode()).hexdigest()


class Entities:
    """The features of one side, from its own tables or from the log, where the earliest row of a key counts."""

    def __init__(self, side: Side, key: str, keys: Vocabulary, features: Iterable[Feature]) -> None:
        self.side, self.key, self.keys = side, key, keys
        self.features = [feature for feature in features if feature.side == side]
        self.own = [feature for feature in self.features if feature.name != key]
        self.values: dict[str, dict[int, Any]] = {feature.name: {} for feature in self.own}
        self.since: dict[int, int] = {}
        self.tabled: set[int] = set()
        self.sample: object = None
        self.known: dict[str, Iterable[pa.Table]] = {}

    def add_table(self, table: pa.Table) -> None:
        """Take the features that an entity table holds; keys that never occur in the log are left out.

        Raises DataError for a key that stands there twice.
        """
        ids = self.keys.encode(table[self.key], grow=False)
        for row, i in enumerate(ids.tolist()):
            if i and i in self.tabled:
                raise DataError(f"the {self.side} table has two rows for {self.key} {table[self.key][row]}")
            self.tabled.add(i)
        if self.sample is None and len(table):
            self.sample = table[self.key][0].as_py()
        for feature in self.own:
            if feature.name in table.column_names:
                values = table[feature.name].to_pylist()
                self.values[feature.name].update((int(i), v) for i, v in zip(ids, values, strict=True) if i)

    @property
    def left_out(self) -> int:
        """How many of the log's keys have no row in the tables; 0 where there are none."""
        return len(self.keys) - 1 - len(self.tabled - {0}) if self.tabled else 0

    def check_tables(self) -> None:
        """Raise DataError where there are tables and none of their keys is one of the log."""
        if self.tabled == {0}:
            known = next(iter(self.keys.ids), None)
            raise DataError(
                f"the {self.side} table holds none of the log's {self.key}, such as {known!r}, but others, such as "
                f"{self.sample!r}: both must name an entity by the same value"
            )

    def add_log(self, table: pa.Table, ids: Ids, timestamp: NDArray[np.int64]) -> None:
        """Take the features that stand in the log, as of the earliest row of each key."""
        inside = [feature for feature in self.own if feature.name in table.column_names]
        if not inside:
            return
        order = np.argsort(timestamp, kind="stable")
        _, first = np.unique(ids[order], return_index=True)
        rows = [int(row) for row in order[first] if timestamp[row] < self.since.get(int(ids[row]), 1 << 63)]
        self.since.update((int(ids[row]), int(timestamp[row])) for row in rows)
        for feature in inside:
            values = table[feature.name].take(pa.array(rows, pa.int64())).to_pylist()
            self.values[feature.name].update((int(ids[row]), value) for row, value in zip(rows, values, strict=True))

    def finish(self) -> tuple[list[Column], pa.Table, dict[str, str]]:
        """The columns, one row of ids for each key (row 0 is the unknown key), and the digest of each vocabulary.

        `known` then holds which values each feature's ids stand for, as tables.
        """
        count = len(self.keys)
        self.known = {self.key: self.keys.tables()}
        columns, arrays = [], {self.key: pa.array(np.arange(count, dtype=np.int32))}
        digests = {self.key: self.keys.digest()}
        for feature in self.features:
            if feature.name == self.key:
                columns.append(Column(feature.name, self.side, "category", count))
                continue
            known = self.values[feature.name]
            values = [known.get(key) for key in range(count)]
            if feature.kind == "number":
                columns.append(Column(feature.name, self.side, "category", feature.bins + 1))
                arrays[feature.name] = pa.array(binned(values, feature.bins))
                self.known[feature.name] = [bins_table(values, feature.bins)]
                continue
            vocabulary = Vocabulary()
            if feature.kind == "category":
                arrays[feature.name] = pa.array(vocabulary.encode(pa.array(values)))
                columns.append(Column(feature.name, self.side, "category", len(vocabulary)))
            else:
                lists = pa.array([value or [] for value in values])
                width = max(1, max(len(value or []) for value in values))
                padded = np.zeros((count, width), np.int32)
                lengths = np.asarray(pc.list_value_length(lists))
                padded[np.arange(width) < lengths[:, None]] = vocabulary.encode(lists.flatten())
                arrays[feature.name] = pa.FixedSizeListArray.from_arrays(pa.array(padded.ravel()), width)
                columns.append(Column(feature.name, self.side, "set", len(vocabulary), width))
            digests[feature.name] = vocabulary.digest()
            self.known[feature.name] = vocabulary.tables()
        return columns, pa.table(arrays), digests


def binned(values: list[object], bins: int) -> Ids:
    """Numbers to quantile bins 1..bins; 0 for null and NaN."""
    numbers = _numbers(values)
    place = np.searchsorted(_edges(numbers, bins), numbers, side="right")
    return np.where(np.isfinite(numbers), place + 1, 0).astype(np.int32)


def bins_table(values: list[object], bins: int) -> pa.Table:
    """From which number on each of those bins holds; see `BINS`."""
    numbers = _numbers(values)
    start = np.concatenate([[-np.inf], _edges(numbers, bins)]) if np.isfinite(numbers).any() else np.zeros(0)
    columns = {"from": start, "id": np.arange(1, len(start) + 1, dtype=np.int32)}
    return pa.table(columns).replace_schema_metadata({"unknown": BINS})


def _numbers(values: list[object]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _edges(numbers: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    known = np.isfinite(numbers)
    return np.quantile(numbers[known], np.arange(1, bins) / bins) if known.any() else np.zeros(0)
