"""The weights that multistep solvers give to earlier predictions, measured on ComfyUI's own; and what taking them out does."""

import math

import pytest
import torch
from annealing_guidance_pack.guidance import course, history
from annealing_guidance_pack.guidance.delivery import Delivery
from annealing_guidance_pack.guidance.sampler_facts import facts_of
from beside import assert_close
from closed_form import SmoothScale
from hypothesis import given, settings
from hypothesis import strategies as st
from probing import BOTH, EPS, FLOW, kept, model_sampling_of, ran, sampler_of, scheduled
from reference import default_dtype

CPU = torch.device("cpu")
SHAPE = (1, 1, 2, 2)


def none_of_it(sigma):
    return 0.0


# ComfyUI's name, and the options with which it makes other weights of the same predictions.
SOLVERS = [
    ("dpmpp_2m", {}),
    *[("dpmpp_2m_sde", {"eta": eta, "solver_type": kind}) for eta in (0.0, 0.5, 1.0) for kind in ("midpoint", "heun")],
    ("dpmpp_2m_sde_heun", {}),
    *[("dpmpp_3m_sde", {"eta": eta}) for eta in (0.0, 0.5, 1.0)],
    ("res_multistep", {}),
    *[("res_multistep_ancestral", {"eta": eta}) for eta in (0.0, 0.5, 1.0)],
    *[("gradient_estimation", {"ge_gamma": gamma}) for gamma in (1.5, 2.0)],
    *[(name, {"max_order": order}) for name in ("ipndm", "ipndm_v") for order in (2, 3, 4)],
    *[("deis", {"max_order": order, "deis_mode": mode}) for order in (2, 3) for mode in ("tab",)],
    *[("lms", {"order": order}) for order in (2, 3, 4)],
    *[("er_sde", {"max_stage": stage}) for stage in (1, 2, 3)],
    ("uni_pc", {}),
    ("uni_pc_bh2", {}),
    ("sa_solver", {}),
    *[
        ("sa_solver", {"tau_func": none_of_it, "predictor_order": p, "corrector_order": c})
        for p, c in ((3, 4), (2, 2), (1, 0), (2, 0))
    ],
    ("sa_solver", {"simple_order_2": True, "predictor_order": 2, "corrector_order": 2}),
]
IDS = [" ".join([name, *(getattr(value, "__name__", str(value)) for value in options.values())]) for name, options in SOLVERS]
SCHEDULES = [("karras", 4), ("karras", 12), ("normal", 7), ("simple", 5), ("simple", 10)]
ON_FLOW_TOO = {name for name, _ in SOLVERS} - {"res_multistep_ancestral"}  # whose step is wrong there
solvers = pytest.mark.parametrize("name, options", SOLVERS, ids=IDS)
kinds = pytest.mark.parametrize("kind", BOTH, ids=str)


SLOPES = ("lms", "ipndm", "ipndm_v", "deis", "gradient_estimation")


def unguided(name: str, x: torch.Tensor) -> torch.Tensor:
    """A prediction that a solver extrapolates without error, so that only what is added to it counts.

    Solvers that extrapolate predictions: always 0. Those that extrapolate slopes (x - D)/sigma: x, whose slope is always 0.
    """
    return x if name in SLOPES else torch.zeros_like(x)


def steps_of(kind, sampler, sigmas) -> list[tuple[float, float]]:
    """What a first-order step of the same size keeps of x and takes of the prediction, for every step."""
    facts, sampling = facts_of(sampler), model_sampling_of(kind)
    down = facts.level_down(sampling, sigmas[:-1], sigmas[1:]).tolist()
    down[-1] = 0.0 if sigmas[-1] == 0 else down[-1]
    steps = [kept(kind, float(start), float(end), n) for start, end, n in zip(sigmas, sigmas[1:], down, strict=False)]
    return [(1.0, take) for _, take in steps] if facts.name in SLOPES else steps


def measured(kind, sampler, sigmas) -> torch.Tensor:
    """The solver's own weights [step, call]: how far x moves for a prediction that is 1 at one call and 0 at all others."""
    x = torch.zeros(SHAPE, dtype=torch.float64)
    name = facts_of(sampler).name
    without = ran(sampler, kind, x, sigmas, lambda i, x, sigma: (unguided(name, x),) * 2).xs
    table = torch.zeros(len(sigmas) - 1, len(sigmas) - 1, dtype=torch.float64)
    for call in range(len(sigmas) - 1):
        run = ran(sampler, kind, x, sigmas, lambda i, x, sigma, call=call: (unguided(name, x) + float(i == call),) * 2)
        moved = [float((a - b).mean()) for a, b in zip(run.xs, without, strict=True)]
        for step, (keep, take) in enumerate(steps_of(kind, sampler, sigmas)):
            table[step, call] = (moved[step + 1] - keep * moved[step]) / take
    return table


def course_of(kind, sampler, sigmas) -> course.Course:
    with default_dtype(torch.float64):  # as the solver itself is run here
        return course.Course(model_sampling_of(kind), SmoothScale().info, facts_of(sampler), sigmas, 0.0, CPU)


def known(kind, sampler, sigmas) -> torch.Tensor:
    """The same table from what the pack knows."""
    run = course_of(kind, sampler, sigmas)
    table = torch.zeros(len(sigmas) - 1, len(sigmas) - 1, dtype=torch.float64)
    for step, weights in enumerate(run.at(sigmas[:-1].float()).weights):
        for j, weight in enumerate(weights[: step + 1]):
            table[step, step - j] = weight
    return table


def skip_what_is_wrong_on_flow(name: str, kind) -> None:
    if kind is FLOW and name not in ON_FLOW_TOO:
        pytest.skip("ComfyUI's own step is wrong on flow models")


@solvers
@kinds
@pytest.mark.parametrize("scheduler, steps", SCHEDULES)
def test_the_known_weights_are_those_with_which_comfyuis_solver_steps(name, options, kind, scheduler, steps):
    skip_what_is_wrong_on_flow(name, kind)
    sampler, sigmas = sampler_of(name, **options), scheduled(kind, scheduler, steps)
    found, expected = known(kind, sampler, sigmas), measured(kind, sampler, sigmas)
    if name.startswith("uni_pc"):  # it ends at sigma 0.001 and not at 0, so its last step leaves a little of the step before
        found, expected = found[:-1], expected[:-1]
    # In log SNR a flow model's first step begins a little below pure noise.
    torch.testing.assert_close(found[0], expected[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1:], expected[1:], atol=5e-5, rtol=1e-5)


def test_what_is_measured_is_an_extrapolation():
    """Else the test above would pass for weights of 1."""
    for name, options in SOLVERS:
        if options not in ({"max_stage": 1}, {"tau_func": none_of_it, "predictor_order": 1, "corrector_order": 0}):
            sampler = sampler_of(name, **options)
            table = measured(EPS, sampler, scheduled(EPS, "karras", 7))
            assert abs(table[3, 3] - 1) > 0.05 and abs(table[3, 2]) > 0.05, (name, options)


@solvers
@kinds
@settings(max_examples=8)
@given(scheduler=st.sampled_from(["karras", "normal", "simple"]), steps=st.integers(4, 12), seed=st.integers(0, 99))
def test_the_guided_displacements_take_the_first_order_steps_under_every_solver(name, options, kind, scheduler, steps, seed):
    """Displacements that point elsewhere at each call, in the place of a gap that keeps its direction."""
    if kind is FLOW and name not in ON_FLOW_TOO:
        return
    sampler, sigmas, draw = sampler_of(name, **options), scheduled(kind, scheduler, steps), torch.Generator().manual_seed(seed)
    displacements = torch.randn(steps, *SHAPE, dtype=torch.float64, generator=draw)
    plain = torch.randn(steps, *SHAPE, dtype=torch.float64, generator=draw)
    x = torch.randn(SHAPE, dtype=torch.float64, generator=draw)
    way = course_of(kind, sampler, sigmas)
    deliver = Delivery(False, way.remembers)

    def uncond(call, x):
        return x if facts_of(sampler).name in SLOPES else plain[call]

    def guided(call, x, sigma):
        return (deliver(way.at(sigma.float()), *[uncond(call, x)] * 2, uncond(call, x) + displacements[call]),) * 2

    without = ran(sampler, kind, x, sigmas, lambda call, x, sigma: (uncond(call, x),) * 2).xs
    moved = [a - b for a, b in zip(ran(sampler, kind, x, sigmas, guided).xs, without, strict=True)]
    expected = [torch.zeros_like(x)]
    for (keep, take), displacement in zip(steps_of(kind, sampler, sigmas), displacements, strict=True):
        expected.append((keep * expected[-1] if keep else 0.0) + take * displacement)
    until = -1 if name.startswith("uni_pc") else None  # as above
    assert_close(torch.stack(moved)[:until], torch.stack(expected)[:until], 1e-4 if kind is EPS else 2e-3)


def test_without_the_weights_taken_out_the_steps_are_others():
    sampler, sigmas = sampler_of("dpmpp_2m"), scheduled(EPS, "karras", 6)
    x, displacements = torch.zeros(SHAPE, dtype=torch.float64), torch.randn(6, *SHAPE, dtype=torch.float64)
    moved = ran(sampler, EPS, x, sigmas, lambda call, x, sigma: (displacements[call],) * 2).xs
    expected = [x]
    for (keep, take), displacement in zip(steps_of(EPS, sampler, sigmas), displacements, strict=True):
        expected.append(keep * expected[-1] + take * displacement)
    assert (torch.stack(moved) - torch.stack(expected)).abs().max() > 0.1


def test_what_was_handed_out_before_a_step_back_to_more_noise_counts_no_longer():
    sigmas = scheduled(EPS, "karras", 6)
    way = course_of(EPS, sampler_of("dpmpp_2m"), sigmas)
    twice, once = Delivery(False, way.remembers), Delivery(False, way.remembers)
    zero, ones = torch.zeros(SHAPE), torch.ones(SHAPE)
    for level in sigmas[:5]:
        twice(way.at(level[None].float()), zero, zero, ones)
    for level in sigmas[2:4]:
        here = way.at(level[None].float())
        assert torch.equal(twice(here, zero, zero, ones), once(here, zero, zero, ones))


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m_cfg_pp", "some_other_pack"])
def test_other_samplers_go_by_their_own_prediction_alone(name):
    assert history.weights_of(name, [4.0, 2.0, 1.0, 0.0], [-1.4, -0.7, 0.0, math.inf], {}) == [[1.0]] * 3


@pytest.mark.parametrize("name", sorted(history._WEIGHTS))
def test_a_step_of_no_size_leaves_every_weight_finite(name):
    levels = [4.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.0]
    log_snr = [-math.log(level) if level else math.inf for level in levels]
    for weights in history.weights_of(name, levels, log_snr, {"tau": none_of_it}):
        assert all(map(math.isfinite, weights)) and abs(weights[0]) > 1e-3
