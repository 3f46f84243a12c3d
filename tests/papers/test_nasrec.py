"""NASRec's figures: the two published genotypes that are written out, and what canonical forms and sizes must be."""

from dataclasses import replace
from random import Random

import pytest
import torch

from nascore.methods import from_json
from nascore.methods.nasrec import NASRec
from nascore.nasrec_net import NasRecNet
from nascore.schema import Column, Schema
from nascore.space import Genotype

CRITEO = Schema(
    user="",
    item="",
    users=0,
    items=0,
    columns=(
        *(Column(f"I{place}", kind="number") for place in range(1, 14)),
        *(Column(f"C{place}", size=100) for place in range(1, 27)),
    ),
    protocol="stratified",
)
DENSE = {"full": {0: "fc", 1: "dot", 2: "gating", 3: "add"}, "small": {0: "fc", 1: "dot"}}
SPARSE = {"full": {4: "attention", 5: "embed_fc"}, "small": {2: "embed_fc"}}
Row = tuple[list[int], int, int, int, int, list[int], list[int], int, int]
FULL: list[Row] = [  # active nodes, dense and sparse dimension, projection, FM, dense and sparse inputs, left, right
    ([2, 4], 128, 64, 1, 0, [0], [0], 0, 0),
    ([1, 5], 32, 64, 0, 0, [0], [0], 0, 1),
    ([1, 5], 768, 32, 0, 1, [1, 2], [2, 1, 0], 1, 2),
    ([2, 5], 768, 48, 1, 0, [0, 3], [0, 2, 1, 3], 2, 0),
    ([0, 5], 16, 16, 0, 1, [4, 0, 3, 2], [2, 3, 0, 1], 3, 1),
    ([0, 4], 768, 16, 1, 0, [4, 0, 5, 3], [4, 1], 2, 3),
    ([0, 4], 128, 48, 0, 1, [0, 3, 2], [3, 1], 6, 1),
]
SMALL: list[Row] = [
    ([0, 2], 256, 48, 1, 0, [0], [0], 0, 0),
    ([1, 2], 1024, 48, 1, 1, [1], [0, 1], 1, 0),
    ([0, 2], 128, 16, 1, 0, [2, 0], [2, 1, 0], 0, 0),
    ([0, 2], 16, 48, 0, 1, [2], [0, 2], 1, 2),
    ([1, 2], 128, 32, 0, 0, [0, 2, 4, 3], [4, 2], 2, 0),
    ([0, 2], 16, 64, 1, 0, [5, 2, 0, 1], [5, 2, 1], 3, 5),
    ([0, 2], 1024, 64, 0, 0, [3, 0, 5], [5, 2, 1, 0], 0, 5),
]


def method(size: str) -> NASRec:
    known = from_json({"name": "nasrec", "size": size, **NASRec.presets["repo"]})
    assert isinstance(known, NASRec)
    return known


def genotype(size: str, rows: list[Row]) -> Genotype:
    """A published architecture as a member of our space."""
    space = method(size).space(CRITEO)

    def named(block: int) -> str:
        return str(block) if block else "raw"

    found = {}
    for number, (nodes, dense, sparse, merge, fm, dense_from, sparse_from, left, right) in enumerate(rows, 1):
        for side, known in (("dense", DENSE[size]), ("sparse", SPARSE[size])):
            kinds = [known[node] for node in nodes if node in known]
            options = space.decisions[f"{number}/{side}/op"].options
            found[f"{number}/{side}/op"] = tuple(one for one in options if one in kinds)
        found[f"{number}/dense/size"], found[f"{number}/sparse/size"] = (str(dense),), (str(sparse),)
        found[f"{number}/dense/from"] = tuple(named(block) for block in sorted(dense_from))
        found[f"{number}/sparse/from"] = tuple(named(block) for block in sorted(sparse_from))
        found[f"{number}/left"], found[f"{number}/right"] = (named(left),), (named(right),)
        found[f"{number}/merge"] = ("project",) if merge else ()
        found[f"{number}/fm"] = ("fm",) if fm else ()
    return {name: found[name] for name in space.decisions}


@pytest.mark.parametrize(
    ("size", "rows", "linear", "bmm", "attention", "params", "dead"),
    [
        ("small", SMALL, 2_169_328, 38_480, 0, 1_779_720, {6}),
        ("full", FULL, 1_216_601, 26_896, 204_800, 2_217_268, {4, 5, 6}),
    ],
)
def test_published_models_cost_what_was_counted(
    size: str, rows: list[Row], linear: int, bmm: int, attention: int, params: int, dead: set[int]
) -> None:
    known, model = method(size), genotype(size, rows)
    assert model in known.space(CRITEO)
    counted = known.paper_meter(CRITEO, model)
    assert counted["linear"].macs == linear
    assert counted["bmm"].macs == bmm
    assert counted["attention"].macs == attention
    assert sum(cost.params for cost in counted.values()) == params
    first = {name: known.canonical(model)[name] for name in model}
    moved = {int(name.partition("/")[0]) for name in model if first[name] != model[name]}
    assert dead <= moved
    changed = {**model, f"{max(dead)}/dense/size": ("1024",), f"{min(dead)}/sparse/from": ("raw",)}
    assert known.canonical(changed) == first, "what is dead has no say"
    assert known.price(CRITEO)(changed, "") == known.price(CRITEO)(model, "")


def test_the_public_codes_search_reaches_as_many_genotypes() -> None:
    assert method("full").space(CRITEO).size() == pytest.approx(8.1e43, rel=0.01)
    pairs = 5_040**2  # of left and right inputs, which it draws for the small space too, where nothing reads them
    assert method("small").space(CRITEO).size() * pairs == pytest.approx(4.9e39, rel=0.01)


def blocks_alive(known: NASRec, model: Genotype) -> set[str]:
    """The blocks of which another dense or sparse dimension makes another network."""
    first, alive = known.canonical(model), set[str]()
    for block in "1234567":
        for name, sizes in ((f"{block}/dense/size", known.dense_sizes), (f"{block}/sparse/size", known.sparse_sizes)):
            other = str(sizes[-1] if model[name] != (str(sizes[-1]),) else sizes[0])
            if known.canonical({**model, name: (other,)}) != first:
                alive.add(block)
    return alive


def test_as_many_blocks_are_dead_as_were_counted() -> None:
    known, rng = method("full"), Random(0)
    space = known.space(CRITEO)
    dead = [7 - len(blocks_alive(known, space.sample(rng))) for _ in range(1_000)]
    assert sum(dead) / 1_000 == pytest.approx(1.0, abs=0.12)
    assert sum(one > 0 for one in dead) / 1_000 == pytest.approx(0.59, abs=0.05)
    assert sum(one > 2 for one in dead) / 1_000 == pytest.approx(0.10, abs=0.03)
    for size, rows, wanted in (("small", SMALL, {"6"}), ("full", FULL, {"4", "5", "6"})):
        assert {*"1234567"} - blocks_alive(method(size), genotype(size, rows)) == wanted


def test_as_many_mutations_change_nothing_as_were_counted() -> None:
    known, rng, same, renamed, draws = method("full"), Random(1), 0, 0, 4_000
    space = known.space(CRITEO)
    macro = ("dense/from", "sparse/from", "left", "right")
    micro = ("op", "dense/size", "sparse/size", "merge", "fm")
    for _ in range(draws):
        model, block = space.sample(rng), rng.randrange(1, 8)
        about = rng.choice(macro if rng.random() < 0.5 else micro)
        names = [f"{block}/dense/op", f"{block}/sparse/op"] if about == "op" else [f"{block}/{about}"]
        child = {**model, **{name: space.decisions[name].sample(rng) for name in names}}
        twins = known.canonical(child) == known.canonical(model)
        same, renamed = same + twins, renamed + (twins and child != model)
    assert same / draws == pytest.approx(0.56, abs=0.035)
    assert renamed / draws == pytest.approx(0.26, abs=0.03)


@pytest.mark.parametrize("square, gating", [(True, 29.7), (False, 11.1)])
def test_operators_weigh_as_they_were_weighed(square: bool, gating: float) -> None:
    known = NASRec(attention="transformer", fm=True, square_gating=square)
    with torch.device("meta"):
        net = known.net(CRITEO, known.space(CRITEO))
    assert isinstance(net, NasRecNet)
    weights: dict[str, float] = {}
    for block in net.block.values():
        for part in block.children():
            for name, operator in part.named_children():
                own = sum(weight.numel() for weight in operator.parameters() if weight.dim() > 1)
                weights[name] = weights.get(name, 0.0) + own / 1e6
    counted = {"fc": 5.55, "dot": 2.12, "project": 0.459, "attention": 0.119, "embed_fc": 0.108, "fm": 0.0573}
    sums = 2 * counted["fc"]  # the public code adds before it maps, and so maps once
    assert weights == pytest.approx({**counted, "add": sums, "gating": gating}, rel=0.01)
    if square:
        assert sum(weights.values()) - counted["fc"] == pytest.approx(43.7, rel=0.01)


@pytest.mark.parametrize("size, rows", [("small", SMALL), ("full", FULL)])
def test_dead_parts_cost_nothing(size: str, rows: list[Row]) -> None:
    known, model = method(size), genotype(size, rows)
    counted = known.paper_meter(CRITEO, model)
    assert counted["dead"].params > 0 and counted["dead"].macs == 0
    alive = known.paper_meter(CRITEO, known.canonical(model))
    live = {name: counted[name] for name in ("linear", "bmm", "attention")}
    assert {name: alive[name] for name in live} == live
    ours = known.price(CRITEO)(model, "")
    assert ours == known.price(CRITEO)(known.canonical(model), "")
    bare = replace(known, norm=False).price(CRITEO)(model, "")
    assert bare.macs == ours.macs and bare.params < ours.params, "norms have weights and no MACs"
