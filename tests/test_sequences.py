"""Pasts as models are shown them, attention over them against plain loops, and what must not see what."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from components.run import Run
from nascore.attention import Attention, Keys, Kind, Mask, of_kind
from nascore.methods import from_json
from nascore.methods.sasrec import SASRec
from nascore.net import Net
from nascore.ops import build
from nascore.rows import Data, Shown
from nascore.schema import Batch, Column, Schema
from nascore.sequence_net import Features, feature_columns

Prepared = Callable[..., Run]
MODES = ("resident", "streaming")


# Rows


@pytest.fixture(scope="module")
def grouped(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shop by leave-one-out, with the rows of each split in row groups of 16."""
    source, folder = Path(prepared("leave_one_out").root, "prepare"), tmp_path_factory.mktemp("grouped")
    for file in sorted(source.rglob("*")):
        target = folder / file.relative_to(source)
        if file.is_dir():
            target.mkdir(exist_ok=True)
        elif file.parent.name.startswith("split=") and file.parent.parent.name != "history":
            pq.write_table(pq.read_table(file), target, row_group_size=16)
        else:
            target.write_bytes(file.read_bytes())
    return str(folder)


def events(data: Data, *splits: str) -> dict[int, list[int]]:
    """Each user's items in some splits, in order."""
    found = []
    for split in splits:
        for part in Path(data.folder, f"history/split={split}").iterdir():
            found += [(row["user"], row["order"], row["item"]) for row in pq.read_table(part).to_pylist()]
    users: dict[int, list[int]] = {}
    for user, _, item in sorted(found):
        users.setdefault(user, []).append(item)
    return users


def epoch(data: Data) -> Batch:
    return next(data.batches(data.rows, seed=1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("split", ["train", "train+valid"])
@pytest.mark.parametrize("length", [3, 5, 100])
def test_the_ends_teach_every_event_but_the_first_once(grouped: str, length: int, split: str, mode: Any) -> None:
    data = Data(grouped, split, mode=mode, window=48, shown=Shown(length, ends=True))
    batch, taught = epoch(data), Counter[tuple[int, int]]()
    known = events(data, *split.split("+"))
    users, items, before = (key.tolist() for key in data.keys(batch.rows))
    assert len(batch) == data.rows and batch.keys["user"].tolist() == users and batch.keys["item"].tolist() == items
    for user, item, count, past in zip(users, items, before, batch["history"].tolist(), strict=True):
        shown = [one for one in past if one]
        assert shown == known[user][max(0, count - length) : count]
        for place, one in enumerate([*shown[1:], item], start=count - len(shown) + 1):
            assert known[user][place] == one
            taught[user, place] += 1
    assert taught == {(user, place): 1 for user, own in known.items() for place in range(1, len(own))}
    assert data.rows == sum(-(-(len(own) - 1) // length) for own in known.values())
    assert max(map(len, known.values())) in range(11, 100), "several windows, or one"


@pytest.mark.parametrize("shown", [Shown(), Shown(3, sets=True, ends=True)])
def test_a_streamed_epoch_holds_the_rows_of_a_resident_one(grouped: str, shown: Shown) -> None:
    found = []
    for mode in MODES:
        data = Data(grouped, "train", mode=mode, window=48, shown=shown)  # type: ignore[arg-type]
        assert data.steps_per_epoch(data.rows) == 1
        batch = epoch(data)
        columns = [batch[name].flatten(1).tolist() for name in sorted(batch.columns) if name.startswith("history")]
        found.append(sorted(zip(batch.keys["user"].tolist(), batch.keys["item"].tolist(), *columns, strict=True)))
    assert found[0] == found[1] and len(found) == 2


def test_sets_of_past_events_are_shown_whole(grouped: str) -> None:
    data = Data(grouped, "valid", shown=Shown(4, sets=True))
    batch = epoch(data)
    table = pq.read_table(f"{data.folder}/entities/item.parquet").to_pylist()
    assert batch["history/tags"].shape == (data.rows, 4, data.schema["tags"].width) and data.schema["tags"].width > 2
    for past, shown, first in zip(
        batch["history"].tolist(),
        batch["history/tags"].tolist(),
        Data(grouped, "valid", shown=Shown(4)).batch(batch.rows)["history/tags"].tolist(),
        strict=True,
    ):
        assert shown == [table[one]["tags"] for one in past] and first == [table[one]["tags"][0] for one in past]
    assert torch.equal(batch["history/category"], Data(grouped, "valid").batch(batch.rows)["history/category"][:, -4:])


def test_another_view_of_a_split_shares_its_memory(grouped: str) -> None:
    data = Data(grouped, "test")
    rows = torch.arange(data.rows)
    whole = data.batch(rows)["history"]
    view = data.showing(Shown(2, sets=True))
    assert torch.equal(view.batch(rows)["history"], whole[:, -2:]) and view.batch(rows)["history/tags"].dim() == 3
    assert view.packed is data.packed and view.history is data.history and view._tables is data._tables
    assert torch.equal(data.batch(rows)["history"], whole) and data.length == 6


# Attention

KINDS: tuple[tuple[Kind, Mask, Keys], ...] = (
    ("softmax", "none", "token"),
    ("linear", "none", "token"),
    ("linear", "padding", "token"),
    ("linear", "causal", "token"),
    ("linear", "none", "column"),
    ("linear", "padding", "column"),
)
every_kind = pytest.mark.parametrize("kind, mask, keys", KINDS)
LENGTHS = (5, 1, 3, 4, 0)


def attention(kind: Kind, mask: Mask, keys: Keys, length: int = 5, heads: int = 2, width: int = 6) -> Attention:
    torch.manual_seed(0)
    one = of_kind(kind, heads, 0.0, mask, keys, length, width).double()
    with torch.no_grad():
        for weight in one.parameters():
            weight.normal_(0, 0.5)
    return one


def pasts(length: int = 5, width: int = 6) -> tuple[Tensor, Tensor]:
    """Vectors at all positions, those of paddings too, and which hold events."""
    x = torch.randn(len(LENGTHS), length, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(length) < torch.tensor(LENGTHS)[:, None]


def unit(vector: list[float]) -> list[float]:
    return [one / (math.sqrt(sum(other**2 for other in vector)) or 1.0) for one in vector]


def looped(one: Attention, x_TD: Tensor, mask_T: list[bool], kind: Kind, mask: Mask, keys: Keys) -> Tensor:
    """What each position of one past attends to, number by number."""
    width, head = one.width, one.width // one.heads
    mapped = one.query_key_value(x_TD)
    found = torch.zeros_like(x_TD)
    for first in range(0, width, head):
        q, k, v = (mapped[:, place * width + first :][:, :head] for place in range(3))
        if kind == "linear":
            q, k = ([[a if a > 0 else math.expm1(a) for a in row] for row in part.tolist()] for part in (q, k))
            k = [row if mask == "none" or valid else [0.0] * head for row, valid in zip(k, mask_T, strict=True)]
            q = [unit(row) for row in q]
            k = (
                [unit(row) for row in k]
                if keys == "token"
                else [*zip(*[unit(column) for column in zip(*k, strict=True)], strict=True)]
            )
        for t in range(len(x_TD)):
            seen = range(t + 1) if kind == "softmax" or mask == "causal" else range(len(x_TD))
            score = [sum(float(a) * float(b) for a, b in zip(q[t], k[s], strict=True)) for s in seen]
            if kind == "softmax":
                power = [math.exp(value / math.sqrt(head)) for value in score]
                weight = [value / sum(power) for value in power]
            else:
                weight = [value / (math.sqrt(head) if keys == "token" else head) for value in score]
            found[t, first : first + head] = sum(w * v[s] for w, s in zip(weight, seen, strict=True))
    return one.output(found)


@every_kind
def test_attention_equals_a_loop(kind: Kind, mask: Mask, keys: Keys) -> None:
    one, (x, valid) = attention(kind, mask, keys), pasts()
    with torch.no_grad():
        found = one(x, valid)
        for row in range(len(x)):
            golden = looped(one, x[row], valid[row].tolist(), kind, mask, keys)
            torch.testing.assert_close(found[row], golden, rtol=1e-9, atol=1e-9)


@every_kind
def test_what_is_asked_of_the_last_event_is_what_it_would_be_there(kind: Kind, mask: Mask, keys: Keys) -> None:
    one, (x, valid) = attention(kind, mask, keys), pasts()
    last = torch.tensor([4, 0, 2, 3, 0])
    torch.testing.assert_close(one.at(x, valid, last), one(x, valid)[torch.arange(5), last])
    settings = f"inner=5,heads=2,attention={kind},mask={mask},keys={keys}"
    for name, given in ((f"transformer_%s:{settings}", (x,)), (f"gated_%s:gates=2,{settings}", (x, x.flip(0)))):
        layer, end = (build(name % part, T=5, D=6).double().eval() for part in ("layer", "end"))
        end.load_state_dict(layer.state_dict())
        torch.testing.assert_close(end(*given, valid), layer(*given, valid)[torch.arange(5), last])


@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_chunks_of_a_past_equal_the_whole_of_it(length: int) -> None:
    one = attention("linear", "causal", "token", length)
    x = torch.randn(2, length, 6, dtype=torch.float64)
    valid = torch.arange(length) < torch.tensor([length, length - length // 3])[:, None]
    q, k, v = (part.unflatten(2, (2, 3)).transpose(1, 2) for part in one.query_key_value(x).chunk(3, 2))
    q, k = (nn.functional.normalize(nn.functional.elu(part), dim=3) for part in (q, k))
    score = (q @ k.transpose(2, 3)).tril() * valid[:, None, None] * 3**-0.5
    golden = one.output((score @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(one(x, valid), golden, rtol=1e-9, atol=1e-9)


@every_kind
def test_only_what_hides_the_future_is_causal(kind: Kind, mask: Mask, keys: Keys) -> None:
    one, (x, _) = attention(kind, mask, keys), pasts()
    changed, every = x.clone(), torch.ones(5, 5, dtype=torch.bool)
    changed[:, 3:] += 1
    before, after = one(x, every), one(changed, every)
    assert torch.allclose(before[:, :3], after[:, :3], rtol=1e-12) == (kind == "softmax" or mask == "causal")
    assert not torch.allclose(before[:, 3], after[:, 3])


@every_kind
def test_more_padding_changes_what_does_not_hide_it(kind: Kind, mask: Mask, keys: Keys) -> None:
    """mask=none is that of the public code of LinRec: there an output hangs on how far its past is padded."""
    short, long, (x, valid) = attention(kind, mask, keys), attention(kind, mask, keys, 8), pasts()
    assert all(torch.equal(one, other) for one, other in zip(short.parameters(), long.parameters(), strict=True))
    wider = torch.cat([x, torch.randn(5, 3, 6, dtype=torch.float64)], 1)
    padded, last = torch.cat([valid, torch.zeros(5, 3, dtype=torch.bool)], 1), torch.tensor([4, 0, 2, 3, 0])
    for found, golden in (
        (long(wider, padded)[:, :5][valid], short(x, valid)[valid]),
        (long.at(wider, padded, last)[:4], short.at(x, valid, last)[:4]),
    ):
        assert torch.allclose(found, golden, rtol=1e-9) == (kind == "softmax" or mask != "none")


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="keys=column: a column's length over all positions knows the future"):
        of_kind("linear", 2, 0.0, "causal", "column", 5, 6)
    for kind in get_args(Kind):
        with pytest.raises(ValueError, match="4 heads cannot share a width of 6; it can be shared by: 1, 2, 3, 6"):
            of_kind(kind, 4, 0.0, "none", "token", 5, 6)
    with pytest.raises(ValueError, match="gates is at least 1, not 0; without any it is a transformer_layer"):
        build("gated_layer:inner=3,heads=1,gates=0", T=2, D=2)
    with pytest.raises(ValueError, match="SASRecF: training.targets=all .* needs mask=causal for that, not padding"):
        from_json({"name": "sasrecf", "attention": "linear", "mask": "padding", "training": {"targets": "all"}})


# Nets

SMALL = {"hidden": 8, "inner": 6, "heads": 2, "dropout": 0.0}
CAUSAL: tuple[dict[str, Any], ...] = (
    {"name": "sasrec", **SMALL, "attention_dropout": 0.0},
    {"name": "sasrecf", **SMALL, "attention": "linear", "mask": "causal"},
    {"name": "fdsa", **SMALL, "attention": "linear", "mask": "causal"},
    {"name": "gru4rec", "hidden": 6, "layers": 2, "dropout": 0.0},
)


def nets(run: Run, length: int) -> Iterator[tuple[Net, Batch]]:
    """Every kind of net that may learn from all positions, and rows for it."""
    for known in CAUSAL:
        method = from_json({**known, "training": {"length": length, "targets": "all"}})
        torch.manual_seed(0)
        yield method.net(run.schema, method.space(run.schema)).double(), epoch(run.rows("valid", shown=method.shown))


def test_nets_that_learn_all_positions_see_no_later_event(prepared: Prepared) -> None:
    for net, batch in nets(prepared("leave_one_out"), 6):
        full = (batch["history"] != 0).all(1)
        moved = {name: column.clone() for name, column in batch.columns.items()}
        for name in [name for name in moved if name.startswith("history")]:
            moved[name][:, -1] = moved[name][:, -1].roll(1, 0)
        changed = Batch(moved, batch.keys, batch.rows)
        one, other = (net.train().only()(rows)["user"][full] for rows in (batch, changed))
        torch.testing.assert_close(one[:, :-1], other[:, :-1], rtol=1e-9, atol=1e-9)
        assert full.sum() > 20 and not torch.allclose(one[:, -1], other[:, -1])


def test_the_last_position_is_what_a_net_gives_when_it_is_judged(prepared: Prepared) -> None:
    for net, batch in nets(prepared("leave_one_out"), 40):
        length = (batch["history"] != 0).sum(1)
        assert len(set(length.tolist())) > 5
        every = net.train().only()(batch)["user"]
        golden = every[torch.arange(len(batch)), length - 1]
        torch.testing.assert_close(net.eval().only()(batch)["user"], golden, rtol=1e-9, atol=1e-9)


def test_a_feature_is_the_mean_over_its_members() -> None:
    schema = Schema(
        "u",
        "i",
        3,
        9,
        (Column("i", "item", size=9), Column("s", "item", "set", 5, 3), Column("c", "item", size=4)),
        "p",
        history=("i", "s", "c"),
    )
    assert [column.name for column in feature_columns(schema)] == ["s", "c"]
    features = Features(feature_columns(schema), 4)
    x = {"s": torch.tensor([[[1, 4, 0], [0, 0, 0], [2, 0, 0]]]), "c": torch.tensor([[3, 0, 1]])}
    found = features(x)
    of_set, of_category = (features.tables[name].weight for name in ("s", "c"))
    assert torch.equal(found[0, :, 1], of_category[x["c"][0]]) and not found[0, 1].any()
    torch.testing.assert_close(found[0, 0, 0], (of_set[1] + of_set[4]) / 2)
    assert torch.equal(found[0, 2, 0], of_set[2])
    alone = Schema("u", "i", 3, 9, (Column("i", "item", size=9),), "p", history=("i",))
    assert [column.name for column in feature_columns(alone)] == ["i"], "the item stands for a feature"


def test_rows_that_stand_by_themselves_have_no_next_item() -> None:
    apart = Schema("", "", 0, 0, (Column("c", size=4),), "stratified")
    with pytest.raises(ValueError, match="learns from the events of users; rows here stand by themselves"):
        SASRec().net(apart, SASRec().space(apart))
