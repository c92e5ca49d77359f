"""docs/BENCHMARKS.md and docs/MEASURED.md say what the results say."""

import json
import re

import pytest
from common import RESULTS, ROOT
from common.regret import RIVALS, best_constant, loss, parts
from page import PAGE, agreement, cells, page_text

QUALITY = json.loads((RESULTS / "quality.json").read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_results(tmp_path):
    assert page_text(RESULTS, tmp_path / "BENCHMARKS.md") == PAGE.read_text(encoding="utf-8")
    assert (tmp_path / "fronts.png").stat().st_size > 10_000


def test_a_section_without_results_says_how_to_get_them(tmp_path):
    text = page_text(tmp_path, tmp_path / "BENCHMARKS.md")
    assert "Not measured yet: `python tools/dev.py bench quality`." in text
    assert "{" not in text


def test_the_page_can_be_made_of_the_short_benchmark_which_draws_a_few_methods_at_one_step_count(tmp_path):
    short = json.loads(json.dumps(QUALITY))
    few, undrawn = {"no guidance", "CFG", "CFG++", "annealing"}, set(RIVALS) - {"CFG", "CFG++"}
    for variant, steps in short["variants"].items():
        cell = steps["20"]
        cell["points"] = {name: row for name, row in cell["points"].items() if parts(name)[0] in few}
        cell["fronts"] = {name: front for name, front in cell["fronts"].items() if name in few}
        for front in cell["fronts"].values():
            for rival in undrawn:
                front.pop(f"over_{rival}")
        short["variants"][variant] = {"20": cell}
    (tmp_path / "quality.json").write_text(json.dumps(short), encoding="utf-8")
    text = page_text(tmp_path, tmp_path / "BENCHMARKS.md")
    gain = QUALITY["variants"]["flow"]["20"]["fronts"]["annealing"]["over_CFG"]
    assert "| CFG and projection |  |  |" in text
    assert f"{gain:+.3f}" in text


def test_the_short_pages_table_quotes_the_results():
    short = (ROOT / "docs" / "MEASURED.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+)% \| ([\d.]+) \| ([\d.]+)% \| ([\d.]+) \|$", short, re.MULTILINE)
    assert len(rows) >= 6
    for name, *figures in rows:
        published = []
        for variant in ("epsilon", "flow"):
            row = QUALITY["variants"][variant]["20"]["points"][name.replace(", lambda", "")]
            published += [f"{100 * row['right']:.1f}", f"{row['fd']:.3f}"]
        assert figures == published, name


def test_results_agree_with_themselves_and_not_with_others():
    assert agreement(QUALITY, QUALITY).count("\n") == 0
    other = json.loads(json.dumps(QUALITY))
    other["variants"]["flow"]["20"]["points"]["CFG 3"]["right"] = 0.5
    assert "flow, 20 steps, CFG 3: 50.0% here" in agreement(other, QUALITY)


@pytest.mark.parametrize("steps", ["10", "20", "50"])
@pytest.mark.parametrize("variant", ["epsilon", "flow"])
def test_the_fronts_that_matter_most_are_there_with_1024_pictures_a_point(variant, steps):
    cell = QUALITY["variants"][variant][steps]
    assert QUALITY["pictures"] >= 1024
    assert {"annealing", *RIVALS} <= set(cell["fronts"])
    assert all(f"over_{rival}_interval" in cell["fronts"]["annealing"] for rival in RIVALS)


@pytest.mark.parametrize(("variant", "steps", "cell"), cells(QUALITY), ids=lambda value: value if isinstance(value, str) else "")
def test_annealing_untouched_is_better_than_the_best_constant_guidance_as_the_pages_say(variant, steps, cell):
    rows = cell["points"]
    assert loss(rows["annealing 0.4"]) < loss(rows[best_constant(rows)])


def test_no_method_is_better_than_perfect_pictures():
    rows = [row for _, _, cell in cells(QUALITY) for row in cell["points"].values()]
    assert max(row["right"] for row in rows) <= QUALITY["perfect"]["right"]
    assert min(row["fd"] for row in rows) > QUALITY["perfect"]["fd"]
