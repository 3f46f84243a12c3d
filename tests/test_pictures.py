"""The report's plumbing: numbers as words, fronts, drawings, and the page's colours."""

import re
from html import unescape
from random import Random
from statistics import stdev
from types import SimpleNamespace
from typing import Any

import pytest

from components import page, pictures, search_sections
from nascore.cost import Cost


def test_unbeaten_is_what_no_other_beats() -> None:
    rng = Random(0)
    rows = [{"score": rng.randint(0, 9), "cost": rng.randint(0, 9)} for _ in range(60)]
    best = pictures.unbeaten(rows)
    assert best == sorted(best, key=lambda row: row["cost"])
    for row in rows:
        beaten = any(o["score"] >= row["score"] and o["cost"] <= row["cost"] and o != row for o in rows)
        assert (row in best) == (not beaten)


def test_the_axes_of_a_single_point_are_about_as_wide_as_it_is_far() -> None:
    row = {"strategy": "random", "model_id": "a", "genotype": "{}", "seed": 0, "cost": 8e4, "score": 0.05}
    drawn = unescape(pictures.front([row], "MACs", ["random"], [], {}))
    assert [[float(end) for end in ends.split(",")] for ends in re.findall(r'"range":\s*\[(.*?)\]', drawn)] == [
        [pytest.approx(7.2e4), pytest.approx(8.8e4)],
        [pytest.approx(0.045), pytest.approx(0.055)],
    ]
    other = {**row, "model_id": "b", "cost": 9e4, "score": 0.06}
    assert '"range"' not in unescape(pictures.front([other, row], "MACs", ["random"], [], {}))


def test_a_drawing_holds_any_genotype() -> None:
    genotype = {
        "width": ("64",),
        "1/dense/op": ("fm:rank=4,<b>=2",),
        "1/from": ("raw", "1"),
        "2/dims": tuple(f"d{n}" for n in range(40)),
        "2/none": (),
    }
    families = ["64", "fm", "raw", "d0"]
    svg = pictures.drawing(genotype, families, lambda under: Cost(macs=200) if under in ("", "1/") else None)
    assert re.findall(r'class="part"[^>]*>(.*?)<', svg) == ["width", "1", "2"]
    words = re.findall(r'class="(?:option|fine|fine end)"[^>]*>(.*?)<', svg)
    assert words[:2] == ["width", "64"]
    assert {"200 MACs", "dense/op", "fm", "rank=4, &lt;b&gt;=2", "from", "raw", "40 open", "none"} <= set(words)
    assert max(len(unescape(word)) for word in words) <= pictures.WIDTH + 4
    assert "<b>" not in svg and "max-width" not in svg


@pytest.mark.parametrize("value, told", [
    (0, "0"), (999, "999"), (999.6, "1 k"), (1_234, "1.23 k"), (999_900, "1 M"), (480_000, "480 k"), (2.5e9, "2.5 G")
])  # fmt: skip
def test_short_numbers(value: float, told: str) -> None:
    assert page.short(value).replace("\xa0", " ") == told


@pytest.mark.parametrize("seconds, told", [
    (0.04, "0.04 s"), (2.5, "2.5 s"), (42.4, "42 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7_500, "2 h 5 min")
])  # fmt: skip
def test_durations(seconds: float, told: str) -> None:
    assert page.duration(seconds).replace("\xa0", " ") == told


def test_an_epoch_without_a_value_is_a_gap() -> None:
    result = {"model_id": "a", "seed": 0, "value": 0.5, "best_epoch": 1, "seconds": 1.0}
    curve = [[1.0, 0.5], [None, None], [1.0, 0.25]]
    drawn = pictures.validation({"Ours": (True, [{**result, "curve": curve}])}, "recall@50")
    assert "[0.5,null,0.25]" in drawn.replace(" ", "") and "Ours 0.5000" in drawn
    lost = pictures.validation({"Ours": (True, [{**result, "curve": [[1.0, None]]}])}, "recall@50")
    assert f"Ours {page.NONE}" in lost


def test_a_figure_cannot_end_its_script() -> None:
    trace = {"mode": "lines", "line": {"color": "red"}, "name": "a"}
    text = page.plot('<b> "alt"', [{**trace, "text": ["</script><b>"]}], {})
    assert text.count("</script>") == 1 and "<b>" not in text and "&lt;b&gt; &quot;alt&quot;" in text


def test_every_colour_is_known_in_light_and_dark() -> None:
    light, dark = page.CSS.split("@media (prefers-color-scheme: dark)")[:2]
    known = set(re.findall(r"(--\w[\w-]*):", light))
    assert known == set(re.findall(r"(--\w[\w-]*):", dark))
    used = re.findall(r"var\((--[\w-]+)\)", page.CSS + str(page.LAYOUT)) + [
        f"--c{n}" for n in range(1, pictures.COLOURS + 1)
    ]
    assert set(used) <= known


def test_tuning_tells_what_was_tried_and_what_it_took() -> None:
    tried = [{"settings": {}, "value": 0.25}, {"settings": {"embedding": "24"}, "value": 0.3}]
    ours = {"label": "Ours <M>", "settings": {"embedding": "24"}, "value": 0.3, "examples": 310, "tried": tried}
    told: Any = SimpleNamespace(tuning={"spent": {"supernet": 640, "search": 50, "tuning": 310}, "methods": [ours]})
    text = search_sections.tuning(told)
    for part in (
        "Ours &lt;M&gt;",
        "embedding = 24",
        "+0.0500 over its own",
        ">310<",
        "until it had seen 1,000 or tried all",
    ):
        assert part in text


def test_the_best_score_by_count_is_a_mean_over_seeds_with_students_interval() -> None:
    rows = []
    for strategy, seed, scores in (
        ("a", 0, [0.1, None, 0.3] + [0.2] * 57),
        ("a", 1, [0.4, 0.2, 0.3] + [0.2] * 56 + [0.7]),
        ("b", 0, [None] * 55 + [0.5] * 5),
    ):
        trial = {"trial": f"{strategy}{seed}", "strategy": strategy}
        rows += [{**trial, "number": number, "score": score} for number, score in enumerate(scores)]
    found = search_sections.by_count(rows)
    assert ">50</th>" in found and ">60</th>" in found and ">100</th>" not in found
    for middle, values in ((0.35, (0.3, 0.4)), (0.5, (0.3, 0.7))):
        half = 12.706204736 * stdev(values) / 2**0.5
        expected = f"{middle:.4f}<small>[{middle - half:.4f}, {middle + half:.4f}]</small>"
        assert expected.replace("-", "−") in found
    assert f">{page.NONE}</td><td >0.5000</td>" in found, "b had no score among the first 50"
