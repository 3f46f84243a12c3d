"""The frame of click nets: numbers and categories of a row looked up, one logit a row."""

from dataclasses import dataclass

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
from nascore.training import Optimizer, Plan, Schedule

Inputs = dict[str, Tensor]
JUDGED = Fitness(rows=1_228_800, batch=8_192, calibration=0)
"""How click models are judged: the log loss of at most 150 batches of validation rows, as in NASRec's public code."""


def sizes(schema: Schema) -> dict[str, int]:
    """The rows of each category's table."""
    if schema.user:
        raise ValueError("a click model learns from rows that stand by themselves; this data has users and items")
    found = {column.name: column.size for column in schema.columns if column.kind == "category"}
    if not found:
        raise ValueError("nothing to embed: a click model needs at least one feature of kind category")
    return found


class ClickNet(Net):
    """Embeds every category by a table of `width`; numbers v enter as log(1 + max(0, v)), missing ones as 0.

    The output is the logit of each row, (B,). cap: the most rows of a table, see `Tables`.
    """

    def __init__(self, schema: Schema, space: Space, width: int, cap: int = 0) -> None:
        super().__init__(schema, space)
        self.sizes = sizes(schema)
        self.names = tuple(self.sizes)
        self.numbers = tuple(column.name for column in schema.columns if column.kind == "number")
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
            dense_BF = torch.zeros(batch.rows.shape[0], 1, device=batch.rows.device)
        return {"dense": dense_BF, "sparse": self.tables(self.ids(batch))}

    def ids(self, batch: Batch) -> Tensor:
        """The ids of a batch. Shape (B, N)."""
        return torch.stack([batch[name] for name in self.names], 1)

    def table_costs(self) -> dict[str, Cost]:
        """The weights of all tables."""
        return {"tables": self.tables.cost()}


@dataclass(frozen=True)
class ClickTraining:
    """How every click model is trained alone: by default by Adagrad, its learning rate rising, then falling.

    Args:
        batch: Rows of a batch of all workers together.
        learning_rate: The optimiser's.
        weight_decay: L2 penalty on weights of two or more dimensions; of tables, on the rows that a step touches.
        clip: Largest norm of the joined gradient, tables included; 0 for none.
        warmup: Share of the steps over which the learning rate rises.
        epsilon: Adagrad's; the public code's 0.01 is large beside the gradients of small data.
        epochs: The most epochs.
        patience: Epochs without a better validation loss after which it ends.
        optimizer: adagrad, or adam.
        schedule: Of the learning rate behind the warm-up: cosine, linear, or constant.
    """

    batch: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    clip: float = 5.0
    warmup: float = 0.1
    epsilon: float = 1e-2
    epochs: int = 1
    patience: int = 2
    optimizer: Optimizer = "adagrad"
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        bounded(self, batch=1, epochs=1, patience=0)
        self.alone()

    @property
    def tunables(self) -> tuple[Decision, ...]:
        """Settings that are worth tuning, those of the optimiser that is used."""
        if self.optimizer == "adam":
            return (
                Decision("training.learning_rate", ("0.0003", "0.001", "0.003")),
                Decision("training.weight_decay", ("1e-6", "1e-5", "1e-4")),
            )
        return (
            Decision("training.learning_rate", ("0.1", "0.03", "0.01", "0.003")),
            Decision("training.epsilon", ("1e-2", "1e-3", "1e-4")),
            Decision("training.weight_decay", ("0.0", "1e-3", "1e-2")),
        )

    def task(self) -> Click:
        return Click()

    def alone(self) -> Plan:
        """The plan of one model's own training."""
        return self._plan(0, self.epochs, self.patience)

    def supernet(self, steps: int) -> Plan:
        """The plan of a supernet: that of a model's own training but for its end."""
        return self._plan(steps, 0, 0)

    def _plan(self, steps: int, epochs: int, patience: int) -> Plan:
        return Plan(
            batch=self.batch,
            steps=steps,
            epochs=epochs,
            patience=patience,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip=self.clip,
            schedule=self.schedule,
            optimizer=self.optimizer,
            warmup=self.warmup,
            epsilon=self.epsilon,
        )
