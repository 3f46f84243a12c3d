"""NASRec's published step and candidate scorer written plainly: what benchmarks/click_speed.py measures against.

Every open operator runs at full width on all outputs before it, zeros in place of those that it does not read; a mask
closes the dimensions that are not chosen after each operator, and what all operators of a branch give, zeros for closed
ones, is stacked and summed. Blocks that the logit does not hang on run too. Each column has a table of its own with a
dense gradient. A candidate's last layer is tuned by steps that compute its frozen features anew, and candidates are
scored one by one at full width. The wiring is that of the public code: a square gate, one map for both sides of a sum,
a transformer layer over the most fields.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.methods.nasrec import NASRec
from nascore.net import Net
from nascore.schema import Batch, Schema
from nascore.space import Genotype
from nascore.training import Plan

HEADS, SCALE, EPSILON, CLIP = 8, 0.17, 1e-2, 5.0
RAW = "raw"
SIDES = ("dense/op", "dense/size", "dense/from", "sparse/op", "sparse/size", "sparse/from")
DECISIONS = (*SIDES, "left", "right", "merge")


def _norm(norm: bool, width: int) -> nn.Module:
    return nn.LayerNorm(width) if norm else nn.Identity()


class Fc(nn.Module):
    def __init__(self, norm: bool, inputs: int, outputs: int) -> None:
        super().__init__()
        self.map, self.norm = nn.Linear(inputs, outputs, bias=not norm), _norm(norm, outputs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.relu(self.norm(self.map(x))) * mask


class EmbedFc(Fc):
    """FC over the fields."""

    def forward(self, x_BNE: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x_BNE.transpose(1, 2), mask).transpose(1, 2)


class Add(nn.Module):
    def __init__(self, norm: bool, inputs: int, outputs: int) -> None:
        super().__init__()
        self.map, self.norm = nn.Linear(inputs, outputs, bias=not norm), _norm(norm, outputs)

    def forward(self, left_BD: Tensor, right_BD: Tensor, mask: Tensor) -> Tensor:
        return self.norm(self.map(left_BD + right_BD)) * mask


class Gating(nn.Module):
    def __init__(self, norm: bool, inputs: int, outputs: int) -> None:
        super().__init__()
        self.gate, self.value, self.norm = nn.Linear(inputs, inputs), nn.Linear(inputs, outputs), _norm(norm, outputs)

    def forward(self, left_BD: Tensor, right_BD: Tensor, mask: Tensor) -> Tensor:
        return self.norm(self.value(torch.sigmoid(self.gate(left_BD)) * right_BD)) * mask


class Dot(nn.Module):
    """Inner products of all pairs of the dense vector and `inner` mixed fields."""

    def __init__(self, norm: bool, inputs: int, width: int, fields: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.dense, self.dense_norm = nn.Linear(inputs, width, bias=not norm), _norm(norm, width)
        self.sparse, self.sparse_norm = nn.Linear(fields, inner, bias=not norm), _norm(norm, inner)
        self.out = nn.Linear(inner * (inner + 1) // 2, outputs, bias=not norm)
        self.out_norm = _norm(norm, outputs)

    def forward(self, x_BD: Tensor, x_BNE: Tensor, mask: Tensor) -> Tensor:
        vector_BE = self.dense_norm(self.dense(x_BD))
        mixed_BKE = self.sparse_norm(self.sparse(x_BNE.transpose(1, 2))).transpose(1, 2)
        x_BVE = torch.cat([vector_BE[:, None], mixed_BKE], 1)
        product_BVV = torch.bmm(x_BVE, x_BVE.transpose(1, 2))
        row_P, column_P = torch.tril_indices(x_BVE.shape[1], x_BVE.shape[1], -1)
        return self.out_norm(self.out(product_BVV[:, row_P, column_P])) * mask


class Attention(nn.Module):
    """A transformer layer over the most fields; those that are not chosen take part as zeros."""

    def __init__(self, norm: bool, width: int, fields: int, outputs: int) -> None:
        super().__init__()
        self.map, self.map_norm = nn.Linear(fields, outputs, bias=not norm), _norm(norm, outputs)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.hidden, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.first_norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        for own in (self.first_norm, self.last_norm):
            nn.init.constant_(own.weight, SCALE)

    def forward(self, x_BNE: Tensor, mask: Tensor) -> Tensor:
        x_BME = (self.map_norm(self.map(x_BNE.transpose(1, 2))) * mask).transpose(1, 2)
        attended_BME, _ = self.attention(x_BME, x_BME, x_BME, need_weights=False)
        x_BME = self.first_norm(x_BME + attended_BME)
        x_BME = self.last_norm(x_BME + self.out(torch.relu(self.hidden(x_BME))))
        return x_BME * mask[:, None]


class Project(nn.Module):
    """Dense to `tokens` vectors, one norm over all of them."""

    def __init__(self, norm: bool, inputs: int, width: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.map, self.norm = nn.Linear(inputs, width * tokens, bias=not norm), _norm(norm, width * tokens)

    def forward(self, x_BD: Tensor) -> Tensor:
        vector_BTE: Tensor = self.norm(self.map(x_BD)).unflatten(1, (self.tokens, -1))
        return vector_BTE


class Block(nn.Module):
    """All operators of one block, over all outputs before it."""

    def __init__(self, method: NASRec, number: int, numbers: int, fields: int) -> None:
        super().__init__()
        self.name, self.tokens = str(number), method.tokens
        self.most = {"dense": method.dense_sizes[-1], "sparse": method.sparse_sizes[-1]}
        dense, sparse, width, norm = *self.most.values(), method.embedding, method.norm
        inputs = numbers + dense * (number - 1)
        fields += (sparse + method.tokens) * (number - 1)
        inner = round((2 * dense) ** 0.5)
        self.dense = nn.ModuleDict(
            {
                "fc": Fc(norm, inputs, dense),
                "gating": Gating(norm, inputs, dense),
                "add": Add(norm, inputs, dense),
                "dot": Dot(norm, inputs, width, fields, inner, dense),
            }
        )
        self.sparse = nn.ModuleDict(
            {"embed_fc": EmbedFc(norm, fields, sparse), "attention": Attention(norm, width, fields, sparse)}
        )
        self.project = Project(norm, dense, width, method.tokens)

    def forward(self, dense: Mapping[str, Tensor], sparse: Mapping[str, Tensor], path: Genotype) -> tuple[Tensor, ...]:
        """The dense and the sparse output: (B, D), (B, N, E)."""

        chosen = {name: path[f"{self.name}/{name}"] for name in DECISIONS}

        def read(decision: str, outputs: Mapping[str, Tensor]) -> Tensor:
            opened = chosen[decision]
            return torch.cat([x if source in opened else torch.zeros_like(x) for source, x in outputs.items()], 1)

        masks = {}
        for side, most in self.most.items():
            size = int(*chosen[f"{side}/size"])
            masks[side] = torch.tensor([1.0] * size + [0.0] * (most - size))
        x_BD, x_BNE = read("dense/from", dense), read("sparse/from", sparse)
        pair = read("left", dense), read("right", dense)
        inputs = {"fc": (x_BD,), "gating": pair, "add": pair, "dot": (x_BD, x_BNE)}
        ran = []
        for kind, op in self.dense.items():
            opened = kind in chosen["dense/op"]
            closed_BD = x_BD.new_zeros(len(x_BD), self.most["dense"])
            ran.append(op(*inputs[kind], masks["dense"]) if opened else closed_BD)
        total_BD = torch.stack(ran).sum(0)
        ran = []
        for kind, op in self.sparse.items():
            opened = kind in chosen["sparse/op"]
            closed_BNE = x_BNE.new_zeros(len(x_BNE), self.most["sparse"], x_BNE.shape[2])
            ran.append(op(x_BNE, masks["sparse"]) if opened else closed_BNE)
        total_BNE = torch.stack(ran).sum(0)
        none_BTE = x_BNE.new_zeros(len(x_BNE), self.tokens, x_BNE.shape[2])
        merged_BTE = self.project(total_BD) if chosen["merge"] else none_BTE
        return total_BD, torch.cat([total_BNE, merged_BTE], 1)


class Reference(nn.Module):
    """The supernet of a method's largest sizes."""

    def __init__(self, method: NASRec, schema: Schema) -> None:
        super().__init__()
        categories = [column for column in schema.columns if column.kind == "category"]
        self.numbers = [column.name for column in schema.columns if column.kind == "number"]
        self.tables = nn.ModuleDict({one.name: nn.Embedding(one.size, method.embedding) for one in categories})
        widths = len(self.numbers), len(categories)
        self.blocks = nn.ModuleDict(
            {str(number): Block(method, number, *widths) for number in range(1, method.blocks + 1)}
        )
        fields = method.sparse_sizes[-1] + method.tokens
        self.head = nn.Linear(method.dense_sizes[-1] + fields * method.embedding, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.xavier_normal_(module.weight)

    def forward(self, batch: Batch, path: Genotype) -> Tensor:
        """The logit of each row."""
        number_BF = torch.stack([batch[name] for name in self.numbers], 1)
        dense = {RAW: torch.log(torch.nan_to_num(number_BF, 0.0).clamp(min=0) + 1)}
        sparse = {RAW: torch.stack([table(batch[name]) for name, table in self.tables.items()], 1)}
        for name, block in self.blocks.items():
            dense[name], sparse[name] = block(dense, sparse, path)
        logit_B1: Tensor = self.head(torch.cat([dense[name], sparse[name].flatten(1)], 1))
        return logit_B1.squeeze(1)

    @torch.no_grad()
    def take(self, source: Net) -> None:
        """Take the weights of our net with square gates and transformer layers; of a sum, those of the left."""
        known = dict(source.named_parameters())
        rows = known["tables.weight"].split([table.num_embeddings for table in self.tables.values()])
        for table, own in zip(self.tables.values(), rows, strict=True):
            table.weight.copy_(own)
        for name, block in self.blocks.items():
            for own, value in block.named_parameters():
                ours = f"block.{name}.{own}"
                if own.startswith("project"):
                    known_ET = known[f"block.{name}.merge.{own.replace('map.', '')}"]
                    value.copy_(known_ET.transpose(0, 1).reshape(value.shape))
                elif ".in_proj_" in own:
                    parts = (
                        known[ours.replace("attention.in_proj_", f"{part}.")] for part in ("query", "key", "value")
                    )
                    value.copy_(torch.cat([*parts]))
                else:
                    ours = ours.replace("add.map.w", "add.left.w").replace("add.map.b", "add.right.b")
                    value.copy_(known[ours.replace("attention.out_proj", "mixed")])
        dense = self.blocks[name].most["dense"]
        weight, width = known["head.weight"], known["tables.weight"].shape[1]
        self.head.weight[:, :dense] = weight[:, :dense]
        self.head.weight[:, dense:] = weight[0, dense:].view(width, -1).T.reshape(1, -1)
        self.head.bias.copy_(known["head.bias"])


class Training:
    """The supernet's training, a path a step. dense: whether what is not on the path has a gradient of zeros."""

    def __init__(self, net: Reference, dense: bool = False) -> None:
        self.net, self.dense = net, dense
        self.optimizer = torch.optim.Adagrad(net.parameters(), eps=EPSILON)
        if dense:
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)

    def step(self, batch: Batch, path: Genotype, rate: float) -> float:
        return _step(self.net, self.optimizer, batch, path, rate, self.dense)


def _step(
    net: Reference, optimizer: torch.optim.Optimizer, batch: Batch, path: Genotype, rate: float, dense: bool = False
) -> float:
    loss = _loss(net(batch, path), batch)
    optimizer.zero_grad(set_to_none=not dense)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss.item()


def _loss(logit_B: Tensor, batch: Batch) -> Tensor:
    assert batch.label is not None
    return functional.binary_cross_entropy_with_logits(logit_B, batch.label.float())


def tune(net: Reference, path: Genotype, batches: Iterable[Batch], plan: Plan) -> None:
    """Train the last layer for a step a batch, all else frozen; the plan says how its learning rate goes."""
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    for parameter in net.head.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adagrad(net.head.parameters(), eps=EPSILON)
    for step, batch in enumerate(batches):
        _step(net, optimizer, batch, path, plan.rate(step))


@torch.no_grad()
def evaluate(net: Reference, path: Genotype, batches: Iterable[Batch]) -> float:
    """The mean log loss."""
    total, rows = 0.0, 0
    for batch in batches:
        total, rows = total + _loss(net(batch, path), batch).item() * len(batch), rows + len(batch)
    return total / rows


def score(net: Reference, path: Genotype, train: Iterable[Batch], valid: Iterable[Batch], plan: Plan) -> float:
    """A candidate's validation log loss with its own last layer; the net keeps its weights."""
    kept = {name: value.clone() for name, value in net.head.state_dict().items()}
    tune(net, path, train, plan)
    loss = evaluate(net, path, valid)
    net.head.load_state_dict(kept)
    return loss
