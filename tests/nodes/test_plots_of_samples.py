"""Scale Plot draws the run of the samples that are wired to it, whatever else the same guider or patch has sampled since."""

import importlib

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.nodes import plots
from annealing_guidance_pack.nodes.guider import AnnealingGuider, AnnealingModelPatch
from annealing_guidance_pack.nodes.plots import AnnealingScalePlot
from annealing_guidance_pack.nodes.sampling import AnnealingSampler
from closed_form import closed_form_model, conditioning
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_custom_sampler import DisableNoise, RandomNoise, SamplerCustomAdvanced, SplitSigmas

core_nodes = importlib.import_module("nodes")  # ComfyUI's own, not the pack's

SHAPE = (1, 4, 8, 8)
MEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
CONDS = {"positive": conditioning(MEAN, 0.5), "negative": conditioning(0 * MEAN, 0.9)}
SIGMAS = torch.tensor([14.0, 9.0, 6.0, 2.0, 0.5, 0.0])
EULER = comfy.samplers.sampler_object("euler")
SETTINGS = {"guidance_lambda": 0.4, "renoise": "auto", "match_training_steps": True}


def guider_and_trace():
    return AnnealingGuider.execute(
        model=closed_form_model(), **CONDS, scale_model=FixedScale("linear", 1.5, 0.2), **SETTINGS
    ).args


def sampled(guider, sigmas, seed=1, latent=None, noise=True):
    with torch.inference_mode():
        source = RandomNoise.execute(seed).args[0] if noise else DisableNoise.execute().args[0]
        return SamplerCustomAdvanced.execute(source, guider, EULER, sigmas, latent or {"samples": torch.zeros(SHAPE)}).args[0]


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: (sigmas of the run, remark) of each plot, beside the picture itself."""
    seen, draw = [], plots.trace_figure
    monkeypatch.setattr(plots, "trace_figure", lambda run, remark: seen.append((run, remark)) or draw(run, remark))
    return seen


def plotted(trace, samples):
    with torch.inference_mode():
        picture, passed = AnnealingScalePlot.execute(trace, samples).args
    assert passed is samples
    return picture


def sigmas_of(run):
    return [float(call.sigma[0]) for call in run.calls]


def test_base_and_refiner_halves_of_one_guider_each_have_their_own_plot(drawn):
    guider, trace = guider_and_trace()
    high, low = SplitSigmas.execute(SIGMAS, 2).args
    first = sampled(guider, high)
    second = sampled(guider, low, latent=first, noise=False)
    pictures = [plotted(trace, samples) for samples in (first, second)]
    assert [sigmas_of(run) for run, _ in drawn] == [high[:-1].tolist(), low[:-1].tolist()]
    assert [remark for _, remark in drawn] == ["", ""]
    assert not torch.equal(*pictures)


def test_a_list_of_latents_sampled_by_one_guider_gives_as_many_plots(drawn):
    guider, trace = guider_and_trace()
    every = [sampled(guider, SIGMAS[i:], seed=i) for i in range(3)]
    pictures = [plotted(trace, samples) for samples in every]
    assert [len(run.calls) for run, _ in drawn] == [5, 4, 3]
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])


def test_two_ksamplers_of_one_patched_model_each_have_their_own(drawn):
    model, trace = AnnealingModelPatch.execute(
        model=closed_form_model(), scale_model=FixedScale("linear", 1.5, 0.2), **SETTINGS
    ).args
    with torch.inference_mode():
        latents = [
            core_nodes.KSampler().sample(
                model, 1, steps, 7.0, "euler", "normal", *CONDS.values(), {"samples": torch.zeros(SHAPE)}
            )[0]
            for steps in (4, 7)
        ]
    for samples in latents:
        plotted(trace, samples)
    assert [len(run.calls) for run, _ in drawn] == [4, 7] and {remark for _, remark in drawn} == {""}


def test_packed_latents_are_known_by_their_parts(drawn):
    parts = [(1, 4, 8, 8), (1, 8, 10)]
    means = torch.randn(1, 1, sum(torch.Size(part).numel() for part in parts), generator=torch.Generator().manual_seed(1))
    guider, trace = guider_and_trace()
    guider.set_conds(conditioning(means, 0.5), conditioning(0 * means, 0.9))
    results = []
    for sigmas in (SIGMAS, SIGMAS[1:]):
        noise, zeros = (NestedTensor([make(part) for part in parts]) for make in (torch.randn, torch.zeros))
        with torch.inference_mode():
            results.append({"samples": guider.sample(noise, zeros, EULER, sigmas, seed=0)})
    for samples in results:
        plotted(trace, samples)
    assert [len(run.calls) for run, _ in drawn] == [5, 4] and {remark for _, remark in drawn} == {""}


def test_samples_that_were_changed_after_the_run_say_that_it_cannot_be_told(drawn):
    guider, trace = guider_and_trace()
    first, _ = sampled(guider, SIGMAS), sampled(guider, SIGMAS[1:])
    plotted(trace, {"samples": 2 * first["samples"]})
    assert drawn[0][1] == plots._NOT_SURE and len(drawn[0][0].calls) == 4
    certain = plotted(trace, first)
    assert drawn[1][1] == "" and certain.shape[-1] == 3


def test_the_annealing_samplers_run_is_known_too(drawn):
    guider, trace = guider_and_trace()
    sampler = AnnealingSampler.execute(eta=0.0, renoise_mix=1.0).args[0]
    with torch.inference_mode():
        latents = {"samples": torch.zeros(SHAPE)}
        results = [
            SamplerCustomAdvanced.execute(RandomNoise.execute(1).args[0], guider, sampler, SIGMAS[i:], latents).args[0]
            for i in (0, 2)
        ]
    plotted(trace, results[0])
    assert len(drawn[0][0].calls) == 5 and drawn[0][1] == ""
