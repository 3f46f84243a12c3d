"""DNS-Rec's published step, scorer and ranking written plainly: what benchmarks/sequence_speed.py measures against.

Every prefix of a past is copied out, padded right, and all copies are shuffled before each pass, as in RecBole. Each
candidate width of a layer runs at full width, zeros in place of what it prunes: behind each map, in its norms and in
its gates. Queries, keys and values have a map each; every layer computes every position, though one is read; the loss
holds the logits of all items; Adam steps on all of a dense gradient, parameter by parameter. A lesson of the
controllers computes the gradients of all weights and throws them away. Candidates are scored one after the other, each
encoding all rows, and the rank of an item is its place among all items sorted.

The method's paper leaves none of it open but what nascore/methods/dnsrec.py settles: which dimensions a width keeps.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.dnsrec_net import DNSRecNet
from nascore.methods.dnsrec import DNSRec
from nascore.rows import Data

SPREAD, EPSILON = 0.02, 1e-5
BLOCK = 1024
Shares = Mapping[str, Tensor | float]
"""The weights of the options that are open, by their names."""
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows to their vectors (B, D) and those of all items (I, D)."""


class Copies:
    """A split's rows, each with a copy of its past: `past` (rows, N), padded right, `length` and `target` (rows,)."""

    def __init__(self, data: Data, length: int) -> None:
        self.past = torch.zeros(data.rows, length, dtype=torch.int64)
        self.length = torch.zeros(data.rows, dtype=torch.int64)
        user_R, self.target, before_R = (key.long() for key in data.keys(torch.arange(data.rows)))
        for row, (user, before) in enumerate(zip(user_R.tolist(), before_R.tolist(), strict=True)):
            start = int(data.history.at[user])
            events = data.history.item[start + max(0, before - length) : start + before]
            self.past[row, : len(events)], self.length[row] = events, len(events)

    @property
    def bytes(self) -> int:
        """Of a row."""
        return sum(one.nbytes for one in (self.past, self.length, self.target)) // len(self.target)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pasts and their next items, without end; what fills no batch is left out."""
        while True:
            order = torch.randperm(len(self.target))
            self.past, self.length, self.target = self.past[order], self.length[order], self.target[order]
            for first in range(0, len(order) - size + 1, size):
                yield self.past[first : first + size], self.target[first : first + size]


class Norm(nn.Module):
    """Layer normalisation over the dimensions that a mask keeps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = (x * mask).sum(-1, keepdim=True) / mask.sum()
        apart = (x - mean) * mask
        variance = apart.square().sum(-1, keepdim=True) / mask.sum()
        return (apart / (variance + EPSILON).sqrt() * self.weight + self.bias) * mask


class Gate(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(outputs if place else inputs, outputs) for place in range(count))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for place, one in enumerate(self.maps):
            x = one(torch.relu(x) if place else x) * mask
        return 2 * torch.sigmoid(x)


class Attention(nn.Module):
    """Linear attention as LinRec's code has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x_BTD: Tensor, mask_D: Tensor) -> Tensor:
        maps = self.query, self.key, self.value
        q_BHTW, k_BHTW, v_BHTW = ((one(x_BTD) * mask_D).unflatten(2, (self.heads, -1)).transpose(1, 2) for one in maps)
        q_BHTW = functional.normalize(functional.elu(q_BHTW), dim=3)
        k_BHTW = functional.normalize(functional.elu(k_BHTW), dim=3)
        mixed_BHTW = q_BHTW @ (k_BHTW.transpose(2, 3) @ v_BHTW) / (mask_D.sum() / self.heads).sqrt()
        attended: Tensor = self.output(mixed_BHTW.transpose(1, 2).flatten(2)) * mask_D
        return attended


class Layer(nn.Module):
    """A candidate of a layer."""

    def __init__(self, method: DNSRec) -> None:
        super().__init__()
        width, inner = method.hidden, method.inner
        self.attention = Attention(width, method.heads)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.hidden_gate, self.inner_gate = (Gate(method.gates, width, outputs) for outputs in (width, inner))
        self.first_norm, self.second_norm = Norm(width), Norm(width)
        self.dropout = nn.Dropout(method.dropout)

    def forward(self, x_BTD: Tensor, first_BTD: Tensor, mask_D: Tensor, mask_I: Tensor) -> Tensor:
        x_BTD, first_BTD = x_BTD * mask_D, first_BTD * mask_D
        x_BTD = self.first_norm(x_BTD + self.dropout(self.attention(x_BTD, mask_D)), mask_D)
        gated_BTD = x_BTD * self.hidden_gate(first_BTD, mask_D)
        inner_BTI = functional.gelu(self.widen(gated_BTD)) * mask_I
        out_BTD = self.narrow(inner_BTI * self.inner_gate(first_BTD, mask_I)) * mask_D
        normed: Tensor = self.second_norm(x_BTD + self.dropout(out_BTD), mask_D)
        return normed


class Reference(nn.Module):
    """The supernet of a method: `layers` by number, then by width."""

    def __init__(self, method: DNSRec, items: int) -> None:
        super().__init__()
        plain = method.attention, method.mask, method.keys, method.gated_from, method.training.every
        if plain != ("linear", "none", "token", 1, False) or method.gates < 1 or method.hidden == method.inner:
            raise ValueError(
                "the reference knows the paper's gates, LinRec's attention, hidden unlike inner, targets=last"
            )
        self.widths = method.widths
        self.items = nn.Embedding(items, method.hidden, padding_idx=0)
        self.positions = nn.Parameter(SPREAD * torch.randn(method.training.length, method.hidden))
        nn.init.normal_(self.items.weight[1:], 0, SPREAD)
        self.norm, self.dropout = Norm(method.hidden), nn.Dropout(method.dropout)
        self.layers = nn.ModuleDict(
            {
                str(number): nn.ModuleDict({name: Layer(method) for name in self.widths})
                for number in range(1, method.layers + 1)
            }
        )
        self.masks = {}
        for name, (hidden, inner) in self.widths.items():
            head, kept = method.hidden // method.heads, hidden // method.heads
            mask_D = (torch.arange(method.hidden) % head < kept).float()
            self.masks[name] = mask_D, (torch.arange(method.inner) < inner).float()

    def forward(self, past_BT: Tensor, widths: Shares, depths: Shares) -> Tensor:
        """The vectors of the pasts, (B, D)."""
        event_BTD = self.items(past_BT) + self.positions
        parts = [share * self.norm(event_BTD, self.masks[name][0]) for name, share in widths.items()]
        first_BTD = state_BTD = self.dropout(torch.stack(parts).sum(0))
        outputs = []
        for number in range(1, max(int(depth) for depth in depths) + 1):
            parts = []
            for name, share in widths.items():
                parts.append(share * self.candidate(number, name)(state_BTD, first_BTD, *self.masks[name]))
            state_BTD = torch.stack(parts).sum(0)
            if str(number) in depths:
                outputs.append(depths[str(number)] * state_BTD)
        last_B = ((past_BT != 0).sum(1) - 1).clamp(min=0)
        return torch.stack(outputs).sum(0)[torch.arange(len(past_BT)), last_B]

    def candidate(self, number: int, name: str) -> nn.Module:
        widths = self.layers[str(number)]
        assert isinstance(widths, nn.ModuleDict)
        return widths[name]

    def counterparts(self, ours: DNSRecNet) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """Each weight of our net, the one of this net that it is, and where it lies in it, axis by axis."""
        events = ours.events
        yield events.items.weight, self.items.weight, [torch.arange(size) for size in self.items.weight.shape]
        yield events.positions, self.positions, [torch.arange(size) for size in self.positions.shape]
        for one in ("weight", "bias"):
            own: Tensor = getattr(self.norm, one)
            yield events.get_parameter(f"norm.{one}"), own, [torch.arange(len(own))]
        for number, blocks in self.layers.items():
            assert isinstance(blocks, nn.ModuleDict)
            for name, block in blocks.items():
                kept = {len(mask): mask.nonzero().squeeze(1) for mask in self.masks[name]}
                theirs = dict(ours.block(int(number), name).named_parameters())
                for path, own in block.named_parameters():
                    layer, _, kind = path.rpartition(".")
                    gate, _, place = layer.partition(".maps.")
                    if layer in ("attention.query", "attention.key", "attention.value"):
                        part = ("query", "key", "value").index(layer.removeprefix("attention."))
                        known = theirs[f"layer.attention.query_key_value.{kind}"].chunk(3)[part]
                    else:
                        known = theirs[f"{gate}.{2 * int(place)}.{kind}" if place else f"layer.{path}"]
                    yield known, own, [kept[size] for size in own.shape]

    @torch.no_grad()
    def take(self, ours: DNSRecNet) -> None:
        """Take the weights of our net; what a width prunes keeps what it is."""
        for known, own, places in self.counterparts(ours):
            own[torch.meshgrid(*places, indexing="ij")] = known


class Training:
    """The supernet's training, and that of its controllers: the logits `alpha` of widths and `beta` of depths."""

    def __init__(self, net: Reference, method: DNSRec) -> None:
        self.net, self.method, self.steps = net, method, 0
        self.alpha, self.beta = (nn.Parameter(torch.zeros(count)) for count in (len(net.widths), method.layers))
        self.optimizer = torch.optim.Adam(net.parameters(), method.training.learning_rate, foreach=False)
        self.learner = torch.optim.Adam([self.alpha, self.beta], method.learner.learning_rate, foreach=False)
        heads = method.heads
        gate_MACs = [(method.gates * d + D) * d + (method.gates - 1) * D * D for d, D in net.widths.values()]
        maps = [4 * d * d + 2 * d * (d // heads) + 2 * d * D for d, D in net.widths.values()]
        price_M = torch.tensor([gate + own for gate, own in zip(gate_MACs, maps, strict=True)], dtype=torch.float32)
        self.price_M = price_M / price_M.max()

    def shares(self) -> tuple[Shares, Shares]:
        """Gumbel weights."""
        tau = max(self.method.coldest, 1 - self.method.cooling * self.steps)
        width_M, depth_L = (
            ((logits - torch.log(-torch.log(torch.rand_like(logits)))) / tau).softmax(0)
            for logits in (self.alpha, self.beta)
        )
        depths = {str(place + 1): share for place, share in enumerate(depth_L)}
        return dict(zip(self.net.widths, width_M, strict=True)), depths

    def step(self, past_BT: Tensor, target_B: Tensor) -> float:
        """A step of the weights."""
        with torch.no_grad():
            shares = self.shares()
        self.optimizer.zero_grad()
        loss = loss_of(self.net, past_BT, target_B, *shares)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return loss.item()

    def learn(self, past_BT: Tensor, target_B: Tensor) -> float:
        """A step of the controllers, on validation rows."""
        self.net.eval()
        widths, depths = self.shares()
        self.learner.zero_grad()
        loss = loss_of(self.net, past_BT, target_B, widths, depths) + self.penalty(widths, depths)
        loss.backward()
        self.learner.step()
        self.net.train()
        return loss.item()

    def penalty(self, widths: Shares, depths: Shares) -> Tensor:
        """lambda times eq. 12; the unit is the widest candidate."""
        width_M, depth_L = (torch.stack([torch.as_tensor(one) for one in some.values()]) for some in (widths, depths))
        likeliest = int(self.beta.argmax()) + 1
        return self.method.tradeoff * (width_M * self.price_M).sum() * depth_L.sum() * likeliest / self.method.layers


def loss_of(net: Reference, past_BT: Tensor, target_B: Tensor, widths: Shares, depths: Shares) -> Tensor:
    """Mean cross-entropy over all items but the padding."""
    logit_BI = net(past_BT, widths, depths) @ net.items.weight.T
    return functional.cross_entropy(logit_BI[:, 1:], target_B - 1)


@torch.no_grad()
def rank(encode: Encode, target_R: Tensor) -> Tensor:
    """The rank of each row's item among all items, from 1 on. Shape (rows,)."""
    found = []
    for row_B in torch.arange(len(target_R)).split(BLOCK):
        user_BD, item_ID = encode(row_B)
        score_BI = user_BD @ item_ID.T
        score_BI[:, 0] = -torch.inf
        order_BI = torch.sort(score_BI, dim=1, descending=True).indices
        found.append((order_BI == target_R[row_B, None]).nonzero()[:, 1] + 1)
    return torch.cat(found)


def ndcg(rank_R: Tensor, k: int) -> float:
    return float(torch.where(rank_R <= k, 1 / (rank_R + 1).double().log2(), 0.0).mean())


def score(net: Reference, rows: Copies, width: str, depth: str) -> float:
    """A candidate's ndcg@10."""
    net.eval()

    def encode(row_B: Tensor) -> tuple[Tensor, Tensor]:
        return net(rows.past[row_B], {width: 1.0}, {depth: 1.0}), net.items.weight

    return ndcg(rank(encode, rows.target), 10)


@torch.no_grad()
def rank_apart(encode: Encode, target_R: Tensor, others_RN: Tensor, block: int = 8) -> Tensor:
    """The rank of each row's item among others, its past encoded anew for each, as RecBole's `predict` does.

    others_RN: their ids, 0 for none. Shape (rows,).
    """
    found = []
    for row_B in torch.arange(len(target_R)).split(block):
        item_BN = torch.cat([target_R[row_B, None], others_RN[row_B]], 1)
        user_XD, item_ID = encode(row_B.repeat_interleave(item_BN.shape[1]))
        score_BN = (user_XD * item_ID[item_BN.flatten()]).sum(1).view(item_BN.shape)
        higher_BN = (score_BN[:, 1:] >= score_BN[:, :1]) & (others_RN[row_B] > 0)
        found.append(higher_BN.sum(1) + 1)
    return torch.cat(found)
