"""Paths of one operator a branch and any connections, after a warm-up by the whole supernet (NASRec §4.1 and 5.1).

Decisions are told apart by the ends of their names: operators ".../op", dimensions ".../size" (options from the
smallest on), connections ".../from"; all before the first "/" is the block.
"""

from random import Random
from typing import Any, Literal

from nascore.samplers import Sampler
from nascore.space import Decision, Mix, Space

Count = Literal["single", "any"]


class SingleOperator(Sampler):
    """A path a step. Where at most n options may be open, "any" opens 1 + Binomial(n - 1, 1/2) of them.

    Of operators it opens up to all, also where the space to search allows one.

    Over the first `warmup` steps the whole supernet runs with a probability that falls from 1 to 0: drawn once for the
    connections of all blocks, and for each block by itself for its operators and dimensions. operators, connections:
    Single-operator Any-connection, Single-operator Single-connection and Any-operator Any-connection are the paper's
    three strategies.
    """

    def __init__(
        self, space: Space, seed: int, operators: Count = "single", connections: Count = "any", warmup: int = 0
    ) -> None:
        super().__init__(space, seed)
        self.operators, self.connections, self.warmup = operators, connections, warmup

    def forward(self, x: Any, step: int) -> Mix:
        rng = Random(f"single_operator/{self.seed}/{step}")
        whole = max(0.0, 1 - step / self.warmup) if self.warmup else 0.0
        connected = rng.random() < whole
        full: dict[str, bool] = {}
        mix: dict[str, tuple[float, ...]] = {}
        for name, decision in self.space.decisions.items():
            block, _, about = name.partition("/")
            if block not in full:
                full[block] = rng.random() < whole
            if about.endswith(("from", "left", "right")):
                opened = set(decision.options) if connected else self._drawn(decision, self.connections, rng)
            elif about.endswith("size"):
                opened = {decision.options[-1]} if full[block] else {*decision.sample(rng)}
            elif about.endswith("op"):
                opened = set(decision.options) if full[block] else self._drawn(decision, self.operators, rng)
            else:
                opened = set(decision.options) if full[block] else {*decision.sample(rng)}
            mix[name] = tuple(float(option in opened) for option in decision.options)
        return mix

    @staticmethod
    def _drawn(decision: Decision, count: Count, rng: Random) -> set[str]:
        """Some options of a decision: one, or any number where it allows more."""
        if count == "single":
            return {rng.choice(decision.options)}
        most = len(decision.options) if decision.name.endswith("op") else decision.most
        more = sum(rng.random() < 0.5 for _ in range(most - 1))
        return set(rng.sample(decision.options, 1 + more))
