"""Raw data to parquet by split: ids, splits, histories and entity tables, in memory bounded by users and items.

Two passes. The first reads the raw log once, gives ids and spills packed rows by ranges of users to local disk. The
second takes one range after the other, splits its users' rows, writes their histories, and spills the rows again into
random buckets. Where the raw log has no users, rows stand by themselves and `components.examples` prepares them.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from components import examples
from components.run import Folder, Run
from components.spills import Records, Spills
from components.vocabularies import keep
from nascore import plugins
from nascore.datasets import DataError, Dataset, Layout
from nascore.protocols import Protocol
from nascore.schema import SPLITS, Column, Schema
from nascore.storage import spill
from nascore.tables import Entities, Vocabulary

USERS_A_PART = 4_096
LABELLED = np.dtype([("user", "<i4"), ("item", "<i4"), ("timestamp", "<i8"), ("split", "i1")])


def main(run: Run) -> None:
    """Write rows by split, histories, entity tables, vocabularies, statistics and `schema.json`."""
    with run.stage("prepare") as folder, tempfile.TemporaryDirectory(prefix="nascore-prepare-") as scratch:
        dataset = run.raw_data()
        protocol: Protocol = plugins.load("protocols", run.protocol)()
        if dataset.layout().user:
            log = Log(dataset, Path(scratch))
            log.read()
            schema, statistics = write(log, protocol, run.protocol, folder)
        else:
            rows = examples.Examples(dataset, Path(scratch))
            rows.read()
            schema, statistics = examples.write(rows, protocol, run.protocol, folder)
        folder.write_json("statistics.json", {**statistics, "bad_rows": dict(dataset.bad)})
        folder.write_text("schema.json", schema.to_json())
    for remark in remarks(run, statistics):
        print(f"  prepare  {remark}", flush=True)


def remarks(run: Run, statistics: Mapping[str, Any]) -> Iterator[str]:
    """What of the data models will not learn from, one line each."""
    if run.unread:
        yield f"models of this task do not read {', '.join(run.unread)}"
    for side, keys in statistics.get("not_in_table", {}).items():
        if keys:
            every = statistics[f"{side}s"]
            yield f"{keys:,} of {every:,} {side}s have no row in the table of {side}s: what it tells is unknown of them"
    if run.schema.blank:
        rare = "" if run.schema.user else ", or stand in fewer than `fewest` training rows each"
        yield f"nothing is known of {', '.join(run.schema.blank)}: all values are missing{rare}"


class Log:
    """The raw log as packed rows of ids, spilled by ranges of `USERS_A_PART` users."""

    def __init__(self, dataset: Dataset, scratch: Path) -> None:
        self.dataset, self.scratch = dataset, scratch
        self.layout: Layout = dataset.layout()
        self.users, self.items = Vocabulary(), Vocabulary()
        self.sides = [
            Entities("user", self.layout.user, self.users, self.layout.features),
            Entities("item", self.layout.item, self.items, self.layout.features),
        ]
        self.own = [feature for feature in self.layout.features if feature.side == "row"]
        self.vocabularies = {feature.name: Vocabulary() for feature in self.own if feature.kind == "category"}
        for feature in self.own:
            if feature.kind == "set":
                raise DataError(f"feature {feature.name!r} is a set of a row; only users and items can have sets")
            if feature.bins:
                raise DataError(f"feature {feature.name!r} is a number of a row, never binned; leave out its bins")
        self.record = np.dtype(
            [("user", "i4"), ("item", "i4"), ("timestamp", "i8"), ("row", "i8"), ("before", "i4"), ("label", "i1")]
            + [(f.name, "f4" if f.kind == "number" else "i4") for f in self.own]
        )
        self.rows = self.negatives = 0

    def read(self) -> None:
        """The first pass. Rows with a label that is not positive are counted and left out."""
        for table in self.dataset.rows():
            if self.layout.label is not None:
                positive = np.asarray(table[self.layout.label]).astype(np.float64) > 0
                self.negatives += int((~positive).sum())
                table = table.filter(pa.array(positive))
            if len(table):
                self._spill(table)
        if not self.rows:
            raise DataError(f"{self.dataset.raw} holds no usable row; `python -m components check` tells what it holds")
        for side in self.sides:
            for table in self.dataset.entities(side.side):
                side.add_table(table)
            side.check_tables()

    def _spill(self, table: pa.Table) -> None:
        records = np.zeros(len(table), self.record)
        records["user"] = self.users.encode(table[self.layout.user])
        records["item"] = self.items.encode(table[self.layout.item])
        records["timestamp"] = np.asarray(table[self.layout.timestamp])
        records["row"] = np.arange(self.rows, self.rows + len(table))
        records["label"] = 1
        for feature in self.own:
            if feature.kind == "number":
                records[feature.name] = np.asarray(table[feature.name].cast(pa.float32()).fill_null(float("nan")))
            else:
                records[feature.name] = self.vocabularies[feature.name].encode(table[feature.name])
        self.sides[0].add_log(table, records["user"], records["timestamp"])
        self.sides[1].add_log(table, records["item"], records["timestamp"])
        self.rows += len(table)
        part = records["user"] // USERS_A_PART
        for number in np.unique(part):
            spill(self._part(int(number)), records[part == number])

    def _part(self, number: int) -> Path:
        return self.scratch / f"users-{number:06d}"

    def parts(self) -> Iterator[Records]:
        """The rows of each range of users, ordered by (user, timestamp, file order)."""
        for number in range((len(self.users) - 1) // USERS_A_PART + 1):
            if self._part(number).exists():
                records = np.fromfile(self._part(number), self.record)
                yield records[np.lexsort((records["row"], records["timestamp"], records["user"]))]

    def chunks(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        for records in self.parts():
            yield records["user"], records["timestamp"]


def write(log: Log, protocol: Protocol, name: str, folder: Folder) -> tuple[Schema, dict[str, Any]]:
    """The second pass: everything of the prepared data but its schema file."""
    protocol.survey(log.chunks)
    digest, users_in, open_to = hashlib.sha256(), np.zeros(3, np.int64), np.zeros(3, np.int64)
    spills = Spills(log.scratch, log.rows, log.record)
    for number, records in enumerate(log.parts()):
        split = protocol.split(records["user"], records["timestamp"])
        labelled = np.empty(len(records), LABELLED)
        for column in ("user", "item", "timestamp"):
            labelled[column] = records[column]
        labelled["split"] = split
        digest.update(labelled.tobytes())
        _count_before(records, split, protocol)
        open_to += _count_open(records, split, protocol)
        order = _rank_in_run(records["user"])
        enough = records["before"] >= protocol.least_before
        spills.add(records[enough], split[enough])
        for which, title in enumerate(SPLITS):
            chosen = split == which
            users_in[which] += len(np.unique(records["user"][chosen]))
            events = {"user": records["user"][chosen], "order": order[chosen], "item": records["item"][chosen]}
            folder.write_table(f"history/split={title}/part-{number:05d}.parquet", pa.table(events))
    spills.write(name, folder)
    columns, digests = _write_entities(log, folder)
    layout = log.layout
    schema = Schema(
        user=layout.user,
        item=layout.item,
        users=len(log.users),
        items=len(log.items),
        columns=columns,
        protocol=name,
        rows=spills.counts,
        history=layout.history,
        history_length=layout.history_length,
        history_from=dict(protocol.history_from),
        seen_in=dict(protocol.seen_in),
        split_digest=digest.hexdigest(),
        vocabulary_digests=digests,
    )
    statistics = {
        "rows": log.rows,
        "users": len(log.users) - 1,
        "items": len(log.items) - 1,
        "users_in": dict(zip(SPLITS, users_in.tolist(), strict=True)),
        "open_to": dict(zip(SPLITS, open_to.tolist(), strict=True)),
        "not_positive": log.negatives,
        "not_in_table": {side.side: side.left_out for side in log.sides if side.tabled},
    }
    return schema, statistics


def _count_before(records: Records, split: NDArray[np.int8], protocol: Protocol) -> None:
    """How many events of its history each row may see: strictly earlier ones, of the splits its histories come from."""
    user, timestamp = records["user"], records["timestamp"]
    fresh_user = np.diff(user, prepend=-1) != 0
    fresh_time = fresh_user | (np.diff(timestamp, prepend=0) != 0)
    run_start = np.maximum.accumulate(
        np.where(fresh_time if protocol.strictly_earlier else True, np.arange(len(user)), 0)
    )
    user_start = np.maximum.accumulate(np.where(fresh_user, np.arange(len(user)), 0))
    for which, title in enumerate(SPLITS):
        sources = [SPLITS.index(source) for source in protocol.history_from[title]]
        seen = np.concatenate([[0], np.isin(split, sources).cumsum()])
        chosen = split == which
        records["before"][chosen] = (seen[run_start] - seen[user_start])[chosen]


def _count_open(records: Records, split: NDArray[np.int8], protocol: Protocol) -> list[int]:
    """For each split, how many users that train have an item in it that is a candidate there."""
    pair, place = np.unique(records["user"].astype(np.int64) << 32 | records["item"], return_inverse=True)
    held = np.zeros((len(SPLITS), len(pair)), bool)
    held[split, place] = True
    user, counts = pair >> 32, list[int]()
    for own, title in zip(held, SPLITS, strict=True):
        met = held[[SPLITS.index(source) for source in protocol.seen_in[title]]].any(0)
        counts.append(len(np.intersect1d(user[own & ~met], user[held[0]])))
    return counts


def _rank_in_run(keys: NDArray[np.int32]) -> NDArray[np.int32]:
    """0, 1, 2 … within each run of equal keys."""
    fresh = np.diff(keys, prepend=-1) != 0
    start = np.maximum.accumulate(np.where(fresh, np.arange(len(keys)), 0))
    return (np.arange(len(keys)) - start).astype(np.int32)


def _write_entities(log: Log, folder: Folder) -> tuple[tuple[Column, ...], dict[str, str]]:
    columns: list[Column] = []
    digests: dict[str, str] = {}
    for side in log.sides:
        found, table, known = side.finish()
        columns += found
        digests |= known
        folder.write_table(f"entities/{side.side}.parquet", table)
        for name, values in side.known.items():
            keep(folder, name, values)
    for feature in log.own:
        size = 0 if feature.kind == "number" else len(log.vocabularies[feature.name])
        columns.append(Column(feature.name, "row", feature.kind, size))
    for name, vocabulary in log.vocabularies.items():
        digests[name] = vocabulary.digest()
        keep(folder, name, vocabulary.tables())
    return tuple(columns), digests
