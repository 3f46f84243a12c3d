"""Yesterday's supernet as the beginning of today's: weights by name, rows of tables by the values that they stand for.

Today's vocabulary differs from yesterday's: a value known to both takes its row along, one that is new keeps the row
that it was freshly given. The optimiser begins anew.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.folder import Folder
from components.run import Run
from components.versions import SUPERNET, vocabulary
from nascore.methods import Method
from nascore.net import Supernet
from nascore.schema import Schema
from nascore.sparse import RowAdagrad, RowAdam, Tables

Ids = NDArray[np.int64]
Pairs = Mapping[str, tuple[Ids, Ids]]
"""For each category today's ids and yesterday's of the same values, 0 with 0 first."""
FIRST = "step-000000000"


def begin(run: Run, known: Folder, base: Method) -> dict[str, Any]:
    """Write a checkpoint of step 0 into a prepared run, from a version's supernet; what became of the weights.

    base: the method of that supernet. Does nothing where the training has begun.
    """
    folder = run.folder / "supernet"
    if folder.names("step-*/done.json"):
        return folder.read_json(f"{FIRST}.json") if folder.exists(f"{FIRST}.json") else {}
    method, schema, before = run.method, run.schema, Schema.from_json(known.read_text("schema.json"))
    fresh = method.supernet(schema, method.space(schema), run.seeds[0], searching=True)
    with torch.device("meta"):
        old = base.supernet(before, base.space(before), 0, searching=True)
    prefix = "supernet."
    weights = known.read_tensors(SUPERNET)
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    told = inherit(fresh, old, own, pairs(run.folder / "prepare", known, schema, before))
    target = folder / FIRST
    task = {f"task.{name}": value for name, value in method.task(schema).state_dict().items()}
    begun = {f"{prefix}{name}": value.detach() for name, value in fresh.state_dict().items()}
    target.write_tensors("weights.safetensors", {**begun, **task})
    kinds = (RowAdam if method.train.optimizer == "adam" else RowAdagrad).kinds
    moments = {
        f"rows.{kind}.{name}": torch.zeros_like(module.weight)
        for name, module in fresh.net.named_modules()
        if isinstance(module, Tables) and module.weight.requires_grad
        for kind in kinds
    }
    target.write_tensors("optimizer.safetensors", {**moments, "step": torch.tensor(0)})
    target.write_json("curve.json", [])
    folder.write_json(f"{FIRST}.json", told)
    target.write_json("done.json", {"step": 0})
    return told


def pairs(now: Folder, before: Folder, schema: Schema, old: Schema) -> dict[str, tuple[Ids, Ids]]:
    """The ids of the values that both know, for every category of both; that of a bucketed number is its own."""
    found = {}
    for column in schema.columns:
        if column.kind != "category" or column.name not in {one.name for one in old.columns}:
            continue
        today, then = vocabulary(now, column.name), vocabulary(before, column.name)
        place = then.places(today.values)
        both = np.flatnonzero(place >= 0)
        ids, olds = today.id_V[both], then.id_V[place[both]]
        kept = (ids > 0) & (olds > 0)
        found[column.name] = (np.append(0, ids[kept]).astype(np.int64), np.append(0, olds[kept]).astype(np.int64))
    return found


def inherit(new: Supernet, old: Supernet, weights: Mapping[str, Tensor], known: Pairs) -> dict[str, Any]:
    """Give a fresh supernet what an older one's weights hold for it; what became of them.

    old: the older one's modules, without their values. weights: its state by name. "rows": for each table how many
    rows were known and how many are new; "fresh": parameters without a source, which stay as they were.
    """
    then = dict(old.named_modules())
    rows, fresh, done = dict[str, dict[str, int]](), list[str](), set[str]()
    with torch.no_grad():
        for name, module in new.named_modules():
            source = then.get(name)
            own = f"{name}.weight"
            if isinstance(module, Tables):
                done |= {own, f"{name}.first", f"{name}.rows"}
                if not isinstance(source, Tables) or module.weight.shape[1] != source.weight.shape[1]:
                    fresh.append(own)
                    continue
                start, starts = 0, _starts(source)
                for field, size in module.sizes.items():
                    at, of = placed(field, known, size, source.sizes.get(field, 0))
                    module.weight[start + at] = weights[own][starts.get(field, 0) + of]
                    rows[f"{name}.{field}"] = {"known": len(at), "new": size - len(at)}
                    start += size
            elif isinstance(module, nn.Embedding) and (field := name.rpartition(".")[2]) in known:
                done.add(own)
                if not isinstance(source, nn.Embedding) or module.embedding_dim != source.embedding_dim:
                    fresh.append(own)
                    continue
                at, of = placed(field, known, module.num_embeddings, source.num_embeddings)
                module.weight[at] = weights[own][of]
                rows[name] = {"known": len(at), "new": module.num_embeddings - len(at)}
        for name, value in new.state_dict().items():
            if name in done:
                continue
            if name in weights and weights[name].shape == value.shape:
                value.copy_(weights[name])
            else:
                fresh.append(name)
    return {"rows": rows, "fresh": sorted(fresh)}


def _starts(tables: Tables) -> dict[str, int]:
    found, start = {}, 0
    for field, size in tables.sizes.items():
        found[field], start = start, start + size
    return found


def placed(field: str, known: Pairs, size: int, size_before: int) -> tuple[Tensor, Tensor]:
    """Rows of today's table of a field, and those of yesterday's that they take over; each row of today's once.

    A field that is no category of both has the same ids on both days. Where several values share a row, because a table
    has a cap, that of the lowest id counts.
    """
    if not size_before:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    same = np.arange(min(size, size_before))
    ids, olds = known.get(field, (same, same))
    order = np.argsort(ids, kind="stable")
    at, of = _row(ids[order], size), _row(olds[order], size_before)
    rows, first = np.unique(at, return_index=True)
    return torch.from_numpy(rows), torch.from_numpy(of[first])


def _row(id_N: Ids, size: int) -> Ids:
    """The row of each id in a table of so many; as in `Tables`."""
    found: Ids = np.where(id_N > 0, (id_N - 1) % max(1, size - 1) + 1, 0)
    return found
