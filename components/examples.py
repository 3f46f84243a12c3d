"""Rows that stand by themselves, as in click prediction, to parquet by split; memory is that of the vocabularies.

The first pass reads the raw log once, gives ids and spills packed rows in file order. The second splits them and counts
each value's training rows, the third leaves out values of too few and spills the rows again by split. Between them a
byte a row says its split.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components.folder import Folder
from components.spills import Records, Spills
from components.vocabularies import keep
from nascore.datasets import CHUNK, DataError, Dataset
from nascore.protocols import Protocol
from nascore.schema import SPLITS, Column, Schema
from nascore.storage import spill
from nascore.tables import Vocabulary

TRAIN = SPLITS.index("train")


class Examples:
    """The raw log as packed rows of ids in file order."""

    def __init__(self, dataset: Dataset, scratch: Path) -> None:
        self.dataset, self.scratch, self.layout = dataset, scratch, dataset.layout()
        for feature in self.layout.features:
            if feature.side != "row" or feature.kind == "set" or feature.bins:
                raise DataError(f"feature {feature.name!r}: rows that stand by themselves have categories and numbers")
            if feature.name in ("label", "timestamp"):
                raise DataError(f"{dataset.raw}: no feature can have the name {feature.name!r}; rename its column")
        self.categories = [feature for feature in self.layout.features if feature.kind == "category"]
        self.vocabularies = {feature.name: Vocabulary(feature.most) for feature in self.categories}
        self.record = np.dtype(
            [("label", "i4"), ("timestamp", "i8")]
            + [(f.name, "f4" if f.kind == "number" else "i4") for f in self.layout.features]
        )
        self.rows = self.positive = 0

    def read(self) -> None:
        """The first pass."""
        assert self.layout.label is not None
        for table in self.dataset.rows():
            records = np.zeros(len(table), self.record)
            records["label"] = np.asarray(table[self.layout.label])
            in_order = np.arange(self.rows, self.rows + len(table))
            stamped = bool(self.layout.timestamp)
            records["timestamp"] = np.asarray(table[self.layout.timestamp]) if stamped else in_order
            for feature in self.layout.features:
                column = table[feature.name]
                if feature.kind == "number":
                    value = np.asarray(column.cast(pa.float32(), safe=False).fill_null(float("nan")))
                    records[feature.name] = np.where(np.isfinite(value), value, np.float32("nan"))
                else:
                    records[feature.name] = self.vocabularies[feature.name].encode(column)
            self.rows += len(table)
            self.positive += int(records["label"].sum())
            spill(self.scratch / "rows", records)
        if not self.rows:
            raise DataError(f"{self.dataset.raw} holds no usable row; `python -m components check` tells what it holds")
        if self.positive in (0, self.rows):
            raise DataError(f"{self.dataset.raw}: all {self.rows} labels are {min(1, self.positive)}; nothing to learn")

    def chunks(self) -> Iterator[Records]:
        """The rows in file order."""
        with open(self.scratch / "rows", "rb") as spill:
            while len(records := np.fromfile(spill, self.record, CHUNK)):
                yield records

    def labels(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        for records in self.chunks():
            yield records["label"], records["timestamp"]


def write(log: Examples, protocol: Protocol, name: str, folder: Folder) -> tuple[Schema, dict[str, Any]]:
    """The second and third pass: everything of the prepared data but its schema file."""
    protocol.survey(log.labels)
    digest, splits = hashlib.sha256(), list[NDArray[np.int8]]()
    counts = {feature.name: np.zeros(len(log.vocabularies[feature.name]), np.int64) for feature in log.categories}
    positive = dict.fromkeys(SPLITS, 0)
    for records in log.chunks():
        splits.append(protocol.split(records["label"], records["timestamp"]))
        digest.update(records.tobytes())
        for column, count in counts.items():
            count += np.bincount(records[column][splits[-1] == TRAIN], minlength=len(count))
        for which, title in enumerate(SPLITS):
            positive[title] += int(records["label"][splits[-1] == which].sum())
    for split in splits:
        digest.update(split.tobytes())
    for which, title in enumerate(SPLITS):
        rows = sum(int((split == which).sum()) for split in splits)
        if rows and positive[title] in (0, rows):
            only, every = min(1, positive[title]), sum(map(len, splits))
            rarer = min(ones := sum(positive.values()), every - ones)
            raise DataError(
                f"all {rows} labels of the {title} split are {only} under protocol {name}; take another, or more rows: "
                f"the rarer label stands in {rarer:,} of {every:,}"
            )
    new = {feature.name: _renumbered(counts[feature.name], feature.fewest) for feature in log.categories}
    spills = Spills(log.scratch, log.rows, log.record)
    for records, split in zip(log.chunks(), splits, strict=True):
        for column, ids in new.items():
            records[column] = ids[records[column]]
        spills.add(records, split)
    spills.write(name, folder)
    for column, ids in new.items():
        keep(folder, column, log.vocabularies[column].tables(ids))
    columns = [
        Column(f.name, "row", f.kind, 0 if f.kind == "number" else int(new[f.name].max()) + 1)
        for f in log.layout.features
    ]
    digests = {
        column: hashlib.sha256((log.vocabularies[column].digest() + new[column].tobytes().hex()).encode()).hexdigest()
        for column in new
    }
    schema = Schema(
        user="",
        item="",
        users=0,
        items=0,
        columns=tuple(columns),
        protocol=name,
        rows=spills.counts,
        split_digest=digest.hexdigest(),
        vocabulary_digests=digests,
    )
    return schema, {"rows": log.rows, "positive_in": positive}


def _renumbered(count: NDArray[np.int64], fewest: int) -> NDArray[np.int32]:
    """The new id of each id: 0 for those of fewer training rows, from 1 on for the others in their order."""
    kept = count >= max(1, fewest)
    kept[0] = False
    return np.where(kept, kept.cumsum(), 0).astype(np.int32)
