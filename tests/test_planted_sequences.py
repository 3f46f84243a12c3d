"""The made-up sequences: their tables, their law, the best that can be expected, and what falls short of it."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from nascore import plugins
from nascore.datasets.planted_sequences import (
    CATEGORIES,
    LONGEST,
    SHORTEST,
    TAGS,
    TASTES,
    TOP,
    PlantedSequences,
)
from nascore.protocols import TEST

Numbers = NDArray[np.float64]
Ids = NDArray[np.int64]


def log_of(planted: PlantedSequences) -> pa.Table:
    return pa.concat_tables(list(planted.rows()))


def test_the_seed_alone_decides() -> None:
    planted, again, other = (PlantedSequences(users=80, seed=seed) for seed in (0, 0, 1))
    assert log_of(again).equals(log_of(planted))
    assert not log_of(other).equals(log_of(planted))
    assert next(again.entities("item")).equals(next(planted.entities("item")))
    assert not next(other.entities("item")).equals(next(planted.entities("item")))
    assert again.optimum() == planted.optimum() != other.optimum()


def test_a_spec_sets_its_size() -> None:
    planted = plugins.build("datasets", "planted_sequences:users=30,items=60", "", "error")
    log = log_of(planted)
    assert len(set(log["user"].to_pylist())) == 30 and len(next(planted.entities("item"))) == 60
    for setting, least in (("users=0", 1), ("items=49", LONGEST + TOP)):
        name = setting.partition("=")[0]
        with pytest.raises(ValueError, match=f"PlantedSequences: {name} is at least {least}"):
            plugins.build("datasets", f"planted_sequences:{setting}", "", "error")


def test_sequences_are_of_their_length_in_order_and_without_repetition() -> None:
    planted = PlantedSequences(users=300)
    log = log_of(planted)
    user, item, timestamp = (log[name].to_numpy() for name in ("user", "item", "timestamp"))
    assert np.bincount(user).tolist() == planted.activity.tolist()
    assert {planted.activity.min(), planted.activity.max()} == {SHORTEST, LONGEST}
    assert len(set(zip(user.tolist(), item.tolist(), strict=True))) == len(log)
    assert (np.diff(timestamp) >= 0).all()
    assert all((np.diff(timestamp[user == who]) > 0).all() for who in range(300))


def test_entities_hold_a_category_and_one_to_three_tags() -> None:
    planted = PlantedSequences(users=5)
    (items,) = planted.entities("item")
    assert list(planted.entities("user")) == [], "no user has a feature but its key: tastes are hidden"
    assert items["category"].to_pylist() == planted.category.tolist()
    assert set(planted.category.tolist()) == set(range(CATEGORIES))
    tags = items["tags"].to_pylist()
    assert {len(own) for own in tags} == {1, 2, 3} and all(len(set(own)) == len(own) for own in tags)
    assert {tag for own in tags for tag in own} == set(range(TAGS))
    assert [[tag in own for tag in range(TAGS)] for own in tags] == planted.tagged.tolist()
    layout = planted.layout()
    assert {feature.name for feature in layout.features} == {"user", *items.column_names}
    assert (layout.history, layout.history_length) == (("item", "category", "tags"), 20)


def test_preferences_are_the_sum_of_the_terms() -> None:
    planted = PlantedSequences(users=1, items=60)
    taste, last = np.array([0, 3, 3, 7]), np.array([-1, -1, 5, 59])
    preferred = planted.preferences(taste, last)
    for row in range(4):
        for item in range(60):
            led = planted.leading[last[row], item] if last[row] >= 0 else 0.0
            assert preferred[row, item] == pytest.approx(planted.liking[taste[row], item] + led)


def test_likings_hang_on_category_and_tags_and_average_to_nothing() -> None:
    planted = PlantedSequences(users=1, items=2_000)
    np.testing.assert_allclose(planted.liking.mean(0), 0, atol=1e-12)
    many = planted.tagged.sum(1, keepdims=True)
    known = np.concatenate([np.eye(CATEGORIES)[planted.category], planted.tagged / many**0.5], axis=1)
    told = known @ np.linalg.lstsq(known, planted.liking.T, rcond=None)[0]
    np.testing.assert_allclose(told.T, planted.liking, atol=1e-9)
    for kept in (known[:, :CATEGORIES], known[:, CATEGORIES:]):
        rest = planted.liking.T - kept @ np.linalg.lstsq(kept, planted.liking.T, rcond=None)[0]
        assert rest.std() > 0.5, "neither alone tells them"


@pytest.mark.parametrize("place", [0, 1, 5])
def test_events_follow_the_softmax(place: int) -> None:
    """The mean log-likelihood of what was drawn is that of the law, the negated entropy."""
    planted = PlantedSequences(users=4_000, items=100)
    drawn, everyone = planted.drawn, np.arange(4_000)
    logits = planted.preferences(planted.taste, drawn[:, place - 1] if place else np.full(4_000, -1))
    np.put_along_axis(logits, drawn[:, :place], -1e9, axis=1)
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    expected = (np.exp(logits) * logits).sum(1)
    spread = np.sqrt(((np.exp(logits) * logits**2).sum(1) - expected**2).sum()) / len(logits)
    assert abs(logits[everyone, drawn[:, place]].mean() - expected.mean()) < 4 * spread


def hits(planted: PlantedSequences, score: Callable[[int, Ids], Numbers]) -> float:
    """The share of users whose last item is among the ten best that were not there before."""
    found = []
    for who, (events, many) in enumerate(zip(planted.drawn, planted.activity, strict=True)):
        past = events[: many - 1]
        scores = score(who, past).copy()
        scores[past] = -np.inf
        found.append(events[many - 1] in np.argpartition(-scores, TOP)[:TOP])
    return float(np.mean(found))


def test_the_optimum_is_what_the_law_hits() -> None:
    planted = PlantedSequences(users=3_000, items=80)
    by_taste = hits(planted, lambda who, past: planted.preferences(planted.taste[who : who + 1], past[-1:])[0])
    assert abs(by_taste - planted.optimum()) < 4 * (0.25 / 3_000) ** 0.5
    told = np.eye(TASTES)[planted.taste]
    assert planted.optimum(told) == pytest.approx(planted.optimum())


def test_the_whole_past_tells_the_taste() -> None:
    planted = PlantedSequences(users=200, items=60)
    belief, drawn = planted.belief(), planted.drawn
    np.testing.assert_allclose(belief.sum(1), 1)
    golden, nothing = np.zeros(TASTES), np.array([-1])
    events = drawn[3, : planted.activity[3] - 1]
    for taste in range(TASTES):
        for place, item in enumerate(events):
            free = [other for other in range(60) if other not in events[:place]]
            last = events[place - 1 : place] if place else nothing
            preferred = planted.preferences(np.array([taste]), last)[0]
            golden[taste] += preferred[item] - np.log(np.exp(preferred[free]).sum())
    likely = np.exp(golden - golden.max())
    np.testing.assert_allclose(belief[3], likely / likely.sum(), atol=1e-9)
    assert (belief.argmax(1) == planted.taste).mean() > 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_popularity_and_chains_fall_short_of_the_optimum(seed: int) -> None:
    """Hit@10 on the last events, which `leave_one_out` tests; the figures of docs/planted.md."""
    planted = PlantedSequences(seed=seed)
    log = log_of(planted)
    order = np.lexsort((log["timestamp"].to_numpy(), log["user"].to_numpy()))
    user, item, timestamp = (log[name].to_numpy()[order] for name in ("user", "item", "timestamp"))
    early = plugins.load("protocols", "leave_one_out")().split(user.astype(np.int32), timestamp) != TEST
    assert (~early).sum() == planted.users and (early[:-1] != early[1:]).sum() == 2 * planted.users - 1
    popular = np.bincount(item[early], minlength=planted.items).astype(float)
    follows, takers = np.zeros((planted.items, planted.items)), np.zeros((planted.items, TASTES))
    pairs = early[1:] & (user[1:] == user[:-1])
    np.add.at(follows, (item[:-1][pairs], item[1:][pairs]), 1)
    np.add.at(takers, (item, planted.taste[user]), 1)
    last = planted.drawn[np.arange(planted.users), planted.activity - 2]
    figures = {
        "told the taste": planted.optimum(),
        "of the whole past": planted.optimum(planted.belief()),
        "of the last item": planted.optimum((takers / takers.sum(1, keepdims=True))[last]),
        "of nothing": planted.optimum(np.full((planted.users, TASTES), 1 / TASTES)),
        "counts of successors": hits(planted, lambda who, past: follows[past[-1]] + popular / popular.sum()),
        "popularity": hits(planted, lambda who, past: popular),
    }
    told, whole, chain, blind, counts, popularity = figures.values()
    assert abs(told - whole) < 0.01 and whole > 0.55, figures
    assert whole - 0.1 > chain > max(blind, counts) and whole - 0.15 > counts, figures
    assert min(blind, counts) - 0.2 > popularity, figures
