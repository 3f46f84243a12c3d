"""The vectors of all items, an index over them, and how much of an exact search it finds."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor

from components.models import Opened
from nascore.rows import Data
from nascore.tasks.retrieval import Retrieval, encode_items, preferences

FLAT, GRAPH = 50_000, 2_000_000
WIDEST = 4_096
LARGEST = 8  # GiB of all items' vectors
QUERIES, BLOCK = 1_000, 256
KS = (1, 10, 100)
EQUAL = 1e-6


@dataclass(frozen=True)
class Searched:
    """How an index did. recall: for each k the share of the k best items by exact search that it finds, too."""

    kind: str
    items: int
    width: int
    queries: int
    recall: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def check_size(known: Opened, valid: Data) -> None:
    """Raises ValueError if the vectors of all items are too large to be files."""
    if isinstance(known.task, Retrieval):
        items = valid.schema.items
        _, width = known.model(valid.item_batch(torch.ones(1, dtype=torch.int32, device=valid.home)))["item"].shape
        if (size := items * width * 4 / 2**30) > LARGEST:
            raise ValueError(
                f"an item's vector has {width:,} numbers here: those of {items:,} items take {size:,.2f} GiB, and "
                f"a bundle holds up to {LARGEST}; choose another --model"
            )


@torch.inference_mode()
def item_vectors(known: Opened, valid: Data) -> Tensor:
    """By item id; row 0 is nobody's. Shape (items, O)."""
    if isinstance(known.task, Retrieval):
        vector_IO = encode_items(known.model, valid)
    else:
        vector_IO = known.model(valid.batch(torch.arange(1)))["item"]
    return vector_IO.clone().contiguous()


@torch.inference_mode()
def queries(known: Opened, valid: Data) -> Tensor:
    """The vectors of the first validation rows: (Q, O), or (Q, K, O) of K vectors a user."""
    found = []
    for row_B in torch.arange(min(QUERIES, valid.rows)).split(BLOCK):
        if isinstance(known.task, Retrieval):
            user_B, _, before_B = valid.keys(row_B)
            batch = valid.user_batch(user_B, before_B, known.task.whole)
        else:
            batch = valid.batch(row_B)
        found.append(known.model(batch)["user"])
    return torch.cat(found).clone()


def build(vector_IO: Tensor) -> tuple[Any, str]:
    """A FAISS index by inner product over all items but 0, which it knows by their ids, and what it is.

    Exact up to `FLAT` items, a graph up to `GRAPH`, beyond that lists. Raises ImportError where FAISS is not installed.
    """
    import faiss
    import numpy as np

    vectors = vector_IO[1:].float().numpy()
    count, width = vectors.shape
    if count <= FLAT:
        index, kind = faiss.IndexFlatIP(width), "flat"
    elif count <= GRAPH:
        index, kind = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT), "hnsw:32"
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
    else:
        lists = ceil(4 * sqrt(count))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe, kind = max(1, lists // 32), f"ivf:{lists},probes={max(1, lists // 32)}"
        index.train(vectors[np.random.default_rng(0).permutation(count)[: 64 * lists]])
    named = faiss.IndexIDMap2(index)
    named.add_with_ids(vectors, np.arange(1, count + 1, dtype=np.int64))
    return named, kind


def searched(index: Any, kind: str, vector_IO: Tensor, query_Q: Tensor) -> Searched:
    """Compare with an exact search. An item counts as found if it is as good as the k-th best."""
    count, width = vector_IO.shape[0] - 1, vector_IO.shape[1]
    totals = dict.fromkeys((k for k in KS if k <= count), 0.0)
    deepest = max(totals)
    for own_BO, score_BI in _exact(vector_IO, query_Q):
        flat = own_BO.reshape(-1, width).contiguous().numpy()
        _, id_MK = index.search(flat, deepest)
        id_BC = torch.from_numpy(id_MK).reshape(len(own_BO), -1)
        found_BI = torch.full_like(score_BI, -torch.inf)
        place_BC = torch.where(id_BC > 0, id_BC, 0)
        found_BI.scatter_(1, place_BC, score_BI.gather(1, place_BC))
        found_BI[:, 0] = -torch.inf
        best_BK = score_BI.topk(deepest, 1).values
        own_BK = found_BI.topk(deepest, 1).values
        for k in totals:
            least_B1 = best_BK[:, k - 1 : k]
            enough_BK = own_BK[:, :k] >= least_B1 - EQUAL * least_B1.abs().clamp(min=1)
            totals[k] += float(enough_BK.double().mean(1).sum())
    recall = {f"recall@{k}": total / len(query_Q) for k, total in totals.items()}
    return Searched(kind, count, width, len(query_Q), recall)


def _exact(vector_IO: Tensor, query_Q: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    block = max(1, (1 << 24) // len(vector_IO))
    for own_BO in query_Q.split(block):
        score_BI = preferences(own_BO, vector_IO)
        score_BI[:, 0] = -torch.inf
        yield own_BO, score_BI
