"""A run: what was asked for, and the folder in object storage that is its only truth.

`<root>/run.json`, then one folder a stage. A stage's `done.json` is written last: a stage that has it is skipped, one
without it continues or starts anew. Files are written under a temporary name and published whole.
"""

import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components import order
from components.folder import Folder
from components.ledger import Ledger
from components.settings import Allowance, Diagnosis, Tuning, Workers
from nascore import plugins
from nascore.cost import Budget, Cost
from nascore.datasets import DataError, Dataset, OnBadRow
from nascore.methods import Method, from_json
from nascore.rows import Data, Mode, Shown
from nascore.schema import Schema
from nascore.space import Genotype, Space, key, parse

# Threads that spin while they wait starve other workers. Workers keep freed tensors: the system clears each page anew.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
BUDGETED = ("supernet", "search", "diagnose", "derive", "tune")
"""The stages that end with what there is once the run's budget is used up."""
STAGES = ("prepare", "supernet", "search", "diagnose", "derive", "tune", "retrain", "evaluate", "report")


FIXED = {
    "prepare": ("dataset", "raw", "protocol", "on_bad_row"),
    "supernet": ("methods.0", "seeds.0"),
    "search": ("strategies", "budgets", "seeds", "first", "given", "keep", "front"),
    "diagnose": ("diagnosis",),
    "derive": ("methods", "budgets", "seeds.0"),
    "tune": ("methods", "tuning"),
    "retrain": ("methods", "seeds", "refit"),
}
"""What a stage that has begun holds fast; all else may still be changed."""
KEPT_OUT = ("root", "workers", "budget", "stages")
TOLD = 6


def environment() -> None:
    """Set, before Ray is imported, what this process and its workers run under; what is set already stays.

    A cluster that we start ourselves accepts only a token of this process.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not running_cluster() and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def running_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster, or one that `ray start --head` started answers on this machine."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    try:
        host, _, port = Path(tempfile.gettempdir(), "ray", "ray_current_cluster").read_text().strip().rpartition(":")
        socket.create_connection((host, int(port)), timeout=1).close()
    except (OSError, ValueError):
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class Run:
    """methods[0] is searched under each budget by each strategy with each seed; the others are its rivals.

    keep: candidates retrained for each budget and strategy. front: whether all are retrained and tested that no other
    genotype of the same strategy and budget beats at as few MACs. first: genotypes that every search begins with.
    given: genotypes that are retrained and tested beside what is found. refit: whether what is tested is trained once
    more, on train and valid rows together, for its best number of epochs.
    """

    root: str
    dataset: str
    raw: str
    methods: tuple[Method, ...]
    protocol: str = "user_temporal"
    on_bad_row: OnBadRow = "error"
    strategies: tuple[str, ...] = ("evolution",)
    budgets: tuple[str, ...] = ("M",)
    keep: int = 3
    seeds: tuple[int, ...] = (0, 1, 2)
    front: bool = False
    first: tuple[Genotype, ...] = ()
    given: tuple[Genotype, ...] = ()
    refit: bool = False
    diagnosis: Diagnosis = field(default_factory=Diagnosis)
    tuning: Tuning = field(default_factory=Tuning)
    workers: Workers = field(default_factory=Workers)
    budget: Allowance = field(default_factory=Allowance)
    stages: tuple[str, ...] = STAGES

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("--root is empty; it names the folder of the run, such as runs/mine")
        plugins.bounded(self, keep=1)
        for name in ("root", "raw"):
            object.__setattr__(self, name, _absolute(getattr(self, name)))

    @property
    def method(self) -> Method:
        return self.methods[0]

    @property
    def planned(self) -> tuple[str, ...]:
        """The stages that have something to do."""
        derives = self.method.routes or any(rival.decides for rival in self.methods[1:])
        return tuple(stage for stage in self.stages if stage != "derive" or derives)

    @cached_property
    def folder(self) -> Folder:
        return Folder(self.root)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger")

    def used_up(self) -> str:
        """What of the budget is used up; "" where nothing is."""
        spent, budget = self.ledger.total(), self.budget
        for allowed, unit, what in (
            (budget.wall, "seconds", "--budget.wall {:g} h"),
            (budget.gpu_hours, "gpu_seconds", "--budget.gpu_hours {:g}"),
        ):
            if allowed and spent[unit] >= allowed * 3600:
                return what.format(allowed)
        return ""

    def cut(self) -> None:
        """Note that the stage at work ends with less than was asked for, as the budget is used up."""
        self.ledger.stop(self.used_up() or "a budget that was smaller then")

    @cached_property
    def schema(self) -> Schema:
        """The schema of the prepared data; `prepare` must be done."""
        return Schema.from_json((self.folder / "prepare").read_text("schema.json"))

    @property
    def unread(self) -> tuple[str, ...]:
        """The features of the prepared data that the task has no use for."""
        read = self.method.task(self.schema).reads(self.schema)
        return tuple(column.name for column in self.schema.columns if column not in read)

    def raw_data(self) -> Dataset:
        """The reader of the raw files; raises if it does not have the run's protocol."""
        dataset: Dataset = plugins.build("datasets", self.dataset, self.raw, self.on_bad_row)
        if self.protocol not in dataset.protocols:
            raise DataError(f"{self.dataset} has no protocol {self.protocol!r}; it has: {', '.join(dataset.protocols)}")
        return dataset

    def check_data(self) -> None:
        """Raise where the raw files are not there, or their rows are not of the kind that the methods learn from."""
        dataset = self.raw_data()
        apart, what = not dataset.layout().user, ("rows of users", "rows that stand by themselves")
        for method in self.methods:
            if method.apart != apart:
                there = f"{self.raw or self.dataset} holds {what[apart]}"
                raise DataError(
                    f"{method.name} learns from {what[method.apart]}, but {there}; `python -m pipelines` lists what "
                    "learns from such"
                )
        if plugins.load("protocols", self.protocol).apart != apart:
            fit = [name for name in dataset.protocols if plugins.load("protocols", name).apart == apart]
            raise DataError(f"{self.raw or self.dataset} holds {what[apart]}: --protocol must be {' or '.join(fit)}")
        for method in self.methods:
            if method.shown.ends and plugins.load("protocols", self.protocol).strictly_earlier:
                raise ValueError(
                    f"{method.name}: training.targets=all learns each event from those before it, but under "
                    f"{self.protocol} events of equal times stand side by side: --protocol must be leave_one_out"
                )
        if apart and not any(feature.kind == "category" or feature.bins for feature in dataset.layout().features):
            raise DataError(
                f"{self.raw or self.dataset} has no feature of kind category, and a click model embeds at least one: "
                "a number with bins becomes one"
            )

    def check(self) -> None:
        """Raise for all that can be known to be wrong before a stage runs."""
        self.check_data()
        self.check_options()
        order.check(self.folder, self.planned, searched=not self.method.routes)

    def check_options(self) -> None:
        """Raise for what is wrong with the options by themselves: no file is looked at."""
        for strategy in self.strategies:
            plugins.build("strategies", strategy, Space([]), 0, ())
        for budget in self.budgets:
            Budget(self.method.limits(budget), lambda genotype, under: Cost())
        for stage in self.stages:
            if stage not in STAGES:
                raise ValueError(f"no stage {stage!r}; there are: {', '.join(STAGES)}")
        if list(self.stages) != [stage for stage in STAGES if stage in self.stages]:
            raise ValueError(f"--stages {list(self.stages)}: each stands once, in the order {', '.join(STAGES)}")
        if "derive" not in self.stages and "derive" in replace(self, stages=STAGES).planned:
            raise ValueError("--stages must hold derive: a method of this run decides by itself")
        without = ("strategies",) if self.given or self.method.learning else ()
        for name in ("methods", "strategies", "budgets", "seeds"):
            known = getattr(self, name)
            if len(set(known)) != len(known) or not (known or name in without):
                asked = "rivals" if name == "methods" else name
                raise ValueError(f"--{asked} needs one or more, each once; not {list(getattr(self, name))}")

    def rows(
        self,
        split: str,
        mode: Mode = "resident",
        rank: int = 0,
        world: int = 1,
        device: str = "cpu",
        first: int = 0,
        shown: Shown = Shown(),  # noqa: B008
        only: NDArray[np.bool_] | None = None,
    ) -> Data:
        """A split of the prepared data, or about its `first` rows, as a method's models are shown it; see `Data`."""
        url = f"{self.folder.url}/prepare"
        return Data(url, split, mode=mode, rank=rank, world=world, device=device, first=first, shown=shown, only=only)

    def checkpoint(self, of: str = "supernet") -> Folder:
        """The newest whole checkpoint of the supernet, or of one in another folder of the run."""
        whole = (self.folder / of).names("step-*/done.json")
        if not whole:
            stage = of.partition("/")[0]
            raise FileNotFoundError(
                f"{self.root} holds no supernet; make it with: python -m components {stage} {self.root}"
            )
        return self.folder / of / whole[-1].rpartition("/")[0]

    def members(self, budget: str) -> Space:
        """The searched method's space within a budget, which holds for what is tested."""
        limits, space = self.method.limits(budget), self.method.space(self.schema)
        if not limits:
            return space
        return space.within(Budget(limits, self.method.final(self.schema).price(self.schema)))

    def check_prepared(self) -> None:
        """Raise for all that only the prepared data can show to be wrong, such as a budget that leaves no member."""
        for budget in self.budgets:
            space = self.members(budget)
            self.method.check(self.schema, space)
            if not self.method.routes:
                space.sample(Random(0))
        self.check_given()
        self.method.sampler(self.method.space(self.schema), 0)
        for method in self.methods:
            method.price(self.schema)  # builds its net, of no weights
            for fitness in (method.fitness, method.stop):
                fitness.check(method.task(self.schema))
        task = self.method.task(self.schema)
        known = (self.folder / STAGES[0]).read_json("statistics.json").get("open_to", {})
        for split, users in known.items():
            if task.unmet and not users:
                raise DataError(
                    f"nothing can be ranked on the {split} split under protocol {self.protocol}: none of its users has "
                    "both a row to train on and an item that it has not met before; take another protocol, or more rows"
                )
        for rival in self.methods[1:]:
            rival.check(self.schema, rival.space(self.schema))
            other = rival.task(self.schema)
            if not isinstance(other, type(task)) and not isinstance(task, type(other)):  # one may refine the other
                raise ValueError(
                    f"--rivals: {rival.name} is trained and judged for {type(other).__name__}, {self.method.name} for "
                    f"{type(task).__name__}: their figures do not compare"
                )
            if rival.space(self.schema).size() > 1 and not rival.decides:
                raise ValueError(f"--rivals: {rival.name} has something to decide, but does not by itself")
        if self.method.train.batch % self.workers.train:
            raise ValueError(
                f"batch {self.method.train.batch} cannot be shared equally by --workers.train {self.workers.train}"
            )

    def check_given(self) -> None:
        """Raise for a given genotype that is no member of the space, or of none of the budgets."""
        whole, budgets = self.method.space(self.schema), [self.members(budget) for budget in self.budgets]
        for genotype in self.given:
            if genotype not in whole:
                allowed = ", ".join(f"{name} ({len(one.options)} options)" for name, one in whole.decisions.items())
                raise ValueError(f"--given: {key(genotype)} is no member of this run's space: {allowed}")
            if not any(genotype in space for space in budgets):
                limits = "; ".join(one.explain(genotype) for space in budgets for one in space.constraints)
                raise ValueError(f"--given: {key(genotype)} is within none of --budgets: {limits}")

    @contextmanager
    def stage(self, name: str, resumes: bool = False) -> Iterator[Folder]:
        """A stage's folder, emptied first unless what stands there is resumed, marked as done at the end.

        A report that was made before is then out of date, and made anew when it is asked for.
        """
        folder, started = self.folder / name, time.monotonic()
        (self.folder / STAGES[-1]).reopen()
        with self.ledger.attempt(name):
            if not resumes:
                folder.clear()
            yield folder
        folder.write_json("done.json", {"seconds": round(time.monotonic() - started, 3)})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "methods": [method.to_json() for method in self.methods]}

    def save(self) -> None:
        """Write `run.json`; a folder that holds another run is refused, with what differs."""
        mine = json.loads(json.dumps(self.to_json()))
        if self.folder.exists("run.json"):
            here, there = (
                leaves({name: value for name, value in run.items() if name not in KEPT_OUT})
                for run in (mine, self.folder.read_json("run.json"))
            )
            begun = [name for stage, names in FIXED.items() if (self.folder / stage).names("*") for name in names]
            differs = [
                name
                for name in here | there
                if here.get(name) != there.get(name) and any(f"{name}.".startswith(f"{one}.") for one in begun)
            ]
            if differs:
                both = "; ".join(f"{name}: {there.get(name)} there, {here.get(name)} here" for name in differs[:TOLD])
                both += f"; and {len(differs) - TOLD} more" if len(differs) > TOLD else ""
                raise ValueError(
                    f"{self.root} holds another run. {both}. Choose another --root (--runs of nights), or remove that "
                    "folder"
                )
        self.folder.write_json("run.json", mine)

    @staticmethod
    def load(root: str) -> "Run":
        """The run that stands in a folder."""
        if not Folder(root).exists("run.json"):
            raise FileNotFoundError(
                f"{root} holds no run.json; start one with: python -m pipelines <method> --root {root} …"
            )
        known = Folder(root).read_json("run.json")
        listed = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        try:
            return Run(
                **{
                    **known,
                    **listed,
                    "root": root,
                    "methods": tuple(from_json(method) for method in known["methods"]),
                    "first": tuple(parse(genotype) for genotype in known["first"]),
                    "given": tuple(parse(genotype) for genotype in known["given"]),
                    "diagnosis": Diagnosis(**known["diagnosis"]),
                    "tuning": Tuning(**known["tuning"]),
                    "workers": Workers(**known["workers"]),
                    "budget": Allowance(**known.get("budget", {})),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{root}/run.json is of another version of nascore ({error}); start anew") from error


def _absolute(url: str) -> str:
    """A local path from the root of the disk: workers run in folders of their own. Other URLs stay as they are."""
    return os.path.abspath(os.path.expanduser(url)) if url and "://" not in url else url


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The plain values inside a JSON value, by their paths."""
    if not isinstance(value, dict | list):
        return {name: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return {path: leaf for key, one in inner for path, leaf in leaves(one, f"{name}.{key}".strip(".")).items()}
