"""Costs and budgets over them."""

from random import Random

import pytest
import torch

from nascore.cost import Budget, Cost, parse_limits
from nascore.space import Decision, Genotype, Infeasible, Space

WIDTHS = {"16": 16, "32": 32, "64": 64}
SPACE = Space([Decision("user/0", tuple(WIDTHS)), Decision("user/1", tuple(WIDTHS)), Decision("item/0", tuple(WIDTHS))])


def price(genotype: Genotype, under: str) -> Cost:
    widths = [WIDTHS[chosen[0]] for name, chosen in genotype.items() if name.startswith(under)]
    return sum((Cost(params=10 * width, macs=width) for width in widths), Cost())


def genotype(*widths: str) -> Genotype:
    return dict(zip(SPACE.decisions, ((width,) for width in widths), strict=True))


def test_costs_add_and_scale() -> None:
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
    assert Cost(1, 2, 3) * 2 == 2 * Cost(1, 2, 3) == Cost(2, 4, 6)
    assert Cost() + Cost(macs=5) == Cost(0, 0, 5)


def test_a_cost_scaled_by_a_weight_carries_its_gradient() -> None:
    weight = torch.tensor([0.25, 0.75], requires_grad=True)
    mixed = Cost(macs=8) * weight[0] + Cost(macs=16) * weight[1]
    assert isinstance(mixed.macs, torch.Tensor)
    assert mixed.macs.item() == 14
    mixed.macs.backward()
    assert weight.grad is not None and weight.grad.tolist() == [8, 16]


def test_a_budget_limits_the_whole_and_its_parts() -> None:
    budget = Budget({"macs": 100, "user/params": 800}, price)
    assert budget.spent(genotype("16", "32", "64")) == {"macs": 112, "user/params": 480}
    assert budget.excess(genotype("16", "32", "64")) == pytest.approx(0.12)
    assert budget.excess(genotype("64", "32", "16")) == pytest.approx(max(112 / 100, 960 / 800) - 1)
    assert budget.excess(genotype("16", "16", "16")) < 0
    assert budget.explain(genotype("16", "32", "64")) == "macs 112 of 100, user/params 480 of 800"
    assert Budget({}, price).excess(genotype("64", "64", "64")) <= 0


def test_a_budget_is_only_a_smaller_space() -> None:
    narrow = SPACE.within(Budget({"macs": 100, "user/macs": 48}, price))
    by_hand = [g for g in SPACE.members() if price(g, "").macs <= 100 and price(g, "user").macs <= 48]
    assert list(narrow.members()) == by_hand
    assert 0 < len(by_hand) < SPACE.size()


def test_an_unkeepable_budget_names_the_cheapest_cost_seen() -> None:
    with pytest.raises(Infeasible, match="macs 48 of 47"):
        SPACE.within(Budget({"macs": 47}, price)).sample(Random(0))


@pytest.mark.parametrize(
    "limits, message",
    [({"flops": 1.0}, "'flops'.*params, table_params, macs"), ({"user/": 1.0}, "'user/'"), ({"macs": 0.0}, "positive")],
)
def test_a_wrong_budget_is_an_error(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(limits, price)


def test_limits_are_read_from_text() -> None:
    assert parse_limits("macs=300000, user/params=2e5") == {"macs": 300_000, "user/params": 200_000}
    assert parse_limits("") == {}


@pytest.mark.parametrize("spec", ["macs", "macs=", "macs=many", "macs:3", "params=1,macs"])
def test_limits_in_another_form_are_an_error(spec: str) -> None:
    with pytest.raises(ValueError, match="is not of the form unit=limit"):
        parse_limits(spec)
