"""Which of ComfyUI's samplers are wrong by themselves, found by what they do: exactly those of which the user is warned."""

import inspect

import comfy.samplers
import compatibility
import pytest
import reference
import torch
from annealing_guidance_pack.guidance import renoising
from kinds import KINDS, model_of, signal

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


def renoises_with_the_unconditional(name, kind) -> bool:
    """Whether one step is x' = alpha' D_w + sigma' (x - alpha D_u) / sigma."""
    sigmas = torch.tensor([0.8, 0.6], dtype=torch.float64)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"eta": 0.0} if "eta" in inspect.signature(compatibility.sampler_of(name).sampler_function).parameters else {}
    ours = signal(kind, sigmas[1]) * GUIDED + sigmas[1] * (x - signal(kind, sigmas[0]) * UNCONDITIONAL) / sigmas[0]
    return torch.allclose(stepped(name, Constant(kind, x.shape), x, sigmas, **options), ours, rtol=1e-9)


@pytest.mark.parametrize("name", comfy.samplers.SAMPLER_NAMES)
@pytest.mark.parametrize("kind", ["eps", "flow 1000"])
def test_users_are_warned_of_exactly_the_samplers_that_are_wrong(name, kind):
    sampler, model_sampling = compatibility.sampler_of(name), model_of(BY_NAME[kind]).get_model_object("model_sampling")
    right = draws_the_data(name, BY_NAME[kind])
    if "cfg_pp" in name:
        right = right and renoises_with_the_unconditional(name, BY_NAME[kind])
    folded = renoising.is_folded("auto", sampler)
    assert (renoising.advice(folded, sampler, model_sampling) is None) == right


def pull(name) -> float:
    """How far 20 karras steps, less the last, pull x towards the guided prediction."""
    kind, x = BY_NAME["eps"], torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    model_sampling = model_of(kind).get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "karras", 20)[:-1]
    options = {"eta": 0.0} if "ancestral" in name else {}
    guided, plain = (stepped(name, Constant(kind, x.shape, value), x, sigmas, **options) for value in (GUIDED, UNCONDITIONAL))
    return (guided - plain).mean().item()


@pytest.mark.parametrize("name, share", [
    ("euler_ancestral_cfg_pp", 1.0),
    ("dpmpp_2s_ancestral_cfg_pp", 1.0),
    ("dpmpp_2m_cfg_pp", 1.2),
    ("res_multistep_cfg_pp", 0.6),
    ("res_multistep_ancestral_cfg_pp", 0.6),
    ("gradient_estimation_cfg_pp", 0.7),
])  # fmt: skip
def test_multistep_cfg_pp_samplers_guide_more_or_less_than_their_scale_says(name, share):
    """As the page says. Null renoising, which euler_cfg_pp is, guides by its scale at every step."""
    assert pull(name) / pull("euler_cfg_pp") == pytest.approx(share, abs=0.05)
