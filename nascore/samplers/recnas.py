"""An approximation of RecNAS (Peng et al., 2022), whose code is not public, from what DNS-Rec says of it in its §1.

It "utilizes annealing and channel pruning". So: a softmax that cools, and options that are closed for good once they
weigh little. The schedule and the threshold are ours. Its limit on resources is a matter of the loss.
"""

from math import pow
from typing import Any

import torch
from torch import Tensor

from nascore.samplers import Logits
from nascore.space import Mix, Space, Weights

CLOSED = -1e4


class RecNas(Logits):
    """Every option runs, weighted by softmax(logits / tau), until one is left of its decision, which then runs alone.

    tau falls geometrically from `temperature` to `coldest` over `steps`. After a learning step those options close, for
    good, that weigh less than `threshold / n` where a decision has n; as `threshold` is below 1, the weightiest never
    does. A closed option's logit is held at -10,000: it is decided only where no other may be.

    Draws nothing, so nothing hangs on the seed. What runs next hangs on what is open, so each step of the logits ends
    with one wait for the device. Once every decision is down to one option, nothing is learned any more.
    """

    open: Tensor

    def __init__(
        self,
        space: Space,
        seed: int,
        steps: int = 20_000,
        temperature: float = 1.0,
        coldest: float = 0.1,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(space, seed)
        if not (steps >= 1 and temperature >= coldest > 0 and 0 <= threshold < 1):
            found = f"steps={steps}, temperature={temperature}, coldest={coldest}, threshold={threshold}"
            raise ValueError(f"RecNas: steps >= 1, temperature >= coldest > 0, 0 <= threshold < 1 fails for {found}")
        self.steps, self.temperature, self.coldest, self.threshold = steps, temperature, coldest, threshold
        self.register_buffer("open", torch.ones(len(self.logits), dtype=torch.bool))
        self.known: tuple[int, dict[str, Weights]] | None = None
        self.last = 0

    def forward(self, x: Any, step: int) -> Mix:
        with torch.no_grad():
            return self.weights(step)

    def relaxed(self, x: Any, step: int) -> Mix:
        self.last = step
        return self.weights(step)

    def weights(self, step: int) -> Mix:
        """The softmax at a step's temperature of those decisions that have several options left."""
        return {**self.softmax(self.logits / self.tau(step)), **self.alone()}

    @property
    def learns(self) -> bool:
        return len(self.alone()) < len(self.options)

    @torch.no_grad()
    def settle(self) -> None:
        """Close what weighs little at the temperature of the last learning step."""
        soft = self.softmax(self.logits.masked_fill_(~self.open, CLOSED) / self.tau(self.last))
        self.open &= ~torch.cat([weights < self.threshold / len(weights) for weights in soft.values()])
        self.logits.masked_fill_(~self.open, CLOSED)

    def facts(self, step: int) -> dict[str, float]:
        return {"temperature": self.tau(step), **super().facts(step)}

    def tau(self, step: int) -> float:
        """The temperature of a step."""
        return self.temperature * pow(self.coldest / self.temperature, min(1.0, step / self.steps))

    def alone(self) -> dict[str, Weights]:
        """The weights, on the host, of each decision with one option left."""
        version = self.open._version
        if self.known is None or self.known[0] != version:
            opened = {name: tuple(map(float, part.tolist())) for name, part in self.split(self.open.cpu()).items()}
            self.known = version, {name: weights for name, weights in opened.items() if sum(weights) == 1}
        return self.known[1]
