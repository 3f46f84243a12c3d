"""What the speed of next-item search is measured against computes the same: its forward, loss, gradients and ranks."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import sequence_reference as reference
from benchmarks.sequence_reference import Copies, Reference
from components import prepare
from components.run import Run
from nascore.dnsrec_net import DNSRecNet
from nascore.methods.dnsrec import DNSRec
from nascore.rows import Data
from nascore.samplers import Logits
from nascore.sequence_net import Training
from nascore.tasks.next_item import NextItem, aligned
from nascore.training import Fit, Learning

LENGTH = 12
METHOD = DNSRec(
    hidden=16, inner=24, heads=2, layers=3, dropout=0.0, batch=32, training=Training(length=LENGTH, rankings=("full",))
)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run(
        root=str(tmp_path_factory.mktemp("runs")),
        dataset="planted_sequences:users=80,items=60",
        raw="",
        methods=(METHOD,),
        protocol="leave_one_out",
    )
    prepare.main(made)
    return made


@pytest.fixture(scope="module")
def train(run: Run) -> Data:
    return run.rows("train", shown=METHOD.shown)


class Both:
    """Our supernet with weights that are not small, and the reference with the same."""

    def __init__(self, data: Data, method: DNSRec = METHOD) -> None:
        self.method, self.space = method, method.space(data.schema)
        self.supernet = method.supernet(data.schema, self.space, 0)
        assert isinstance(self.supernet.net, DNSRecNet)
        self.net = self.supernet.net
        with torch.no_grad():
            for value in self.net.parameters():
                value.normal_(0, 0.3)
            self.net.events.items.weight[0] = 0
        self.reference = Reference(method, data.schema.items)
        self.reference.take(self.net)

    def mix(self, seed: int) -> tuple[dict[str, Tensor], reference.Shares, reference.Shares]:
        """Random weights of all options: for our net, then for the reference."""
        drawn = {
            name: torch.rand(len(one.options), generator=torch.Generator().manual_seed(seed)).softmax(0)
            for name, one in self.space.decisions.items()
        }
        known = {name: weights.requires_grad_() for name, weights in drawn.items()}
        return known, *(
            dict(zip(self.space.decisions[name].options, known[name], strict=True)) for name in ("width", "depth")
        )


@pytest.fixture(scope="module")
def both(train: Data) -> Both:
    return Both(train)


def copied(data: Data, row_B: Tensor) -> tuple[Tensor, Tensor]:
    copies = Copies(data, LENGTH)
    return copies.past[row_B], copies.target[row_B]


def alone(both: Both) -> list[tuple[Mapping[str, tuple[str, ...]], reference.Shares, reference.Shares]]:
    return [(one, {one["width"][0]: 1.0}, {one["depth"][0]: 1.0}) for one in both.space.members()]


def test_copies_are_the_pasts_of_the_rows(train: Data) -> None:
    copies, batch = Copies(train, LENGTH), train.batch(torch.arange(train.rows))
    past_BT, _ = aligned(batch["history"])
    assert torch.equal(copies.past, past_BT.long())
    assert torch.equal(copies.length, (batch["history"] != 0).sum(1))
    assert torch.equal(copies.target, batch.keys["item"].long())
    assert copies.length.max() == LENGTH > copies.length.min(), "some pasts are cut, some padded"
    assert copies.bytes == 8 * (LENGTH + 2)


def test_a_pass_of_batches_holds_each_row_once(train: Data) -> None:
    copies = Copies(train, LENGTH)
    before = sorted([*past.tolist(), int(target)] for past, target in zip(copies.past, copies.target, strict=True))
    batches = copies.batches(7)
    drawn = [next(batches) for _ in range(train.rows // 7)]
    after = [
        [*past, target]
        for pasts, targets in drawn
        for past, target in zip(pasts.tolist(), targets.tolist(), strict=True)
    ]
    assert after != sorted(after) and all(after.count(row) <= before.count(row) for row in after)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("gates", [1, 2, 3])
def test_under_a_mix_of_all_options_it_has_our_output_loss_and_gradients(train: Data, gates: int, seed: int) -> None:
    both = Both(train, replace(METHOD, gates=gates))
    row_B = torch.arange(seed * 40, seed * 40 + 40)
    batch, (past_BT, target_B) = train.batch(row_B), copied(train, row_B)
    mix, widths, depths = both.mix(seed)
    ours = both.net(both.net.embed(batch), mix)
    torch.testing.assert_close(both.reference(past_BT, widths, depths), ours["user"], **CLOSE)
    torch.testing.assert_close(both.reference.items.weight, ours["item"], atol=0, rtol=0)
    loss = both.method.task(train.schema).loss(ours, batch)
    plain = reference.loss_of(both.reference, past_BT, target_B, widths, depths)
    assert plain.item() == pytest.approx(loss.item(), rel=1e-5)
    toward = torch.autograd.grad(loss, [*mix.values()], retain_graph=True)
    toward_plain = torch.autograd.grad(plain, [*mix.values()], retain_graph=True)
    for one, other in zip(toward_plain, toward, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
        assert other.abs().max() > 1e-3
    loss.backward()
    plain.backward()
    ours_by_place = {value.data_ptr(): value.grad for value in both.net.parameters()}
    met = 0
    for known, own, places in both.reference.counterparts(both.net):
        assert own.grad is not None
        base = known._base if known._base is not None else known
        gradient = ours_by_place[base.data_ptr()]
        assert gradient is not None
        first = known.storage_offset() // (known.stride(0) if known.dim() else 1)
        inside = own.grad[torch.meshgrid(*places, indexing="ij")]
        torch.testing.assert_close(inside, gradient[first : first + len(known)], **CLOSE)
        assert float(own.grad.abs().sum()) == pytest.approx(float(inside.abs().sum())), "nothing elsewhere"
        met += known.numel()
    assert met == sum(value.numel() for value in both.net.parameters())


def test_each_width_and_depth_alone_has_our_output(both: Both, train: Data) -> None:
    row_B = torch.arange(50)
    past_BT, _ = copied(train, row_B)
    for genotype, widths, depths in alone(both):
        x = both.net.embed(train.batch(row_B))
        ours = both.net(x, both.space.mix(genotype))
        scores = both.reference(past_BT, widths, depths) @ both.reference.items.weight.T
        torch.testing.assert_close(scores, ours["user"] @ ours["item"].T, **CLOSE)


def test_a_step_has_our_loss_and_our_weights_afterwards(train: Data, run: Run) -> None:
    both = Both(train)
    mix, widths, depths = both.mix(5)
    held = run.rows("valid", shown=METHOD.shown)
    both.supernet.sampler.forward = lambda x, step: mix  # type: ignore[method-assign]
    fit = Fit(both.supernet, METHOD.task(train.schema), train, METHOD.train, 0, Learning(every=10), held)
    row_B = torch.arange(60, 100)
    fit.batches = iter([train.batch(row_B)])
    training = reference.Training(both.reference, METHOD)
    training.shares = lambda: (widths, depths)  # type: ignore[method-assign]
    before = {name: value.detach().clone() for name, value in both.reference.named_parameters()}
    plain = training.step(*copied(train, row_B))
    assert plain == pytest.approx(fit.advance(1), rel=1e-5)
    for known, own, places in both.reference.counterparts(both.net):
        inside = own[torch.meshgrid(*places, indexing="ij")]
        torch.testing.assert_close(inside, known, atol=1e-5, rtol=0)
    moved = [(value - before[name]).detach().abs().max() for name, value in both.reference.named_parameters()]
    assert min(moved) > 0.5 * METHOD.training.learning_rate


def test_the_controllers_have_our_constraint_and_learn(both: Both) -> None:
    training = reference.Training(both.reference, METHOD)
    penalty = METHOD.penalty(both.net, {})
    assert penalty is not None and isinstance(both.supernet.sampler, Logits)
    with torch.no_grad():
        training.beta.copy_(torch.tensor([0.0, 2.0, 1.0]))
        both.supernet.sampler.logits.copy_(torch.cat([training.alpha, training.beta]))
    for seed in range(3):
        mix, widths, depths = both.mix(seed)
        plain = training.penalty(widths, depths)
        assert plain.item() == pytest.approx(penalty(mix, both.supernet.sampler).item(), rel=1e-6)
    before = training.alpha.detach().clone()
    training.learn(torch.randint(1, 60, (8, LENGTH)), torch.randint(1, 60, (8,)))
    assert (training.alpha != before).all() and both.reference.training
    drawn = [torch.stack([*training.shares()[0].values()]) for _ in range(200)]  # type: ignore[arg-type]
    assert torch.stack(drawn).sum(1).allclose(torch.ones(200))
    assert (torch.stack(drawn).argmax(1).bincount(minlength=3) > 30).all()


def test_candidates_have_our_scores(both: Both, run: Run, train: Data) -> None:
    valid = run.rows("valid", shown=METHOD.shown)
    scorer = METHOD.scorer(both.net, METHOD.task(train.schema), train, valid)
    members = [*both.space.members()]
    found = [reference.score(both.reference, Copies(valid, LENGTH), g["width"][0], g["depth"][0]) for g in members]
    assert found == pytest.approx(scorer(members), abs=1e-9) and len(set(found)) > 5


def test_ranks_among_all_and_among_a_hundred_are_ours(both: Both, run: Run) -> None:
    test = run.rows("test", shown=METHOD.shown)
    task = NextItem(rankings=("full", "pop100_fixed"), ks=(1_000,))
    mix = both.space.mix(both.space.sample(Random(3)))
    model = both.net.eval().under(mix)
    scores = task.evaluate(model, test)

    @torch.no_grad()
    def encode(row_B: Tensor) -> tuple[Tensor, Tensor]:
        output = model(test.batch(row_B))
        return output["user"], output["item"]

    user_R, target_R, _ = (key.long() for key in test.keys(torch.arange(test.rows)))
    ((others_RN, valid_RN),) = task.drawn.values()
    ranks = {
        "mrr@1000": reference.rank(encode, target_R),
        "mrr@1000/pop100_fixed": reference.rank_apart(encode, target_R, others_RN),
    }
    assert not valid_RN.all(), "some have fewer than a hundred"
    for name, rank_R in ranks.items():
        by_user = dict(zip(user_R.tolist(), (1 / rank_R).tolist(), strict=True))
        np.testing.assert_allclose(scores.values[name], [by_user[unit] for unit in scores.units.tolist()], rtol=1e-6)
