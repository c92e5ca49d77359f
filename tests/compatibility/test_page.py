"""docs/COMPATIBILITY.md says what the tests find on this ComfyUI, and its reading and writing fit together."""

import copy
import itertools
import math
from pathlib import Path

import comfyui_version
import compatibility_page as page
import pytest
from compatibility import ENTRIES, SAMPLERS, TOLERANCE, outcome
from compatibility_page import Results
from kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "COMPATIBILITY.md"
IS_OLDEST = comfyui_version.__version__ == page.OLDEST


def found_on_this_host(on_page: Results) -> Results:
    """Every cell, judged anew where its own test didn't run before."""
    found = Results({kind.name: kind.models for kind in KINDS}, {}, {})
    largest = dict.fromkeys(found.kinds, 0.0)
    for sampler, kind in itertools.product(SAMPLERS, KINDS):
        outcomes = [outcome(sampler, kind, entry) for entry in ENTRIES]
        found.cells[sampler, kind.name] = page.cell([one.verdict for one in outcomes])
        for one in outcomes:
            if one.sentence:
                found.sentences[sampler if one.verdict == "warned" else kind.name] = one.sentence
            largest[kind.name] = max(largest[kind.name], one.deviation)
    found.deviations = {kind: rounded_up(value) for kind, value in largest.items()}
    if not IS_OLDEST:
        new = [name for name in [*found.samplers, *found.kinds] if name not in [*on_page.samplers, *on_page.kinds]]
        found.since = dict.fromkeys(new, comfyui_version.__version__)
    return found


def rounded_up(value: float) -> str:
    if not value:
        return ""
    exponent = math.floor(math.log10(value))
    digit = math.ceil(value / 10**exponent)
    return f"{digit}e{exponent}" if digit < 10 else f"1e{exponent + 1}"


ADVICE = "run python tools/dev.py compatibility and commit docs/COMPATIBILITY.md"


def written(results: Results) -> str:
    return page.rewritten(PAGE.read_text(encoding="utf-8"), results, page.beside_marks(ROOT / "tests" / "beside"))


def write_if_asked(request, results: Results) -> bool:
    if not request.config.getoption("--write-page", default=False):
        return False
    assert not request.session.testsfailed, "not written, because tests failed"
    PAGE.write_text(written(results), encoding="utf-8", newline="\n")
    return True


def test_the_page_says_what_the_tests_of_every_cell_find(request):
    on_page = page.parse(PAGE.read_text(encoding="utf-8"))
    found = found_on_this_host(on_page)
    if not write_if_asked(request, page.merged(on_page, found)):
        assert not (different := page.differences(on_page, found)), "\n".join([ADVICE, *different])


def test_the_page_has_the_sentences_of_the_tests_beside_other_nodes(request):
    """Quick to bring up to date by itself: pytest tests/compatibility/test_page.py -k beside --write-page."""
    text = PAGE.read_text(encoding="utf-8")
    if not write_if_asked(request, page.parse(text)):
        assert text == written(page.parse(text)), ADVICE


OLD = Results(
    {"eps": "SD", "flow": "SD3"},
    {("a", "eps"): "✓", ("a", "flow"): "⚠", ("c", "eps"): "✓", ("c", "flow"): "✓"},
    {"a": "Bad. Use c."},
    {"eps": "2e-6", "flow": ""},
)
NEW = Results(
    {"eps": "SD", "new": "N", "flow": "SD3"},
    {(sampler, kind): "✓" for sampler in "abc" for kind in ("eps", "new", "flow")} | {("a", "flow"): "⚠"},
    {"a": "Bad. Use c."},
    {"eps": "2e-6", "new": "", "flow": ""},
    since={"b": "9.1", "new": "9.1"},
)


def test_a_page_is_read_back_as_it_was_written():
    text = PAGE.read_text(encoding="utf-8")
    for results in (OLD, NEW, page.merged(OLD, NEW)):
        again = page.rewritten(text, results, [("SomeNode", "Both act.")])
        assert page.parse(again) == results and "| SomeNode | Both act. |" in again
        assert page.rewritten(again, page.parse(text), page.beside_marks(ROOT / "tests" / "beside")) == text


def test_the_page_names_the_tolerance_of_the_tests():
    assert f"the same within {TOLERANCE:g}, relative" in PAGE.read_text(encoding="utf-8")


def test_what_only_a_newer_comfyui_has_is_added_in_its_place_and_kept_by_an_older_one():
    both = page.merged(OLD, NEW)
    assert both.samplers == ["a", "b", "c"] and list(both.kinds) == ["eps", "new", "flow"]
    assert both.since == NEW.since and both.deviations == NEW.deviations
    assert page.merged(both, OLD) == both


def test_an_older_comfyui_ignores_what_only_a_newer_one_has():
    assert page.differences(page.merged(OLD, NEW), OLD) == []


@pytest.mark.parametrize("change, said", [
    (lambda r: r.cells.update({("a", "eps"): "✗"}), "a, eps"),
    (lambda r: r.cells.update({("x", "eps"): "✓", ("x", "flow"): "✓"}), "x, eps"),
    (lambda r: r.sentences.update({"a": "Worse."}), "Worse"),
    (lambda r: r.sentences.clear(), "Bad. Use c."),
    (lambda r: r.kinds.update({"flow": "SD4"}), "SD4"),
])  # fmt: skip
def test_a_page_that_says_something_else_is_found_out(change, said):
    found = copy.deepcopy(OLD)
    change(found)
    assert any(said in line for line in page.differences(OLD, found))


def test_a_sampler_that_is_gone_is_found_out():
    gone = Results(OLD.kinds, {key: mark for key, mark in OLD.cells.items() if key[0] != "c"}, OLD.sentences)
    assert any("c, eps: the page says '✓', the tests None" in line for line in page.differences(OLD, gone))


def test_marks_of_tests_are_read_from_their_source(tmp_path):
    (tmp_path / "test_a.py").write_text(
        'import pytest\n@pytest.mark.beside("Zebra", "Both act.")\ndef test_z(): ...\n'
        'case = pytest.param(1, marks=pytest.mark.beside("Apple", "One "\n"line."))\n'
        '@pytest.mark.beside("Zebra", "Both act.")\ndef test_again(): ...\n'
    )
    assert page.beside_marks(tmp_path) == [("Apple", "One line."), ("Zebra", "Both act.")]
