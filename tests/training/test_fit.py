"""The fit: better than any constant, moved by lambda, inside the knots' range, the same every time, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import two_points
from annealing_guidance_pack.models import schedule
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.scale_file import load_scale, save_scale
from annealing_guidance_pack.models.scale_model import PATHS
from annealing_guidance_pack.training.fit import CHECK_EVERY, Fit, FitSettings, ProfileLoss, fit, typical_gaps
from annealing_guidance_pack.training.knots import table_scales
from annealing_guidance_pack.training.own_scale import fingerprint_text
from annealing_guidance_pack.training.pictures import given_pictures
from annealing_guidance_pack.training.profile import Entries, Profile, ProfileSettings, steps_of_grid
from annealing_guidance_pack.training.shards import measure

FACTS = {"name": "two_points", "trained_on": "two points", "source": "the tests", "licence": "Apache-2.0"}
QUICK = FitSettings(steps=400, batch_size=256, hidden_width=32, depth=1)
GRIDS = {"epsilon": 20, "velocity": 36}


@pytest.fixture(scope="module", params=["epsilon", "velocity"])
def profile(request) -> Profile:
    latents, captions = two_points.pictures(96)
    settings = ProfileSettings(GRIDS[request.param], samples=8)
    pictures = given_pictures({"samples": torch.stack(latents)}, captions)
    return measure(two_points.two_point_model(request.param), pictures, two_points.NEGATIVE, settings)


@pytest.fixture(scope="module")
def fitted(profile) -> Fit:
    return fit(profile, QUICK, **FACTS)


def first_pictures(profile: Profile, count: int) -> torch.Tensor:
    return torch.isin(profile.entries.picture, profile.entries.picture.unique()[:count])


def changed(profile: Profile, **tensors: torch.Tensor) -> Profile:
    return dataclasses.replace(profile, entries=dataclasses.replace(profile.entries, **tensors))


def test_it_is_better_on_held_out_pictures_than_the_best_constant_for_each_lambda(fitted):
    assert fitted.held_out_loss < fitted.constant_loss
    assert fitted.held_out_loss == min(check.held_out_loss for check in fitted.history)


def test_a_higher_lambda_gives_a_higher_scale_at_middle_noise(profile, fitted):
    middle = (profile.entries.timestep - 500).abs() < 150
    timestep, norm = profile.entries.timestep[middle], profile.entries.gap_norm[middle]
    low, middling, high = (fitted.network(timestep, norm, value).mean() for value in (0.0, 0.4, 0.8))
    assert low + 0.02 < middling < high - 0.02


def test_the_network_knows_what_it_was_fitted_to(profile, fitted):
    info, config = fitted.network.info, fitted.network.config
    assert (info.prediction, info.reference_numel) == (profile.kind, 256)
    assert info.training_grid == profile.settings.training_grid
    assert "768 entries of 96 pictures" in info.created_with
    assert config.max_gap_norm == profile.entries.gap_norm.max()
    assert config.gap_divisor == pytest.approx(float(profile.entries.gap_norm.quantile(0.95)))
    assert (config.min_scale, config.max_scale) == (0.0, 4.0)


def test_the_typical_gap_of_a_step_is_the_median_at_that_step(profile, fitted):
    """Steps with fewer than 8 entries borrow from their neighbours; the last one is never measured."""
    levels, next_levels = steps_of_grid(PATHS[profile.kind], profile.settings.training_grid)
    gaps, entries = fitted.network.info.typical_gaps, profile.entries
    assert len(gaps) == len(levels) + 1 and gaps[-1] == gaps[-2]
    checked = 0
    for level, gap in zip(levels, gaps, strict=False):
        timestep = schedule.timestep_of_nsr(PATHS[profile.kind], level)
        there = entries.gap_norm[(entries.timestep - timestep).abs() < 0.1]
        if len(there) >= 8:
            assert gap == pytest.approx(float(there.quantile(0.5)), rel=1e-4)
            checked += 1
    assert checked > 20
    few = changed(profile, **vars(entries[torch.randperm(len(entries))[:64]]))
    assert torch.tensor(typical_gaps(few)) == pytest.approx(torch.tensor(gaps), rel=0.5)


def test_the_model_it_was_measured_on_is_remembered(profile):
    assert fit(profile, dataclasses.replace(QUICK, steps=10), **FACTS).network.info.fingerprint is None
    text = fingerprint_text(profile.model)
    assert fit(profile, dataclasses.replace(QUICK, steps=10), **FACTS, fingerprint=text).network.info.fingerprint == text


def test_it_is_saved_and_loaded_like_any_scale(fitted, tmp_path):
    save_scale(fitted.network, tmp_path / "two_points.safetensors")
    loaded = load_scale(tmp_path / "two_points.safetensors")
    assert loaded.info == fitted.network.info and loaded.config == fitted.network.config
    inputs = torch.tensor([10.0, 500.0]), torch.tensor([1.0, 8.0]), 0.4
    assert torch.equal(loaded(*inputs), fitted.network(*inputs))


def test_the_same_seed_gives_the_same_network_and_leaves_torchs_own_generator_alone(profile):
    brief = dataclasses.replace(QUICK, steps=30)
    before = torch.random.get_rng_state()
    one, again = fit(profile, brief, **FACTS), fit(profile, brief, **FACTS)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = fit(profile, dataclasses.replace(brief, seed=1), **FACTS)
    states = [list(result.network.state_dict().values()) for result in (one, again, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))


def test_the_scale_stays_inside_the_knots_even_where_the_loss_wants_to_leave(profile):
    outward = torch.tensor([40.0, -10.0, 0.5]).expand(len(profile.entries), 3)  # smallest at scale 10
    result = fit(changed(profile, first=outward), dataclasses.replace(QUICK, loss_balance="none"), **FACTS)
    scale = result.network(profile.entries.timestep, profile.entries.gap_norm, 0.0)
    assert (scale <= 4.0).all() and scale.mean() > 3.5


def test_the_loss_is_the_two_terms_and_has_a_slope_back_beyond_the_knots(profile):
    loss = ProfileLoss(profile.entries, profile.settings.knots, ratio=3.0)
    rows, knot = torch.tensor([0, 5]), table_scales(0.0, 4.0)[20]
    scale, guidance_lambda = torch.full((2,), knot), torch.tensor([0.25, 1.0])
    a, b, c = profile.entries.first[rows].unbind(1)
    second = profile.entries.second[rows, 20]
    expected = (1 - guidance_lambda) * (a + b * knot + c * knot**2) + guidance_lambda * 3.0 * second
    torch.testing.assert_close(loss(scale, guidance_lambda, rows), expected)
    outside = torch.tensor([-0.5, 4.5], requires_grad=True)
    loss(outside, guidance_lambda, rows).sum().backward()
    assert outside.grad[0] < 0 < outside.grad[1]


def test_the_ratio_makes_the_second_term_as_large_as_the_first(profile):
    plain, balanced = (fit(profile, dataclasses.replace(QUICK, loss_balance=b), **FACTS) for b in ("none", "ratio"))
    scales = [r.network(profile.entries.timestep, profile.entries.gap_norm, 0.4).mean() for r in (plain, balanced)]
    assert scales[1] > scales[0]  # the second term is the one that asks for more guidance


def test_it_trains_in_inference_mode_as_nodes_run(profile):
    with torch.inference_mode():
        inside = changed(profile, **{name: tensor.clone() for name, tensor in vars(profile.entries).items()})
        result = fit(inside, dataclasses.replace(QUICK, steps=20), **FACTS)
    assert not any(tensor.is_inference() for tensor in result.network.state_dict().values())


def test_progress_is_told_at_every_check_and_may_end_the_fit(profile):
    seen = []

    def progress(step, steps, history):
        seen.append((step, steps, len(history)))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(profile, QUICK, **FACTS, progress=progress)
    assert seen == [(CHECK_EVERY, 400, 1), (2 * CHECK_EVERY, 400, 2)]


def test_it_stops_early_and_keeps_the_best(profile):
    few = profile.entries[first_pictures(profile, 9)]
    overfitting = FitSettings(steps=5000, batch_size=64, depth=1, learning_rate=3e-3, patience=2, held_out=0.5)
    result = fit(dataclasses.replace(profile, entries=few), overfitting, **FACTS)
    assert result.history[-1].step < 5000
    assert result.held_out_loss < result.history[-1].held_out_loss


def without(entries: Entries, keep: torch.Tensor) -> dict[str, torch.Tensor]:
    return vars(entries[keep])


def test_profiles_that_teach_nothing_are_refused(profile):
    entries = profile.entries
    nan = entries.second.clone()
    nan[3, 2] = torch.nan
    one_step = torch.full_like(entries.timestep, 500.0)
    cases = {
        "Every gap of the profile is zero": {"gap_norm": torch.zeros_like(entries.gap_norm)},
        "NaN or infinity in 1 of its 768": {"second": nan},
        "All entries of the profile are at timestep 500": {"timestep": one_step},
        "56 entries of 7 pictures, too few": without(entries, first_pictures(profile, 7)),
    }
    for message, tensors in cases.items():
        with pytest.raises(AnnealingError, match=message):
            fit(changed(profile, **tensors), QUICK, **FACTS)


@pytest.mark.parametrize(
    ("setting", "value"), [("loss_balance", "some"), ("gap_divisor", 0.0), ("gap_divisor", "p50"), ("held_out", 1.0)]
)
def test_impossible_settings_are_refused(profile, setting, value):
    with pytest.raises(AnnealingError, match=setting):
        fit(profile, dataclasses.replace(QUICK, **{setting: value}), **FACTS)
