"""What a first reading of click prediction got wrong: large numbers, one class, twins, wrong settings found late."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch

from components import check, diagnose, prepare
from components.finalists import of_specs
from components.run import Run
from components.search import Given
from nascore import metrics
from nascore.click_net import ClickTraining
from nascore.datasets import DataError, Dataset, Feature, Layout
from nascore.fitness import Fitness
from nascore.head_scoring import HeadTuning
from nascore.methods.dnn import Dnn
from nascore.methods.nasrec import NASRec
from nascore.space import Infeasible, key
from nascore.strategies import Trial
from nascore.tasks.click import Click
from nascore.training import Fit

SMALL = NASRec(blocks=2, embedding=4, dense_sizes=(4, 6), sparse_sizes=(2, 3), tokens=2, steps=4, batch=32)


class Few(Dataset):
    """100 rows in file order; the last ten are clicks or not as asked."""

    protocols: ClassVar[tuple[str, ...]] = ("temporal", "stratified")

    def __init__(self, last: list[int], name: str = "price") -> None:
        super().__init__("")
        self.last, self.name = last, name

    def layout(self) -> Layout:
        return Layout("", "", "", (Feature(self.name, kind="number"), Feature("site")), label="click")

    def rows(self) -> Iterator[pa.Table]:
        values: list[Any] = [20_000_000 + 2 * place for place in range(99)] + [None]
        click = [int(place % 3 == 0) for place in range(90)] + self.last
        yield pa.table({self.name: pa.array(values, pa.int64()), "site": ["a", "b"] * 50, "click": click})

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        return {}


def prepared(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(Run, "raw_data", lambda run: dataset)
    run = Run(root=str(tmp_path), dataset="few", raw="", methods=(Dnn(),), protocol="temporal")
    prepare.main(run)
    return run


def test_numbers_beyond_what_a_float_holds_exactly_are_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(Few([0, 1] * 5), tmp_path, monkeypatch)
    data = run.rows("test")
    price = data.batch(torch.arange(data.rows))["price"]
    assert int(price.isnan().sum()) == 1
    assert set(price[~price.isnan()].tolist()) <= {float(np.float32(20_000_000 + 2 * place)) for place in range(90, 99)}
    embedded = Dnn(width=4).net(run.schema, Dnn().space(run.schema)).embed(data.batch(torch.arange(data.rows)))
    assert embedded["dense"].isfinite().all() and float(embedded["dense"].max()) == pytest.approx(16.8, abs=0.1)


def test_a_split_of_one_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DataError, match="all 10 labels of the test split are 0 under .* rarer label stands in 30 of 100"
    ):
        prepared(Few([0] * 10), tmp_path, monkeypatch)
    assert not (tmp_path / "prepare/done.json").exists()


def test_data_without_a_category_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout("", "", "", (Feature("price", kind="number"), Feature("age", kind="number")), label="click")
    monkeypatch.setattr(Few, "layout", lambda self: layout)
    monkeypatch.setattr(Few, "rows", lambda self: pytest.fail("it was read"))
    monkeypatch.setattr(Run, "raw_data", lambda run: Few([0, 1] * 5))
    run = Run(root="memory://few", dataset="few", raw="", methods=(Dnn(),), protocol="temporal")
    with pytest.raises(DataError, match="few has no feature of kind category, .*: a number with bins becomes one"):
        run.check_data()
    binned = replace(layout, features=(Feature("price", kind="number", bins=4),))
    monkeypatch.setattr(Few, "layout", lambda self: binned)
    run.check_data()


def test_missing_numbers_are_counted_as_models_take_them() -> None:
    class Holes(Few):
        def rows(self) -> Iterator[pa.Table]:
            prices = pa.array([1.0, float("nan"), None, float("inf")] * 25)
            yield pa.table({"price": prices, "site": ["a", None] * 50, "click": [0, 1] * 50})

    _, columns = check.survey(Holes([]))
    assert [column[-1] for column in columns] == ["75.0%", "50.0%"]


def test_a_budget_of_table_weights_is_that_of_the_model_without_caps(clicks: Run) -> None:
    capped = replace(SMALL, cap=5)
    small, large = (
        float(one.price(clicks.schema)(one.space(clicks.schema).sample(Random(0)), "").table_params)
        for one in (capped, capped.final(clicks.schema))
    )
    assert small < large
    run = replace(clicks, methods=(capped, *clicks.methods[1:]))
    with pytest.raises(Infeasible, match=f"table_params {large:,.0f} of {large - 1:,.0f}"):
        replace(run, budgets=(f"table_params={large - 1}",)).check_prepared()
    replace(run, budgets=(f"table_params={large}",)).check_prepared()


def test_a_supernet_is_trained_by_adagrad_however_models_are_trained_alone() -> None:
    method = replace(SMALL, training=ClickTraining(optimizer="adam", learning_rate=1e-3))
    assert (method.train.optimizer, method.train.learning_rate) == ("adagrad", SMALL.learning_rate)
    assert (method.retrain.optimizer, method.retrain.learning_rate) == ("adam", 1e-3)


def test_a_norm_needs_two_numbers() -> None:
    for one in ({"embedding": 1}, {"dense_sizes": (1, 4)}, {"sparse_sizes": (1, 2)}):
        with pytest.raises(ValueError, match="must be 2 or more"):
            replace(SMALL, **one)
        assert replace(SMALL, norm=False, **one).blocks == SMALL.blocks


@pytest.mark.parametrize("name", ["label", "timestamp"])
def test_names_that_rows_need_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(DataError, match=f"no feature can have the name '{name}'; rename its column"):
        prepared(Few([0, 1] * 5, name), tmp_path, monkeypatch)


def test_the_auc_of_a_broken_model_is_no_number() -> None:
    score, label = torch.tensor([0.1, float("nan"), 0.3, 0.2]), torch.tensor([0, 1, 1, 0])
    assert metrics.auc(score, label).isnan() and metrics.auc_influence(score, label).isnan().all()


def test_norms_are_not_decayed(clicks: Run) -> None:
    supernet = SMALL.supernet(clicks.schema, SMALL.space(clicks.schema), 0)
    plan = replace(SMALL.train, weight_decay=0.1)
    fit = Fit(supernet, Click(), clicks.rows("train"), plan, 0)
    decayed, free = ({fit.names[p] for p in group["params"]} for group in fit.optimizer.param_groups)
    assert fit.optimizer.param_groups[0]["weight_decay"] == 0.1 and not fit.optimizer.param_groups[1]["weight_decay"]
    assert any(name.endswith("merge.project.norm.weight") for name in free), "although it has two dimensions"
    assert not any("norm" in name or name.endswith("bias") for name in decayed) and len(decayed) > 10


def test_twins_are_given_and_drawn_once(clicks: Run) -> None:
    space = SMALL.space(clicks.schema)
    genotype = next(one for one in (space.sample(Random(seed)) for seed in range(99)) if SMALL.canonical(one) != one)
    twin = SMALL.canonical(genotype)
    given = Given(space, 0, [genotype, twin])
    asked = given.ask()
    assert len(asked) == 1
    given.tell([Trial(asked[0], 1.0)])
    assert given.ask() == []
    tiny = replace(SMALL, size="small", dense_sizes=(4,), sparse_sizes=(2,), blocks=1)
    run = replace(clicks, methods=(tiny,), budgets=("whole",))
    drawn = diagnose.draw(run, 40)
    assert len({key(tiny.canonical(one)) for one in drawn}) == len(drawn) > 1


def test_rivals_get_our_training_only_where_it_is_of_their_kind() -> None:
    training = ClickTraining(epochs=7)
    ours, theirs = of_specs(["dnn:width=8", "googlednn"], training)
    assert ours == Dnn(width=8, training=training) and type(theirs).__name__ == "GoogleDNN"
    assert theirs.training != training  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: ClickTraining(learning_rate=-1), "learning_rate is at least 0"),
        (lambda: ClickTraining(epsilon=0.0), "epsilon is above 0"),
        (lambda: HeadTuning(warmup=1.0), "warmup is a share of the steps below 1"),
        (lambda: NASRec(warmup=3.0), "warmup is a share of the steps, not 3.0"),
        (lambda: NASRec(attention="transformer", embedding=10), "embedding must be a multiple"),
        (lambda: NASRec(inner=3, balanced=False), "inner is for balanced dot products"),
        (lambda: Fitness(kind="loss@1").check(Click()), "'loss@1' is for losses over the rows of a batch"),
    ],
)
def test_wrong_settings_are_told_at_once(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()


def test_our_models_stop_by_what_rivals_stop_by() -> None:
    assert NASRec(fitness=Fitness(kind="auc", rows=100)).stop == Dnn().stop
