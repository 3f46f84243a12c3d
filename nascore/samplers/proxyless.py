"""ProxylessNAS (Cai et al., 2019): one path runs, drawn by what is learned; a learning step compares two options.

DNS-Rec compares with it as another search strategy (§3.2). Its penalty for latency is a matter of the loss.

Ours: Adam has momentum, which would go on moving options that were not drawn; that is taken back. And a learning step
computes all options, those not drawn with weight 0, where the paper computes two.
"""

from random import Random
from typing import Any

import torch
from torch import Tensor

from nascore.samplers import Logits
from nascore.space import Mix, Space

Shares = dict[str, float]


class Proxyless(Logits):
    """A path a step, every option as likely as the softmax of the logits says.

    What runs next hangs on the logits, so each of their steps ends with one wait for the device.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self.known: tuple[int, dict[str, Shares]] | None = None
        self.compared: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Any, step: int) -> Mix:
        rng = Random(f"proxyless/{self.seed}/{step}")
        return self.space.mix({name: (_drawn(shares, rng),) for name, shares in self.current().items()})

    def relaxed(self, x: Any, step: int) -> Mix:
        """Of two options a decision one is open, through which gradients pass as if it were the softmax of the two."""
        rng = Random(f"proxyless relaxed/{self.seed}/{step}")
        pairs, path = list[list[int]](), list[float]()
        for shares in self.current().values():
            two = [_drawn(shares, rng)]
            if len(shares) > 1:
                two.append(_drawn({option: share for option, share in shares.items() if option not in two}, rng))
                pairs.append([len(path) + list(shares).index(option) for option in two])
            opened = _drawn({option: shares[option] for option in two}, rng)
            path += [float(option == opened) for option in shares]
        device = self.logits.device
        pair_D2 = torch.tensor(pairs, dtype=torch.long).view(-1, 2).to(device, non_blocking=True)
        soft_D2 = self.logits[pair_D2].softmax(1)
        slope = torch.zeros_like(self.logits).index_put((pair_D2,), soft_D2 - soft_D2.detach())
        self.compared = pair_D2, self.logits.detach().clone()
        return self.split(torch.tensor(path).to(device, non_blocking=True) + slope)

    @torch.no_grad()
    def settle(self) -> None:
        """Move only the two options of each decision, and only against each other: all others stay as likely."""
        if self.compared is not None:
            pair_D2, before = self.compared
            moved_D2, old_D2 = self.logits[pair_D2], before[pair_D2]
            moved_D2 += old_D2.logsumexp(1, keepdim=True) - moved_D2.logsumexp(1, keepdim=True)
            self.logits.copy_(before.index_put((pair_D2,), moved_D2))
            self.compared = None

    def current(self) -> dict[str, Shares]:
        """The softmax of the logits, fetched from the device where they have changed."""
        version = self.logits._version
        if self.known is None or self.known[0] != version:
            self.known = version, self.shares()
        return self.known[1]


def _drawn(shares: Shares, rng: Random) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]
