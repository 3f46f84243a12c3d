"""Sums and gathers over the ranks of one data-parallel training, with gradients; a process alone is a group of one.

Every rank computes its share of the loss: the shares sum to the loss of the joined batch, and so do their gradients.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place among the ranks."""
    return dist.get_rank() if size() > 1 else 0


def wait() -> None:
    """Go on once every rank is here."""
    if size() > 1:
        dist.barrier()


def anywhere(flag: bool, device: str) -> bool:
    """Whether the flag is set on any rank."""
    if size() == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return bool(flags)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        summed = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_B: Tensor) -> Tensor:
        parts = [torch.empty_like(x_B, memory_format=torch.contiguous_format) for _ in range(size())]
        dist.all_gather(parts, x_B.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_J: Tensor) -> Tensor:
        summed_J = gradient_J.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed_J)
        return summed_J.chunk(size())[rank()]


def total(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, on every rank; gradients are summed over ranks too."""
    if size() == 1:
        return x
    summed: Tensor = _Total.apply(x)  # type: ignore[no-untyped-call]
    return summed


def joined(x_B: Tensor) -> Tensor:
    """The ranks' equally long tensors in rank order; the gradient of a rank's part returns to it."""
    if size() == 1:
        return x_B
    tensors: Tensor = _Joined.apply(x_B)  # type: ignore[no-untyped-call]
    return tensors


@torch.no_grad()
def exchange_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum over ranks the gradients of those parameters that have one: the active ones, the same on every rank."""
    if size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for _, alike in groupby(gradients, key=lambda gradient: gradient.dtype):
        some = list(alike)
        flat = torch.cat([gradient.flatten() for gradient in some])
        dist.all_reduce(flat)
        for gradient, part in zip(some, flat.split([gradient.numel() for gradient in some]), strict=True):
            gradient.copy_(part.view_as(gradient))
