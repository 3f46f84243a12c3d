"""NASRec's figures: the two published genotypes that are written out, and what canonical forms and sizes must be."""

import pytest

from nascore.methods import from_json
from nascore.methods.nasrec import NASRec
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
