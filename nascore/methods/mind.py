"""MIND: several vectors a user, one an interest, by dynamic routing of its history (Li et al., 2019), in three sizes.

Events are routed to K interest capsules (§4.2, Algorithm 1), each capsule goes with the user's features through the
same layers (§4.3), and an item's preference is that of the nearest interest, in training as in ranking: label-aware
attention with an infinite power (§4.4). Table 4 of AutoTower fits one construction, and that one to the last digit of
all parameters and FLOPs: an event and an item are the mean of their columns' vectors; capsules and outputs have the
width of those; the user's layers have no batch normalisation, the item has no layers; and K is 3.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.fitness import Fitness
from nascore.methods import HandMade, TwoTowerMethod
from nascore.net import Net
from nascore.ops import Op
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Mix, Space
from nascore.two_tower import HIDDEN, Inputs, Side, Size, Training, TwoTower, layers


class Capsules(Op):
    """N interest capsules from a history by behaviour-to-interest routing; all 0 for an empty history.

    One bilinear map serves all pairs of event and interest, so the routing logits, which start equal for every user,
    must tell the interests apart: they are drawn once, with the weights. An event is shared among the interests by the
    softmax of its logits, which grow by its agreement with each. The shares are constants to the gradient, as in its
    authors' public code of a later model.
    """

    signature: ClassVar[str] = "BTD,BT -> BNO"
    examples: ClassVar[tuple[str, ...]] = ()
    logits: Tensor

    def __init__(self, iterations: int, *, N: int, T: int, D: int, O: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.map = nn.Linear(D, O, bias=False)
        self.register_buffer("logits", torch.randn(N, T))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        event_BTO = self.map(x_BTD) * mask_BT[:, :, None]
        fixed_BTO, logit_BNT = event_BTO.detach(), self.logits.expand(x_BTD.shape[0], -1, -1)
        for _ in range(self.iterations - 1):
            interest_BNO = squash(logit_BNT.softmax(1) @ fixed_BTO)
            logit_BNT = logit_BNT + interest_BNO @ fixed_BTO.transpose(1, 2)
        return squash(logit_BNT.softmax(1) @ event_BTO)

    def macs(self) -> int:
        (interests, length), (output, _) = self.logits.shape, self.map.weight.shape
        return length * self.map.weight.numel() + (2 * self.iterations - 1) * interests * length * output


def squash(x: Tensor) -> Tensor:
    """The same direction, the length n brought to n^2 / (1 + n^2)."""
    square = x.square().sum(-1, keepdim=True)
    return x * square / (1 + square) * torch.rsqrt(square + 1e-9)


class _MIND(TwoTower):
    def __init__(self, method: "MIND", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        if not self.history_width:
            raise ValueError("MIND makes interests of histories: name the features of a history")
        sizes = {"N": method.interests, "T": schema.history_length, "D": self.width, "O": self.width}
        self.capsules = Capsules(method.iterations, **sizes)
        self.interests = method.interests
        self.layers = layers(self.user_width + self.width, HIDDEN[method.size], self.width, norm=False)

    def user_input(self, x: Inputs, mix: Mix) -> Tensor:
        """The user's features beside each interest. Shape (B, K, D)."""
        event_BTD = x["history"].unflatten(2, (-1, self.width)).mean(2)
        user_BKD = x["user"][:, None].expand(-1, self.interests, -1)
        return torch.cat([user_BKD, self.capsules(event_BTD, x["mask"])], 2)

    def tower(self, side: Side, x_BD: Tensor, mix: Mix) -> Tensor:
        output: Tensor = self.layers(x_BD) if side == "user" else x_BD.unflatten(1, (-1, self.width)).mean(1)
        return output

    def costs(self, mix: Mix) -> dict[str, Cost]:
        each = self.layers.cost()
        costs = {"user/capsules": self.capsules.cost(), "user/layers": Cost(each.params, 0, self.interests * each.macs)}
        return self.table_costs() | costs


@dataclass(frozen=True, kw_only=True)
class MIND(TwoTowerMethod, HandMade):
    """A user tower of several interests over plain item vectors.

    Args:
        size: The hidden layers of AutoTower's Table 3.
        embedding: Width of a feature's vector, of an interest and of an item.
        interests: Vectors of a user.
        iterations: Of the routing.
        fitness: See `Fitness`.
        training: See `Training`.
    """

    size: Size = "M"
    embedding: int = 16
    interests: int = 3
    iterations: int = 3
    fitness: Fitness = Fitness()
    training: Training = Training()

    def __post_init__(self) -> None:
        bounded(self, embedding=1, interests=1, iterations=1)

    @property
    def label(self) -> str:
        return f"MIND {self.size}"

    def net(self, schema: Schema, space: Space) -> Net:
        return _MIND(self, schema, space)
