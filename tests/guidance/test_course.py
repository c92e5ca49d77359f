"""What is looked up of a noise level, against the exact functions; and which of the sampler's steps a call belongs to."""

import math

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import coordinates
from annealing_guidance_pack.guidance.course import Course, StepTracker, folding_factor, gap_response
from annealing_guidance_pack.guidance.sampler_facts import facts_of
from annealing_guidance_pack.models import schedule
from closed_form import SmoothScale
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import KINDS
from probing import BOTH, EPS, FLOW, constant, model_sampling_of, ran, sampler_of, scheduled

CPU = torch.device("cpu")
GUIDABLE = [kind for kind in KINDS if kind.path]
every_kind = pytest.mark.parametrize("kind", GUIDABLE, ids=str)


def course_of(kind, sigmas, sampler="euler", training_grid=20, renoised=0.0) -> Course:
    info = SmoothScale(training_grid=training_grid).info
    facts = facts_of(sampler_of(sampler) if isinstance(sampler, str) else sampler)
    return Course(model_sampling_of(kind), info, facts, sigmas.float(), renoised, CPU)


def scheduled_levels(kind, steps=9):
    return scheduled(kind, "karras" if kind.path == "ve" else "simple", steps).float()


def exact(kind, sigma, training_grid=20, last_step=False):
    """timestep, gap divisor, response and k of a training step, in float64."""
    sampling, info = model_sampling_of(kind), SmoothScale(training_grid=training_grid).info
    nsr, path = coordinates.nsr_of_sigma(sampling, sigma.double()), coordinates.path_of(sampling)
    following = schedule.next_on_training_grid(nsr, info, path, last_step)
    divisor = coordinates.gap_divisor(sampling, sigma.double())
    return schedule.timestep_of_nsr(path, nsr), divisor.double(), gap_response(nsr), folding_factor(nsr, following)


def looked_up(level):
    return level.timestep.double(), level.divisor.double(), level.response.double(), level.training_k.double()


def assert_alike(level, expected, timestep, relative):
    for found, value, (atol, rtol) in zip(looked_up(level), expected, [(timestep, 0), *[(1e-6, relative)] * 3], strict=True):
        torch.testing.assert_close(found, value, atol=atol, rtol=rtol)


@every_kind
@pytest.mark.parametrize("grid", ["number", "levels"])
def test_at_scheduled_levels_everything_is_exact(kind, grid):
    training_grid = (
        20 if grid == "number" else ((10.0, 4.0, 1.0, 0.3, 0.1, 0.0) if kind.path == "ve" else (0.95, 0.7, 0.4, 0.1, 0.0))
    )
    sigmas = scheduled_levels(kind)
    level = course_of(kind, sigmas, training_grid=training_grid).at(sigmas[:-2])
    assert_alike(level, exact(kind, sigmas[:-2], training_grid), 1e-3, 1e-5)
    last = course_of(kind, sigmas, training_grid=training_grid).at(sigmas[-2:-1])
    assert_alike(last, exact(kind, sigmas[-2:-1], training_grid, last_step=True), 1e-3, 1e-5)


@every_kind
@settings(max_examples=20)
@given(share=st.floats(0.0, 1.0), step=st.integers(0, 6))
def test_between_scheduled_levels_everything_is_nearly_exact(kind, share, step):
    sigmas = scheduled_levels(kind)
    sigma = (sigmas[step + 1] ** share * sigmas[step] ** (1 - share))[None]
    assert_alike(course_of(kind, sigmas).at(sigma), exact(kind, sigma), 5e-3, 5e-3)


@every_kind
def test_above_the_schedule_and_below_its_last_level_too(kind):
    sigmas = scheduled_levels(kind)
    most = math.inf if kind.path == "ve" else float(model_sampling_of(kind).sigma_max)
    above = (sigmas[:1] * 1.05).clamp(max=most)
    assert_alike(course_of(kind, sigmas).at(above), exact(kind, above), 5e-3, 1e-2)
    below = sigmas[-2:-1] * torch.tensor([0.9, 0.3])
    assert_alike(course_of(kind, sigmas).at(below), exact(kind, below, last_step=True), 5e-2, 2e-2)


@every_kind
def test_k_is_that_of_the_own_step(kind):
    sigmas = scheduled_levels(kind)
    nsr = coordinates.nsr_of_sigma(model_sampling_of(kind), sigmas.double())
    expected = folding_factor(nsr[:-1], nsr[1:])
    torch.testing.assert_close(course_of(kind, sigmas).at(sigmas[:-1]).k.double(), expected, atol=0, rtol=1e-5)
    torch.testing.assert_close(course_of(kind, sigmas).of_steps().k.double(), expected, atol=0, rtol=1e-5)
    assert expected[-1] == 1


@pytest.mark.parametrize("kind", BOTH, ids=str)
@pytest.mark.parametrize("told", [0.9, 0.95, 1.0, 1.0 + 1e-6, 1.0 - 1e-6, 1.05])
@pytest.mark.parametrize("steps", [8, 20])
def test_a_call_told_a_somewhat_other_level_belongs_to_its_own_step(kind, told, steps):
    """Detail tools tell the model 5 or 10% less. Finer schedules than these are in test_faults.py, by their result."""
    sigmas = scheduled_levels(kind, steps)
    way = course_of(kind, sigmas)
    near = [i for i in range(steps) if sigmas[i + 1] / sigmas[i] < 0.82 and (kind is EPS or sigmas[i] * told <= 1)]
    assert len(near) >= 3
    torch.testing.assert_close(way.at(sigmas[near] * told).k, way.at(sigmas[near]).k, rtol=0, atol=0)


@pytest.mark.parametrize("kind", BOTH, ids=str)
def test_a_schedule_that_ends_before_the_picture_has_no_last_step(kind):
    whole = scheduled_levels(kind)
    part, last = whole[:5], whole[3:4]
    torch.testing.assert_close(course_of(kind, part).at(last).k, course_of(kind, whole).at(last).k)
    assert_alike(course_of(kind, part).at(whole[4:5]), exact(kind, whole[4:5]), 1e-3, 1e-5)
    # Below the training's last but one level it is told apart which step leads to the picture.
    low = torch.tensor([0.8, 0.1, 0.02, 0.01])
    assert_alike(course_of(kind, low).at(low[2:3]), exact(kind, low[2:3]), 5e-2, 1e-3)
    to_picture = torch.cat([low[:3], torch.zeros(1)])
    assert_alike(course_of(kind, to_picture).at(low[2:3]), exact(kind, low[2:3], last_step=True), 5e-2, 1e-3)
    assert exact(kind, low[2:3])[3] > 1.05 * exact(kind, low[2:3], last_step=True)[3]


@pytest.mark.parametrize("sigmas", [[3.0], [], [3.0, 3.0], [0.0]], ids=str)
def test_schedules_of_no_step_are_no_error(sigmas):
    level = course_of(EPS, torch.tensor(sigmas)).at(torch.tensor([3.0, 0.0]))
    assert all(values.isfinite().all() for values in level)


@every_kind
def test_level_zero_gives_finite_values(kind):
    assert all(values.isfinite().all() for values in course_of(kind, scheduled_levels(kind)).at(torch.zeros(2)))


@pytest.mark.parametrize("kind", BOTH, ids=str)
def test_each_sample_has_its_own_level_in_any_order(kind):
    sigmas = scheduled_levels(kind)
    way, order = course_of(kind, sigmas), torch.tensor([5, 0, 3])
    for together, alone in zip(
        way.at(sigmas[order]), zip(*(way.at(sigmas[i : i + 1]) for i in order.tolist()), strict=True), strict=True
    ):
        assert torch.equal(together, torch.cat(alone))


def test_schedules_that_go_back_to_more_noise_are_looked_up_alike():
    sigmas = scheduled_levels(EPS)
    restart = torch.cat([sigmas[:6], sigmas[3:]])
    for a, b in zip(course_of(EPS, restart).at(sigmas[:-1]), course_of(EPS, sigmas).at(sigmas[:-1]), strict=True):
        assert torch.equal(a, b)


# A step's start, from the calls that ComfyUI's solvers really make.

SEVERAL = [
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "seeds_2",
    "seeds_3",
    "exp_heun_2_x0",
]
SEVERAL = [name for name in SEVERAL if name in comfy.samplers.SAMPLER_NAMES]


def calls_of(name, kind, sigmas):
    return torch.tensor(ran(sampler_of(name), kind, torch.zeros(1, 1, 2, 2, dtype=torch.float64), sigmas, constant(0.0)).sigmas)


def starts(name, calls):
    tracker = StepTracker(facts_of(sampler_of(name)).calls_per_step)
    return [tracker.start_of_step(sigma[None]).item() for sigma in calls]


def expected_starts(name, sigmas):
    """heunpp2 makes fewer calls in its last two steps, the others one in their last."""
    per_step = facts_of(sampler_of(name)).calls_per_step
    last = {"heunpp2": [2, 1]}.get(name, [1])
    counts = [per_step] * (len(sigmas) - 1 - len(last)) + last
    return [float(sigma) for sigma, count in zip(sigmas, counts, strict=False) for _ in range(count)]


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("kind", BOTH, ids=str)
@pytest.mark.parametrize("scheduler, steps", [("karras", 6), ("simple", 9), ("normal", 30)])
def test_every_call_of_a_step_is_led_back_to_the_steps_start(name, kind, scheduler, steps):
    sigmas = scheduled(kind, scheduler, steps)
    assert starts(name, calls_of(name, kind, sigmas)) == pytest.approx(expected_starts(name, sigmas), rel=2e-4)


@pytest.mark.parametrize("name", SEVERAL)
def test_a_step_back_to_more_noise_begins_a_step(name):
    sigmas = scheduled(EPS, "simple", 9)
    part = calls_of(name, EPS, sigmas[:5])
    whole = calls_of(name, EPS, sigmas)
    assert starts(name, torch.cat([part, whole]))[len(part) :] == pytest.approx(expected_starts(name, sigmas), rel=1e-5)


@pytest.mark.parametrize("told", [0.9, 0.95, 1.05])
def test_wrappers_that_tell_another_level_throughout_leave_the_steps_as_they_are(told):
    for name in SEVERAL:
        sigmas = scheduled(EPS, "simple", 9)
        found = starts(name, told * calls_of(name, EPS, sigmas))
        assert found == pytest.approx([told * start for start in expected_starts(name, sigmas)], rel=1e-5)


def test_samples_are_followed_each_by_itself():
    one, other = ([4.0, 2.0, 2.0, 1.0], [9.0, 9.0, 5.0, 5.0])
    tracker = StepTracker(2)
    found = torch.stack([tracker.start_of_step(torch.tensor(pair)) for pair in zip(one, other, strict=True)])
    assert found[:, 0].tolist() == [4, 4, 2, 2] and found[:, 1].tolist() == [9, 9, 5, 5]


# Levels that come twice.


def test_a_step_of_no_size_is_handed_no_guidance_and_the_one_after_it_all_of_it():
    sigmas = torch.tensor([8.0, 4.0, 4.0, 4.0, 2.0, 1.0, 1.0, 0.0])
    way = course_of(EPS, sigmas, "euler_cfg_pp", renoised=1.0)
    gains = [way.at(sigma[None]).gain.item() for sigma in sigmas[:-1]]
    assert gains == pytest.approx([0.5, 0.0, 0.0, 0.5, 0.5, 0.0, 1.0])


def test_ordinary_samplers_are_handed_theirs_at_every_call():
    sigmas = torch.tensor([8.0, 4.0, 4.0, 2.0, 0.0])
    way = course_of(EPS, sigmas)
    assert [way.at(sigma[None]).gain.item() for sigma in sigmas[:-1]] == [1, 1, 1, 1]


def test_asking_for_all_steps_beforehand_moves_no_counter():
    sigmas = torch.tensor([8.0, 4.0, 4.0, 2.0, 0.0])
    asked, fresh = (course_of(EPS, sigmas, "dpmpp_2s_ancestral_cfg_pp", renoised=1.0) for _ in range(2))
    asked.of_steps()
    for sigma in (8.0, 4.0, 4.0, 4.0, 4.0, 3.0, 2.0):
        for a, b in zip(asked.at(torch.tensor([sigma])), fresh.at(torch.tensor([sigma])), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name, mix, gain", [
    ("euler_cfg_pp", 1.0, lambda k: 1 / k),
    ("euler_pp", 1.0, lambda k: 0 * k + 0.5),
    ("dpmpp_2s_ancestral_cfg_pp", 1.0, lambda k: 1 / k),
    ("euler", 0.5, lambda k: 1 / (k * (1 - 0.5 * (1 - 1 / k)))),
    ("euler", 0.0, lambda k: 0 * k + 1),
])  # fmt: skip
def test_what_a_sampler_is_handed_of_a_displacement(name, mix, gain):
    sigmas = scheduled_levels(EPS)
    level = course_of(EPS, sigmas, name, renoised=mix).of_steps()
    torch.testing.assert_close(level.gain, gain(level.k))


def test_nothing_of_a_look_up_waits_for_the_device():
    """On this device reading a value back raises."""
    for name, renoised in (("heun", 0.0), ("dpmpp_2m", 0.0), ("euler_cfg_pp", 1.0)):
        way = course_of(FLOW, torch.tensor([1.0, 0.5, 0.5, 0.2, 0.0]), name, renoised=renoised)
        for _ in range(2):
            assert way.at(torch.ones(2, device="meta")).k.device.type == "meta"
