"""What a model costs for one example, in one unit, and budgets over it.

MACs are multiply-adds of linear maps, matrix products and attention cores; norms, element-wise work and look-ups count
0. FLOPs = 2 x MACs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from nascore.space import Genotype

Number = int | float | Tensor
UNITS = ("params", "table_params", "macs")


@dataclass(frozen=True)
class Cost:
    """Trainable weights outside embedding tables, weights inside them, and MACs for one example."""

    params: Number = 0
    table_params: Number = 0
    macs: Number = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.params + other.params, self.table_params + other.table_params, self.macs + other.macs)

    def __mul__(self, scale: Number) -> "Cost":
        return Cost(self.params * scale, self.table_params * scale, self.macs * scale)

    __rmul__ = __mul__


Price = Callable[[Genotype, str], Cost]


class Budget:
    """Limits on a model's cost: {"params": 480e3, "user/macs": 1e5} limits the whole model and one part of it.

    `price(genotype, under)` gives the cost of the parts whose name starts with `under`.
    """

    def __init__(self, limits: Mapping[str, float], price: Price) -> None:
        self.limits = dict(limits)
        self.price = price
        for name, limit in self.limits.items():
            if name.rpartition("/")[2] not in UNITS:
                raise ValueError(f"budget {name!r}: the unit after the last '/' must be one of {', '.join(UNITS)}")
            if not limit > 0:
                raise ValueError(f"budget {name!r}: a limit must be positive, not {limit}")

    def spent(self, genotype: Genotype) -> dict[str, float]:
        """What the genotype needs of each limited unit."""
        needs = {}
        for name in self.limits:
            under, _, unit = name.rpartition("/")
            needs[name] = float(getattr(self.price(genotype, under), unit))
        return needs

    def excess(self, genotype: Genotype) -> float:
        """The largest overrun as a share of its limit; 0 or less keeps the budget."""
        return max((need / self.limits[name] - 1 for name, need in self.spent(genotype).items()), default=0.0)

    def explain(self, genotype: Genotype) -> str:
        spent = self.spent(genotype)
        return ", ".join(f"{name} {need:,.0f} of {self.limits[name]:,.0f}" for name, need in spent.items())


def parse_limits(spec: str) -> dict[str, float]:
    """Limits from "macs=300000,user/params=2e5"; an empty text limits nothing."""
    limits = {}
    for part in filter(None, (part.strip() for part in spec.split(","))):
        name, sign, value = part.partition("=")
        try:
            limits[name.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise ValueError(f"budget {part!r} is not of the form unit=limit, such as macs=300000 or user/params=2e5")
    return limits
