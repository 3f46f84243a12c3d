"""The frame of next-item nets: a past looked up and padded right, encoded, its last event scored against all items."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nascore.attention import Kind, Mask
from nascore.cost import Cost
from nascore.embedding import Embedding, embeddings
from nascore.fitness import Fitness
from nascore.net import Net
from nascore.ops import EVERY, Elastic, Live, Op, build
from nascore.ops.transformer_end import TransformerEnd
from nascore.plugins import bounded
from nascore.rows import Shown
from nascore.schema import Batch, Column, Schema
from nascore.space import Decision, Space
from nascore.tasks.next_item import Loss, NextItem, Ranking, shifted
from nascore.training import Plan

Inputs = dict[str, Tensor]
Targets = Literal["last", "all"]
SPREAD = 0.02


class Events(Elastic):
    """The vectors of items and of positions, and the norm and dropout behind their sum (Kang and McAuley, 2018, §3.1).

    D, the width, can be searched.
    """

    signature: ClassVar[str] = "BTD -> BTD"
    examples: ClassVar[tuple[str, ...]] = ()
    axes: Mapping[str, str] = {"items.weight": "ID", "positions": "TD"}

    def __init__(self, dropout: float, *, I: int, T: int, D: int) -> None:
        super().__init__()
        self.items = Embedding(I, D)
        self.positions = nn.Parameter(SPREAD * torch.randn(T, D))
        with torch.no_grad():
            self.items.weight[1:].normal_(0, SPREAD)
        self.give_norm("norm", "D", D)
        self.dropout = nn.Dropout(dropout)

    def looked_up(self, event_BT: Tensor) -> Tensor:
        """Items and positions, added. Shape (B, T, D)."""
        summed: Tensor = self.items(event_BT) + self.positions
        return summed

    def forward(self, x_BTD: Tensor, live: Live = EVERY) -> Tensor:
        return self.normed("norm", x_BTD, live)

    def macs(self, live: Live = EVERY) -> int:
        return 0

    def cost(self, live: Live = EVERY) -> Cost:
        rows, width = self.shape("items.weight", live)
        return super().cost(live) + Cost(params=-rows * width, table_params=rows * width)


class SequenceNet(Net):
    """Outputs {"user": (B, D), "item": (items, D)}; in training, where every event of a past is learned, (B, T, D).

    width: of an item's vector. columns: the features that are looked up of past events beside the item itself.
    """

    columns: tuple[Column, ...] = ()

    def __init__(self, schema: Schema, space: Space, training: "Training", width: int) -> None:
        super().__init__(schema, space)
        if not schema.user:
            raise ValueError("a next-item model learns from the events of users; rows here stand by themselves")
        self.length, self.every, self.width = training.length, training.every, width

    @property
    def ends(self) -> bool:
        """Whether the output for the last event alone is wanted now."""
        return not (self.every and self.training)

    def embed(self, batch: Batch) -> Inputs:
        """The ids of events and of their features, padded right: "history" (B, T), a set's (B, T, width); "mask"."""
        length_B = (batch["history"] != 0).sum(1)
        own = {
            column.name: "history" if column.name == self.schema.item else f"history/{column.name}"
            for column in self.columns
        }
        x = {name: shifted(batch[source], length_B) for name, source in own.items()}
        event_BT = shifted(batch["history"], length_B)
        return {**x, "history": event_BT, "mask": event_BT != 0}


class Encoder(nn.Module):
    """Transformer layers one after the other, the last one for the last event alone where no other is wanted.

    settings: of each layer, as in a spec.
    """

    def __init__(self, layers: int, settings: str, *, T: int, D: int) -> None:
        super().__init__()
        before = [build(f"transformer_layer:{settings}", T=T, D=D) for _ in range(layers - 1)]
        self.layers = nn.ModuleList([*before, build(f"transformer_end:{settings}", T=T, D=D)])

    def forward(self, x_BTD: Tensor, mask_BT: Tensor, ends: bool) -> Tensor:
        """(B, D), or without `ends` (B, T, D)."""
        *before, last = self.layers
        for layer in before:
            x_BTD = layer(x_BTD, mask_BT)
        assert isinstance(last, TransformerEnd)
        return last(x_BTD, mask_BT) if ends else last.every(x_BTD, mask_BT)

    def cost(self) -> Cost:
        return sum((layer.cost() for layer in self.layers if isinstance(layer, Op)), Cost())


def feature_columns(schema: Schema) -> tuple[Column, ...]:
    """The features by which past events are shown, the item itself where there are no others."""
    columns = tuple(schema[name] for name in schema.history if name != schema.item)
    for column in columns:
        if column.kind == "number":
            raise ValueError(f"column {column.name!r} is a number: give it `bins` to make it a category")
    return columns or (Column(schema.item, "item", size=schema.items),)


class Features(nn.Module):
    """A vector for each feature of each past event, the mean over a set's members; the padding's is 0."""

    def __init__(self, columns: tuple[Column, ...], width: int) -> None:
        super().__init__()
        self.columns, self.tables = columns, embeddings(columns, width)

    def forward(self, x: Inputs) -> Tensor:
        """Side by side. Shape (B, T, features, width)."""
        found = []
        for column in self.columns:
            known: Tensor = self.tables[column.name](x[column.name])
            if column.kind == "set":
                known = known.sum(2) / (x[column.name] != 0).sum(2, keepdim=True).clamp(min=1)
            found.append(known)
        return torch.stack(found, 2)

    def cost(self) -> Cost:
        return Cost(table_params=sum(weight.numel() for weight in self.parameters()))


@dataclass(frozen=True)
class Training:
    """How every next-item model is trained, with the values of DNS-Rec (Table 2) and of the LinRec code behind it.

    Args:
        length: The events of a past that a model is shown, the last ones.
        targets: `last`: a row teaches the one event that follows its past, as in the paper. `all`: every event of a
            past is learned from those before it; for models that hide what comes later.
        batch: Events learned at a step, of all workers together; with `all` a row stands for `length` of them.
        learning_rate: Adam's.
        weight_decay: Acts on weights of two or more dimensions.
        clip: Largest norm of the joined gradient; 0 for none.
        epochs: The most epochs of a model's own training.
        patience: Epochs without a better validation value after which it ends.
        stop: That value, a metric of the task.
        loss: softmax over all items, or bce or bpr against one other item.
        rankings: How next items are ranked; by the first one models are compared.
    """

    length: int = 200
    targets: Targets = "last"
    batch: int = 2048
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 0.0
    epochs: int = 100
    patience: int = 10
    stop: str = "ndcg@10"
    loss: Loss = "softmax"
    rankings: tuple[Ranking, ...] = ("full", "full_unseen", "pop100_fixed")

    tunables: ClassVar[tuple[Decision, ...]] = (
        Decision("training.learning_rate", ("0.0003", "0.001", "0.003")),
        Decision("dropout", ("0.1", "0.2", "0.4")),
    )

    def __post_init__(self) -> None:
        bounded(self, length=1, batch=1, learning_rate=0, weight_decay=0, clip=0, epochs=1, patience=0)

    def task(self) -> NextItem:
        return NextItem(self.loss, self.rankings)

    @property
    def judged(self) -> Fitness:
        """How models are judged on validation rows."""
        return Fitness(self.stop, calibration=0)

    @property
    def every(self) -> bool:
        """Whether every event of a past is learned."""
        return self.targets == "all"

    @property
    def shown(self) -> Shown:
        """What a model is shown."""
        return Shown(self.length, sets=True, ends=self.every)

    def alone(self) -> Plan:
        """The plan of one model's own training."""
        return Plan(
            self._rows(self.batch), 0, self.epochs, self.patience, self.learning_rate, self.weight_decay, self.clip
        )

    def supernet(self, batch: int, steps: int) -> Plan:
        """The plan of a weight-sharing training."""
        return Plan(self._rows(batch), steps, 0, 0, self.learning_rate, self.weight_decay, self.clip)

    def _rows(self, batch: int) -> int:
        return max(1, batch // self.length) if self.every else batch

    def check(self, method: Any, attention: Kind = "softmax", mask: Mask = "none") -> None:
        """Raise where every event of a past would be learned by a model that sees those behind it, or all dropped."""
        name = type(method).__name__
        for setting in ("dropout", "attention_dropout"):
            if getattr(method, setting, 0) >= 1:
                raise ValueError(f"{name}: {setting} is a share below 1, not {getattr(method, setting)}")
        if self.every and attention == "linear" and mask != "causal":
            raise ValueError(
                f"{name}: training.targets=all lets each event be learned from those before it alone: linear attention "
                f"needs mask=causal for that, not {mask}"
            )
