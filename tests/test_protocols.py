"""Protocols: every one is held to its contract, and each against a plain loop over a log full of equal timestamps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nascore import plugins
from nascore.protocols import TEST, TRAIN, VALID, Log, Protocol, moved_back, starts
from nascore.schema import SPLITS

NAMES = plugins.names("protocols")
Rows = tuple[NDArray[np.int32], NDArray[np.int64]]


def log(seed: int = 0, rows: int = 4_000, users: int = 60, times: int = 900) -> Rows:
    """A log in file order: some users without a row, some with one, many rows at the same time."""
    rng = np.random.default_rng(seed)
    user = np.minimum(rng.zipf(1.3, rows), users).astype(np.int32) * 2
    start = 1_500_000_000 + rng.integers(0, 20, users * 2 + 1) * 100_000
    return user, (start[user] + rng.integers(0, times, rows) * 500).astype(np.int64)


def walk(rows: Rows, chunk: int = 700) -> Log:
    def chunks() -> Iterator[Rows]:
        for at in range(0, len(rows[0]), chunk):
            yield rows[0][at : at + chunk], rows[1][at : at + chunk]

    return chunks


def ordered(rows: Rows) -> Rows:
    """By (user, timestamp, file order)."""
    order = np.lexsort((rows[1], rows[0]))
    return rows[0][order], rows[1][order]


def split(name: str, rows: Rows, chunk: int = 700) -> NDArray[np.int8]:
    """The label of each ordered row under a new instance of the protocol."""
    protocol: Protocol = plugins.load("protocols", name)()
    protocol.survey(walk(rows, chunk))
    return protocol.split(*ordered(rows))


def shown_future(protocol: type[Protocol], rows: Rows, label: NDArray[np.int8]) -> list[str]:
    """What a user's row is shown, by training, selection or histories, that was not yet there or is itself judged.

    Where equal times are no obstacle, the place of a row stands for its time.
    """
    user, timestamp = rows[0], rows[1] if protocol.strictly_earlier else np.arange(len(rows[1]))
    wrong = []
    for who in np.unique(user):
        times = [timestamp[(user == who) & (label == which)] for which in (TRAIN, VALID, TEST)]
        for before, after in ((TRAIN, VALID), (TRAIN, TEST), (VALID, TEST)):
            if len(times[before]) and len(times[after]) and times[before].max() >= times[after].min():
                wrong.append(f"user {who}: {SPLITS[before]} rows not before {SPLITS[after]} rows")
    for asked, sources in [*protocol.history_from.items(), *protocol.seen_in.items()]:
        late = [one for one in sources if one != "train" and SPLITS.index(one) >= SPLITS.index(asked)]
        wrong += [f"{asked} knows {one}" for one in late]
    return wrong


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_row_is_in_one_split(name: str, seed: int) -> None:
    rows = log(seed)
    label = split(name, rows)
    assert label.shape == rows[0].shape and label.dtype == np.int8
    assert set(label.tolist()) == {TRAIN, VALID, TEST}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_log_gives_the_same_split(name: str) -> None:
    rows = log()
    label = split(name, rows)
    assert (split(name, rows) == label).all()
    assert (split(name, rows, chunk=len(rows[0])) == label).all(), "the size of chunks must not matter"
    assert (split(name, rows, chunk=1) == label).all()


@pytest.mark.parametrize("name", NAMES)
def test_whole_users_may_come_in_any_portion(name: str) -> None:
    rows = log()
    label, (user, timestamp) = split(name, rows), ordered(rows)
    protocol: Protocol = plugins.load("protocols", name)()
    protocol.survey(walk(rows))
    parts = np.split(np.arange(len(user)), starts(user)[[3, 4, 20]])
    assert (np.concatenate([protocol.split(user[part], timestamp[part]) for part in parts]) == label).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_user_is_shown_its_own_future_unless_the_protocol_says_so(name: str) -> None:
    protocol: type[Protocol] = plugins.load("protocols", name)
    rows = log()
    wrong = shown_future(protocol, ordered(rows), split(name, rows))
    assert bool(wrong) == bool(protocol.leaks), wrong


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_says_whether_later_rows_train(name: str) -> None:
    protocol: type[Protocol] = plugins.load("protocols", name)
    rows = log()
    label, (_, timestamp) = split(name, rows), ordered(rows)
    later = timestamp[label == TRAIN].max() > timestamp[label == TEST].min()
    assert bool(later) == bool(protocol.sees or protocol.leaks)


@pytest.mark.parametrize("name", NAMES)
def test_every_split_says_what_it_knows(name: str) -> None:
    protocol: type[Protocol] = plugins.load("protocols", name)
    for known in (protocol.history_from, protocol.seen_in):
        assert set(known) == set(SPLITS)
        assert all(set(sources) <= set(SPLITS) for sources in known.values())


STRICT = [name for name in NAMES if (rule := plugins.load("protocols", name)).strictly_earlier and not rule.leaks]


@pytest.mark.parametrize("name", STRICT)
def test_rows_of_a_user_at_the_same_time_stay_together(name: str) -> None:
    rows = log(times=12)
    label, (user, timestamp) = split(name, rows), ordered(rows)
    same = (user[1:] == user[:-1]) & (timestamp[1:] == timestamp[:-1])
    assert same.mean() > 0.5
    assert (label[1:] == label[:-1])[same].all()


def test_user_temporal_equals_a_plain_loop() -> None:
    rows = log(times=40)
    user, timestamp = ordered(rows)
    golden = []
    for who in np.unique(user):
        times = timestamp[user == who].tolist()
        cuts = []
        for cut in (len(times) // 2, len(times) * 3 // 4):
            while 0 < cut < len(times) and times[cut - 1] == times[cut]:
                cut -= 1
            cuts.append(cut)
        golden += [TRAIN if place < cuts[0] else VALID if place < cuts[1] else TEST for place in range(len(times))]
    assert split("user_temporal", rows).tolist() == golden


@pytest.mark.parametrize(
    "times, golden",
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], "TTTTVVEE"),
        ([1, 2, 3, 4, 4, 6, 7, 8], "TTTVVVEE"),
        ([1, 2, 3, 4, 5, 6, 6, 6], "TTTTVEEE"),
        ([1, 4, 4, 4, 4, 4, 4, 8], "TEEEEEEE"),
        ([1, 1, 1, 1], "EEEE"),
        ([1, 2, 3], "TVE"),
        ([1, 2], "TE"),
        ([1], "E"),
    ],
)
def test_user_temporal_moves_cuts_back(times: list[int], golden: str) -> None:
    label = split("user_temporal", (np.ones(len(times), np.int32), np.array(times, np.int64)))
    assert "".join("TVE"[which] for which in label) == golden


@pytest.mark.parametrize("seed", [0, 1])
def test_leave_one_out_equals_a_plain_loop(seed: int) -> None:
    rows = log(seed, users=2_000, times=40)
    user, _ = ordered(rows)
    golden = []
    for who in np.unique(user):
        count = int((user == who).sum())
        golden += {1: [TRAIN], 2: [TRAIN, TEST]}.get(count, [TRAIN] * (count - 2) + [VALID, TEST])
    label = split("leave_one_out", rows)
    assert label.tolist() == golden
    tests = [who for who in np.unique(user) if (user == who).sum() > 1]
    assert (label == TEST).sum() == len(tests) < len(np.unique(user))


@pytest.mark.parametrize("times, golden", [([7, 7, 7, 7], "TTVE"), ([3, 2, 1], "TVE"), ([5, 5], "TE"), ([1], "T")])
def test_leave_one_out_lets_the_order_of_the_file_decide_equal_times(times: list[int], golden: str) -> None:
    label = split("leave_one_out", (np.ones(len(times), np.int32), np.array(times, np.int64)))
    assert "".join("TVE"[which] for which in label) == golden


@pytest.mark.parametrize("seed, times", [(0, 900), (1, 3), (2, 100_000), (3, 1)])
def test_global_temporal_cuts_at_the_exact_dates(seed: int, times: int) -> None:
    rows = log(seed, times=times)
    half, three_quarters = len(rows[1]) // 2, len(rows[1]) * 3 // 4
    sorted_ = np.partition(rows[1], (half, three_quarters))
    first, second = int(sorted_[half]), int(sorted_[three_quarters])
    golden = [TRAIN if t < first else VALID if t < second else TEST for t in ordered(rows)[1].tolist()]
    assert split("global_temporal", rows).tolist() == golden


def test_global_temporal_finds_dates_of_any_magnitude() -> None:
    rng = np.random.default_rng(4)
    for low, high in ((-(10**17), 10**17), (10**18, 10**18 + 7), (0, 65_536), (0, 65_535)):
        timestamp = rng.integers(low, high, 501)
        protocol = plugins.load("protocols", "global_temporal")()
        protocol.survey(walk((np.zeros(501, np.int32), timestamp)))
        assert protocol.dates == (np.sort(timestamp)[250], np.sort(timestamp)[375])


def test_authors_cuts_the_counts_of_the_public_code() -> None:
    rows = log()
    label, (user, _) = split("authors", rows), ordered(rows)
    total, early_rows, late_valid = len(user), 0, 0
    for who in np.unique(user):
        own = label[user == who]
        early = int(0.75 * len(own))
        early_rows += early
        assert TEST not in own[:early], "the first three quarters are train or valid"
        assert TRAIN not in own[early:], "the last quarter is valid or test"
        late_valid += int((own[early:] == VALID).sum())
    assert (label == TRAIN).sum() == total // 2
    assert (label == VALID).sum() == total * 3 // 4 - total // 2
    assert late_valid == total * 3 // 4 - early_rows > 0


def test_authors_draws_train_and_valid_from_the_same_period() -> None:
    user = np.repeat(np.arange(1, 201, dtype=np.int32), 40)
    label = split("authors", (user, np.tile(np.arange(40), 200).astype(np.int64))).reshape(200, 40)
    train = label[:, :30] == TRAIN
    assert abs(train[:, :15].mean() - 2 / 3) < 0.05 and abs(train[:, 15:].mean() - 2 / 3) < 0.05
    assert train.mean(axis=1).std() < 0.15, "every user has its share"


@pytest.mark.data
def test_authors_leaves_354_late_rows_of_movielens_100k_to_valid(data_folder: Path) -> None:
    table = np.loadtxt(data_folder / "ml-100k" / "u.data", dtype=np.int64)
    rows = table[:, 0].astype(np.int32), table[:, 3]
    label, (user, _) = split("authors", rows), ordered(rows)
    ends = [*starts(user)[1:], len(user)]
    late = [label[at + (end - at) * 3 // 4 : end] for at, end in zip(starts(user), ends, strict=True)]
    assert int((np.concatenate(late) == VALID).sum()) == 354


def test_runs_start_where_values_change() -> None:
    assert starts(np.array([3, 3, 5, 3, 3, 3])).tolist() == [0, 2, 3]
    assert starts(np.array([7])).tolist() == [0]
    assert starts(np.array([], np.int32)).tolist() == []


def test_a_cut_moves_back_to_the_start_of_equal_times() -> None:
    times = np.array([1, 2, 2, 2, 5], np.int64)
    assert [moved_back(cut, times) for cut in range(6)] == [0, 1, 1, 1, 4, 5]
