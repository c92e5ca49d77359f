"""One cell of the compatibility table: a whole run through the real ComfyUI, and what it shows."""

from __future__ import annotations

import contextlib
import importlib
import logging
from functools import cache
from typing import NamedTuple

import comfy.samplers
import comfy.utils
import reference
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.scale_model import ScaleInfo, ScaleModel
from closed_form import conditioning, sample
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustom
from kinds import Kind, model_of

core_nodes = importlib.import_module("nodes")  # ComfyUI's own, not the pack's

ENTRIES = ("guider", "patch")
ANNEALING, ANNEALING_ETA = "Annealing Sampler", "Annealing Sampler, eta 0.5"
OURS = {ANNEALING: 0.0, ANNEALING_ETA: 0.5}
SAMPLERS = [*OURS, *comfy.samplers.SAMPLER_NAMES]

SEED, STEPS, LAMBDA = 3, 5, 0.4
SHAPE = (2, 4, 4, 4)
DATA = reference.Data(
    cond_mean=torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)),
    cond_std=0.3,
    uncond_mean=torch.full((1, *SHAPE[1:]), 0.1),
    uncond_std=0.8,
)

ADAPTIVE = ("dpm_adaptive",)
# Of the final latents, relative to their norm. ComfyUI's samplers compute in float32.
TOLERANCE = 1e-3


class SensitiveScale(ScaleModel):
    """A scale that moves with all of its inputs, so that a wrong one is seen in the final latents."""

    def __init__(self):
        facts = {"trained_on": "", "source": "", "licence": "", "created_with": ""}
        super().__init__(ScaleInfo("sensitive", None, reference_numel=256, training_grid=50, **facts))

    def forward(self, timestep, gap_norm, guidance_lambda):
        return 0.5 + 0.3 * torch.cos(timestep / 300) + 0.5 * guidance_lambda + 0.2 * torch.log1p(gap_norm)


class Outcome(NamedTuple):
    """verdict: right, warned or refused. sentence: what the user is told. deviation: of the final latents, relative."""

    verdict: str
    sentence: str = ""
    deviation: float = 0.0


class Call(NamedTuple):
    """What a sampler asked of the guider, and what it was told: the guided denoised prediction."""

    x: torch.Tensor
    sigma: torch.Tensor
    denoised: torch.Tensor


class Run(NamedTuple):
    """latent: the final one. said: the pack's warnings. noises: the fresh noise that the sampler drew."""

    latent: torch.Tensor
    said: list[str]
    noises: list[torch.Tensor]
    calls: list[Call]


@cache
def outcome(sampler: str, kind: Kind, entry: str) -> Outcome:
    """Runs one cell and judges it. AssertionError where it is silently wrong."""
    try:
        ran = run(sampler, kind, entry)
    except AnnealingError as error:
        assert kind.path is None, f"refused, though it has a noise path: {error}"
        return Outcome("refused", str(error))
    assert kind.path is not None, "not refused, though no null renoising is defined on it"
    assert len(ran.said) <= 1, f"said more than once: {ran.said}"
    sentence = "".join(ran.said).removeprefix("Annealing guidance: ")
    return Outcome("warned" if sentence else "right", sentence, deviation(ran, sampler, kind))


def deviation(ran: Run, sampler: str, kind: Kind) -> float:
    """From the float64 reference. AssertionError where it is more than the tolerance.

    A few samplers lose more than that by rounding themselves (their noise levels are differences of nearly equal numbers).
    There the reference does the sampler's own arithmetic in float32 too. Of one that chooses its steps by an error estimate,
    which rounding tips, every answer that it got on its way is compared instead.
    """
    if sampler in ADAPTIVE:
        distance = max(relative_distance(call.denoised.double(), answer) for call, answer in answers(ran, sampler, kind))
        assert distance <= TOLERANCE, f"{sampler} on {kind}: {distance:.1e} from the float64 reference"
        return distance
    for dtype in (torch.float64, torch.float32):
        distance = relative_distance(ran.latent.double(), expected(sampler, kind, dtype).double())
        if distance <= TOLERANCE:
            return distance
    raise AssertionError(f"{sampler} on {kind}: {distance:.1e} from the float64 reference")


def relative_distance(latent: torch.Tensor, other: torch.Tensor) -> float:
    """The largest of the batch; nan where either is not finite."""
    return ((latent - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)).max().item()


def sampler_of(name: str):
    return null_renoising_sampler(OURS[name]) if name in OURS else comfy.samplers.sampler_object(name)


def sigmas_of(sampler: str, kind: Kind) -> torch.Tensor:
    """KSampler's own: some of its samplers leave out the last but one."""
    name = "euler" if sampler in OURS else sampler
    model = model_of(kind)
    return comfy.samplers.KSampler(model, STEPS, model.load_device, name, "normal", 1.0, {}).sigmas


@cache
def run(sampler: str, kind: Kind, entry: str) -> Run:
    """A whole run of five steps with the nodes' default settings."""
    positive, negative = conditioning(DATA.cond_mean, DATA.cond_std), conditioning(DATA.uncond_mean, DATA.uncond_std)
    guidance, latent = Guidance(SensitiveScale(), LAMBDA), {"samples": torch.zeros(SHAPE)}
    sigmas, noises, calls = sigmas_of(sampler, kind), [], []
    with warnings_of_the_pack() as said, reference.recorded_noise(noises), recorded_calls(calls), torch.inference_mode():
        if entry == "guider":
            guider = AnnealingCFGGuider(model_of(kind), guidance)
            guider.set_conds(positive, negative)
            # A clone: uni_pc writes into it.
            samples = sample(guider, sampler_of(sampler), sigmas.clone(), Noise_RandomNoise(SEED).generate_noise(latent), SEED)
        else:
            model, _ = patch_model(model_of(kind), guidance)
            if sampler in OURS:  # which KSampler does not list
                node = SamplerCustom.execute
                output = node(model, True, SEED, 7.0, positive, negative, sampler_of(sampler), sigmas.clone(), latent).args
            else:
                node = core_nodes.KSampler().sample
                output = node(model, SEED, STEPS, 7.0, sampler, "normal", positive, negative, latent)
            samples = output[0]["samples"]
    return Run(samples, said, noises, calls)


@cache
def expected(sampler: str, kind: Kind, dtype=torch.float64) -> torch.Tensor:
    """The final latents in float64, with the noise that the guider's run drew."""
    noises = run(sampler, kind, "guider").noises
    sigmas = sigmas_of(sampler, kind)
    noise = Noise_RandomNoise(SEED).generate_noise({"samples": torch.zeros(SHAPE)})
    denoiser = denoiser_of(sampler, kind)
    if sampler in OURS:
        return reference.null_renoised_run(denoiser, noise, sigmas, OURS[sampler], SEED)
    return reference.final_latent(sampler_of(sampler), denoiser, noise, sigmas, noises, dtype)


def denoiser_of(sampler: str, kind: Kind) -> reference.GuidedDenoiser:
    return reference.GuidedDenoiser(kind, DATA, SensitiveScale(), LAMBDA, sampler_of(sampler))


def answers(ran: Run, sampler: str, kind: Kind) -> list[tuple[Call, torch.Tensor]]:
    """Every call of a run with the reference's answer to it."""
    denoiser = denoiser_of(sampler, kind)
    denoiser.sigmas = sigmas_of(sampler, kind)
    return [(call, denoiser(call.x.double(), call.sigma)) for call in ran.calls]


@contextlib.contextmanager
def recorded_calls(calls: list[Call]):
    """Keeps what ComfyUI's samplers ask meanwhile, and the answers."""
    inpaint = comfy.samplers.KSamplerX0Inpaint
    asked = inpaint.__call__

    def recording(self, x, sigma, *args, **kwargs):
        denoised = asked(self, x, sigma, *args, **kwargs)
        calls.append(Call(x.clone(), sigma.clone(), denoised.clone()))
        return denoised

    inpaint.__call__ = recording
    try:
        yield
    finally:
        inpaint.__call__ = asked


@contextlib.contextmanager
def warnings_of_the_pack():
    """The pack's warnings meanwhile, as a list."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("annealing_guidance").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger("annealing_guidance").removeHandler(handler)
