"""The same strength under every sampler: one step, wrapped, split, repeated, misinformed, ended at 0; each a fault once."""

import dataclasses
import logging

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import paper_schedule
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.guidance.sampler_facts import CALLS_PER_STEP, WRONG_ON_FLOW, facts_of
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.models.scale_file import load_scale
from closed_form import GaussianDenoiser, SmoothScale, closed_form_model, conditioning, paper_trajectory, sample
from comfy.model_base import ModelType
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM
from probing import NAMES, accepts, sampler_of

SHAPE = (1, 4, 8, 8)
CAPTION, NOISE = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
TYPES = {"eps": ModelType.EPS, "flow": ModelType.FLOW}
models = pytest.mark.parametrize("kind", TYPES)
W = 0.8


def latent(kind, sampler, sigmas, scale, matched=False, stds=(1e-3, 1e-3), model=None, noise=NOISE, start=None):
    guider = AnnealingCFGGuider(model or closed_form_model(TYPES[kind]), Guidance(scale, match_training_steps=matched))
    guider.set_conds(conditioning(CAPTION, stds[0]), conditioning(0 * CAPTION, stds[1]))
    torch.manual_seed(0)  # for samplers that draw by themselves
    return sample(guider, sampler, torch.as_tensor(sigmas), noise, seed=1, latent=start).double()


def moved(kind, sampler, sigmas, scale=None, **options) -> float:
    """By how many gaps the guidance moves the result along the caption, over the scale."""
    guided, plain = (
        latent(kind, sampler, sigmas, one, **options) for one in (scale or FixedScale("constant", W), FixedScale("constant", 0.0))
    )
    return float(((guided - plain) * CAPTION).sum() / CAPTION.square().sum() / W)


UPSCALING = {"lcm_upscale": {"total_upscale": 1.0, "upscale_method": "nearest-exact"}}
# These take no step from a schedule of one: their first prediction only prepares the next.
NEED_MORE = ("uni_pc", "uni_pc_bh2", "sa_solver", "sa_solver_pece")
STEPS = {"eps": [(5.0, 3.0), (2.0, 1.5)], "flow": [(0.9, 0.7), (0.5, 0.4)]}


def one_step_samplers():
    for kind in TYPES:
        for name in NAMES:
            wrong = kind == "flow" and (facts_of(sampler_of(name)).name in WRONG_ON_FLOW or name == "lcm_upscale")
            if not wrong and name not in NEED_MORE:
                yield kind, name


@pytest.mark.parametrize("kind, name", one_step_samplers())
def test_one_unmatched_step_moves_x_by_the_scale_times_a_constant_gap(kind, name):
    """Null renoising does so. Of solvers that add noise it is the step down that counts, and calls within it share it."""
    for sigmas in STEPS[kind]:
        assert moved(kind, sampler_of(name, **UPSCALING.get(name, {})), sigmas) == pytest.approx(1, abs=2e-3), sigmas


@models
@pytest.mark.parametrize("name", [name for name in NAMES if accepts(sampler_of(name), "eta")])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_with_any_share_of_fresh_noise(kind, name, eta):
    if kind == "flow" and facts_of(sampler_of(name)).name in WRONG_ON_FLOW or name == "dpm_adaptive":
        return
    if (kind, name, eta) == ("flow", "dpm_2_ancestral", 0.0):
        pytest.skip("ComfyUI's own step takes the root of a rounding error below 0")
    assert moved(kind, sampler_of(name, eta=eta), STEPS[kind][0]) == pytest.approx(1, abs=2e-3)


SEVERAL = [name for name in NAMES if facts_of(sampler_of(name)).name in CALLS_PER_STEP and name != "dpm_fast"]


@models
@pytest.mark.parametrize("name", SEVERAL)
def test_solvers_that_call_several_times_move_x_by_what_the_gap_is_worth_within_the_step(kind, name):
    """With a gap that answers: less by what it shrinks. Once from 0.08 (a call taken for the next step's) to 2.9."""
    if kind == "flow" and name in WRONG_ON_FLOW:
        return
    for sigmas in STEPS[kind]:
        first_order = moved(kind, sampler_of("euler"), sigmas, stds=(0.45, 0.5))
        assert 0.88 * first_order < moved(kind, sampler_of(name), sigmas, stds=(0.45, 0.5)) < 1.02 * first_order


@models
@pytest.mark.parametrize("name", ["euler", "euler_cfg_pp", *SEVERAL])
def test_one_matched_step_of_the_trainings_size_moves_x_by_the_scale(kind, name):
    if kind == "flow" and name in WRONG_ON_FLOW:
        return
    if kind == "eps":
        table = closed_form_model().get_model_object("model_sampling").sigmas
        sigmas = [float(table[500]), float(table[480])]
    else:
        sigmas = [0.6, 0.58]
    sampler = sampler_of(name, eta=0.0) if accepts(sampler_of(name), "eta") else sampler_of(name)
    assert moved(kind, sampler, sigmas, matched=True) == pytest.approx(1, abs=0.12)


def lying(inner, share, every=1):
    """A detail tool: tells the model a smaller sigma at every call, or every so many."""

    def detail_tool(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        calls = [0]

        class Told:
            inner_model = model.inner_model

            def __call__(self, x, sigma, **kwargs):
                calls[0] += 1
                return model(x, sigma if calls[0] % every else sigma * share, **kwargs)

        return inner.sampler_function(Told(), x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **options)

    return comfy.samplers.KSAMPLER(detail_tool, extra_options=inner.extra_options)


def named(name):
    return (
        null_renoising_sampler()
        if name == "annealing"
        else sampler_of(name, eta=0.0)
        if "ancestral" in name
        else sampler_of(name)
    )


TOLD = [
    "annealing",
    "euler_cfg_pp",
    "euler_ancestral_cfg_pp",
    "dpmpp_2m_cfg_pp",
    "res_multistep_cfg_pp",
    "gradient_estimation_cfg_pp",
]
TOLD += ["dpmpp_2s_ancestral_cfg_pp", "euler", "dpmpp_2m", "heun", "dpmpp_2s_ancestral"]


@models
@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("scheduler, steps", [("normal", 20), ("karras", 50)])
def test_guidance_survives_tools_that_tell_the_model_less_noise_than_there_is(kind, name, scheduler, steps):
    """Told 10% less at 50 steps, samplers that renoise with the unconditional prediction once had 0.03 of it."""
    if kind == "flow" and name in WRONG_ON_FLOW:
        return
    sigmas = comfy.samplers.calculate_sigmas(closed_form_model(TYPES[kind]).get_model_object("model_sampling"), scheduler, steps)
    honest = moved(kind, named(name), sigmas, matched=True, stds=(0.5, 0.5))
    for share, every in ((0.95, 1), (0.9, 1), (0.9, 3)):
        told = moved(kind, lying(named(name), share, every), sigmas, matched=True, stds=(0.5, 0.5))
        # A multistep solver's weights are those of the step that the told level belongs to, which may be a neighbour's.
        least = 0.8 if name == "dpmpp_2m" else 0.89
        assert least < told / honest < 1.1, (share, every)


FIRST_AND_SECOND_ORDER = ["euler", "heun", "dpm_2", "euler_cfg_pp", "euler_pp"]


@models
@pytest.mark.parametrize("name", [*FIRST_AND_SECOND_ORDER, "annealing", "euler_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp"])
@pytest.mark.parametrize("matched", [False, True])
def test_a_level_that_comes_twice_changes_nothing(kind, name, matched):
    if kind == "flow" and name in WRONG_ON_FLOW:
        return
    once = [14.0, 6.0, 2.0, 0.5, 0.0] if kind == "eps" else [0.95, 0.8, 0.5, 0.2, 0.0]
    twice = [*once[:3], *once[2:]]
    expected, found = (
        latent(kind, named(name), levels, SmoothScale(), matched=matched, stds=(0.4, 0.9)) for levels in (once, twice)
    )
    assert ((found - expected).norm() / expected.norm()) < 2e-6


@models
@pytest.mark.parametrize("name", [*FIRST_AND_SECOND_ORDER, "annealing", "dpmpp_2s_ancestral", "seeds_2", "seeds_3"])
@pytest.mark.parametrize("at", [2, 4])
def test_a_run_in_two_parts_is_the_whole_run(kind, name, at):
    """As base and refiner share one: the first part's last level is not the picture."""
    sampler = sampler_of(name, eta=0.0) if name.startswith("seeds") else named(name)
    sigmas = comfy.samplers.calculate_sigmas(closed_form_model(TYPES[kind]).get_model_object("model_sampling"), "simple", 6)
    whole = latent(kind, sampler, sigmas, SmoothScale(), matched=True, stds=(0.4, 0.9))
    first = latent(kind, sampler, sigmas[: at + 1], SmoothScale(), matched=True, stds=(0.4, 0.9)).float()
    both = latent(kind, sampler, sigmas[at:], SmoothScale(), matched=True, stds=(0.4, 0.9), noise=0 * NOISE, start=first)
    assert ((both - whole).norm() / whole.norm()) < 3e-6


class KnowsPicture(GaussianDenoiser):
    """At sigma 0 a real network still answers; the closed form would divide by it."""

    def forward(self, x, timestep, context=None, transformer_options=None, **kwargs):
        least = {**transformer_options, "sigmas": transformer_options["sigmas"].clamp(min=1e-3)}
        return super().forward(x, timestep, context, least, **kwargs)


@models
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_cfg_pp", "annealing"])
def test_a_call_at_sigma_zero_is_finite_and_nothing_is_said_of_it(kind, name, caplog):
    inner = named(name)

    def ends_with_a_call(model, x, sigmas, extra_args=None, **kwargs):
        x = inner.sampler_function(model, x, sigmas, extra_args=extra_args, **kwargs)
        return model(x, sigmas.new_zeros(x.shape[0]), **(extra_args or {}))

    model = closed_form_model(TYPES[kind])
    denoiser = KnowsPicture()
    denoiser.model_sampling, model.model.diffusion_model = model.model.model_sampling, denoiser
    sampler = comfy.samplers.KSAMPLER(ends_with_a_call, extra_options=inner.extra_options)
    with caplog.at_level(logging.WARNING, "annealing_guidance"):
        found = latent(kind, sampler, [0.9, 0.5, 0.2, 0.0], SmoothScale(), matched=True, stds=(0.4, 0.9), model=model)
    assert found.isfinite().all() and not [record for record in caplog.records if "finite" in record.message]
    expected = latent(kind, inner, [0.9, 0.5, 0.2, 0.0], SmoothScale(), matched=True, stds=(0.4, 0.9))
    assert ((found - expected).norm() / expected.norm()) < 1e-2


@pytest.fixture(scope="module")
def network(official_checkpoint):
    network = load_scale(official_checkpoint)
    network.info = dataclasses.replace(network.info, reference_numel=None)  # see PaperTrajectory
    return network


def cfg_scales(network, model, scheduler, steps):
    golden = paper_trajectory(50)
    guider = AnnealingCFGGuider(model, Guidance(network, 0.4))
    guider.set_conds(golden.positive(), golden.negative())
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
    sample(guider, sampler_of("dpmpp_2m"), sigmas, golden.initial_noise.float())
    return torch.stack([call.cfg_scale for call in guider.trace.calls])


MUCH_NOISE = {
    "zero terminal SNR": lambda: closed_form_model(ModelType.V_PREDICTION, {"zsnr": True}),
    "CosXL": lambda: ModelSamplingContinuousEDM().patch(closed_form_model(), "v_prediction", 120.0, 0.002)[0],
}


@pytest.mark.parametrize("model", MUCH_NOISE)
@pytest.mark.parametrize("scheduler", ["karras", "normal"])
def test_models_of_more_noise_than_the_training_knew_are_guided_as_its_first_level_was(model, scheduler, network):
    """Once at 0.73 to 0.90 for most of the run: less than no guidance at all."""
    found = cfg_scales(network, MUCH_NOISE[model](), scheduler, 25)
    plain = cfg_scales(network, closed_form_model(), scheduler, 25)
    assert (found >= 1).all()
    assert (found[:3] >= 0.99 * plain[0]).all() and plain[0].min() > 6


@pytest.mark.parametrize("steps", [10, 50])
def test_the_papers_schedule_begins_where_the_models_noise_does(steps):
    sampling = MUCH_NOISE["zero terminal SNR"]().get_model_object("model_sampling")
    sigmas = paper_schedule.sigmas(sampling, steps)
    assert sigmas[0] == sampling.sigma_max and sigmas[0] > 4000
    assert (sigmas.diff() < 0).all() and len(sigmas) == steps + 1
    plain = closed_form_model().get_model_object("model_sampling")
    assert paper_schedule.sigmas(plain, 50)[0] == plain.sigmas[980]
