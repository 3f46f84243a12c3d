"""The made-up data: its tables, its law, and what the law hides from those who cannot count or are too narrow."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from nascore.datasets.planted import ACTIVITY, STAGES, TABLES, VALUES, Planted

Numbers = NDArray[np.float64]


def log_of(planted: Planted) -> pa.Table:
    return pa.concat_tables(list(planted.rows()))


def test_the_seed_alone_decides() -> None:
    planted, again, other = Planted(), Planted("", "skip"), Planted(seed=1)
    assert log_of(again).equals(log_of(planted))
    assert not log_of(other).equals(log_of(planted))
    for side in ("user", "item"):
        assert all(one.equals(two) for one, two in zip(planted.entities(side), again.entities(side), strict=True))
    assert not np.array_equal(other.user_values, planted.user_values)


def test_users_have_as_many_events_as_their_activity_in_order_and_without_repetition() -> None:
    planted = Planted(users=50, items=80)
    log = log_of(planted)
    user, item, timestamp = (log[name].to_numpy() for name in ("user", "item", "timestamp"))
    assert np.bincount(user).tolist() == planted.activity.tolist()
    assert set(planted.activity.tolist()) == set(ACTIVITY)
    assert len(set(zip(user.tolist(), item.tolist(), strict=True))) == len(log)
    assert (np.diff(timestamp) >= 0).all()
    for who in range(50):
        assert (np.diff(timestamp[user == who]) > 0).all()


def test_entities_hold_the_features_and_events_all_look_alike() -> None:
    planted = Planted(users=5, items=7)
    (users,), (items,) = planted.entities("user"), planted.entities("item")
    assert users["user_2"].to_pylist() == planted.user_values[:, 2].tolist()
    assert items["item_3"].to_pylist() == planted.item_values[:, 3].tolist()
    assert set(items["event"].to_pylist()) == {1}
    assert planted.layout().history == ("event",)
    named = {feature.name for feature in planted.layout().features}
    assert named == {*users.column_names, *items.column_names} - {"user", "item"}, "no key is a feature"


def test_preferences_are_the_sum_of_the_tables() -> None:
    planted = Planted(users=6, items=9)
    for stage in range(len(STAGES) + 1):
        preferences = planted.preferences(stage)
        for user, values in enumerate(planted.user_values):
            for item, others in enumerate(planted.item_values):
                own = sum(planted.attraction[k, values[k], others[k]] for k in range(TABLES))
                assert preferences[user, item] == pytest.approx(own + planted.stage_attraction[stage, others[TABLES]])


def test_first_events_follow_the_softmax() -> None:
    """The mean log-likelihood of what was drawn is that of the law, the negated entropy."""
    planted = Planted(users=4_000, items=150)
    logits = planted.preferences(0)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    drawn = logits[np.arange(len(logits)), planted.draw()[:, 0]]
    expected = (np.exp(logits) * logits).sum(1)
    spread = np.sqrt(((np.exp(logits) * logits**2).sum(1) - expected**2).sum()) / len(logits)
    assert abs(drawn.mean() - expected.mean()) < 4 * spread


def test_narrow_vectors_lose_much_of_what_users_prefer() -> None:
    """Tastes spread over 45 dimensions beyond their means; the best 16 or 32 of them leave much of the variance out."""
    planted = Planted(users=1_500)
    tastes = planted.preferences(0)
    tastes -= tastes.mean(0)
    tastes -= tastes.mean(1, keepdims=True)
    strength = np.linalg.svd(tastes, compute_uv=False) ** 2
    assert int((strength > 1e-9 * strength[0]).sum()) == TABLES * (VALUES - 1)
    share = strength.cumsum() / strength.sum()
    assert share[15] < 0.5
    assert share[31] < 0.85


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counting_pays_and_popularity_does_not(seed: int) -> None:
    """Recall@50 of each user's last quarter, ranked by the law, by the law without the count, and by popularity."""
    planted = Planted(seed=seed)
    drawn, users = planted.draw(), np.arange(len(planted.activity))
    start = planted.activity * 3 // 4
    stages = np.stack([planted.preferences(stage) for stage in range(len(STAGES) + 1)])
    stage = np.searchsorted(STAGES, start, side="right")
    early = np.arange(drawn.shape[1]) < start[:, None]
    seen, relevant = np.zeros((2, *stages.shape[1:]), bool)
    for who in users:
        seen[who, drawn[who][early[who]]] = True
        relevant[who, drawn[who][~early[who] & (drawn[who] >= 0)]] = True

    def recall(scores: Numbers) -> float:
        best = np.argpartition(-np.where(seen, -np.inf, scores), 50, axis=1)[:, :50]
        return float((np.take_along_axis(relevant, best, 1).sum(1) / relevant.sum(1)).mean())

    law, blind = recall(stages[stage, users]), recall(stages.mean(0))
    popular = recall(np.broadcast_to(np.bincount(drawn[early], minlength=seen.shape[1]).astype(float), seen.shape))
    assert law > blind + 0.03 > popular + 0.1
