"""Tables of users and items: what of the log they know, told by `check`, and refused where it is nothing."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from components import check, prepare
from components.report import heading
from components.run import Run
from components.told import Told
from nascore.datasets import DataError
from nascore.datasets.parquet import Parquet
from tests.conftest import Shop


@pytest.fixture
def other(shop: Shop, tmp_path: Path) -> Callable[[Callable[[pa.Table], pa.Table]], str]:
    """The shop with another table of articles."""

    def made(change: Callable[[pa.Table], pa.Table]) -> str:
        raw = tmp_path / "raw"
        shutil.copytree(shop.raw, raw)
        pq.write_table(change(pq.read_table(raw / "articles.parquet")), raw / "articles.parquet")
        return str(raw)

    return made


def test_check_tells_how_much_of_the_log_they_hold(shop: Shop) -> None:
    facts, columns = check.survey(Parquet(shop.raw))
    categories = [article["category"] for article in shop.articles]
    (counted,) = [column for column in columns if column[0] == "category"]
    assert counted == ("category", "item", "category", "3", f"{categories.count(None) / len(categories):.1%}")
    sold, told = {row["article"] for row in shop.rows}, {article["article"] for article in shop.articles}
    assert sold - told and told - sold
    assert facts["in the item table"] == f"{len(sold & told) / len(sold):.1%} of the log's article"
    assert "in the user table" not in facts


def test_one_that_holds_none_of_the_log_is_refused(
    other: Callable[..., str], tmp_path: Path, prepared: Callable[..., Run]
) -> None:
    raw = other(lambda table: table.set_column(0, "article", pc.add(table["article"], 10_000)))
    told = "the item table holds none of the log's article, such as 1.., but others, such as .*103"
    with pytest.raises(DataError, match=told):
        check.survey(Parquet(raw))
    run = replace(prepared(), root=str(tmp_path / "run"), raw=raw)
    with pytest.raises(DataError, match=told):
        prepare.main(run)
    assert not (run.folder / "prepare").done


def test_check_finds_a_key_that_stands_there_twice(other: Callable[..., str]) -> None:
    raw = other(lambda table: pa.concat_tables([table, table.slice(3, 1)]))
    with pytest.raises(DataError, match="the item table has two rows for article 106"):
        check.survey(Parquet(raw))


def test_check_offers_the_protocols_that_can_split_such_rows(shop: Shop, clicks: Run) -> None:
    facts, _ = check.survey(Parquet(shop.raw))
    assert set(facts["protocols"].split(", ")) == {"user_temporal", "global_temporal", "authors", "leave_one_out"}
    facts, _ = check.survey(clicks.raw_data())
    assert {"stratified", "temporal"} <= set(facts["protocols"].split(", ")) <= {"stratified", "temporal", "newest_day"}


def test_what_nothing_is_known_of_is_told(
    other: Callable[..., str], tmp_path: Path, prepared: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """By `prepare`, and by what it leaves behind: items that the table lacks, and a feature that no item has."""

    def change(table: pa.Table) -> pa.Table:
        nothing = pa.nulls(5, table.schema.field("category").type)
        return table.slice(0, 5).set_column(table.column_names.index("category"), "category", nothing)

    run = replace(prepared(), root=str(tmp_path / "run"), raw=other(change))
    prepare.main(run)
    missing = run.schema.items - 1 - 5
    told = capsys.readouterr().out
    assert f"  prepare  {missing} of {run.schema.items - 1} items have no row in the table of items: " in told
    assert "  prepare  nothing is known of category: all values are missing\n" in told
    assert run.schema.blank == ("category",)
    assert (run.folder / "prepare").read_json("statistics.json")["not_in_table"] == {"item": missing}
    page = heading(Told(replace(run, budgets=("",))), ())
    assert f"<dt>Not in their table</dt><dd>{missing} items</dd>" in page
    assert "<dt>Features of which nothing is known</dt><dd>category</dd>" in page
    whole = {"items": missing, "not_in_table": {"item": 0}}
    assert not any("table" in remark for remark in prepare.remarks(run, whole))


def test_so_is_a_category_whose_values_are_all_rare(
    clicks: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(
        pa.table({"label": [0, 1] * 50, "site": list(range(100)), "page": [1, 2] * 50}), tmp_path / "rows.parquet"
    )
    (tmp_path / "schema.yaml").write_text(
        "rows: rows.parquet\nlabel: label\nfeatures: [{name: site, fewest: 2}, {name: page}]\n"
    )
    run = replace(clicks, root=str(tmp_path / "run"), dataset="parquet", raw=str(tmp_path), protocol="stratified")
    prepare.main(run)
    told = capsys.readouterr().out
    assert "nothing is known of site: all values are missing, or stand in fewer than `fewest` " in told
    assert "in the table" not in told and run.schema.blank == ("site",)
