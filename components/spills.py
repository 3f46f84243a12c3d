"""Rows on local disk on their way to parquet: those of a split lie in random buckets, and in random order in each."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from components.folder import Folder
from nascore.datasets import DataError
from nascore.rows import seed_of
from nascore.schema import SPLITS
from nascore.storage import spill

BUCKET_BYTES = 48 << 20
ROWS_A_GROUP, FEWEST_A_GROUP, GROUPS = 65_536, 64, 64
Records = NDArray[Any]


class Spills:
    """Takes packed rows by split; once all are there, writes a split's row groups, which are exchangeable.

    Reading them one after the other is reading in random order.
    """

    def __init__(self, scratch: Path, rows: int, record: np.dtype[Any]) -> None:
        self.scratch, self.record = scratch, record
        self.buckets = max(1, -(-rows * record.itemsize // BUCKET_BYTES))
        self.draw = np.random.default_rng(seed_of("prepare", "buckets"))
        self.counts = dict.fromkeys(SPLITS, 0)

    def add(self, records: Records, split: NDArray[np.int8]) -> None:
        """Rows with the number of the split that each is in."""
        bucket = self.draw.integers(0, self.buckets, len(records))
        for which, title in enumerate(SPLITS):
            chosen = split == which
            self.counts[title] += int(chosen.sum())
            for target in np.unique(bucket[chosen]):
                spill(self.scratch / f"{title}-{target:05d}", records[chosen & (bucket == target)])

    def write(self, protocol: str, folder: Folder) -> None:
        """One file a bucket; small splits have row groups enough for many workers too. Raises for an empty split."""
        empty = [title for title, count in self.counts.items() if not count]
        if empty:
            rows = sum(self.counts.values())
            raise DataError(
                f"{rows} rows under protocol {protocol} leave {' and '.join(empty)} empty; take another --protocol"
            )
        for title, rows in self.counts.items():
            size = min(ROWS_A_GROUP, max(FEWEST_A_GROUP, -(-rows // GROUPS)))
            for number in range(self.buckets):
                bucket = self.scratch / f"{title}-{number:05d}"
                if not bucket.exists():
                    continue
                records = np.fromfile(bucket, self.record)
                records = records[np.random.default_rng(seed_of("prepare", title, number)).permutation(len(records))]
                table = pa.table({field: np.ascontiguousarray(records[field]) for field in self.record.names or ()})
                with folder.writing(f"split={title}/part-{number:05d}.parquet") as local:
                    pq.write_table(table, local, compression="zstd", row_group_size=size)
                bucket.unlink()
                del records, table  # before the next bucket is read
