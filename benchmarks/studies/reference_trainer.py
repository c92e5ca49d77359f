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


class RunningRatio:
    """The follow-up's balance: the ratio of the running means of the two terms, at most 1e4. Unbalanced: 1.

    Exponential means, sample by sample; their start is corrected as Adam corrects its own.
    """

    def __init__(self, balanced: bool) -> None:
        self.balanced = balanced
        self.first = self.second = 0.0

    @property
    def now(self) -> float:
        """The ratio after the samples so far. The correction is the same in both means."""
        return min(self.first / self.second, LARGEST_RATIO) if self.balanced else 1.0

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """What the second term of each sample is multiplied by: [B], the means having seen it and all before it."""
        ratios = []
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self.first = MEMORY * self.first + (1 - MEMORY) * a
            self.second = MEMORY * self.second + (1 - MEMORY) * b
            ratios.append(self.now)
        return torch.tensor(ratios, device=first.device)


class ReferenceTrainer:
    """Trains a scale network, unbounded while it learns, through a frozen ComfyUI MODEL.

    balanced: the loss of the follow-up (flow models) instead of the paper's.
    """

    def __init__(self, model, negative: list, network: ScaleNetwork, balanced: bool) -> None:
        self.model, self.negative, self.network, self.ratio = model, negative, network, RunningRatio(balanced)
        self.optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        model.model.requires_grad_(False)

    def step(self, samples: Samples) -> None:
        """One step of the optimizer, all samples through the model at once: the gradient of accumulating them one by one."""
        self.optimizer.zero_grad()
        first, second = terms(self.model, self.network, samples, self.negative)
        ratio = self.ratio(first.detach(), second.detach())
        loss = (1 - samples.guidance_lambda) * first + samples.guidance_lambda * ratio * second
        loss.mean().backward()
        self.optimizer.step()


def terms(model, network: ScaleNetwork, samples: Samples, negative: list) -> tuple[torch.Tensor, torch.Tensor]:
    """mean((eps_w - eps)^2) and mean(delta'^2) of each sample (flow: of velocities): [B] each, with a graph to the network."""
    step = _Step(network, samples)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"perturbed": samples.perturbed, "clean": samples.clean, "negative": negative})
    guider.sample(samples.noise, samples.x0, step, samples.sigma, disable_pbar=True, seed=0)
    return step.terms


class _Step(comfy.samplers.Sampler):
    """The paper's training step. A sampler in name, so that ComfyUI itself loads the model and prepares the conditions."""

    def __init__(self, network: ScaleNetwork, samples: Samples) -> None:
        self.network, self.samples = network, samples
        self.terms: tuple[torch.Tensor, torch.Tensor] | None = None

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        model_sampling, x0 = guider.model_patcher.get_model_object("model_sampling"), latent_image
        is_flow = coordinates.path_of(model_sampling) == "flow"
        timestep, sigma, next_sigma, guidance_lambda = (
            tensor.to(noise.device)
            for tensor in (self.samples.timestep, self.samples.sigma, self.samples.next_sigma, self.samples.guidance_lambda)
        )

        def shares(sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Of the picture and of the noise in z: sqrt(abar) and sqrt(1 - abar); flow: 1 - s and s."""
            sigma = per_sample(sigma, x0)
            return (1 - sigma, sigma) if is_flow else ((1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5)

        def predict(positive: str, z: torch.Tensor, sigma: torch.Tensor) -> list[torch.Tensor]:
            """The model's own predictions, conditional and unconditional: of the noise, or (flow) of the velocity."""
            x = z if is_flow else z / shares(sigma)[0]  # ComfyUI samples x0 + sigma noise
            conditions = [guider.conds[positive], guider.conds["negative"]]
            denoised = comfy.samplers.calc_cond_batch(guider.inner_model, conditions, x, sigma, extra_args["model_options"])
            return [(x - d) / per_sample(sigma, x) for d in denoised]

        a, b = shares(sigma)
        next_a, next_b = shares(next_sigma)
        z = a * x0 + b * noise
        with torch.no_grad():  # neither depends on the scale
            cond, uncond = predict("perturbed", z, sigma)
        gap_norm = torch.linalg.vector_norm((cond - uncond).flatten(1), dim=1)
        scale = self.network(timestep, gap_norm, guidance_lambda)
        guided = uncond + per_sample(scale, z) * (cond - uncond)
        if is_flow:
            target, guided_x0, uncond_noise = noise - x0, z - b * guided, z + a * uncond
        else:
            target, guided_x0, uncond_noise = noise, (z - b * guided) / a, uncond
        next_cond, next_uncond = predict("clean", next_a * guided_x0 + next_b * uncond_noise, next_sigma)
        self.terms = tuple((term**2).flatten(1).mean(1) for term in (guided - target, next_cond - next_uncond))
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
