"""NASRec's search: paths of a step, heads tuned anew on frozen features, twins, and the last training."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import comb, sqrt
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn

from components import retrain
from components.finalists import contenders, finalists
from components.run import Run
from nascore import plugins
from nascore.click_net import ClickNet, ClickTraining
from nascore.fitness import Fitness
from nascore.head_scoring import HeadScorer, HeadTuning
from nascore.methods.dnn import Dnn
from nascore.methods.nasrec import NASRec
from nascore.nasrec_net import NasRecNet
from nascore.rows import Data
from nascore.samplers.single_operator import SingleOperator
from nascore.space import Decision, Genotype, Mix, Space, key
from nascore.strategies import Strategy, Trial
from nascore.tasks.click import Click
from nascore.training import Fit

METHOD = NASRec(
    blocks=3,
    embedding=4,
    dense_sizes=(3, 5),
    sparse_sizes=(2, 3),
    tokens=2,
    fm=True,
    cap=12,
    steps=40,
    batch=32,
    fitness=Fitness(rows=150, batch=64, calibration=330),
    head=HeadTuning(batch=32, clip=0.4),
    training=ClickTraining(batch=64),
)


# Paths of a step

DECISIONS = Space(
    [
        decision
        for block in ("1", "2", "3")
        for decision in (
            Decision(f"{block}/dense/op", ("fc", "gating", "add", "dot")),
            Decision(f"{block}/dense/size", ("3", "5", "9")),
            Decision(f"{block}/dense/from", ("raw", "1", "2", "3", "4"), most=4),
            Decision(f"{block}/left", ("raw", "1", "2")),
            Decision(f"{block}/sparse/op", ("embed_fc", "attention")),
            Decision(f"{block}/merge", ("project",), 0, 1),
        )
    ]
)
DRAWS = 6_000


def opened(mix: Mix) -> Genotype:
    return {
        name: tuple(option for option, weight in zip(decision.options, mix[name], strict=True) if weight)
        for name, decision in DECISIONS.decisions.items()
    }


def drawn(seed: int = 0, count: int = DRAWS, **settings: Any) -> list[Genotype]:
    sampler = SingleOperator(DECISIONS, seed, **settings)
    return [opened(sampler(None, step)) for step in range(count)]


def connected(path: Genotype) -> bool:
    """Whether all connections of all blocks are open."""
    return all(len(path[f"{block}/dense/from"]) == 5 and len(path[f"{block}/left"]) == 3 for block in "123")


def whole(path: Genotype, block: str) -> bool:
    """Whether all operators of a block run, at their largest."""
    return len(path[f"{block}/dense/op"]) == 4 and len(path[f"{block}/sparse/op"]) == 2


def close(count: int, share: float, total: int) -> bool:
    return abs(count - share * total) < 4.5 * sqrt(max(1e-9, share * (1 - share) * total)) + 1e-9


def test_the_whole_supernet_runs_less_and_less() -> None:
    steps, seeds = 40, 150
    paths = [drawn(seed, steps + 10, warmup=steps) for seed in range(seeds)]
    for step in range(steps + 10):
        share = max(0.0, 1 - step / steps)
        at = [path[step] for path in paths]
        assert close(sum(map(connected, at)), share, seeds), step
        assert close(sum(whole(path, block) for path in at for block in "123"), share, 3 * seeds), step
    for path in (one for own in paths for one in own):
        sizes = {(len(path[f"{block}/dense/from"]) == 5, len(path[f"{block}/left"]) == 3) for block in "123"}
        assert sizes in ({(True, True)}, {(False, False)}), "one draw for the connections of all blocks"
        for block in "123":
            if whole(path, block):
                assert path[f"{block}/dense/size"] == ("9",) and path[f"{block}/merge"] == ("project",)
            else:
                assert len(path[f"{block}/dense/op"]) == len(path[f"{block}/sparse/op"]) == 1


def test_each_block_draws_by_itself() -> None:
    halfway = [SingleOperator(DECISIONS, seed, warmup=2) for seed in range(DRAWS)]
    paths = [opened(sampler(None, 1)) for sampler in halfway]
    seen = Counter((connected(path), *(whole(path, block) for block in "123")) for path in paths)
    assert len(seen) == 16 and all(close(count, 1 / 16, DRAWS) for count in seen.values())


def test_the_number_of_connections_is_one_and_a_binomial() -> None:
    paths = drawn()
    counts = Counter(len(path["2/dense/from"]) for path in paths)
    for more in range(4):
        assert close(counts[1 + more], comb(3, more) / 8, DRAWS), "at most as many as the decision allows"
    met = Counter(option for path in paths for option in path["2/dense/from"])
    assert all(close(count, 0.5, DRAWS) for count in met.values()), "any of them alike: 2.5 of 5 on average"
    for name, options in (("2/dense/op", 4), ("3/dense/size", 3), ("1/left", 3), ("1/sparse/op", 2)):
        alone = Counter(path[name] for path in paths)
        assert len(alone) == options and all(close(count, 1 / options, DRAWS) for count in alone.values())
    assert close(sum(path["1/merge"] == ("project",) for path in paths), 0.5, DRAWS)
    pairs = Counter((path["1/dense/op"], path["2/dense/op"]) for path in paths)
    assert len(pairs) == 16 and all(close(count, 1 / 16, DRAWS) for count in pairs.values())


@pytest.mark.parametrize(
    "paths, operators, connections", [("single_any", 1, 4), ("single_single", 1, 1), ("any_any", 4, 4)]
)
def test_three_strategies_open_one_or_any(clicks: Run, paths: Any, operators: int, connections: int) -> None:
    own: tuple[Any, Any] = tuple(paths.split("_"))
    found = drawn(operators=own[0], connections=own[1], count=2_000)
    assert max(len(path["1/dense/op"]) for path in found) == operators
    assert max(len(path["1/dense/from"]) for path in found) == connections
    assert min(min(len(path["1/dense/op"]), len(path["1/dense/from"])) for path in found) == 1
    if operators == 4:
        counts = Counter(len(path["1/dense/op"]) for path in found)
        assert all(close(counts[1 + more], comb(3, more) / 8, 2_000) for more in range(4))
    method = replace(METHOD, paths=paths, warmup=0.25)
    sampler = method.sampler(method.space(clicks.schema), 0)
    assert isinstance(sampler, SingleOperator) and sampler.warmup == 10
    assert (sampler.operators, sampler.connections) == own


def test_a_supernet_of_single_operators_learns_from_any(clicks: Run) -> None:
    method = replace(METHOD, paths="any_any")
    supernet = method.supernet(clicks.schema, method.space(clicks.schema), 0)
    fit = Fit(supernet, method.task(clicks.schema), clicks.rows("train"), method.train, 0)
    assert fit.advance(20) > 0


# Heads tuned anew


@pytest.fixture(scope="module")
def trained(clicks: Run) -> NasRecNet:
    """A supernet after some steps."""
    train = clicks.rows("train")
    supernet = METHOD.supernet(train.schema, METHOD.space(train.schema), 1)
    Fit(supernet, METHOD.task(train.schema), train, METHOD.train, 1).advance(25)
    assert isinstance(supernet.net, NasRecNet)
    return supernet.net.eval()


def genotypes(net: NasRecNet, count: int, seed: int = 0) -> list[Genotype]:
    rng = Random(seed)
    drawn = [net.space.sample(rng) for _ in range(count - count // 2)]
    return drawn + [net.space.mutate(rng.choice(drawn), rng, times=2) for _ in range(count // 2)]


def scorer(net: NasRecNet, run: Run, method: NASRec = METHOD, room: int = 1 << 30) -> Callable[..., list[float]]:
    return method.scorer(net, Click(), run.rows("train"), run.rows("valid"), room)


def by_hand(net: NasRecNet, run: Run, genotype: Genotype, method: NASRec) -> float:
    """A candidate built alone, whose last layer torch's Adagrad tunes batch by batch, then judged row by row."""
    train, valid, tuning = run.rows("train"), run.rows("valid"), method.head
    alone = method.net(train.schema, net.space.narrow(genotype)).inherit(net).eval()
    mix, read = alone.space.mix(genotype), list[Tensor]()
    alone.head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))

    def features(data: Data, first: int, end: int) -> tuple[Tensor, Tensor]:
        batch = data.batch(torch.arange(first, min(end, data.rows)))
        alone(alone.embed(batch), mix)
        assert batch.label is not None
        return read.pop(), batch.label.float()

    layer = nn.Linear(features(valid, 0, 1)[0].shape[1], 1)
    with torch.no_grad():
        layer.weight.copy_(alone.head.whole("weight"))
        layer.bias.copy_(alone.head.whole("bias"))
    optimizer = torch.optim.Adagrad(layer.parameters(), lr=tuning.learning_rate, eps=1e-2)
    steps = method.fitness.calibration // tuning.batch
    rising = int(tuning.warmup * steps)
    for step in range(steps):
        x, label = features(train, step * tuning.batch, (step + 1) * tuning.batch)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(layer(x)[:, 0], label).backward()
        if tuning.clip:
            nn.utils.clip_grad_norm_(layer.parameters(), tuning.clip)
        after = torch.pi * torch.tensor((step - rising) / (steps - rising))
        factor = (step + 1) / rising if step < rising else (1 + after.cos().item()) / 2
        optimizer.param_groups[0]["lr"] = tuning.learning_rate * factor
        optimizer.step()
    x, label = features(valid, 0, valid.rows if method.fitness.kind == "auc" else method.fitness.rows)
    logit = layer(x)[:, 0].detach()
    return roc_auc_score(label, logit) if method.fitness.kind == "auc" else -log_loss(label, logit.sigmoid())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fitness": replace(METHOD.fitness, kind="auc")},
        {"fitness": replace(METHOD.fitness, calibration=0)},
        {"head": HeadTuning(batch=48, clip=0.0, learning_rate=0.3, warmup=0.0)},
    ],
    ids=["objective", "auc", "untuned", "unclipped"],
)
def test_scores_equal_those_of_a_layer_tuned_by_torch(clicks: Run, trained: NasRecNet, changes: Any) -> None:
    method = replace(METHOD, **changes)
    candidates = genotypes(trained, 10)
    found = scorer(trained, clicks, method)(candidates)
    golden = [by_hand(trained, clicks, genotype, method) for genotype in candidates]
    assert found == pytest.approx(golden, rel=2e-5, abs=2e-5) and len({round(one, 6) for one in golden}) > 5


def test_tuning_a_head_pays(clicks: Run, trained: NasRecNet) -> None:
    candidates = genotypes(trained, 10)
    tuned = replace(METHOD, fitness=replace(METHOD.fitness, calibration=1_500))
    untuned = replace(METHOD, fitness=replace(METHOD.fitness, calibration=0))
    pairs = zip(*(scorer(trained, clicks, one)(candidates) for one in (tuned, untuned)), strict=True)
    assert sum(after > before for after, before in pairs) >= 8


@pytest.mark.parametrize("room", [0, 3_000, 1 << 30])
def test_scores_hang_on_the_genotype_alone(clicks: Run, trained: NasRecNet, room: int) -> None:
    candidates = genotypes(trained, 12)
    together = scorer(trained, clicks, room=room)(candidates)
    alone = scorer(trained, clicks, room=room)
    assert [alone([genotype])[0] for genotype in reversed(candidates)][::-1] == together
    twice = scorer(trained, clicks, room=room)([*candidates[:3], *candidates[:3]])
    assert twice[:3] == twice[3:] == together[:3]
    canonical = [METHOD.canonical(genotype) for genotype in candidates]
    assert scorer(trained, clicks, room=room)(canonical) == together, "nor on what is dead in it"
    small = replace(METHOD, fitness=replace(METHOD.fitness, batch=64))
    assert scorer(trained, clicks, small, room=room)(candidates) == pytest.approx(together, rel=1e-5)


def test_rows_are_read_and_embedded_once_for_all(
    clicks: Run, trained: NasRecNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(METHOD, fitness=replace(METHOD.fitness, batch=64))
    read, batch, embedded, embed = list[int](), Data.batch, list[int](), ClickNet.embed
    monkeypatch.setattr(Data, "batch", lambda self, rows: (read.append(len(rows)), batch(self, rows))[1])
    monkeypatch.setattr(ClickNet, "embed", lambda self, b: (embedded.append(len(b)), embed(self, b))[1])
    for count in (1, 9):
        read.clear(), embedded.clear()
        scorer(trained, clicks, small)(genotypes(trained, count))
        assert read == embedded == [64] * 5 + [64, 64, 22], "320 rows to tune on, 150 to judge on"


def test_the_supernet_is_left_as_it_was(clicks: Run, trained: NasRecNet) -> None:
    def digest() -> str:
        state = trained.state_dict()
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()

    before = digest()
    one, candidates = scorer(trained, clicks), genotypes(trained, 5)
    assert one(candidates) == one(candidates), "each call begins anew"
    assert digest() == before and not trained.training and not trained.tables.kept


def test_a_head_needs_a_batch_to_be_tuned_on(clicks: Run, trained: NasRecNet) -> None:
    method = replace(METHOD, head=HeadTuning(batch=4_000))
    run = replace(clicks, methods=(method,), budgets=("whole",))
    for found_by in (lambda: scorer(trained, clicks, method), run.check_prepared):
        with pytest.raises(ValueError, match=r"batches of 4000 rows .* and 1,600 training rows make none"):
            found_by()
    assert isinstance(scorer(trained, clicks), HeadScorer)


# Twins, and the last training


@pytest.mark.parametrize("name", ["regularized", "random", "evolution", "nsga2"])
def test_no_strategy_asks_for_twins(clicks: Run, name: str) -> None:
    method = replace(METHOD, blocks=2, fm=False, dense_sizes=(3,), sparse_sizes=(2,))
    space = method.space(clicks.schema)
    strategy: Strategy = plugins.load("strategies", name)(space, 3)
    asked, rng, raw = list[Genotype](), Random(0), list[Genotype]()
    for _ in range(12):
        batch = strategy.ask()
        strategy.tell([Trial(one, -rng.random()) for one in batch])
        asked += batch
        raw += [space.sample(rng) for _ in batch]
    names = [key(method.canonical(genotype)) for genotype in asked]
    assert len(set(names)) == len(names) > 100
    assert len({key(method.canonical(genotype)) for genotype in raw}) < len(raw), "there are twins to meet"
    assert len({method.model_id(genotype, "d") for genotype in asked}) == len(asked)


def finished(run: Run, method: NASRec, values: Sequence[Sequence[float]]) -> list[Genotype]:
    """Writes a search that found as many candidates; their trainings end at `values`, by seed."""
    members = genotypes_of(method, run, len(values))
    found = [
        {
            "model_id": method.model_id(genotype, run.schema.split_digest),
            "budget": "whole",
            "as": "regularized",
            "score": 0,
            "genotype": {name: list(chosen) for name, chosen in genotype.items()},
        }
        for genotype in members
    ]
    (run.folder / "search").write_json("candidates.json", found)
    return members


def genotypes_of(method: NASRec, run: Run, count: int) -> list[Genotype]:
    rng = Random(4)
    return [method.space(run.schema).sample(rng) for _ in range(count)]


@pytest.mark.parametrize("cap", [12, 0])
def test_the_best_is_trained_once_more_in_its_final_form(
    clicks: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: int
) -> None:
    method, rival = replace(METHOD, cap=cap), Dnn(width=8)
    run = replace(clicks, root=str(tmp_path), methods=(method, rival), seeds=(3, 5), strategies=("regularized",))
    (run.folder / "prepare").write_text("schema.json", clicks.schema.to_json())
    values = [(-0.5, -0.1), (-0.2, -0.3), (-0.4, -0.4)]
    members = finished(run, method, values)
    digest, rounds = run.schema.split_digest, []
    known = [method.model_id(genotype, digest) for genotype in members]
    theirs = rival.model_id({}, digest)

    def train_all(_: Run, stage: str, jobs: list[Any]) -> None:
        rounds.append([(job.folder, job.method["name"], job.method.get("cap"), job.seed) for job in jobs])
        for job in jobs:
            model_id = job.folder.split("/")[1]
            value = values[known.index(model_id)][run.seeds.index(job.seed)] if model_id in known else -0.6
            (run.folder / job.folder).write_json("result.json", {"value": value})

    monkeypatch.setattr(retrain, "train_all", train_all)
    retrain.main(run)
    final = method.final(run.schema).model_id(members[1], digest)
    of = {name: [f"retrain/{name}/part=0/seed={seed}" for seed in run.seeds] for name in (*known, theirs, final)}
    first = [(of[name][n], "nasrec", cap, seed) for name in known for n, seed in enumerate(run.seeds)]
    first += [(of[theirs][n], "dnn", None, seed) for n, seed in enumerate(run.seeds)]
    last = [(of[final][n], "nasrec", 0, seed) for n, seed in enumerate(run.seeds)]
    assert rounds == ([first, last] if cap else [first]), "the best by its mean over seeds, with tables without a cap"
    assert (run.folder / "retrain").read_json("models.json") == [*known, theirs, *([final] if cap else [])]
    best, other = contenders(run)
    assert (best.model_id, best.method, best.genotype) == (final, method.final(run.schema), members[1])
    assert best.candidate == known[1] == finalists(run)[1].model_id and other.model_id == theirs
    assert json.loads(json.dumps(best.method.to_json()))["cap"] == 0
