"""Scale Plot, Scale Map and Lambda Sweep as nodes, with the demo model."""

from __future__ import annotations

import comfy.samplers
import folder_paths
import pytest
import torch
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.nodes.guider import AnnealingGuider
from annealing_guidance_pack.nodes.plots import AnnealingScaleMap, AnnealingScalePlot
from annealing_guidance_pack.nodes.sampling import AnnealingSampler
from annealing_guidance_pack.nodes.scale import load_scale_by_name
from annealing_guidance_pack.nodes.sweep import AnnealingSweep
from annealing_guidance_pack.shapes.loader import load_shapes
from closed_form import SmoothScale, closed_form_model, conditioning
from comfy_extras.nodes_custom_sampler import CFGGuider, RandomNoise, SamplerCustomAdvanced


@pytest.fixture(scope="module")
def demo():
    model, clip, vae = load_shapes("epsilon")
    texts = ("a red circle left of a blue square", "")
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts)
    return {"model": model, "positive": positive, "negative": negative, "vae": vae}


def settings(steps=4, batch=2, sampler=None, seed=3):
    sigmas = torch.cat([torch.linspace(14, 0.3, steps), torch.zeros(1)])
    return {
        "noise": RandomNoise.execute(seed).args[0],
        "sampler": sampler or comfy.samplers.sampler_object("euler"),
        "sigmas": sigmas,
        "latent_image": {"samples": torch.zeros(batch, 4, 16, 16)},
    }


def sweep(demo, lambdas="0, 0.8", cfg_scales="", **changed):
    with torch.inference_mode():
        return AnnealingSweep.execute(**{**demo, **settings(), "lambdas": lambdas, "cfg_scales": cfg_scales, **changed}).args


def sampled_alone(demo, guider, **changed):
    with torch.inference_mode():
        own = {**settings(), **changed}
        noise, sampler, sigmas, latent = (own[name] for name in ("noise", "sampler", "sigmas", "latent_image"))
        return SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args[0]["samples"]


def test_every_column_is_what_a_run_of_its_own_with_the_same_noise_gives(demo):
    _, latents, _ = sweep(demo, "0, 0.8", "1, 5")
    columns = latents["samples"].split(2)
    conds = {name: demo[name] for name in ("model", "positive", "negative")}
    for column, value in zip(columns, (0.0, 0.8), strict=False):
        guider = AnnealingGuider.execute(**conds, guidance_lambda=value, renoise="auto", match_training_steps=True).args[0]
        torch.testing.assert_close(column, sampled_alone(demo, guider), atol=1e-5, rtol=0)
    for column, value in zip(columns[2:], (1.0, 5.0), strict=True):
        torch.testing.assert_close(column, sampled_alone(demo, CFGGuider.execute(**conds, cfg=value).args[0]), atol=0, rtol=0)


def test_the_grid_has_a_column_per_scale_and_a_row_per_latent(demo):
    one, _, _ = sweep(demo, "0.4", latent_image={"samples": torch.zeros(1, 4, 16, 16)})
    many, latents, trace = sweep(demo, "0, 0.4, 0.8", "5")
    assert latents["samples"].shape[0] == 8
    assert many.shape[2] >= 4 * 128 and one.shape[2] < 2 * 128
    assert many.shape[1] >= 2 * 128 and one.shape[1] < 2 * 128
    assert trace.latest.guidance_lambda.tolist() == pytest.approx([0, 0, 0.4, 0.4, 0.8, 0.8])


def test_a_mask_and_a_batch_index_hold_in_every_column(demo):
    kept = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :8] = 1
    latent = {"samples": kept, "noise_mask": mask, "batch_index": [4, 7]}
    _, latents, _ = sweep(demo, "0, 0.8", latent_image=latent)
    for column in latents["samples"].split(2):
        torch.testing.assert_close(column[:, :, 10:], kept[:, :, 10:], atol=1e-4, rtol=0)
        assert (column[:, :, :6] - kept[:, :, :6]).abs().mean() > 0.1


def test_a_null_renoising_sampler_makes_the_fixed_scales_cfg_pp(demo, monkeypatch):
    from annealing_guidance_pack.nodes import sweep as module

    seen = []
    monkeypatch.setattr(module, "labelled_columns", lambda columns, labels: seen.append(labels))
    sweep(demo, "0.4", "0.6", sampler=AnnealingSampler.execute(0.0, 1.0).args[0])
    sweep(demo, "0.4", "5")
    assert seen == [["lambda 0.4", "CFG++ 0.6"], ["lambda 0.4", "CFG 5"]]


@pytest.mark.parametrize("text", ["", "a", "2", "-1"])
def test_impossible_lambdas_are_named(demo, text):
    with pytest.raises(AnnealingError, match="lambdas is"):
        sweep(demo, text)


def test_the_plot_passes_its_samples_and_writes_the_numbers_when_asked(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    _, latents, trace = sweep(demo)
    plot, passed = AnnealingScalePlot.execute(trace, latents).args
    assert passed is latents and plot.ndim == 4 and plot.shape[-1] == 3
    assert list(tmp_path.iterdir()) == []
    for number in (1, 2):
        AnnealingScalePlot.execute(trace, latents, "sub/scales")
        assert (tmp_path / "sub" / f"scales_{number:05}_.csv").read_text().startswith("call,sample,lambda,sigma")
    with pytest.raises(AnnealingError, match="csv_prefix"):
        AnnealingScalePlot.execute(trace, latents, "../out")


def test_a_trace_without_a_run_says_what_to_connect(demo):
    guider = AnnealingGuider.execute(
        closed_form_model(), conditioning(torch.zeros(1, 4, 8, 8), 0.5), conditioning(torch.zeros(1, 4, 8, 8), 0.9),
        0.4, "auto", True, SmoothScale("epsilon"),
    ).args[0]  # fmt: skip
    with pytest.raises(AnnealingError, match="connect.*samples|Connect.*samples"):
        AnnealingScalePlot.execute(guider.trace, {"samples": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(AnnealingError, match="samples"):
        AnnealingScaleMap.execute(load_scale_by_name("shapes_epsilon.safetensors"), 0.4, "", guider.trace)


def test_the_map_is_drawn_for_one_or_several_lambdas(demo):
    scale = load_scale_by_name("shapes_epsilon.safetensors")
    one, three = (AnnealingScaleMap.execute(scale, 0.4, text).args[0] for text in ("", "0, 0.4, 0.8"))
    assert three.shape[2] > 2 * one.shape[2] > 0
