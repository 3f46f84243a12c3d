"""The controller of `nascore.strategies.reinforce` against plain loops, and what it learns."""

import math
from collections import Counter
from random import Random

import pytest
import torch

from nascore.space import Decision, Genotype, Space, key
from nascore.strategies import Trial
from nascore.strategies.reinforce import Reinforce

SPACE = Space(
    [
        Decision("op", ("a", "b", "c")),
        Decision("some", ("p", "q", "r", "s"), least=1, most=3),
        Decision("any", ("x", "y"), least=0, most=2),
        Decision("one", ("z",)),
    ]
)
MEMBERS = list(SPACE.members())


def uniform(genotype: Genotype) -> float:
    """The probability by which `Space.sample` draws it."""
    chance = 1.0
    for name, decision in SPACE.decisions.items():
        counts = decision.most - decision.least + 1
        chance /= counts * math.comb(len(decision.options), len(genotype[name]))
    return chance


def trained(**settings: float) -> Reinforce:
    strategy = Reinforce(SPACE, 5, **settings)
    rng = Random(0)
    strategy.tell([Trial(genotype, rng.random()) for genotype in strategy.ask()])
    return strategy


def by_hand(strategy: Reinforce, genotype: Genotype) -> tuple[float, float]:
    """Log-probability and entropy of one genotype, step by step with numbers."""
    weights = {name: value.detach() for name, value in strategy.controller.named_parameters()}
    hidden = len(weights["start_H"])
    x, h, c = weights["start_H"], torch.zeros(hidden).double(), torch.zeros(hidden).double()
    step, log_probability, entropy = 0, 0.0, 0.0
    for name, decision in SPACE.decisions.items():
        single = decision.least == decision.most == 1
        opened: list[str] = []
        for place in range(1 if single else len(decision.options)):
            gates = weights["lstm.weight_ih_l0"] @ x + weights["lstm.bias_ih_l0"]
            gates = gates + weights["lstm.weight_hh_l0"] @ h + weights["lstm.bias_hh_l0"]
            i, f, g, o = gates.split(hidden)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            if single:
                choice, prior = decision.options.index(genotype[name][0]), [1.0] * len(decision.options)
            else:
                option = decision.options[place]
                choice = int(option in genotype[name])
                past = [other for other in decision.options[:place] if other in opened]
                prior = [0.0, 0.0]
                for chosen in decision.choices():
                    if [other for other in chosen if other in decision.options[:place]] == past:
                        prior[option in chosen] += 1 / math.comb(len(decision.options), len(chosen))
                opened += [option] * choice
            logits = [2.5 * math.tanh(float(row @ h) / 5.0) for row in weights["output_TKH"][step]]
            masses = [share * math.exp(logit) for share, logit in zip(prior, logits, strict=False)]
            shares = [mass / sum(masses) for mass in masses]
            log_probability += math.log(shares[choice])
            entropy -= sum(share * math.log(share) for share in shares if share)
            x, step = weights["input_TKH"][step][choice], step + 1
    return log_probability, entropy


def test_it_is_the_controller_of_the_paper() -> None:
    strategy = trained(hidden=7)
    logp_B, entropy_B = strategy.controller(MEMBERS)
    for genotype, log_probability, entropy in zip(MEMBERS, logp_B.tolist(), entropy_B.tolist(), strict=True):
        assert (log_probability, entropy) == pytest.approx(by_hand(strategy, genotype), abs=1e-12)


def test_all_members_together_are_certain() -> None:
    logp_B, _ = trained().controller(MEMBERS)
    assert logp_B.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert logp_B.exp().tolist() != pytest.approx([uniform(genotype) for genotype in MEMBERS], rel=0.1)


def test_without_opinion_it_draws_as_the_space_does() -> None:
    controller = Reinforce(SPACE, 0).controller
    torch.nn.init.zeros_(controller.output_TKH)
    assert controller(MEMBERS)[0].exp().tolist() == pytest.approx([uniform(genotype) for genotype in MEMBERS])


def test_it_draws_by_its_probabilities() -> None:
    controller = trained().controller
    drawn = Counter(map(key, controller.draw(10_000, torch.Generator().manual_seed(0))))
    expected = controller(MEMBERS)[0].exp().tolist()
    assert drawn.keys() <= set(map(key, MEMBERS))
    for genotype, share in zip(MEMBERS, expected, strict=True):
        assert drawn[key(genotype)] / 10_000 == pytest.approx(share, abs=5 * math.sqrt(share / 10_000))


def test_advantages_are_moving_standard_scores() -> None:
    strategy = Reinforce(SPACE, 0, decay=0.5)
    assert strategy.advantages([1.0, 3.0]).tolist() == pytest.approx([-1.0, 1.5 / math.sqrt(1.625)])
    assert strategy.advantages([2.25]).tolist() == [0.0]
    outlier = Reinforce(SPACE, 0).advantages([0.31, 0.30, 0.32, 0.31, -1e9])
    assert outlier.abs().max() < math.sqrt(1 / 0.05)
    assert Reinforce(SPACE, 0).advantages([2.0, 2.0]).tolist() == [0.0, 0.0]


def test_a_telling_makes_the_better_ones_likelier() -> None:
    strategy = Reinforce(SPACE, 0, update=50)
    asked = strategy.ask()
    before_B = strategy.controller(asked)[0]
    scores = [float(genotype["op"] == ("b",)) + ("q" in genotype["some"]) for genotype in asked]
    strategy.tell([Trial(genotype, score) for genotype, score in zip(asked, scores, strict=True)])
    gain_B = strategy.controller(asked)[0] - before_B
    score_B = torch.tensor(scores)
    assert gain_B[score_B == 2].mean() > 0.1
    assert gain_B[score_B == 0].mean() < -0.1


def test_entropy_keeps_it_open() -> None:
    wide, narrow = (trained(entropy=entropy).controller(MEMBERS)[1].mean() for entropy in (1.0, 0.0))
    assert wide > narrow


@pytest.mark.parametrize(
    "settings", [{"update": 0}, {"rate": 0.0}, {"decay": 1.0}, {"temperature": -1.0}, {"entropy": -1.0}]
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="reinforce: .* do not hold"):
        Reinforce(SPACE, 0, **settings)
