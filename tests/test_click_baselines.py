"""Hand-made click models: values against plain loops, prices against outside counts, one step, and their settings."""

import json
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components import prepare
from components.run import Run
from nascore import plugins
from nascore.click_net import ClickNet, ClickTraining
from nascore.methods import from_json
from nascore.methods.dnn import Dnn
from nascore.rows import Data
from nascore.schema import Batch, Column, Schema
from nascore.space import Space
from nascore.sparse import Tables
from nascore.training import Fit

Vector = NDArray[np.float64]
COUNTED = ("linear", "addmm", "mm", "matmul", "bmm", "einsum", "conv")
CATEGORIES = (Column("a", size=4), Column("b", size=3), Column("c", size=6))
NUMBERS = (Column("i", kind="number"), Column("j", kind="number"))
SCHEMAS = {
    "numbers": Schema("", "", 0, 0, (*NUMBERS, *CATEGORIES), "temporal"),
    "bare": Schema("", "", 0, 0, CATEGORIES, "temporal"),
    "single": Schema("", "", 0, 0, (NUMBERS[0], CATEGORIES[0]), "temporal"),
}
SPECS = {
    "lr": "logistic_regression",
    "fm": "fm:embedding=3",
    "wide_deep": "wide_deep:embedding=3,width=5,depth=2",
    "deepfm": "deepfm:embedding=3,width=5,depth=2",
    "dcnv2": "dcnv2:embedding=3,width=5,depth=2,layers=2",
    "dcnv2-stacked": "dcnv2:embedding=3,width=5,depth=1,layers=3,structure=stacked",
    "xdeepfm": "xdeepfm:embedding=3,width=5,depth=1,layers=3,maps=5",
    "xdeepfm-whole": "xdeepfm:embedding=3,width=5,depth=0,layers=2,maps=3,split=false",
    "autoint": "autoint:embedding=3,width=5,depth=1,layers=2,heads=2,attention=4",
    "dlrm": "dlrm:embedding=3,width=16",
}
MODELS: dict[str, Dnn] = {name: plugins.build("methods", spec) for name, spec in SPECS.items()}
every_model = pytest.mark.parametrize("model", MODELS)
every_schema = pytest.mark.parametrize("known", SCHEMAS)


def net_of(method: Dnn, schema: Schema) -> Any:
    """The net in double precision, all weights drawn as if it had been trained for long."""
    torch.manual_seed(0)
    net = method.net(schema, method.space(schema)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.5)
    return net


def batch_of(schema: Schema, rows: int = 6) -> Batch:
    """Random ids and numbers, some below 0 and some missing."""
    generator = torch.Generator().manual_seed(1)
    columns = {}
    for column in schema.columns:
        if column.kind == "number":
            columns[column.name] = 3 * torch.randn(rows, generator=generator, dtype=torch.float64)
            columns[column.name][-1] = torch.nan
        else:
            columns[column.name] = torch.randint(0, column.size, (rows,), generator=generator, dtype=torch.int32)
    return Batch(columns, {}, torch.arange(rows))


def output(net: ClickNet, batch: Batch) -> Tensor:
    x = {name: value.double() for name, value in net.embed(batch).items()}
    logit_B: Tensor = net(x, {})
    return logit_B


class Row:
    """One row of a batch, with the weights of a net, as plain NumPy."""

    def __init__(self, w: dict[str, Vector], schema: Schema, batch: Batch, row: int) -> None:
        self.w = w
        numbers = [float(batch[c.name][row]) for c in schema.columns if c.kind == "number"]
        self.numbers = [0.0 if np.isnan(value) or value < 0 else np.log(1 + value) for value in numbers]
        self.dense = np.array(self.numbers or [0.0])
        self.places, start = [], 0
        for column in schema.columns:
            if column.kind == "category":
                self.places.append(start + int(batch[column.name][row]))
                start += column.size

    def vectors(self) -> list[Vector]:
        return [self.w["tables.weight"][place] for place in self.places]

    def fields(self) -> list[Vector]:
        return [value * self.w["fields.vectors"][n] for n, value in enumerate(self.numbers)] + self.vectors()

    def flat(self) -> Vector:
        return np.concatenate(self.fields())

    def joined(self) -> Vector:
        return np.concatenate([self.dense, *self.vectors()])

    def linear(self, under: str = "wide.") -> float:
        ids = sum(float(self.w[f"{under}tables.weight"][place, 0]) for place in self.places)
        return self.output(self.dense, f"{under}weights") + ids

    def layers(self, under: str, x: Vector, last: bool = False) -> Vector:
        """Linear maps with ReLU between them; `last`, also after the last."""
        places = sorted({int(name.split(".")[1]) for name in self.w if name.startswith(f"{under}.")})
        for place in places:
            x = self.w[f"{under}.{place}.weight"] @ x + self.w[f"{under}.{place}.bias"]
            if last or place != places[-1]:
                x = np.array([max(0.0, value) for value in x])
        return x

    def deep(self, x: Vector) -> float:
        return float(self.layers("deep", x)[0])

    def output(self, x: Vector, name: str = "output") -> float:
        return float(self.w[f"{name}.weight"][0] @ x + self.w[f"{name}.bias"][0])


def pairs(vectors: list[Vector]) -> list[float]:
    """The dot products of each vector with all before it."""
    return [float(sum(vectors[i] * vectors[j])) for i in range(len(vectors)) for j in range(i)]


def crossed(row: Row, layers: int) -> Vector:
    first = x = row.joined()
    for layer in range(layers):
        weight, bias = row.w[f"cross.{layer}.weight"], row.w[f"cross.{layer}.bias"]
        x = np.array([first[n] * (sum(weight[n] * x) + bias[n]) + x[n] for n in range(len(x))])
    return x


def interacted(row: Row, layers: int, split: bool) -> Vector:
    """Eq. 6 and 7 of xDeepFM."""
    field, sums = row.fields(), list[float]()
    maps = field
    for layer in range(layers):
        made = []
        for weights in row.w[f"interactions.layers.{layer}.weight"]:
            products = [one * other for one in maps for other in field]
            made.append(sum(weight * product for weight, product in zip(weights, products, strict=True)))
        half = len(made) // 2
        maps = made[:half] if split else made
        sums += [sum(map_D) for map_D in (made[half:] if split and layer < layers - 1 else made)]
    return np.array(sums)


def attended(row: Row, layers: int, heads: int, width: int) -> Vector:
    """Eq. 5 to 8 of AutoInt."""
    x = row.fields()
    for layer in range(layers):
        maps = row.w[f"layers.{layer}.project.weight"].reshape(4, heads, width, -1)
        joined = []
        for one in x:
            parts = []
            for head in range(heads):
                query, key, value, residual = maps[:, head]
                scores = np.array([np.exp((query @ one) @ (key @ other)) for other in x])
                mixed = sum(score / scores.sum() * (value @ other) for score, other in zip(scores, x, strict=True))
                parts.append(np.maximum(0, mixed + residual @ one))
            joined.append(np.concatenate(parts))
        x = joined
    return np.concatenate(x)


def dotted(row: Row) -> float:
    bottom = row.layers("bottom", row.dense, last=True) if row.numbers else row.w["constant"]
    joined = np.concatenate([bottom, pairs([bottom, *row.vectors()])])
    return float(row.layers("top", joined)[0])


GOLDEN: dict[str, Callable[[Row], float]] = {
    "lr": lambda row: row.linear(""),
    "fm": lambda row: row.linear() + sum(pairs(row.fields())),
    "wide_deep": lambda row: row.linear() + row.deep(row.joined()),
    "deepfm": lambda row: row.linear() + sum(pairs(row.fields())) + row.deep(row.flat()),
    "dcnv2": lambda row: row.output(crossed(row, 2), "output.0") + row.deep(row.joined()),
    "dcnv2-stacked": lambda row: row.deep(crossed(row, 3)),
    "xdeepfm": lambda row: row.linear() + row.output(interacted(row, 3, True)) + row.deep(row.flat()),
    "xdeepfm-whole": lambda row: row.linear() + row.output(interacted(row, 2, False)) + row.deep(row.flat()),
    "autoint": lambda row: row.output(attended(row, 2, 2, 4)) + row.deep(row.flat()),
    "dlrm": dotted,
}


@every_schema
@every_model
def test_logits_equal_a_loop(model: str, known: str) -> None:
    net, batch = net_of(MODELS[model], SCHEMAS[known]), batch_of(SCHEMAS[known])
    w = {name: value.detach().numpy() for name, value in net.state_dict().items()}
    golden = [GOLDEN[model](Row(w, SCHEMAS[known], batch, row)) for row in range(len(batch))]
    assert np.std(golden) > 1e-3
    for training in (True, False):
        found = output(net.train(training), batch)
        torch.testing.assert_close(found, torch.tensor(golden, dtype=torch.float64), rtol=1e-6, atol=1e-6)


class Flat(nn.Module):
    def __init__(self, net: ClickNet, batch: Batch) -> None:
        super().__init__()
        self.net, self.batch = net, batch

    def forward(self, *columns: Tensor) -> Tensor:
        return output(self.net, Batch(dict(zip(self.batch.columns, columns, strict=True)), {}, self.batch.rows))


def counted_macs(net: ClickNet, batch: Batch) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts and traces, both deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(Flat(net, batch), tuple(batch.columns.values()))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return int(sum(analysis.by_operator()[name] for name in COUNTED))


@every_schema
@every_model
@pytest.mark.parametrize("size", ["tiny", "default"])
def test_costs_are_counted_weights_and_macs(model: str, known: str, size: str) -> None:
    method, schema = MODELS[model], SCHEMAS[known]
    method = method if size == "tiny" else type(method)()
    net, price = net_of(method, schema), method.price(schema)
    tables = sum(module.weight.numel() for module in net.modules() if isinstance(module, Tables))
    cost = price({}, "")
    assert cost == net.cost({})
    assert (cost.params, cost.table_params) == (sum(p.numel() for p in net.parameters()) - tables, tables)
    assert cost.macs == counted_macs(net, batch_of(schema, 1)) > 0
    assert all(part == price({}, name) for name, part in net.costs({}).items())


def test_costs_are_those_of_the_papers_sizes() -> None:
    """Criteo's 13 numbers and 26 categories."""
    columns = (*(Column(f"I{n}", kind="number") for n in range(13)), *(Column(f"C{n}", size=100) for n in range(26)))
    schema = Schema("", "", 0, 0, columns, "temporal")
    inputs, fields_ = 13 + 26 * 16, 39
    deep = {n: 400 * n + 2 * 400 * 400 + 400 for n in (inputs, fields_ * 16)}
    attention = (16 + 64 + 64) * 4 * 64 * 39 + 3 * 2 * 2 * 32 * 39**2 + 39 * 64
    bottom, top = 13 * 512 + 512 * 256 + 256 * 64 + 64 * 16, (16 + 27 * 26 // 2) * 512 + 512 * 256 + 256
    macs = {
        "logistic_regression": 13,
        "fm": 13,
        "wide_deep": 13 + deep[inputs],
        "deepfm": 13 + deep[fields_ * 16],
        "dcnv2": 3 * inputs**2 + inputs + deep[inputs],
        "xdeepfm": 13 + 16 * 39 * 100 * (39 + 50 + 50) + (50 + 50 + 100) + deep[fields_ * 16],
        "autoint": attention + deep[fields_ * 16],
        "dlrm": bottom + 27 * 27 * 16 + top,
    }
    for name, expected in macs.items():
        assert plugins.build("methods", name).price(schema)({}, "").macs == expected, name


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The training split of 1,500 planted clicks, with numbers."""
    root, known = str(tmp_path_factory.mktemp("clicks") / "run"), (MODELS["lr"],)
    run = Run(root=root, dataset="planted_clicks:rows=1500", raw="", methods=known, protocol="stratified")
    prepare.main(run)
    return run.rows("train")


def without_numbers(schema: Schema) -> Schema:
    return replace(schema, columns=tuple(column for column in schema.columns if column.kind == "category"))


def fit_of(method: Dnn, schema: Schema, data: Data) -> Fit:
    supernet = method.supernet(schema, method.space(schema), seed=0)
    return Fit(supernet, method.task(schema), data, method.retrain, seed=0)


@pytest.mark.parametrize("numbers", [True, False])
@every_model
def test_a_step_reaches_every_weight_and_every_touched_row(model: str, numbers: bool, clicks: Data) -> None:
    schema = clicks.schema if numbers else without_numbers(clicks.schema)
    wide = {"width": 64} if "width" in MODELS[model].to_json() else {}  # there is always a ReLU that is on
    method = replace(MODELS[model], training=ClickTraining(batch=64), **wide)  # type: ignore[arg-type]
    fit = fit_of(method, schema, clicks)
    net: Any = fit.supernet.net
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    fit.batches = iter([batch := next(clicks.batches(64, seed=7))])
    assert 0 < fit.advance(1) < 50

    touched = torch.zeros(len(net.tables.weight), dtype=torch.bool)
    touched[(net.ids(batch) + net.tables.first).flatten()] = True
    assert 0 < touched.sum() < len(touched)
    found = {f"{name}.weight": total for (_, name), total in fit.rows.moments.items()}
    assert len(found) == 1 + (model in ("fm", "wide_deep", "deepfm", "xdeepfm", "xdeepfm-whole"))
    for name, value in net.named_parameters():
        if name in found:
            assert torch.equal(found[name].any(1), touched), name
            assert torch.equal((value != before[name]).any(1), touched), name
        elif not numbers and name in ("weights.weight", "wide.weights.weight"):
            assert not value.grad.any(), "there is but a constant 0"
        else:
            assert value.grad.any() and value.grad.isfinite().all(), name


@pytest.mark.parametrize("numbers", [True, False])
@every_model
def test_a_training_learns_more_than_the_click_rate(model: str, numbers: bool, clicks: Data) -> None:
    schema = clicks.schema if numbers else without_numbers(clicks.schema)
    method = replace(MODELS[model], training=ClickTraining(batch=100, epochs=8, learning_rate=0.2))
    fit = fit_of(method, schema, clicks)
    rate = float(clicks.batch(torch.arange(clicks.rows)).label.double().mean())  # type: ignore[union-attr]
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    while fit.step < fit.steps:
        loss = fit.advance(12)
    assert loss < entropy - 0.03


def test_a_training_goes_on_where_it_was_saved(clicks: Data) -> None:
    method = replace(MODELS["deepfm"], training=ClickTraining(batch=100))
    whole, half, rest = (fit_of(method, clicks.schema, clicks) for _ in range(3))
    whole.advance(6)
    half.advance(3)
    rest.restore({name: value.clone() for name, value in half.state().items()})
    rest.advance(3)
    for name, value in whole.weights().items():
        assert torch.equal(rest.weights()[name], value), name


def test_weights_of_ids_start_at_0_and_pairs_near_it() -> None:
    lr, fm = (MODELS[name].net(SCHEMAS["numbers"], Space([])) for name in ("lr", "fm"))
    assert not lr.tables.weight.any() and not fm.wide.tables.weight.any()  # type: ignore[union-attr]
    for vectors in (fm.tables.weight, fm.fields.vectors):  # type: ignore[union-attr]
        assert 0 < vectors.abs().max() < 0.05  # type: ignore[operator, union-attr]


PLAIN = ("embedding", "width", "depth")
OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "logistic_regression": ("LR", ()),
    "fm": ("FM", ("embedding",)),
    "wide_deep": ("Wide&Deep", PLAIN),
    "deepfm": ("DeepFM", PLAIN),
    "dcnv2": ("DCNv2", (*PLAIN, "layers", "structure")),
    "xdeepfm": ("xDeepFM", (*PLAIN, "layers", "maps", "split")),
    "autoint": ("AutoInt+", (*PLAIN, "layers", "heads", "attention")),
    "dlrm": ("DLRM", ("embedding", "width")),
}
every_name = pytest.mark.parametrize("name", OWN)


@every_name
def test_a_method_has_no_field_without_effect(name: str) -> None:
    method: Any = plugins.build("methods", name)
    label, own = OWN[name]
    assert method.label == label
    assert {field.name for field in fields(method)} == {*own, "training"} == set(method.to_json()) - {"name"}
    assert from_json(json.loads(json.dumps(method.to_json()))) == method
    changes = {"split": "false", "structure": "stacked"}
    for field in own:
        other = method.tuned({field: changes.get(field, str(2 * getattr(method, field)))})
        assert other.price(SCHEMAS["numbers"])({}, "") != method.price(SCHEMAS["numbers"])({}, ""), field
        assert from_json(json.loads(json.dumps(other.to_json()))) == other != method


@every_name
def test_what_is_tuned_is_a_setting(name: str) -> None:
    method: Any = plugins.build("methods", name)
    decisions = method.tunables().decisions
    plain = {"training.learning_rate", "training.epsilon", "training.weight_decay"}
    assert set(decisions) == plain | (set() if name in ("logistic_regression", "fm") else {"width"})
    assert method.tuned({setting: decision.options[0] for setting, decision in decisions.items()}) == method
    for setting, decision in decisions.items():
        told = [method.tuned({setting: option}) for option in decision.options]
        assert len(set(map(repr, told))) == len(told)
    assert method.tuned({"training.learning_rate": "0.03"}).retrain.learning_rate == 0.03
    by_adam = replace(method, training=ClickTraining(optimizer="adam", learning_rate=1e-3, weight_decay=1e-6))
    assert set(by_adam.tunables().decisions) == set(decisions) - {"training.epsilon"}


def test_what_cannot_be_is_refused() -> None:
    for spec, why in {
        "fm:embedding=0": "FM: embedding is at least 1, not 0",
        "fm:width=3": "fm has no setting 'width'; it has: embedding",
        "logistic_regression:embedding=3": "logistic_regression has no setting 'embedding'",
        "dlrm:depth=3": "dlrm has no setting 'depth'",
        "dlrm:width=7": "DLRM: width is at least 8, not 7",
        "dcnv2:layers=0": "DCNv2: layers is at least 1",
        "dcnv2:structure=serial": "'serial' is none of parallel, stacked",
        "xdeepfm:maps=1": "XDeepFM: maps is at least 2",
        "xdeepfm:maps=0,split=false": "XDeepFM: maps is at least 1",
        "xdeepfm:layers=0": "XDeepFM: layers is at least 1",
        "autoint:heads=0": "AutoInt: heads is at least 1",
        "autoint:attention=0": "AutoInt: attention is at least 1",
    }.items():
        with pytest.raises(ValueError, match=why):
            plugins.build("methods", spec)
