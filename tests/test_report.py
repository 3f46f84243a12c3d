"""The report's page, made from the files of a small run written by hand."""

import json
import re
from functools import cache
from html import escape, unescape
from pathlib import Path
from random import Random
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import pytest

from components import page, report
from components.run import Run
from nascore.methods.autotower import AutoTower
from nascore.methods.popularity import Popularity
from nascore.schema import Column, Schema
from nascore.space import Genotype, key, parse

METHOD = AutoTower(blocks=2)
SCHEMA = Schema(
    user="user",
    item="item",
    users=101,
    items=51,
    columns=(Column("user", "user", size=101), Column("item", "item", size=51), Column("hour", size=25)),
    protocol="user_temporal",
    rows={"train": 1_234, "valid": 210, "later": 215},
    history=("item",),
    history_length=5,
    split_digest="0123456789abcdef" * 4,
)
PRICE = METHOD.price(SCHEMA)
SECTIONS = ("comparison", "search", "front", "ranking", "tuning", "architecture", "training", "cost", "settings")
ABOUT = {"kept": False, "budget": "", "strategy": ""}
SHARES = {"hit@50": 2, "recall@50": 1, "recall@5": 0.5, "recall@50/cold": 0.25, "mrr@5/other": 0.1}
Row = dict[str, Any]
TRIED = [{"settings": {}, "value": 0.25}, {"settings": {"embedding": "24"}, "value": 0.3}]
TUNED = {"of": "M", "label": "Ours M", "settings": {"embedding": "24"}, "value": 0.3, "examples": 310, "tried": TRIED}


def write(run: Run, name: str, value: Any) -> None:
    stage, _, file = name.partition("/")
    (run.folder / stage).write_json(file, value)


@cache
def members(budget: str, count: int, seed: int = 0) -> list[Genotype]:
    space, rng = METHOD.space(SCHEMA), Random(seed)
    limits = METHOD.limits(budget)
    drawn = (space.sample(rng) for _ in range(100_000))
    kept = (g for g in drawn if all(spent(g, name) <= limit for name, limit in limits.items()))
    return [next(kept) for _ in range(count)]


def spent(genotype: Genotype, name: str) -> float:
    under, _, unit = name.rpartition("/")
    return float(getattr(PRICE(genotype, under), unit))


def candidate(genotype: Genotype, score: float | None, strategy: str, budget: str) -> Row:
    costs = {unit: spent(genotype, unit) for unit in ("params", "table_params", "macs")}
    names = {"score": score, "strategy": strategy, "budget": budget}
    return {"model_id": METHOD.model_id(genotype, SCHEMA.split_digest), **names, **costs}


def trials(run: Run) -> list[Row]:
    """Ten genotypes a search; the third has no score."""
    rows = []
    for budget in run.budgets:
        for strategy in run.strategies:
            for seed in run.seeds:
                for number, genotype in enumerate(members(budget, 10, seed + len(strategy))):
                    score = None if number == 2 else -7.0 + Random(key(genotype)).random()
                    about = {"trial": f"{strategy}-{budget}-seed{seed}", "seed": seed, "number": number}
                    own = {"genotype": key(genotype), "seconds": 0.25, "cpu_seconds": 0.2}
                    rows.append({**about, **candidate(genotype, score, strategy, budget), **own})
    return rows


def fake(root: Path, label: str = "", **settings: Any) -> tuple[Run, list[Row]]:
    """A whole run and its trials; of each strategy and budget the best is found and the second retrained."""
    asked = {"strategies": ("evolution", "random"), "seeds": (0, 1), **settings}
    run = Run(root=str(root), dataset="movielens", raw="/raw", methods=(METHOD, Popularity()), **asked)
    run.save()
    (run.folder / "prepare").write_text("schema.json", SCHEMA.to_json())
    counts, left_out = {"train": 100, "valid": 90, "later": 95}, {"bad_rows": {"log.csv": 4}, "not_positive": 17}
    write(run, "prepare/statistics.json", {"rows": 1_659, "users": 100, "items": 50, "users_in": counts, **left_out})
    write(run, "supernet/curve.json", [{"step": s, "loss": 8 - s / 100, "seconds": s / 10} for s in (50, 100, 150)])
    told = trials(run)
    (run.folder / "search").write_table("trials.parquet", pa.Table.from_pylist(told))
    candidates, models, rows = [], {}, []
    floor = Popularity().model_id({}, SCHEMA.split_digest)
    entries = [(f"{label}Popularity", "baseline", floor, {}, {"params": 0.0, "table_params": 50.0, "macs": 0.0}, 0.2)]
    for budget in run.budgets:
        for strategy in run.strategies:
            own = [row for row in told if (row["budget"], row["strategy"]) == (budget, strategy) and row["score"]]
            own.sort(key=lambda row: -row["score"])
            kept = list({row["model_id"]: row for row in own}.values())[:2]
            candidates += [{**one, "as": strategy, "genotype": json.loads(one["genotype"])} for one in kept]
            name = f"{label}AutoTower {budget}, {strategy}"
            genotype = json.loads(kept[0]["genotype"])
            entries.insert(-1, (name, "found", kept[0]["model_id"], genotype, kept[0], 0.32 - len(entries) / 100))
    for name, role, model_id, genotype, costs, value in entries:
        models[model_id] = {"label": name, "candidate": model_id, "parts": [genotype], **ABOUT}
        for metric, share in SHARES.items():
            many = len(run.seeds) > 1
            known = {"model": name, "role": role, "model_id": model_id, "metric": metric, "value": share * value}
            spread = {"low": share * value - 0.01 if many else None, "high": share * value + 0.01 if many else None}
            cost = {unit: costs[unit] for unit in ("params", "table_params", "macs")}
            rows.append({**known, **spread, "seeds": list(run.seeds), **cost})
    write(run, "search/candidates.json", candidates)
    a, b = entries[0], entries[-1]
    pair = {"a": a[0], "b": b[0], "metric": "recall@50", "delta": a[5] - b[5], "low": 0.05, "high": 0.15, "p": 1e-9}
    verdict = f"{a[0]} beats the best rival."
    known = {"run": run.root, "protocol": "user_temporal/full-ranking", "leaks": "", "sees": "later rows train"}
    found = {"headline": "recall@50", "verdict": verdict, "rows": rows, "paired": [pair], "models": models}
    write(run, "evaluate/report.json", {**known, **found, "diagnose": {}, "timing": {}})
    points = [
        {**candidate(genotype, -7.0 + n / 10, "", ""), "genotype": {}, "alone": [0.3 + n / 100, 0.32 + n / 100]}
        for n, genotype in enumerate(members("M", 4))
    ]
    tau = {"n": 4, "kendall": 0.52, "low": 0.17, "high": 0.79, "verdict": "The ranking holds.", "points": points}
    tau |= {"metric": "recall@50", "fitness": "objective", "ceiling": 0.74, "ceiling_low": 0.41, "ceiling_high": 0.9}
    write(run, "diagnose/diagnose.json", tau)
    write(run, "tune/tuned.json", {"spent": {"supernet": 640, "search": 50, "tuning": 310}, "methods": [TUNED]})
    for model_id in {*models, *(one["model_id"] for one in candidates)}:
        for seed in run.seeds:
            curve = [[5.0, 0.1], [4.0, 0.25], [3.9, 0.24]] if model_id != floor else [[6.0, 0.2]]
            name = "popularity" if model_id == floor else "autotower"
            result = {"model_id": model_id, "name": name, "seed": seed, "value": max(value for _, value in curve)}
            more = {"best_epoch": min(2, len(curve)), "steps": 30, "curve": curve, "seconds": 4.0}
            write(run, f"retrain/{model_id}/part=0/seed={seed}/result.json", {**result, **more})
    for stage, seconds in (("prepare", 30.0), ("search", 90.0), ("retrain", 7_500.0)):
        known = dict.fromkeys(("began", "stopped"), "") | {"cpu_seconds": seconds / 2, "gpu_seconds": 0.0}
        write(run, f"ledger/{stage}.json", {"stage": stage, "seconds": seconds, **known})
    return run, told


def made(run: Run) -> str:
    """The page without the library it carries."""
    report.main(run)
    whole = (run.folder / "report").read_text("index.html")
    assert whole.count(page.get_plotlyjs()) == 1
    return whole.replace(page.get_plotlyjs(), "")


def section(text: str, name: str) -> str:
    (found,) = re.findall(rf'<section id="{name}".*?</section>', text, re.S)
    return str(found)


def figures(text: str) -> list[Row]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    return [json.loads(figure, parse_constant=pytest.fail) for figure in found]


def cells(text: str, caption: str) -> list[list[str]]:
    """The words of a table's body."""
    (table,) = re.findall(rf"<caption><span>{re.escape(caption)}</span>.*?<tbody>(.*?)</tbody>", text, re.S)
    rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", table, re.S))
    return [[unescape(re.sub(r"(<[^>]+>)+", " ", cell)).strip() for cell in row] for row in rows]


def test_page_stands_alone(tmp_path: Path) -> None:
    run, _ = fake(tmp_path)
    text = made(run)
    assert sorted(file.name for file in (tmp_path / "report").iterdir()) == ["done.json", "index.html"]
    loads = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert loads and all(target.startswith("#") or target == "data:," for target in loads)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert "default-src 'none'" in text
    assert tuple(re.findall(r'<section id="(\w+)"', text)) == SECTIONS
    assert {f"#{name}" for name in SECTIONS} <= set(loads)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for figure in figures(text):
        go.Figure(figure)
    assert len(figures(text)) == text.count('role="img" aria-label') - text.count("<svg")


def test_heading_tells_verdict_data_and_budget(tmp_path: Path) -> None:
    run, _ = fake(tmp_path)
    text = made(run).partition("</header>")[0]
    assert "AutoTower on movielens</h1>" in text
    assert "AutoTower M, evolution beats the best rival." in text
    told = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert told["Rows"] == "train 1,234 · valid 210 · later 215"
    assert told["Users"] == "100 · train 100 · valid 90 · later 95"
    assert (told["Items"], told["Split digest"]) == ("50", "0123456789ab")
    assert told["Budgets"].replace("\xa0", " ") == "M: params ≤ 480 k, macs ≤ 560 k"
    assert (told["Protocol"], told["Seen of the future"]) == ("user_temporal/full-ranking", "later rows train")
    assert told["Features not read"] == "hour"
    assert (told["Malformed rows left out"], told["Rows left out as not positive"]) == ("log.csv 4", "17")
    assert re.findall(r"<b>(.*?)</b>", text) == ["0.3100", "0.2000", "+0.1100", "τ 0.52"]
    assert "leaks" not in text


def test_comparison(tmp_path: Path) -> None:
    run, _ = fake(tmp_path)
    text = section(made(run), "comparison")
    rows = cells(text, "Quality and cost of every model")
    assert [row[0] for row in rows] == ["AutoTower M, evolution", "AutoTower M, random", "Popularity"]
    assert [row[2] for row in rows] == ["0.3100 [0.3000, 0.3200]", "0.3000 [0.2900, 0.3100]", "0.2000 [0.1900, 0.2100]"]
    assert [row[3] for row in rows] == ["0.6200", "0.6000", "0.4000"]
    assert [row[4] for row in rows] == ["0, 1"] * 3
    assert rows[2][5:] == ["0", "50", "0"]
    macs = next(row["macs"] for row in (run.folder / "evaluate").read_json("report.json")["rows"])
    assert f'<data value="{macs:.0f}" title="{macs:,.0f}">' in text
    cold = ["0.0775 [0.0675, 0.0875]", "0.0750 [0.0650, 0.0850]", "0.0500 [0.0400, 0.0600]"]
    assert [row[2] for row in cells(text, "Users without training rows")] == cold and "/cold" not in text
    more = ["0.1550 [0.1450, 0.1650]", "0.0310 [0.0210, 0.0410]"]
    assert cells(text, "All metrics")[0][4:6] == more, "other cut-offs and further rankings"
    assert text.count('class="best"') == 2 + 4 + 1
    pair = ["Popularity", "▲ better", "+0.1100 [+0.0500, +0.1500]", "< 0.0001"]
    assert cells(text, "AutoTower M, evolution against the others, unit by unit") == [pair]
    (whiskers,) = figures(text)
    baseline, found = whiskers["data"]
    assert (baseline["x"], found["x"]) == ([0.2], [0.31, 0.3])
    assert found["error_x"]["array"] == pytest.approx([0.01, 0.01])
    assert found["error_x"]["arrayminus"] == pytest.approx([0.01, 0.01])
    assert found["y"] == [2, 1] and baseline["y"] == [0]


@pytest.mark.parametrize("metric, low, high, reading", [
    ("recall@50", 0.1, 0.2, "▲ better"),
    ("recall@50", -0.2, -0.1, "▼ worse"),
    ("recall@50", -0.1, 0.2, "not told apart"),
    ("log_loss", -0.2, -0.1, "▲ better"),
    ("log_loss", 0.1, 0.2, "▼ worse"),
    ("auc", None, None, "not told apart"),
])  # fmt: skip
def test_a_paired_comparison_is_read(
    tmp_path: Path, metric: str, low: float | None, high: float | None, reading: str
) -> None:
    run, _ = fake(tmp_path)
    known = (run.folder / "evaluate").read_json("report.json")
    pair = {"a": "A", "b": "B", "metric": metric, "delta": 0.0, "low": low, "high": high, "p": None}
    write(run, "evaluate/report.json", {**known, "paired": [pair]})
    (row,) = cells(made(run), "A against the others, unit by unit")
    assert row[1] == reading and row[3] == "–"


@pytest.mark.parametrize("metric, best, order", [("auc", "0.3100", [1, 0]), ("log_loss", "0.2000", [0, 1])])
def test_baselines_go_from_best_to_worst(tmp_path: Path, metric: str, best: str, order: list[int]) -> None:
    run, _ = fake(tmp_path)
    known = (run.folder / "evaluate").read_json("report.json")
    known["rows"] += [{**row, "model": "Second", "value": row["value"] * 1.2} for row in known["rows"][-4:]]
    write(run, "evaluate/report.json", json.loads(json.dumps(known).replace("recall@50", metric)))
    text = made(run)
    baselines = [row[0] for row in cells(text, "Quality and cost of every model")[2:]]
    assert baselines == [("Popularity", "Second")[place] for place in order]
    assert f'<strong class="best">{best}</strong><small>' in text


def test_search_shows_the_best_so_far(tmp_path: Path) -> None:
    run, told = fake(tmp_path)
    text = section(made(run), "search")
    (figure,) = figures(text)
    assert [trace["name"] for trace in figure["data"]] == ["evolution", "evolution", "random", "random"]
    assert len({trace["line"]["color"] for trace in figure["data"]}) == 2
    names = [f"{strategy}-M-seed{seed}" for strategy in run.strategies for seed in run.seeds]
    rows = cells(text, "Searches")
    for name, trace, row in zip(names, figure["data"], rows, strict=True):
        scores = [one["score"] for one in told if one["trial"] == name]
        best, at, steps = -100.0, 0, []
        for number, score in enumerate(scores, 1):
            if score is not None and score > best:
                best, at = score, number
                steps.append((number, score))
        assert list(zip(trace["x"], trace["y"], strict=True)) == [*steps, (10, best)]
        assert row[2:] == ["10", "1", page.number(best), str(at), "2.5\xa0s"]
    different = len({row["genotype"] for row in told})
    assert f"4 searches scored 40 genotypes, {different} of them different" in text


def test_front_in_every_limited_unit(tmp_path: Path) -> None:
    run, told = fake(tmp_path, budgets=("M", "macs=400000,user/params=2e5"))
    text = section(made(run), "front")
    assert re.findall(r"<label[^>]*>(.*?)</label>", text) == ["MACs per example", "parameters", "parameters in user"]
    limits = ([560_000, 400_000], [480_000], [200_000])
    for unit, figure, lines in zip(("macs", "params", "user/params"), figures(text), limits, strict=True):
        points = {(spent(parse(row["genotype"]), unit), row["score"]) for row in told if row["score"] is not None}
        by_name = {trace["name"]: trace for trace in figure["data"]}
        best = [
            point
            for point in sorted(points)
            if not any(o[0] <= point[0] and o[1] >= point[1] and o != point for o in points)
        ]
        assert list(zip(by_name["front"]["x"], by_name["front"]["y"], strict=True)) == best
        assert [shape["x0"] for shape in figure["layout"]["shapes"]] == lines
        dots = [len(by_name[strategy]["x"]) for strategy in run.strategies]
        assert sum(dots) == len({(row["strategy"], row["genotype"]) for row in told if row["score"] is not None})
        for label in ("AutoTower M, evolution", "AutoTower M, random"):
            mark = next(trace for trace in figure["data"] if label in trace["name"])
            assert (mark["x"][0], mark["y"][0]) in points


def test_ranking(tmp_path: Path) -> None:
    assert "The ranking holds." in (text := section(made(fake(tmp_path)[0]), "ranking"))
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd><b>(.*?)</b></dd>", text))
    assert facts["Kendall's τ"] == "0.52" and facts["95 % interval"] == "[0.17, 0.79]"
    assert facts["Ceiling"] == "0.74" and facts["Its 95 % interval"] == "[0.41, 0.90]"
    ((trace,),) = (figure["data"] for figure in figures(text))
    assert trace["x"] + trace["y"] == pytest.approx([-7.0, -6.9, -6.8, -6.7, 0.31, 0.32, 0.33, 0.34])
    assert trace["error_y"]["array"] == pytest.approx([0.01] * 4) == trace["error_y"]["arrayminus"]


def test_architecture_is_drawn_in_the_order_of_the_space(tmp_path: Path) -> None:
    run, _ = fake(tmp_path, strategies=("evolution",))
    text = section(made(run), "architecture")
    (told,) = re.findall(r'<svg role="img" aria-label="(.*?)"', text)
    known = (run.folder / "evaluate").read_json("report.json")
    (genotype,) = [part for model in known["models"].values() for part in model["parts"] if part]
    order = ["user/pool", "user/0", "user/1", "item/0", "item/1"]
    assert told == "; ".join(f"{name}: {genotype[name][0]}" for name in order)
    assert re.findall(r'class="part"[^>]*>(.*?)<', text) == ["user", "item"]
    cost = PRICE(parse(genotype), "")
    assert f'title="{cost.macs:,.0f}"' in text and f'title="{cost.params:,.0f}"' in text


def test_training(tmp_path: Path) -> None:
    run, _ = fake(tmp_path)
    text = section(made(run), "training")
    assert "150 steps in 15\xa0s" in text
    losses, *values = figures(text)
    assert (losses["data"][0]["x"], losses["data"][0]["y"]) == ([50, 100, 150], [7.5, 7.0, 6.5])
    assert len(values) == len({METHOD.stop.kind, Popularity().stop.kind})
    traces = [trace for figure in values for trace in figure["data"]]
    assert len(traces) == len((run.folder / "retrain").names("*/part=*/seed=*/result.json"))
    assert {tuple(t["y"]) for t in traces if t["name"] == "AutoTower M, evolution"} == {(0.1, 0.25, 0.24)}
    assert {trace["line"]["dash"] for trace in traces if trace["name"] == "Popularity"} == {"dash"}


def test_cost_and_settings(tmp_path: Path) -> None:
    run, _ = fake(tmp_path)
    text = made(run).replace("\xa0", " ")
    rows, foot = cells(section(text, "cost"), "Stages"), section(text, "cost").partition("<tfoot>")[2]
    assert rows[1:] == [["search", "1 min 30 s", "45 s", "1"], ["retrain", "2 h 5 min", "1 h 2 min", "1"]]
    assert "2 h 7 min" in foot and "A genotype took 0.2 s of CPU time to score, on average" in text
    (settings,) = re.findall(r"<pre>(.*?)</pre>", section(text, "settings"), re.S)
    assert json.loads(unescape(settings)) == json.loads(json.dumps(run.to_json()))


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    run, _ = fake(tmp_path, seeds=(3,))
    text = section(made(run), "comparison")
    assert "One seed (3); no interval was measured." in text
    assert [row[2] for row in cells(text, "Quality and cost of every model")] == ["0.3100", "0.3000", "0.2000"]
    assert figures(text)[0]["data"][1]["error_x"]["array"] == [0, 0]


@pytest.mark.parametrize("missing, sections, kept", [
    (("search",), ("search", "front"), 7 - 3),
    (("supernet",), ("training",), 7 - 1),
    (("diagnose",), ("ranking",), 7 - 1),
    (("tune",), ("tuning",), 7),
    (("evaluate",), ("comparison", "architecture"), 7 - 1),
    (("retrain",), ("training",), 7 - 1),
    (("supernet", "search", "diagnose", "tune", "retrain", "evaluate", "ledger"), SECTIONS[:-1], 0),
])  # fmt: skip
def test_what_was_not_measured_is_said(
    tmp_path: Path, missing: tuple[str, ...], sections: tuple[str, ...], kept: int
) -> None:
    run, _ = fake(tmp_path)
    assert len(figures(made(run))) == 7
    for stage in missing:
        (run.folder / stage).clear()
    text = made(run)
    assert [name for name in SECTIONS if "This was not measured" in section(text, name)] == list(sections)
    assert len(figures(text)) == kept


def test_an_empty_diagnosis_is_said(tmp_path: Path) -> None:
    run, _ = fake(tmp_path)
    nothing = {name: None for name in ("kendall", "low", "high", "ceiling")}
    write(run, "diagnose/diagnose.json", {"metric": "recall@50", "n": 0, **nothing, "verdict": "-", "points": []})
    text = made(run)
    assert "This was not measured" in section(text, "ranking") and "τ" not in text.partition("</header>")[0]


NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'</script>"


def test_texts_from_data_are_escaped(tmp_path: Path) -> None:
    run, _ = fake(tmp_path, label=NASTY)
    known = (run.folder / "evaluate").read_json("report.json")
    write(run, "evaluate/report.json", {**known, "verdict": NASTY, "leaks": NASTY, "protocol": NASTY})
    counted = (run.folder / "prepare").read_json("statistics.json")
    write(run, "prepare/statistics.json", {**counted, "bad_rows": {NASTY: 1}})
    text = made(run)
    assert "<script>alert" not in text and "<img" not in text
    assert f"<strong>This protocol leaks:</strong> {escape(NASTY)}." in text
    assert text.count("<script") == text.count("</script>") == len(figures(text)) + 2
    assert [row[0] for row in cells(text, "Quality and cost of every model")][-1] == f"{NASTY}Popularity"
    for figure in figures(text):
        assert "<script" not in json.dumps(figure) and "<img" not in json.dumps(figure)
    assert "&lt;script&gt;" in json.dumps(figures(section(text, "comparison")))
