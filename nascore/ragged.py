"""Lists of different lengths in two flat tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Lists of items one after the other: those of key k are `item[at[k]:at[k + 1]]`."""

    at: Tensor
    item: Tensor

    def counts(self, key_B: Tensor) -> Tensor:
        """How many items each key has. Shape (B,)."""
        return self.at[key_B.long() + 1] - self.at[key_B.long()]

    def gather(self, key_B: Tensor) -> tuple[Tensor, Tensor]:
        """All items of the keys: (position in `key_B`, item), each as long as the lists together."""
        count_B = self.counts(key_B)
        position = torch.repeat_interleave(count_B)
        skipped_B = self.at[key_B.long()] - (count_B.cumsum(0) - count_B)
        return position, self.item[torch.arange(len(position), device=position.device) + skipped_B[position]].long()
