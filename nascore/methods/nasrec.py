"""NASRec: weight-sharing search over whole click models (Zhang et al., 2023, arXiv v1).

Each block of a model decides its dense and sparse operator, their dimensions, which outputs before it they read, and
whether its dense output joins the sparse ones (§3). One path is trained a step (§4.1), candidates are scored with their
last layer tuned anew (§4.3), and regularized evolution searches (§4.4). Where the paper is silent the authors' public
code fills in; the preset `repo` takes its settings where the two differ. In both, norms are kept in models trained
alone, as the paper has them in every operator; the public code leaves them out there. Its evolution is
`regularized:population=128,sample=64,children=8,mutations=6,decay=48`, and its last training has settings of its own,
which are not taken over; a projected dense output holds that of the factorisation machine too, which there is added
after it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar, Literal

from nascore.click_net import JUDGED, ClickTraining
from nascore.cost import Cost
from nascore.fitness import Fitness
from nascore.head_scoring import HeadScorer, HeadTuning
from nascore.methods import CACHE, Method, Scorer
from nascore.nasrec_net import PAIRED, RAW, NasRecNet, alive, dense_reads, fields_read
from nascore.net import Net
from nascore.plugins import bounded
from nascore.rows import Data
from nascore.samplers import Sampler
from nascore.samplers.single_operator import SingleOperator
from nascore.schema import Schema
from nascore.space import Choice, Decision, Genotype, Space
from nascore.tasks import Task
from nascore.tasks.click import Click
from nascore.training import Plan

HEADS = 8
Paths = Literal["single_any", "single_single", "any_any"]


@dataclass(frozen=True, kw_only=True)
class NASRec(Method):
    """The paper's space and settings.

    Args:
        size: full, or small: FC, dot product and EmbedFC only.
        blocks: Choice blocks of a model.
        embedding: Width of a category's vector.
        dense_sizes: The dense dimensions to choose from, the smallest first.
        sparse_sizes: The numbers of sparse vectors to choose from, the smallest first.
        tokens: Vectors that a projected dense output becomes.
        inputs: The most outputs that an operator reads; 0 for any number.
        operators: Whether a branch of a searched model has one operator or any number.
        balanced: Whether a dot product maps its fields to about as few as give the dense dimension (§4.2).
        inner: To how many, where it is known; 0 for the least whose pairs are as many as the widest dense dimension.
        square_gating: Whether the gate has a weight for each pair of inputs, as in the public code, which makes it the
            largest of all operators by far.
        attention: field, the paper's without weights, or transformer, the public code's.
        fm: Whether a block may add a factorisation machine of its fields to its dense output, as in the public code.
        norm: Whether operators are normalised.
        cap: The most rows of a table while candidates are found and compared; what is tested has no limit. 0 for none.
        paths: How a step's path is drawn: single_any, one operator and any connections; single_single; any_any.
        steps: Steps of the supernet; the paper's is one epoch of Criteo.
        batch: Rows of its batches.
        learning_rate: Adagrad's, for the supernet.
        warmup: Share of its steps in which the whole supernet may run.
        candidates: Genotypes that a search scores.
        fitness: What they are scored by: objective, the negated log loss, or auc. `calibration` rows tune the last
            layer; as many rows at a time as make a batch are computed.
        head: How those do.
        training: How a model is trained alone; the supernet takes all of it but batch, learning rate,
            weight decay, epochs and optimiser, which is Adagrad.
    """

    size: Literal["full", "small"] = "full"
    blocks: int = 7
    embedding: int = 16
    dense_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    sparse_sizes: tuple[int, ...] = (16, 32, 64)
    tokens: int = 8
    inputs: int = 0
    operators: Literal["single", "any"] = "single"
    balanced: bool = True
    inner: int = 0
    square_gating: bool = False
    attention: Literal["field", "transformer"] = "field"
    fm: bool = False
    norm: bool = True
    cap: int = 500_000
    paths: Paths = "single_any"
    steps: int = 143_000
    batch: int = 256
    learning_rate: float = 0.04
    warmup: float = 0.25
    candidates: int = 1_664
    fitness: Fitness = replace(JUDGED, batch=1_024, calibration=128_000)
    head: HeadTuning = HeadTuning()
    training: ClickTraining = ClickTraining()

    apart: ClassVar[bool] = True
    budgets: ClassVar[Mapping[str, str]] = {"whole": ""}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "repo": {
            "dense_sizes": (16, 32, 64, 128, 256, 512, 768, 1024),
            "sparse_sizes": (16, 32, 48, 64),
            "inputs": 4,
            "square_gating": True,
            "attention": "transformer",
            "fm": True,
            "steps": 71_625,
            "batch": 512,
            "learning_rate": 0.12,
            "warmup": 0.21,
            "candidates": 2_048,
            "inner": 45,
            "fitness": {"rows": 1_228_800, "batch": 1_024, "calibration": 256_000},
            "head": {"batch": 512},
            "training": {"learning_rate": 0.12, "batch": 512},
        }
    }

    def __post_init__(self) -> None:
        bounded(
            self, blocks=1, embedding=1, tokens=1, inner=0, inputs=0, cap=0, steps=1, batch=1, warmup=0, candidates=1
        )
        if self.warmup > 1:
            raise ValueError(f"NASRec: warmup is a share of the steps, not {self.warmup}")
        if self.inner and not self.balanced:
            raise ValueError("NASRec: inner is for balanced dot products")
        if self.attention == "transformer" and self.embedding % HEADS:
            raise ValueError(f"NASRec: attention=transformer has {HEADS} heads; embedding must be a multiple of that")
        for name in ("dense_sizes", "sparse_sizes"):
            sizes = getattr(self, name)
            if not sizes or list(sizes) != sorted({*sizes}) or sizes[0] < 1:
                raise ValueError(f"NASRec: {name} must be one or more sizes, the smallest first, not {sizes}")
        if self.cap == 1:
            raise ValueError("NASRec: cap is 0 or above 1: one row of a table stands for missing values")
        if self.norm and min(self.embedding, self.dense_sizes[0], self.sparse_sizes[0]) < 2:
            raise ValueError("NASRec: a norm over one number forgets it: embedding and all sizes must be 2 or more")

    def space(self, schema: Schema) -> Space:
        """Where no feature is a number, the raw dense input is one constant and nothing but dot products reads it."""
        full, constant = self.size == "full", not any(column.kind == "number" for column in schema.columns)
        dense = ("fc", *(PAIRED if full else ()), "dot")
        sparse = ("embed_fc", *(("attention",) if full else ()))
        operators = 0 if self.operators == "any" else 1
        decisions: list[Decision] = []
        for number in range(1, self.blocks + 1):
            before = (RAW, *map(str, range(1, number)))
            known = before if number == 1 or not constant else before[1:]
            mixed = ("dot",) if number == 1 and constant else dense
            decisions += [
                self._some(f"{number}/dense/op", mixed, operators),
                Decision(f"{number}/dense/size", tuple(map(str, self.dense_sizes))),
                self._some(f"{number}/dense/from", known, self.inputs),
                Decision(f"{number}/left", known),
                Decision(f"{number}/right", known),
                self._some(f"{number}/sparse/op", sparse, operators),
                Decision(f"{number}/sparse/size", tuple(map(str, self.sparse_sizes))),
                self._some(f"{number}/sparse/from", before, self.inputs),
                Decision(f"{number}/merge", ("project",), 0, 1),
                *([Decision(f"{number}/fm", ("fm",), 0, 1)] if self.fm else []),
            ]
        if not full:
            decisions = [one for one in decisions if not one.name.endswith(("left", "right"))]
        return Space(decisions, canonical=self.canonical)

    @staticmethod
    def _some(name: str, options: tuple[str, ...], most: int) -> Decision:
        """At most so many of the options, or any number of them at 0."""
        return Decision(name, options, most=min(len(options), most or len(options)))

    @property
    def specs(self) -> Mapping[str, str]:
        """What an option is built as."""
        inner = (self.inner or ceil((2 * self.dense_sizes[-1]) ** 0.5)) if self.balanced else 0
        own = {
            "fc": "fc",
            "gating": f"gating:square={self.square_gating}",
            "add": "add",
            "dot": f"dot:{inner}",
            "embed_fc": "embed_fc",
            "attention": "field_attention" if self.attention == "field" else f"field_transformer:{HEADS}",
            "project": "project",
            "fm": "fm",
        }
        return {
            name: spec if self.norm else f"{spec}{',' if ':' in spec else ':'}norm=false" for name, spec in own.items()
        }

    def canonical(self, genotype: Genotype) -> Genotype:
        """The genotype with every decision that the logit does not hang on at an option that all spaces have."""
        live, kept = alive(genotype, self.blocks), dict[str, Choice]()
        for number in range(1, self.blocks + 1):
            block = str(number)
            if (block, "dense") in live:
                names = ("dense/op", "dense/size", "fm")
                kept |= {f"{block}/{name}": genotype.get(f"{block}/{name}", ()) for name in names}
                kept |= {name: genotype[name] for name in dense_reads(genotype, block)}
            if (block, "fields") in live:
                kept |= {f"{block}/{name}": genotype[f"{block}/{name}"] for name in ("sparse/op", "sparse/size")}
            if fields_read(genotype, block, live):
                kept[f"{block}/sparse/from"] = genotype[f"{block}/sparse/from"]
            if (block, "sparse") in live:
                kept[f"{block}/merge"] = genotype[f"{block}/merge"]
        return {name: kept.get(name, self._common(name)) for name in genotype}

    def _common(self, name: str) -> Choice:
        block, _, about = name.partition("/")
        common = {
            "dense/op": "dot",
            "sparse/op": "embed_fc",
            "dense/size": str(self.dense_sizes[0]),
            "sparse/size": str(self.sparse_sizes[0]),
            "sparse/from": RAW,
        }
        return () if about in ("merge", "fm") else (common.get(about, RAW if block == "1" else "1"),)

    def net(self, schema: Schema, space: Space) -> Net:
        return NasRecNet(self, schema, space)

    def sampler(self, space: Space, seed: int) -> Sampler:
        operators: Literal["single", "any"] = "any" if self.paths == "any_any" else "single"
        connections: Literal["single", "any"] = "single" if self.paths == "single_single" else "any"
        return SingleOperator(space, seed, operators, connections, round(self.warmup * self.steps))

    def check(self, schema: Schema, space: Space) -> None:
        self.head.steps(self.fitness.calibration, schema.rows["train"])

    def task(self, schema: Schema) -> Click:
        return self.training.task()

    @property
    def train(self) -> Plan:
        own = self.training.supernet(self.steps)
        return replace(own, batch=self.batch, learning_rate=self.learning_rate, weight_decay=0.0, optimizer="adagrad")

    @property
    def retrain(self) -> Plan:
        return self.training.alone()

    @property
    def stop(self) -> Fitness:
        return JUDGED

    def final(self, schema: Schema) -> "NASRec":
        capped = self.cap and any(column.size > self.cap for column in schema.columns)
        return replace(self, cap=0) if capped else self

    def paper_meter(self, schema: Schema, genotype: Genotype) -> dict[str, Cost]:
        """A model's cost as the paper's figures count it: fvcore on the public code's net, norms left out.

        "linear", "bmm", the "attention" cores that fvcore misses, and the weights of "dead" parts. There, operators
        have no projection where widths agree, inputs of Sum and Gating are padded to the wider one, and a dot product
        has an inner width for each dimension.
        """
        return _PaperMeter(self, schema, genotype).costs()

    def tunables(self) -> Space:
        return Space(self.training.tunables)

    def scorer(self, net: Net, task: Task, train: Data, valid: Data, cache_bytes: int = CACHE) -> Scorer:
        assert isinstance(net, NasRecNet)
        return HeadScorer(net, train, valid, self.fitness, self.head, cache_bytes)


class _PaperMeter:
    """Counts one model of the public code, block by block."""

    def __init__(self, method: NASRec, schema: Schema, genotype: Genotype) -> None:
        self.genotype, self.blocks, self.tokens, self.width = genotype, method.blocks, method.tokens, method.embedding
        numbers = sum(column.kind == "number" for column in schema.columns)
        self.dense = {RAW: max(1, numbers)}
        self.sparse = {RAW: len(schema.columns) - numbers}
        self.totals = {"linear": Cost(), "bmm": Cost(), "attention": Cost(), "dead": Cost()}
        self.live = True

    def costs(self) -> dict[str, Cost]:
        live = alive(self.genotype, self.blocks)
        for number in range(1, self.blocks + 1):
            block = str(number)
            dense, fields = (int(self.genotype[f"{block}/{side}/size"][0]) for side in ("dense", "sparse"))
            merges = bool(self.genotype[f"{block}/merge"])
            self.dense[block], self.sparse[block] = dense, fields + self.tokens * merges
            inputs = sum(self.sparse[source] for source in self.genotype[f"{block}/sparse/from"])
            self.live = (block, "fields") in live
            for option in self.genotype[f"{block}/sparse/op"]:
                self._fields(option, inputs, fields)
            self.live = (block, "dense") in live
            for option in self.genotype[f"{block}/dense/op"]:
                self._dense(option, block, inputs, dense)
            if self.genotype.get(f"{block}/fm") and self.width != dense:
                self._linear(self.width, dense)
            self.live = (block, "sparse") in live
            if merges and dense != self.tokens * self.width:
                self._linear(dense, self.tokens * self.width)
        self._linear(self.dense[block] + self.width * self.sparse[block], 1)
        return self.totals

    def _linear(self, inputs: int, outputs: int, times: int = 1) -> None:
        self._add("linear", inputs * outputs + outputs, inputs * outputs * times)

    def _add(self, name: str, params: int, macs: int) -> None:
        self.totals[name if self.live else "dead"] += Cost(params, 0, macs if self.live else 0)

    def _fields(self, option: str, inputs: int, fields: int) -> None:
        self._linear(inputs, fields, self.width)
        if option != "embed_fc":
            for _ in range(6):
                self._linear(self.width, self.width, fields)
            self._add("linear", 4 * self.width, 0)  # two norms that always stay
            self._add("attention", 0, 2 * fields**2 * self.width)

    def _dense(self, option: str, block: str, fields: int, dense: int) -> None:
        if option in PAIRED:
            left, right = (self.dense[self.genotype[f"{block}/{side}"][0]] for side in ("left", "right"))
            if option == "gating":
                self._linear(max(left, right), max(left, right))
            if max(left, right) != dense:
                self._linear(max(left, right), dense)
            return
        inputs = sum(self.dense[source] for source in self.genotype[f"{block}/dense/from"])
        if option == "fc":
            self._linear(inputs, dense)
            return
        vectors = round((2 * dense) ** 0.5)
        if inputs != self.width:
            self._linear(inputs, self.width)
        if fields != vectors:
            self._linear(fields, vectors, self.width)
        self._add("bmm", 0, (vectors + 1) ** 2 * self.width)
        self._linear((vectors + 1) * vectors // 2, dense)
