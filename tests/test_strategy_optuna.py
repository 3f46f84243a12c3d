"""What the two strategies by Optuna tell it, and what they make of its answers."""

import logging
from random import Random

import optuna
import pytest
from optuna.trial import TrialState

from nascore import plugins
from nascore.cost import Cost
from nascore.space import Decision, Genotype, Space, key
from nascore.strategies import Trial
from nascore.strategies.nsga2 import Nsga2
from nascore.strategies.tpe import Questions, Tpe

SPACE = Space(
    [
        *(Decision(f"op/{i}", ("a", "b", "c", "d")) for i in range(5)),
        Decision("from", ("raw", "1"), most=2),
        Decision("some", tuple("pqrstuvw"), least=2, most=4),
        Decision("many", tuple(str(number) for number in range(40))),
    ]
)


def draws(count: int, seed: int = 0, **fixed: tuple[str, ...]) -> list[Genotype]:
    rng = Random(seed)
    return [{**SPACE.sample(rng), **fixed} for _ in range(count)]


def test_only_decisions_of_many_choices_are_asked_option_by_option() -> None:
    sizes = {name: len(d.choices) for name, d in Questions(SPACE).distributions.items()}  # type: ignore[attr-defined]
    assert sizes == {
        **{f"op/{i}": 4 for i in range(5)},
        "from": 3,
        **{f"some={option}": 2 for option in "pqrstuvw"},
        "many": 40,
    }


def test_answers_come_back_as_they_were_given() -> None:
    questions = Questions(SPACE)
    for genotype in draws(200):
        assert questions.genotype(questions.answer(genotype, [0.0]).params, Random(0)) == genotype


@pytest.mark.parametrize("opened, kept", [("", 2), ("t", 2), ("rt", 2), ("pqrs", 4), ("pqrstuvw", 4)])
def test_too_many_or_too_few_open_options_are_put_right(opened: str, kept: int) -> None:
    questions = Questions(SPACE)
    params = questions.answer(draws(1)[0], [0.0]).params | {f"some={option}": option in opened for option in "pqrstuvw"}
    found = {questions.genotype(params, Random(seed))["some"] for seed in range(50)}
    assert all(chosen in SPACE.decisions["some"] and len(chosen) == kept for chosen in found)
    assert all(set(chosen) <= set(opened) or set(opened) <= set(chosen) for chosen in found)
    assert (len(found) > 1) == (len(opened) != kept)


def test_tpe_remembers_the_best_and_the_latest() -> None:
    strategy = Tpe(SPACE, 0, memory=10)
    scores = [float(place) if place % 3 else None for place in range(100, 0, -1)]
    strategy.tell([Trial(genotype, score) for genotype, score in zip(draws(100), scores, strict=True)])
    remembered = strategy.remembered()
    best = [score for score in scores if score is not None][:25]
    assert [trial.value for trial in remembered] == [*best, *scores[-10:]]
    assert all((trial.state == TrialState.PRUNED) == (trial.value is None) for trial in remembered)


def test_tpe_keeps_off_what_failed() -> None:
    strategy = Tpe(SPACE, 0)
    strategy.tell([Trial(g, None if g["op/0"] == ("a",) else 1.0) for g in draws(200)])
    assert sum(genotype["op/0"] == ("a",) for genotype in strategy.ask()) < 5


def dominated(one: Trial, other: Trial) -> bool:
    own, better = ((-(trial.score or 0.0), float(trial.cost.macs)) for trial in (one, other))
    return own != better and own[0] >= better[0] and own[1] >= better[1]


def test_nsga2_keeps_whole_fronts() -> None:
    rng = Random(1)
    strategy = Nsga2(SPACE, 0, population=20)
    trials = [Trial(g, float(rng.randrange(40)), Cost(macs=rng.randrange(40))) for g in draws(120)]
    for start in range(0, 120, 30):
        strategy.tell(trials[start : start + 30])
    survivors = strategy.survivors()
    assert len(survivors) == 20
    left, front = list(trials), list[Trial]()
    while not front or all(trial in survivors for trial in front):
        left = [trial for trial in left if trial not in front]
        front = [one for one in left if not any(dominated(one, other) for other in left)]
    assert all(trial in front or trial not in left for trial in survivors)


def test_nsga2_breeds_from_survivors() -> None:
    strategy = Nsga2(SPACE, 0)
    good = [Trial(g, 1.0, Cost(macs=1)) for g in draws(50, 1, **{"op/0": ("a",), "op/1": ("b",)})]
    poor = [Trial(g, 0.0, Cost(macs=2)) for g in draws(100, 2)]
    strategy.tell(poor[:50] + good + poor[50:])
    assert {key(trial.genotype) for trial in strategy.survivors()} == {key(trial.genotype) for trial in good}
    children = strategy.ask()
    kept = sum((child["op/0"] == ("a",)) + (child["op/1"] == ("b",)) for child in children)
    assert 0.8 * 2 * len(children) < kept < 2 * len(children)


def test_nsga2_breeds_from_those_that_did_not_fail() -> None:
    """Optuna by itself draws at random as long as a generation is not whole."""
    strategy = Nsga2(SPACE, 0)
    best = {"op/0": ("a",), "op/1": ("b",), "op/2": ("a",)}
    scores = [1.0] * 30 + [None] * 20
    strategy.tell([Trial(*trial, Cost(macs=1)) for trial in zip(draws(50, 1, **best), scores, strict=True)])
    kept = sum(child[name] == option for child in strategy.ask() for name, option in best.items())
    assert kept > 0.8 * 3 * 50


def test_nsga2_wants_scores_and_few_macs() -> None:
    def mean_of(judge: bool) -> float:
        strategy = Nsga2(SPACE, 0)
        for _ in range(8):
            asked = strategy.ask()
            heavy = [sum(genotype[f"op/{i}"] == ("a",) for i in range(5)) for genotype in asked]
            scores = [float(count if judge else 1) for count in heavy]
            costs = [Cost(macs=1 if judge else count) for count in heavy]
            strategy.tell([Trial(*trial) for trial in zip(asked, scores, costs, strict=True)])
        return sum(heavy) / len(heavy)

    assert mean_of(judge=True) > 2.5
    assert mean_of(judge=False) < 0.5


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_optuna_stays_silent_and_as_loud_as_it_was(name: str) -> None:
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    listener, before = Listener(), optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    logging.getLogger("optuna").addHandler(listener)
    try:
        strategy = plugins.load("strategies", name)(SPACE, 0)
        strategy.tell([Trial(genotype, 0.0) for genotype in strategy.ask()])
        strategy.ask()
        assert lines == []
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        logging.getLogger("optuna").removeHandler(listener)
        optuna.logging.set_verbosity(before)


@pytest.mark.parametrize(
    "name, settings", [("tpe", {"memory": 0}), ("nsga2", {"population": 1}), ("nsga2", {"crossover": 1.5})]
)
def test_settings_that_cannot_work_are_refused(name: str, settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*{next(iter(settings))}"):
        plugins.load("strategies", name)(SPACE, 0, **settings)
