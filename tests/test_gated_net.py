"""Nets that keep some dimensions of some fields: equal to masked wide ones, priced as counted, saved once."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nascore.buckets import BUCKETS, bucketed, in_buckets
from nascore.gated_net import GatedNet, Grain, decision, dimensions
from nascore.methods.ihas import IHAS
from nascore.schema import Batch, Column, Schema
from nascore.space import Genotype, Mix, Space
from nascore.sparse import Tables

WIDTH = 4
SIZES = {"a": 5, "n": BUCKETS, "b": 3, "m": BUCKETS, "c": 7}
SCHEMA = Schema(
    "",
    "",
    0,
    0,
    (
        Column("a", size=5),
        Column("n", kind="number"),
        Column("b", size=3),
        Column("m", kind="number"),
        Column("c", size=7),
    ),
    "stratified",
)
BEHIND = (
    "",
    "dnn:width=6,depth=2",
    "fm",
    "wide_deep:width=6,depth=2",
    "deepfm:width=6,depth=1",
    "dcnv2:width=6,depth=1,layers=2",
    "dcnv2:width=6,depth=1,layers=2,structure=stacked",
    "autoint:width=6,depth=1,layers=1,heads=2,attention=2",
    "dlrm:width=8",
    "xdeepfm:width=6,depth=1,layers=2,maps=4",
)
every_net = pytest.mark.parametrize("behind", BEHIND)


def method_of(behind: str) -> IHAS:
    return IHAS(embedding=WIDTH, layers=(5, 3), behind=behind)


def drawn(net: Any) -> Any:
    """With weights as after a training, to be judged."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.5)
    return net.double().eval()


def net_of(behind: str, genotype: Genotype | None = None) -> GatedNet:
    method = method_of(behind)
    space = method.space(SCHEMA)
    net = method.net(SCHEMA, space if genotype is None else space.narrow(genotype))
    assert isinstance(net, GatedNet)
    drawn_net: GatedNet = drawn(net)
    return drawn_net


def rows(count: int = 9) -> Batch:
    """Ids from 0 on, numbers of every kind."""
    generator = torch.Generator().manual_seed(3)
    columns = {name: torch.randint(0, SIZES[name], (count,), generator=generator) for name in "abc"}
    for name in "nm":
        columns[name] = torch.randn(count, generator=generator).exp() * 9 - 4
        columns[name][0] = torch.nan
    return Batch({name: one.int() if name in "abc" else one for name, one in columns.items()}, {}, torch.arange(count))


def members(grain: Grain = "dimension") -> list[Genotype]:
    """Everything, single dimensions, whole fields left out, and random ones."""
    space = Space([decision(name, WIDTH, grain) for name in SIZES])
    rng = Random(4)
    found = [space.sample(rng) for _ in range(8)]
    found.append({name: one.options[: one.most] for name, one in space.decisions.items()})
    if grain == "dimension":
        found.append({**{name: () for name in SIZES}, "m": ("2",)})
        found.append({"a": ("0", "3"), "n": (), "b": ("1", "2"), "m": (), "c": ("0", "1", "2", "3")})
        found.append({"a": ("3",), "n": ("0",), "b": (), "m": ("1",), "c": ("2",)})
    return [one for one in found if any(one.values())]


def kept(genotype: Genotype) -> dict[str, list[int]]:
    """The dimensions of each field."""
    return {name: sorted({d for one in chosen for d in dimensions(one, WIDTH)}) for name, chosen in genotype.items()}


def embedded(net: GatedNet, batch: Batch) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in net.embed(batch).items()}


def run(net: GatedNet, batch: Batch, mix: Mix | None = None) -> Tensor:
    """The output under a mix, without one of all that the net keeps."""
    logit_B: Tensor = net(embedded(net, batch), net.only_mix() if mix is None else mix)
    return logit_B


def inherited(net: GatedNet, source: GatedNet) -> GatedNet:
    net.inherit(source)
    return net


def without(net: GatedNet, dims: Mapping[str, Sequence[int]]) -> GatedNet:
    """The same net with zeros in its tables for what is not kept, and for a field's first order if nothing is."""
    zeroed, start = deepcopy(net), 0
    weight = zeroed.tables.group(WIDTH).weight
    with torch.no_grad():
        for name, size in SIZES.items():
            for dim in {*range(WIDTH)} - {*dims[name]}:
                weight[start : start + size, dim] = 0
            if not dims[name] and hasattr(zeroed.behind, "wide"):
                zeroed.behind.wide.tables.weight[start : start + size] = 0
            start += size
    return zeroed


def everything(net: GatedNet) -> Any:
    return net.space.mix({name: one.options for name, one in net.space.decisions.items()})


def counted(net: GatedNet) -> tuple[int, int]:
    """Weights outside tables, and in them."""
    tables = sum(one.weight.numel() for one in net.modules() if isinstance(one, Tables))
    return sum(one.numel() for one in net.parameters()) - tables, tables


@every_net
def test_a_narrow_net_is_the_masked_wide_one(behind: str) -> None:
    wide, batch = net_of(behind), rows()
    outputs = []
    for genotype in members():
        with torch.no_grad():
            masked = run(wide, batch, wide.space.mix(genotype))
            zeroed = run(without(wide, kept(genotype)), batch, everything(wide))
            narrow = run(inherited(net_of(behind, genotype), wide), batch)
        assert masked.shape == (9,) and bool(masked.isfinite().all())
        torch.testing.assert_close(masked, zeroed)
        torch.testing.assert_close(narrow, zeroed)
        outputs.append(tuple(narrow.tolist()))
    assert len({*outputs}) == len({str(kept(one)) for one in members()})


@every_net
def test_costs_are_what_is_counted(behind: str) -> None:
    wide = net_of(behind)
    for genotype in members():
        narrow, cost = net_of(behind, genotype), wide.cost(wide.space.mix(genotype))
        assert (cost.params, cost.table_params) == counted(narrow)
        assert narrow.cost(narrow.only_mix()) == cost == method_of(behind).price(SCHEMA)(genotype, "")
        dims = kept(genotype)
        for name, size in SIZES.items():
            if dims[name]:
                assert narrow.cost(narrow.only_mix(), f"tables/{name}").table_params == size * len(dims[name])
        if not behind:
            columns = sum(map(len, dims.values()))
            assert (cost.params, cost.macs) == (5 * columns + 5 + 18 + 4, 5 * columns + 15 + 3)


@every_net
def test_weights_are_saved_once(behind: str, tmp_path: Path) -> None:
    for genotype in (members()[0], members()[-1]):
        net, other = net_of(behind, genotype), net_of(behind, genotype)
        state = net.state_dict()
        places = [value.data_ptr() for value in state.values() if value.numel()]
        assert len({*places}) == len(places)
        assert sum(state[name].numel() for name, _ in net.named_parameters()) == sum(counted(net))
        assert {id(one) for one in net.parameters()} == {id(one) for _, one in net.named_parameters()}
        save_file(state, tmp_path / "net.safetensors")
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other.load_state_dict(load_file(tmp_path / "net.safetensors"))
        assert torch.equal(run(other, rows()), run(net, rows()))


def test_a_narrow_perceptron_reads_what_is_kept_side_by_side() -> None:
    """Against a plain loop over its own tables and layers."""
    genotype: Genotype = {"a": ("0", "3"), "n": ("1",), "b": (), "m": ("0", "2"), "c": ("1", "2", "3")}
    wide, batch = net_of(""), rows()
    narrow = inherited(net_of("", genotype), wide)
    weights = {name: value.numpy() for name, value in narrow.state_dict().items()}
    ids = in_buckets(batch, ("n", "m"))
    starts = {name: sum([*SIZES.values()][:place]) for place, name in enumerate(SIZES)}
    table, found = wide.tables.group(WIDTH).weight.detach().numpy(), run(narrow, batch).tolist()
    for row in range(len(batch)):
        vectors = {
            name: [table[starts[name] + int(ids[name][row]), int(dim)] for dim in chosen]
            for name, chosen in genotype.items()
        }
        x = np.array([*vectors["n"], *vectors["a"], *vectors["m"], *vectors["c"]])  # fields of 1, of 2, of 3 dimensions
        x = np.maximum(weights["first.weight"] @ x + weights["first.bias"], 0)
        x = np.maximum(weights["rest.1.weight"] @ x + weights["rest.1.bias"], 0)
        assert found[row] == pytest.approx((weights["rest.3.weight"] @ x + weights["rest.3.bias"])[0])
    assert narrow.order == ["n", "a", "m", "c"]


@pytest.mark.parametrize("behind", ["", "deepfm:width=6,depth=1"])
def test_numbers_are_categories(behind: str) -> None:
    net, batch = net_of(behind), rows()
    method, schema = method_of(behind), bucketed(SCHEMA)
    same = method.net(schema, method.space(schema)).double().eval()
    same.load_state_dict(net.state_dict())
    given = in_buckets(batch, ("n", "m"))
    assert isinstance(same, GatedNet) and torch.equal(
        run(net, batch, everything(net)), run(same, given, everything(net))
    )
    large = Batch({**batch.columns, "n": batch["n"] * 2.0**9}, {}, batch.rows)
    assert not torch.equal(run(net, large, everything(net)), run(net, batch, everything(net)))


# What a mix may be


@pytest.mark.parametrize("behind", ["", "fm", "dcnv2:width=6,depth=1,layers=2"])
def test_tensors_multiply_each_dimension(behind: str) -> None:
    net, batch = net_of(behind), rows()
    generator = torch.Generator().manual_seed(5)
    x, every = embedded(net, batch), everything(net)
    assert x["kept"].shape == (9, 5 * WIDTH)
    for shape in ((WIDTH,), (9, WIDTH)):
        mix = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name in SIZES}
        scaled, most = x["kept"].clone(), torch.stack([mix[name].amax(-1) for name in SIZES], -1)
        first = {"weights": x["weights"] * most[..., None]} if "weights" in x else {}
        for place, name in enumerate(SIZES):
            for dim in range(WIDTH):
                for row in range(9):
                    scaled[row, place * WIDTH + dim] *= mix[name][dim] if len(shape) == 1 else mix[name][row, dim]
        torch.testing.assert_close(net(x, mix), net({**x, **first, "kept": scaled}, every))


@pytest.mark.parametrize("behind", ["", "fm"])
def test_gates_of_0_and_1_are_members_a_row(behind: str) -> None:
    net, batch = net_of(behind), rows()
    genotypes = [members()[place % len(members())] for place in range(9)]
    mixes = [net.space.mix(one) for one in genotypes]
    stacked = {name: torch.tensor([mix[name] for mix in mixes], dtype=torch.float64) for name in SIZES}
    x = embedded(net, batch)
    found = net(x, stacked)
    for row, genotype in enumerate(genotypes):
        narrow = inherited(net_of(behind, genotype), net)
        torch.testing.assert_close(found[row], run(narrow, batch)[row])


@pytest.mark.parametrize("shape", [(WIDTH,), (9, WIDTH)])
def test_a_relaxations_cost_is_what_is_expected(shape: tuple[int, ...]) -> None:
    net = net_of("")
    generator = torch.Generator().manual_seed(6)
    mix = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name in SIZES}
    mean = {name: one.reshape(-1, WIDTH).mean(0).tolist() for name, one in mix.items()}
    cost, columns = net.cost(mix), sum(sum(one) for one in mean.values())
    assert float(cost.table_params) == pytest.approx(sum(size * sum(mean[name]) for name, size in SIZES.items()))
    assert float(cost.params) == pytest.approx(5 * columns + 5 + 18 + 4)
    assert float(cost.macs) == pytest.approx(5 * columns + 18)


# Grains


def net_by(grain: Grain, genotype: Genotype | None = None, names: Sequence[str] = tuple(SIZES)) -> GatedNet:
    space = Space([decision(name, WIDTH, grain) for name in names])
    net: GatedNet = drawn(GatedNet(SCHEMA, space if genotype is None else space.narrow(genotype), WIDTH, (5, 3)))
    return net


def test_options_say_what_they_keep() -> None:
    assert decision("a", 3, "dimension").options == ("0", "1", "2")
    field, prefix = decision("a", 3, "field"), decision("a", 3, "prefix")
    assert (field.options, field.least, field.most) == (("all",), 0, 1)
    assert (prefix.options, prefix.least, prefix.most) == (("first 1", "first 2", "first 3"), 1, 1)
    assert [list(dimensions(one, 3)) for one in ("all", "first 1", "first 2", "first 3", "0", "2")] == [
        *([0, 1, 2], [0], [0, 1], [0, 1, 2], [0], [2])
    ]


@pytest.mark.parametrize("grain", ["field", "prefix"])
def test_coarser_grains_keep_whole_fields_or_first_dimensions(grain: Grain) -> None:
    wide, batch = net_by(grain), rows()
    for genotype in members(grain):
        mix, dims = wide.space.mix(genotype), kept(genotype)
        if grain == "field":
            assert dims == {name: list(range(WIDTH)) if genotype[name] else [] for name in SIZES}
        else:
            assert dims == {name: list(range(int(genotype[name][0].split()[1]))) for name in SIZES}
        golden = run(without(wide, dims), batch, full(wide))
        narrow = inherited(net_by(grain, genotype), wide)
        torch.testing.assert_close(run(wide, batch, mix), golden)
        torch.testing.assert_close(run(narrow, batch), golden)
        cost = wide.cost(mix)
        assert (cost.params, cost.table_params) == counted(narrow)
        assert narrow.cost(narrow.only_mix()) == cost


@pytest.mark.parametrize("shape", [(1,), (9, 1)])
def test_a_fields_tensor_multiplies_all_its_dimensions(shape: tuple[int, ...]) -> None:
    net, batch = net_by("field"), rows()
    generator = torch.Generator().manual_seed(7)
    mix = {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name in SIZES}
    x = embedded(net, batch)
    scaled = torch.cat([x["kept"][:, 4 * n : 4 * n + 4] * mix[name] for n, name in enumerate(SIZES)], 1)
    torch.testing.assert_close(net(x, mix), net({**x, "kept": scaled}, {name: (1.0,) for name in SIZES}))
    cost = net.cost(mix)
    expected = sum(WIDTH * size * float(mix[name].mean()) for name, size in SIZES.items())
    assert float(cost.table_params) == pytest.approx(expected)


@pytest.mark.parametrize("grain", ["dimension", "field", "prefix"])
@pytest.mark.parametrize("names", [("a", "b"), ("n", "m", "c"), ("c",)])
def test_a_field_that_nothing_is_decided_of_is_kept_whole(names: tuple[str, ...], grain: Grain) -> None:
    wide, batch = net_by(grain, names=names), rows()
    rng = Random(8)
    for genotype in [wide.space.sample(rng) for _ in range(5)]:
        dims = {name: list(range(WIDTH)) for name in SIZES} | kept(genotype)
        narrow = inherited(net_by(grain, genotype, names), wide)
        assert narrow.tables.kept == dims
        golden = run(without(wide, dims), batch, full(wide))
        torch.testing.assert_close(run(wide, batch, wide.space.mix(genotype)), golden)
        torch.testing.assert_close(run(narrow, batch), golden)
        assert (narrow.cost(narrow.only_mix()).params, narrow.cost(narrow.only_mix()).table_params) == counted(narrow)


def full(net: GatedNet) -> Mix:
    """All dimensions of what is decided."""
    decisions = net.space.decisions.items()
    return net.space.mix({name: one.options[-one.most :] for name, one in decisions})


@pytest.mark.parametrize("names", [("a", "b"), ("n", "m", "c")])
def test_tensors_leave_alone_what_is_not_decided(names: tuple[str, ...]) -> None:
    net, batch = net_by("dimension", names=names), rows()
    mix: dict[str, Tensor] = {name: torch.rand(9, WIDTH, dtype=torch.float64) for name in names}
    x = embedded(net, batch)
    mask = torch.cat([mix.get(name, torch.ones(9, WIDTH, dtype=torch.float64)) for name in SIZES], 1)
    torch.testing.assert_close(net(x, mix), net({**x, "kept": x["kept"] * mask}, full(net)))


# What is an error


def test_a_net_that_keeps_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="a net that keeps no dimension of any field has nothing to learn from"):
        net_of("", {name: () for name in SIZES})


def test_only_wide_tables_can_be_inherited_from() -> None:
    some: Genotype = {name: ("0", "1") for name in SIZES}
    with pytest.raises(ValueError, match="tables that do not keep all dimensions have none to give"):
        net_of("fm", some).inherit(net_of("fm", some))


@pytest.mark.parametrize("spec", ["logistic_regression", "nasrec", "ihas", "popularity", "googlednn"])
def test_only_hand_made_click_nets_stand_behind_gates(spec: str) -> None:
    with pytest.raises(ValueError, match="is no hand-made click net|has no"):
        method_of(spec)
