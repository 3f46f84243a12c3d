"""NASP (Yao et al., 2020): the strongest options run; proximal steps on validation batches say which those are.

Every option has a strength in [0, 1]. What runs is the nearest discrete choice, so a step of the weights costs one
path. A step of the strengths takes the gradient at that discrete point, for which every option is computed once,
applies it to the continuous strengths and clips them. AutoTower compares with it as another search strategy (§4.3.2,
Table 6).

Ours: where one option must be picked, what is applied is the difference to the gradient of the option that runs, which
itself stays: only options that promise more than it climb past it. Then all move together, so that the strongest stands
at 1/2: without that each that takes the lead stands higher, until many tie at 1 and the first listed runs for good. As
Adam's steps are about as long for a small gradient as for a large one, plain gradients, or differences to their mean,
carry many options to the same bound as well.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nascore.rows import seed_of
from nascore.samplers import Sampler, likeliest
from nascore.space import Choice, Decision, Genotype, Mix, Space

SPREAD = 1e-3


class Nasp(Sampler):
    """Strengths begin at 1/2, apart by noise. A decision that may open several options opens those above 1/2.

    What runs next hangs on the strengths, so each of their steps ends with one wait for the device.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self.options = {name: decision.options for name, decision in space.decisions.items()}
        count = sum(len(options) for options in self.options.values())
        noise = torch.randn(count, generator=torch.Generator().manual_seed(seed_of(seed, "nasp")))
        self.strength = nn.Parameter(0.5 + SPREAD * noise)
        self.known: tuple[int, Mix] | None = None

    def forward(self, x: Any, step: int) -> Mix:
        version = self.strength._version
        if self.known is None or self.known[0] != version:
            strengths = self.strengths()
            chosen = {name: _strongest(one, strengths[name]) for name, one in self.space.decisions.items()}
            self.known = version, self.space.mix(chosen)
        return self.known[1]

    def relaxed(self, x: Any, step: int) -> Mix:
        """The discrete point, through which gradients pass as if it were the strengths."""
        path, sizes = self(x, step), [len(options) for options in self.options.values()]
        point = torch.tensor([weight for name in self.options for weight in path[name]], device=self.strength.device)
        mix: dict[str, Tensor] = {}
        decided = zip(self.space.decisions.items(), point.split(sizes), self.strength.split(sizes), strict=True)
        for (name, decision), chosen, part in decided:
            part = part - chosen * part.sum() if decision.least == decision.most == 1 else part
            mix[name] = chosen + (part - part.detach())
        return mix

    @torch.no_grad()
    def settle(self) -> None:
        parts = self.strength.split([len(options) for options in self.options.values()])
        for decision, part in zip(self.space.decisions.values(), parts, strict=True):
            if decision.least == decision.most == 1:
                part.sub_(part.max() - 0.5)
        self.strength.clamp_(0, 1)

    def decide(self, space: Space) -> Genotype:
        strengths = self.strengths()
        return likeliest(space, lambda name, choice: sum(strengths[name][option] - 0.5 for option in choice))

    def strengths(self) -> dict[str, dict[str, float]]:
        """The strength of every option of every decision, on the host."""
        flat = iter(self.strength.tolist())
        return {name: {option: next(flat) for option in options} for name, options in self.options.items()}


def _strongest(decision: Decision, strength: dict[str, float]) -> Choice:
    """The options above 1/2, as many as may be open."""
    ranked = sorted(decision.options, key=lambda option: -strength[option])
    count = max(decision.least, min(decision.most, sum(strength[option] > 0.5 for option in ranked)))
    return tuple(option for option in decision.options if option in ranked[:count])
