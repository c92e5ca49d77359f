"""The regret of one setting kept everywhere."""

import pytest
import quality
import torch
from common.regret import best_constant, best_settings, draw_regrets, loss, parts, regrets


def row(right: float, fd: float, **more) -> dict:
    return {"right": right, "fd": fd, **more}


def cell(variant: str, **points: dict) -> tuple[str, str, dict]:
    return variant, "10", {"points": {name.replace("_", " "): point for name, point in points.items()}}


@pytest.fixture
def cells():
    first = cell("a", CFG_3=row(0.9, 1.0), CFG_5=row(0.9, 0.8), APG_2=row(0.95, 0.8), APG_9=row(1.0, 0.1), annealing_0=row(1, 0))
    second = cell("b", CFG_3=row(1.0, 0.5), CFG_5=row(0.9, 0.5), APG_2=row(0.97, 0.5), APG_9=row(0.5, 0.5), Rescale_2=row(1, 0))
    return [first, second]


def test_a_percent_of_prompts_weighs_as_much_as_a_tenth_of_fd():
    assert loss(row(0.99, 0.7)) == pytest.approx(loss(row(1.0, 0.8)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CFG, linear, rising 3", ("CFG, linear, rising", "3")),
        ("annealing and APG 0.4", ("annealing and APG", "0.4")),
        ("no guidance", ("no guidance", "")),
        ("annealing, lambda by angle", ("annealing, lambda by angle", "")),
    ],
)
def test_a_points_name_is_its_method_and_its_setting(name, expected):
    assert parts(name) == expected


def test_regret_is_measured_from_the_best_constant_guidance_of_each_cell(cells):
    found = {f"{r.method} {r.setting}": r for r in regrets(cells)}
    assert [best_constant(c["points"]) for _, _, c in cells] == ["CFG 5", "CFG 3"]
    assert found["APG 2"].cells["a", "10"][0] == pytest.approx(-0.5)
    assert found["APG 2"].worst[0] == pytest.approx(0.3)
    assert found["APG 2"].mean == pytest.approx(-0.1)
    assert not {"annealing 0", "Rescale 2"} & set(found)  # not drawn everywhere


def test_a_methods_best_setting_is_the_one_with_the_least_worst_regret(cells):
    best = best_settings(regrets(cells), lambda method: method != "CFG++")
    assert [(r.method, r.setting) for r in best] == [("CFG", "3"), ("APG", "2")]


def test_the_figure_is_written(cells, tmp_path):
    draw_regrets({"CFG 3": regrets(cells)[0]}, tmp_path / "regret.png")
    assert (tmp_path / "regret.png").stat().st_size > 5_000


def test_an_interval_of_a_regret_needs_the_constants_that_might_be_best():
    steady, other = torch.tensor([[0.9, 1.0]] * 5), torch.tensor([[0.8, 1.0], [0.9, 1.0], [0.8, 1.0], [0.9, 1.0], [0.8, 1.0]])
    rows = {"CFG 3": row(0.9, 1.0), "CFG 5": row(0.9, 1.1), "CFG 10": row(0.0, 9.0), "APG 2": row(0.8, 1.0)}
    quality.add_regret_intervals(rows, {"CFG 3": steady, "APG 2": other})
    assert "regret_interval" not in rows["APG 2"]  # CFG 5 might be the best
    quality.add_regret_intervals(rows, {"CFG 3": steady, "CFG 5": steady, "APG 2": other})
    losses = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert rows["APG 2"]["regret_interval"] == pytest.approx(1.96 * losses.std().item(), rel=1e-5)
    assert rows["CFG 3"]["regret_interval"] == 0
    assert "regret_interval" not in rows["CFG 10"]


def test_a_published_point_stands_in_for_one_that_is_not_there():
    class Judgement:
        def position(self, point):
            return point["at"]

        def row(self, point, position):
            return row(*position[0].tolist())

    def at(right: float, fd: float):
        return {"at": torch.tensor([[right, fd]] * (1 + quality.RESAMPLES))}

    kept_front = {"hypervolume": 0.1, "interval": 0.01}
    kept = {"points": {"CFG 3": row(0.9, 1.0), "APG 2": row(0.8, 0.9)}, "fronts": {"APG": kept_front, "CFG": kept_front}}
    points = {"no guidance": at(0.5, 2.0), "CFG 3": None, "CFG 10": at(0.95, 2.0), "APG 2": None, "annealing 0": at(1.0, 1.0)}
    points["CFG 99"] = None
    result = quality.judge(points, Judgement(), kept)
    assert list(result["points"]) == ["no guidance", "CFG 3", "CFG 10", "APG 2", "annealing 0"]
    assert result["fronts"]["APG"] == kept_front  # nothing of it is new
    assert result["fronts"]["annealing"] == {"hypervolume": pytest.approx(0.5)}  # no interval without all of CFG
    everything = quality.judge({name: point for name, point in points.items() if point}, Judgement())
    assert everything["fronts"]["annealing"]["interval"] == 0
    assert everything["fronts"]["annealing"]["over_CFG"] == pytest.approx(0.5)
