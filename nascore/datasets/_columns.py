"""Columns of parquet files: what they may serve as, what they are read as, and their rows in bounded memory."""

from collections.abc import Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

BUFFER_BYTES = 1 << 20
TYPES = {
    "key": "integers or text",
    "timestamp": "integers, dates or timestamps",
    "label": "numbers or booleans",
    "category": "integers, text or booleans; floats can be a number",
    "set": "lists of integers, text or booleans",
    "number": "integers, floats or decimals",
}


def batches(stream: IO[bytes], columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
    """The rows of a file in order, 1 to `size` at a time.

    A reader of many row groups holds the dictionaries of all that it has passed, so each reads a few.
    """
    parquet = pq.ParquetFile(stream, buffer_size=BUFFER_BYTES)
    groups = range(parquet.num_row_groups)
    passed = np.cumsum([parquet.metadata.row_group(group).num_rows for group in groups], dtype=np.int64)
    for part in np.split(np.array(groups, np.int64), np.flatnonzero(np.diff(passed // size)) + 1):
        yield from parquet.iter_batches(size, row_groups=part.tolist(), columns=columns)


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: a dictionary is what it holds, text and lists are of the usual width."""
    if types.is_dictionary(kind):
        return plain(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type))
    return kind


def serves(role: str, kind: pa.DataType) -> bool:
    whole, text, truth = types.is_integer(kind), types.is_string(kind), types.is_boolean(kind)
    number = whole or types.is_floating(kind) or types.is_decimal(kind)
    known: dict[str, bool] = {
        "key": whole or text,
        "timestamp": (whole and kind != pa.uint64()) or types.is_date(kind) or types.is_timestamp(kind),
        "label": number or truth,
        "category": whole or text or truth,
        "set": types.is_list(kind) and serves("category", kind.value_type),
        "number": number,
    }
    return known[role]


def converted(column: pa.Array, role: str) -> pa.Array:
    """Timestamps as int64, dates as microseconds since 1970; labels as int8, 1 above 0; numbers as float64."""
    if role == "timestamp" and not types.is_integer(column.type):
        zone = column.type.tz if types.is_timestamp(column.type) else None
        whole = pc.CastOptions(pa.timestamp("us", zone), allow_time_truncate=True)
        return pc.cast(column, options=whole).cast(pa.int64())
    if role == "timestamp":
        return column.cast(pa.int64())
    if role in ("label", "number"):
        number = column.cast(pa.float64())
        return pc.greater(number, 0).cast(pa.int8()) if role == "label" else number
    return column.cast(plain(column.type))
