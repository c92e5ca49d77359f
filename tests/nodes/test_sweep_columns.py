"""Lambda Sweep: every column is what its lambda gives alone, whatever ComfyUI makes of the latent, its masks and the prompts."""

import comfy.samplers
import pytest
import torch
from annealing_guidance_pack.nodes.guider import AnnealingGuider
from annealing_guidance_pack.nodes.sweep import AnnealingSweep, side_by_side
from closed_form import SmoothScale, closed_form_model, conditioning
from comfy_extras.nodes_custom_sampler import CFGGuider, RandomNoise, SamplerCustomAdvanced
from small_models import small_conditioning, small_controlnet, small_model
from small_sdxl import SmallVAE

SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])
LAMBDAS, SCALES = (0.0, 0.4, 0.8), (3.0,)


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_mask(*shape):
    return (random(*shape, seed=2) > 0).float()


def closed_form(batch=3, size=8, sampler="euler", prompts=1, **latent):
    """A sweep's inputs with Gaussian data of random means: `prompts` of them in one conditioning."""
    means = random(prompts, 4, size, size, seed=3)
    return {
        "model": closed_form_model(),
        "positive": conditioning(means, 0.5),
        "negative": conditioning(torch.zeros_like(means[:1]), 0.9),
        "sampler": comfy.samplers.sampler_object(sampler),
        "latent_image": {"samples": random(batch, 4, size, size, seed=4), **latent},
    }


def video(**latent):
    """A sweep's inputs with two videos of three frames."""
    means = random(1, 4, 3, 8, 8, seed=3)
    prompts = {"positive": conditioning(means, 0.5), "negative": conditioning(torch.zeros_like(means), 0.9)}
    return {**closed_form(), **prompts, "latent_image": {"samples": random(2, 4, 3, 8, 8, seed=4), **latent}}


def small(positive, batch=2):
    """A sweep's inputs with a small model of SD 1.5's classes."""
    latent = {"samples": torch.zeros(batch, 4, 16, 16)}
    sampler = comfy.samplers.sampler_object("euler")
    return {"model": small_model("SD15"), "positive": positive, "negative": small_conditioning(2), "sampler": sampler,
            "latent_image": latent}  # fmt: skip


def masked_prompts():
    half = torch.zeros(1, 16, 16)
    half[:, :8] = 1
    return small_conditioning(1, mask=half, mask_strength=1.0, set_area_to_bounds=False) + small_conditioning(
        3, mask=1 - half, mask_strength=0.7, set_area_to_bounds=False
    )


def controlled():
    control = small_controlnet().copy().set_cond_hint(torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(5)))
    return small_conditioning(1, control=control, control_apply_to_uncond=True)


CASES = {
    "two masks on three latents": lambda: closed_form(3, noise_mask=random_mask(2, 8, 8)),
    "three masks on two latents": lambda: closed_form(2, noise_mask=random_mask(3, 8, 8)),
    "two masks on one latent": lambda: closed_form(1, noise_mask=random_mask(2, 8, 8)),
    "one mask on three latents": lambda: closed_form(3, noise_mask=random_mask(1, 8, 8)),
    "a mask for each latent": lambda: closed_form(3, noise_mask=random_mask(3, 8, 8)),
    "a bare mask of height and width": lambda: closed_form(3, noise_mask=random_mask(8, 8)),
    "a bare mask of a picture's size": lambda: closed_form(3, noise_mask=random_mask(64, 64)),
    "masks with a channel": lambda: closed_form(3, noise_mask=random_mask(2, 1, 8, 8)),
    "a soft mask": lambda: closed_form(2, noise_mask=torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(2))),
    "a batch index": lambda: closed_form(2, batch_index=[4, 7]),
    "the same noise twice": lambda: closed_form(3, batch_index=[1, 1, 2], noise_mask=random_mask(2, 8, 8)),
    "a prompt for each latent": lambda: closed_form(2, prompts=2),
    "two prompts for three latents": lambda: small([[random(2, 5, 24), {"pooled_output": None}]], batch=3),
    "more prompts than latents": lambda: small([[random(3, 5, 24), {"pooled_output": None}]], batch=2),
    "fresh noise at every step": lambda: closed_form(2, sampler="euler_ancestral"),
    "a solver that chooses its steps": lambda: closed_form(2, sampler="dpm_adaptive"),
    "masked prompts": lambda: small(masked_prompts()),
    "an area": lambda: small(small_conditioning(1) + small_conditioning(3, area=(8, 8, 4, 0), strength=1.0)),
    "a hint for each latent": lambda: small(controlled()),
    "videos": lambda: video(),
    "videos with a mask for each frame of each": lambda: video(noise_mask=random_mask(2, 1, 3, 8, 8)),
    "videos with a bare mask": lambda: video(noise_mask=random_mask(8, 8)),
    "an empty latent of another model": lambda: {
        **closed_form(), "latent_image": {"samples": torch.zeros(2, 16, 8, 8), "noise_mask": random_mask(3, 8, 8)}
    },
}  # fmt: skip


def swept(inputs):
    with torch.inference_mode():
        return AnnealingSweep.execute(
            RandomNoise.execute(7).args[0], sigmas=SIGMAS, vae=SmallVAE(), scale_model=SmoothScale("epsilon"),
            lambdas=", ".join(map(str, LAMBDAS)), cfg_scales=", ".join(map(str, SCALES)), **inputs,
        ).args  # fmt: skip


def alone(inputs, guider):
    with torch.inference_mode():
        noise = RandomNoise.execute(7).args[0]
        return SamplerCustomAdvanced.execute(noise, guider, inputs["sampler"], SIGMAS, inputs["latent_image"]).args[0]["samples"]


def annealing_guider(inputs, guidance_lambda):
    conds = {name: inputs[name] for name in ("model", "positive", "negative")}
    return AnnealingGuider.execute(**conds, guidance_lambda=guidance_lambda, renoise="auto", match_training_steps=True,
                                   scale_model=SmoothScale("epsilon")).args  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_column_is_its_lambda_sampled_alone(case):
    _, samples, trace = swept(CASES[case]())
    columns = samples["samples"].chunk(len(LAMBDAS) + len(SCALES))
    count = len(columns[0])
    for i, value in enumerate(LAMBDAS):
        inputs = CASES[case]()
        guider, own = annealing_guider(inputs, value)
        expected = alone(inputs, guider)
        assert (columns[i] - expected).norm() < 1e-5 * expected.norm()
        own_rows = slice(i * count, (i + 1) * count)
        assert trace.latest.guidance_lambda[own_rows].tolist() == pytest.approx([value] * count)
        for wide, narrow in zip(trace.calls, own.calls, strict=False):
            torch.testing.assert_close(wide.cfg_scale[own_rows], narrow.cfg_scale)
        assert len(trace.calls) >= len(own.calls)
    for column, value in zip(columns[len(LAMBDAS) :], SCALES, strict=True):
        inputs = CASES[case]()
        conds = {name: inputs[name] for name in ("model", "positive", "negative")}
        expected = alone(inputs, CFGGuider.execute(**conds, cfg=value).args[0])
        assert (column - expected).norm() < 1e-5 * expected.norm()
    assert (columns[0] - columns[2]).norm() > 1e-3 * columns[0].norm(), "the lambdas do nothing in this case"


def test_a_run_that_ends_sooner_has_no_numbers_after_its_end():
    _, _, trace = swept(closed_form(1, sampler="dpm_adaptive"))
    lengths = [int(torch.stack([call.scale[i] for call in trace.calls]).isfinite().sum()) for i in range(len(LAMBDAS))]
    assert max(lengths) == len(trace.calls) and len(set(lengths)) > 1, "all runs are equally long here"
    assert all(call.sigma.isfinite().all() for call in trace.calls)


def test_an_empty_schedule_gives_the_latents_and_an_empty_trace():
    inputs = closed_form(2)
    with torch.inference_mode():
        _, samples, trace = AnnealingSweep.execute(
            RandomNoise.execute(7).args[0], sigmas=torch.tensor([]), vae=SmallVAE(), scale_model=SmoothScale("epsilon"),
            lambdas="0, 0.8", **inputs,
        ).args  # fmt: skip
    assert samples["samples"].shape[0] == 4 and trace.calls == []


def test_one_run_stays_what_it_is():
    inputs = closed_form(2)
    guider, trace = annealing_guider(inputs, 0.4)
    alone(inputs, guider)
    whole = side_by_side([trace.latest])
    assert [[value.tolist() for value in call] for call in whole.calls] == [[v.tolist() for v in call] for call in trace.calls]
