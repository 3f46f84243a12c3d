"""Raw values to ids: vocabularies that grow as they read, quantile bins, one row of features for each user or item."""

import hashlib
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nascore.datasets import DataError, Feature
from nascore.schema import Column, Side

Ids = NDArray[np.int32]


class Vocabulary:
    """Ids from 1 on in order of first appearance; 0 is null, or unknown once the vocabulary no longer grows.

    most: once it holds so many values, further ones share their ids by a hash; 0 for no limit.
    """

    def __init__(self, most: int = 0) -> None:
        self.ids: dict[object, int] = {}
        self.most = most

    def __len__(self) -> int:
        return len(self.ids) + 1

    def encode(self, values: pa.Array | pa.ChunkedArray, grow: bool = True) -> Ids:
        """The ids of an array of values. Shape (rows,)."""
        array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        coded = array.dictionary_encode()
        known = self.ids
        values_seen = [value for value in coded.dictionary.to_pylist() if value is not None]
        if grow:
            for value in values_seen:
                if value not in known and not (self.most and len(known) >= self.most):
                    known[value] = len(known) + 1
        full = bool(self.most) and len(known) >= self.most
        found = [
            known.get(v) or (self._shared(v) if full and v is not None else 0) for v in coded.dictionary.to_pylist()
        ]
        ids = np.array([0, *found], np.int32)
        place = np.asarray(pc.fill_null(pc.add(coded.indices.cast(pa.int32()), 1), 0))
        ids_B: Ids = ids[place]
        return ids_B

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

    def add_table(self, table: pa.Table) -> None:
        """Take the features that an entity table holds; keys that never occur in the log are left out.

        Raises DataError for a key that stands there twice.
        """
        ids = self.keys.encode(table[self.key], grow=False)
        for row, i in enumerate(ids.tolist()):
            if i and i in self.tabled:
                raise DataError(f"the {self.side} table has two rows for {self.key} {table[self.key][row]}")
            self.tabled.add(i)
        for feature in self.own:
            if feature.name in table.column_names:
                values = table[feature.name].to_pylist()
                self.values[feature.name].update((int(i), v) for i, v in zip(ids, values, strict=True) if i)

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
        """The columns, one row of ids for each key (row 0 is the unknown key), and the digest of each vocabulary."""
        count = len(self.keys)
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
        return columns, pa.table(arrays), digests


def binned(values: list[object], bins: int) -> Ids:
    """Numbers to quantile bins 1..bins; 0 for null and NaN."""
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    known = np.isfinite(numbers)
    edges = np.quantile(numbers[known], np.arange(1, bins) / bins) if known.any() else np.zeros(0)
    return np.where(known, np.searchsorted(edges, numbers, side="right") + 1, 0).astype(np.int32)
