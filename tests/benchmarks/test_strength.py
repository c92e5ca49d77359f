"""The strength benchmark still measures what docs/BENCHMARKS.md shows."""

import json

import pytest
import strength
from common import RESULTS


@pytest.mark.slow
def test_cells_come_out_as_published():
    published = json.loads((RESULTS / "strength.json").read_text(encoding="utf-8"))["flow"]["0.8 and 1"]
    found = strength.deviations(strength.Case(flow=True, data=(0.8, 1.0)), ("dpmpp_2m",), ("karras",), strength.OTHER_STEPS)
    assert found["floor"] == pytest.approx(published["floor"], abs=1e-4)
    row, expected = found["rows"]["dpmpp_2m/karras"], published["rows"]["dpmpp_2m/karras"]
    assert row["annealing"] == pytest.approx(expected["annealing"], rel=0.02)
    assert row["cfg"] == pytest.approx(expected["cfg"], rel=0.02)
    assert row["marks"] == expected["marks"]
