"""DNS-Rec's figures and equations: what Table 7 counts, eq. 5-15 against loops, and that masked is what is cut out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from components.run import Run
from nascore import fitness
from nascore.dnsrec_net import DEPTH, WIDTH, DNSRecNet
from nascore.methods import from_json
from nascore.methods.dnsrec import DNSRec
from nascore.ops import build
from nascore.ops.gated_layer import GatedLayer
from nascore.samplers import Logits
from nascore.samplers.gumbel import Gumbel
from nascore.schema import Batch, Column, Schema
from nascore.space import Genotype
from nascore.training import Learning

Prepared = Callable[..., Run]
SCHEMA = Schema("u", "i", 50, 60, (Column("i", "item", size=60),), "leave_one_out", history=("i",))
SMALL = DNSRec(
    hidden=16, inner=12, ratios=(0.0, 0.25, 0.5), layers=3, heads=2, training=replace(DNSRec().training, length=7)
)


def chosen(width: str, depth: int) -> Genotype:
    return {WIDTH: (width,), DEPTH: (str(depth),)}


def supernet(method: DNSRec, schema: Schema = SCHEMA) -> DNSRecNet:
    """In double, with weights as after a long training, to be judged."""
    torch.manual_seed(1)
    net = method.net(schema, method.space(schema)).double().eval()
    assert isinstance(net, DNSRecNet)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.4)
    return net


def rows(method: DNSRec, count: int = 6) -> Batch:
    """Pasts of every length that may be, an empty one too."""
    generator, length = torch.Generator().manual_seed(2), method.training.length
    history = torch.randint(1, 60, (count, length), generator=generator, dtype=torch.int32)
    for row, empty in enumerate((0, length - 1, 2, length, 1, 4)[:count]):
        history[row, :empty] = 0
    keys = {name: torch.randint(1, 50, (count,), generator=generator, dtype=torch.int32) for name in ("user", "item")}
    return Batch({"history": history}, keys, torch.arange(count))


# What is counted


@pytest.mark.parametrize(
    "gates, depth, millions", [(0, 3, 19.87), (1, 3, 27.24), (2, 2, 26.37), (3, 2, 34.56), (4, 3, 64.10)]
)
def test_flops_are_those_of_table_7(gates: int, depth: int, millions: float) -> None:
    found = DNSRec(gates=gates).paper_meter(chosen("64x128", depth))
    assert round(found / 1e6, 2) == millions


@pytest.mark.parametrize("attention, heads", [("linear", 1), ("linear", 4), ("softmax", 4)])
@pytest.mark.parametrize("gates", [0, 1, 2, 3])
def test_a_candidates_layer_costs_what_its_formula_says(gates: int, attention: Any, heads: int) -> None:
    method = DNSRec(gates=gates, attention=attention, heads=heads, layers=2)
    with torch.device("meta"):
        net = method.net(SCHEMA, method.space(SCHEMA))
    assert isinstance(net, DNSRecNet)
    length = 200
    for name, (d, inner) in method.widths.items():
        assert name == f"{d}x{inner}"
        maps = 4 * length * d**2 + 2 * length * d * inner
        gated = length * (gates * d**2 + d * inner + (gates - 1) * inner**2) if gates else 0
        mixing = 2 * length * d * (d // heads) if attention == "linear" else 2 * length**2 * d
        assert net.layer_cost(name).macs == maps + gated + mixing
        one = 2 * length * d**2 + 2 * d**2 + 2 * d * inner + gated // length
        one += (length + 1) * d * (d // heads) if attention == "linear" else 2 * length * d
        shortcut, whole = method.price(SCHEMA)(chosen(name, 1), ""), method.price(SCHEMA)(chosen(name, 2), "")
        assert shortcut.macs == one < net.layer_cost(name).macs, "the last layer is asked for the last event alone"
        assert whole.macs - shortcut.macs == net.layer_cost(name).macs
        assert shortcut.table_params == 60 * d


def test_settings_are_those_of_table_2() -> None:
    assert list(DNSRec().widths) == ["128x256", "96x192", "64x128"]
    for preset, length, widths in (
        ("", 200, ["128x256", "96x192", "64x128"]),
        ("gowalla", 100, ["64x256", "32x128", "16x64"]),
        ("douban", 100, ["128x256", "64x128", "32x64"]),
    ):
        method = from_json({"name": "dnsrec", **DNSRec.presets.get(preset, {})})
        assert isinstance(method, DNSRec) and list(method.widths) == widths and method.training.length == length
        assert (method.layers, method.heads, method.tradeoff, method.dropout) == (4, 4, 0.1, 0.2)
        assert (method.learner.learning_rate, method.train.batch, method.retrain.batch) == (1e-3, 1024, 2048)
        assert (method.gates, method.paths, method.attention, method.constraint) == (2, "gumbel", "linear", "paper")
        assert (method.fitness.kind, method.retrain.patience, method.inherits) == ("ndcg@10", 10, True)
        sampler = method.sampler(method.space(SCHEMA), 0)
        assert isinstance(sampler, Gumbel) and method.space(SCHEMA).size() == 12
        assert [sampler.tau(step) for step in (0, 959, 10_000, 19_800, 50_000)] == pytest.approx(
            [1, 0.95205, 0.5, 0.01, 0.01]
        )


# Masked is what is cut out


class Masked:
    """A candidate at full width: whatever it does not keep holds numbers of no meaning, which masks set to 0."""

    def __init__(self, method: DNSRec, net: DNSRecNet, name: str) -> None:
        self.method, self.net, self.name = method, net, name
        self.heads, (hidden, inner) = method.heads, method.widths[name]
        head, self.own = method.hidden // method.heads, hidden // method.heads
        self.hidden = torch.tensor([place % head < self.own for place in range(method.hidden)])
        self.inner = torch.arange(method.inner) < inner

    def spread(self, own: Tensor, *masks: Tensor) -> Tensor:
        """A parameter among numbers of no meaning."""
        whole = torch.randn(*map(len, masks), dtype=own.dtype)
        whole[torch.meshgrid(*(mask.nonzero().flatten() for mask in masks), indexing="ij")] = own
        return whole

    def map(self, linear: nn.Linear, x: Tensor, out: Tensor, taken: Tensor, part: int = 0) -> Tensor:
        size = int(out.sum())
        weight, bias = (one[part * size : (part + 1) * size] for one in (linear.weight, linear.bias))
        return (x @ self.spread(weight, out, taken).T + self.spread(bias, out)) * out

    def norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        count = self.hidden.sum()
        mean = (x * self.hidden).sum(-1, keepdim=True) / count
        away = (x - mean) * self.hidden
        normed = away / ((away**2).sum(-1, keepdim=True) / count + 1e-5).sqrt()
        return (normed * self.spread(norm.weight, self.hidden) + self.spread(norm.bias, self.hidden)) * self.hidden

    def attended(self, attention: Any, x: Tensor, valid: Tensor) -> Tensor:
        maps = (self.map(attention.query_key_value, x, self.hidden, self.hidden, part) for part in range(3))
        q, k, v = (one.unflatten(2, (self.heads, -1)).transpose(1, 2) for one in maps)
        causal = torch.ones(x.shape[1], x.shape[1]).tril().bool()
        if self.method.attention == "softmax":
            score = (q @ k.transpose(2, 3) / math.sqrt(self.own)).masked_fill(~causal, -torch.inf).softmax(3)
        else:
            q, k = functional.elu(q), functional.elu(k)
            k = k if self.method.mask == "none" else k * valid[:, None, :, None]
            column = self.method.keys == "column"
            q, k = functional.normalize(q, dim=3), functional.normalize(k, dim=2 if column else 3)
            score = q @ k.transpose(2, 3) / (self.own if column else math.sqrt(self.own))
            score = score * causal if self.method.mask == "causal" else score
        return self.map(attention.output, (score @ v).transpose(1, 2).flatten(2), self.hidden, self.hidden)

    def gate(self, gate: nn.Sequential, x: Tensor, out: Tensor) -> Tensor:
        maps = [one for one in gate if isinstance(one, nn.Linear)]
        x = self.map(maps[0], x, out, self.hidden)
        for one in maps[1:]:
            x = self.map(one, x.relu(), out, out)
        return 2 * x.sigmoid()

    def __call__(self, batch: Batch, depth: int) -> tuple[Tensor, Tensor]:
        """Users (B, whole width) and items (items, whole width)."""
        length = (batch["history"] != 0).sum(1)
        event = torch.stack([row.roll(int(count)) for row, count in zip(batch["history"], length, strict=True)])
        events = self.net.events
        weight, bias = events.norm.weight, events.norm.bias
        kept = nn.LayerNorm(int(self.hidden.sum())).double()
        kept.load_state_dict({"weight": weight[self.hidden], "bias": bias[self.hidden]})
        first = x = self.norm(kept, (events.items(event) + events.positions) * self.hidden)
        for number in range(depth):
            block: Any = self.net.layers[number][self.name]  # type: ignore[index]
            gated = number + 1 >= self.method.gated_from and self.method.gates > 0
            layer = block.layer if gated else block
            x = self.norm(layer.first_norm, x + self.attended(layer.attention, x, event != 0))
            one = x * self.gate(block.hidden_gate, first, self.hidden) if gated else x
            one = functional.gelu(self.map(layer.widen, one, self.inner, self.hidden))
            one = one * self.gate(block.inner_gate, first, self.inner) if gated else one
            x = self.norm(layer.second_norm, x + self.map(layer.narrow, one, self.hidden, self.inner))
        return x[torch.arange(len(batch)), (length - 1).clamp(min=0)], events.items.weight * self.hidden


KINDS = (
    {"attention": "softmax"},
    {"attention": "linear", "gated_from": 2},
    {"attention": "linear", "mask": "padding", "keys": "column", "gates": 1},
    {"attention": "linear", "mask": "causal", "gates": 0},
)


@pytest.mark.parametrize("known", KINDS, ids=lambda known: "-".join(map(str, known.values())))
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_masked_candidate_is_what_is_cut_out(heads: int, known: Mapping[str, Any]) -> None:
    method = replace(SMALL, heads=heads, **known)
    net, batch = supernet(method), rows(method)
    for name in method.widths:
        masked = Masked(method, net, name)
        for depth in (1, 2, 3):
            mix = net.space.mix(chosen(name, depth))
            with torch.no_grad():
                output, (user, item) = net.under(mix)(batch), masked(batch, depth)
                small = method.net(SCHEMA, net.space.narrow(chosen(name, depth))).double().eval().inherit(net)
                cut = small.only()(batch)
            assert not user[:, ~masked.hidden].any()
            for found in (output, cut):
                torch.testing.assert_close(found["user"], user[:, masked.hidden], rtol=1e-5, atol=1e-5)
                assert torch.equal(found["item"], item[:, masked.hidden])


# Equations


@pytest.mark.parametrize("gates", [1, 2, 3])
def test_a_gated_layer_equals_equations_5_to_8(gates: int) -> None:
    torch.manual_seed(3)
    layer = build(f"gated_layer:inner=3,heads=2,gates={gates}", T=3, D=4).double().eval()
    assert isinstance(layer, GatedLayer)
    x, first, valid = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double(), torch.ones(2, 3, dtype=torch.bool)
    found, attended = layer(x, first, valid), layer.layer.attended(x, valid)

    def mapped(linear: Any, vector: list[float]) -> list[float]:
        pairs = zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
        return [sum(w * v for w, v in zip(row, vector, strict=True)) + bias for row, bias in pairs]

    def gate(maps: Any, vector: list[float]) -> list[float]:
        for place in range(gates):  # eq. 5, and the last map of eq. 6
            vector = mapped(maps[2 * place], [max(0.0, one) for one in vector] if place else vector)
        return [2 / (1 + math.exp(-one)) for one in vector]

    for row in range(2):
        for place in range(3):
            own, seen = attended[row, place].tolist(), first[row, place].tolist()
            scaled = [a * b for a, b in zip(gate(layer.hidden_gate, seen), own, strict=True)]
            inner = [one * (1 + math.erf(one / math.sqrt(2))) / 2 for one in mapped(layer.layer.widen, scaled)]
            scaled = [a * b for a, b in zip(gate(layer.inner_gate, seen), inner, strict=True)]
            summed = [a + b for a, b in zip(own, mapped(layer.layer.narrow, scaled), strict=True)]
            mean = sum(summed) / 4
            spread = math.sqrt(sum((one - mean) ** 2 for one in summed) / 4 + 1e-5)
            assert found[row, place].tolist() == pytest.approx([(one - mean) / spread for one in summed], rel=1e-9)


@pytest.mark.parametrize("every", [False, True])
def test_the_relaxed_output_is_the_double_sum_of_equation_10(every: bool) -> None:
    targets: Any = "all" if every else "last"
    method = replace(SMALL, ratios=(0.0, 0.5), layers=2, dropout=0.0, mask="causal")
    method = replace(method, training=replace(method.training, targets=targets))
    net, batch = supernet(method).train(every), rows(method)
    p, q = (torch.tensor(one, dtype=torch.float64) for one in ((0.3, 0.7), (0.6, 0.4)))
    output = net.under({WIDTH: p, DEPTH: q})(batch)
    x = net.embed(batch)
    kept = torch.tensor([place % 8 < 4 for place in range(16)])

    def widened(part: Tensor) -> Tensor:
        whole = torch.zeros(*part.shape[:2], 16, dtype=torch.float64)
        whole[..., kept] = part
        return whole

    norm, narrow = net.events.norm, x["events"][..., kept]
    halved = functional.layer_norm(narrow, (8,), norm.weight[kept], norm.bias[kept])
    state = embedded = p[0] * norm(x["events"]) + p[1] * widened(halved)
    total = torch.zeros_like(state)
    for depth in range(2):
        whole, half = (net.layers[depth][name] for name in method.widths)  # type: ignore[index]
        parts = whole.every(state, embedded, x["mask"]), half.every(state[..., kept], embedded[..., kept], x["mask"])
        state = p[0] * parts[0] + p[1] * widened(parts[1])
        total = total + q[depth] * state
    last = (x["mask"].sum(1) - 1).clamp(min=0)
    golden = total if every else total[torch.arange(len(batch)), last]
    torch.testing.assert_close(output["user"], golden, rtol=1e-9, atol=1e-9)
    assert torch.equal(output["item"], net.events.items.weight)


def logits_of(method: DNSRec) -> Logits:
    sampler = method.sampler(method.space(SCHEMA), 0)
    assert isinstance(sampler, Logits)
    with torch.no_grad():
        sampler.logits.copy_(torch.tensor([0.2, -0.3, 0.5, 0.1, 0.9, -0.4]))
    return sampler


MEASURED = {"16x12": 4e-6, "12x9": 3e-6, "8x6": 1e-6}


@pytest.mark.parametrize("unit", ["largest", "millions"])
@pytest.mark.parametrize("resource", ["macs", "params", "seconds"])
@pytest.mark.parametrize("constraint", ["paper", "cumulative"])
def test_the_penalty_is_that_of_equation_12(constraint: Any, resource: Any, unit: Any) -> None:
    method = replace(SMALL, constraint=constraint, resource=resource, unit=unit, tradeoff=0.25)
    sampler, net = logits_of(method), supernet(method)
    mix = sampler.relaxed(None, 400)
    penalty = method.penalty(net, MEASURED)
    assert penalty is not None
    found = penalty(mix, sampler)
    blocks: Any = net.layers[-1]
    prices = {
        "macs": {name: net.layer_cost(name).macs for name in MEASURED},
        "params": {name: sum(one.numel() for one in blocks[name].parameters()) for name in MEASURED},
        "seconds": {name: 1e12 * one for name, one in MEASURED.items()},  # a million of these is a microsecond
    }[resource]
    unit_of = 1e6 if unit == "millions" else max(prices.values())
    p, q = (torch.as_tensor(mix[name]).tolist() for name in (WIDTH, DEPTH))
    layer = sum(one * price / unit_of for one, price in zip(p, prices.values(), strict=True))
    times = 2 / 3 if constraint == "paper" else q[0] + 2 * q[1] + 3 * q[2]  # of the logits of depths the second leads
    assert found.item() == pytest.approx(0.25 * layer * times, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, [sampler.logits])
    of_width, of_depth = (sampler.split(gradient)[name] for name in (WIDTH, DEPTH))
    assert of_width.abs().min() > 1e-4 * found.item()
    if constraint == "paper":
        assert not of_depth.any(), "eq. 12 leaves the depth without gradient"
    else:
        assert of_depth[2] > 0 > of_depth[0]


def test_the_penalty_follows_the_likeliest_depth_and_rivals_have_it_but_for_darts() -> None:
    for paths in ("gumbel", "proxyless", "recnas"):
        method: DNSRec = replace(SMALL, paths=paths)  # type: ignore[arg-type]
        sampler, penalty = logits_of(method), method.penalty(supernet(method), {})
        assert penalty is not None
        mix, found = sampler.relaxed(None, 3), []
        for depth in range(3):
            with torch.no_grad():
                sampler.split(sampler.logits)[DEPTH].copy_(torch.eye(3)[depth])
            found.append(penalty(mix, sampler).item())
        assert found == pytest.approx([found[2] / 3, 2 * found[2] / 3, found[2]]) and found[0] > 0
    for method in (replace(SMALL, paths="darts"), replace(SMALL, tradeoff=0.0)):
        assert method.penalty(supernet(method), {}) is None
    timed, net = replace(SMALL, resource="seconds"), supernet(SMALL).float().train()
    taken = timed.measure(net)
    assert list(taken) == list(SMALL.widths) and all(0 < one < 1 for one in taken.values()) and net.training
    assert SMALL.measure(net) == {}


def test_what_is_derived_is_the_likeliest_of_each_decision() -> None:
    sampler = logits_of(SMALL)
    assert sampler.decide(SMALL.space(SCHEMA)) == chosen("8x6", 2)
    uniform = replace(SMALL, paths="uniform")
    assert uniform.learning is None and SMALL.learning is not None
    assert uniform.sampler(uniform.space(SCHEMA), 0).decide(uniform.space(SCHEMA)) is None


# Scores


SETTINGS: tuple[dict[str, Any], ...] = (
    {"rankings": ("full", "pop100_fixed")},
    {"rankings": ("recbole_pop100",)},
    {"stop": "objective"},
    {"stop": "objective", "loss": "bpr"},
)


@pytest.mark.parametrize("training", SETTINGS, ids=str)
def test_the_scorer_equals_the_plain_one_and_what_is_cut_out(prepared: Prepared, training: dict[str, Any]) -> None:
    """Whatever was scored before: a search that is resumed, or shared out otherwise, must find the same scores."""
    method, run = replace(SMALL, training=replace(SMALL.training, **training)), prepared("leave_one_out")
    net, valid = supernet(method, run.schema).float(), run.rows("valid", shown=method.shown)
    genotypes = list(net.space.members())
    assert len(genotypes) == 9
    score = method.scorer(net, method.task(net.schema), valid, valid)
    found = score(genotypes)
    for genotype, own in zip(genotypes, found, strict=True):
        plain = fitness.scorer(net, method.task(net.schema), valid, valid, method.fitness)
        assert plain([genotype]) == pytest.approx([own], rel=1e-6)
    assert score(genotypes[4:6] + genotypes[:1]) == pytest.approx([*found[4:6], found[0]], rel=1e-6)
    assert len({round(one, 6) for one in found}) > 4
    for genotype in genotypes[::3]:
        small = method.net(net.schema, net.space.narrow(genotype)).inherit(net).eval()
        golden = method.fitness.measure(small.only(), method.task(net.schema), valid)
        assert score([genotype]) == pytest.approx([golden], rel=1e-6)


# What cannot be


@pytest.mark.parametrize(
    "known, why",
    [
        ({"gated_from": 3}, "gated_from is 1 or 2, not 3"),
        ({"ratios": ()}, r"ratios are one or more shares from 0 to below 1, not \[\]"),
        ({"ratios": (0.0, 1.0)}, r"shares from 0 to below 1, not \[0.0, 1.0\]"),
        ({"ratios": (-0.5,)}, "shares from 0 to below 1"),
        ({"hidden": 24, "ratios": (0.0, 0.75)}, "4 heads cannot share a hidden width of 6, which ratios leave of 24"),
        ({"hidden": 4, "heads": 1, "ratios": (0.0, 0.9)}, "width"),  # none is left
        ({"inner": 1, "ratios": (0.0, 0.75)}, "width"),
        ({"training": {"targets": "all"}}, "needs mask=causal for that, not none"),
        ({"training": {"targets": "all"}, "mask": "padding"}, "needs mask=causal for that, not padding"),
        ({"training": {"length": 0}}, "Training: length is at least 1"),
        *(({name: 0}, f"DNSRec: {name} is at least 1") for name in ("hidden", "inner", "layers", "heads", "steps")),
        *(({name: -1}, f"DNSRec: {name} is at least 0") for name in ("gates", "dropout", "cooling", "tradeoff")),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(known: Mapping[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_json({"name": "dnsrec", **known})
    assert from_json({"name": "dnsrec", "mask": "causal", "training": {"targets": "all"}}).shown.ends
    assert from_json({"name": "dnsrec", "attention": "softmax", "training": {"targets": "all"}}).train.batch == 5
    assert DNSRec().learner == Learning(10, 1e-3, 0.0)
