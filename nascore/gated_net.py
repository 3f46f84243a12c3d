"""Click nets of which single embedding dimensions can be kept or left out (iHAS §3.2 and 3.3).

Every number is a category here, too. A net over a narrower space holds only what it keeps of each table: fields that
keep equally many dimensions share one matrix, and a perceptron reads what is kept side by side. Any other click net of
the house can stand behind the gates; what is left out reaches it as zeros, at the cost of full width, and so do the
first-order weights of a field of which nothing is kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from nascore.buckets import bucketed, in_buckets
from nascore.click_net import ClickNet, Inputs, sizes
from nascore.cost import Cost, Number
from nascore.net import Net, Row
from nascore.ops import Live, build
from nascore.schema import Batch, Schema
from nascore.space import Decision, Mix, Space
from nascore.sparse import Tables

Grain = Literal["dimension", "field", "prefix"]
WHOLE, FIRST = "all", "first "


def decision(field: str, width: int, grain: Grain) -> Decision:
    """What may be kept of a field: any of its dimensions, all or none of them, or its first ones."""
    if grain == "dimension":
        return Decision(field, tuple(map(str, range(width))), 0, width)
    if grain == "field":
        return Decision(field, (WHOLE,), 0, 1)
    return Decision(field, tuple(f"{FIRST}{count}" for count in range(1, width + 1)))


def dimensions(option: str, width: int) -> Sequence[int]:
    """The dimensions that an option keeps."""
    if option == WHOLE:
        return range(width)
    return range(int(option.removeprefix(FIRST))) if option.startswith(FIRST) else (int(option),)


class KeptTables(nn.Module):
    """Some dimensions of each table, the values those that `tables` has.

    kept: for each field the dimensions that stay. columns (K,): where each number of a look-up lies among the N·D of
    all fields side by side.
    """

    columns: Tensor

    def __init__(self, tables: Tables, kept: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.kept, self.width = kept, tables.weight.shape[1]
        self.starts = dict(zip(tables.sizes, accumulate(tables.sizes.values(), initial=0), strict=False))
        names, counts = list(kept), sorted({len(dims) for dims in kept.values()} - {0})
        self.fields = {count: [name for name in names if len(kept[name]) == count] for count in counts}
        for count, fields in self.fields.items():
            own = torch.tensor([names.index(name) for name in fields])
            self.register_buffer(f"place_{count}", own, persistent=False)
        order = [name for fields in self.fields.values() for name in fields]
        columns = [names.index(name) * self.width + dim for name in order for dim in kept[name]]
        self.full = columns == list(range(len(names) * self.width))
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long), persistent=False)
        self.groups = nn.ModuleDict(
            {
                str(count): Tables({name: tables.sizes[name] for name in fields}, count)
                for count, fields in self.fields.items()
            }
        )
        self.take(tables.weight)

    @property
    def sliced(self) -> Iterable[str]:
        """The weights that `inherit` takes: all."""
        return self.state_dict()

    def inherit(self, source: "KeptTables", live: Live) -> None:
        """Take what is kept from tables of full width."""
        if not source.full:
            raise ValueError("tables that do not keep all dimensions have none to give")
        self.take(source.group(self.width).weight)

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """Take what is kept from one matrix (rows, D) of all tables at full width, one after the other."""
        for count, fields in self.fields.items():
            group, start = self.group(count), 0
            for name in fields:
                rows = group.sizes[name]
                own = weight[self.starts[name] : self.starts[name] + rows]
                group.weight[start : start + rows] = own[:, list(self.kept[name])]
                start += rows

    def group(self, count: int) -> Tables:
        """The tables of the fields that keep so many dimensions."""
        group = self.groups[str(count)]
        assert isinstance(group, Tables)
        return group

    def forward(self, id_BN: Tensor) -> Tensor:
        """What is kept of each row's vectors, side by side. Shape (B, K)."""
        found = []
        for count, fields in self.fields.items():
            whole = len(fields) == id_BN.shape[1]
            own_BN = id_BN if whole else id_BN.index_select(1, self.get_buffer(f"place_{count}"))
            found.append(self.group(count)(own_BN).flatten(1))
        return torch.cat(found, 1) if len(found) > 1 else found[0]

    def filled(self, x_BK: Tensor) -> Tensor:
        """Look-ups as vectors of full width, with zeros where nothing is kept. Shape (B, N, D)."""
        if not self.full:
            x_BK = x_BK.new_zeros(x_BK.shape[0], len(self.kept) * self.width).index_copy(1, self.columns, x_BK)
        return x_BK.view(x_BK.shape[0], len(self.kept), self.width)

    def cost(self) -> Cost:
        return sum((self.group(count).cost() for count in self.fields), Cost())


class Lent:
    """Tables in the hands of a net that does not own them: they are saved and trained elsewhere."""

    def __init__(self, tables: KeptTables) -> None:
        self.own = tables

    def __call__(self, id_BN: Tensor) -> Tensor:
        return self.own(id_BN)  # type: ignore[no-any-return]

    def cost(self) -> Cost:
        """None: who owns them counts them."""
        return Cost()


class Vectors(nn.Module):
    """The vectors of all fields of a batch, numbers among them.

    names: the fields. numbers: those that become categories first.
    """

    def __init__(self, names: Sequence[str], numbers: Sequence[str], tables: KeptTables) -> None:
        super().__init__()
        self.names, self.numbers, self.tables = tuple(names), tuple(numbers), tables

    def forward(self, batch: Batch) -> Inputs:
        """ "kept" (B, K), "rows" (B,), "ids" (B, N)."""
        batch = in_buckets(batch, self.numbers)
        id_BN = torch.stack([batch[name] for name in self.names], 1)
        return {"kept": self.tables(id_BN), "rows": batch.rows, "ids": id_BN}


class GatedNet(Net):
    """A perceptron over what is kept of each field, or another click net over vectors with zeros.

    layers: widths of the hidden layers of the perceptron. behind: the other net, over the schema whose numbers are
    categories; it gives its tables away. The output is the logit of each row, (B,).

    A field that the space decides nothing of is kept whole.

    Weights of a mix that are tensors multiply the dimensions, one for all rows or one a row.
    """

    def __init__(
        self, schema: Schema, space: Space, width: int, layers: Sequence[int], behind: ClickNet | None = None
    ) -> None:
        super().__init__(schema, space)
        numbers = tuple(column.name for column in schema.columns if column.kind == "number")
        self.sizes, self.width = sizes(bucketed(schema)), width
        self.names = tuple(self.sizes)
        options = {name: space.decisions[name].options if name in space.decisions else (WHOLE,) for name in self.names}
        kept = {
            name: sorted({dim for option in options[name] for dim in dimensions(option, width)}) for name in self.names
        }
        self.reach = {name: [{*dimensions(one, width)} for one in own] for name, own in options.items()}
        self.whole = {name: (1.0,) * len(own) for name, own in options.items()}
        if not any(kept.values()):
            raise ValueError("a net that keeps no dimension of any field has nothing to learn from")
        tables = KeptTables(behind.tables if behind is not None else Tables(self.sizes, width), kept)
        self.vectors = Vectors(self.names, numbers, tables)
        self.behind: ClickNet | None = behind
        if behind is None:
            first, *others = (*layers, 1)
            self.outputs = first
            self.first = build("linear", D=len(self.tables.columns), O=first)
            modules: list[nn.Module] = []
            for before, after in zip((first, *others), others, strict=False):
                modules += [nn.ReLU(), build("linear", D=before, O=after)]
            self.rest = Row(*modules)
        else:
            del behind.tables
            behind.tables = Lent(tables)  # type: ignore[assignment]

    def embed(self, batch: Batch) -> Inputs:
        """ "kept" (B, K), "rows" (B,), and what the other net looks up beside its vectors."""
        if self.behind is None:
            x: Inputs = self.vectors(batch)
            return x
        x = self.behind.embed(in_buckets(batch, self.vectors.numbers))
        return {**x, "kept": x["sparse"], "rows": batch.rows}

    @property
    def tables(self) -> KeptTables:
        """What it keeps of each table."""
        return self.vectors.tables

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        mask = self.mask(mix)
        if mask is not None or not self.tables.full:
            x = self.without(x, mask)
        if self.behind is not None:
            logit_B: Tensor = self.behind({**x, "sparse": self.tables.filled(x["kept"])}, {})
            return logit_B
        logit_B1: Tensor = self.rest(self.first(x["kept"]))
        return logit_B1.squeeze(1)

    def without(self, x: Inputs, mask: Tensor | None) -> Inputs:
        """Look-ups times what multiplies them, (K,) or (B, K); first-order weights times the most of their field."""
        x = x if mask is None else {**x, "kept": x["kept"] * mask}
        if "weights" in x:
            width = x["kept"].shape[1]
            open_BK = x["kept"].new_ones(1, width) if mask is None else mask.view(-1, width)
            x = {**x, "weights": x["weights"] * self.tables.filled(open_BK).amax(2, keepdim=True)}
        return x

    def mask(self, mix: Mix) -> Tensor | None:
        """What multiplies the kept dimensions, (K,) or (B, K); None for ones."""
        decided = {name: mix[name] for name in self.order if name in self.space.decisions}
        tensors = [one for one in decided.values() if isinstance(one, Tensor)]
        if not tensors:
            if all(decided[name] == self.whole[name] for name in decided):
                return None
            opened = [share for name in self.order for share in self.shares(name, mix)]
            return torch.tensor(opened).to(self.tables.columns.device, non_blocking=True)
        parts, lead = list[Tensor](), tensors[0].shape[:-1]
        for name in self.order:
            weights = decided.get(name, ())
            kept = weights if isinstance(weights, Tensor) else tensors[0].new_tensor(self.shares(name, mix))
            parts.append(kept.expand(*lead, len(self.tables.kept[name])))
        return torch.cat(parts, -1)

    @property
    def order(self) -> list[str]:
        """The fields that keep anything, as they lie side by side."""
        return [name for fields in self.tables.fields.values() for name in fields]

    def shares(self, name: str, mix: Mix) -> Sequence[Number]:
        """The weight of each kept dimension of a field: on the host that of the widest option that keeps it."""
        dims = self.tables.kept[name]
        if name not in self.space.decisions:
            return [1.0] * len(dims)
        weights, options = mix[name], self.space.decisions[name].options
        if isinstance(weights, Tensor):
            each = weights.reshape(-1, len(options)).mean(0).unbind()
            return each if len(each) == len(dims) else [each[0]] * len(dims)
        opened = list(zip(weights, self.reach[name], strict=True))
        return [max((weight for weight, kept in opened if dim in kept), default=0.0) for dim in dims]

    def costs(self, mix: Mix) -> Mapping[str, Cost]:
        """Of tables a part each, by their names."""
        parts, opened = dict[str, Cost](), list[Number]()
        for name in self.order:
            shares = self.shares(name, mix)
            opened += shares
            parts[f"tables/{name}"] = Cost(table_params=self.sizes[name] * sum(shares))
        if self.behind is not None:
            return parts | {name: cost for name, cost in self.behind.costs({}).items() if name != "tables"}
        columns, outputs = sum(opened), self.outputs
        first = Cost(params=outputs * columns + outputs, macs=outputs * columns)
        return parts | {"deep": first + self.rest.cost()}

    def live(self) -> Mapping[str, Live]:
        """Of the first layer, the inputs that stay; of the tables, all is up to them."""
        first = {} if self.behind is not None else {"first": {"D": self.tables.columns.tolist()}}
        return {"vectors.tables": {}, **first}
