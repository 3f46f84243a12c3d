"""What is to be trained alone, told in plain values that travel to any worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nascore.methods import Method
from nascore.space import Genotype


@dataclass(frozen=True)
class Job:
    """One model to train alone into a folder of the run: a member of a method's space, from one seed.

    refit: whether the weights are those of a further training, on train and valid rows, for the best number of epochs.
    part: the kind of rows that it learns from, as `derive` told them apart; -1 for all rows. of: the folder of the
    supernet that it may inherit from. tried: whether it is an attempt, which may diverge.
    """

    folder: str
    method: Mapping[str, Any]
    genotype: Mapping[str, Sequence[str]]
    seed: int
    refit: bool = False
    part: int = -1
    of: str = "supernet"
    tried: bool = False

    @staticmethod
    def make(
        folder: str,
        method: Method,
        genotype: Genotype,
        seed: int,
        refit: bool = False,
        part: int = -1,
        of: str = "supernet",
    ) -> "Job":
        chosen = {name: list(choice) for name, choice in genotype.items()}
        return Job(folder, method.to_json(), chosen, seed, refit, part, of)
