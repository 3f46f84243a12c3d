"""NASRec's net: forwards against plain loops, what is alive and what is not, canonical forms."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp, sqrt
from random import Random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.run import Run
from nascore.methods.nasrec import NASRec
from nascore.nasrec_net import NasRecNet
from nascore.ops import Elastic
from nascore.rows import Data
from nascore.space import Choice, Genotype

Array = NDArray[np.float64]
PAPER = NASRec(
    blocks=3,
    embedding=4,
    dense_sizes=(3, 5),
    sparse_sizes=(2, 3),
    tokens=2,
    cap=12,
)
METHODS = {
    "paper": PAPER,
    "unnormed": replace(PAPER, norm=False, balanced=False),
    "repo": replace(PAPER, embedding=8, attention="transformer", square_gating=True, fm=True, inputs=2),
    "any": replace(PAPER, operators="any", fm=True, norm=False),
    "small": replace(PAPER, size="small", blocks=2),
}
every_method = pytest.mark.parametrize("name", METHODS)


def net_of(method: NASRec, data: Data, genotype: Genotype | None = None) -> NasRecNet:
    """A net with weights as if it had been trained for long."""
    torch.manual_seed(1)
    space = method.space(data.schema)
    net = method.net(data.schema, space if genotype is None else space.narrow(genotype)).double().eval()
    assert isinstance(net, NasRecNet)
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(0, 0.4)
    return net


def genotypes(method: NASRec, data: Data, count: int, seed: int = 0) -> list[Genotype]:
    rng, space = Random(seed), method.space(data.schema)
    return [space.sample(rng) for _ in range(count)]


class Plain:
    """One row through one genotype by loops, from the logit back; notes what it asks and which operators it runs."""

    def __init__(self, method: NASRec, net: NasRecNet, genotype: Genotype, dense: Array, sparse: Array) -> None:
        self.method, self.genotype, self.known = method, genotype, {"raw dense": dense, "raw sparse": sparse}
        self.weights = {name: value.numpy() for name, value in net.state_dict().items()}
        self.asked, self.ran = set[str](), set[str]()

    def logit(self) -> float:
        last = str(self.method.blocks)
        read = np.concatenate([self.dense(last), self.sparse(last).ravel()])
        (logit,) = self.weights["head.weight"] @ read + self.weights["head.bias"]
        return float(logit)

    def ask(self, name: str) -> Sequence[str]:
        self.asked.add(name)
        return self.genotype.get(name, ())

    def once(self, name: str, make: Callable[[], Array]) -> Array:
        if name not in self.known:
            self.known[name] = make()
        return self.known[name]

    def dense(self, block: str) -> Array:
        return self.once(f"{block} dense", lambda: self._dense(block))

    def fields(self, block: str) -> Array:
        return self.once(f"{block} fields", lambda: self._fields(block))

    def sparse(self, block: str) -> Array:
        """Vectors are columns."""
        return self.once(f"{block} sparse", lambda: self._sparse(block))

    def _dense(self, block: str) -> Array:
        self.ask(f"{block}/dense/size")
        parts = [self.dense_operator(block, one) for one in self.ask(f"{block}/dense/op")]
        if self.ask(f"{block}/fm"):
            x, name = self.fields(block), self.run(f"block.{block}.fm.fm")
            pairs = sum(2 * x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i))
            parts.append(self.norm(f"{name}.norm", self.map(f"{name}.map", pairs + np.zeros(len(x)))))
        return sum(parts[1:], parts[0])

    def _fields(self, block: str) -> Array:
        self.ask(f"{block}/sparse/size")
        parts = [self.field_operator(block, one) for one in self.ask(f"{block}/sparse/op")]
        return sum(parts[1:], parts[0])

    def _sparse(self, block: str) -> Array:
        if not self.ask(f"{block}/merge"):
            return self.fields(block)
        name = self.run(f"block.{block}.merge.project")
        vectors = np.einsum("ekd,d->ek", self.weights[f"{name}.weight"], self.dense(block))
        vectors = vectors + self.weights.get(f"{name}.bias", 0.0)
        return np.concatenate([self.fields(block), self.norm(f"{name}.norm", vectors)], 1)

    def run(self, name: str) -> str:
        self.ran.add(name)
        return name

    def inputs(self, decision: str) -> Array:
        known = self.sparse if "sparse" in decision else self.dense
        return np.concatenate([known(source) for source in self.ask(decision)], -1)

    def map(self, name: str, x: Array) -> Array:
        """The last axis of x through a linear map."""
        return np.asarray(x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0))

    def norm(self, name: str, x: Array, axes: int = 0) -> Array:
        """Over all of x, or its last axis."""
        if f"{name}.weight" not in self.weights:
            return x
        if axes:
            return np.stack([self.norm(name, row) for row in x])
        spread = sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        return np.asarray((x - x.mean()) / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"])

    def dense_operator(self, block: str, operator: str) -> Array:
        name = self.run(f"block.{block}.dense.{operator}")
        if operator in ("gating", "add"):
            left, right = self.inputs(f"{block}/left"), self.inputs(f"{block}/right")
            if operator == "add":
                return self.norm(f"{name}.norm", self.map(f"{name}.left", left) + self.map(f"{name}.right", right))
            gate = np.array([1 / (1 + exp(-one)) for one in self.map(f"{name}.gate", left)])
            square = self.method.square_gating
            passed = self.map(f"{name}.value", gate * right) if square else gate * self.map(f"{name}.value", right)
            return self.norm(f"{name}.norm", passed)
        x = self.inputs(f"{block}/dense/from")
        if operator == "fc":
            return np.maximum(self.norm(f"{name}.norm", self.map(f"{name}.map", x)), 0)
        vectors = [self.norm(f"{name}.dense_norm", self.map(f"{name}.dense", x))]
        fields = self.inputs(f"{block}/sparse/from")
        if self.method.balanced:
            fields = self.norm(f"{name}.sparse_norm", self.map(f"{name}.sparse", fields), axes=1)
            assert fields.shape[1] == np.ceil(sqrt(2 * max(self.method.dense_sizes)))
        vectors += list(fields.T)
        products = [sum(vectors[i] * vectors[j]) for i in range(len(vectors)) for j in range(i)]
        return self.norm(f"{name}.out_norm", self.map(f"{name}.out", np.array(products)))

    def field_operator(self, block: str, operator: str) -> Array:
        name = self.run(f"block.{block}.sparse.{operator}")
        mapped = self.map(f"{name}.map", self.inputs(f"{block}/sparse/from"))
        if operator == "embed_fc":
            return np.maximum(self.norm(f"{name}.norm", mapped, axes=1), 0)
        x = self.norm(f"{name}.map_norm", mapped, axes=1).T
        if self.method.attention == "field":
            return self.norm(f"{name}.norm", attended(x, x, x).T, axes=1)
        q, k, v = (self.map(f"{name}.{part}", x) for part in ("query", "key", "value"))
        heads = [attended(q[:, i : i + 1], k[:, i : i + 1], v[:, i : i + 1]) for i in range(x.shape[1])]
        x = self.norm(f"{name}.first_norm", x + self.map(f"{name}.mixed", np.concatenate(heads, 1)), axes=1)
        hidden = np.maximum(self.map(f"{name}.hidden", x), 0)
        return self.norm(f"{name}.last_norm", x + self.map(f"{name}.out", hidden), axes=1).T


def attended(q: Array, k: Array, v: Array) -> Array:
    """Softmax(QK'/sqrt(d))V by loops over vectors."""
    rows = []
    for one in q:
        scores = [sum(one * other) / sqrt(len(one)) for other in k]
        weights = [exp(score - max(scores)) for score in scores]
        rows.append(sum(w / sum(weights) * value for w, value in zip(weights, v, strict=True)))
    return np.stack(rows)


def plain(method: NASRec, net: NasRecNet, genotype: Genotype, data: Data, row: int) -> Plain:
    batch = data.batch(torch.tensor([row]))
    numbers = [float(batch[f"number_{place}"]) for place in range(2)]
    dense = np.array([0.0 if one != one else np.log(1 + max(0.0, one)) for one in numbers])
    starts = np.cumsum([0, *net.tables.sizes.values()])
    rows = list(net.tables.sizes.values())
    places = [int(batch[name]) for name in net.names]
    shared = [
        place if place < limit else (place - 1) % (limit - 1) + 1 for place, limit in zip(places, rows, strict=True)
    ]
    sparse = np.stack([net.tables.weight[starts[n] + one].detach().numpy() for n, one in enumerate(shared)], 1)
    return Plain(method, net, genotype, dense, sparse)


def inputs_of(net: NasRecNet, data: Data, rows: Sequence[int]) -> dict[str, Tensor]:
    x = net.embed(data.batch(torch.tensor(rows)))
    return {name: value.double() for name, value in x.items()}


@every_method
def test_a_genotypes_forward_equals_plain_loops(clicks: Run, name: str) -> None:
    method, data, ran = METHODS[name], clicks.rows("train"), Counter[str]()
    for genotype in genotypes(method, data, 25):
        net = net_of(method, data, genotype)
        found = net(inputs_of(net, data, [3, 8]), net.space.mix(genotype))
        golden = [plain(method, net, genotype, data, row) for row in (3, 8)]
        assert found.tolist() == pytest.approx([one.logit() for one in golden], rel=1e-6, abs=1e-6)
        modules = {path for path, module in net.named_modules() if isinstance(module, Elastic)}
        assert modules == {*golden[0].ran, "head"}, "nothing is built that does not run"
        ran.update(path.rpartition(".")[2] for path in golden[0].ran)
    options = {o for d in method.space(data.schema).decisions.values() for o in d.options if not o[0].isdigit()}
    assert set(ran) == options - {"raw"} and min(ran.values()) > 2


@every_method
def test_what_does_not_reach_the_logit_does_not_run(clicks: Run, name: str) -> None:
    method, data = METHODS[name], clicks.rows("train")
    net, ran, rest, closed = net_of(method, data), set[str](), dict[str, Choice](), 0
    for path, module in net.named_modules():
        if isinstance(module, Elastic):
            module.register_forward_hook(lambda *_, path=path: ran.add(path))
    x = inputs_of(net, data, [1, 2])
    for genotype in genotypes(method, data, 60):
        alone, mix = net_of(method, data, genotype), net.space.mix(genotype)
        golden = plain(method, alone, genotype, data, 1)
        golden.logit()
        ran.clear()
        net(x, mix)
        assert ran == {*golden.ran, "head"}
        priced = {part for part, cost in net.costs(mix).items() if cost.macs}
        blocks = {path.split(".")[1] for path in golden.ran}
        assert {part.partition("/")[0] for part in priced} == {*blocks, "head"}
        closed += len(blocks) < method.blocks
        kept = {name: genotype[name] for name in golden.asked if name in genotype}
        canonical = method.canonical(genotype)
        assert {name: canonical[name] for name in kept} == kept, "what was asked stays"
        other = {name: canonical[name] for name in genotype if name not in kept}
        assert all(rest.setdefault(name, chosen) == chosen for name, chosen in other.items()), (
            "the rest is always alike"
        )
    assert closed > 0, "blocks are closed now and then"


@every_method
def test_a_canonical_form_is_the_same_network(clicks: Run, name: str) -> None:
    method, data = METHODS[name], clicks.rows("train")
    net, space, price = net_of(method, data), method.space(data.schema), method.price(data.schema)
    x, rng, same, other, alike = inputs_of(net, data, [1, 2, 3]), Random(5), 0, 0, 0
    for genotype in genotypes(method, data, 40):
        canonical = method.canonical(genotype)
        assert canonical in space and list(canonical) == list(genotype)
        assert method.canonical(canonical) == canonical == space.canonical(genotype)
        output = net(x, space.mix(genotype))
        assert torch.equal(net(x, space.mix(canonical)), output)
        assert price(canonical, "") == price(genotype, "")
        child = space.mutate(genotype, rng, times=1)
        twins = method.canonical(child) == canonical
        assert (method.model_id(child, "d") == method.model_id(genotype, "d")) == twins
        equal = torch.equal(net(x, space.mix(child)), output)
        assert equal or not twins
        same, other, alike = same + twins, other + (not twins), alike + (equal and not twins)
    assert same > 3 and other > 3 and alike < 0.2 * other, "but for what a ReLU closes, others differ"
    assert space.within(Cheap(10**9)).canonical(genotype) == canonical


class Cheap:
    """A limit that all keep."""

    def __init__(self, most: int) -> None:
        self.most = most

    def excess(self, genotype: Genotype) -> float:
        return -1.0

    def explain(self, genotype: Genotype) -> str:
        return ""


def test_a_cap_is_lifted_in_the_final_form(clicks: Run) -> None:
    data = clicks.rows("train")
    sizes = {column.name: column.size for column in data.schema.columns if column.kind == "category"}
    (genotype,) = genotypes(PAPER, data, 1)
    lifted = PAPER.final(data.schema)
    capped, final = (net_of(method, data, genotype).tables for method in (PAPER, lifted))
    assert capped.sizes == {name: min(size, 12) for name, size in sizes.items()} != sizes == final.sizes
    assert lifted == replace(PAPER, cap=0) == lifted.final(data.schema)
    assert replace(PAPER, cap=10**6).final(data.schema).cap == 10**6, "a cap that no table reaches stays"
    assert PAPER.model_id(genotype, "d") != lifted.model_id(genotype, "d")
    prices = [method.price(data.schema)(genotype, "") for method in (PAPER, lifted)]
    assert [price.table_params for price in prices] == [4 * sum(one.sizes.values()) for one in (capped, final)]
    assert (prices[0].macs, prices[0].params) == (prices[1].macs, prices[1].params)
    with pytest.raises(ValueError, match="cap is 0 or above 1"):
        replace(PAPER, cap=1)


@pytest.mark.parametrize("sizes", [(), (5, 3), (4, 4), (0, 2)])
def test_sizes_are_told_from_the_smallest_on(sizes: tuple[int, ...]) -> None:
    for name in ("dense_sizes", "sparse_sizes"):
        with pytest.raises(ValueError, match=f"{name} must be one or more sizes, the smallest first"):
            replace(PAPER, **{name: sizes})


@every_method
def test_without_numbers_nothing_is_the_same_for_all_rows(clicks: Run, name: str) -> None:
    method, data, varied = METHODS[name], clicks.rows("train"), 0
    schema = replace(data.schema, columns=tuple(one for one in data.schema.columns if one.kind != "number"))
    space, rng = method.space(schema), Random(3)
    for genotype in (space.sample(rng) for _ in range(25)):
        assert method.canonical(genotype) in space
        torch.manual_seed(2)
        net = method.net(schema, space.narrow(genotype)).double().eval()
        assert isinstance(net, NasRecNet)
        for weight in net.parameters():
            weight.data.normal_(0, 0.4)
        golden = [plain(method, net, genotype, data, row) for row in range(8)]
        for one in golden:
            one.known["raw dense"] = np.zeros(1)
        logits = net(inputs_of(net, data, range(8)), net.space.mix(genotype))
        assert logits.tolist() == pytest.approx([one.logit() for one in golden], rel=1e-6, abs=1e-6)
        for block in {name.partition("/")[0] for name in golden[0].asked if name.endswith("dense/size")}:
            outputs = np.stack([one.dense(block) for one in golden])
            assert (outputs == 0).all() or (outputs.std(0) > 1e-9).any(), f"{block} in {genotype}"
            varied += bool(outputs.any())
    assert varied > 40


@pytest.mark.parametrize(
    "name, operators, inputs", [("paper", {1}, {1, 2, 3}), ("repo", {1}, {1, 2}), ("any", {1, 2}, {1, 2, 3})]
)
def test_how_many_may_be_open(clicks: Run, name: str, operators: set[int], inputs: set[int]) -> None:
    drawn = genotypes(METHODS[name], clicks.rows("train"), 60)
    assert {len(one["3/sparse/op"]) for one in drawn} == operators
    assert {len(one["3/dense/op"]) for one in drawn} == ({1, 2, 3, 4} if name == "any" else {1})
    assert {len(one["3/dense/from"]) for one in drawn} == {len(one["3/sparse/from"]) for one in drawn} == inputs
