"""Which of ComfyUI's samplers are wrong by themselves, found by what they do: exactly those of which the user is warned."""

import inspect

import comfy.samplers
import compatibility
import pytest
import reference
import torch
from annealing_guidance_pack.guidance import renoising
from annealing_guidance_pack.guidance.course import Course
from annealing_guidance_pack.guidance.delivery import Delivery
from annealing_guidance_pack.guidance.sampler_facts import facts_of
from annealing_guidance_pack.models.scale_model import ScaleInfo
from kinds import KINDS, model_of

BY_NAME = {kind.name: kind for kind in KINDS}
GUIDED, UNCONDITIONAL = 0.8, -0.5


class Unguided(reference.GuidedDenoiser):
    """The plain best denoiser of data ~ N(0.7, 0.5^2)."""

    def __init__(self, kind, shape):
        mean = torch.full(shape, 0.7)
        super().__init__(kind, reference.Data(mean, 0.5, mean, 0.5), None, 0.4, compatibility.sampler_of("euler"))

    def handed_and_uncond(self, x, sigma):
        return self.predictions(x, sigma)


class Constant(Unguided):
    """Predictions that stay the same whatever x is, at scale 1."""

    def __init__(self, kind, shape, guided=GUIDED):
        super().__init__(kind, shape)
        self.guided = guided

    def predictions(self, x, sigma):
        return torch.full_like(x, self.guided), torch.full_like(x, UNCONDITIONAL)


def stepped(name, denoiser, x, sigmas, **options):
    function = compatibility.sampler_of(name).sampler_function
    denoiser.sigmas = sigmas
    with reference.default_dtype(torch.float64):
        return function(denoiser, x, sigmas.double(), extra_args={"seed": 1}, callback=None, disable=True, **options)


def draws_the_data(name, kind) -> bool:
    """Whether 20 unguided steps from pure noise end with the data's mean."""
    shape = (1, 4, 32, 32)
    model = model_of(kind)
    sigmas = comfy.samplers.KSampler(model, 20, model.load_device, name, "simple", 1.0, {}).sigmas
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latent = stepped(name, Unguided(kind, shape), reference.starting_latent(kind, noise, sigmas[0].double()), sigmas)
    return abs(latent.mean().item() - 0.7) < 0.15


def moved(name, denoiser_of, kind, **options):
    """By how much five steps of a sampler end elsewhere with guidance than without it."""
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = torch.tensor([0.9, 0.8, 0.65, 0.5, 0.3, 0.1], dtype=torch.float64)
    guided, plain = (stepped(name, denoiser_of(kind, x.shape, value), x, sigmas, **options) for value in (GUIDED, UNCONDITIONAL))
    return guided - plain


def guides_as_the_first_order_step(name, kind) -> bool:
    """Whether it moves x by as much as Euler's step does with the same guided prediction, handed to it as the pack does.

    The unguided prediction is one that its solver extrapolates without error, so that only the guidance is seen.
    """
    options = {"eta": 0.0} if "eta" in inspect.signature(compatibility.sampler_of(name).sampler_function).parameters else {}
    by_slopes = name.startswith("gradient_estimation")

    def denoiser_of(of, handed):
        return lambda kind, shape, value: Handed(of, kind, shape, value, options, by_slopes, handed)

    ours, expected = moved(name, denoiser_of(name, True), kind, **options), moved("euler", denoiser_of("euler", False), kind)
    return torch.allclose(ours, expected, rtol=1e-5)


class Handed(Constant):
    """The same guided prediction at every call. by_slopes: its noise stays the same, not the prediction itself.

    handed: as the pack hands it to the sampler, else as it is.
    """

    def __init__(self, name, kind, shape, guided, options, by_slopes, handed):
        super().__init__(kind, shape, guided)
        self.facts, self.by_slopes, self.deliver = facts_of(comfy.samplers.ksampler(name, options)), by_slopes, None
        self.handed_as_it_is = not handed

    def predictions(self, x, sigma):
        guided, uncond = super().predictions(x, sigma)
        return (x + guided - uncond, x) if self.by_slopes else (guided, uncond)

    def handed_and_uncond(self, x, sigma):
        guided, uncond = self.predictions(x, sigma)
        if self.handed_as_it_is:
            return guided, uncond
        if self.deliver is None:
            info = ScaleInfo("any", None, None, 20, "", "", "", "")
            self.course = Course(self.model_sampling, info, self.facts, self.sigmas, self.facts.uncond_share, x.device)
            self.deliver = Delivery(self.facts.uncond_share > 0, self.course.remembers)
        return self.deliver(self.course.at(sigma.float()), uncond, uncond, guided), uncond


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
@pytest.mark.parametrize("kind", ["eps", "flow 1000"])
def test_users_are_warned_of_exactly_the_samplers_that_are_wrong(name, kind):
    sampler, model_sampling = compatibility.sampler_of(name), model_of(BY_NAME[kind]).get_model_object("model_sampling")
    right = draws_the_data(name, BY_NAME[kind])
    assert (renoising.advice("auto", facts_of(sampler), model_sampling) == []) == right


@pytest.mark.parametrize("name", [name for name in comfy.samplers.SAMPLER_NAMES if "cfg_pp" in name])
@pytest.mark.parametrize("kind", ["eps", "flow 1000"])
def test_every_cfg_pp_sampler_guides_as_much_as_the_first_order_step_on_every_model(name, kind):
    assert guides_as_the_first_order_step(name, BY_NAME[kind])


@pytest.mark.parametrize("name", [name for name in comfy.samplers.SAMPLER_NAMES if "cfg_pp" in name])
def test_by_itself_a_cfg_pp_sampler_makes_more_of_a_guided_prediction(name):
    """Else the test above would see nothing."""
    options = {"eta": 0.0} if "ancestral" in name else {}
    kind = BY_NAME["flow 1000"]
    assert not torch.allclose(moved(name, Constant, kind, **options), moved("euler", Constant, kind), rtol=0.02)
