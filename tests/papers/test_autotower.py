"""AutoTower (Zhu et al., 2023): the size of its space, its tables' complexities, and ours by formulas of our own."""

from random import Random

import pytest

from nascore.cost import Cost
from nascore.methods import from_json
from nascore.methods.autotower import HEADS, HIDDEN, REDUCTIONS, AutoTower
from nascore.methods.googlednn import GoogleDNN
from nascore.schema import Column, Schema
from nascore.space import Genotype

OPTIONS = [
    *(f"mlp:{hidden}" for hidden in HIDDEN),
    *(f"elementwise:{reduction}" for reduction in REDUCTIONS),
    *(f"attention:{heads}" for heads in HEADS),
]


def schema(user: int, item: int, history: int, length: int) -> Schema:
    """So many fields of users, of items, and of an event; ids of 10 values each."""
    users = tuple(Column(f"u{n}", "user", size=10) for n in range(user))
    items = tuple(Column(f"i{n}", "item", size=10) for n in range(item))
    names = tuple(column.name for column in items[:history])
    return Schema("u0", "i0", 10, 10, users + items, "authors", history=names, history_length=length)


MOVIELENS, YELP, AMAZON = schema(4, 3, 3, 20), schema(6, 6, 6, 40), schema(1, 2, 2, 50)


@pytest.mark.parametrize("blocks", [3, 5, 7])
def test_the_space_is_as_large_as_in_the_public_code(blocks: int) -> None:
    space = AutoTower(blocks=blocks).space(MOVIELENS)
    assert space.size() == 4 * 11**2 * 16 ** (2 * blocks - 2)
    assert list(space.decisions) == [
        "user/pool",
        *(f"{side}/{block}" for side in ("user", "item") for block in range(blocks)),
    ]
    assert set(space.decisions["user/1"].options) == set(OPTIONS) and len(OPTIONS) == 16
    assert not any("elementwise" in option for option in space.decisions["item/0"].options)


def test_the_space_follows_the_data_and_the_settings() -> None:
    assert AutoTower(blocks=5).space(schema(4, 3, 0, 0)).size() == 11**2 * 16**8, "without a history there is no pool"
    assert AutoTower(blocks=3, shortcuts=False).space(MOVIELENS).size() == 4 * 11**6, "a block of one input has 11"
    towers = AutoTower(blocks=2, item_blocks=4).space(MOVIELENS)
    assert towers.size() == 4 * 11**2 * 16**4 and "item/3" in towers.decisions and "user/2" not in towers.decisions
    for blocks in (0, -1):
        with pytest.raises(ValueError, match="not 1 <= item_blocks"):
            AutoTower(item_blocks=blocks)


def genotype(pool: str, user: list[str], item: list[str]) -> Genotype:
    blocks = {
        f"{side}/{n}": (spec,) for side, specs in (("user", user), ("item", item)) for n, spec in enumerate(specs)
    }
    return {"user/pool": (pool,), **blocks}


TABLE_10 = {
    "ML-100K": (
        MOVIELENS,
        genotype(
            "self_attention_pool",
            ["mlp:512", "attention:1", "attention:4"],
            ["mlp:128", "mlp:512", "attention:1"],
        ),
        (".102", ".167", ".123", ".063"),
        ("0.10", "0.17", "0.12", "0.06"),
    ),
    "ML-1M": (
        MOVIELENS,
        genotype(
            "self_attention_pool",
            ["attention:3", "elementwise:product", "mlp:128"],
            ["mlp:512", "mlp:64", "attention:2"],
        ),
        (".063", ".138", ".089", ".048"),
        ("0.06", "0.14", "0.09", "0.05"),
    ),
    "Yelp": (
        YELP,
        genotype(
            "self_attentive_pool",
            ["mlp:32", *(f"elementwise:{how}" for how in ("mean", "product", "max", "min", "max")), "attention:3"],
            [
                "attention:2",
                "elementwise:product",
                "elementwise:max",
                "mlp:1024",
                "elementwise:mean",
                "attention:2",
                "mlp:256",
            ],
        ),
        (".068", ".237", ".495", ".257"),
        ("0.07", "0.24", "0.50", "0.26"),
    ),
    "Amazon": (
        AMAZON,
        genotype(
            "self_attentive_pool",
            [
                "attention:1",
                "elementwise:mean",
                "elementwise:product",
                "attention:2",
                "elementwise:min",
                "mlp:32",
                "attention:1",
            ],
            [
                "attention:2",
                *["elementwise:mean"] * 2,
                "elementwise:product",
                "attention:1",
                "elementwise:mean",
                "mlp:256",
            ],
        ),
        (".050", ".064", ".161", ".084"),
        ("0.05", "0.06", "0.16", "0.08"),
    ),
}


@pytest.mark.parametrize("data", TABLE_10)
def test_table_10_is_computed_to_the_digit(data: str) -> None:
    fields, best, fine, printed = TABLE_10[data]
    towers = AutoTower().paper_meter(fields, best)
    millions = [float(n) / 1e6 for side in ("user", "item") for n in (towers[side].params, towers[side].macs / 2)]
    assert [f"{value:.3f}".lstrip("0") for value in millions] == list(fine)
    assert [f"{value:.2f}" for value in millions] == list(printed)


@pytest.mark.parametrize(
    "fields, costs",
    [
        (
            MOVIELENS,
            {"pool:sum": (480, 0), "self_attentive_pool": (24_490, 3_312), "self_attention_pool": (112_040, 10_368)},
        ),
        (
            YELP,
            {
                "pool:sum": (1_920, 0),
                "self_attentive_pool": (190_100, 13_152),
                "self_attention_pool": (893_600, 41_088),
            },
        ),
        (
            AMAZON,
            {"pool:sum": (800, 0), "self_attentive_pool": (28_025, 2_656), "self_attention_pool": (184_450, 5_824)},
        ),
    ],
    ids=["MovieLens", "Yelp", "Amazon"],
)
def test_poolings_cost_what_the_public_code_counts(fields: Schema, costs: dict[str, tuple[int, int]]) -> None:
    meter = AutoTower().paper_meter
    stem = 16 * (len(fields.of("user")) + len(fields.history))
    for pool, (flops, params) in {**costs, "pool:mean": costs["pool:sum"]}.items():
        found = meter(fields, {"user/pool": (pool,)})["user"]
        assert (found.macs / 2 - stem * 32, found.params - (stem + 1) * 64) == (flops, params)


@pytest.mark.parametrize("inputs", range(1, 8))
def test_blocks_cost_what_the_public_code_counts(inputs: int) -> None:
    """The table of costs that the code looks up: batch norm, 64, is part of every block, the last one's too."""
    meter, n = AutoTower().paper_meter, inputs
    stem = meter(MOVIELENS, {"user/pool": ("pool:sum",)})["item"]
    assert stem == Cost(params=49 * 64, macs=48 * 64)
    for spec in OPTIONS:
        kind, _, value = spec.partition(":")
        if kind == "mlp":
            h = int(value)
            golden = (64 * n * h + h + 64 * h + 64 + 128, 64 * n * h + 64 * h + 64)
        elif kind == "elementwise":
            golden = (4_288, 4_096 + {"mean": 64, "product": 64 * n}.get(value, 0) + 64)
        else:
            k = int(value)
            golden = (k * (1_560 + 520) + 512 * n * k + 64 + 128, k * (2_048 * n + 16 * n * n) + 512 * n * k + 64)
        found = meter(MOVIELENS, {"user/pool": ("pool:sum",), f"item/{inputs - 1}": (spec,)})["item"]
        assert (found.params - stem.params, found.macs - stem.macs) == golden


def by_hand(fields: Schema, chosen: Genotype) -> tuple[Cost, Cost]:
    """Our own cost of both towers: linear maps, products of matrices and attention, with all their weights."""
    event, length, costs = 16 * len(fields.history), fields.history_length, []
    for side, width in (("user", 16 * len(fields.of("user")) + event), ("item", 16 * len(fields.of("item")))):
        params, macs = (width + 1) * 64, width * 64
        if side == "user":
            pool = chosen["user/pool"][0]
            if pool == "self_attentive_pool":
                params, macs = params + event * (event + 1), macs + length * (event * event + 2 * event)
            elif pool == "self_attention_pool":
                params += 3 * event * (event + 1)
                macs += 2 * length * event**2 + length**2 * event + length**2 + length * event + event**2
        specs = [one for name, (one,) in chosen.items() if name.startswith(f"{side}/") and name != "user/pool"]
        for n, spec in enumerate(specs, 1):
            kind, _, value = spec.partition(":")
            if kind == "mlp":
                h = int(value)
                params, macs = params + (64 * n + 1) * h + (h + 1) * 64, macs + 64 * n * h + h * 64
            elif kind == "elementwise":
                params, macs = params + 65 * 64, macs + 64 * 64
            else:
                k = int(value)
                params += 4 * k * 65 * 8 + (8 * k * n + 1) * 64
                macs += 4 * k * n * 64 * 8 + 2 * k * n * n * 8 + 8 * k * n * 64
            params += 128 * (n < len(specs))
        costs.append(Cost(params, 160 * len(fields.of(side)), macs))  # type: ignore[arg-type]
    return costs[0], costs[1]


@pytest.mark.parametrize("fields", [MOVIELENS, YELP, AMAZON], ids=["MovieLens", "Yelp", "Amazon"])
def test_our_cost_equals_formulas_by_hand(fields: Schema) -> None:
    method, rng = AutoTower(blocks=4, item_blocks=3), Random(0)
    price, space = method.price(fields), method.space(fields)
    pools = [{"user/pool": (pool,)} for pool in space.decisions["user/pool"].options]
    for chosen in [{**space.sample(rng), **pools[n % 4]} for n in range(12)]:
        assert (price(chosen, "user"), price(chosen, "item")) == by_hand(fields, chosen)


def test_budgets_are_those_of_table_3_in_macs() -> None:
    assert AutoTower().limits("L") == {"params": 0.24e6, "macs": 2 * 0.15e6}
    assert AutoTower().limits("M") == {"params": 0.48e6, "macs": 2 * 0.28e6}
    assert AutoTower().limits("H") == {"params": 1.20e6, "macs": 2 * 0.80e6}


@pytest.mark.parametrize(
    "fields, blocks, shares",
    [
        (MOVIELENS, 3, (0.56, 0.94, 1.0)),
        (MOVIELENS, 5, (0.22, 0.62, 1.0)),
        (MOVIELENS, 7, (0.05, 0.29, 0.93)),
        (YELP, 5, (0.14, 0.38, 0.75)),
        (YELP, 7, (0.03, 0.17, 0.68)),
        (AMAZON, 5, (0.23, 0.56, 1.0)),
        (AMAZON, 7, (0.05, 0.26, 0.93)),
    ],
)
def test_budgets_bind_as_often_as_in_the_public_code(
    fields: Schema, blocks: int, shares: tuple[float, float, float]
) -> None:
    method, rng = AutoTower(blocks=blocks), Random(0)
    space = method.space(fields)
    costs = [sum(method.paper_meter(fields, space.sample(rng)).values(), Cost()) for _ in range(2_000)]
    for name, share in zip("LMH", shares, strict=True):
        limits = method.limits(name)
        kept = sum(cost.params <= limits["params"] and cost.macs <= limits["macs"] for cost in costs)
        assert kept / 2_000 == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize(
    "fields, size, millions",
    [
        (MOVIELENS, "L", 0.21),
        (MOVIELENS, "M", 0.43),
        (MOVIELENS, "H", 1.57),
        (YELP, "L", 0.24),
        (YELP, "M", 0.50),
        (YELP, "H", 1.70),
        (AMAZON, "L", 0.19),
        (AMAZON, "M", 0.39),
        (AMAZON, "H", 1.49),
    ],
)
def test_googlednn_has_the_parameters_of_table_4(fields: Schema, size: str, millions: float) -> None:
    cost = GoogleDNN(size=size).price(fields)({}, "")  # type: ignore[arg-type]
    assert round(float(cost.params) / 1e6, 2) == millions


def test_the_preset_of_the_authors_follows_their_code() -> None:
    authors = from_json({"name": "autotower", **AutoTower.presets["authors"]})
    chosen = genotype("self_attention_pool:positions=true,output=true,dropout=0.2", [], [])
    assert chosen["user/pool"][0] in authors.space(MOVIELENS).decisions["user/pool"].options
    assert authors.space(MOVIELENS).size() == AutoTower().space(MOVIELENS).size()
    price = authors.price(MOVIELENS)
    pools = {pool.partition(":")[0]: pool for pool in authors.space(MOVIELENS).decisions["user/pool"].options}
    for name, params in (("self_attentive_pool", 3_312), ("self_attention_pool", 10_368)):
        some = {**authors.space(MOVIELENS).sample(Random(0)), "user/pool": (pools[name],)}
        assert price(some, "user/pool").params == params
    assert (authors.train.clip, authors.train.weight_decay, authors.stop.kind) == (5.0, 1e-6, "loss@1")
