"""Tables trained row by row: equal to dense tables under torch's Adagrad, alone and on two workers, and never dense."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import spawn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from components.run import Run
from nascore import plugins
from nascore.click_net import ClickTraining
from nascore.methods import Method
from nascore.methods.dnn import Dnn
from nascore.methods.nasrec import NASRec
from nascore.rows import Data, seed_of
from nascore.schema import Batch, Column, Schema
from nascore.sparse import RowAdagrad, RowAdam, Tables
from nascore.training import Fit, Plan, State

SIZES = {"a": 5, "b": 3, "c": 7}
TRAINING = ClickTraining(batch=32, epochs=1, clip=0.3, weight_decay=0.02, warmup=0.25)
SUPERNET = NASRec(
    blocks=2,
    embedding=4,
    dense_sizes=(4, 8),
    sparse_sizes=(2, 4),
    tokens=2,
    fm=True,
    cap=9,
    steps=12,
    batch=32,
    training=replace(TRAINING, clip=1.0),
)
METHODS: dict[str, Method] = {
    "dnn": Dnn(embedding=4, width=8, depth=1, training=TRAINING),
    "two tables": plugins.build("methods", "wide_deep:embedding=4,width=8,depth=1", training=TRAINING),
    "free": Dnn(embedding=4, width=8, depth=1, training=replace(TRAINING, clip=0.0, weight_decay=0.0)),
    "supernet": SUPERNET,
}


class Dense(nn.Module):
    """What `Tables` are to anyone else: one embedding a column, with a dense gradient."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        parts = tables.weight.detach().split(list(tables.sizes.values()))
        self.columns = nn.ModuleList(nn.Embedding.from_pretrained(part.clone(), freeze=False) for part in parts)
        self.met: list[set[int]] = [set() for _ in parts]

    def place(self, column: int, i: int) -> int:
        """Beyond the rows there are, ids start again at 1."""
        rows = self.columns[column].num_embeddings
        while i >= rows:
            i -= rows - 1
        return i

    def forward(self, id_BN: Tensor) -> Tensor:
        found = []
        for column, ids in enumerate(id_BN.T.tolist()):
            places = [self.place(column, i) for i in ids]
            self.met[column] |= set(places)
            found.append(self.columns[column](torch.tensor(places)))
        return torch.stack(found, 1)

    def decay(self, factor: float) -> None:
        """Add the L2 penalty's gradient on the rows that were looked up since the last time."""
        with torch.no_grad():
            for column, met in zip(self.columns, self.met, strict=True):
                for row in met:
                    if column.weight.grad is not None:
                        column.weight.grad[row] += factor * column.weight[row]
                met.clear()

    def weight(self) -> Tensor:
        return torch.cat([column.weight.detach() for column in self.columns])


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("lookups", [1, 3])
def test_rows_move_as_those_of_dense_tables(lookups: int, decay: float) -> None:
    torch.manual_seed(0)
    tables = Tables(SIZES, 4).double()
    dense, rows = Dense(tables), RowAdagrad({"t": tables}, 1e-3, decay)
    optimizer = torch.optim.Adagrad(dense.parameters(), lr=0.1, eps=1e-3)
    start = tables.weight.detach().clone()
    for step in range(8):
        rng = torch.Generator().manual_seed(step)
        columns = [torch.randint(0, size - 1, (lookups, 6), generator=rng) for size in SIZES.values()]
        target = torch.randn(lookups, 6, generator=rng)
        for net in (tables, dense):
            looked = zip(torch.stack(columns, 2), target, strict=True)
            sum((net(ids).sum((1, 2)).tanh() - wanted).square().sum() for ids, wanted in looked).backward()
        rows.step(rows.gradients(), 0.1, step + 1)
        dense.decay(decay)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(tables.weight.detach(), dense.weight(), rtol=0, atol=1e-12)
    untouched = [4, 7, 14]
    assert torch.equal(tables.weight[untouched], start[untouched]), "no decay where nothing was looked up"
    assert (tables.weight.detach() - start).abs().amax(1).count_nonzero() == 12


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_moves_rows_as_that_of_sparse_gradients(decay: float) -> None:
    torch.manual_seed(0)
    tables = Tables({"a": 9}, 4).double()
    sparse = nn.Embedding(9, 4, sparse=True, _weight=tables.weight.detach().clone())
    rows, optimizer = RowAdam({"t": tables}, 1e-8, decay), torch.optim.SparseAdam(sparse.parameters(), lr=0.01)
    start, met = tables.weight.detach().clone(), set[int]()
    for step in range(1, 9):
        ids, target = torch.randint(0, 8, (6, 1)), torch.randn(6, dtype=torch.float64)
        (tables(ids).sum((1, 2)).tanh() - target).square().sum().backward()
        (sparse(ids).sum((1, 2)).tanh() - target).square().sum().backward()
        assert sparse.weight.grad is not None
        gradient, touched = sparse.weight.grad.coalesce(), ids.unique()
        met |= {*touched.tolist()}
        values = gradient.values() + decay * sparse.weight.detach()[touched]
        sparse.weight.grad = torch.sparse_coo_tensor(touched[None], values, gradient.shape, check_invariants=True)
        rows.step(rows.gradients(), 0.01, step)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(tables.weight.detach(), sparse.weight.detach(), rtol=0, atol=1e-5)
    assert (tables.weight != start).any(1).nonzero().flatten().tolist() == sorted(met) != list(range(9))


def fit_of(data: Data, method: Method, plan: Plan | None = None) -> Fit:
    supernet = method.supernet(data.schema, method.space(data.schema), 3)
    return Fit(supernet, method.task(data.schema), data, plan or method.train, 3)


@pytest.mark.parametrize("name", METHODS)
def test_a_training_equals_one_with_dense_tables(clicks: Run, name: str) -> None:
    method, data = METHODS[name], clicks.rows("train")
    fit, plan = fit_of(data, method), method.train
    plain = deepcopy(fit.supernet).train()
    named = [name for name, module in plain.net.named_modules() if isinstance(module, Tables)]
    replaced = {name: Dense(plain.net.get_submodule(name)) for name in named}  # type: ignore[arg-type]
    for place, module in replaced.items():
        plain.net.set_submodule(place, module)
    tables = {id(p) for module in replaced.values() for p in module.parameters()}
    own = [p for p in plain.net.parameters() if id(p) not in tables]
    groups = [
        {"params": [p for p in own if p.dim() >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in plain.net.parameters() if p.dim() < 2 or id(p) in tables]},
    ]
    optimizer = torch.optim.Adagrad(groups, lr=plan.learning_rate, eps=plan.epsilon)
    batches, norms = data.batches(plan.batch, seed_of(3, "rows")), []
    for step in range(10):
        batch = next(batches)
        assert batch.label is not None
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(plain(batch, step)[0], batch.label.float()).backward()
        norms.append(nn.utils.clip_grad_norm_(plain.net.parameters(), plan.clip or 1e9).item())
        for module in replaced.values():
            module.decay(plan.weight_decay)
        for parameters in optimizer.param_groups:
            parameters["lr"] = plan.rate(step, fit.steps)
        optimizer.step()
    fit.advance(10)
    assert not plan.clip or min(norms) < plan.clip < max(norms), "some steps are clipped and others are not"
    found = dict(fit.supernet.net.named_parameters())
    for place, module in replaced.items():
        torch.testing.assert_close(found.pop(f"{place}.weight").detach(), module.weight(), rtol=0, atol=1e-5)
    for name, value in found.items():
        torch.testing.assert_close(value, plain.net.get_parameter(name), rtol=0, atol=1e-5, msg=name)


def test_row_0_is_trained() -> None:
    tables = Tables(SIZES, 4)
    assert tables.weight[[0, 5, 8]].abs().sum(1).min() > 0
    before, rows = tables.weight.detach().clone(), RowAdagrad({"t": tables}, 1e-2, 0.0)
    tables(torch.zeros(2, 3, dtype=torch.int32)).square().sum().backward()
    rows.step(rows.gradients(), 0.1, 1)
    moved = (tables.weight.detach() != before).any(1)
    assert moved.nonzero().squeeze(1).tolist() == [0, 5, 8], "of each table, and no other row"


def test_further_ids_share_the_rows_of_a_cap() -> None:
    tables = Tables({"a": 12, "b": 3, "c": 1, "d": 4}, 2, cap=4)
    assert tables.sizes == {"a": 4, "b": 3, "c": 1, "d": 4} and tables.weight.shape == (12, 2)
    ids = torch.tensor([[i, i % 3, 0, i % 4] for i in range(12)])
    places = [0, *(place for _ in range(4) for place in (1, 2, 3))][:12]
    golden = [[place, 4 + i % 3, 7, 8 + i % 4] for i, place in enumerate(places)]
    assert torch.equal(tables.eval()(ids), tables.weight[torch.tensor(golden)])
    tables.train()(ids)[:, 0].sum().backward()
    found = tables.gradient()
    assert found is not None
    counts = dict(zip(found[0].tolist(), found[1][:, 0].tolist(), strict=True))
    assert {row: counts[row] for row in range(4)} == {0: 1, 1: 4, 2: 4, 3: 3}
    free = Tables({"a": 12, "b": 3}, 2)
    assert free.weight.shape == (15, 2) and not free.capped


def test_each_table_starts_by_its_own_size() -> None:
    torch.manual_seed(0)
    parts = Tables({"small": 400, "large": 40_000}, 16).weight.detach().split([400, 40_000])
    assert [part.std().item() for part in parts] == pytest.approx([(2 / 416) ** 0.5, (2 / 40_016) ** 0.5], rel=0.05)


def test_only_a_training_step_keeps_look_ups() -> None:
    tables, ids = Tables(SIZES, 4), torch.ones(2, 3, dtype=torch.int64)
    with torch.no_grad():
        tables(ids)
    tables.eval()(ids)
    assert not tables.kept and tables.gradient() is None
    x = tables.train()(ids)
    assert len(tables.kept) == 1 and x.requires_grad and x.is_leaf
    assert tables.gradient() is None and not tables.kept, "what no loss reached moves nothing"


def test_the_fit_keeps_nothing_between_steps(clicks: Run) -> None:
    fit = fit_of(clicks.rows("train"), SUPERNET)
    fit.advance(2)
    assert all(not table.kept for table in fit.rows.tables.values())
    fit.supernet.eval()
    net = fit.supernet.net
    net(net.embed(fit.data.batch(torch.arange(9))), fit.supernet.sampler(None, 0))
    assert all(not table.kept for table in fit.rows.tables.values())


class Sizes(TorchDispatchMode):
    """The bytes of every storage that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                self.seen[storage.data_ptr()] = storage.nbytes()
        return out


class Rows:
    """Endless batches of a table of many rows."""

    device, home = "cpu", "cpu"
    schema = Schema("", "", 0, 0, (Column("a", size=100_000), Column("b", size=3)), "stratified")

    def batches(self, size: int, seed: int, start: int) -> Any:
        while True:
            rng = torch.Generator().manual_seed(start)
            ids = {name: torch.randint(0, 3, (size,), generator=rng) for name in "ab"}
            yield Batch(ids, {}, torch.arange(size), torch.randint(0, 2, (size,), generator=rng))
            start += 1

    def steps_per_epoch(self, size: int) -> int:
        return 100


def test_nothing_as_large_as_a_table_is_made() -> None:
    method: Any = Dnn(embedding=4, width=8, depth=1, training=TRAINING)
    fit, large = fit_of(Rows(), method), 100_000 * 4 * 4  # type: ignore[arg-type]
    (table,) = fit.rows.tables.values()
    fit.advance(1)
    with Sizes() as sizes:
        fit.advance(3)
    own = {one.untyped_storage().data_ptr() for one in (table.weight, *fit.rows.moments.values())}
    assert len(sizes.seen) > 10
    assert not [size for at, size in sizes.seen.items() if size >= large and at not in own]
    assert table.weight.grad is None and table.weight not in fit.names


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("name", ["supernet", "two tables"])
def test_a_training_can_stop_anywhere(clicks: Run, name: str, mode: Any) -> None:
    method = METHODS[name]
    whole = fit_of(clicks.rows("train", mode), method)
    whole.advance(11)
    wanted = whole.state()
    sums = [value for name, value in wanted.items() if name.startswith("rows.sum.")]
    assert len(sums) == len(whole.rows.tables) and all(one.count_nonzero() > 9 for one in sums)
    for stop in (1, 7):
        first = fit_of(clicks.rows("train", mode), method)
        first.advance(stop)
        saved = {name: value.clone() for name, value in first.state().items()}
        second = fit_of(clicks.rows("train", mode), method)
        second.advance(3)
        second.restore(saved)
        second.advance(11 - stop)
        state = second.state()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in state.items())


# Two workers


def trained(url: str, rank: int = 0, world: int = 1, mode: Any = "resident") -> dict[str, tuple[State, float]]:
    """Weights and sums of squares, and the mean loss, by method."""
    torch.set_num_threads(1)
    told = {}
    for name, method in METHODS.items():
        fit = fit_of(Data(url, "train", rank=rank, world=world, mode=mode), method)
        loss = fit.advance(10)
        told[name] = {key: value.clone() for key, value in fit.state().items()}, loss
    return told


def worker(rank: int, url: str, folder: str) -> None:
    """One of two ranks; leaves what it trained to in `folder`."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(trained(url, rank, 2), f"{folder}/rank-{rank}")
    dist.barrier()
    dist.destroy_process_group()


def test_two_workers_train_to_the_weights_of_one(clicks: Run, tmp_path: Path) -> None:
    url = f"{clicks.root}/prepare"
    alone = trained(url)
    spawn(worker, (url, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank-{rank}", weights_only=True) for rank in range(2)]
    for name, (state, loss) in alone.items():
        for rank in ranks:
            found, own = rank[name]
            assert found.keys() == state.keys() and own == pytest.approx(loss, rel=1e-5)
            for key, value in found.items():
                torch.testing.assert_close(value, state[key], rtol=1e-4, atol=2e-5, msg=f"{name}: {key}")
        assert all(torch.equal(value, ranks[1][name][0][key]) for key, value in ranks[0][name][0].items())


# Plans


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_rises_before_its_schedule(schedule: Any) -> None:
    plan = Plan(32, steps=12, learning_rate=0.8, schedule=schedule, warmup=1 / 3)
    rates = [plan.rate(step) for step in range(12)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    after: Callable[[int], float] = Plan(32, steps=8, learning_rate=0.8, schedule=schedule).rate
    assert rates[4:] == pytest.approx([after(step) for step in range(8)])
    assert [plan.rate(step, 24) for step in range(8)] == pytest.approx([0.1 * (step + 1) for step in range(8)])
    with pytest.raises(ValueError, match="warmup is a share of the steps below 1, not 1"):
        replace(plan, warmup=1.0)


def test_epsilon_is_that_of_the_plan_everywhere(clicks: Run) -> None:
    data, method = clicks.rows("train"), METHODS["free"]
    fit = fit_of(data, method, replace(method.train, epsilon=1e-7, warmup=0.0, schedule="constant"))
    before = {name: value.clone() for name, value in fit.weights().items()}
    fit.advance(1)
    moved = [(value - before[name]).abs() for name, value in fit.weights().items() if value.is_floating_point()]
    large = torch.cat([one.flatten() for one in moved])
    assert large.max().item() == pytest.approx(method.train.learning_rate, rel=1e-3), "a first step is one by sign"
    assert ((large == 0) | (large > 0.09)).float().mean() > 0.9
