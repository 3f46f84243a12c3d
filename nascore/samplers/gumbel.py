"""The soft selection of DNS-Rec (§2.6.1, Eq. 9): Gumbel-softmax (Jang et al., 2017), which cools from step to step.

The paper prints the noise as -log(-u), which is no number; it is -log(-log u). Its log(alpha) are the logits here.
"""

from typing import Any

import torch
from torch import Tensor

from nascore.rows import seed_of
from nascore.samplers import Logits
from nascore.space import Mix, Space


class Gumbel(Logits):
    """Every option runs, weighted by softmax((logits + noise) / tau), tau = max(coldest, temperature - cooling·step).

    A decision's noise hangs on (seed, its name, step). A learning step draws its own and alone gives gradients.
    """

    def __init__(
        self, space: Space, seed: int, temperature: float = 1.0, coldest: float = 0.01, cooling: float = 5e-5
    ) -> None:
        super().__init__(space, seed)
        if not (temperature >= coldest > 0 and cooling >= 0):
            found = f"temperature={temperature}, coldest={coldest}, cooling={cooling}"
            raise ValueError(f"Gumbel: temperature >= coldest > 0 and cooling >= 0 does not hold for {found}")
        self.temperature, self.coldest, self.cooling = temperature, coldest, cooling

    @torch.no_grad()
    def forward(self, x: Any, step: int) -> Mix:
        return self.softmax((self.logits + self.noise("gumbel", step)) / self.tau(step))

    def relaxed(self, x: Any, step: int) -> Mix:
        return self.softmax((self.logits + self.noise("gumbel relaxed", step)) / self.tau(step))

    def facts(self, step: int) -> dict[str, float]:
        return {"temperature": self.tau(step), **super().facts(step)}

    def tau(self, step: int) -> float:
        """The temperature of a step."""
        return max(self.coldest, self.temperature - self.cooling * step)

    def noise(self, purpose: str, step: int) -> Tensor:
        """Gumbel(0, 1) for every option. Drawn on the host and sent on without a wait for the device."""
        drawn = []
        for name, options in self.options.items():
            generator = torch.Generator().manual_seed(seed_of(purpose, self.seed, name, step))
            drawn.append(torch.rand(len(options), generator=generator, dtype=torch.float64))
        uniform = torch.cat(drawn).clamp_(min=torch.finfo(torch.float64).tiny)
        return uniform.log_().neg_().log_().neg_().to(self.logits, non_blocking=True)
