"""Latents of every rank, size and precision: how the gap is measured and which sample or part its scale guides."""

import inspect

import comfy.model_base
import comfy.model_management
import comfy.samplers
import comfy.utils
import pytest
import torch
from annealing_guidance_pack.guidance import trace as traces
from annealing_guidance_pack.guidance.extent import ANIMATEDIFF, GapExtent, has_frames_on_batch
from annealing_guidance_pack.guidance.guider import AnnealingCFGGuider
from annealing_guidance_pack.guidance.run import Guidance
from annealing_guidance_pack.guidance.step import guided_step
from closed_form import GaussianDenoiser, SmoothScale, closed_form_model, conditioning, run_of, sample
from comfy.model_base import ModelType
from comfy.nested_tensor import NestedTensor
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from no_waiting import NoWaiting
from scales import made_up_network

SHAPE = (3, 4, 8, 8)
SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])
STD = 0.7


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guider_of(means, model=None, scale_model=None, guidance_lambda=0.4):
    """A guider whose gap is sigma^2 / (STD^2 + sigma^2) times `means` in the denoised prediction, whatever x is."""
    guider = AnnealingCFGGuider(model or closed_form_model(), Guidance(scale_model or SmoothScale("epsilon"), guidance_lambda))
    guider.set_conds(conditioning(means, STD), conditioning(torch.zeros_like(means[:1]), STD))
    return guider


def gap_factor(sigma):
    """By what the gap in noise space is larger than the difference of the two means."""
    return sigma / (STD**2 + sigma**2)


def run(guider, noise, latent=None):
    """Final latents of any number of channels: SamplerCustomAdvanced would fit an empty latent to the model's."""
    latent = torch.zeros_like(noise) if latent is None else latent
    with torch.inference_mode():
        return guider.sample(noise, latent, comfy.samplers.sampler_object("euler"), SIGMAS, seed=0)


def traced(guider, name):
    return torch.stack([getattr(call, name) for call in guider.trace.calls])


# ---- rank


def test_a_video_clip_has_one_scale_that_of_the_same_values_as_a_picture():
    means, noise = random(2, 4, 3, 8, 8), random(2, 4, 3, 8, 8, seed=2)
    video, picture = guider_of(means), guider_of(means.flatten(1, 2))
    latent = run(video, noise)
    assert torch.equal(latent, run(picture, noise.flatten(1, 2)).view_as(noise))
    assert traced(video, "cfg_scale").shape == (4, 2)
    assert not torch.equal(*traced(video, "cfg_scale").unbind(dim=1))


VIDEO, SOUND = (2, 4, 3, 8, 8), (2, 8, 10)
VIDEO_NUMEL, SOUND_NUMEL = 768, 80
PACKS_MASKS = "denoise_mask.is_nested" in inspect.getsource(comfy.samplers.CFGGuider.sample)  # newer hosts pack the masks too


def packed_run(scale_model=None, masks=None):
    """A run of video with sound, whose sound has a gap 100 times as large. The guider, and the latent's two parts."""
    parts, noises = [random(*VIDEO), 100 * random(*SOUND)], [random(*VIDEO, seed=2), random(*SOUND, seed=3)]
    if masks and not PACKS_MASKS:
        masks = comfy.utils.pack_latents(masks)[0]
    elif masks:
        masks = NestedTensor(masks)
    guider = guider_of(torch.cat([part.flatten(1) for part in parts], dim=1)[:, None], scale_model=scale_model)
    zeros = NestedTensor([torch.zeros_like(part) for part in parts])
    with torch.inference_mode():
        sampler = comfy.samplers.sampler_object("euler")
        latent = guider.sample(NestedTensor(noises), zeros, sampler, SIGMAS, denoise_mask=masks, seed=0)
    return guider, latent.unbind()


@pytest.mark.parametrize("scale_model", [SmoothScale("epsilon"), made_up_network()], ids=["raw norm", "norm of 65,536 values"])
def test_packed_video_with_sound_is_guided_by_the_videos_own_gap(scale_model):
    packed, (video, sound) = packed_run(scale_model)
    alone = guider_of(random(*VIDEO), scale_model=scale_model)
    torch.testing.assert_close(video, run(alone, random(*VIDEO, seed=2)), atol=2e-6, rtol=0)
    for name in ("gap_norm", "cfg_scale"):
        torch.testing.assert_close(traced(packed, name), traced(alone, name), atol=1e-6, rtol=1e-5)
    assert sound.shape == SOUND and sound.isfinite().all()


def test_packed_sound_is_guided_with_the_videos_scale():
    packed, (_, sound) = packed_run()
    means, x = 100 * random(*SOUND), random(*SOUND, seed=3) * SIGMAS[0]
    for call, sigma, next_sigma in zip(packed.trace.calls, SIGMAS, SIGMAS[1:], strict=False):
        kept = STD**2 / (STD**2 + sigma**2)
        denoised = kept * x + (1 - kept) * means * call.cfg_scale[:, None, None]
        x = denoised + (x - denoised) * next_sigma / sigma
    torch.testing.assert_close(sound, x, atol=1e-3, rtol=1e-5)


def test_packed_sound_for_a_given_video_is_guided_by_its_own_gap():
    """Brought to the video's size: a gap norm of sound alone would be smaller by the square root of its share."""
    guider, (video, sound) = packed_run(masks=[torch.zeros(VIDEO), torch.ones(SOUND)])
    norm = (100 * random(*SOUND)).flatten(1).norm(dim=1) * (VIDEO_NUMEL / SOUND_NUMEL) ** 0.5
    torch.testing.assert_close(traced(guider, "gap_norm"), gap_factor(SIGMAS[:-1])[:, None] * norm, rtol=1e-5, atol=0)
    torch.testing.assert_close(video, torch.zeros(VIDEO), atol=1e-6, rtol=0)
    assert sound.abs().mean() > 10


# ---- frames on the batch axis


class ClosedFormSVD(comfy.model_base.SVD_img2vid):
    """Of SVD's class, without what its network needs besides the latent."""

    extra_conds = comfy.model_base.BaseModel.extra_conds

    def encode_adm(self, **kwargs):
        return None


def with_motion_model():
    model = closed_form_model()
    model.set_additional_models(ANIMATEDIFF, [closed_form_model()])
    return model


def with_context_windows(dim):
    options = {"context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1}
    options |= {"closed_loop": False, "fuse_method": "pyramid", "dim": dim}
    if "freenoise" in ContextWindowsManualNode.execute.__code__.co_varnames:
        options |= {"freenoise": False}
    return ContextWindowsManualNode.execute(closed_form_model(), **options).args[0]


FRAMES_ON_BATCH = {
    "AnimateDiff": with_motion_model,
    "SVD": lambda: closed_form_model(ModelType.V_PREDICTION_EDM, base=ClosedFormSVD),
    "context windows": lambda: with_context_windows(0),
}


@pytest.mark.parametrize("kind", FRAMES_ON_BATCH)
def test_frames_on_the_batch_axis_share_one_scale(kind):
    """From the root mean square of their norms, so that a frame that needs more guidance does not flicker."""
    means = random(5, 4, 8, 8) * torch.tensor([0.2, 1.0, 0.5, 2.0, 0.1]).view(-1, 1, 1, 1)
    model, seen = FRAMES_ON_BATCH[kind](), []
    model.set_model_sampler_post_cfg_function(lambda args: seen.append(args) or args["denoised"])
    video = guider_of(means, model)
    assert run(video, random(5, 4, 8, 8, seed=2)).isfinite().all()
    for call, args in zip(video.trace.calls, seen, strict=True):
        norms = (args["cond_denoised"] - args["uncond_denoised"]).flatten(1).norm(dim=1) / args["sigma"]
        torch.testing.assert_close(call.gap_norm, norms.square().mean().sqrt().expand(5), rtol=1e-5, atol=0)
        assert (call.cfg_scale == call.cfg_scale[0]).all() and norms.max() > 1.01 * norms.min()


def test_a_batch_of_pictures_is_not_taken_for_frames():
    for model in (closed_form_model(), with_context_windows(2)):
        assert not has_frames_on_batch(model, model.model_options)


# ---- size, layout, precision


@pytest.mark.parametrize(
    "shape",
    [(1, 4, 64, 64), (1, 4, 256, 256), (1, 16, 128, 128), (1, 4, 97, 41), (1, 1, 7), (1, 16, 3, 30, 52)],
    ids=lambda shape: "x".join(map(str, shape[1:])),
)
def test_the_gap_norm_of_any_size_is_that_of_the_training_size(shape):
    """A gap of 0.1 per value: at 1024 x 1024 of SDXL, and so at any other size, a norm of 0.1 * sqrt(65,536) = 25.6."""
    guider = guider_of(torch.full(shape, 0.1), scale_model=made_up_network())
    run(guider, random(*shape))
    torch.testing.assert_close(traced(guider, "gap_norm")[:, 0], 25.6 * gap_factor(SIGMAS[:-1]), rtol=2e-5, atol=0)


def test_memory_layout_changes_nothing():
    means, noise = random(*SHAPE), random(*SHAPE, seed=2)
    plain, guider = run(guider_of(means), noise), guider_of(means)
    latent = run(guider, noise.to(memory_format=torch.channels_last), latent=torch.zeros(SHAPE[::-1]).permute(3, 2, 1, 0))
    assert torch.equal(latent, plain)


def halved_run(model, dtype):
    """A denoiser that computes in half precision, as ComfyUI runs them."""

    class HalfDenoiser(GaussianDenoiser):
        def forward(self, x, *args, **kwargs):
            return super().forward(x, *args, **kwargs).to(self.dtype)

    model.model.diffusion_model = HalfDenoiser()
    model.model.diffusion_model.dtype = dtype
    model.model.diffusion_model.model_sampling = model.model.model_sampling
    return model


@pytest.mark.parametrize("dtype, bound", [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)], ids=str)
def test_a_half_precision_models_scale_is_the_float32_scale_within_a_bound(dtype, bound):
    means, noise = random(*SHAPE), random(*SHAPE, seed=2)
    exact, half = guider_of(means), guider_of(means, halved_run(closed_form_model(), dtype))
    for guider in (exact, half):
        run(guider, noise)
    torch.testing.assert_close(traced(half, "scale"), traced(exact, "scale"), atol=bound, rtol=0)
    assert not torch.equal(traced(half, "scale"), traced(exact, "scale"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_predictions_near_their_largest_number_have_a_finite_gap(dtype):
    ends = [torch.full((1, 4, 128, 128), sign * 65000.0, dtype=dtype) for sign in (1, -1)]
    _, call = run_of(closed_form_model(), Guidance(SmoothScale("epsilon")), ends[0], SIGMAS).guide(*ends, torch.ones(1))
    norm = call.gap_norm
    torch.testing.assert_close(norm.double(), 2 * ends[0].double()[:, 0, 0, 0] * 256, rtol=1e-6, atol=0)  # 256: root of its size


# ---- batches


def test_batch_index_picks_the_samples_of_the_whole_batch():
    means = random(*SHAPE)

    def run_of(latent, means):
        sampler, noise = comfy.samplers.sampler_object("euler"), Noise_RandomNoise(7)
        with torch.inference_mode():
            return SamplerCustomAdvanced.execute(noise, guider_of(means), sampler, SIGMAS, latent).args[0]["samples"]

    whole = run_of({"samples": torch.zeros(SHAPE)}, means)
    picked = run_of({"samples": torch.zeros(2, *SHAPE[1:]), "batch_index": [2, 0]}, means[[2, 0]])
    torch.testing.assert_close(picked, whole[[2, 0]], atol=2e-6, rtol=0)


@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW], ids=lambda t: t.name)
def test_a_batch_too_large_for_one_model_call_gives_the_same(monkeypatch, model_type):
    """ComfyUI then evaluates the two conditionings one after the other."""
    means, noise, calls, latents = random(*SHAPE), random(*SHAPE, seed=2), [], []
    for free in (None, 0):
        model = closed_form_model(model_type)
        guider = guider_of(means, model, SmoothScale())
        if free is not None:
            monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: 0)
        latents.append(sample(guider, comfy.samplers.sampler_object("euler"), SIGMAS / 14, noise))
        calls.append(model.model.diffusion_model.calls)
    assert calls == [4, 8]
    assert torch.equal(*latents)


# ---- a lambda per sample


def test_a_lambda_per_sample_gives_each_sample_as_its_own_run_does():
    means, noise, lambdas = random(*SHAPE), random(*SHAPE, seed=2), torch.tensor([0.0, 0.4, 0.8])
    batch = guider_of(means, guidance_lambda=lambdas)
    alone = [run(guider_of(means[i : i + 1], guidance_lambda=float(lambdas[i])), noise[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(run(batch, noise), torch.cat(alone), atol=2e-6, rtol=0)
    assert torch.equal(batch.trace.latest.guidance_lambda, lambdas)


# ---- no waiting for the device


@pytest.mark.parametrize("frames_on_batch", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_step_never_waits_for_the_device(device, frames_on_batch):
    """With a mask, packed parts and a lambda per sample at once; on `meta` there are no values that could be read."""
    model = closed_form_model()
    x, mask = torch.rand(2, 1, 848, device=device), torch.rand(2, 1, 848, device=device)
    model.load_device = torch.device(device)
    run_ = run_of(model, Guidance(SmoothScale("epsilon"), torch.rand(2)), x, SIGMAS)
    run_.trace = traces.RunTrace(1, "", 0.4, True)
    run_.extent = GapExtent([VIDEO, SOUND], frames_on_batch)
    options = {"sampler_calc_cond_batch_function": lambda args: [x + 1, x - mask]}
    run_.extent.follow_mask(options)
    with NoWaiting():
        for step in range(3):
            masked = mask if step < 2 else mask / 2  # the last as DifferentialDiffusion changes it
            sigma = torch.full((2,), 1.0 / (step + 1), device=device)
            assert options["denoise_mask_function"](sigma, masked, extra_options={}) is masked
            limited = [{"timestep_start": 1.0}]
            assert guided_step(run_, model.model, limited, limited, x, sigma, options).shape == x.shape
