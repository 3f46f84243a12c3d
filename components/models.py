"""Models of the comparison as they are used: one net, one net for each kind of row behind a router, or a supernet."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from components.finalists import Finalist, trained
from components.run import Run
from components.trainings import ROUTER, searched
from nascore.cost import Cost
from nascore.net import Supernet
from nascore.routing import Routed
from nascore.space import Genotype
from nascore.tasks import Model, Task
from nascore.training import load


@dataclass(frozen=True)
class Opened:
    """A trained model. modules: what it is made of by name, in evaluation mode."""

    model: Model
    task: Task
    cost: Cost
    modules: Mapping[str, nn.Module]


def opened(run: Run, one: Finalist, seed: int) -> Opened:
    """A finalist as it was trained from one seed."""
    task = one.method.task(run.schema).eval()
    if one.kept:
        supernet = searched(run, one.method, one.of).eval()
        return Opened(supernet.steadily, task, supernet.cost(), {"model": supernet})
    parts = [part_of(run, one, genotype, seed, part, task) for part, genotype in enumerate(one.parts)]
    costs = [supernet.cost() for supernet in parts]
    if not one.routed:
        return Opened(parts[0].steadily, task, costs[0], {"model": parts[0]})
    folder = run.folder / "derive"
    router = one.method.router(searched(run, one.method, one.of), len(parts))
    router.load_state_dict(folder.read_tensors(ROUTER))
    cost = router.eval().cost()
    for share, own in zip(folder.read_json("kinds.json")["shares"], costs, strict=True):
        cost += Cost(own.params, own.table_params, own.macs * share)
    modules = {"router": router, **{f"part-{part}": supernet for part, supernet in enumerate(parts)}}
    return Opened(Routed(router, [supernet.steadily for supernet in parts]), task, cost, modules)


def part_of(run: Run, one: Finalist, genotype: Genotype, seed: int, part: int, task: Task) -> Supernet:
    """One part of a finalist with its weights; the task takes what was trained of it."""
    method, schema = one.method, run.schema
    supernet = method.supernet(schema, method.space(schema).narrow(genotype), seed)
    load(supernet, task, (run.folder / trained(one, seed, part)).read_tensors("weights.safetensors"))
    return supernet.eval()
