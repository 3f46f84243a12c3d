"""Self-attention over a past, by softmax or linear in its length: all positions, or the last event alone.

Pasts are padded on the right. Shapes: B examples, T positions, D width, H heads of width W, C chunks of S positions.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

Kind = Literal["softmax", "linear"]
Mask = Literal["none", "padding", "causal"]
Keys = Literal["token", "column"]
CHUNK = 64
EPSILON = 1e-12


class Attention(nn.Module, ABC):
    """Queries, keys and values of all heads by one map, what they make of each other, and a map behind it."""

    def __init__(self, heads: int, length: int, width: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            shared = ", ".join(str(number) for number in range(1, width + 1) if width % number == 0)
            raise ValueError(f"{heads} heads cannot share a width of {width}; it can be shared by: {shared}")
        self.heads, self.length, self.width = heads, length, width
        self.query_key_value, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """What every position attends to. Shape (B, T, D)."""
        q_BHTW, k_BHTW, v_BHTW = self._headed(self.query_key_value(x_BTD)).chunk(3, dim=1)
        mixed: Tensor = self.output(self._mixed(q_BHTW, k_BHTW, v_BHTW, mask_BT).transpose(1, 2).flatten(2))
        return mixed

    def at(self, x_BTD: Tensor, mask_BT: Tensor, last_B: Tensor) -> Tensor:
        """What the last event of each past attends to, which is all of it. Shape (B, D)."""
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        last_B1D = x_BTD[torch.arange(last_B.shape[0], device=last_B.device), last_B][:, None]
        q_BH1W = self._headed(functional.linear(last_B1D, weight[: self.width], bias[: self.width]))
        kept = functional.linear(x_BTD, weight[self.width :], bias[self.width :])
        k_BHTW, v_BHTW = self._headed(kept).chunk(2, dim=1)
        mixed: Tensor = self.output(self._last(q_BH1W, k_BHTW, v_BHTW, mask_BT, last_B).flatten(1))
        return mixed

    def _headed(self, x_BTM: Tensor) -> Tensor:
        apart_BTHW: Tensor = x_BTM.unflatten(2, (-1, self.width // self.heads))
        return apart_BTHW.transpose(1, 2)

    @abstractmethod
    def _mixed(self, q_BHTW: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, mask_BT: Tensor) -> Tensor: ...

    @abstractmethod
    def _last(self, q_BH1W: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, mask_BT: Tensor, last_B: Tensor) -> Tensor: ...

    def macs(self, last: bool = False) -> int:
        """Multiply-adds for one past, of all positions or of the last event alone."""
        asked, square = 1 if last else self.length, self.width**2
        return 2 * self.length * square + 2 * asked * square + self.mixing_macs(last)

    @abstractmethod
    def mixing_macs(self, last: bool = False) -> int:
        """Those between the maps."""

    def core_macs(self, last: bool = False) -> int:
        """Those of `macs` that no outside count sees."""
        return 0


class SoftmaxAttention(Attention):
    """softmax(QK/sqrt(W))V over the events up to each position (Kang and McAuley, 2018); no other mask is needed."""

    def __init__(self, heads: int, dropout: float, length: int, width: int) -> None:
        super().__init__(heads, length, width)
        self.dropout = dropout

    def _mixed(self, q_BHTW: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, mask_BT: Tensor) -> Tensor:
        dropped = self.dropout if self.training else 0.0
        return functional.scaled_dot_product_attention(q_BHTW, k_BHTW, v_BHTW, dropout_p=dropped, is_causal=True)

    def _last(self, q_BH1W: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, mask_BT: Tensor, last_B: Tensor) -> Tensor:
        score_BH1T = q_BH1W @ k_BHTW.transpose(2, 3) * q_BH1W.shape[3] ** -0.5
        later_BT = torch.arange(self.length, device=last_B.device) > last_B[:, None]
        weight_BH1T = score_BH1T.masked_fill(later_BT[:, None, None], -torch.inf).softmax(3)
        return functional.dropout(weight_BH1T, self.dropout, self.training) @ v_BHTW

    def mixing_macs(self, last: bool = False) -> int:
        return 2 * (1 if last else self.length) * self.length * self.width

    def core_macs(self, last: bool = False) -> int:
        return 0 if last else self.mixing_macs()


class LinearAttention(Attention):
    """Q(KᵀV) behind elu, rows of Q of unit length (LinRec, Liu et al., 2023; DNS-Rec eq. 4).

    keys: `token` as in the public code: each position's key of unit length, divided by sqrt(W). `column` as in the
    paper: each of the W columns of unit length over the positions, divided by W.
    mask: `none` as in the public code: every position sees every other one, padding too, which differs by its position
    alone. `padding` leaves that out; `causal` also what comes later.
    """

    def __init__(self, heads: int, mask: Mask, keys: Keys, length: int, width: int) -> None:
        super().__init__(heads, length, width)
        if keys == "column" and mask == "causal":
            raise ValueError("keys=column: a column's length over all positions knows the future; mask=causal hides it")
        self.mask, self.keys = mask, keys
        self.chunks = -(-length // CHUNK)
        self.padded = self.chunks * -(-length // self.chunks)

    def _mixed(self, q_BHTW: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, mask_BT: Tensor) -> Tensor:
        q_BHTW, k_BHTW, v_BHTW = self._mapped(q_BHTW, k_BHTW, v_BHTW, mask_BT)
        if self.mask != "causal":
            return q_BHTW @ (k_BHTW.transpose(2, 3) @ v_BHTW)
        wider = (0, 0, 0, self.padded - self.length)
        q_BHCSW, k_BHCSW, v_BHCSW = (
            functional.pad(x, wider).unflatten(2, (self.chunks, -1)) for x in (q_BHTW, k_BHTW, v_BHTW)
        )
        k_BHCWS = k_BHCSW.transpose(3, 4)
        own_BHCWW = k_BHCWS @ v_BHCSW
        mixed_BHCSW: Tensor = q_BHCSW @ (own_BHCWW.cumsum(2) - own_BHCWW) + (q_BHCSW @ k_BHCWS).tril() @ v_BHCSW
        return mixed_BHCSW.flatten(2, 3)[:, :, : self.length]

    def _last(self, q_BH1W: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, mask_BT: Tensor, last_B: Tensor) -> Tensor:
        q_BH1W, k_BHTW, v_BHTW = self._mapped(q_BH1W, k_BHTW, v_BHTW, mask_BT)
        return q_BH1W @ (k_BHTW.transpose(2, 3) @ v_BHTW)

    def _mapped(self, q: Tensor, k_BHTW: Tensor, v_BHTW: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        width, token = q.shape[3], self.keys == "token"
        k_BHTW = _unit(k_BHTW) if token else functional.elu(k_BHTW)
        if self.mask != "none":
            k_BHTW = k_BHTW * mask_BT[:, None, :, None]
        if not token:
            k_BHTW = functional.normalize(k_BHTW, dim=2)
        return _unit(q) * (width**-0.5 if token else 1 / width), k_BHTW, v_BHTW

    def mixing_macs(self, last: bool = False) -> int:
        head = self.width // self.heads
        if last:
            return self.length * self.width * head + self.width * head
        if self.mask != "causal":
            return 2 * self.length * self.width * head
        return 2 * self.padded * self.width * (head + self.padded // self.chunks)


def _unit(x: Tensor) -> Tensor:
    """elu(x), brought to unit length over the last axis."""
    unit: Tensor = _Unit.apply(x)  # type: ignore[no-untyped-call]
    return unit


class _Unit(Function):
    """One function for both, which keeps one result and passes over it less often than two would."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        unit = functional.elu(x)
        shorter = torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp_(min=EPSILON).reciprocal_()
        unit.mul_(shorter)
        ctx.save_for_backward(unit, shorter)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, shorter = ctx.saved_tensors
        along = (gradient * unit).sum(-1, keepdim=True)
        toward = torch.addcmul(gradient, unit, along, value=-1).mul_(shorter)
        return toward.mul_((unit / shorter).clamp_(max=0).add_(1))


def of_kind(kind: Kind, heads: int, dropout: float, mask: Mask, keys: Keys, length: int, width: int) -> Attention:
    """The attention of a kind; dropout acts on the weights of softmax, mask and keys on linear attention."""
    if kind == "softmax":
        return SoftmaxAttention(heads, dropout, length, width)
    return LinearAttention(heads, mask, keys, length, width)
