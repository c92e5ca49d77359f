"""The paper's own training of a scale network, step by step: backpropagation through the frozen model, sample by sample.

    python tools/dev.py bench reference_trainer flow --steps 640 --output flow.safetensors

What the profile and the fit (`training/`) are measured against: `training_quality.py` compares the networks that come out,
`training_cost.py` the memory and the speed. Not meant for use. After the paper, and for what it leaves open its follow-up's
published trainer: batch 1 x accumulation 16, AdamW with rate 1e-3 and weight decay 0.01, every picture seen once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import load_hosts
from common.demo import study_grid

if __name__ == "__main__":
    load_hosts()

import comfy.samplers
import torch
from annealing_guidance_pack.guidance import coordinates
from annealing_guidance_pack.guidance.coverage import per_sample
from annealing_guidance_pack.models.scale_file import load_scale, save_scale
from annealing_guidance_pack.models.scale_model import PREDICTIONS, ScaleInfo
from annealing_guidance_pack.models.scale_network import NetworkConfig, ScaleNetwork
from annealing_guidance_pack.models.schedule import timestep_of_nsr
from annealing_guidance_pack.shapes.loader import VARIANTS, load_shapes
from annealing_guidance_pack.training import bundled_scales, cads
from annealing_guidance_pack.training.pictures import Picture
from annealing_guidance_pack.training.profile import TrainingGrid, steps_of_grid

ACCUMULATION = 16
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
MEMORY, LARGEST_RATIO = 0.999, 1e4  # of the follow-up's running means and their ratio
ROWS_PER_SAMPLE = 4  # of the model, forward: two without a gradient, then two with one, which go backward too
PICTURES_AT_ONCE = 256  # drawn by the renderer


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
    """Trains a scale network through a frozen ComfyUI MODEL.

    network: unbounded while it learns, for a clamped scale has no gradient. balanced: the loss of the follow-up (flow models)
    instead of the paper's. at_once: how many of the 16 accumulated samples go through the model together: the same gradient,
    sooner, for more memory.
    """

    def __init__(self, model, negative: list, network: ScaleNetwork, balanced: bool, at_once: int = ACCUMULATION) -> None:
        self.model, self.negative, self.network, self.at_once = model, negative, network, at_once
        self.ratio = RunningRatio(balanced)
        self.optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.samples_seen = 0
        model.model.requires_grad_(False)

    def step(self, samples: Samples) -> None:
        """One step of the optimizer: losses and gradients of samples, as many as are accumulated."""
        self.optimizer.zero_grad()
        for part in _parts(samples, self.at_once):
            first, second = terms(self.model, self.network, part, self.negative)
            ratio = self.ratio(first.detach(), second.detach())
            loss = (1 - part.guidance_lambda) * first + part.guidance_lambda * ratio * second
            (loss.sum() / len(samples.x0)).backward()
        self.optimizer.step()
        self.samples_seen += len(samples.x0)


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


def draw(model, grid: TrainingGrid, pictures: Sequence[Picture], perturb: bool, generator: torch.Generator) -> Samples:
    """One sample of each picture: its step on the grid (but the last), lambda, noise and perturbation at random."""
    model_sampling = model.get_model_object("model_sampling")
    path = coordinates.path_of(model_sampling)
    nsr, next_nsr = steps_of_grid(path, grid)
    latents, captions = zip(*(picture.make() for picture in pictures), strict=True)
    steps = torch.randint(len(nsr), (len(latents),), generator=generator)
    timestep = timestep_of_nsr(path, nsr[steps]).float()
    x0 = torch.stack(latents)
    return Samples(
        x0,
        torch.randn(x0.shape, generator=generator),
        timestep,
        coordinates.sigma_of_nsr(model_sampling, nsr[steps]),
        coordinates.sigma_of_nsr(model_sampling, next_nsr[steps]),
        torch.rand(len(latents), generator=generator),
        stacked(
            [
                cads.perturbed_conditioning(c, t[None], generator) if perturb else c
                for c, t in zip(captions, timestep, strict=True)
            ]
        ),
        stacked(captions),
    )


def stacked(conditionings: list[list]) -> list:
    """B CONDITIONINGs of one prompt each, all of one shape, as one CONDITIONING of B rows."""
    parts = [conditioning[0] for conditioning in conditionings]
    options = dict(parts[0][1])
    if isinstance(options.get("pooled_output"), torch.Tensor):
        options["pooled_output"] = torch.cat([own["pooled_output"] for _, own in parts])
    return [[torch.cat([sequence for sequence, _ in parts]), options]]


def _parts(samples: Samples, size: int) -> Iterator[Samples]:
    """The samples, `size` at a time."""

    def rows(value, at: slice):
        if isinstance(value, torch.Tensor):
            return value[at]
        return [[seq[at], {k: v[at] if k == "pooled_output" and v is not None else v for k, v in o.items()}] for seq, o in value]

    for begin in range(0, len(samples.x0), size):
        yield Samples(*(rows(value, slice(begin, begin + size)) for value in vars(samples).values()))


def learner(info: ScaleInfo, config: NetworkConfig) -> ScaleNetwork:
    """A fresh network of these sizes without bounds on its scale."""
    return ScaleNetwork(info, replace(config, min_scale=-torch.inf, max_scale=torch.inf))


def bounded(network: ScaleNetwork, config: NetworkConfig) -> ScaleNetwork:
    """The same weights with the bounds of `config`."""
    result = ScaleNetwork(network.info, config)
    result.load_state_dict(network.state_dict())
    return result.eval()


class ShapesTraining:
    """The reference trainer on a Shapes model, one step after the other, on pictures that the renderer draws."""

    def __init__(self, variant: str, config: NetworkConfig, seed: int = 0, at_once: int = ACCUMULATION) -> None:
        self.model, self.clip, self.vae = load_shapes(variant)
        model_sampling = self.model.get_model_object("model_sampling")
        self.grid, self.seed, self.config = study_grid(variant, model_sampling), seed, config
        info = ScaleInfo(
            name=f"shapes_{variant}_reference",
            prediction=PREDICTIONS[coordinates.path_of(model_sampling)],
            reference_numel=4 * 16 * 16,
            training_grid=self.grid,
            trained_on=f"Shapes demo model, {variant} variant, on pictures of its own renderer",
            source="the reference trainer of Annealing Guidance's benchmarks",
            licence="Apache-2.0",
            created_with="Annealing Guidance, trained through the frozen model",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = learner(info, config)
        negative = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(""))
        self.trainer = ReferenceTrainer(self.model, negative, network, balanced=variant == "flow", at_once=at_once)
        self.generator = torch.Generator().manual_seed(seed)
        self.part, self.pictures = -1, []
        self.seconds = 0.0  # of the processor, the drawing of the pictures left out

    def run(self, steps: int) -> None:
        """So many steps more; every picture is new."""
        for _ in range(steps):
            pictures = self._next_pictures()
            began = time.process_time()
            self.trainer.step(draw(self.model, self.grid, pictures, perturb=True, generator=self.generator))
            self.seconds += time.process_time() - began

    def _next_pictures(self) -> list[Picture]:
        part, begin = divmod(self.trainer.samples_seen, PICTURES_AT_ONCE)
        if part != self.part:
            seed = 1_000_003 * (self.seed + 1) + part
            self.part, self.pictures = part, bundled_scales.training_pictures(self.clip, self.vae, PICTURES_AT_ONCE, seed)
        return self.pictures[begin : begin + ACCUMULATION]

    def state(self) -> dict:
        """All that `load_state` needs to go on from here."""
        trainer = self.trainer
        return {
            "network": trainer.network.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "counts": (trainer.samples_seen, self.seconds, trainer.ratio.first, trainer.ratio.second),
        }

    def load_state(self, state: dict) -> None:
        trainer = self.trainer
        trainer.network.load_state_dict(state["network"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        trainer.samples_seen, self.seconds, trainer.ratio.first, trainer.ratio.second = state["counts"]

    @property
    def network(self) -> ScaleNetwork:
        """As it is now, its scale bounded."""
        return bounded(self.trainer.network, self.config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--steps", type=int, default=1250, help="of 16 samples (1250: the paper's 20,000 pictures)")
    parser.add_argument("--output", type=Path, required=True, help="the scale file to write")
    options = parser.parse_args()
    bundled = load_scale(bundled_scales.WEIGHTS / f"shapes_{options.variant}.safetensors")
    training = ShapesTraining(options.variant, bundled.config)
    for done in range(0, options.steps, 10):
        training.run(min(10, options.steps - done))
        print(f"\r{training.trainer.samples_seen} samples in {training.seconds:.0f} s ", end="", flush=True)
    save_scale(training.network, options.output)
    print(f"\n{options.output}")


if __name__ == "__main__":
    main()
