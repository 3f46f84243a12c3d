"""The scorer by prefixes equals the plain one, and shares what it says it shares."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from components.run import Run
from nascore import prefix_scoring
from nascore.fitness import Fitness, scorer
from nascore.methods.autotower import AutoTower
from nascore.net import Net
from nascore.prefix_scoring import Cache, PrefixScorer, distinct
from nascore.rows import Data
from nascore.space import Genotype
from nascore.tasks.retrieval import Retrieval
from nascore.training import Fit
from nascore.two_tower import Training

BASE = AutoTower(blocks=3, item_blocks=2, embedding=4, width=8, output=6, training=Training(batch=64))
METHODS = {
    "shortcuts": BASE,
    "chain": replace(BASE, shortcuts=False),
    "authors": replace(BASE, hidden_activation="identity", positions=True, pool_dropout=0.2, rectify=True),
    "one block": replace(BASE, blocks=1, item_blocks=4, shared_stem=False, towers=2),
}
LOSS = Fitness(rows=160, batch=40, calibration=200)


class Trained:
    """A supernet after some steps, with its rows."""

    def __init__(self, method: AutoTower, run: Run, steps: int = 30) -> None:
        self.method, self.train, self.valid = method, run.rows("train"), run.rows("valid")
        space = method.space(self.train.schema)
        supernet, task = method.supernet(self.train.schema, space, 1), method.task(self.train.schema)
        Fit(supernet, task, self.train, method.train, 1).advance(steps)
        self.net, self.task = supernet.net.eval(), task.eval()
        assert isinstance(self.net, Net) and isinstance(self.task, Retrieval)

    def genotypes(self, count: int = 8, seed: int = 0) -> list[Genotype]:
        rng, space = Random(seed), self.net.space
        drawn = [space.sample(rng) for _ in range(count // 2)]
        return drawn + [space.mutate(rng.choice(drawn), rng, times=1) for _ in range(count - len(drawn))]

    def plain(self, fitness: Fitness) -> Callable[..., list[float]]:
        return scorer(self.net, self.task, self.train, self.valid, fitness)

    def shared(self, fitness: Fitness, cache_bytes: int = 1 << 30) -> PrefixScorer:
        method = replace(self.method, fitness=fitness)
        found = method.scorer(self.net, self.task, self.train, self.valid, cache_bytes)
        assert isinstance(found, PrefixScorer)
        return found


@pytest.fixture(scope="module")
def trained(prepared: Callable[..., Run]) -> Callable[..., Trained]:
    known: dict[tuple[str, str], Trained] = {}

    def of(name: str = "shortcuts", protocol: str = "user_temporal") -> Trained:
        if (name, protocol) not in known:
            known[name, protocol] = Trained(METHODS[name], prepared(protocol))
        return known[name, protocol]

    return of


def assert_equal(found: list[float], golden: list[float]) -> None:
    assert len(set(golden)) > 3
    for one, other in zip(found, golden, strict=True):
        assert abs(one - other) <= 1e-5 * max(1.0, abs(other))


@pytest.mark.parametrize("calibration", [0, 200])
@pytest.mark.parametrize("kind", ["objective", "loss@1", "recall@10"])
@pytest.mark.parametrize("name", METHODS)
def test_scores_equal_the_plain_scorers(trained: Any, name: str, kind: str, calibration: int) -> None:
    one, fitness = trained(name), replace(LOSS, kind=kind, calibration=calibration)
    one.task.ks = (10,)
    found = one.shared(fitness)(one.genotypes())
    assert_equal(found, one.plain(fitness)(one.genotypes()))


@pytest.mark.parametrize("protocol", ["global_temporal", "authors"])
@pytest.mark.parametrize("kind", ["objective", "recall@10"])
def test_they_do_under_every_protocol(trained: Any, protocol: str, kind: str) -> None:
    one, fitness = trained(protocol=protocol), replace(LOSS, kind=kind)
    one.task.ks = (10,)
    assert_equal(one.shared(fitness)(one.genotypes()), one.plain(fitness)(one.genotypes()))


@pytest.mark.parametrize("kind", ["objective", "loss@1"])
def test_the_softmax_of_all_batches_at_once_equals_that_of_each(trained: Any, kind: str) -> None:
    one, scores = trained(), {}
    for compact, fitness in ((False, Fitness(kind, 160, 8, 200)), (True, Fitness(kind, 300, 100, 200))):
        shared = one.shared(fitness)
        assert shared.compact == compact
        scores[compact] = shared(one.genotypes())
        assert_equal(scores[compact], one.plain(fitness)(one.genotypes()))
        shared.compact = False
        assert shared(one.genotypes()) == pytest.approx(scores[compact], rel=1e-5)


@pytest.mark.parametrize("temperature", [0.001, 0.02, 5.0])
def test_it_does_so_at_any_temperature(trained: Any, prepared: Any, temperature: float) -> None:
    one, fitness = Trained(METHODS["shortcuts"], prepared()), Fitness("objective", 300, 100, 200)
    one.task.temperature = temperature
    assert_equal(one.shared(fitness)(one.genotypes()), one.plain(fitness)(one.genotypes()))


@pytest.mark.parametrize("cache_bytes", [1, 40_000, 1 << 30])
def test_a_small_cache_changes_nothing_but_the_work(
    trained: Any, monkeypatch: pytest.MonkeyPatch, cache_bytes: int
) -> None:
    one = trained()
    genotypes, most = one.genotypes(20), []
    golden, shared = one.shared(LOSS)(genotypes), one.shared(LOSS, cache_bytes)
    get = Cache.get

    def watched(self: Cache, key: Any, make: Callable[[], Tensor]) -> Tensor:
        made = get(self, key, make)
        assert self.held == sum(entry.nbytes for entry in self.entries.values())
        assert self.held <= max(cache_bytes, made.nbytes)
        most.append(len(self.entries))
        return made

    monkeypatch.setattr(Cache, "get", watched)
    assert shared(genotypes) == golden
    if cache_bytes == 1:
        assert max(most) == 1
    if cache_bytes == 1 << 30:
        hits, misses = shared.cache.hits, shared.cache.misses
        assert hits > 5 and shared(genotypes) == golden
        assert shared.cache.misses == misses and shared.cache.hits > hits, "the second time all towers are there"


def test_what_poolings_make_is_in_the_cache_too(
    trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, made = trained(), list[str]()
    stem = prefix_scoring._Side._stem

    def counted(self: Any, choice: str) -> Tensor:
        made.append(choice)
        return stem(self, choice)

    monkeypatch.setattr(prefix_scoring._Side, "_stem", counted)
    genotypes, whole = one.genotypes(), one.shared(LOSS)
    golden, once = whole(genotypes), len(made)
    assert once == len(set(made))
    small = one.shared(LOSS, 1)
    assert small(genotypes) == golden
    assert len(small.cache.entries) == 1 and len(made) > 2 * once, "made anew where there is no room"


def test_the_loss_of_some_users_at_a_time_is_the_same(
    trained: Callable[..., Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trained()
    golden = one.shared(LOSS)(one.genotypes())
    monkeypatch.setattr(prefix_scoring, "CELLS", 100)
    some = one.shared(LOSS)
    assert some.compact and len(some.parts) > 3
    assert some(one.genotypes()) == pytest.approx(golden, rel=1e-6)


def test_candidates_are_scored_in_evaluation_mode(trained: Callable[..., Trained]) -> None:
    one = trained("authors")
    golden = one.shared(LOSS)(one.genotypes())
    one.net.train()
    assert one.shared(LOSS)(one.genotypes()) == golden and not one.net.training


def test_the_cache_drops_what_was_used_longest_ago() -> None:
    cache = Cache(3 * 40)
    made = []

    def get(name: str) -> None:
        cache.get((name,), lambda: made.append(name) or torch.zeros(10))  # type: ignore[func-returns-value,arg-type]

    for name in "abcabda":
        get(name)
    assert made == list("abcd") and set(cache.entries) == {("a",), ("b",), ("d",)}
    get("c")
    assert set(cache.entries) == {("a",), ("d",), ("c",)} and cache.held == 120
    assert (cache.hits, cache.misses) == (3, 5)


def test_a_prefix_is_computed_once(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, blocks, stems = trained(), [], []
    block = prefix_scoring._Side._block
    monkeypatch.setattr(
        prefix_scoring._Side, "_block", lambda self, path, before: (blocks.append(path), block(self, path, before))[1]
    )
    shared, genotypes = one.shared(LOSS), one.genotypes(20)
    for side in shared.sides.values():
        stem = side.chain.stem
        side.chain.stem = lambda *given, _stem=stem: (stems.append(given[3]), _stem(*given))[1]
    shared(genotypes)
    user = {path[:n] for path in (shared.sides["user"].chain.choices(g) for g in genotypes) for n in range(2, 5)}
    item = {path[:n] for path in (shared.sides["item"].chain.choices(g) for g in genotypes) for n in range(2, 4)}
    assert sorted(blocks) == sorted([*user, *item]), "each prefix of each tower, once"
    pools = {genotype["user/pool"][0] for genotype in genotypes}
    assert sorted(stems) == sorted([*pools, *pools, "", ""]), "calibration and judging, once a pool and once for items"


def test_twins_are_scored_once(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, scored = trained(), []
    score = PrefixScorer._score
    monkeypatch.setattr(
        PrefixScorer, "_score", lambda self, user, item: (scored.append((user, item)), score(self, user, item))[1]
    )
    genotypes = one.genotypes(6)
    twins = [genotypes[n] for n in (3, 0, 3, 5, 1, 0, 2, 4, 3)]
    found = one.shared(LOSS)(twins)
    assert len(scored) == 6 and scored == sorted(scored)
    by_hand = dict(zip(range(6), one.shared(LOSS)(genotypes), strict=True))
    assert found == [by_hand[n] for n in (3, 0, 3, 5, 1, 0, 2, 4, 3)], "in the order asked"


def test_scores_hang_on_the_genotype_alone(trained: Any) -> None:
    one = trained()
    genotypes = one.genotypes(10)
    together = one.shared(LOSS)(genotypes)
    shared = one.shared(LOSS, 30_000)
    assert [shared([genotype])[0] for genotype in reversed(genotypes)][::-1] == together


def test_the_weights_are_left_as_they_were(trained: Any) -> None:
    one = trained()

    def digest() -> str:
        state = {**one.net.state_dict(), **one.task.state_dict()}
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()

    before = digest()
    for kind in ("objective", "recall@10"):
        one.shared(replace(LOSS, kind=kind))(one.genotypes())
    assert digest() == before and not one.net.training


def test_an_unknown_fitness_is_an_error(trained: Any) -> None:
    with pytest.raises(ValueError, match="fitness 'clicks' is none of those there are: objective, loss@1, recall@1"):
        replace(LOSS, kind="clicks").check(trained().task)


def test_inputs_are_computed_in_bounded_chunks(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, sizes = trained(), []
    golden = one.shared(LOSS)(one.genotypes(4))
    monkeypatch.setattr(prefix_scoring, "CHUNK", 16)
    user_batch = Data.user_batch

    def watched(self: Data, user: Tensor, before: Tensor) -> Any:
        sizes.append(len(user))
        return user_batch(self, user, before)

    monkeypatch.setattr(Data, "user_batch", watched)
    assert one.shared(LOSS)(one.genotypes(4)) == pytest.approx(golden, rel=1e-5)
    assert max(sizes) == 16


def test_distinct_pairs_equal_a_loop() -> None:
    first, second = torch.tensor([3, 1, 3, 3, 1]), torch.tensor([0, 2, 0, 1, 2])
    a, b, where, count = distinct(first, second)
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    assert pairs == [(1, 2), (3, 0), (3, 1)] and count.tolist() == [2, 2, 1]
    assert [pairs[place] for place in where.tolist()] == list(zip(first.tolist(), second.tolist(), strict=True))
