"""NASRec's net: blocks of dense and sparse operators over any outputs before them (Zhang et al., 2023, §3).

Every operator is cut to the live part of its inputs and outputs, so closed operators, connections and dimensions cost
nothing, and a block whose outputs do not reach the logit is neither run nor counted. Two deviations from the paper's
masks keep the law of weight sharing: norms count live dimensions only, and the dot product's inner width is a constant
of the supernet.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nascore import plugins
from nascore.click_net import ClickNet, Inputs
from nascore.cost import Cost
from nascore.ops import Elastic, Live, Op, Spans, build
from nascore.schema import Schema
from nascore.space import Choice, Decision, Mix, Space

RAW = "raw"
PAIRED = ("gating", "add")
Node = tuple[str, str]


def alive(opened: Mapping[str, Choice], blocks: int) -> set[Node]:
    """The outputs that reach the logit: (block, "dense", "fields" or "sparse"); the last is fields and projections."""
    live = {(str(blocks), "dense"), (str(blocks), "sparse")}
    for number in range(blocks, 0, -1):
        block = str(number)
        if (block, "sparse") in live:
            live.add((block, "fields"))
            if opened[f"{block}/merge"]:
                live.add((block, "dense"))
        if (block, "dense") in live:
            live |= {(source, "dense") for name in dense_reads(opened, block) for source in opened[name]}
            if opened.get(f"{block}/fm"):
                live.add((block, "fields"))
        if fields_read(opened, block, live):
            live |= {(source, "sparse") for source in opened[f"{block}/sparse/from"]}
    return live


def dense_reads(opened: Mapping[str, Choice], block: str) -> list[str]:
    """The decisions that say what the open dense operators of a block read of the dense outputs before it."""
    kinds = {*opened[f"{block}/dense/op"]}
    reads = [f"{block}/left", f"{block}/right"] if kinds & {*PAIRED} else []
    return reads + ([f"{block}/dense/from"] if kinds - {*PAIRED} else [])


def fields_read(opened: Mapping[str, Choice], block: str, live: set[Node]) -> bool:
    """Whether a block reads sparse outputs before it."""
    dots = (block, "dense") in live and "dot" in opened[f"{block}/dense/op"]
    return dots or (block, "fields") in live


@dataclass(frozen=True)
class Frame:
    """How the outputs of blocks lie side by side in the inputs of later ones, in a net over some decisions.

    dense, sparse: the numbers of raw dense and sparse features. tokens: vectors of a projected dense output.
    """

    decisions: Mapping[str, Decision]
    dense: int
    sparse: int
    tokens: int

    def width(self, block: str, side: str) -> int:
        """The widest output of a block, projected vectors included."""
        if block == RAW:
            return self.dense if side == "dense" else self.sparse
        widest = max(int(size) for size in self.decisions[f"{block}/{side}/size"].options)
        merges = side == "sparse" and self.decisions[f"{block}/merge"].options
        return widest + (self.tokens if merges else 0)

    def spans(self, block: str, side: str, opened: Mapping[str, Choice]) -> Spans:
        """The live part of an output."""
        if block == RAW:
            return Spans(((0, self.width(RAW, side)),))
        own = Spans(((0, max(int(size) for size in opened[f"{block}/{side}/size"])),))
        if side == "dense" or not opened[f"{block}/merge"]:
            return own
        end = self.width(block, side)
        return Spans((*own.spans, (end - self.tokens, end)))

    def inlet(self, decision: str, side: str) -> int:
        """The width of what a decision's options are side by side."""
        return sum(self.width(option, side) for option in self.decisions[decision].options)

    def live(self, decision: str, side: str, opened: Mapping[str, Choice]) -> Spans:
        """The live part of that."""
        start, spans = 0, list[tuple[int, int]]()
        for option in self.decisions[decision].options:
            if option in opened[decision]:
                spans += self.spans(option, side, opened).shifted(start)
            start += self.width(option, side)
        return Spans(tuple(spans))

    def of_block(self, block: str, opened: Mapping[str, Choice]) -> Live:
        """The live positions of each letter of a block's operators."""
        places = (("D", "dense/from", "dense"), ("L", "left", "dense"), ("R", "right", "dense"))
        named = {
            letter: self.live(f"{block}/{name}", side, opened)
            for letter, name, side in places
            if f"{block}/{name}" in self.decisions
        }
        sizes = {
            letter: Spans(self.spans(block, side, opened).spans[:1])
            for letter, side in (("O", "dense"), ("M", "sparse"))
        }
        return {**named, "N": self.live(f"{block}/sparse/from", "sparse", opened), **sizes}

    def of_head(self, block: str, width: int, opened: Mapping[str, Choice]) -> Spans:
        """The live part of a block's dense and flattened (width, N) sparse output."""
        spans, start = [*self.spans(block, "dense", opened).spans], self.width(block, "dense")
        for _ in range(width):
            spans += self.spans(block, "sparse", opened).shifted(start)
            start += self.width(block, "sparse")
        return Spans(tuple(spans))


class Block(nn.Module):
    """The operators of one block that can run in a space."""

    def __init__(self, frame: Frame, block: str, live: set[Node], embedding: int, specs: Mapping[str, str]) -> None:
        super().__init__()
        options = {name: decision.options for name, decision in frame.decisions.items()}
        sizes = {"E": embedding, "K": frame.tokens, "N": frame.inlet(f"{block}/sparse/from", "sparse")}
        for letter, name in (("D", "dense/from"), ("L", "left"), ("R", "right")):
            if f"{block}/{name}" in options:
                sizes[letter] = frame.inlet(f"{block}/{name}", "dense")
        sizes["O"] = max(int(size) for size in options[f"{block}/dense/size"])
        sizes["M"] = max(int(size) for size in options[f"{block}/sparse/size"])

        def made(option: str, **own: int) -> Op:
            signature = plugins.load("ops", specs[option].partition(":")[0]).signature
            return build(specs[option], **{n: own.get(n, size) for n, size in sizes.items() if n in signature})

        dense = options[f"{block}/dense/op"] if (block, "dense") in live else ()
        fields = options[f"{block}/sparse/op"] if (block, "fields") in live else ()
        merge = options[f"{block}/merge"] if (block, "sparse") in live else ()
        fm = options.get(f"{block}/fm", ()) if dense else ()
        self.dense = nn.ModuleDict({option: made(option) for option in dense})
        self.sparse = nn.ModuleDict({option: made(option) for option in fields})
        self.merge = nn.ModuleDict({option: made(option, D=sizes["O"]) for option in merge})
        self.fm = nn.ModuleDict({option: made(option, N=sizes["M"]) for option in fm})

    def run(self, inputs: "_Inputs", live: Live, nodes: set[str], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of some parts of the block, given those that are known."""
        outputs = {**known}
        if "fields" in nodes:
            fields_BEN = inputs("sparse/from")
            ran = [self.op("sparse", option)(fields_BEN, live) for option in inputs.opened("sparse/op")]
            outputs["fields"] = _total(ran)
        if "dense" in nodes:
            ran = []
            for option in inputs.opened("dense/op"):
                reads = ["left", "right"] if option in PAIRED else ["dense/from"]
                reads += ["sparse/from"] if option == "dot" else []
                ran.append(self.op("dense", option)(*map(inputs, reads), live))
            ran += [self.op("fm", option)(outputs["fields"], live) for option in inputs.opened("fm")]
            outputs["dense"] = _total(ran)
        if "sparse" in nodes:
            merged = [self.op("merge", one)(outputs["dense"], {"D": live["O"]}) for one in inputs.opened("merge")]
            outputs["sparse"] = torch.cat([outputs["fields"], *merged], 2) if merged else outputs["fields"]
        return outputs

    def op(self, part: str, option: str) -> nn.Module:
        """The operator of an option."""
        return self.get_submodule(f"{part}.{option}")


@dataclass
class _Inputs:
    """What a block reads: the open outputs of each of its decisions side by side, put together once."""

    block: str
    choices: Mapping[str, Choice]
    outputs: Mapping[Node, Tensor]

    def __post_init__(self) -> None:
        self.known: dict[str, Tensor] = {}

    def opened(self, decision: str) -> Choice:
        return self.choices.get(f"{self.block}/{decision}", ())

    def __call__(self, decision: str) -> Tensor:
        if decision not in self.known:
            side = "sparse" if decision == "sparse/from" else "dense"
            parts = [self.outputs[source, side] for source in self.opened(decision)]
            self.known[decision] = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return self.known[decision]


@dataclass
class Shared:
    """Outputs of blocks over the same rows by their traces, as many as fit into so many bytes."""

    room: int

    def __post_init__(self) -> None:
        self.outputs: dict[int, Tensor] = {}

    def keep(self, outputs: Mapping[int, Tensor]) -> None:
        for trace, output in outputs.items():
            if trace not in self.outputs and output.nbytes <= self.room:
                self.room -= output.nbytes
                self.outputs[trace] = output


def _total(outputs: list[Tensor]) -> Tensor:
    return sum(outputs[1:], outputs[0])


class NasRecNet(ClickNet):
    """The net over a NASRec space. Inputs of blocks stand side by side, fields as columns (B, E, N)."""

    def __init__(self, method: Any, schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding, method.cap)
        self.blocks = method.blocks
        whole = method.space(schema).decisions
        self.frame, self.whole = (
            Frame(decisions, self.dense_width, len(self.names), method.tokens) for decisions in (space.decisions, whole)
        )
        self.everything = {name: decision.options for name, decision in space.decisions.items()}
        live = alive(self.everything, self.blocks)
        self.last = str(self.blocks)
        self.traced: dict[tuple[Any, ...], int] = {}
        self.block = nn.ModuleDict()
        for number in range(1, self.blocks + 1):
            if live & {(str(number), part) for part in ("dense", "fields")}:
                made = Block(self.frame, str(number), live, self.width, method.specs)
                self.block[str(number)] = made
        inputs = self.frame.width(self.last, "dense") + self.width * self.frame.width(self.last, "sparse")
        self.head = build("linear", D=inputs, O=1)
        nn.init.xavier_uniform_(self.head.whole("weight"))  # type: ignore[operator]
        nn.init.zeros_(self.head.whole("bias"))  # type: ignore[operator]

    def embed(self, batch: Any) -> Inputs:
        x = super().embed(batch)
        return {**x, "sparse": x["sparse"].transpose(1, 2).contiguous()}

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        opened = self.opened(mix)
        logit_B1: Tensor = self.head(self.features(x, opened), {"D": self.head_live(opened)})
        return logit_B1.squeeze(1)

    def opened(self, mix: Mix) -> dict[str, Choice]:
        """The open options of a path; weights are 0 or 1, on the host."""
        found: dict[str, Choice] = {}
        for name, decision in self.space.decisions.items():
            chosen = mix[name]
            if isinstance(chosen, Tensor):
                raise TypeError("NASRec's net runs paths: weights of 0 and 1 on the host")
            found[name] = tuple(option for option, w in zip(decision.options, chosen, strict=True) if w)
        return found

    def head_live(self, opened: Mapping[str, Choice]) -> Spans:
        """The live inputs of the last layer."""
        return self.frame.of_head(self.last, self.width, opened)

    def features(self, x: Inputs, opened: Mapping[str, Choice], shared: "Shared | None" = None) -> Tensor:
        """What the last layer reads: the live dense and sparse output of the last block. Shape (B, F).

        shared: takes outputs of blocks by `traces`, for other paths over the same rows.
        """
        live = alive(opened, self.blocks)
        traces = self.traces(opened) if shared is not None else {}
        outputs: dict[Node, Tensor] = {(RAW, "dense"): x["dense"], (RAW, "sparse"): x["sparse"]}
        for block, made in self.block.items():
            assert isinstance(made, Block)
            nodes = {part for name, part in live if name == block}
            met = shared.outputs if shared is not None else {}
            known = {part: met[traces[block, part]] for part in nodes if met and traces[block, part] in met}
            if nodes - known.keys():
                inputs = _Inputs(block, opened, outputs)
                known = made.run(inputs, self.frame.of_block(block, opened), nodes - known.keys(), known)
            outputs |= {(block, part): output for part, output in known.items()}
            if shared is not None:
                shared.keep({traces[block, part]: output for part, output in known.items()})
        return torch.cat([outputs[self.last, "dense"], outputs[self.last, "sparse"].flatten(1)], 1)

    def traces(self, opened: Mapping[str, Choice]) -> dict[Node, int]:
        """A number for each output, the same for all paths on which it is the same function of the row."""
        traces: dict[Node, int] = {(RAW, "dense"): -1, (RAW, "sparse"): -2}
        for number in range(1, self.blocks + 1):
            block = str(number)

            def read(name: str, side: str, block: str = block) -> tuple[int, ...]:
                return tuple(traces[source, side] for source in opened.get(f"{block}/{name}", ()))

            def own(*names: str, block: str = block) -> tuple[Choice, ...]:
                return tuple(opened.get(f"{block}/{name}", ()) for name in names)

            fields = self._trace(block, own("sparse/op", "sparse/size"), read("sparse/from", "sparse"))
            reads = [read(name.partition("/")[2], "dense") for name in dense_reads(opened, block)]
            dots = read("sparse/from", "sparse") if "dot" in opened[f"{block}/dense/op"] else ()
            below = (*reads, dots, (fields,) if opened.get(f"{block}/fm") else ())
            dense = self._trace(block, own("dense/op", "dense/size", "fm"), *below)
            merged = (dense,) if opened[f"{block}/merge"] else ()
            traces[block, "fields"], traces[block, "dense"] = fields, dense
            traces[block, "sparse"] = self._trace(block, (fields,), merged)
        return traces

    def _trace(self, *known: Any) -> int:
        return self.traced.setdefault(known, len(self.traced))

    def elastic(self, frame: Frame, opened: Mapping[str, Choice]) -> dict[str, tuple[Elastic, Live]]:
        """Every operator that runs, by module name, with its live positions in a frame."""
        live, found = alive(opened, self.blocks), dict[str, tuple[Elastic, Live]]()
        needs = {"dense": "dense", "sparse": "fields", "merge": "sparse", "fm": "dense"}
        names = {"dense": "dense/op", "sparse": "sparse/op", "merge": "merge", "fm": "fm"}
        for block, made in self.block.items():
            if not {part for name, part in live if name == block}:
                continue
            places = frame.of_block(block, opened)
            for part, need in needs.items():
                for option in opened.get(f"{block}/{names[part]}", ()) if (block, need) in live else ():
                    assert isinstance(made, Block)
                    op = made.op(part, option)
                    assert isinstance(op, Elastic)
                    own = {"D": places["O"]} if part == "merge" else places
                    found[f"block.{block}.{part}.{option}"] = op, own
        assert isinstance(self.head, Elastic)
        found["head"] = self.head, {"D": frame.of_head(self.last, self.width, opened)}
        return found

    def live(self) -> Mapping[str, Live]:
        return {name: live for name, (_, live) in self.elastic(self.whole, self.everything).items()}

    def costs(self, mix: Mix) -> dict[str, Cost]:
        parts = {"dense": "dense/op", "sparse": "sparse/op", "merge": "merge", "fm": "fm"}
        costs = self.table_costs()
        for name, (op, live) in self.elastic(self.frame, self.opened(mix)).items():
            _, _, rest = name.partition("block.")
            block, _, path = rest.partition(".")
            part = f"{block}/{parts[path.partition('.')[0]]}" if rest else name
            costs[part] = costs.get(part, Cost()) + op.cost(live)
        return costs
