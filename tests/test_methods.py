"""The square, and what else a method inherits by being in the gallery: a training step, prices, names."""

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.models import Opened
from components.programs import TOLERANCE, programs
from components.run import Run
from nascore import plugins
from nascore.cost import Budget, Cost, Price
from nascore.methods import Method, from_json
from nascore.net import Net
from nascore.ops import Op
from nascore.ops.batch_norm import BatchNorm
from nascore.rows import Data
from nascore.schema import Batch
from nascore.space import Decision, Genotype, Infeasible, Space, parse
from nascore.sparse import Tables
from nascore.training import Fit

TINY: Mapping[str, Mapping[str, Any]] = {
    "autotower": {"item_blocks": 3, "embedding": 4, "width": 8, "output": 6, "shared_stem": False, "towers": 2},
    "googlednn": {"size": "L", "embedding": 4, "output": 8},
    "senet": {"size": "L", "embedding": 4, "output": 8, "gate": "relu"},
    "bst": {"size": "L", "embedding": 4, "output": 8, "heads": 3, "feed_forward": 16, "pool": "pool:mean"},
    "mind": {"size": "L", "embedding": 4, "interests": 5, "iterations": 1},
    "itemknn": {"neighbours": 7, "shrinkage": 0.0},
    "ease": {"regularization": 1.0},
    "dnn": {"embedding": 4, "width": 8, "depth": 1},
    "logistic_regression": {"training": {"batch": 64}},
    "fm": {"embedding": 3},
    "wide_deep": {"embedding": 4, "width": 8, "depth": 1},
    "deepfm": {"embedding": 4, "width": 8, "depth": 0},
    "dcnv2": {"embedding": 3, "width": 8, "depth": 1, "layers": 1, "structure": "stacked"},
    "xdeepfm": {"embedding": 3, "width": 8, "depth": 1, "layers": 2, "maps": 5, "split": False},
    "autoint": {"embedding": 3, "width": 8, "depth": 1, "layers": 1, "heads": 3, "attention": 2},
    "dlrm": {"embedding": 3, "width": 8},
    "nasrec": {
        "blocks": 3,
        "embedding": 4,
        "dense_sizes": (4, 6, 9),
        "sparse_sizes": (2, 3),
        "tokens": 2,
        "operators": "any",
        "paths": "any_any",
        "balanced": False,
        "square_gating": True,
        "fm": True,
        "cap": 5,
    },
    "ihas": {
        "embedding": 3,
        "behind": "deepfm:width=6,depth=1",
        "pretrained": 5,
        "learner": {"every": 2},
        "training": {"batch": 64, "optimizer": "adagrad"},
    },
    "autofield": {"embedding": 3, "layers": (4,), "share": 1.0},
    "adafs": {"embedding": 3, "layers": (4,), "kind": "hard", "hidden": 5, "learner": {"every": 2}},
    "pep": {"embedding": 3, "layers": (4,), "share": 0.3, "training": {"optimizer": "adam", "learning_rate": 0.01}},
    "optfs": {"embedding": 3, "layers": (4,), "steps": 8, "rewind": 0.25, "weight": 0.1},
    "optembed": {"embedding": 3, "layers": (4,), "weight": 0.1},
    "sasrec": {"hidden": 12, "inner": 7, "heads": 3, "layers": 3, "training": {"length": 5, "targets": "all"}},
    "sasrecf": {"hidden": 8, "inner": 5, "heads": 2, "layers": 1, "attention": "linear", "training": {"length": 6}},
    "fdsa": {
        "hidden": 8,
        "inner": 5,
        "heads": 2,
        "attention": "linear",
        "mask": "padding",
        "keys": "column",
        "training": {"length": 6},
    },
    "gru4rec": {"hidden": 7, "embedding": 5, "layers": 2, "training": {"length": 6, "targets": "all"}},
    "dnsrec": {
        "hidden": 24,
        "inner": 16,
        "ratios": (0.0, 0.25, 0.5),
        "layers": 3,
        "heads": 2,
        "gates": 1,
        "gated_from": 2,
        "paths": "uniform",
        "mask": "causal",
        "training": {"length": 7, "targets": "all", "loss": "bpr"},
    },
}
SHORT = {"length": 9}
QUICK: Mapping[str, Mapping[str, Any]] = {
    "nasrec": {"warmup": 0.0, "blocks": 3},
    "dnsrec": {"training": SHORT, "paths": "uniform"},
    **{name: {"training": SHORT} for name in ("sasrec", "sasrecf", "fdsa", "gru4rec", "popular_next")},
}
"""What spares the largest settings their most costly steps; the tiny ones take them."""
COUNTED = ("linear", "addmm", "mm", "matmul", "bmm", "einsum", "conv")


class Case:
    """A method in one setting, over the shop."""

    def __init__(self, method: Method, data: Data) -> None:
        self.method, self.data, self.schema = method, data, data.schema
        self.space: Space = method.space(self.schema)

    @cached_property
    def price(self) -> Price:
        return self.method.price(self.schema)

    def genotypes(self, count: int) -> list[Genotype]:
        rng = Random(1)
        return [self.space.sample(rng) for _ in range(count if self.space.size() > 1 else 1)]

    def wide(self) -> Net:
        """The net over the whole space; weights and moments as if it had been trained for long."""
        torch.manual_seed(3)
        net = self.method.net(self.schema, self.space)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(0, 0.3)
            for norm in net.modules():
                if isinstance(norm, BatchNorm):
                    norm.running_mean.normal_(0, 0.3), norm.running_var.uniform_(0.5, 2), norm.weight.uniform_(0.5, 2)
        return net

    def narrow(self, genotype: Genotype) -> Net:
        return self.method.net(self.schema, self.space.narrow(genotype))

    def batch(self, rows: int = 48) -> Batch:
        return next(self.data.batches(rows, seed=2))


def settings(name: str) -> list[str]:
    return ["default", *(["tiny"] if name in TINY else []), *plugins.load("methods", name).presets]


def built(name: str, setting: str) -> Method:
    room = plugins.load("methods", name)
    known = {"default": {}, "tiny": TINY.get(name, {}), **room.presets}[setting]
    quick = {} if setting == "tiny" else QUICK.get(name, {})
    return from_json({"name": name, **known, **quick})


@pytest.fixture(
    scope="module",
    params=[(name, setting) for name in plugins.names("methods") for setting in settings(name)],
    ids="-".join,
)
def case(request: pytest.FixtureRequest, prepared: Callable[..., Run], clicks: Run) -> Case:
    method = built(*request.param)
    return Case(method, (clicks if method.apart else prepared()).rows("train", shown=method.shown))


def tensors(output: Any) -> Sequence[Tensor]:
    return list(output.values()) if isinstance(output, Mapping) else [output]


def assert_close(one: Any, other: Any) -> None:
    for a, b in zip(tensors(one), tensors(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_net_under_a_mix_equals_the_narrow_net_that_inherits(case: Case) -> None:
    wide, batch = case.wide().eval(), case.batch()
    outputs = []
    for genotype in case.genotypes(20):
        narrow = case.narrow(genotype).inherit(wide).eval()
        outputs.append(narrow.only()(batch))
        assert_close(outputs[-1], wide.under(case.space.mix(genotype))(batch))
    if len(outputs) > 1:
        pairs = zip(*(tensors(output) for output in outputs[:2]), strict=True)
        alike = [a.shape == b.shape and torch.allclose(a, b, atol=1e-3) for a, b in pairs]
        assert not all(alike), "genotypes must differ"


def test_it_does_so_in_training_too(case: Case) -> None:
    batch, wide = case.batch(), case.wide()
    for genotype in case.genotypes(20):
        narrow = case.narrow(genotype).inherit(wide)
        outputs = []
        for net, mix in ((wide, case.space.mix(genotype)), (narrow, narrow.space.mix(genotype))):
            torch.manual_seed(0)
            outputs.append(net.train().under(mix)(batch))
        assert_close(*outputs)
        known = wide.state_dict()
        for name, value in narrow.state_dict().items():
            if "running" in name:
                torch.testing.assert_close(value, known[name], rtol=0, atol=1e-5)


def test_prices_are_counted_weights(case: Case) -> None:
    price = case.price
    for genotype in case.genotypes(20):
        narrow, cost = case.narrow(genotype), price(genotype, "")
        weights = sum(parameter.numel() for parameter in narrow.parameters())
        assert cost.params + cost.table_params == weights > 0
        tables = sum(module.weight.numel() for module in narrow.modules() if isinstance(module, nn.Embedding | Tables))
        assert cost.table_params == tables or not tables
        assert narrow.cost(narrow.space.mix(genotype)) == cost, "the narrow net costs what the wide one says"


class Flat(nn.Module):
    """A net as fvcore wants it: tensors to tensors."""

    def __init__(self, net: Net, batch: Batch) -> None:
        super().__init__()
        self.net, self.batch = net, batch

    def forward(self, *columns: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.batch.columns, columns, strict=True))
        return tuple(tensors(self.net.only()(Batch(given, self.batch.keys, self.batch.rows))))


def counted_macs(net: Net, batch: Batch) -> int:
    """Multiply-adds of linear maps and matrix products as fvcore counts them, and those it cannot see."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts and traces, both deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(Flat(net.eval(), batch), tuple(batch.columns.values()))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        seen = int(sum(analysis.by_operator()[name] for name in COUNTED))
    ops = {name: module for name, module in net.named_modules() if isinstance(module, Op)}
    inner = {name for name in ops for other in ops if name.startswith(f"{other}.")}
    return seen + sum(op.core_macs() for name, op in ops.items() if name not in inner)


def test_prices_are_macs_counted_from_outside(case: Case) -> None:
    price, batch = case.price, case.batch(1)
    for genotype in case.genotypes(4):
        assert price(genotype, "").macs == counted_macs(case.narrow(genotype), batch)


def test_the_price_is_the_sum_of_both_sides(case: Case) -> None:
    price = case.price
    for genotype in case.genotypes(5):
        parts = case.narrow(genotype).costs(case.space.narrow(genotype).mix(genotype))
        sides = sorted({name.partition("/")[0] for name in parts})
        assert case.method.apart or set(sides) <= {"user", "item"}
        assert sum((price(genotype, side) for side in sides), Cost()) == price(genotype, "")


def test_the_anchor_is_in_every_step_of_the_supernet(prepared: Callable[..., Run]) -> None:
    schema = prepared().schema
    method = from_json({"name": "autotower", "towers": 3, "anchor": True, "growth": 0.5, "steps": 20})
    sampler = method.supernet(schema, method.space(schema), 0).sampler
    drawn = [json.dumps(sampler(None, path)) for path in range(60)]
    assert len(set(drawn[::3])) == 1 and drawn.count(drawn[0]) < 30
    free = from_json({"name": "autotower", "towers": 3, "growth": 0.5, "steps": 20})
    sampler = free.supernet(schema, free.space(schema), 0).sampler
    assert len({json.dumps(sampler(None, path)) for path in range(0, 60, 3)}) > 10


def test_a_training_step_changes_exactly_the_active_weights(case: Case) -> None:
    method, data = case.method, case.data
    plan = replace(method.train, batch=48, warmup=0.0)
    if not (plan.steps or plan.epochs):
        assert not any(parameter.requires_grad for parameter in case.wide().parameters()), "solved, not trained"
        return
    supernet = method.supernet(case.schema, case.space, seed=0)
    fit = Fit(supernet, method.task(case.schema), data, plan, 0, method.learning, method.learning and data)
    for step in range(4):
        before = {name: value.clone() for name, value in supernet.net.named_parameters()}
        active = set[str]()
        for path in range(supernet.paths):
            mix = supernet.sampler(None, step * supernet.paths + path)
            opened = list[Decision]()
            for name, decision in case.space.decisions.items():
                chosen = tuple(option for option, weight in zip(decision.options, mix[name], strict=True) if weight)
                opened.append(Decision(name, chosen, len(chosen), len(chosen)))
            net = method.net(case.schema, Space(opened))
            looked_up = {f"{n}.weight" for n, module in net.named_modules() if isinstance(module, Tables)}
            active |= {name for name, value in net.named_parameters() if value.requires_grad} - looked_up
        assert fit.advance(1) > 0 and fit.step == step + 1
        now = dict(supernet.net.named_parameters())
        modules = dict(supernet.net.named_modules())
        tables = {f"{n}.weight" for n, one in modules.items() if isinstance(one, Tables) and one.weight.requires_grad}
        with_gradient = {name for name, value in now.items() if value.grad is not None}
        changed = {name for name, value in now.items() if not torch.equal(value, before[name])}
        assert tables <= changed, "tables have no gradient of their size, but move"
        changed -= tables
        pushed = {name for name in with_gradient if now[name].grad.abs().max() > 1e-7}
        assert with_gradient == active
        assert pushed <= changed <= active
        assert len(pushed) > 0.7 * len(active), "all but what a batch norm or a softmax takes away"


def test_the_solved_are_solved(prepared: Callable[..., Run]) -> None:
    data = prepared().rows("train")
    net = Case(built("popularity", "default"), data).wide()
    net.solve(data)
    items = data.keys(torch.arange(data.rows))[1]
    assert net.events[:, 0].tolist() == [float((items == item).sum()) for item in range(data.schema.items)]
    output = net.only()(next(data.batches(5, seed=0)))
    assert torch.equal(output["user"], torch.ones(5, 1)) and output["item"].shape == (5, 1)


def test_the_same_seed_gives_the_same_weights(case: Case) -> None:
    one, same, other = (case.method.supernet(case.schema, case.space, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one) or not case.method.train.epochs


def test_a_method_survives_json(case: Case) -> None:
    told = json.loads(json.dumps(case.method.to_json()))
    assert from_json(told) == case.method
    assert told["name"] == case.method.name in plugins.names("methods")
    genotype = case.genotypes(1)[0]
    assert from_json(told).model_id(genotype, "d") == case.method.model_id(genotype, "d")


def test_settings_differ(case: Case) -> None:
    default = built(case.method.name, "default")
    ids = {one.model_id(Case(one, case.data).genotypes(1)[0], "d") for one in (default, case.method)}
    assert (len(ids) == 1) == (default == case.method)


def test_a_model_is_named_by_all_that_makes_it(case: Case) -> None:
    canonical = [case.method.canonical(genotype) for genotype in case.genotypes(20)]
    texts = {(json.dumps(genotype, sort_keys=True), digest) for genotype in canonical for digest in "de"}
    ids = {case.method.model_id(genotype, digest) for genotype in case.genotypes(20) for digest in "de"}
    assert len(ids) == len(texts)
    assert all(len(one) == 12 and set(one) <= set("0123456789abcdef") for one in ids)
    genotype = case.genotypes(1)[0]
    assert case.method.model_id(dict(reversed(genotype.items())), "d") == case.method.model_id(genotype, "d")


def test_budgets_are_read_by_name_or_as_text(case: Case) -> None:
    price = case.price
    for name in case.method.budgets:
        Budget(case.method.limits(name), price)
    assert case.method.limits("macs=3e5,user/params=10") == {"macs": 3e5, "user/params": 10}
    with pytest.raises(ValueError, match=f"'XXL'.*with a name in {case.method.name}: "):
        case.method.limits("XXL")


def test_tight_budgets_have_members(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """An impossible budget is told what it would have to be, and near that there is something to draw."""
    if case.space.size() == 1 and not case.price(only := next(case.space.members()), "").macs:
        assert case.space.within(Budget({"macs": 0.5}, case.price)).sample(Random(0)) == only
        return
    monkeypatch.setattr("nascore.space.RARE", 10)
    monkeypatch.setattr("nascore.space.DRAWS", 1_000)
    with pytest.raises(Infeasible, match="no member found in") as told:
        case.space.within(Budget({"macs": 0.5}, case.price)).sample(Random(0))
    known = re.search(r"nearest one was (.*): macs ([\d,]+) of 0$", str(told.value))
    assert known, told.value
    least = float(known[2].replace(",", ""))
    typical = sorted(float(case.price(genotype, "").macs) for genotype in case.genotypes(20))
    assert least <= typical[0]
    tight = case.space.within(Budget({"macs": 1.1 * least}, case.price))
    assert parse(known[1]) in tight and tight.sample(Random(1)) in tight


def test_plans_can_be_followed(case: Case) -> None:
    method = case.method
    assert method.retrain.batch > 0
    assert method.label and method.candidates >= 1
    assert (
        method.task(case.schema).headline
        in method.task(case.schema)
        .evaluate(case.wide().eval().under(case.space.mix(case.genotypes(1)[0])), case.data)
        .values
    )


@pytest.mark.long
def test_it_becomes_programs_that_give_the_same_for_any_number_of_rows(case: Case) -> None:
    genotype, task = case.genotypes(1)[0], case.method.task(case.schema).eval()
    supernet = case.method.supernet(case.schema, case.space.narrow(genotype), 0).eval()
    supernet.net.load_state_dict(case.narrow(genotype).inherit(case.wide()).state_dict())
    with torch.no_grad():
        made = programs(Opened(supernet.steadily, task, supernet.cost(), {"model": supernet}), case.schema, case.data)
    assert made and all(one.off <= TOLERANCE for one in made)


def test_unknown_fields_are_an_error() -> None:
    with pytest.raises(KeyError, match="blockz"):
        from_json({"name": "autotower", "blockz": 3})
    with pytest.raises(ValueError, match="no 'nothing' in methods; there are: "):
        from_json({"name": "nothing"})
