"""The regret of one setting kept everywhere."""

import pytest
import quality
import torch
from common.regret import best_constant, best_settings, draw_regrets, loss, parts, regrets


def row(right: float, fd: float, **more) -> dict:
    return {"right": right, "fd": fd, "regret_interval": 0.0, **more}


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


class Judgement:
    """Takes (share right, FD), or such a pair for each resample, for what was drawn."""

    def position(self, point):
        found = torch.tensor(point)
        return found if found.dim() == 2 else found.expand(1 + quality.RESAMPLES, 2)

    def row(self, point, position):
        return row(*position[0].tolist())


def test_an_interval_of_a_regret_is_of_the_difference_from_the_constant_that_is_best_in_each_resample():
    steady, other = [[0.9, 1.0]] * 5, [[0.8, 1.0], [0.9, 1.0], [0.8, 1.0], [0.9, 1.0], [0.8, 1.0]]
    better_now_and_then = [[0.9, 1.1], [0.9, 1.1], [1.0, 1.0], [0.9, 1.1], [0.9, 1.1]]
    points = {"no guidance": steady, "CFG 3": steady, "CFG 5": better_now_and_then, "APG 2": other}
    found = {name: point["regret_interval"] for name, point in quality.judge(points, Judgement())["points"].items()}
    assert found["APG 2"] == pytest.approx(1.96 * torch.tensor([0.0, 2.0, 0.0, 1.0]).std().item(), rel=1e-5)
    assert found["CFG 3"] == pytest.approx(1.96 * torch.tensor([0.0, 1.0, 0.0, 0.0]).std().item(), rel=1e-5)


def test_a_front_is_compared_with_each_rivals():
    points = {
        "no guidance": (0.5, 2.0),
        "CFG 3": (0.75, 1.0),
        "CFG 10": (0.75, 2.0),
        "APG 2": (0.5, 0.0),
        "annealing 0": (1.0, 1.0),
    }
    fronts = quality.judge(points, Judgement())["fronts"]
    assert fronts["annealing"]["hypervolume"] == pytest.approx(0.5)
    assert fronts["annealing"]["over_CFG"] == pytest.approx(0.25)
    assert fronts["annealing"]["over_APG"] == pytest.approx(0.5)
    assert fronts["annealing"]["interval"] == fronts["annealing"]["over_CFG_interval"] == 0
    assert quality.judge({"annealing 0": (1.0, 1.0)}, Judgement())["fronts"] == {}


def test_annealings_front_has_the_weak_settings_that_its_input_cfg_gives():
    points = {"no guidance": (0.5, 2.0), "CFG 3": (0.9, 2.0), "annealing 0": (1.0, 1.0)}
    alone = quality.judge(points, Judgement())
    both = quality.judge({**points, "annealing at cfg 2": (0.75, 0.0), "annealing at cfg 7.5": (1.0, 0.0)}, Judgement())
    assert alone["fronts"]["annealing"]["hypervolume"] == pytest.approx(0.5)
    assert both["fronts"]["annealing"]["hypervolume"] == pytest.approx(0.75)
