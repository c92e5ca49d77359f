"""What was run once could be run again: its script imports, its result is there and on the page of studies."""

import importlib
import json

import pytest
from common import ROOT

STUDIES = ROOT / "benchmarks" / "studies"
HELPERS = {"study", "reference_trainer"}


@pytest.mark.parametrize("script", sorted(STUDIES.glob("*.py")), ids=lambda script: script.stem)
def test_a_study_imports_and_has_a_result_and_a_row_on_the_page(script):
    module = importlib.import_module(script.stem)
    assert module.__doc__
    if script.stem not in HELPERS:
        assert json.loads(script.with_suffix(".json").read_text(encoding="utf-8"))
        assert f"| `{script.stem}` |" in (STUDIES / "README.md").read_text(encoding="utf-8")
