"""Annealing guidance with a part taken out or put in another's place: what does each of them do?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import comfy.samplers
import torch

from . import pack_module
from .methods import Methods, Run

CALIBRATION_SEED = 7
CALIBRATION_PICTURES = 64

LAMBDAS = 0.0, 0.4, 0.8
CONSTANTS = 0.3, 0.45, 0.6  # CFG++ scales on the paper's grid: CFG 3.6 to 7 on average
LARGEST_FACTOR = 4.0

ScaleModel, FixedScale = pack_module("models.scale_model").ScaleModel, pack_module("models.fixed_scale").FixedScale


def ablations(methods: Methods) -> dict[str, dict[str, Run]]:
    """method -> setting -> run, with null renoising as `annealing` has it."""
    demo = methods.demo

    def runs(values: tuple[float, ...], guider: Callable) -> dict[str, Run]:
        return {f"{value:g}": lambda value=value: (guider(value), methods.null, methods.sigmas) for value in values}

    def frozen(gap: bool = False, timestep: bool = False) -> dict[str, Run]:
        def guider(value: float):
            timesteps, norms = calibration(methods, demo.scale, value)
            return demo.annealing(Frozen(demo.scale, (timesteps, norms.mean(1)), gap, timestep), value)

        return runs(LAMBDAS, guider)

    def by_gap(power: float) -> dict[str, Run]:
        def guider(scale: float):
            constant = FixedScale("constant", scale)
            rule = ByGap(constant, power, *calibration(methods, constant, 0.0)) if power else constant
            return demo.annealing(rule, 0.0, projection="on")

        return runs(CONSTANTS, guider)

    def by_angle() -> tuple:
        rule, patched = ByAngle(demo.scale), demo.model.clone()
        patched.set_model_sampler_calc_cond_batch_function(rule.predict)
        return demo.annealing(rule, 0.5, model=patched), methods.null, methods.sigmas

    return {
        "annealing, matching off": methods.annealing(demo.scale, lambdas=LAMBDAS, match_training_steps=False),
        "annealing, projection off": methods.annealing(demo.scale, lambdas=LAMBDAS, projection="off"),
        "annealing, gap frozen": frozen(gap=True),
        "annealing, timestep frozen": frozen(timestep=True),
        "annealing, both frozen": frozen(gap=True, timestep=True),
        "annealing, lambda by angle": {"": by_angle},
        "constant, matched": by_gap(0.0),
        "constant, more where the gap is small": by_gap(1.0),
        "constant, more where the gap is large": by_gap(-1.0),
    }


class Frozen(ScaleModel):
    """A scale model that is told the mean in the place of an input: of the gap norm at each timestep, or of the timestep.

    With the gap norm frozen what is left is a schedule, the same for every picture; with both, a constant.
    means: (timesteps [steps], mean gap norms [steps]) of a run with the model as it is.
    """

    def __init__(self, scale_model, means: tuple[torch.Tensor, torch.Tensor], gap: bool, timestep: bool) -> None:
        super().__init__(scale_model.info)
        self.scale_model, self.gap, self.timestep = scale_model, gap, timestep
        self.timesteps, self.norms = means

    def forward(self, timestep: torch.Tensor, gap_norm: torch.Tensor, guidance_lambda: float) -> torch.Tensor:
        if self.gap:
            nearest = (self.timesteps[:, None] - timestep.cpu()[None]).abs().argmin(0)
            gap_norm = (self.norms.mean().expand(len(nearest)) if self.timestep else self.norms[nearest]).to(gap_norm)
        if self.timestep:
            timestep = self.timesteps.mean().to(timestep).expand_as(timestep)
        return self.scale_model(timestep, gap_norm, guidance_lambda)


@cache
def calibration(methods: Methods, scale_model, guidance_lambda: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(timesteps [steps], gap norms [steps, pictures]) of a run on captions of the training scenes."""
    demo = methods.demo
    _, captions = pack_module("shapes.loader").captioned_pictures(CALIBRATION_PICTURES, CALIBRATION_SEED)
    guider = demo.annealing(scale_model, guidance_lambda)
    guider.set_conds([[torch.cat([demo.clip.encode(caption) for caption in captions]), {}]], demo.negative)
    noise = torch.randn(len(captions), 4, 16, 16, generator=torch.Generator().manual_seed(CALIBRATION_SEED))
    guider.sample(noise, torch.zeros_like(noise), methods.null, methods.sigmas, disable_pbar=True, seed=0)
    calls = guider.trace.calls
    return torch.stack([call.timestep[0] for call in calls]).cpu(), torch.stack([call.gap_norm for call in calls]).cpu()


class ByGap(ScaleModel):
    """A constant scale times (mean gap norm at this timestep / gap norm)^power, divided by that factor's mean.

    So every timestep gets the same scale on average, and only who gets more of it differs from picture to picture.
    """

    def __init__(self, constant, power: float, timesteps: torch.Tensor, norms: torch.Tensor) -> None:
        super().__init__(constant.info)
        self.constant, self.power = constant, power
        self.timesteps, self.means = timesteps, norms.mean(1)
        self.mean_factors = self._factor(self.means[:, None], norms).mean(1)

    def forward(self, timestep: torch.Tensor, gap_norm: torch.Tensor, guidance_lambda: float) -> torch.Tensor:
        nearest = (self.timesteps[:, None] - timestep.cpu()[None]).abs().argmin(0)
        factor = self._factor(self.means[nearest].to(gap_norm), gap_norm) / self.mean_factors[nearest].to(gap_norm)
        return self.constant(timestep, gap_norm, guidance_lambda) * factor

    def _factor(self, mean: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        return ((mean / norm.clamp(min=1e-6)) ** self.power).clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)


class ByAngle(ScaleModel):
    """lambda from the angle between the unconditional velocity and the gap, per sample and step: the follow-up's rule."""

    def __init__(self, scale_model) -> None:
        super().__init__(scale_model.info)
        self.scale_model, self.cosine = scale_model, torch.zeros(0)

    def predict(self, args: dict):
        """Stands in the place of ComfyUI's calc_cond_batch, which it calls, to see the predictions before the scale is chosen."""
        model, conds, x, sigma = (args[name] for name in ("model", "conds", "input", "sigma"))
        cond, uncond = comfy.samplers.calc_cond_batch(model, conds, x, sigma, args["model_options"])
        velocity = (x - uncond).flatten(1)  # times sigma, as the gap: the angle is the same
        self.cosine = torch.nn.functional.cosine_similarity(velocity, (uncond - cond).flatten(1))
        return [cond, uncond]

    def forward(self, timestep: torch.Tensor, gap_norm: torch.Tensor, _lambda: float) -> torch.Tensor:
        # Before a run the scale is asked for on its noise levels, of which no angle is known.
        cosine = self.cosine if self.cosine.shape == timestep.shape else torch.zeros_like(timestep)
        x = ((1 + cosine) / 2).clip(0, 1)
        guidance_lambda = 0.5 + torch.sign(x - 0.5) * (2 * x - 1).abs().sqrt() / 2
        return self.scale_model(timestep, gap_norm, guidance_lambda)
