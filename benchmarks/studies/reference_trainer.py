"""The paper's own training of a scale network: backpropagation through the frozen model. Not meant for use.

What the profile and the fit (`training/`) are measured against, by training_quality.py and training_cost.py. After the paper,
and for what it leaves open its follow-up's published trainer: 16 samples a step, each of another picture, AdamW with rate 1e-3
and weight decay 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import study  # noqa: F401

# isort: split
import comfy.samplers
import torch
from annealing_guidance_pack.guidance import coordinates
from annealing_guidance_pack.guidance.coverage import per_sample
from annealing_guidance_pack.models.scale_model import ScaleInfo
from annealing_guidance_pack.models.scale_network import NetworkConfig, ScaleNetwork
from annealing_guidance_pack.models.schedule import timestep_of_nsr
from annealing_guidance_pack.training import cads
from annealing_guidance_pack.training.pictures import Picture
from annealing_guidance_pack.training.profile import TrainingGrid, steps_of_grid

ACCUMULATION = 16  # samples a step
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
MEMORY, LARGEST_RATIO = 0.999, 1e4  # of the follow-up's running means and their ratio
ROWS_PER_SAMPLE = 4  # of the model, forward: two without a gradient, then two with one, which go backward too


@dataclass(frozen=True)
class Samples:
    """B training samples.

    x0, noise: [B, C, ...]; timestep: [B], the network's; sigma, next_sigma: [B], ComfyUI's; guidance_lambda: [B];
    perturbed, clean: CONDITIONING of B rows.
    """

    x0: torch.Tensor
    noise: torch.Tensor
    timestep: torch.Tensor
    sigma: torch.Tensor
    next_sigma: torch.Tensor
    guidance_lambda: torch.Tensor
    perturbed: list
    clean: list


class ReferenceTrainer:
    """Trains a scale network, unbounded while it learns, through a frozen ComfyUI MODEL.

    balanced: the loss of the follow-up (flow models), which multiplies the second term by the ratio of the two terms' running
    means, instead of the paper's.
    """

    def __init__(self, model, negative: list, network: ScaleNetwork, balanced: bool) -> None:
        self.model, self.negative, self.network, self.balanced = model, negative, network, balanced
        self.means, self.ratio = torch.zeros(2), 1.0  # both means begin at 0 alike, so the ratio is right from the first on
        self.optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        model.model.requires_grad_(False)

    def step(self, samples: Samples) -> None:
        """One step of the optimizer, all samples through the model at once: the gradient of accumulating them one by one."""
        self.optimizer.zero_grad()
        both = terms(self.model, self.network, samples, self.negative)
        if self.balanced:
            self.means = self.means.lerp(both.detach().mean(1), 1 - MEMORY ** len(samples.x0))
            self.ratio = min(float(self.means[0] / self.means[1]), LARGEST_RATIO)
        loss = (1 - samples.guidance_lambda) * both[0] + samples.guidance_lambda * self.ratio * both[1]
        loss.mean().backward()
        self.optimizer.step()


def terms(model, network: ScaleNetwork, samples: Samples, negative: list) -> torch.Tensor:
    """mean((eps_w - eps)^2) and mean(delta'^2) of each sample (flow: of velocities): [2, B], with a graph to the network."""
    step = _Step(network, samples)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"perturbed": samples.perturbed, "clean": samples.clean, "negative": negative})
    guider.sample(samples.noise, samples.x0, step, samples.sigma, disable_pbar=True, seed=0)
    return step.terms


class _Step(comfy.samplers.Sampler):
    """The paper's training step. A sampler in name, so that ComfyUI itself loads the model and prepares the conditions."""

    def __init__(self, network: ScaleNetwork, samples: Samples) -> None:
        self.network, self.samples = network, samples

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        is_flow = coordinates.path_of(guider.model_patcher.get_model_object("model_sampling")) == "flow"
        sigma, next_sigma = (per_sample(s, noise) for s in (self.samples.sigma, self.samples.next_sigma))

        def noised(picture: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return ((1 - sigma) * picture if is_flow else picture) + sigma * noise

        def predictions(positive: str, x: torch.Tensor, sigma: torch.Tensor) -> list[torch.Tensor]:
            """Conditional and unconditional, of the noise or (flow) of the velocity."""
            conditions = [guider.conds[positive], guider.conds["negative"]]
            options = extra_args["model_options"]
            denoised = comfy.samplers.calc_cond_batch(guider.inner_model, conditions, x, sigma.flatten(), options)
            return [(x - d) / sigma for d in denoised]

        x = noised(latent_image, noise, sigma)
        with torch.no_grad():  # neither depends on the scale
            cond, uncond = predictions("perturbed", x, sigma)
        gap_norm = torch.linalg.vector_norm((cond - uncond).flatten(1), dim=1)
        scale = self.network(self.samples.timestep, gap_norm, self.samples.guidance_lambda)
        guided = uncond + per_sample(scale, x) * (cond - uncond)
        target, uncond_noise = (noise - latent_image, x + (1 - sigma) * uncond) if is_flow else (noise, uncond)
        next_x = noised(x - sigma * guided, uncond_noise, next_sigma)
        next_cond, next_uncond = predictions("clean", next_x, next_sigma)
        self.terms = torch.stack([(term**2).flatten(1).mean(1) for term in (guided - target, next_cond - next_uncond)])
        return noise


def draw(model, grid: TrainingGrid, pictures: Sequence[Picture], generator: torch.Generator) -> Samples:
    """One sample of each picture: its step on the grid (but the last), lambda, noise and perturbation at random."""
    model_sampling = model.get_model_object("model_sampling")
    path = coordinates.path_of(model_sampling)
    nsr, next_nsr = steps_of_grid(path, grid)
    latents, captions = zip(*(picture.make() for picture in pictures), strict=True)
    steps = torch.randint(len(nsr), (len(latents),), generator=generator)
    timestep = timestep_of_nsr(path, nsr[steps]).float()
    x0 = torch.stack(latents)
    return Samples(
        x0=x0,
        noise=torch.randn(x0.shape, generator=generator),
        timestep=timestep,
        sigma=coordinates.sigma_of_nsr(model_sampling, nsr[steps]),
        next_sigma=coordinates.sigma_of_nsr(model_sampling, next_nsr[steps]),
        guidance_lambda=torch.rand(len(latents), generator=generator),
        perturbed=stacked([cads.perturbed_conditioning(c, t[None], generator) for c, t in zip(captions, timestep, strict=True)]),
        clean=stacked(captions),
    )


def stacked(conditionings: Sequence[list]) -> list:
    """B CONDITIONINGs of one prompt each, all of one shape, as one CONDITIONING of B rows."""
    parts = [conditioning[0] for conditioning in conditionings]
    options = dict(parts[0][1])
    if isinstance(options.get("pooled_output"), torch.Tensor):
        options["pooled_output"] = torch.cat([own["pooled_output"] for _, own in parts])
    return [[torch.cat([sequence for sequence, _ in parts]), options]]


def learner(info: ScaleInfo, config: NetworkConfig) -> ScaleNetwork:
    """A fresh network of these sizes without bounds on its scale."""
    return ScaleNetwork(info, replace(config, min_scale=-torch.inf, max_scale=torch.inf))
