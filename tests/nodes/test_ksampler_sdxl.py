"""Annealing Guidance (KSampler) and ComfyUI's KSampler on a network of SDXL's structure, at sizes that are not its own 128 x 128.

What the paper writes is written here once more, with nothing of guidance/: the gap in noise space, its norm as at 128 x 128, the
scale network asked by itself, and Algorithm 4's step.
"""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from annealing_guidance_pack.models.scale_file import load_scale
from annealing_guidance_pack.nodes.guider import AnnealingModelPatch
from beside import recorded
from scales import made_up_network
from small_models import small_conditioning, small_model

core_nodes = importlib.import_module("nodes")  # ComfyUI's own, not the pack's

REFERENCE_NUMEL = 4 * 128 * 128
LAMBDA = 0.4
SIZES = [(8, 8), (16, 16), (32, 32), (12, 32)]
POSITIVE, NEGATIVE = small_conditioning(1), small_conditioning(2)  # the negative is a prompt, not zeros
STEPS = 5


@pytest.fixture(params=["made up", "the authors'"])
def network(request):
    """A network that was trained at 128 x 128."""
    if request.param == "made up":
        return made_up_network()
    return load_scale(request.getfixturevalue("official_checkpoint"))


def ksampled(network, size, negative=NEGATIVE, batch=2, match_training_steps=True):
    """KSampler's latent, the trace, and what went into and out of the model at each call."""
    model, calls = recorded(small_model("SDXL"))
    with torch.inference_mode():
        patched, trace = AnnealingModelPatch.execute(model, LAMBDA, "auto", match_training_steps, network).args[:2]
        latent = {"samples": torch.zeros(batch, 4, *size)}
        (result,) = core_nodes.KSampler().sample(patched, 7, STEPS, 7.0, "euler", "karras", POSITIVE, negative, latent)
    return result["samples"], trace, calls


def norms(call, size):
    """The gap in noise space, per sample, as large as it would be at the network's own size."""
    gap = (call.cond - call.uncond) / call.sigma.view(-1, 1, 1, 1)
    return gap.double().flatten(1).norm(dim=1) * math.sqrt(REFERENCE_NUMEL / (4 * size[0] * size[1]))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_network_is_asked_with_the_norm_that_the_gap_would_have_at_its_own_size(network, size):
    _, trace, calls = ksampled(network, size)
    sigmas = small_model("SDXL").get_model_object("model_sampling").sigmas
    assert len(calls) == len(trace.calls) == STEPS
    for call, traced in zip(calls, trace.calls, strict=True):
        expected = norms(call, size)
        torch.testing.assert_close(traced.gap_norm.double(), expected, rtol=1e-4, atol=0)
        below = int((sigmas < call.sigma[0]).sum())  # entries of the schedule; the timestep lies between two of them
        assert below - 1 - 1e-3 <= float(traced.timestep[0]) <= below + 1e-3
        own = network(traced.timestep.float(), expected.float(), LAMBDA)
        torch.testing.assert_close(traced.scale, own.float(), rtol=1e-4, atol=1e-5)
    assert trace.calls[0].gap_norm[0] != trace.calls[0].gap_norm[1]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_without_matching_every_step_is_algorithm_4s(network, size):
    latent, trace, calls = ksampled(network, size, match_training_steps=False)
    ends = [*(call.x for call in calls[1:]), small_model("SDXL").get_model_object("latent_format").process_in(latent)]
    levels = [*(call.sigma[0] for call in calls), torch.zeros(())]
    for call, traced, end, sigma, following in zip(calls, trace.calls, ends, levels[:-1], levels[1:], strict=True):
        scale = network(traced.timestep.float(), norms(call, size).float(), LAMBDA).view(-1, 1, 1, 1)
        guided = call.uncond + scale * (call.cond - call.uncond)
        noise = (call.x - call.uncond) / sigma  # the unconditional one: null renoising
        torch.testing.assert_close(end, guided + following * noise, rtol=0, atol=2e-5 * float(call.x.abs().max()))


def test_another_negative_gives_another_gap_another_scale_and_another_picture():
    results = [ksampled(made_up_network(), (16, 16), negative) for negative in (NEGATIVE, small_conditioning(3))]
    (one, one_trace, _), (other, other_trace, _) = results
    for name in ("gap_norm", "scale"):
        first, second = (getattr(trace.calls[0], name) for trace in (one_trace, other_trace))
        assert ((first - second).abs() > 1e-3 * first.abs()).all(), name
    assert (one - other).abs().mean() > 0.01
