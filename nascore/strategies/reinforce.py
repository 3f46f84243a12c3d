"""REINFORCE: an LSTM that draws one decision after the other, rewarded by the scores (ENAS, Pham et al., 2018, §2.2).

Step t's logits are c tanh(W_t h_t / T), T the temperature; what was drawn is the next step's input. A decision that may
open several options takes a step for each, opened or not. To the logits comes the log of how the space itself would
draw, so an untrained controller draws as `Space.sample` does and never opens too many options or too few.

The paper's rewards lie between 0 and 1; our scores may have any scale. So a score's advantage is its distance from
their moving average, in moving standard deviations that count it too, which keeps outliers below 4.6 of them.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import comb, sqrt
from random import Random
from statistics import fmean, pvariance

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nascore.space import Decision, Genotype, Space
from nascore.strategies import Strategy, Trial

NEVER = -1e9
TRIES = 20
PRECISE = torch.float64  # so that draws do not hang on how a machine rounds


class Reinforce(Strategy):
    """Asks for `batch` draws at a time and learns from them `update` at a time, in the order told.

    The paper's values but for `rate` and `update`: its steps of 3.5e-4, one a trial, learn too slowly for the 2,550
    trials of a search here, and take longer.

    Args:
        space: What may be proposed.
        seed: Of the first weights and of all draws.
        first: Proposed before anything else.
        batch: Genotypes asked for at a time.
        rate: Adam's learning rate.
        update: Trials that share a step of Adam.
        hidden: Width of the LSTM.
        temperature: Divides the logits.
        tanh: Bounds the logits.
        entropy: Weight of the entropy of the draws.
        decay: Of the moving average and variance of the scores, a trial.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        first: Sequence[Genotype] = (),
        batch: int = 50,
        rate: float = 2e-2,
        update: int = 25,
        hidden: int = 100,
        temperature: float = 5.0,
        tanh: float = 2.5,
        entropy: float = 1e-4,
        decay: float = 0.95,
    ) -> None:
        super().__init__(space, seed, first)
        if min(batch, update, hidden) < 1 or min(rate, temperature, tanh) <= 0 or entropy < 0 or not 0 <= decay < 1:
            raise ValueError(
                f"reinforce: batch, update, hidden >= 1, rate, temperature, tanh > 0, entropy >= 0 and 0 <= decay < 1 "
                f"do not hold: {batch}, {update}, {hidden}, {rate}, {temperature}, {tanh}, {entropy}, {decay}"
            )
        self.batch, self.update, self.entropy, self.decay = batch, update, entropy, decay
        self.controller = _Controller(space, hidden, temperature, tanh, _generator(self.rng()))
        self.adam = torch.optim.Adam(self.controller.parameters(), rate)
        self.moments: tuple[float, float] | None = None

    def ask(self) -> list[Genotype]:
        rng = self.rng()
        if not self.told:
            return self.opening(self.batch, rng)
        found = self.new(self.members(rng), self.batch)
        return found + self.uniform(self.batch - len(found), rng, found)

    def members(self, rng: Random) -> Iterator[Genotype]:
        """The members among the controller's draws, 20 for each genotype asked for."""
        generator = _generator(rng)
        for _ in range(TRIES):
            yield from (genotype for genotype in self.controller.draw(self.batch, generator) if genotype in self.space)

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        scored = [(trial.genotype, trial.score) for trial in trials if trial.score is not None]
        if not scored or not self.space.decisions:
            return
        advantage_B = self.advantages([score for _, score in scored])
        for start in range(0, len(scored), self.update):
            part = slice(start, start + self.update)
            logp_B, entropy_B = self.controller([genotype for genotype, _ in scored[part]])
            self.adam.zero_grad()
            (-advantage_B[part] * logp_B - self.entropy * entropy_B).mean().backward()
            self.adam.step()

    def advantages(self, scores: Sequence[float]) -> Tensor:
        """How far each score is above the moving average before it, in standard deviations. Shape (B,).

        Moves both; they start at those of the first scores.
        """
        mean, variance = self.moments or (fmean(scores), pvariance(scores))
        advantages = []
        for score in scores:
            distance = score - mean
            mean += (1 - self.decay) * distance
            variance = self.decay * variance + (1 - self.decay) * distance**2
            advantages.append(distance / sqrt(variance) if variance else 0.0)
        self.moments = mean, variance
        return torch.tensor(advantages, dtype=PRECISE)


class _Controller(nn.Module):
    """An LSTM over T steps of at most K choices each; every step has its own vectors for its choices."""

    def __init__(self, space: Space, hidden: int, temperature: float, tanh: float, generator: torch.Generator) -> None:
        super().__init__()
        self.decisions, self.temperature, self.tanh = list(space.decisions.values()), temperature, tanh
        odds = [torch.empty(0, 1, 1, dtype=PRECISE), *map(_log_odds, self.decisions)]
        T, M, K = sum(map(len, odds)), max(table.shape[1] for table in odds), max(table.shape[2] for table in odds)
        padded = [F.pad(table, (0, K - table.shape[2], 0, M - table.shape[1]), value=NEVER) for table in odds]
        self.log_odds_TMK = torch.cat(padded)
        self.begun = [t for t, table in zip(accumulate(map(len, odds), initial=0), odds, strict=False) for _ in table]
        with torch.random.fork_rng(devices=[]):
            self.lstm = nn.LSTM(hidden, hidden, dtype=PRECISE)
        self.start_H = nn.Parameter(torch.empty(hidden, dtype=PRECISE))
        self.input_TKH = nn.Parameter(torch.empty(T, K, hidden, dtype=PRECISE))
        self.output_TKH = nn.Parameter(torch.empty(T, K, hidden, dtype=PRECISE))
        for weights in self.parameters():
            nn.init.uniform_(weights, -0.1, 0.1, generator=generator)

    def forward(self, genotypes: Sequence[Genotype]) -> tuple[Tensor, Tensor]:
        """Log-probability of each genotype, and the entropy of the draws on the way to it. Shapes (B,)."""
        codes = [[code for d in self.decisions for code in _encode(d, genotype[d.name])] for genotype in genotypes]
        choice_TB, opened_TB = torch.tensor(codes).permute(2, 1, 0)
        start_1BH = self.start_H.expand(1, len(genotypes), -1)
        before_T1 = torch.arange(len(choice_TB) - 1)[:, None]
        h_TBH, _ = self.lstm(torch.cat([start_1BH, self.input_TKH[before_T1, choice_TB[:-1]]]))
        logp_TBK = self.log_probabilities(h_TBH, opened_TB, slice(None))
        return logp_TBK.gather(2, choice_TB[..., None]).sum((0, 2)), -(logp_TBK.exp() * logp_TBK).sum((0, 2))

    def log_probabilities(self, h_TBH: Tensor, opened_TB: Tensor, steps: slice) -> Tensor:
        """Of the choices at some steps, given how many options each decision has opened before. Shape (T, B, K)."""
        logits_TBK = self.tanh * torch.tanh(h_TBH @ self.output_TKH[steps].mT / self.temperature)
        rows_TBK = opened_TB[..., None].expand_as(logits_TBK)
        return F.log_softmax(logits_TBK + self.log_odds_TMK[steps].gather(1, rows_TBK), 2)

    @torch.no_grad()
    def draw(self, count: int, generator: torch.Generator) -> list[Genotype]:
        """Genotypes over the decisions, members of the space or not."""
        T, _, K = self.log_odds_TMK.shape
        gumbel_TBK = -(-torch.rand(T, count, K, dtype=PRECISE, generator=generator).log()).log()
        choice_BT = torch.zeros(count, T, dtype=torch.long)
        x_BH, state = self.start_H.expand(count, -1), None
        for t in range(T):
            h_1BH, state = self.lstm(x_BH[None], state)
            opened_B = choice_BT[:, self.begun[t] : t].sum(1)
            logp_1BK = self.log_probabilities(h_1BH, opened_B[None], slice(t, t + 1))
            choice_BT[:, t] = (logp_1BK[0] + gumbel_TBK[t]).argmax(1)
            x_BH = self.input_TKH[t, choice_BT[:, t]]
        drawn = [iter(choices) for choices in choice_BT.tolist()]
        return [{d.name: _decode(d, choices) for d in self.decisions} for choices in drawn]


def _picks_one(decision: Decision) -> bool:
    return decision.least == decision.most == 1


def _log_odds(decision: Decision) -> Tensor:
    """How `Decision.sample` would draw: by step, by the options opened before, by choice. Shape (S, M, K)."""
    n = len(decision.options)
    if _picks_one(decision):
        return torch.zeros(1, 1, n, dtype=PRECISE)

    def ways(left: int, opened: int) -> float:
        counts = range(max(decision.least, opened), decision.most + 1)
        return sum(comb(left, count - opened) / comb(n, count) for count in counts)

    odds = [
        [[ways(n - step - 1, opened), ways(n - step - 1, opened + 1)] for opened in range(decision.most + 1)]
        for step in range(n)
    ]
    return torch.tensor(odds, dtype=PRECISE).reshape(n, -1, 2).log().clamp(min=NEVER)


def _encode(decision: Decision, chosen: Sequence[str]) -> list[tuple[int, int]]:
    """What is chosen at each step, and how many options were opened before it."""
    if _picks_one(decision):
        return [(decision.options.index(chosen[0]), 0)]
    bits = [int(option in chosen) for option in decision.options]
    return list(zip(bits, accumulate(bits, initial=0), strict=False))


def _decode(decision: Decision, choices: Iterator[int]) -> tuple[str, ...]:
    if _picks_one(decision):
        return (decision.options[next(choices)],)
    return tuple(option for option in decision.options if next(choices))


def _generator(rng: Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(63))
