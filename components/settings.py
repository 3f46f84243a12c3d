"""Settings of a run that no method knows of: what it may use, and how far it goes in testing and tuning."""

from dataclasses import dataclass
from math import isfinite

from nascore import plugins
from nascore.rows import Mode


@dataclass(frozen=True)
class Workers:
    """What the stages may use of the cluster.

    Args:
        train: Data-parallel workers of the supernet, sharing each batch.
        evaluators: Scoring actors of each search; 0 shares the cores among the searches.
        cpus: CPUs of each training or scoring worker.
        gpus: GPUs of each training or scoring worker.
        memory: GiB that the cluster sets aside for each training or scoring worker; 0 for none.
        data: Whether training rows stay resident or are streamed.
        checkpoint: Steps between two checkpoints of the supernet.
        cache: Bytes in which the scorers of one node may keep what candidates share.
    """

    train: int = 1
    evaluators: int = 0
    cpus: int = 1
    gpus: float = 0.0
    memory: float = 0.0
    data: Mode = "resident"
    checkpoint: int = 1_000
    cache: int = 2 << 30

    def __post_init__(self) -> None:
        plugins.bounded(self, train=1, evaluators=0, cpus=1, gpus=0, memory=0, checkpoint=1, cache=0)


@dataclass(frozen=True)
class Diagnosis:
    """How the supernet's ranking is tested; below 3 genotypes it is not.

    Args:
        genotypes: Drawn uniformly from the first budget and trained alone.
        seeds: Trainings of each; two or more tell how far seeds agree among themselves.
    """

    genotypes: int = 40
    seeds: int = 2

    def __post_init__(self) -> None:
        plugins.bounded(self, genotypes=0, seeds=1)


@dataclass(frozen=True)
class Tuning:
    """How hyper-parameters are tuned.

    Args:
        configurations: The most settings tried of each method, the first of them its own; at 0 nothing is tuned.
    """

    configurations: int = 16

    def __post_init__(self) -> None:
        plugins.bounded(self, configurations=0)


@dataclass(frozen=True)
class Allowance:
    """What a run may use, all attempts together. Once it is used up, supernets, searches, the test of the ranking and
    tuning end with what there is; what was found by then is still retrained and tested, so leave room for that.

    Args:
        wall: Hours at work; 0 for no limit.
        gpu_hours: Hours of GPUs held by workers; 0 for no limit.
    """

    wall: float = 0.0
    gpu_hours: float = 0.0

    def __post_init__(self) -> None:
        plugins.bounded(self, wall=0, gpu_hours=0)
        if not (isfinite(self.wall) and isfinite(self.gpu_hours)):
            raise ValueError("--budget.wall and .gpu_hours are numbers of hours; 0 stands for no limit")
