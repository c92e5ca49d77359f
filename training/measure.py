"""Measuring a profile: forward passes through a ComfyUI MODEL, with the memory and the precision of sampling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_sampling
import comfy.samplers
import torch

from ..guidance import units
from ..guidance.coverage import per_sample
from ..models.errors import AnnealingError
from . import cads
from .profile import Entries, Profile, ProfileSettings, steps_of_grid

logger = logging.getLogger("annealing_guidance")

# Conditionings are prepared once for rows of different noise levels, so none may hold for some levels only.
_RANGES = ("start_percent", "end_percent", "timestep_start", "timestep_end")


def measure(
    model,
    latents: Sequence[torch.Tensor],
    positives: Sequence[list],
    negative: list,
    settings: ProfileSettings,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Fill a profile. The model is left as it was found, whatever happens.

    model: a ComfyUI MODEL (ModelPatcher). latents: one [C, H, W] (or of higher rank) per picture, as a VAE gives them, in
    several sizes if need be. positives: the CONDITIONING of each picture's caption. negative: one CONDITIONING for all.
    batch_size: entries evaluated at once; the model sees twice as many rows, as in sampling a batch of that size.
    progress: called with (pictures done, pictures in all); what it raises ends the measuring.

    A picture's numbers depend on the settings and on its place in the sequence alone. Pictures that the model answers with
    NaN or infinity are left out with a warning. AnnealingError where nothing can be measured.
    """
    _require_inputs(latents, positives, negative)
    model_sampling = model.get_model_object("model_sampling")
    kind = units.prediction_kind(model_sampling)
    grid = steps_of_grid(kind, settings.training_grid)
    numel = latents[0].numel()

    parts, broken = [], []
    for number, (latent, positive) in enumerate(zip(latents, positives, strict=True)):
        entries = _measure_picture(model, kind, grid, number, latent, positive, negative, settings, batch_size)
        entries.gap_norm.mul_((numel / latent.numel()) ** 0.5)
        if entries.finite().all():
            parts.append(entries)
        else:
            broken.append(number)
        if progress is not None:
            progress(number + 1, len(latents))
    if broken:
        logger.warning(
            "Profile: left out %d of %d pictures, NaN or infinity predicted: %s", len(broken), len(latents), broken[:20]
        )
    if not parts:
        raise AnnealingError(
            "The model predicted NaN or infinity for every picture, so there is nothing to learn from. Check that it samples "
            "properly with these latents and captions, or run it in another precision."
        )
    return Profile(kind, numel, settings, Entries.joined(parts))


def _require_inputs(latents: Sequence[torch.Tensor], positives: Sequence[list], negative: list) -> None:
    if not latents or len(latents) != len(positives):
        raise AnnealingError(
            f"There are {len(latents)} latents and {len(positives)} captions' conditionings: give one of each per picture."
        )
    if not negative:
        raise AnnealingError("There is no negative conditioning, so there is no gap to measure. Connect one: an empty prompt.")
    for conditioning in (*positives, negative):
        if any(len(sequence) != 1 for sequence, _ in conditioning):
            raise AnnealingError("A conditioning holds several prompts at once. Give a list with one conditioning per picture.")
        if any(key in options for _, options in conditioning for key in _RANGES):
            raise AnnealingError(
                "A conditioning is limited to a part of the steps (ConditioningSetTimestepRange), and a profile covers all of "
                "them. Connect it without the limit."
            )


@dataclass(frozen=True)
class _Rows:
    """What B entries are measured at. sigma, next_sigma: ComfyUI's, [B]; noise: [B, ...] of unit variance."""

    timestep: torch.Tensor
    sigma: torch.Tensor
    next_sigma: torch.Tensor
    noise: torch.Tensor


def _measure_picture(model, kind, grid, number, latent, positive, negative, settings, batch_size) -> Entries:
    """The entries of one picture, everything random drawn from a seed of its own."""
    generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + number) % 2**63)
    model_sampling = model.get_model_object("model_sampling")
    levels, next_levels = grid
    rounds = -(-settings.samples // len(levels))
    steps = torch.cat([torch.randperm(len(levels), generator=generator) for _ in range(rounds)])[: settings.samples]
    rows = _Rows(
        units.network_timestep(kind, levels[steps]).float(),
        units.sigma_of_level(model_sampling, levels[steps]),
        units.sigma_of_level(model_sampling, next_levels[steps]),
        torch.randn(len(steps), *latent.shape, generator=generator),
    )
    perturbed = cads.perturbed_conditioning(positive, rows.timestep, generator) if settings.perturb else positive

    parts = []
    for chunk in torch.arange(len(steps)).split(batch_size):
        part = _Rows(*(tensor[chunk] for tensor in vars(rows).values()))
        conditions = {"positive": _rows_of(perturbed, chunk), "clean": positive, "negative": negative}
        probe = _Probe(part, settings.knots)
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds(conditions)
        with torch.no_grad():
            x0 = latent.detach().float().cpu().expand(len(chunk), *latent.shape).clone()
            guider.sample(part.noise, x0, probe, part.sigma, disable_pbar=True, seed=settings.seed)
        gap_norm, first, second = (tensor.float().cpu() for tensor in probe.measured)
        parts.append(Entries(torch.full_like(chunk, number), part.timestep, gap_norm, first, second))
    return Entries.joined(parts)


def _rows_of(conditioning: list, chunk: torch.Tensor) -> list:
    """The perturbed copies that belong to these rows; an embedding with one copy for all stays."""

    def pick(value):
        return value[chunk] if isinstance(value, torch.Tensor) and len(value) > 1 else value

    return [
        [pick(sequence), {k: pick(v) if k == "pooled_output" else v for k, v in options.items()}]
        for sequence, options in conditioning
    ]


class _Probe(comfy.samplers.Sampler):
    """A sampler in name: it sits where samplers sit, so that ComfyUI itself loads the model and prepares the conditions."""

    def __init__(self, rows: _Rows, knots: tuple[float, ...]):
        self.rows, self.knots = rows, knots
        self.measured: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        """Fills `measured`: gap norm [B], first term's coefficients [B, 3], second term at the knots [B, K]."""
        model_sampling, options = guider.model_patcher.get_model_object("model_sampling"), extra_args["model_options"]
        sigma, next_sigma = self.rows.sigma.to(noise.device), self.rows.next_sigma.to(noise.device)

        def predict(positive: str, x: torch.Tensor, sigma: torch.Tensor) -> list[torch.Tensor]:
            conditions = [guider.conds[positive], guider.conds["negative"]]
            return comfy.samplers.calc_cond_batch(guider.inner_model, conditions, x, sigma, options)

        x = model_sampling.noise_scaling(per_sample(sigma, noise), noise, latent_image)
        cond, uncond = predict("positive", x, sigma)
        gap_norm = units.gap_norm(model_sampling, cond, uncond, sigma)
        first = first_term(model_sampling, cond, uncond, latent_image, sigma)
        second = []
        for knot in self.knots:
            x_next = null_renoised(model_sampling, x, uncond + knot * (cond - uncond), uncond, sigma, next_sigma)
            norm = units.gap_norm(model_sampling, *predict("clean", x_next, next_sigma), next_sigma)
            second.append(norm**2 / x[0].numel())
        self.measured = gap_norm, first, torch.stack(second, dim=1)
        return noise


def first_term(model_sampling, cond, uncond, x0, sigma) -> torch.Tensor:
    """Coefficients a, b, c of mean((eps_w - eps)^2) = a + b w + c w^2: [B, 3]. Flow: of mean((v_w - v)^2).

    cond, uncond: denoised predictions at sigma [B]; x0: the picture. In both units the error of a prediction is
    (x0 - D)/divisor with the divisor of the gap: eps - eps_w = (D_w - x0)/sigma, v - v_w = (D_w - x0)/s.
    """
    is_flow = units.prediction_kind(model_sampling) == "velocity"
    divisor = (units.noise_level(model_sampling, sigma) if is_flow else sigma)[:, None]
    error = (uncond - x0).float().flatten(1) / divisor
    gap = (cond - uncond).float().flatten(1) / divisor
    return torch.stack([(error * error).mean(1), 2 * (error * gap).mean(1), (gap * gap).mean(1)], dim=1)


def null_renoised(model_sampling, x, guided, uncond, sigma, next_sigma) -> torch.Tensor:
    """x' = alpha' D_w + sigma' eps_u, eps_u = (x - alpha D_u)/sigma, for x = alpha x0 + sigma eps. All [B, ...] and [B]."""
    sigma, next_sigma = per_sample(sigma, x), per_sample(next_sigma, x)
    is_flow = isinstance(model_sampling, comfy.model_sampling.CONST)
    alpha, next_alpha = (1 - sigma, 1 - next_sigma) if is_flow else (1.0, 1.0)
    return next_alpha * guided + next_sigma * (x - alpha * uncond) / sigma
