"""Annealing guidance beside another node: the same run in every arrangement, what went in and out of it, core's run to compare.

Another node is a function from MODEL to MODEL. Where every call has one CFG scale, annealing guidance is core's CFGGuider at
that scale, so whatever the other node does there it must do here; with a learned scale, its formula must hold with the scale
that was used.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable
from unittest.mock import patch

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance import strength
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.guidance.trace import GuidedCall
from annealing_guidance_pack.models.fixed_scale import FixedScale
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy.patcher_extension import WrappersMP
from small_models import small_conditioning, small_latent, small_model

Patch = Callable[[object], object]

CFG = 3.0
CONSTANT = Guidance(FixedScale("constant", CFG))
LEARNED = Guidance(SmoothScale())
# The other node before the Annealing Guider, before the Annealing Guidance patch, and after it.
ARRANGEMENTS = ("guider", "patch last", "patch first")


def core_node(module: str, name: str) -> type:
    """A node class of ComfyUI itself; module: "nodes", or one of comfy_extras. Skips where a package of ComfyUI's is missing."""
    try:
        return getattr(importlib.import_module(module if module == "nodes" else f"comfy_extras.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name.startswith("comfy"):
            raise
        pytest.skip(f"this ComfyUI's {module} needs the package {error.name}, which is not installed")


def patch_by(module: str, name: str, *arguments, **named) -> Patch:
    """The other node as a function from MODEL to MODEL, with its inputs after the model."""

    def patch(model):
        node = core_node(module, name)
        if hasattr(node, "execute"):
            return node.execute(model, *arguments, **named).args[0]
        return getattr(node(), node.FUNCTION)(model, *arguments, **named)[0]

    return patch


def nothing(model):
    return model


@dataclasses.dataclass
class Call:
    """One call of a guider: what it was given, what the model predicted before any hook, what it returned."""

    x: torch.Tensor
    sigma: torch.Tensor
    cond: torch.Tensor | None = None
    uncond: torch.Tensor | None = None
    hook_scale: torch.Tensor | float | None = None  # what pre-CFG hooks are told
    denoised: torch.Tensor | None = None


@dataclasses.dataclass
class Run:
    latent: torch.Tensor
    calls: list[Call]
    trace: list[GuidedCall]  # [] for core's guider

    def used(self) -> torch.Tensor:
        """The used scales: [calls, B]."""
        return torch.stack([call.cfg_scale for call in self.trace])

    def with_used(self) -> list[tuple[Call, torch.Tensor]]:
        """Each call with its used scale as [B, 1, ...]."""
        pairs = zip(self.calls, self.trace, strict=True)
        return [(call, traced.cfg_scale.view(-1, *[1] * (call.x.ndim - 1))) for call, traced in pairs]


@dataclasses.dataclass
class Scene:
    """A model, two conditionings, noise and a schedule. model: what a loader would give; every run patches its own clone."""

    model: Callable[[], object]
    positive: list
    negative: list
    noise: torch.Tensor
    sigmas: torch.Tensor
    sampler: Callable[[], object] = lambda: comfy.samplers.sampler_object("euler")
    latent: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def annealed_with_one_cfg(self, other: Patch, arrangement: str) -> Run:
        """Guided by us, with CFG in the place of what the scale model and the step's size would give."""
        with patch.object(strength, "cfg_scale", lambda level, scale, *_: torch.full_like(scale, CFG)):
            return self.annealed(other, arrangement, CONSTANT)

    def annealed(self, other: Patch = nothing, arrangement: str = "guider", guidance: Guidance = LEARNED) -> Run:
        """Guided by us, beside the other node."""
        model, calls = recorded(self.model())
        if arrangement == "guider":
            guider = AnnealingCFGGuider(other(model), guidance)
            trace = guider.trace
        else:
            if arrangement == "patch last":
                model, trace = patch_model(other(model), guidance)
            else:
                model, trace = patch_model(model, guidance)
                model = other(model)
            guider = comfy.samplers.CFGGuider(model)
            guider.set_cfg(99.0)
        return Run(self._sample(guider), calls, trace.calls)

    def plain(self, other: Patch = nothing, cfg: float = CFG) -> Run:
        """Guided by core's CFGGuider, beside the other node."""
        model, calls = recorded(self.model())
        guider = comfy.samplers.CFGGuider(other(model))
        guider.set_cfg(cfg)
        return Run(self._sample(guider), calls, [])

    @functools.cached_property
    def annealed_alone(self) -> Run:
        return self.annealed()

    @functools.cached_property
    def plain_alone(self) -> Run:
        return self.plain()

    def _sample(self, guider) -> torch.Tensor:
        guider.set_conds(self.positive, self.negative)
        return sample(guider, self.sampler(), self.sigmas, self.noise, latent=self.latent, mask=self.mask)

    def but(self, **changes) -> Scene:
        return dataclasses.replace(self, **changes)


def closed_form_scene(size: int = 8, batch: int = 2, **model_arguments) -> Scene:
    """Two samples of Gaussian data, whose predictions are known exactly, in four steps."""
    means, noise = torch.randn(2, batch, 4, size, size, generator=torch.Generator().manual_seed(1))
    return Scene(
        lambda: closed_form_model(**model_arguments),
        conditioning(means, 0.5),
        conditioning(torch.zeros_like(means[:1]), 0.9),
        noise,
        torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0]),
    )


def small_scene(name: str = "SD15", size: int = 8, batch: int = 1, steps: int = 3) -> Scene:
    """A small model of ComfyUI's own classes and two prompts, in three steps."""
    latent, model = small_latent(name, batch, size), small_model(name)
    return Scene(
        lambda: model,
        small_conditioning(1),
        small_conditioning(2),
        torch.randn(latent.shape, generator=torch.Generator().manual_seed(3)),
        comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "sgm_uniform", steps),
    )


def recorded(model) -> tuple[object, list[Call]]:
    """The model with every call of its guider recorded, outside of all patches that are added later."""
    calls: list[Call] = []
    model = model.clone()

    def predict_noise(executor, x, timestep, *args, **kwargs):
        calls.append(call := Call(x.clone(), timestep.clone()))
        call.denoised = executor(x, timestep, *args, **kwargs).clone()
        return call.denoised

    def pre_cfg(args):
        call = calls[-1]
        call.cond, call.uncond = (prediction.clone() for prediction in args["conds_out"][:2])
        call.hook_scale = args["cond_scale"]
        return args["conds_out"]

    model.add_wrapper(WrappersMP.PREDICT_NOISE, predict_noise)
    model.set_model_sampler_pre_cfg_function(pre_cfg, disable_cfg1_optimization=True)
    return model, calls


def guided(call: Call, scale: torch.Tensor | float) -> torch.Tensor:
    """D_u + w (D_c - D_u)."""
    return call.uncond + scale * (call.cond - call.uncond)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    """Equal up to a share of the expected values' size."""
    torch.testing.assert_close(actual, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


def assert_both_act(scene: Scene, other: Patch = nothing, without: Scene | None = None) -> Run:
    """What holds beside every other node; the run with the learned scale, for what holds beside this one.

    without: the scene without the other's work, where that is not in the model but in the conditionings or the latent.
    """
    without = without or scene
    # With one CFG scale: core's own guider at that scale, in every arrangement.
    theirs = scene.plain(other)
    assert differ(theirs, without.plain_alone), "the other node does nothing in this scene"
    for arrangement in ARRANGEMENTS:
        assert_close(scene.annealed_with_one_cfg(other, arrangement).latent, theirs.latent)
    # With the learned scale: the order does not matter.
    both = scene.annealed(other)
    for arrangement in ARRANGEMENTS[1:]:
        run = scene.annealed(other, arrangement)
        assert torch.equal(run.latent, both.latent), arrangement
        assert torch.equal(run.used(), both.used()), arrangement
    # Neither's work is lost.
    assert both.latent.isfinite().all()
    assert both.used().std() > 0.05 * both.used().abs().mean(), "the scale does not vary"
    assert differ(both, theirs) and differ(both, without.annealed_alone)
    return both


def differ(a: Run, b: Run) -> bool:
    """Whether two runs end more than rounding apart."""
    return not torch.allclose(a.latent, b.latent, rtol=1e-3)


def predictions_at(call: Call, scene: Scene, other: Patch = nothing) -> Call:
    """What the scene's conditionings give at another run's call, for VE models: from the same x, at the same sigma."""
    sigma = call.sigma[0]
    first = torch.isclose(sigma, scene.model().get_model_object("model_sampling").sigma_max)
    noise = call.x / ((1 + sigma**2).sqrt() if first else sigma)  # ComfyUI's own noise scaling, inverted
    (found,) = scene.but(noise=noise, sigmas=torch.stack([sigma, sigma * 0]), latent=None, mask=None).plain(other).calls
    assert_close(found.x, call.x)
    return found
