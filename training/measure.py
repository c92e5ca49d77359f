"""Measuring one picture of a profile: forward passes through a ComfyUI MODEL, with the memory and the precision of sampling."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.sample
import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher

from ..guidance import coordinates
from ..guidance.course import folding_factor
from ..guidance.coverage import per_sample
from ..guidance.extent import GapExtent
from ..guidance.host_types import Conditioning, ModelSampling, Options
from ..models.errors import AnnealingError
from ..models.schedule import timestep_of_nsr
from . import cads
from .curve import GapCurve, tolerance
from .knots import table_scales
from .pictures import Picture, picture_seed
from .profile import Entries, ProfileSettings, steps_of_grid


def measure_picture(
    model: ModelPatcher, picture: Picture, negative: Conditioning, settings: ProfileSettings, batch_size: int
) -> tuple[Entries, int]:
    """(the entries of one picture, the number of values in its latent). The gap norms are those of this latent, not rescaled.

    The numbers depend only on the model, the picture, the negative and the settings. Where the model predicts NaN or infinity,
    they contain NaN or infinity. The model stays unchanged.
    """
    latent, positive = picture.make()
    latent = _as_the_model_samples_it(model, latent)
    generator = torch.Generator().manual_seed(picture_seed(settings.seed, picture.identity))
    rows = _draw_rows(model, latent, settings, generator)
    perturbed = cads.perturbed_conditioning(positive, rows.timestep, generator) if settings.perturb else positive

    parts = []
    for chunk in torch.arange(len(rows.timestep)).split(batch_size):
        part = _Rows(*(tensor[chunk] for tensor in vars(rows).values()))
        conditions = {"positive": cads.rows_of(perturbed, chunk), "clean": positive, "negative": negative}
        probe = _Probe(part, settings, batch_size)
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds(conditions)
        with torch.no_grad():
            x0 = latent.expand(len(chunk), *latent.shape).clone()
            guider.sample(part.noise, x0, probe, part.sigma, disable_pbar=True, seed=settings.seed)
        gap_norm, first, second = (tensor.float().cpu() for tensor in probe.measured)
        parts.append(Entries(torch.full_like(chunk, picture.identity), part.timestep, gap_norm, first, second))
    return Entries.joined(parts), latent.numel()


def _as_the_model_samples_it(model: ModelPatcher, latent: torch.Tensor) -> torch.Tensor:
    """The latent [C, ...] in float32 on the CPU; for a video model, a still picture is one frame."""
    latent = comfy.sample.fix_empty_latent_channels(model, latent.detach().float().cpu()[None])[0]
    channels = model.get_model_object("latent_format").latent_channels
    if len(latent) != channels:
        raise AnnealingError(
            f"A latent has {len(latent)} channels, and this model's latents have {channels}. Encode the pictures with the VAE "
            "that belongs to the model."
        )
    return latent


@dataclass(frozen=True)
class _Rows:
    """Where B entries are measured. sigma, next_sigma: ComfyUI's, [B]; noise: [B, ...] of unit variance."""

    timestep: torch.Tensor
    sigma: torch.Tensor
    next_sigma: torch.Tensor
    noise: torch.Tensor


def _draw_rows(model: ModelPatcher, latent: torch.Tensor, settings: ProfileSettings, generator: torch.Generator) -> _Rows:
    """A picture's rows: each at a different step of the grid if there are enough, with its own noise."""
    model_sampling = model.get_model_object("model_sampling")
    path = coordinates.path_of(model_sampling)
    nsr, next_nsr = steps_of_grid(path, settings.training_grid)
    rounds = -(-settings.samples // len(nsr))
    steps = torch.cat([torch.randperm(len(nsr), generator=generator) for _ in range(rounds)])[: settings.samples]
    return _Rows(
        timestep_of_nsr(path, nsr[steps]).float(),
        coordinates.sigma_of_nsr(model_sampling, nsr[steps]),
        coordinates.sigma_of_nsr(model_sampling, next_nsr[steps]),
        torch.randn(len(steps), *latent.shape, generator=generator),
    )


class _Probe(comfy.samplers.Sampler):
    """Takes the place of a sampler, so that ComfyUI loads the model and prepares the conditions. It samples nothing."""

    def __init__(self, rows: _Rows, settings: ProfileSettings, batch_size: int):
        self.rows, self.knots, self.batch_size = rows, settings.knots, batch_size
        self.projection = settings.projection
        self.measured: tuple[torch.Tensor, ...] = ()

    def sample(
        self,
        guider: comfy.samplers.CFGGuider,
        sigmas: torch.Tensor,
        extra_args: Options,
        callback: object,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        denoise_mask: torch.Tensor | None = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        """Fills `measured`: gap norm [B], first term's coefficients [B, 3], second term [B, TABLE]."""
        model_sampling, options = guider.model_patcher.get_model_object("model_sampling"), extra_args["model_options"]
        sigma, next_sigma = self.rows.sigma.to(noise.device), self.rows.next_sigma.to(noise.device)

        def predict(positive: str, x: torch.Tensor, sigma: torch.Tensor) -> list[torch.Tensor]:
            conditions = [guider.conds[positive], guider.conds["negative"]]
            return comfy.samplers.calc_cond_batch(guider.inner_model, conditions, x, sigma, options)

        def unguided(cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
            """What guidance leads away from: the unconditional prediction, with projection less its difference along `cond`."""
            return GapExtent().across(cond, uncond) if self.projection else uncond

        x = model_sampling.noise_scaling(per_sample(sigma, noise), noise, latent_image)
        cond, uncond = predict("positive", x, sigma)
        other = unguided(cond, uncond)
        gap_norm = coordinates.gap_norm(model_sampling, cond, other, sigma)
        first = first_term(model_sampling, cond, other, latent_image, sigma)
        k = folding_factor(*(coordinates.nsr_of_sigma(model_sampling, level) for level in (sigma, next_sigma)))

        def gaps_after(row: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            """The gaps after the steps of these rows with these scales: [b, values], on the CPU, which has the memory."""
            own_x, own_cond, own_other = (tensor[row] for tensor in (x, cond, other))
            # The null-renoised step with a scale is the ordinary one with k times as much CFG, which projection is defined for.
            guided = own_cond + per_sample(k[row] * scale - 1, x) * (own_cond - own_other)
            x_next = torch.lerp(guided, own_x, per_sample((next_sigma / sigma)[row], x))
            next_cond, next_uncond = predict("clean", x_next, next_sigma[row])
            return gap(model_sampling, next_cond, unguided(next_cond, next_uncond), next_sigma[row]).cpu()

        curves = [GapCurve(tolerance(len(self.knots)), rounding(guider.inner_model)) for _ in sigma]
        scales = torch.tensor(table_scales(self.knots[0], self.knots[-1]), dtype=torch.float32)
        while wanted := [(row, index) for row, curve in enumerate(curves) for index in curve.wanted]:
            rows, indices = torch.tensor(wanted).unbind(1)
            parts = zip(rows.split(self.batch_size), scales[indices].split(self.batch_size), strict=True)
            found = iter(torch.cat([gaps_after(row.to(x.device), scale.to(x.device)) for row, scale in parts]))
            for curve in filter(lambda curve: curve.wanted, curves):
                curve.take([next(found) for _ in curve.wanted])
        self.measured = gap_norm, first, torch.stack([curve.mean_squares() for curve in curves])
        return noise


def rounding(base_model: BaseModel) -> float:
    """About the root mean square of the rounding errors in a gap's values, by the precision that the model computes in.

    A gap is the difference of two predictions with values near 1, each exact to its last bit.
    """
    kind = base_model.manual_cast_dtype or base_model.get_dtype()
    return 2 * torch.finfo(kind).eps if kind.is_floating_point else 0.0


def first_term(
    model_sampling: ModelSampling, cond: torch.Tensor, uncond: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Coefficients a, b, c of mean((eps_w - eps)^2) = a + b w + c w^2: [B, 3]. Flow: of mean((v_w - v)^2).

    cond, uncond: denoised predictions at sigma [B]; x0: the picture. In both units the error of a prediction is
    (x0 - D)/divisor with the divisor of the gap: eps - eps_w = (D_w - x0)/sigma, v - v_w = (D_w - x0)/s.
    """
    error, delta = gap(model_sampling, uncond, x0, sigma), gap(model_sampling, cond, uncond, sigma)
    return torch.stack([(error * error).mean(1), 2 * (error * delta).mean(1), (delta * delta).mean(1)], dim=1)


def gap(model_sampling: ModelSampling, cond: torch.Tensor, uncond: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The values whose norm is coordinates.gap_norm, of the opposite sign: [B, N], float32."""
    return (cond - uncond).float().flatten(1) / coordinates.gap_divisor(model_sampling, sigma)[:, None]
