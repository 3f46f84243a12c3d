"""The frame of click nets: numbers and categories of a row looked up, one logit a row."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nascore.cost import Cost
from nascore.fitness import Fitness
from nascore.net import Net
from nascore.plugins import bounded
from nascore.schema import Batch, Schema
from nascore.space import Decision, Space
from nascore.sparse import Tables
from nascore.tasks.click import Click
from nascore.training import Plan

Inputs = dict[str, Tensor]
JUDGED = Fitness(rows=1_228_800, batch=8_192, calibration=0)
"""How click models are judged: the log loss of at most 150 batches of validation rows, as in NASRec's public code."""


class ClickNet(Net):
    """Embeds every category by a table of `width`; numbers v enter as log(1 + max(0, v)), missing ones as 0.

    The output is the logit of each row, (B,). cap: the most rows of a table, see `Tables`.
    """

    def __init__(self, schema: Schema, space: Space, width: int, cap: int = 0) -> None:
        super().__init__(schema, space)
        if schema.user:
            raise ValueError("a click model learns from rows that stand by themselves; this data has users and items")
        categories = [column for column in schema.columns if column.kind == "category"]
        if not categories:
            raise ValueError("nothing to embed: a click model needs at least one feature of kind category")
        self.names = tuple(column.name for column in categories)
        self.numbers = tuple(column.name for column in schema.columns if column.kind == "number")
        self.sizes = {column.name: column.size for column in categories}
        self.width = width
        self.tables = Tables(self.sizes, width, cap)

    @property
    def dense_width(self) -> int:
        """How many numbers a row has; without any there is one that is always 0."""
        return max(1, len(self.numbers))

    def embed(self, batch: Batch) -> Inputs:
        """ "dense" (B, dense_width), "sparse" (B, N, width)."""
        if self.numbers:
            value_BF = torch.stack([batch[name] for name in self.numbers], 1)
            dense_BF = value_BF.clamp(min=0).log1p().nan_to_num(0.0, posinf=0.0)
        else:
            dense_BF = torch.zeros(len(batch), 1, device=batch.rows.device)
        return {"dense": dense_BF, "sparse": self.tables(self.ids(batch))}

    def ids(self, batch: Batch) -> Tensor:
        """The ids of a batch. Shape (B, N)."""
        return torch.stack([batch[name] for name in self.names], 1)

    def table_costs(self) -> dict[str, Cost]:
        """The weights of all tables."""
        return {"tables": Cost(table_params=self.tables.weight.numel())}


@dataclass(frozen=True)
class ClickTraining:
    """How every click model is trained alone: Adagrad, a learning rate that rises, then falls on half a cosine.

    Args:
        batch: Rows of a batch of all workers together.
        learning_rate: Adagrad's.
        weight_decay: L2 penalty on weights of two or more dimensions; of tables, on the rows that a step touches.
        clip: Largest norm of the joined gradient, tables included; 0 for none.
        warmup: Share of the steps over which the learning rate rises.
        epsilon: Adagrad's; the public code's 0.01 is large beside the gradients of small data.
        epochs: The most epochs.
        patience: Epochs without a better validation loss after which it ends.
    """

    batch: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    clip: float = 5.0
    warmup: float = 0.1
    epsilon: float = 1e-2
    epochs: int = 1
    patience: int = 2

    tunables: ClassVar[tuple[Decision, ...]] = (
        Decision("training.learning_rate", ("0.1", "0.03", "0.01", "0.003")),
        Decision("training.epsilon", ("1e-2", "1e-3", "1e-4")),
        Decision("training.weight_decay", ("0.0", "1e-3", "1e-2")),
    )

    def __post_init__(self) -> None:
        bounded(self, batch=1, epochs=1, patience=0)
        self.alone()

    def task(self) -> Click:
        return Click()

    def alone(self) -> Plan:
        """The plan of one model's own training."""
        known = (self.batch, 0, self.epochs, self.patience, self.learning_rate, self.weight_decay, self.clip)
        return Plan(*known, "cosine", "adagrad", self.warmup, self.epsilon)
