"""The frame of two-tower nets: features and histories looked up, each side encoded, vectors of unit length."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.cost import Cost
from nascore.embedding import embeddings
from nascore.net import Net, Row
from nascore.ops import build
from nascore.plugins import bounded
from nascore.schema import Batch, Column, Schema
from nascore.space import Decision, Mix, Space
from nascore.tasks.retrieval import Retrieval
from nascore.training import Plan, Schedule

Inputs = dict[str, Tensor]
Side = Literal["user", "item"]
Size = Literal["L", "M", "H"]

HIDDEN: Mapping[Size, tuple[int, ...]] = {"L": (256, 192, 128), "M": (512, 256, 128), "H": (1024, 512, 256, 128)}
"""The hidden layers of hand-made towers in AutoTower's three sizes (Table 3)."""

TUNABLES = Space(
    [Decision("training.learning_rate", ("0.1", "0.01", "0.001")), Decision("embedding", ("8", "16", "24", "32", "64"))]
)
"""What AutoTower's authors tune of every hand-made model (§4.1.5)."""


class TwoTower(Net):
    """Embeds both sides by tables of `width`; a history shares the tables of the item columns it is shown by.

    A batch may hold one side only; the output then has only that side. Outputs: {"user": (B, O), "item": (B, O)},
    vectors of unit length, and the embedded inputs "user/input", "item/input". A net that gives a user K vectors has
    "user" (B, K, O).
    """

    def __init__(self, schema: Schema, space: Space, width: int) -> None:
        super().__init__(schema, space)
        for column in (*schema.of("user"), *schema.of("item")):
            if column.kind == "number":
                raise ValueError(f"column {column.name!r} is a number: give it `bins` to make it a category")
        item_key = (
            () if schema.item in {c.name for c in schema.columns} else (Column(schema.item, "item", size=schema.items),)
        )
        shown = tuple(column for column in item_key if column.name in schema.history)
        self.tables = embeddings((*schema.of("user"), *schema.of("item"), *shown), width)
        self.width = width
        for side, known in (("user", self.user_width + self.history_width), ("item", self.item_width)):
            if not known:
                raise ValueError(f"nothing is known of a {side}: name at least one feature of side {side}")

    @property
    def user_width(self) -> int:
        """Width of the embedded user features, without the history."""
        return self.width * len(self.schema.of("user"))

    @property
    def item_width(self) -> int:
        return self.width * len(self.schema.of("item"))

    @property
    def history_width(self) -> int:
        """Width of one embedded event of a history; 0 without histories."""
        return self.width * len(self.schema.history)

    def embed(self, batch: Batch) -> Inputs:
        """ "user" (B, user_width), "item" (B, item_width), "history" (B, T, history_width), "mask" (B, T)."""
        x: Inputs = {}
        none_B0 = torch.zeros(batch.rows.shape[0], 0, device=batch.rows.device)
        for side in ("user", "item"):
            if side in batch.keys:
                columns = self.schema.of("user" if side == "user" else "item")
                parts = [self._look_up(column, batch[column.name]) for column in columns]
                x[side] = torch.cat([none_B0, *parts], 1)
        if "history" in batch:
            events = [self.tables[name](batch[f"history/{name}"]) for name in self.schema.history]
            x["history"], x["mask"] = torch.cat(events, 2), batch["history"] != 0
        return x

    def _look_up(self, column: Column, ids: Tensor) -> Tensor:
        found: Tensor = self.tables[column.name](ids)
        if column.kind == "set":
            return found.sum(1) / (ids != 0).sum(1, keepdim=True).clamp(min=1)
        return found

    def forward(self, x: Inputs, mix: Mix) -> Mapping[str, Tensor]:
        output = {}
        if "user" in x:
            output["user/input"] = self.user_input(x, mix)
            output["user"] = functional.normalize(self.tower("user", output["user/input"], mix), dim=-1)
        if "item" in x:
            output["item/input"] = x["item"]
            output["item"] = functional.normalize(self.tower("item", x["item"], mix), dim=1)
        return output

    @abstractmethod
    def user_input(self, x: Inputs, mix: Mix) -> Tensor:
        """User features and the pooled history, side by side."""

    @abstractmethod
    def tower(self, side: Side, x_BD: Tensor, mix: Mix) -> Tensor:
        """One side's vector before it is brought to unit length. Shape (B, O), or (B, K, O) of a user's K vectors."""

    def table_costs(self) -> dict[str, Cost]:
        """The weights of each side's tables."""
        sides = {column.name: column.side for column in self.schema.columns}
        costs = {"user/tables": Cost(), "item/tables": Cost()}
        for name, table in self.tables.items():
            assert isinstance(table, nn.Embedding)
            costs[f"{sides.get(name, 'item')}/tables"] += Cost(table_params=table.weight.numel())
        return costs


def layers(inputs: int, hidden: tuple[int, ...], output: int, norm: bool = True) -> Row:
    """Linear maps to each hidden width and to the output, ReLU between them, batch normalisation before each ReLU.

    norm: False leaves the batch normalisation out; the layers then take any axes before the last.
    """
    modules: list[nn.Module] = []
    for before, after in zip((inputs, *hidden), hidden, strict=False):
        modules += [build("linear", D=before, O=after), *((build("batch_norm", O=after),) if norm else ()), nn.ReLU()]
    return Row(*modules, build("linear", D=hidden[-1], O=output))


@dataclass(frozen=True)
class Training:
    """How every two-tower model is trained, with AutoTower's values (§4.1.5; temperature, rate: public code).

    Args:
        batch: Rows of a batch of all workers together.
        learning_rate: Adam's.
        weight_decay: Acts on weights of two or more dimensions.
        clip: Largest norm of the joined gradient; 0 for none.
        regularizer: Weight of the norms of a batch's embedded inputs.
        temperature: Of the in-batch softmax.
        correct: Whether the softmax is corrected for how often items are sampled.
        rate: Of the streaming estimate of that frequency.
        epochs: The most epochs of a model's own training.
        patience: Epochs without a better validation value after which it ends.
        stop: That value, a kind of `Fitness`. The paper's validation loss stops long before recall does.
    """

    batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 0.0
    regularizer: float = 0.0
    temperature: float = 0.05
    correct: bool = True
    rate: float = 0.01
    epochs: int = 100
    patience: int = 5
    stop: str = "recall@50"

    def __post_init__(self) -> None:
        bounded(self, batch=1, temperature=1e-6, rate=0, epochs=1, patience=0)
        if self.rate >= 1:
            raise ValueError(f"rate of the estimated sampling frequency: not 0 <= rate < 1: {self.rate}")

    def task(self, schema: Schema) -> Retrieval:
        return Retrieval(
            schema.items, self.batch, self.temperature, self.correct, self.rate, regularizer=self.regularizer
        )

    def supernet(self, steps: int, schedule: Schedule, lazy: bool = True) -> Plan:
        """The plan of a weight-sharing training."""
        return Plan(self.batch, steps, 0, 0, self.learning_rate, self.weight_decay, self.clip, schedule, lazy=lazy)

    def alone(self) -> Plan:
        """The plan of one model's own training."""
        return Plan(self.batch, 0, self.epochs, self.patience, self.learning_rate, self.weight_decay, self.clip)
