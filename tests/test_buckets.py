"""Numbers as categories, against plain Python."""

import math
from random import Random

import numpy as np
import torch

from nascore.buckets import BUCKETS, bucket, bucketed, in_buckets
from nascore.schema import Batch, Column, Schema


def test_numbers_are_categories_by_their_logarithm() -> None:
    def plain(value: float) -> int:
        if math.isnan(value):
            return 0
        if value < 0:
            return 1
        if value <= 2:
            return 2 + math.floor(value)
        return 66 if math.isinf(value) else 4 + min(62, int(value).bit_length() - 1)

    rng = Random(3)
    powers = [2.0**n for n in range(-30, 100)]
    near = [float(np.nextafter(np.float32(one), np.float32(to))) for one in powers for to in (0, np.inf)]
    drawn = [rng.choice([-1, 1]) * 10 ** rng.uniform(-8, 30) for _ in range(2_000)]
    edges = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, 1.5, 2.5, 3.0, 3.99, -0.5, -1.0, -1e9, 3.4e38, 1e-45]
    values = torch.tensor([*powers, *near, *(-one for one in powers), *drawn, *edges])
    found = bucket(values)
    assert found.dtype == torch.int32
    assert found.tolist() == [plain(value) for value in values.tolist()]
    assert 0 <= found.min() and found.max() == BUCKETS - 1 == 66
    assert torch.equal(bucket(values.double()), found)


def test_only_numbers_become_categories() -> None:
    given = (Column("c", size=9), Column("n", kind="number"), Column("m", kind="number"))
    schema = Schema("", "", 0, 0, given, "stratified", {"train": 3})
    found = bucketed(schema)
    assert found.columns == (given[0], Column("n", size=BUCKETS), Column("m", size=BUCKETS))
    assert found.rows == schema.rows and schema.columns == given
    label = torch.tensor([1, 0])
    batch = Batch(
        {"c": torch.tensor([3, 8]), "n": torch.tensor([0.3, 9.0]), "m": torch.ones(2)}, {}, torch.ones(2), label
    )
    whole = in_buckets(batch, ("n", "m"))
    assert [whole[name].tolist() for name in "cnm"] == [[3, 8], [2, 7], [3, 3]]
    assert whole.label is label and batch["n"].tolist() == [torch.tensor(0.3).item(), 9.0]
    assert in_buckets(batch, ()) is batch
