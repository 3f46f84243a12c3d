"""Numbers as categories: the whole logarithm of what is above 2 (iHAS §4.1; the library it is built on does alike)."""

from dataclasses import replace

import torch
from torch import Tensor

from nascore.schema import Batch, Schema

LARGEST = 62
BUCKETS = LARGEST + 5
"""0 missing, 1 below 0, 2 to 4 for 0, 1 and 2 rounded down, then one for each whole logarithm to base 2."""


def bucketed(schema: Schema) -> Schema:
    """The schema whose numbers are categories."""
    columns = (replace(one, kind="category", size=BUCKETS) if one.kind == "number" else one for one in schema.columns)
    return replace(schema, columns=tuple(columns))


def bucket(value_B: Tensor) -> Tensor:
    """The id of each number. Shape (B,), int32."""
    small_B = value_B.floor().clamp(-1, 2) + 2
    log_B = torch.frexp(value_B.nan_to_num(0.0)).exponent - 1
    id_B = torch.where(value_B > 2, log_B.clamp(1, LARGEST) + 4, small_B.nan_to_num(0.0).to(torch.int32))
    return torch.where(value_B == torch.inf, BUCKETS - 1, id_B).to(torch.int32)


def in_buckets(batch: Batch, numbers: tuple[str, ...]) -> Batch:
    """The batch with ids in the place of some numbers."""
    if not numbers:
        return batch
    return replace(batch, columns={**batch.columns, **{name: bucket(batch[name]) for name in numbers}})
