"""Runs after runs: repeated, side by side, interrupted, broken, with solvers that call and step as they like."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models import schedule
from beside import LEARNED, Call, closed_form_scene, recorded
from closed_form import SmoothScale, sample
from comfy.patcher_extension import WrappersMP

SCENE = closed_form_scene()
WAYS = pytest.mark.parametrize("way", ["guider", "patch"])


class Workflow:
    """A guider as the executor keeps it between prompts, with the trace that its node handed out."""

    def __init__(self, way: str, guidance: Guidance = LEARNED, model=None):
        model, self.calls = recorded(model or SCENE.model())
        if way == "guider":
            self.guider = AnnealingCFGGuider(model, guidance)
            self.trace = self.guider.trace
        else:
            model, self.trace = patch_model(model, guidance)
            self.guider = comfy.samplers.CFGGuider(model)
        self.guider.set_conds(SCENE.positive, SCENE.negative)

    def run(self, sampler="euler", sigmas=SCENE.sigmas, seed: int = 0) -> torch.Tensor:
        self.calls.clear()
        sampler = comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
        return sample(self.guider, sampler, sigmas, SCENE.noise, seed=seed)


def fails_at(call: int, error: BaseException):
    """A PREDICT_NOISE wrapper that raises at the nth call, once."""
    count = iter(range(1, 10**6))

    def wrapper(executor, *args, **kwargs):
        if next(count) == call:
            raise error
        return executor(*args, **kwargs)

    return wrapper


# ---- again and side by side


@WAYS
@pytest.mark.parametrize("sampler", ["euler", "euler_cfg_pp", "dpmpp_2m", "dpmpp_sde"])
def test_a_cached_workflow_run_again_gives_the_same_picture_and_trace(way, sampler):
    workflow = Workflow(way)
    first = workflow.run(sampler)
    used = [call.cfg_scale for call in workflow.trace.calls]
    workflow.run("heun", seed=1)  # something else in between
    assert torch.equal(workflow.run(sampler), first)
    assert torch.equal(torch.stack([call.cfg_scale for call in workflow.trace.calls]), torch.stack(used))
    assert workflow.trace.run_id == 3


@WAYS
def test_two_in_one_workflow_share_no_state(way):
    """The same loaded model and scale model, two settings, sampled in turn, as two branches of a workflow."""
    model, scale_model = SCENE.model(), SmoothScale()
    low, high = (Workflow(way, Guidance(scale_model, value), model) for value in (0.0, 1.0))
    low_latent, high_latent = low.run(), high.run()
    assert not torch.allclose(low_latent, high_latent)
    assert torch.equal(low.run(), low_latent) and torch.equal(high.run(), high_latent)
    assert (low.trace.calls[0].cfg_scale < high.trace.calls[0].cfg_scale).all()
    assert torch.equal(low_latent, Workflow(way, Guidance(scale_model, 0.0)).run())


# ---- interrupted and broken


@WAYS
def test_an_interrupted_run_is_followed_by_a_whole_one(way):
    """By ComfyUI's own mechanism: the flag that its Cancel button sets, asked for before every layer and step."""
    workflow = Workflow(way)
    whole = workflow.run()

    def interrupted_after_two(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(2):
            x = model(x, sigmas[i] * x.new_ones([x.shape[0]]), **extra_args)
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        workflow.run(comfy.samplers.KSAMPLER(interrupted_after_two))
    assert len(workflow.trace.calls) == 2
    assert torch.equal(workflow.run(), whole)
    assert len(workflow.trace.calls) == 4


@WAYS
@pytest.mark.parametrize("call", [1, 3])
def test_a_run_that_breaks_in_the_middle_leaves_the_workflow_usable(way, call):
    broken = SCENE.model().clone()
    broken.add_wrapper(WrappersMP.PREDICT_NOISE, fails_at(call, RuntimeError("out of luck")))
    workflow = Workflow(way, model=broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        workflow.run()
    assert torch.equal(workflow.run(), Workflow(way).run())
    assert len(workflow.trace.calls) == 4


# ---- solvers that call as they like


def restart(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Two steps down, back up to the first sigma with fresh noise, down again."""
    generator = torch.Generator().manual_seed(0)
    ones = x.new_ones([x.shape[0]])
    down = [(sigmas[i], sigmas[i + 1]) for i in range(len(sigmas) - 1)]
    for step in [*down[:2], None, *down]:
        if step is None:
            x = x + torch.randn(x.shape, generator=generator) * (sigmas[0] ** 2 - sigmas[2] ** 2).sqrt()
            continue
        sigma, following = step
        denoised = model(x, sigma * ones, **extra_args)
        x = denoised + (x - denoised) * following / sigma
    return x


SOLVERS = {
    "heun": "heun",
    "dpm_2": "dpm_2",
    "dpm_adaptive": "dpm_adaptive",
    "dpm_fast": "dpm_fast",
    "dpmpp_2s_ancestral": "dpmpp_2s_ancestral",
    "a restart": comfy.samplers.KSAMPLER(restart),
    "the Annealing Sampler": null_renoising_sampler(),
}


@WAYS
@pytest.mark.parametrize("solver", list(SOLVERS))
def test_the_trace_holds_every_call_at_its_own_noise_level(way, solver):
    """As many calls as the model had, in order, each with the noise level, the timestep and the gap of that very call."""
    workflow = Workflow(way)
    sigmas = SCENE.sigmas if solver != "dpm_adaptive" else torch.tensor([14.0, 1.0, 0.5])
    assert workflow.run(SOLVERS[solver], sigmas).isfinite().all()
    calls: list[Call] = workflow.calls
    assert len(calls) >= 4
    for call, traced in zip(calls, workflow.trace.calls, strict=True):
        sigma = call.sigma.expand(2)
        assert torch.equal(traced.sigma, sigma)
        torch.testing.assert_close(traced.timestep, schedule.timestep_of_sigma(sigma))
        torch.testing.assert_close(traced.gap_norm, (call.cond - call.uncond).flatten(1).norm(dim=1) / sigma)
        assert (traced.cfg_scale > 0).all()


def test_equal_noise_levels_before_and_after_a_restart_give_scales_by_the_same_rule():
    """Nothing is counted: the calls after stepping back to a noise level are as if the run had begun there."""
    workflow = Workflow("guider", Guidance(SmoothScale(), match_training_steps=False))
    workflow.run(SOLVERS["a restart"])
    k = [call.cfg_scale / call.scale for call in workflow.trace.calls]
    assert len(k) == 6
    torch.testing.assert_close(k[0], k[2])
    torch.testing.assert_close(k[1], k[3])
