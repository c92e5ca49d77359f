"""What is known of each sampler, against what ComfyUI's own functions do; and seen through whatever carries a sampler."""

from functools import partial

import comfy.k_diffusion.sampling as k_diffusion
import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import coordinates
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler, sample_null_renoising
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.guidance.sampler_facts import ADAPTIVE, WRONG_ON_FLOW, facts_of
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.model_base import ModelType
from probing import BOTH, EPS, FLOW, NAMES, accepts, constant, kept, model_sampling_of, ran, sampler_of, scheduled

kinds = pytest.mark.parametrize("kind", BOTH, ids=str)
UNCHANGED_SIZE = {"lcm_upscale": {"total_upscale": 1.0, "upscale_method": "nearest-exact"}}
# SA-Solver's second form calls again at each level but the first: of one step both, so nothing need be told apart.
CALLED_AGAIN_AT_ITS_LEVEL = ("sa_solver_pece",)


def made(name: str, **options):
    return sampler_of(name, **UNCHANGED_SIZE.get(name, {}), **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_calls_in_a_step_are_those_that_comfyuis_sampler_makes(name):
    sampler, x = made(name), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    few, many = (len(ran(sampler, EPS, x, scheduled(EPS, "simple", steps), constant(0.0)).sigmas) for steps in (6, 9))
    facts = facts_of(sampler)
    if facts.name == ADAPTIVE:
        assert facts.calls_several_times and facts.calls_per_step == 1
    elif facts.name == "dpm_fast":  # as many calls as steps, three for each of its own
        assert (few, many) == (6, 9) and facts.calls_per_step == 3
    elif facts.name in CALLED_AGAIN_AT_ITS_LEVEL:
        assert facts.calls_per_step == 1
    else:
        assert facts.calls_per_step == (many - few) / 3
    assert facts.calls_several_times == (facts.calls_per_step > 1 or facts.name == ADAPTIVE)


def test_an_unknown_sampler_counts_as_an_ordinary_one_that_calls_once():
    facts = facts_of(torch.nn.Identity())
    assert (facts.calls_per_step, facts.uncond_share, facts.eta) == (1, 0.0, 0.0)


def with_etas():
    for kind in BOTH:
        for name in NAMES:
            if kind is FLOW and facts_of(made(name)).name in WRONG_ON_FLOW or name == "dpm_adaptive":
                continue
            yield kind, name, None
            if accepts(made(name), "eta"):
                yield from ((kind, name, eta) for eta in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("kind, name, eta", with_etas(), ids=lambda value: str(value))
def test_a_step_goes_down_to_the_level_that_it_is_taken_to(kind, name, eta):
    """Measured: what one step keeps of x, and takes of its prediction, when both are constant."""
    sampler = made(name) if eta is None else made(name, eta=eta)
    facts, sampling = facts_of(sampler), model_sampling_of(kind)
    sigmas = torch.tensor([5.0, 3.0, 2.0, 1.2, 0.0] if kind is EPS else [0.9, 0.7, 0.5, 0.4, 0.0], dtype=torch.float64)
    levels = facts.levels(sigmas)
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)

    def after_one_step(x, prediction):
        torch.manual_seed(0)  # lcm_upscale draws its noise by itself
        return ran(sampler, kind, x, sigmas, constant(prediction)).xs[facts.calls_per_step]

    without = after_one_step(0 * x, 0.0)
    keeps, takes = (float((after_one_step(*case) - without).mean()) for case in ((x, 0.0), (0 * x, 1.0)))
    down = float(facts.level_down(sampling, levels[:1], levels[1:2]))
    if name == "lcm_upscale" and kind is FLOW:  # its step is that of the VE form
        down, kind = 0.0, EPS
    assert (keeps, takes) == pytest.approx(kept(kind, float(levels[0]), float(levels[1]), down), abs=2e-6)


@pytest.mark.parametrize("name, options, eta", [
    ("euler", {}, 0),
    ("euler_ancestral", {}, 1),
    ("euler_ancestral", {"eta": 0.3}, 0.3),
    ("dpmpp_2m_sde_gpu", {}, 1),
    ("seeds_2", {"eta": 0.0}, 0),
    ("ddpm", {}, 1),
    ("heun", {"eta": 0.7}, 0.7),
    ("euler_ancestral", {"eta": float("nan")}, 0),
    ("euler_ancestral", {"eta": "much"}, 0),
])  # fmt: skip
def test_eta_comes_from_the_options_or_else_from_the_signature(name, options, eta):
    assert facts_of(comfy.samplers.ksampler(name, options)).eta == eta


@pytest.mark.parametrize("name", NAMES)
def test_comfyuis_cfg_pp_samplers_and_the_alternative_renoise_with_the_unconditional_prediction(name):
    assert facts_of(made(name)).uncond_share == float("cfg_pp" in name or name == "euler_pp")


@pytest.mark.parametrize("mix", [1.0, 0.5, 0.0])
def test_the_annealing_sampler_says_how_it_renoises(mix):
    assert facts_of(null_renoising_sampler(renoise_mix=mix)).uncond_share == mix
    assert facts_of(null_renoising_sampler(eta=0.4)).eta == 0.4


def test_gpu_variants_are_the_solvers_that_they_are_variants_of():
    assert facts_of(sampler_of("dpmpp_2m_sde_gpu")).name == "dpmpp_2m_sde"


# What wraps: each a function from a sampler to another that runs it and changes nothing.


def tool(model, x, sigmas, extra_args=None, callback=None, disable=None, inner=None):
    return inner.sampler_function(
        model, x, sigmas, extra_args=extra_args, callback=callback, disable=disable, **inner.extra_options
    )


def in_options(inner):
    return comfy.samplers.KSAMPLER(tool, extra_options={"inner": inner})


def bound(inner):
    return comfy.samplers.KSAMPLER(partial(tool, inner=inner))


def closed_over(inner):
    def detail_tool(model, x, sigmas, **kwargs):
        return tool(model, x, sigmas, inner=inner, **kwargs)

    return comfy.samplers.KSAMPLER(detail_tool)


def closed_over_function(inner):
    """Only the function inside is held, as some packs do; its options are at hand as bound arguments."""
    function = partial(inner.sampler_function, **inner.extra_options)

    def detail_tool(model, x, sigmas, **kwargs):
        return function(model, x, sigmas, **kwargs)

    return comfy.samplers.KSAMPLER(detail_tool)


def in_a_list(inner):
    def first(model, x, sigmas, inners=(), **kwargs):
        return tool(model, x, sigmas, inner=inners[0], **kwargs)

    return comfy.samplers.KSAMPLER(first, extra_options={"inners": [inner]})


def twice(inner):
    return in_options(closed_over(inner))


class Attribute(comfy.samplers.Sampler):
    def __init__(self, inner):
        self.inner = inner

    def sample(self, *args, **kwargs):
        return self.inner.sample(*args, **kwargs)


class Caller:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, model, x, sigmas, **kwargs):
        return tool(model, x, sigmas, inner=self.inner, **kwargs)

    def run(self, model, x, sigmas, **kwargs):
        return self(model, x, sigmas, **kwargs)


def function_object(inner):
    return comfy.samplers.KSAMPLER(Caller(inner))


def method(inner):
    return comfy.samplers.KSAMPLER(Caller(inner).run)


WRAPPERS = [in_options, bound, closed_over, closed_over_function, in_a_list, twice, Attribute, function_object, method]
wrappers = pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
INNER = [
    sampler_of("euler_cfg_pp"),
    comfy.samplers.ksampler("euler_ancestral_cfg_pp", {"eta": 0.5}),
    comfy.samplers.ksampler("dpmpp_2m_sde", {"eta": 0.3, "solver_type": "heun"}),
    comfy.samplers.ksampler("ipndm", {"max_order": 2}),
    sampler_of("heun"),
    sampler_of("dpm_fast"),
    sampler_of("dpm_adaptive"),
    sampler_of("uni_pc"),
    sampler_of("euler_pp"),
    sampler_of("lcm"),
    null_renoising_sampler(eta=0.2, renoise_mix=0.7),
]


@wrappers
@pytest.mark.parametrize("inner", INNER, ids=lambda sampler: facts_of(sampler).name)
def test_what_is_known_of_a_sampler_is_known_through_a_wrapper_with_its_options(wrap, inner):
    found, expected = facts_of(wrap(inner)), facts_of(inner)
    assert (found.name, found.function, found.options) == (expected.name, expected.function, expected.options)


def test_a_bare_function_of_comfyuis_is_known_too():
    def detail_tool(model, x, sigmas, function=k_diffusion.sample_dpmpp_2m, **kwargs):
        return function(model, x, sigmas, **kwargs)

    wrapping = comfy.samplers.KSAMPLER(detail_tool, extra_options={"function": k_diffusion.sample_dpmpp_2m})
    assert facts_of(wrapping).name == "dpmpp_2m"


def test_a_wrapper_that_holds_itself_ends():
    loop = Attribute(None)
    loop.inner = loop
    assert facts_of(loop).name == "Attribute"
    one, other = Attribute(None), Attribute(None)
    one.inner, other.inner = other, one
    assert facts_of(one).calls_per_step == 1


MEAN = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))


def picture(kind_type, sampler):
    model = closed_form_model(kind_type, {"shift": 3.0} if kind_type is ModelType.FLOW else None)
    guider = AnnealingCFGGuider(model, Guidance(SmoothScale()))
    guider.set_conds(conditioning(MEAN, 0.4), conditioning(0 * MEAN, 0.9))
    torch.manual_seed(0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 6)
    return sample(guider, sampler, sigmas, NOISE, seed=5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW], ids=["eps", "flow"])
def test_a_wrapper_that_changes_nothing_changes_no_bit_of_the_picture(name, model_type):
    bare = picture(model_type, made(name))
    assert bare.isfinite().all()
    for wrap in (in_options, closed_over, twice):
        assert torch.equal(picture(model_type, wrap(made(name))), bare), wrap.__name__


def test_the_alternative_euler_cfg_pp_makes_eulers_picture():
    for model_type in (ModelType.EPS, ModelType.FLOW):
        torch.testing.assert_close(
            picture(model_type, made("euler_pp")), picture(model_type, made("euler")), atol=2e-6, rtol=2e-5
        )


def test_dpm_fast_is_taken_through_its_own_levels():
    """Three calls a step, evenly spaced in log sigma, and a last one that never goes to 0."""
    sampler, sigmas = sampler_of("dpm_fast"), scheduled(EPS, "karras", 12)
    called = ran(sampler, EPS, torch.zeros(1, 1, 2, 2, dtype=torch.float64), sigmas, constant(0.0)).sigmas
    levels = facts_of(sampler).levels(sigmas)
    torch.testing.assert_close(torch.tensor(called[::3], dtype=torch.float64), levels[:-1][: len(called[::3])], rtol=1e-5, atol=0)
    assert levels[-1] == pytest.approx(float(sigmas[-2]))


def test_sample_null_renoising_bound_by_hand_is_known():
    assert facts_of(comfy.samplers.KSAMPLER(partial(sample_null_renoising, renoise_mix=0.25))).uncond_share == 0.25


def test_the_nsr_of_a_replaced_noise_is_none():
    for kind in BOTH:
        level = torch.tensor([0.9]), torch.tensor([0.5])
        assert facts_of(sampler_of("lcm")).level_down(model_sampling_of(kind), *level) == 0
    assert coordinates.nsr_of_sigma(model_sampling_of(EPS), torch.tensor([0.5])) == 0.5
