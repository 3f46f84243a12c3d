"""Which values the ids of prepared data stand for: `vocabulary/<feature>.parquet`, written a table at a time."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from components.folder import Folder

VOCABULARY = "vocabulary"


def keep(folder: Folder, name: str, tables: Iterable[pa.Table]) -> None:
    """Write a feature's values and ids, one table or more; see `nascore.tables.UNKNOWN`."""
    coming = iter(tables)
    first = next(coming)
    with folder.writing(path(name)) as local, pq.ParquetWriter(local, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in coming:
            writer.write_table(table)


def path(name: str) -> str:
    """Where they stand, below a prepared folder."""
    return f"{VOCABULARY}/{name}.parquet"
