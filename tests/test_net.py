"""Nets: weighted choices, inheriting by name, costs by part, and elastic modules inside a net."""

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.net import Choose, Net, Row, Supernet
from nascore.ops import EVERY, Live, build
from nascore.samplers import Sampler
from nascore.schema import Batch, Column, Schema
from nascore.space import Decision, Mix, Space

SCHEMA = Schema("u", "i", 5, 7, (Column("u", "user", size=5),), "user_temporal")


class Never(nn.Module):
    """An option that must stay closed."""

    def forward(self, *xs: Tensor) -> Tensor:
        raise AssertionError("a closed option ran")

    def cost(self) -> Cost:
        return Cost(1, 2, 3)


class Times(nn.Module):
    """An option whose output and cost are told apart from others'."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.factor * x + y

    def cost(self) -> Cost:
        return Cost(params=1, macs=int(self.factor.item() * 10))


def three() -> Choose:
    return Choose({"one": Times(1.0), "2.5": Times(2.5), "four": Times(4.0)})


X, Y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)


def test_a_choice_is_the_weighted_sum_of_open_options() -> None:
    choose = three()
    assert torch.equal(choose((0.0, 1.0, 0.0), X, Y), 2.5 * X + Y)
    torch.testing.assert_close(choose((0.5, 0.0, 2.0), X, Y), 0.5 * (X + Y) + 2.0 * (4 * X + Y))
    assert choose.names == ("one", "2.5", "four")
    assert torch.equal(choose.option("2.5")(X, Y), 2.5 * X + Y), "a name may hold a dot"


def test_closed_options_do_not_run() -> None:
    choose = Choose({"no": Never(), "yes": Times(2.0), "never": Never()})
    assert torch.equal(choose((0.0, 1.0, 0.0), X, Y), 2 * X + Y)
    with pytest.raises(AssertionError, match="a closed option ran"):
        choose(torch.tensor([0.0, 1.0, 0.0]), X, Y)
    with pytest.raises(ValueError, match="zip"):
        choose((0.0, 1.0), X, Y)


def test_a_tensor_of_weights_carries_gradients() -> None:
    choose, weights = three(), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64, requires_grad=True)
    output = choose(weights, X, Y)
    torch.testing.assert_close(output, (0.2 * 1 + 0.3 * 2.5 + 0.5 * 4) * X + Y)
    output.sum().backward()
    golden = torch.stack([(factor * X + Y).sum() for factor in (1.0, 2.5, 4.0)])
    torch.testing.assert_close(weights.grad, golden)


def test_each_example_can_weigh_the_options_by_itself() -> None:
    choose, weights_BN = three(), torch.rand(6, 3, dtype=torch.float64)
    output = choose(weights_BN, X, Y)
    for row in range(6):
        golden = sum(float(w) * (f * X[row] + Y[row]) for w, f in zip(weights_BN[row], (1.0, 2.5, 4.0), strict=True))
        torch.testing.assert_close(output[row], golden)


def test_the_cost_of_a_choice_is_weights_times_prices() -> None:
    choose = three()
    assert choose.prices == (Cost(1, 0, 10), Cost(1, 0, 25), Cost(1, 0, 40))
    assert choose.cost((0.0, 1.0, 0.0)) == Cost(1, 0, 25)
    assert isinstance(choose.cost((0.0, 1.0, 0.0)).macs, int), "the cost of a path is exact"
    assert choose.cost((0.5, 0.0, 2.0)) == Cost(2.5, 0, 85)
    weights = torch.tensor([0.25, 0.25, 0.5], requires_grad=True)
    expected = choose.cost(weights)
    assert isinstance(expected.macs, Tensor) and expected.macs.item() == 28.75 and expected.params == 1
    expected.macs.backward()
    assert weights.grad is not None and weights.grad.tolist() == [10, 25, 40]
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert float(choose.cost(rows).macs) == 25, "over the batch, where examples differ"


def test_a_row_runs_in_order_and_costs_its_operators() -> None:
    row = Row(build("linear", D=3, O=4), nn.ReLU(), build("linear", D=4, O=2))
    x = torch.randn(5, 3)
    assert torch.equal(row(x), row[2](torch.relu(row[0](x))))
    assert row.cost() == Cost(3 * 4 + 4 + 4 * 2 + 2, 0, 12 + 8)
    with pytest.raises(TypeError, match="Linear has weights but no cost"):
        Row(build("linear", D=3, O=4), nn.Linear(4, 4)).cost()


class Small(Net):
    """A choice between two chains of elastic modules over widths that the space decides."""

    def __init__(self, space: Space, inputs: int = 6) -> None:
        super().__init__(SCHEMA, space)
        self.kept = space.decisions["width"].options
        self.table = nn.Embedding(5, inputs)
        self.narrow = build("linear", D=inputs, O=len(self.kept))
        self.norm = build("norm", D=len(self.kept))
        self.head = Choose({spec: build(spec, N=1, D=inputs, O=2) for spec in space.decisions["head"].options})
        self.last = build("linear", D=len(self.kept), O=2)
        self.register_buffer("seen", torch.zeros(2))

    def embed(self, batch: Batch) -> Tensor:
        return self.table(batch.keys["user"].long())

    def forward(self, x: Tensor, mix: Mix) -> Tensor:
        kept = [place for place, weight in enumerate(mix["width"]) if weight]
        live: Mapping[str, Live] = {"narrow": {"O": kept}, "norm": {"D": kept}, "last": {"D": kept}}
        if len(kept) == len(self.kept):
            live = dict.fromkeys(live, EVERY)
        y = self.norm(self.narrow(x, live["narrow"]), live["norm"])
        return self.last(torch.relu(y), live["last"]) + self.head(mix["head"], x[:, None])

    def costs(self, mix: Mix) -> dict[str, Cost]:
        kept = [place for place, weight in enumerate(mix["width"]) if weight]
        return {
            "user/narrow": self.narrow.cost({"O": kept}) + self.norm.cost({"D": kept}),
            "user/last": self.last.cost({"D": kept}),
            "head": self.head.cost(mix["head"]),
            "tables": Cost(table_params=self.table.weight.numel()),
        }

    def live(self) -> dict[str, Live]:
        kept = [int(name) for name in self.kept]
        return {"narrow": {"O": kept}, "norm": {"D": kept}, "last": {"D": kept}}


WIDE = Space(
    [Decision("width", tuple("01234567"), least=1, most=8), Decision("head", ("mlp:4", "mlp:8", "elementwise:sum"))]
)


def batch(rows: int = 9) -> Batch:
    user = torch.randint(0, 5, (rows,))
    return Batch({}, {"user": user}, user)


def drawn(net: Net) -> Net:
    with torch.no_grad():
        for value in net.state_dict().values():
            value.normal_()
    return net


def test_a_narrow_net_that_inherits_equals_the_wide_net_under_its_mix() -> None:
    wide, rng = drawn(Small(WIDE)), Random(0)
    for _ in range(20):
        genotype = WIDE.sample(rng)
        narrow = Small(WIDE.narrow(genotype)).inherit(wide)
        some = batch()
        torch.testing.assert_close(narrow.only()(some), wide.under(WIDE.mix(genotype))(some), rtol=0, atol=1e-5)
        assert torch.equal(narrow.seen, wide.seen), "buffers are inherited too"
        mix, own = WIDE.mix(genotype), narrow.space.mix(genotype)
        assert wide.cost(mix) == narrow.cost(own)
        weights = sum(parameter.numel() for parameter in narrow.parameters())
        assert wide.cost(mix).params + wide.cost(mix).table_params == weights


def test_the_cost_under_a_name_is_that_of_its_parts() -> None:
    net = Small(WIDE)
    mix = WIDE.mix({"width": ("0", "3"), "head": ("mlp:4",)})
    parts = net.costs(mix)
    assert net.cost(mix, "user") == parts["user/narrow"] + parts["user/last"]
    assert net.cost(mix, "head") == Cost(6 * 4 + 4 + 4 * 2 + 2, 0, 6 * 4 + 4 * 2)
    assert net.cost(mix) == sum(parts.values(), Cost())
    with pytest.raises(ValueError, match="no part 'item'; there are: user/narrow, user/last, head, tables"):
        net.cost(mix, "item")


def test_nothing_is_left_uncopied() -> None:
    genotype = {"width": ("1", "2"), "head": ("mlp:8",)}
    wide, narrow = Small(WIDE), Small(WIDE.narrow(genotype))
    other = Space([WIDE.decisions["width"], Decision("head", ("mlp:4", "elementwise:sum"))])
    with pytest.raises(ValueError, match=r"no weights of the right shape for: head\.options\.mlp:8\.widen\.weight, "):
        narrow.inherit(Small(other))
    with pytest.raises(ValueError, match=r"right shape for: table\.weight, head\.options\.mlp:8\.widen\.weight$"):
        Small(WIDE.narrow(genotype)).inherit(Small(WIDE, inputs=5))
    wide.norm = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="norm is a .* here and a .* in the wider net"):
        Small(WIDE.narrow(genotype)).inherit(wide)
    del wide.seen
    with pytest.raises(ValueError, match="right shape for: seen$"):
        Small(WIDE.narrow(genotype)).inherit(wide)


def test_inheriting_copies() -> None:
    wide = drawn(Small(WIDE))
    narrow = Small(WIDE.narrow({"width": tuple("01234567"), "head": ("mlp:8",)})).inherit(wide)
    before = narrow.table.weight.clone()
    with torch.no_grad():
        wide.table.weight.zero_()
    assert torch.equal(narrow.table.weight, before)


def test_only_needs_one_member() -> None:
    with pytest.raises(ValueError, match="too many values"):
        Small(WIDE).only()


def test_a_net_without_closed_form_says_so() -> None:
    with pytest.raises(TypeError, match="Small has no closed form"):
        Small(WIDE).solve(None)  # type: ignore[arg-type]


def test_a_supernet_runs_what_its_sampler_says() -> None:
    class Fixed(Sampler):
        def forward(self, x: Any, step: int) -> Mix:
            assert torch.equal(x, net.embed(some))
            return self.space.mix({"width": (str(step),), "head": ("mlp:4",)})

    net, some = drawn(Small(WIDE)), batch()
    for step in (2, 5):
        output, (mix,) = Supernet(net, Fixed(WIDE, 0))(some, step)
        assert mix == WIDE.mix({"width": (str(step),), "head": ("mlp:4",)})
        assert torch.equal(output, net.under(mix)(some))
    assert Fixed(WIDE, 0).decide(WIDE) is None
