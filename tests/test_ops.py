"""Operators: what each inherits by being in the gallery, golden values against plain loops, and slices under `live`."""

import math
import warnings
from collections.abc import Callable
from random import Random

import pytest
import torch
from torch import Tensor, nn

from nascore import plugins
from nascore.cost import Cost
from nascore.ops import Elastic, Live, Op, Spans, build, inputs_of
from nascore.ops.mlp import Mlp
from nascore.ops.transformer_layer import TransformerLayer

SPECS = [spec for name in plugins.names("ops") for spec in plugins.load("ops", name).examples]
POOLS = [spec for spec in SPECS if plugins.load("ops", spec.partition(":")[0]).signature == "BTD,BT -> BD"]
HISTORY = [spec for spec in POOLS if not issubclass(plugins.load("ops", spec.partition(":")[0]), TransformerLayer)]
ELASTIC = [spec for spec in SPECS if issubclass(plugins.load("ops", spec.partition(":")[0]), Elastic)]
SIZES = (
    {"B": 7, "N": 5, "T": 5, "D": 12, "O": 6, "E": 4, "M": 3, "L": 5, "R": 7, "K": 2},
    {"B": 1, "N": 1, "T": 20, "D": 8, "O": 8, "E": 3, "M": 5, "L": 2, "R": 2, "K": 1},
    {"B": 4, "N": 8, "T": 20, "D": 48, "O": 64, "E": 16, "M": 9, "L": 13, "R": 4, "K": 8},
    {"B": 3, "N": 2, "T": 1, "D": 3, "O": 1, "E": 2, "M": 1, "L": 1, "R": 6, "K": 3},
)
COUNTED = ("linear", "addmm", "mm", "matmul", "bmm", "einsum", "conv")

every_spec = pytest.mark.parametrize("spec", SPECS)
every_size = pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "".join(f"{k}{v}" for k, v in sizes.items()))


def built(spec: str, sizes: dict[str, int]) -> Op:
    """The operator in double precision and eval mode, its weights drawn from one seed."""
    torch.manual_seed(0)
    letters = set(plugins.load("ops", spec.partition(":")[0]).signature) & set(sizes) - {"B"}
    return build(spec, **{letter: sizes[letter] for letter in letters}).double().eval()


def drawn(op: Op, sizes: dict[str, int], seed: int = 1) -> list[Tensor]:
    """An input for each word of the signature; masks are padded left, the first history empty and the last one full."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for word in inputs_of(op.signature):
        shape = [sizes[letter] for letter in word]
        if word == "BT":
            lengths_B = torch.randint(0, sizes["T"] + 1, (sizes["B"],), generator=generator)
            lengths_B[0], lengths_B[-1] = 0, sizes["T"]
            inputs.append(padded_left(lengths_B, sizes["T"]))
        else:
            inputs.append(torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True))
    return inputs


def padded_left(lengths_B: Tensor, length: int) -> Tensor:
    return torch.arange(length) >= length - lengths_B[:, None]


def floats(inputs: list[Tensor]) -> list[Tensor]:
    return [x for x in inputs if x.is_floating_point()]


@every_size
@every_spec
def test_the_output_has_the_shape_of_the_signature(spec: str, sizes: dict[str, int]) -> None:
    op = built(spec, sizes)
    output = op(*drawn(op, sizes))
    assert output.shape == tuple(sizes[letter] for letter in op.signature.partition("->")[2].strip())
    assert output.isfinite().all()


@every_spec
def test_gradients_reach_every_weight_and_input_and_are_finite(spec: str) -> None:
    for sizes in SIZES:
        op = built(spec, sizes).train(sizes["B"] > 1)
        inputs = drawn(op, sizes)
        output = op(*inputs)
        (output * torch.randn_like(output)).sum().backward()
        for tensor in (*op.parameters(), *floats(inputs)):
            assert tensor.grad is not None and tensor.grad.isfinite().all()
            assert sizes is not SIZES[0] or tensor.grad.any(), "a weight or an input that has no effect"


@every_spec
def test_gradients_equal_finite_differences(spec: str) -> None:
    sizes = {"B": 3, "N": 3, "T": 4, "D": 3, "O": 2, "E": 3, "M": 2, "L": 2, "R": 4, "K": 2}
    op = built(spec, sizes)
    inputs = drawn(op, sizes)
    names = [name for name, _ in op.named_parameters()]

    def call(*values: Tensor) -> Tensor:
        given = iter(values[len(names) :])
        called = [next(given) if x.is_floating_point() else x for x in inputs]
        return torch.func.functional_call(op, dict(zip(names, values, strict=False)), tuple(called))

    weights = [weight.detach().clone().requires_grad_() for weight in op.parameters()]
    assert torch.autograd.gradcheck(call, (*weights, *floats(inputs)), fast_mode=True)


@every_size
@every_spec
def test_the_declared_cost_is_what_is_counted(spec: str, sizes: dict[str, int]) -> None:
    op = built(spec, sizes)
    weights = sum(weight.numel() for weight in op.parameters())
    assert op.cost() == Cost(params=weights, macs=counted_macs(op, sizes) + op.core_macs())


def counted_macs(op: Op, sizes: dict[str, int]) -> int:
    """Multiply-adds of linear maps and matrix products for one example, as fvcore counts them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts and traces, both deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(op, tuple(drawn(op, {**sizes, "B": 1})))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return int(sum(analysis.by_operator()[name] for name in COUNTED))


@every_spec
def test_an_example_does_not_see_the_others(spec: str) -> None:
    op = built(spec, SIZES[0])
    one, other = drawn(op, SIZES[0], seed=1), drawn(op, SIZES[0], seed=2)
    for row in range(SIZES[0]["B"]):
        mixed = [torch.cat([y[:row], x[row : row + 1], y[row + 1 :]]) for x, y in zip(one, other, strict=True)]
        torch.testing.assert_close(op(*mixed)[row], op(*one)[row])


@pytest.mark.parametrize("spec", HISTORY)
def test_padding_changes_nothing(spec: str) -> None:
    wide, narrow = built(spec, {"T": 20, "D": 6}), built(spec, {"T": 5, "D": 6})
    with torch.no_grad():
        for weight, source in zip(narrow.parameters(), wide.parameters(), strict=True):
            weight.copy_(source[tuple(slice(-size, None) for size in weight.shape)])
    x_BTD, mask_BT = torch.randn(6, 5, 6, dtype=torch.float64), padded_left(torch.arange(6), 5)
    for padding in (0.0, 1e3):
        padded_BTD = torch.full((6, 20, 6), padding, dtype=torch.float64)
        padded_BTD[:, 15:] = torch.where(mask_BT[:, :, None], x_BTD, padding)
        output = wide(padded_BTD, padded_left(torch.arange(6), 20))
        torch.testing.assert_close(output, narrow(x_BTD, mask_BT))
        assert (output[0] == 0).all(), "an empty history must give exactly 0"


def test_costs_are_those_of_the_paper() -> None:
    def params(spec: str, **sizes: int) -> int:
        return int(build(spec, **sizes).cost().params)

    for inputs in range(1, 8):
        for heads in range(1, 5):
            expected = heads * (1560 + 520) + 512 * inputs * heads + 64
            assert params(f"attention:{heads}", N=inputs, D=64, O=64) == expected
        for hidden in (16, 1024):
            assert params(f"mlp:{hidden}", N=inputs, D=64, O=64) == 64 * inputs * hidden + hidden + 64 * hidden + 64
        assert params("elementwise:max", N=inputs, D=64, O=64) == 4160
    assert params("self_attentive_pool:positions=true", T=20, D=48) == 3312
    assert params("self_attention_pool:positions=true,output=true", T=20, D=48) == 10368
    attention = build("attention:3", N=5, D=64, O=64)
    assert attention.core_macs() == 2 * 3 * 5 * 5 * 8
    assert attention.macs() == 5 * 64 * 4 * 24 + 2 * 3 * 5 * 5 * 8 + 5 * 24 * 64
    pool = build("self_attention_pool:output=true", T=20, D=48)
    assert pool.macs() == 2 * 20 * 48 * 48 + 20 * 20 * 48 + 20 * 20 + 20 * 48 + 2 * 48 * 48


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score) for score in scores]
    return [exponential / sum(exponentials) for exponential in exponentials]


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def through(weight: Tensor, bias: Tensor | None, x: list[float]) -> list[float]:
    """One vector through a linear map."""
    biases = [0.0] * len(weight) if bias is None else bias.tolist()
    return [dot(row, x) + b for row, b in zip(weight.tolist(), biases, strict=True)]


def weighted(weights: list[float], rows: list[list[float]]) -> list[float]:
    return [dot(weights, list(column)) for column in zip(*rows, strict=True)]


def assert_equals_loop(output: Tensor, rows: list[list[float]]) -> None:
    torch.testing.assert_close(output, torch.tensor(rows, dtype=torch.float64))


@pytest.mark.parametrize(
    ("how", "reduce"),
    [("sum", sum), ("mean", lambda xs: sum(xs) / len(xs)), ("product", math.prod), ("max", max), ("min", min)],
)
def test_elementwise_equals_a_loop(how: str, reduce: Callable[[list[float]], float]) -> None:
    op = built(f"elementwise:{how}", {"N": 4, "D": 3, "O": 2})
    (x_BND,) = drawn(op, {"B": 5, "N": 4, "D": 3})
    reduced = [[reduce(list(column)) for column in zip(*example, strict=True)] for example in x_BND.tolist()]
    assert_equals_loop(op(x_BND), [through(op.align.weight, op.align.bias, x) for x in reduced])


def test_the_gradient_of_a_product_is_right_where_inputs_are_zero() -> None:
    op = built("elementwise:product", {"N": 3, "D": 2, "O": 1})
    x_BND = torch.tensor([[[0.0, 2.0], [3.0, 0.0], [5.0, 0.0]]], dtype=torch.float64, requires_grad=True)
    op(x_BND).sum().backward()
    first, second = op.align.weight[0].tolist()
    expected = [[[15 * first, 0 * second], [0.0, 0.0], [0.0, 0.0]]]
    torch.testing.assert_close(x_BND.grad, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("inputs", [1, 2, 5])
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_equals_a_loop(heads: int, inputs: int) -> None:
    op = built(f"attention:{heads}", {"N": inputs, "D": 6, "O": 4})
    (x_BND,) = drawn(op, {"B": 3, "N": inputs, "D": 6})
    weights, biases = op.project.weight.view(4, heads, 8, 6), op.project.bias.view(4, heads, 8)
    rows = []
    for example in x_BND.tolist():
        flat = []
        for head in range(heads):
            q, k, v, residual = ([through(weights[i, head], biases[i, head], x) for x in example] for i in range(4))
            attention = [softmax([dot(query, key) / math.sqrt(8) for key in k]) for query in q]
            mixed = [weighted(a, v) for a in attention]
            flat += [mixed[n][w] + residual[n][w] for w in range(8) for n in range(inputs)]
        rows.append(through(op.align.weight, op.align.bias, flat))
    assert_equals_loop(op(x_BND), rows)


@pytest.mark.parametrize("heads", [0, -1])
def test_attention_needs_a_head(heads: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        build(f"attention:{heads}", N=2, D=4, O=4)


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_pools_equal_a_loop(how: str) -> None:
    op = built(f"pool:{how}", {"T": 5, "D": 3})
    x_BTD, mask_BT = drawn(op, {"B": 6, "T": 5, "D": 3})
    rows = []
    for history in events(x_BTD, mask_BT):
        share = 1 / len(history) if how == "mean" and history else 1.0
        rows.append(weighted([share] * len(history), history) if history else [0.0] * 3)
    assert_equals_loop(op(x_BTD, mask_BT), rows)


def events(x_BTD: Tensor, mask_BT: Tensor) -> list[list[list[float]]]:
    """The valid positions of each history."""
    return [x_TD[mask_T].tolist() for x_TD, mask_T in zip(x_BTD, mask_BT, strict=True)]


@pytest.mark.parametrize("positions", [False, True])
def test_self_attentive_pooling_equals_a_loop(positions: bool) -> None:
    op = built(f"self_attentive_pool:positions={positions}", {"T": 5, "D": 3})
    x_BTD, mask_BT = drawn(op, {"B": 6, "T": 5, "D": 3})
    placed_BTD = x_BTD + op.positions if positions else x_BTD
    rows = []
    for history, placed in zip(events(x_BTD, mask_BT), events(placed_BTD, mask_BT), strict=True):
        hidden = [[math.tanh(value) for value in through(op.hidden.weight, None, x)] for x in placed]
        scores = [through(op.score.weight, None, h)[0] for h in hidden]
        rows.append(weighted(softmax(scores), history) if history else [0.0] * 3)
    assert_equals_loop(op(x_BTD, mask_BT), rows)


class Scaled(nn.Module):
    """Stands for one draw of dropout: known factors on the attention weights."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("output", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_self_attention_pooling_equals_a_loop_over_all_positions(positions: bool, output: bool, dropped: bool) -> None:
    op = built(f"self_attention_pool:positions={positions},output={output},dropout=0.5", {"T": 5, "D": 3})
    x_BTD, mask_BT = drawn(op, {"B": 6, "T": 5, "D": 3})
    kept_BTT = torch.ones(6, 5, 5, dtype=torch.float64)
    if dropped:
        kept_BTT = 2.0 * torch.randint(0, 2, kept_BTT.shape, generator=torch.Generator().manual_seed(3)).double()
        op.dropout = Scaled(kept_BTT)
    placed_BTD = x_BTD + op.positions if positions else x_BTD
    (query, key), (query_bias, key_bias) = op.query_key.weight.chunk(2), op.query_key.bias.chunk(2)
    rows = []
    for history, mask_T, kept_TT in zip(events(placed_BTD, mask_BT), mask_BT, kept_BTT, strict=True):
        q = [through(query, query_bias, x) for x in history]
        k = [through(key, key_bias, x) for x in history]
        v = [through(op.value.weight, op.value.bias, x) for x in history]
        attended = []
        for one, kept in zip(q, kept_TT[mask_T][:, mask_T].tolist(), strict=True):
            weights = softmax([dot(one, other) / math.sqrt(3) for other in k])
            mixed = weighted([weight * factor for weight, factor in zip(weights, kept, strict=True)], v)
            attended.append(through(op.output.weight, op.output.bias, mixed) if output else mixed)
        rows.append(weighted([1 / len(history)] * len(history), attended) if history else [0.0] * 3)
    assert_equals_loop(op(x_BTD, mask_BT), rows)


def test_positions_are_drawn_from_a_standard_normal() -> None:
    for pool in ("self_attentive_pool", "self_attention_pool"):
        positions = built(f"{pool}:positions=true", {"T": 50, "D": 48}).positions
        assert abs(positions.mean()) < 0.1 and abs(positions.std() - 1) < 0.1


def test_dropout_is_on_in_training_only() -> None:
    op = built("self_attention_pool:dropout=0.5", SIZES[0])
    inputs = drawn(op, SIZES[0])
    assert torch.equal(op(*inputs), op(*inputs))
    assert not torch.equal(op.train()(*inputs), op(*inputs))


def lives(op: Elastic, sizes: dict[str, int], count: int) -> list[Live]:
    """Random kept positions of some or all letters, in order; the first of all keeps nothing back."""
    rng = Random(4)
    letters = sorted(set("".join(op.axes.values())) & set(sizes))
    found: list[Live] = [{}]
    while len(found) < count:
        chosen = [letter for letter in letters if rng.random() < 0.8]
        found.append({n: sorted(rng.sample(range(sizes[n]), rng.randint(1, sizes[n]))) for n in chosen})
    return found


@pytest.mark.parametrize("spec", ELASTIC)
def test_an_operator_under_live_equals_the_narrow_one_that_inherits(spec: str) -> None:
    sizes = {"B": 4, "N": 6, "T": 4, "D": 9, "O": 7, "E": 4, "M": 5, "L": 6, "R": 8, "K": 3}
    wide = built(spec, sizes)
    assert isinstance(wide, Elastic) and set(wide.axes) == {name for name, _ in wide.named_parameters()}
    with torch.no_grad():
        for weight in wide.parameters():
            weight.normal_()
    for live in lives(wide, sizes, 21):
        kept = {**sizes, **{letter: len(positions) for letter, positions in live.items()}}
        narrow = built(spec, kept)
        assert isinstance(narrow, Elastic)
        narrow.inherit(wide, live)
        inputs = drawn(wide, kept)
        torch.testing.assert_close(wide(*inputs, live), narrow(*inputs), rtol=0, atol=1e-6)
        assert wide.cost(live) == narrow.cost()
        wide.zero_grad()
        wide(*inputs, live).square().sum().backward()
        narrow(*inputs).square().sum().backward()
        for name in wide.axes:
            whole, own = wide.get_parameter(name), narrow.get_parameter(name)
            places = torch.arange(whole.numel(), dtype=torch.float64).view(whole.shape)
            with torch.no_grad():
                remembered = whole.clone()
                whole.copy_(places)
                kept_places = wide.kept(name, live).flatten().long()
                whole.copy_(remembered)
            part = torch.zeros(whole.numel(), dtype=torch.float64).index_copy(0, kept_places, own.grad.flatten())
            torch.testing.assert_close(whole.grad.flatten(), part, rtol=0, atol=1e-6)


def test_spans_are_the_positions_they_stand_for() -> None:
    op, x = built("linear", {"D": 9, "O": 3}), torch.randn(2, 5, dtype=torch.float64)
    kept = Spans(((1, 3), (5, 8)))
    assert (
        [*kept] == [1, 2, 5, 6, 7] and len(kept) == 5 and kept[1:3] == [2, 5] and kept.shifted(2) == ((3, 5), (7, 10))
    )
    torch.testing.assert_close(op(x, {"D": kept}), op(x, {"D": [1, 2, 5, 6, 7]}), rtol=0, atol=0)
    assert op.cost({"D": kept}) == op.cost({"D": [*kept]}) == Cost(18, 0, 15)


def test_linear_takes_any_axes_before_the_last_and_equals_a_loop() -> None:
    op = built("linear", {"D": 4, "O": 3})
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    assert_equals_loop(op(x).flatten(0, 1), [through(op.weight, op.bias, row) for row in x.flatten(0, 1).tolist()])
    live = {"D": [1, 3], "O": [0, 2]}
    closed = torch.zeros_like(x).index_copy(2, torch.tensor([1, 3]), x[..., [1, 3]])
    torch.testing.assert_close(op(x[..., [1, 3]], live), op(closed)[..., [0, 2]])


def test_norm_counts_live_positions_only_and_equals_a_loop() -> None:
    op = built("norm", {"D": 5})
    with torch.no_grad():
        op.weight.normal_(), op.bias.normal_()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    for live in ([0, 1, 2, 3, 4], [0, 3, 4]):
        rows = []
        for row in x[..., live].flatten(0, 1).tolist():
            mean = sum(row) / len(row)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row) + 1e-5)
            scale, shift = op.weight[live].tolist(), op.bias[live].tolist()
            rows.append([(v - mean) / deviation * s + b for v, s, b in zip(row, scale, shift, strict=True)])
        assert_equals_loop(op(x[..., live], {"D": live}).flatten(0, 1), rows)


def test_maps_without_activation_are_merged_where_that_is_less_work() -> None:
    op = build("mlp:256,activation=identity", N=3, D=8, O=8)
    assert isinstance(op, Mlp) and op._merges(64) and not op._merges(1) and not op._merges(6)
    x = torch.randn(64, 3, 8)
    torch.testing.assert_close(op(x), op.align(op.widen(x.flatten(1))), rtol=0, atol=1e-5)
    op(x).square().sum().backward()
    merged = [parameter.grad.clone() for parameter in op.parameters() if parameter.grad is not None]
    op.zero_grad()
    op.align(op.widen(x.flatten(1))).square().sum().backward()
    for one, parameter in zip(merged, op.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-4, atol=1e-4)
