"""The fixed rules."""

import math

import pytest
import torch
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import RULES, FixedScale
from annealing_guidance_pack.models.schedule import next_on_training_grid, share_of_nsr
from hypothesis import given
from hypothesis import strategies as st

TIMESTEPS = torch.tensor([1000.0, 750.0, 500.0, 250.0, 0.0])


def scales(model, timesteps=TIMESTEPS):
    return model(timesteps, torch.ones_like(timesteps), 0.4).tolist()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (FixedScale("constant", 0.8), [0.8] * 5),
        (FixedScale("linear", 1.0, 0.2), [1.0, 0.8, 0.6, 0.4, 0.2]),
        (FixedScale("cosine", 1.0, 0.0), [1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0.0]),
        (FixedScale("interval", 1.0, 0.1, 0.25, 0.5), [0.1, 1.0, 1.0, 0.1, 0.1]),
    ],
    ids=RULES,
)
def test_each_rule_at_five_noise_levels(model, expected):
    assert scales(model) == pytest.approx(expected, abs=1e-6)


@given(st.sampled_from(RULES), st.floats(0, 10), st.floats(0, 10), st.floats(0, 1000))
def test_the_scale_lies_between_its_two_ends(rule, scale, scale_end, timestep):
    [value] = scales(FixedScale(rule, scale, scale_end, 0.3, 0.7), torch.tensor([timestep]))
    assert min(scale, scale_end) - 1e-5 <= value <= max(scale, scale_end) + 1e-5


@given(st.sampled_from(["linear", "cosine"]), st.floats(0, 10), st.floats(0, 10))
def test_linear_and_cosine_never_turn_back(rule, scale, scale_end):
    steps = torch.tensor(scales(FixedScale(rule, scale, scale_end), torch.linspace(0, 1000, 51))).diff()
    assert (steps * (scale - scale_end) >= -1e-4).all()


@pytest.mark.parametrize("rule", RULES)
def test_gap_and_lambda_play_no_part_and_the_result_is_float32_per_sample(rule):
    model = FixedScale(rule)
    scale = model(TIMESTEPS.half(), torch.full((5,), math.nan), 7.0)
    assert torch.equal(scale, model(TIMESTEPS, torch.ones(5), 0.4))
    assert scale.shape == (5,) and scale.dtype == torch.float32


@pytest.mark.parametrize("rule", RULES)
def test_nothing_waits_for_the_device(rule):
    meta = torch.ones(3, device="meta")  # reading a value back from this device raises
    assert FixedScale(rule)(meta, meta, 0.4).device.type == "meta"


def test_it_fits_models_of_both_paths_on_the_papers_grid():
    info = FixedScale().info
    assert info.prediction is None and info.reference_numel is None
    assert share_of_nsr(next_on_training_grid(torch.tensor([1.0]), info, "flow")).item() == pytest.approx(0.48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "sine"}, "constant, linear, cosine, interval"),
        ({"scale": math.nan}, "scale"),
        ({"rule": "interval", "start_percent": 0.7, "end_percent": 0.3}, "interval starts at 0.7"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(AnnealingError, match=message):
        FixedScale(**arguments)
