"""Gates that open and close by chance, each with a probability that is learned (iHAS §3.3; AutoField for whole fields).

A gate's probability is a sigmoid: of a linear map of the row's own vectors, or, the same for all rows, of one logit.
Two classes of Gumbel noise are one of logistic noise, so a drawn gate is open where logit + noise is above 0, and
gradients pass as if it were sigmoid((logit + noise) / temperature) (straight-through), which AutoField uses itself.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.rows import seed_of
from nascore.samplers import Sampler
from nascore.space import Genotype, Infeasible, Mix, Space

Scope = Literal["sample", "batch", "none"]
BINS = 20
OPEN = 0.5


class Bernoulli(Sampler):
    """A gate for each option of each decision, which must allow any number of them.

    inputs: how many numbers x["kept"] (B, inputs) has, by which each row's probabilities are told; 0 for those of all
    rows alike. apart: whether each row draws gates of its own then, too. closed: steps in which all gates stay open,
    before any is drawn. hard: whether what is drawn is 0 or 1. temperature: at first; each step lowers it by `cooling`,
    down to `coldest`. scope: from what the threshold of the settled gates is found: each row's own probabilities, those
    of many rows, or none: one half.

    The noise of a gate hangs on (seed, step, the row's global index). Gradients of the net's own training do not pass
    through the gates into the vectors, and none of a lesson into the net.
    """

    picks_any: ClassVar[bool] = True
    threshold: Tensor

    def __init__(
        self,
        space: Space,
        seed: int,
        inputs: int = 0,
        apart: bool = False,
        closed: int = 0,
        hard: bool = True,
        temperature: float = 0.1,
        cooling: float = 0.0,
        coldest: float = 0.01,
        scope: Scope = "sample",
    ) -> None:
        super().__init__(space, seed)
        if not (temperature >= coldest > 0 and cooling >= 0):
            found = f"temperature={temperature}, coldest={coldest}, cooling={cooling}"
            raise ValueError(f"Bernoulli: temperature >= coldest > 0 and cooling >= 0 does not hold for {found}")
        self.counts = {name: len(one.options) for name, one in space.decisions.items()}
        gates = self.size = sum(self.counts.values())
        self.apart, self.closed, self.hard, self.scope = apart or bool(inputs), closed, hard, scope
        self.temperature, self.cooling, self.coldest = temperature, cooling, coldest
        self.logits: nn.Parameter | None = None
        self.gate: nn.Linear | None = None
        if inputs:
            self.gate = nn.Linear(inputs, gates)
            nn.init.xavier_uniform_(self.gate.weight)
            nn.init.constant_(self.gate.bias, OPEN)
        else:
            self.logits = nn.Parameter(torch.full((gates,), OPEN))
        self.register_buffer("threshold", torch.tensor(0.5))
        self.last: Tensor | None = None

    def forward(self, x: Any, step: int) -> Mix:
        if step < self.closed:
            return self.all_open()
        with torch.no_grad():
            return self.split(self.drawn(x, step, "gates"))

    def relaxed(self, x: Any, step: int) -> Mix:
        return self.split(self.drawn(x, step, "gates relaxed"))

    def steady(self, x: Any) -> Mix:
        return self.split(self.opened(x).to(x["kept"].dtype))

    def decide(self, space: Space) -> Genotype | None:
        """What is more likely open than closed, without the least likely of it where `space` is narrower; None where
        each row has it differently.
        """
        if self.logits is None:
            return None
        options = [(name, option) for name, one in self.space.decisions.items() for option in one.options]
        ranked = sorted(zip(self.logits.tolist(), options, strict=True), key=lambda one: -one[0])
        for count in range(sum(logit > 0 for logit, _ in ranked), -1, -1):
            genotype = opened(self.space, [option for _, option in ranked[:count]])
            if space.allows(genotype):
                return genotype
        raise Infeasible("what was learned cannot be brought within the limits by closing what is least likely open")

    def cost(self) -> Cost:
        params = sum(one.numel() for one in self.parameters())
        return Cost(params=params, macs=0 if self.gate is None else self.gate.weight.numel())

    def all_open(self) -> Mix:
        """Weight 1 for all."""
        return {name: (1.0,) * count for name, count in self.counts.items()}

    def split(self, each: Tensor) -> Mix:
        """What has one number a gate in its last axis, by decisions."""
        return dict(zip(self.counts, each.split([*self.counts.values()], -1), strict=True))

    def logit(self, x: Any) -> Tensor:
        """(B, gates), or (gates,) where all rows are alike."""
        if self.gate is not None:
            logit_BG: Tensor = self.gate(x["kept"].detach())
            return logit_BG
        assert self.logits is not None
        return self.logits

    def probability(self, x: Any) -> Tensor:
        """How likely each gate is open. Shape as `logit`."""
        return self.logit(x).sigmoid()

    def drawn(self, x: Any, step: int, purpose: str) -> Tensor:
        """The gates of a step. Shape (B, gates), or (gates,) where rows do not draw their own."""
        logit = self.logit(x)
        self.last = logit.sigmoid()
        if self.apart and self.gate is None:
            logit = logit.expand(len(x["rows"]), -1)
        uniform = self.uniform(x, logit, seed_of(purpose, self.seed, step))
        hard = (uniform < self.last).to(logit.dtype)
        if self.hard and not torch.is_grad_enabled():
            return hard
        soft = ((logit - uniform.logit()) / self.tau(step)).sigmoid()
        return hard + (soft - soft.detach()) if self.hard else soft

    def uniform(self, x: Any, logit: Tensor, seed: int) -> Tensor:
        """Uniform numbers in (0, 1) for every gate."""
        if self.apart:
            return uniforms(x["rows"], logit.shape[1], seed)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(len(logit), generator=generator, dtype=torch.float64).clamp_(1e-7, 1 - 1e-7)
        return drawn.to(logit, non_blocking=True)

    def tau(self, step: int) -> float:
        """The temperature of a step."""
        return max(self.coldest, self.temperature - self.cooling * step)

    def opened(self, x: Any) -> Tensor:
        """Which gates are open for good: those whose probability is above the threshold. (B, gates), bool."""
        probability = self.probability(x)
        if probability.dim() == 1:
            probability = probability.expand(x["kept"].shape[0], -1)
        if self.scope == "sample":
            return probability > valleys(histograms(probability))[:, None]
        return probability > self.threshold

    def facts(self, step: int) -> dict[str, float]:
        """The mean probability of the last draw, and how far gates are from it."""
        if self.last is None:
            return {}
        last = self.last.detach()
        spread = (last - last.mean(-1, keepdim=True)).abs().mean()
        return {"open": float(last.mean()), "polarization": float(spread)}


def opened(space: Space, kept: Sequence[tuple[str, str]]) -> Genotype:
    """The genotype with these options of these decisions and no others."""
    return {
        name: tuple(option for option in one.options if (name, option) in kept) for name, one in space.decisions.items()
    }


def uniforms(row_B: Tensor, count: int, seed: int) -> Tensor:
    """Uniform numbers in (0, 1) that hang on each row's index, the place and a seed alone. Shape (B, count)."""
    place_C = torch.arange(count, device=row_B.device)
    row_B1, place_C = (
        mixed(mixed(one.long()) ^ (seed >> by & WORD)) for one, by in ((row_B[:, None], 0), (place_C, 31))
    )
    bits_BC = (row_B1.to(torch.int32) ^ place_C.to(torch.int32)).mul_(FACTORS[0])
    for factor in FACTORS[1:]:
        bits_BC ^= (bits_BC >> 16) & 0xFFFF
        bits_BC *= factor
    bits_BC ^= (bits_BC >> 15) & 0x1FFFF
    return ((bits_BC >> 9) & 0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)


def mixed(word: Tensor) -> Tensor:
    """31-bit words that hang on every bit of others below 2^31, one to one."""
    for factor in FACTORS:
        word = ((word ^ (word >> 16)) * factor) & WORD
    return word ^ (word >> 15)


WORD, FACTORS = 0x7FFFFFFF, (0x7FEB352D, 0x2C1B3C6D, 0x297A2D39)


def histograms(value_BG: Tensor) -> Tensor:
    """How many of each row's values in [0, 1] are in each of the bins. Shape (B, BINS)."""
    bin_BG = (value_BG * BINS).long().clamp(0, BINS - 1)
    return value_BG.new_zeros(value_BG.shape[0], BINS).scatter_add_(1, bin_BG, torch.ones_like(value_BG))


def valleys(count_BH: Tensor) -> Tensor:
    """The threshold that each histogram gives: the lower end of its first valley, one half where it has none (B,).

    A valley is a bin that is no higher than the one before and no higher than the one after, counted as means of three
    neighbours, with values on both sides (iHAS §3.3.3, where it is 100 bins without means, which for a few hundred
    values is noise).
    """
    bins, count_BH = count_BH.shape[1], count_BH.double()
    smooth_BH = torch.nn.functional.avg_pool1d(count_BH[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    slope_BE = smooth_BH.diff(dim=1)
    left_BH, all_B1 = count_BH.cumsum(1), count_BH.sum(1, keepdim=True)
    inner = slice(1, bins - 1)
    valley_BV = (slope_BE[:, :-1] <= 0) & (slope_BE[:, 1:] >= 0)
    fallen_BV = (slope_BE < 0).cumsum(1)[:, :-1] > 0
    valley_BV &= fallen_BV & (left_BH[:, : bins - 2] > 0) & (left_BH[:, inner] < all_B1)
    first_B = valley_BV.to(torch.int8).argmax(1) + 1
    return torch.where(valley_BV.any(1), first_B / bins, 0.5)
