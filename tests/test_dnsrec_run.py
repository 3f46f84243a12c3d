"""DNS-Rec through the stages: what was killed goes on, budgets, paths, inheriting, and a run by the command line."""

from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from components import trainings, workers
from components.run import Folder, Run
from components.search import GIVEN, Search, continue_search, unsearched, write_results
from components.settings import Workers
from components.tracking import News
from components.trainings import Job, continue_training, searched, train_alone
from components.workers import open_scorer
from nascore.dnsrec_net import DEPTH, WIDTH, DNSRecNet
from nascore.methods.dnsrec import DNSRec
from nascore.methods.gru4rec import GRU4Rec
from nascore.methods.sasrec import SASRec
from nascore.space import Genotype, key, parse
from nascore.tasks.next_item import NextItem
from nascore.training import Learning
from pipelines.dnsrec import dnsrec
from tests.commands import SMALL, finish, read, report

RunWith = Callable[..., Run]
METHOD = DNSRec(
    hidden=12,
    inner=8,
    heads=2,
    ratios=(0.0, 0.5, 1 / 3),
    cooling=0.05,
    batch=32,
    steps=12,
    learner=Learning(every=3, learning_rate=0.05, weight_decay=0.0),
    training=replace(DNSRec().training, length=6, batch=256, epochs=1),
)
TIMES = {"12x8": 4e-6, "6x4": 1e-6, "8x5": 2e-6}


@pytest.fixture(autouse=True)
def as_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker sets its process's threads and denormals; the tests' process keeps its own."""
    for module in (trainings, workers):
        monkeypatch.setattr(module, "settle", lambda run: "cpu")
    monkeypatch.setattr(trainings, "TOLD_EVERY", 2)


@pytest.fixture
def run_of(run_with: RunWith) -> RunWith:
    """A saved run of a method over the shop by leave-one-out."""

    def run(method: DNSRec = METHOD, **changes: Any) -> Run:
        known = {"protocol": "leave_one_out", "strategies": (), "budgets": ("whole",), "workers": Workers(checkpoint=5)}
        return run_with(method, **{**known, **changes})

    return run


def trained(run: Run) -> dict[str, Tensor]:
    last = run.checkpoint()
    return {**last.read_tensors("weights.safetensors"), **last.read_tensors("optimizer.safetensors")}


def assert_same(one: Run, other: Run) -> None:
    found, golden = trained(one), trained(other)
    assert found.keys() == golden.keys() and {"supernet.sampler.logits", "learner.exp_avg.logits"} <= found.keys()
    assert all(torch.equal(found[name], golden[name]) for name in golden)


def killed_at(run: Run, step: int) -> None:
    def tell(news: News) -> None:
        if news.done >= step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        continue_training(run, tell=tell)


def curve(run: Run) -> list[dict[str, float]]:
    known: list[dict[str, float]] = run.checkpoint().read_json("curve.json")
    return [{name: value for name, value in point.items() if name != "seconds"} for point in known]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_killed_search_of_decisions_goes_on_to_the_same(run_of: RunWith, mode: Any) -> None:
    whole, killed = (run_of(workers=Workers(checkpoint=5, data=mode)) for _ in range(2))
    continue_training(whole)
    for death in (2, 8):
        killed_at(killed, death)
    seen = list[int]()
    continue_training(killed, tell=lambda news: seen.append(news.done))
    assert seen == [7, 9, 10, 12], "from the newest whole one on"
    assert_same(killed, whole)
    assert int(trained(whole)["learner.step.logits"]) == 4, "of 12 steps every third"
    assert curve(killed) == curve(whole)


def test_what_is_learned_is_logged(run_of: RunWith) -> None:
    run = run_of()
    continue_training(run)
    points = curve(run)
    assert [point["step"] for point in points] == [2, 4, 5, 7, 9, 10, 12]
    assert [point["temperature"] for point in points] == pytest.approx([1 - 0.05 * point["step"] for point in points])
    for decision, options in ((WIDTH, list(METHOD.widths)), (DEPTH, ["1", "2", "3", "4"])):
        for point in points:
            shares = [point[f"share/{decision}/{option}"] for option in options]
            assert sum(shares) == pytest.approx(1)
            assert point[f"entropy/{decision}"] == pytest.approx(-sum(share * log(share) for share in shares))
        assert points[0][f"entropy/{decision}"] == pytest.approx(log(len(options))), "nothing was learned yet"
        assert points[-1][f"entropy/{decision}"] < log(len(options)) - 1e-4
    logits = trained(run)["supernet.sampler.logits"].double()
    assert points[-1]["share/width/6x4"] == pytest.approx(logits[:3].softmax(0)[1].item(), rel=1e-6)


def test_a_space_of_one_member_is_trained_and_found(run_of: RunWith) -> None:
    run = run_of(replace(METHOD, ratios=(0.0,), layers=1, steps=2))
    continue_training(run)
    ((name, genotype),) = unsearched(run, run.budgets[0]).items()
    assert name == "only" and genotype in run.method.space(run.schema)


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"mask": "causal", "keys": "column"}, "keys"),
        ({"coldest": 0.0}, "coldest"),
    ],
)
def test_what_cannot_be_built_is_refused_before_a_stage_runs(run_of: RunWith, changes: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        run_of(replace(METHOD, **changes)).check_prepared()


def test_a_rival_that_cannot_be_built_is_refused_before_a_stage_runs(run_of: RunWith) -> None:
    run = run_of(METHOD)
    with pytest.raises(ValueError, match="heads"):
        replace(run, methods=(METHOD, SASRec(hidden=10, heads=4))).check_prepared()


@pytest.mark.parametrize("kind", [DNSRec, SASRec, GRU4Rec])
def test_not_all_is_dropped(kind: Any) -> None:
    with pytest.raises(ValueError, match="dropout is a share below 1, not 1.5"):
        kind(dropout=1.5)


def test_each_ranking_is_asked_for_once() -> None:
    with pytest.raises(ValueError, match="one ranking or more, each once, of: full, full_unseen"):
        NextItem(rankings=("full", "full"))


@pytest.mark.parametrize("constraint", ["paper", "cumulative"])
def test_a_first_layer_without_gates_costs_less(run_of: RunWith, constraint: Any) -> None:
    """Eq. 12 with each layer's own resources, so that the shares of depths get a gradient."""
    method = replace(METHOD, gated_from=2, layers=3, constraint=constraint, unit="millions")
    schema = run_of(METHOD).schema
    net, sampler = method.net(schema, method.space(schema)), method.sampler(method.space(schema), 0)
    assert isinstance(net, DNSRecNet)
    mix, penalty = sampler.relaxed(None, 0), method.penalty(net, {})
    assert penalty is not None
    p, q = (torch.as_tensor(mix[name]).tolist() for name in (WIDTH, DEPTH))
    cost = [sum(one * float(net.layer_cost(n, k).macs) for one, n in zip(p, TIMES, strict=True)) for k in (1, 2, 3)]
    assert cost[0] < 0.9 * cost[1] == pytest.approx(0.9 * cost[2])
    likeliest = sampler.split(sampler.logits)[DEPTH].argmax().item() + 1  # type: ignore[operator]
    golden = sum(one * own for one, own in zip(q, cost, strict=True)) * likeliest / 3
    if constraint == "cumulative":
        golden = sum(one * sum(cost[:depth]) for depth, one in enumerate(q, 1))
    found = penalty(mix, sampler)
    assert found.item() == pytest.approx(method.tradeoff * golden / 1e6, rel=1e-5)
    (gradient,) = torch.autograd.grad(found, [sampler.logits])  # type: ignore[list-item]
    assert sampler.split(gradient)[DEPTH].any()  # type: ignore[operator]
    names = [*TIMES, *(f"{name} without gates" for name in TIMES)]
    assert sorted(net.seconds()) == sorted(names) and replace(method, resource="seconds").penalty(
        net, dict.fromkeys(names, 1e-6)
    )


def test_seconds_are_measured_once_a_run(run_of: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = (run_of(replace(METHOD, resource="seconds", steps=6)) for _ in range(2))
    measured = list[int]()
    monkeypatch.setattr(DNSRecNet, "seconds", lambda net: (measured.append(1), TIMES)[1])
    killed_at(killed, 6)
    assert measured == [1] and killed.folder.read_json("supernet/measured.json") == TIMES
    other = {name: 1.0 for name in TIMES}
    monkeypatch.setattr(DNSRecNet, "seconds", lambda net: (measured.append(1), other)[1])
    continue_training(killed)
    assert measured == [1], "another machine may be faster, a resumed run is not"
    monkeypatch.setattr(DNSRecNet, "seconds", lambda net: TIMES)
    continue_training(whole)
    assert_same(killed, whole)
    for method in (replace(METHOD, steps=1), replace(METHOD, steps=1, paths="uniform")):
        run = run_of(method)
        continue_training(run)
        assert measured == [1] and (not method.learning or run.folder.read_json("supernet/measured.json") == {})


def test_a_stronger_constraint_learns_a_smaller_net(run_of: RunWith) -> None:
    learner, shares = Learning(every=1, learning_rate=0.2, weight_decay=0.0), {}
    for tradeoff in (0.0, 100.0):
        run = run_of(replace(METHOD, tradeoff=tradeoff, constraint="cumulative", learner=learner, cooling=0.0))
        continue_training(run)
        shares[tradeoff] = curve(run)[-1]
    assert shares[100.0]["share/width/6x4"] > max(0.5, shares[0.0]["share/width/6x4"] + 0.2)
    assert shares[100.0]["share/depth/1"] > 0.5


def likeliest(run: Run) -> Genotype:
    point = curve(run)[-1]
    found = {}
    for name, decision in METHOD.space(run.schema).decisions.items():
        found[name] = (max(decision.options, key=lambda option: point[f"share/{name}/{option}"]),)
    return found


def test_what_was_learned_is_retrained_within_its_budget(run_of: RunWith) -> None:
    first = run_of()
    price, space = METHOD.price(first.schema), METHOD.space(first.schema)
    costs = sorted(float(price(genotype, "").macs) for genotype in space.members())
    budgets = ("whole", f"macs={costs[0]}", f"macs={costs[5]}")
    run = run_of(budgets=budgets)
    continue_training(run)
    for budget in budgets:
        (found,) = unsearched(run, budget).items()
        assert found[0] == "gumbel" and found[1] in run.members(budget)
        assert budget == "whole" or float(price(found[1], "").macs) <= float(budget.removeprefix("macs="))
    assert unsearched(run, "whole") == {"gumbel": likeliest(run)}
    search = Search(GIVEN, "whole", 0)
    best = continue_search(run, search, open_scorer(run, 1 << 20))
    write_results(run, run.folder / "search", [search])
    (candidate,) = run.folder.read_json("search/candidates.json")
    assert candidate["as"] == "gumbel" and parse(candidate["genotype"]) == likeliest(run)
    assert candidate["score"] == best > 0


@pytest.mark.parametrize("strategy", ["random:batch=5", "evolution:population=4"])
def test_uniform_paths_are_searched_by_strategies(run_of: RunWith, strategy: str) -> None:
    run = run_of(replace(METHOD, paths="uniform", candidates=30), strategies=(strategy,))
    continue_training(run)
    assert set(curve(run)[-1]) == {"step", "loss"} and not unsearched(run, "whole")
    score, search = open_scorer(run, 1 << 20), Search(strategy, "whole", 0)
    best = continue_search(run, search, score)
    folder = run.folder / "search" / search.id
    rows = [row for name in folder.names("generation-*.parquet") for row in folder.read_table(name).to_pylist()]
    members = [*METHOD.space(run.schema).members()]
    assert {row["genotype"] for row in rows} <= {key(one) for one in members} and len(members) == 12
    assert len({row["genotype"] for row in rows}) == len(rows) == 12, "all of them, each once"
    assert [row["score"] for row in rows] == score([parse(row["genotype"]) for row in rows])
    assert best == max(row["score"] for row in rows)


def test_what_is_cut_out_begins_with_the_supernets_weights(run_of: RunWith) -> None:
    run = run_of()
    continue_training(run)
    still = replace(METHOD, training=replace(METHOD.training, learning_rate=0.0))
    for number, genotype in enumerate(({WIDTH: ("12x8",), DEPTH: ("4",)}, {WIDTH: ("6x4",), DEPTH: ("1",)})):
        result = train_alone(run, Job.make(f"retrain/{number}", still, genotype, 0))
        assert [result["value"]] == pytest.approx(open_scorer(run, 1 << 20)([genotype]))
        weights = (run.folder / f"retrain/{number}").read_tensors("weights.safetensors")
        net = METHOD.net(run.schema, METHOD.space(run.schema).narrow(genotype)).inherit(
            searched(run, METHOD, "supernet").net
        )
        assert all(torch.equal(value, weights[f"supernet.net.{name}"]) for name, value in net.state_dict().items())
    fresh = train_alone(run, Job.make("retrain/fresh", replace(still, inherit=False), genotype, 0))
    assert fresh["value"] != result["value"] and fresh["model_id"] != result["model_id"]


def test_the_command_line_is_checked(tmp_path: Path) -> None:
    def checked(**settings: Any) -> None:
        dnsrec(root=str(tmp_path / "run"), dataset="planted_sequences:users=20,items=60", **settings).check()

    checked()
    with pytest.raises(ValueError, match=r"--strategies needs one or more, each once; not \[\]"):
        checked(method=replace(METHOD, paths="uniform"))
    checked(method=replace(METHOD, paths="uniform"), strategies=("evolution", "random"))
    with pytest.raises(ValueError, match="budgets with a name in dnsrec: whole"):
        checked(budgets=("M",))
    rival = dnsrec(root="x", dataset="y", method=METHOD, rivals=("sasrec:hidden=8,heads=2", "gru4rec")).methods[1]
    assert rival.retrain == METHOD.retrain and rival.shown == METHOD.shown, "trained exactly as ours"


# The command line


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_tests_what_it_found_and_does_nothing_when_done(tmp_path: Path) -> None:
    output = finish("dnsrec", tmp_path, *SMALL["dnsrec"])
    assert output.strip().endswith(f"Report: {tmp_path}/report/index.html")
    told = report(tmp_path)
    assert told["headline"] == "ndcg@10"
    assert told["protocol"] == "leave_one_out/full+pop100_fixed+recbole_pop100"
    rows = {row["model"]: row for row in told["rows"] if row["metric"] == "ndcg@10"}
    assert list(rows) == ["DNS-Rec whole, gumbel", *list(rows)[1:]] and len(rows) == 3
    assert all(0 <= row["low"] < row["value"] < row["high"] < 1 for row in rows.values())
    assert {f"{name}@{k}/pop100_fixed" for name in ("recall", "mrr", "ndcg") for k in (5, 10, 20)} <= {
        row["metric"] for row in told["rows"]
    }
    (candidate,) = read(tmp_path, "search/candidates.json")
    last = read(tmp_path, "supernet/curve.json")[-1]
    for name, (option,) in ((name, parse(candidate["genotype"])[name]) for name in (WIDTH, DEPTH)):
        shares = {known: share for known, share in last.items() if known.startswith(f"share/{name}/")}
        assert max(shares, key=shares.__getitem__) == f"share/{name}/{option}"
    page = (tmp_path / "report/index.html").read_text()
    assert "What the supernet learned to prefer" in page
    assert Folder(str(tmp_path)).read_json("supernet/measured.json") == {}
    assert finish("dnsrec", tmp_path, *SMALL["dnsrec"]).count("done before") == 8
