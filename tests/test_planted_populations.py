"""The made-up populations: their laws, which fields tell what of whom, and what one model for all loses."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2_contingency
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from nascore import plugins
from nascore.datasets.planted_populations import CATEGORIES, CONSTANT, RANK, SIZES, PlantedPopulations

Numbers = NDArray[np.float64]


def log_of(planted: PlantedPopulations) -> pa.Table:
    return pa.concat_tables(list(planted.rows()))


def chance(planted: PlantedPopulations) -> Numbers:
    return 1 / (1 + np.exp(-planted.logits()))


def test_the_seed_alone_decides() -> None:
    planted, again = PlantedPopulations(rows=500), PlantedPopulations("", "skip", 500)
    other = PlantedPopulations(rows=500, seed=1)
    assert log_of(again).equals(log_of(planted))
    assert not log_of(other).equals(log_of(planted))
    assert not np.array_equal(other.logits(), planted.logits())


def test_there_are_one_or_two_populations() -> None:
    with pytest.raises(ValueError, match="populations is 1 or 2, not 3"):
        PlantedPopulations(rows=10, populations=3)
    one = plugins.build("datasets", "planted_populations:populations=1,rows=10")
    assert one.population.tolist() == [0] * 10


def test_rows_hold_the_features() -> None:
    planted = PlantedPopulations(rows=2_000)
    log = log_of(planted)
    assert log["click"].to_pylist() == planted.clicks().tolist()
    for place, name in enumerate(CATEGORIES):
        assert log[name].to_pylist() == planted.values[:, place].tolist()
        assert set(log[name].to_pylist()) == set(range(SIZES[place]))
    assert [feature.name for feature in planted.layout().features] == list(CATEGORIES)
    half = SIZES[CATEGORIES.index(planted.telling)] // 2
    assert planted.population.tolist() == [value >= half for value in log[planted.telling].to_pylist()]


def test_every_field_is_useful_or_noise() -> None:
    two, one = PlantedPopulations(rows=1), PlantedPopulations(rows=1, populations=1)
    first, second = map(set, two.useful)
    assert first & second == {two.shared}
    assert sorted([*(first | second), two.telling, *two.noise]) == sorted(CATEGORIES)
    assert one.useful == two.useful[:1] and {*one.noise} == {*CATEGORIES} - first
    for pair, fields, tables in zip(two.pairs, two.useful, two.tables, strict=True):
        assert set(pair) < set(fields) and set(tables) == {pair, *((field,) for field in fields)}


def test_logits_are_the_sum_of_the_tables() -> None:
    planted = PlantedPopulations(rows=50)
    for row, law, logit in zip(log_of(planted).to_pylist(), planted.population, planted.logits(), strict=True):
        terms = planted.tables[law].items()
        expected = CONSTANT + sum(table[tuple(row[field] for field in fields)] for fields, table in terms)
        assert logit == pytest.approx(expected)


def test_terms_average_to_nothing() -> None:
    planted = PlantedPopulations(rows=1)
    for pair, tables in zip(planted.pairs, planted.tables, strict=True):
        assert all(abs(table.mean()) < 1e-9 for table in tables.values())
        assert np.abs(tables[pair].mean(0)).max() < 1e-9 and np.abs(tables[pair].mean(1)).max() < 1e-9
        assert np.linalg.matrix_rank(tables[pair]) == RANK
    first, second = (tables[planted.shared,] for tables in planted.tables)
    assert np.array_equal(first, -second)


def test_one_population_follows_the_first_law() -> None:
    two, one = PlantedPopulations(rows=5_000), PlantedPopulations(rows=5_000, populations=1)
    assert np.array_equal(two.values, one.values)
    first = two.population == 0
    assert np.array_equal(two.logits()[first], one.logits()[first])
    assert not np.isclose(two.logits()[~first], one.logits()[~first]).any()


@pytest.mark.parametrize("populations", [1, 2])
def test_a_field_tells_only_its_own_population(populations: int) -> None:
    planted = PlantedPopulations(populations=populations)
    clicks = planted.clicks()
    expected = chance(planted)
    assert abs(clicks.sum() - expected.sum()) < 4 * np.sqrt((expected * (1 - expected)).sum())
    for law in range(populations):
        rows = planted.population == law
        assert 0.38 < clicks[rows].mean() < 0.43, "the population alone tells next to nothing"
        for place, field in enumerate(CATEGORIES):
            counts = np.zeros((2, SIZES[place]))
            np.add.at(counts, (clicks[rows], planted.values[rows, place]), 1)
            likelihood = chi2_contingency(counts[:, counts.any(0)]).pvalue
            assert likelihood < 1e-20 if field in planted.useful[law] else likelihood > 1e-3


def fitted(planted: PlantedPopulations, rows: NDArray[np.bool_], fields: set[str]) -> tuple[float, float]:
    """AUC and log loss of a logistic regression over these fields and their pairs, on the last fifth of the rows."""
    values = dict(zip(CATEGORIES, planted.values[rows].T, strict=True))
    columns = [values[field] for field in sorted(fields)]
    columns += [100 * values[one] + values[two] for one, two in planted.pairs if {one, two} <= fields]
    features = OneHotEncoder(dtype=np.float64).fit_transform(np.stack(columns, 1))
    clicks, train = planted.clicks()[rows], rows.sum() * 8 // 10
    model = LogisticRegression(C=0.3, max_iter=300).fit(features[:train], clicks[:train])
    return quality(clicks[train:], model.predict_proba(features[train:])[:, 1])


def quality(clicks: NDArray[np.int8], told: Numbers) -> tuple[float, float]:
    return float(roc_auc_score(clicks, told)), float(log_loss(clicks, told))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_population_pays_with_its_own_fields(seed: int) -> None:
    """One model for all stays far off, each population's own comes close, and further fields only add noise."""
    planted = PlantedPopulations(seed=seed)
    clicks, law = planted.clicks(), planted.population
    everyone = fitted(planted, np.ones_like(law, bool), {*CATEGORIES})
    for own, other in ((0, 1), (1, 0)):
        rows = law == own
        last = np.flatnonzero(rows)[rows.sum() * 8 // 10 :]
        best = quality(clicks[last], chance(planted)[last])
        assert 0.82 < best[0] < 0.87
        alone = fitted(planted, rows, {*planted.useful[own]})
        assert best[0] - 0.02 < alone[0] < best[0] and best[1] < alone[1] < best[1] + 0.03
        assert alone[1] < everyone[1] - 0.04
        assert fitted(planted, rows, {*CATEGORIES})[1] > alone[1] + 0.001
        assert fitted(planted, rows, {*planted.useful[other]} - {planted.shared})[0] < 0.53
