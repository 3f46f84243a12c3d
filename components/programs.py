"""A trained model as programs that need no code of ours: tensors by name to tensors by name, any number of rows."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from components.models import Opened
from nascore.routing import Routed, Router
from nascore.rows import Data
from nascore.schema import Batch, Schema
from nascore.tasks import Task
from nascore.tasks.click import Click
from nascore.tasks.next_item import NextItem
from nascore.tasks.retrieval import Retrieval

GOLDEN = 64
TRACED = 3
TOLERANCE = 1e-5
SIZE = torch.ops.aten.sym_size.int
Tensors = Mapping[str, Tensor]


class Unexportable(ValueError):
    """A model that cannot be made a program that gives what it gives."""


@dataclass(frozen=True)
class Program:
    """One part of a model on its own, with golden rows. off: how far its outputs on those are from the model's."""

    name: str
    exported: ExportedProgram
    inputs: Tensors
    outputs: Tensors
    off: float


@dataclass(frozen=True)
class Wanted:
    """What is to become a program: a function of batches, and golden rows.

    traced: a function that gives the same by steps that do not hang on the data. longer: whether pasts have any length.
    """

    name: str
    run: Callable[[Batch], Tensors]
    golden: Batch
    traced: Callable[[Batch], Tensors] | None = None
    longer: bool = False


def kind_of(task: Task) -> str:
    """What a model gives: the logit of a row (click), vectors of both sides (two_tower), or of a past (next_item)."""
    for base, kind in ((Click, "click"), (Retrieval, "two_tower"), (NextItem, "next_item")):
        if isinstance(task, base):
            return kind
    raise Unexportable(f"models of the task {type(task).__name__} cannot be exported yet")


def programs(known: Opened, schema: Schema, valid: Data) -> list[Program]:
    """Every part of a model on its own; raises where one does not give what the model gives."""
    return [_program(one, known.modules, schema) for one in _wanted(known, valid)]


def _wanted(known: Opened, valid: Data) -> Iterator[Wanted]:
    model, kind = known.model, kind_of(known.task)
    row_B = torch.arange(min(GOLDEN, valid.rows))

    def only(name: str) -> Callable[[Batch], Tensors]:
        return lambda batch: {name: model(batch)[name]}

    if kind == "click":
        golden = valid.batch(row_B)
        traced = _routed(model) if isinstance(model, Routed) else None
        yield Wanted("model", lambda batch: {"logit": model(batch)}, golden, traced)
        if isinstance(model, Routed):
            yield Wanted("router", _told(model.router), golden)
    elif kind == "next_item":
        yield Wanted("model", only("user"), valid.batch(row_B))
    else:
        user_B, item_B, before_B = valid.keys(row_B)
        assert isinstance(known.task, Retrieval)
        whole = known.task.whole
        yield Wanted("user", only("user"), valid.user_batch(user_B, before_B, whole), longer=whole)
        yield Wanted("item", only("item"), valid.item_batch(item_B))


def _routed(routed: Routed) -> Callable[[Batch], Tensors]:
    return lambda batch: {"logit": selected(routed, batch)}


def _told(router: Router) -> Callable[[Batch], Tensors]:
    return lambda batch: {"part": router(batch)}


def selected(routed: Routed, batch: Batch) -> Tensor:
    """What a routed model gives, by all parts for all rows: no step hangs on the data."""
    part_B, first, *others = routed.router(batch), *routed.models
    output_B: Tensor = first(batch)
    for part, model in enumerate(others, 1):
        output_B = torch.where(part_B == part, model(batch), output_B)
    return output_B


class _Alone(nn.Module):
    """A function of batches as one of tensors by name. keys: the names of the sides' keys."""

    def __init__(
        self, modules: Mapping[str, nn.Module], run: Callable[[Batch], Tensors], keys: Mapping[str, str]
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(modules)
        self.run, self.keys = run, keys

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        row_B = torch.arange(next(iter(inputs.values())).shape[0])
        keys = {side: inputs.get(name, row_B) for side, name in self.keys.items()}
        return dict(self.run(Batch(inputs, keys, row_B)))


@torch.no_grad()
def _program(wanted: Wanted, modules: Mapping[str, nn.Module], schema: Schema) -> Program:
    names = {"user": schema.user, "item": schema.item}
    keys = {side: names[side] for side in wanted.golden.keys}
    known = {**{names[side]: value for side, value in wanted.golden.keys.items()}, **wanted.golden.columns}
    alone = _Alone(modules, wanted.traced or wanted.run, keys)
    read = _read(wanted.traced or wanted.run, wanted.golden, names) or set(known)
    inputs = {name: known[name].contiguous() for name in sorted(read)}
    exported = _exported(alone, inputs, wanted.longer)
    if len(used := _used(exported, list(inputs), keys.values())) < len(inputs):
        inputs = {name: inputs[name] for name in used}
        exported = _exported(alone, inputs, wanted.longer)
    outputs = {name: value.contiguous() for name, value in wanted.run(wanted.golden).items()}
    call = exported.module()
    off = distance(call(dict(inputs)), outputs)
    for rows in (1, 2, len(next(iter(inputs.values()))) // 2 + 1):
        part = {name: value[:rows] for name, value in inputs.items()}
        off = max(off, distance(call(part), {name: value[:rows] for name, value in outputs.items()}))
    if not off <= TOLERANCE:
        raise Unexportable(f"the program {wanted.name!r} is {off:.2g} from the model, more than {TOLERANCE:.0g}")
    return Program(wanted.name, exported, inputs, outputs, off)


class _Seen(Mapping[str, Tensor]):
    """Tensors by name, and which of them were asked for."""

    def __init__(self, known: Tensors) -> None:
        self.known, self.read = known, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        value = self.known[name]
        self.read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self.known

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _read(run: Callable[[Batch], Tensors], batch: Batch, names: Mapping[str, str]) -> set[str]:
    """What a function asks of a batch, columns and keys; it may use less."""
    columns, keys = _Seen(batch.columns), _Seen(batch.keys)
    run(Batch(columns, keys, batch.rows))
    return columns.read | {names[side] for side in keys.read}


def _exported(alone: nn.Module, inputs: Tensors, longer: bool) -> ExportedProgram:
    example = {name: torch.cat([value] * TRACED)[:TRACED] for name, value in inputs.items()}
    shapes = {name: {0: Dim("rows")} for name in inputs}
    for name in inputs if longer else ():
        if name.partition("/")[0] == "history":
            example[name] = torch.cat([example[name]] * TRACED, 1)
            shapes[name][1] = Dim("events")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(alone, (example,), dynamic_shapes=(shapes,))
    exported.example_inputs = None
    return exported


def _used(exported: ExportedProgram, names: list[str], keys: Iterable[str]) -> list[str]:
    """The inputs that a program reads; where it only counts rows, a key or a past. `names` are sorted, as traced."""
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    own = [nodes[str(place)] for place in exported.graph_signature.user_inputs]
    read = [any(user.target is not SIZE for user in node.users) for node in own]
    used = [name for name, reads in zip(names, read, strict=True) if reads]
    return used or [name for name in (*keys, "history", *names) if name in names][:1]


def distance(found: Tensors, golden: Tensors) -> float:
    """The largest difference, relative to what is larger than 1; infinite where shapes differ or one is not a number.

    Of whole numbers it is how many differ.
    """
    worst = 0.0
    for name, value in golden.items():
        if name not in found or found[name].shape != value.shape:
            return float("inf")
        if not value.is_floating_point():
            worst = max(worst, float((found[name] != value).sum()))
        elif value.numel():
            apart = (found[name].double() - value.double()).abs() / value.double().abs().clamp(min=1)
            worst = max(worst, float(apart.nan_to_num(float("inf"), float("inf")).max()))
    return worst


def to_onnx(program: Program, path: str) -> str:
    """Write a program as ONNX and try it on the golden rows; what there is to say about it.

    Raises ImportError where a package is missing, and `Unexportable` where it does not convert or gives other outputs.
    """
    import onnxscript  # noqa: F401

    names, outputs = list(program.inputs), list(program.outputs)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names every package that it could use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            converted = torch.onnx.export(program.exported, input_names=names, output_names=outputs, verbose=False)
            assert converted is not None
            converted.save(path)
        except Exception as error:
            lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
            raise Unexportable(lines[0][:200] if lines else type(error).__name__) from error
    try:
        import onnxruntime
    except ImportError:
        return "converted; not tried, as onnxruntime is not installed"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    off = 0.0
    for rows in (len(next(iter(program.inputs.values()))), 1):
        taken = {one.name for one in session.get_inputs()}
        fed = {name: value[:rows].numpy() for name, value in program.inputs.items() if name in taken}
        found = dict(zip(outputs, map(torch.from_numpy, session.run(outputs, fed)), strict=True))
        off = max(off, distance(found, {name: value[:rows] for name, value in program.outputs.items()}))
    if not off <= 10 * TOLERANCE:
        raise Unexportable(f"onnxruntime gives outputs that are {off:.2g} from the model's")
    return f"converted; onnxruntime gives the golden outputs to {off:.1g}"
