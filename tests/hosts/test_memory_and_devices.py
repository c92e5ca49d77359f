"""Newer hosts move a model's weights while it runs (dynamic VRAM) and spread it over several GPUs; CPU stand-ins for both."""

from dataclasses import replace

import comfy.hooks
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.null_renoising import null_renoising_sampler
from annealing_guidance_pack.guidance.patch import patch_model
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.shapes.loader import load_shapes
from closed_form import CPU, closed_form_model, conditioning, run_of, sample
from comfy.model_base import ModelType
from scales import INFO, made_up_network

SHAPE = (2, 4, 8, 8)
SIGMAS = torch.tensor([14.0, 3.0, 0.5, 0.0])
STEPS = len(SIGMAS) - 1
SOLVERS = {"annealing": null_renoising_sampler, "euler": lambda: comfy.samplers.sampler_object("euler")}
dynamic_vram = pytest.mark.skipif(
    not hasattr(comfy.model_patcher.ModelPatcher, "is_dynamic"), reason="this ComfyUI has no dynamic VRAM"
)
multi_gpu = pytest.mark.skipif(
    not hasattr(comfy.model_patcher.ModelPatcher, "match_multigpu_clones"), reason="this ComfyUI has no multi-GPU work units"
)


def guider_of(by, model, **options):
    """Our guider or core's with the patch, and its trace. options: of the positive conditioning."""
    guidance = Guidance(made_up_network())
    if by == "patch":
        model, trace = patch_model(model, guidance)
        guider = comfy.samplers.CFGGuider(model)
    else:
        guider = AnnealingCFGGuider(model, guidance)
        trace = guider.trace
    negative = conditioning(torch.zeros(1, *SHAPE[1:]), 0.9)
    guider.set_conds(conditioning(torch.ones(SHAPE), 0.5, **options), negative)
    return guider, trace


def sampled(guider, sampler):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return sample(guider, SOLVERS[sampler](), SIGMAS, noise)


class DynamicStandIn(comfy.model_patcher.ModelPatcher):
    """A dynamic patcher as far as guiders see one (the real one refuses the CPU): conditionings with hooks replace it."""

    def is_dynamic(self):
        return True

    def get_non_dynamic_delegate(self):
        plain = closed_form_model()
        plain.wrappers = self.wrappers
        return plain


@dynamic_vram
@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("by", ["guider", "patch"])
def test_a_patcher_that_the_host_has_replaced_is_not_used_any_more(by, sampler):
    hook = comfy.hooks.HookGroup()
    hook.add(comfy.hooks.TransformerOptionsHook(transformers_dict={"mark": 1}))
    dynamic = DynamicStandIn(closed_form_model().model, load_device=CPU, offload_device=CPU)
    guider, trace = guider_of(by, dynamic, hooks=hook)
    assert not guider.model_patcher.is_dynamic()
    dynamic.model.model_sampling = dynamic.model.diffusion_model = None  # whoever still asks it gets an error
    latent = sampled(guider, sampler)
    assert torch.equal(latent, sampled(guider_of(by, closed_form_model(), hooks=hook)[0], sampler))
    assert len(trace.calls) == STEPS


@multi_gpu
@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("by", ["guider", "patch"])
def test_each_of_two_devices_evaluates_one_condition_per_step(by, sampler):
    model, second = closed_form_model(), closed_form_model()
    second.load_device = torch.device("cpu", 0)  # another name for the same device
    second.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [second])
    guider, trace = guider_of(by, model)
    latent = sampled(guider, sampler)
    for each in (model, second):
        assert (each.model.diffusion_model.calls, each.model.diffusion_model.rows) == (STEPS, STEPS * SHAPE[0])
    alone = sampled(guider_of(by, closed_form_model())[0], sampler)
    torch.testing.assert_close(latent, alone, atol=1e-6, rtol=0)
    assert len(trace.calls) == STEPS


@multi_gpu
@pytest.mark.parametrize("patched_first", [True, False])
def test_the_demo_model_is_guided_on_two_devices_that_the_host_has_spread_it_over(patched_first):
    """By the host's own clone for another GPU, made before or after the patch."""
    model, clip, _ = load_shapes("flow")
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red circle", ""))
    guidance = Guidance(FixedScale("constant", 0.8))

    def spread(model):
        model = model.clone()
        second = model.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
        second.is_multigpu_base_clone = True
        model.set_additional_models("multigpu", [second])
        return model, [each.model.diffusion_model for each in (model, second)]

    def latent(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        return sample(guider, SOLVERS["euler"](), torch.tensor([1.0, 0.5, 0.0]), noise)

    if patched_first:
        both, networks = spread(patch_model(model, guidance)[0])
    else:
        both, networks = spread(model)
        both, _ = patch_model(both, guidance)
    rows = []
    for network in networks:
        network.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    assert networks[0] is not networks[1]
    result = latent(both)
    assert rows == [1] * 4  # two steps, one condition on each device
    torch.testing.assert_close(result, latent(patch_model(model, guidance)[0]), atol=1e-5, rtol=0)


def tensors_in(value, path):
    """Where tensors are in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, part in inner:
        yield from tensors_in(part, f"{path}[{key!r}]")


def test_a_patched_model_carries_no_tensors_in_its_options():
    """The host copies them for every clone and every device: a tensor in them would stay on the device it was made on."""
    patched, _ = patch_model(closed_form_model(), Guidance(made_up_network(), torch.tensor([0.2, 0.8])))
    for name in ("model_options", "wrappers", "callbacks", "attachments", "object_patches"):
        assert not list(tensors_in(getattr(patched, name), name))


@pytest.mark.parametrize("guidance_lambda", [0.4, torch.tensor([0.2, 0.8])], ids=["one", "per_sample"])
@pytest.mark.parametrize("grid", [20, (14.6, 5.0, 1.0, 0.0), None], ids=["timesteps", "sigmas", "fixed"])
@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.V_PREDICTION, ModelType.FLOW], ids=lambda t: t.name)
def test_the_scale_is_found_on_the_device_of_the_latents(model_type, grid, guidance_lambda):
    """`meta` stands for a second GPU, seen for the first time: a tensor that is left elsewhere is an error there."""
    kind = "velocity" if model_type is ModelType.FLOW else "epsilon"
    grid = tuple(level / 14.6 for level in grid) if kind == "velocity" and isinstance(grid, tuple) else grid
    scale = made_up_network(replace(INFO, prediction=kind, training_grid=grid)) if grid else FixedScale("interval", 0.8)
    guidance = Guidance(scale, guidance_lambda, match_training_steps=True)
    latents, sigma = torch.empty(SHAPE, device="meta"), torch.empty(SHAPE[0], device="meta")
    run = run_of(closed_form_model(model_type), guidance, torch.empty(SHAPE), torch.tensor([0.9, 0.4, 0.0]))
    run.guidance_lambda = torch.as_tensor(guidance_lambda, device="meta") if isinstance(guidance_lambda, torch.Tensor) else 0.4
    _, call = run.guide(latents, latents, sigma)
    call = [value for value in call if value is not None]
    assert {value.device.type for value in call} == {"meta"}
