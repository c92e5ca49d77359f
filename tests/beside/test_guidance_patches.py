"""Beside nodes that change how the two predictions are combined: each one's published formula, with the scale that was used."""

import comfy.model_management
import pytest
import torch
from annealing_guidance_pack.models.errors import AnnealingError
from beside import ARRANGEMENTS, assert_both_act, assert_close, closed_form_scene, guided, patch_by, small_scene

SCENE = closed_form_scene()
VALUES = (1, 2, 3)  # the axes of one sample


def dot(a, b):
    """Inner product per sample: [B, 1, ...]."""
    return (a * b).sum(dim=VALUES, keepdim=True)


@pytest.mark.beside("RescaleCFG", "Both act: the guided prediction, with the learned scale, is rescaled as usual.")
def test_rescale_cfg_rescales_the_prediction_with_the_used_scale():
    run = assert_both_act(SCENE, patch_by("nodes_model_advanced", "RescaleCFG", 0.7))
    for call, scale in run.with_used():
        sigma = call.sigma.view(-1, 1, 1, 1)
        root = (1 + sigma**2).sqrt()

        def velocity(denoised, x=call.x, sigma=sigma, root=root):
            """v = (x / root^2 - D) root / sigma, what a v-prediction model predicts."""
            return (x / root**2 - denoised) * root / sigma

        cond, cfg = velocity(call.cond), velocity(guided(call, scale))
        rescaled = cfg * cond.std(dim=VALUES, keepdim=True) / cfg.std(dim=VALUES, keepdim=True)
        v = 0.7 * rescaled + 0.3 * cfg
        assert_close(call.denoised, call.x / root**2 - v * sigma / root)


@pytest.mark.beside(
    "APG",
    "Both act, in either order. The scale is the one for the gap that APG finds; APG is told it, and what APG leaves is guided "
    "with it.",
)
@pytest.mark.parametrize("eta, threshold, momentum", [(1.0, 5.0, 0.0), (0.0, 15.0, -0.5)])
def test_apg_is_told_the_scale_that_what_it_leaves_is_guided_with(eta, threshold, momentum):
    run = assert_both_act(SCENE, patch_by("nodes_apg", "APG", eta, threshold, momentum))
    average = 0.0
    for call, scale in run.with_used():
        gap = call.cond - call.uncond
        average = gap + momentum * average
        limited = average * (threshold / dot(average, average).sqrt()).clamp(max=1)
        parallel = call.cond * dot(limited, call.cond) / dot(call.cond, call.cond)
        assert torch.equal(call.hook_scale, scale)
        left = limited - parallel + eta * parallel + gap / scale
        assert_close(call.denoised, call.uncond + scale * left)


@pytest.mark.beside("CFGZeroStar", "Both act: the negative prediction is rescaled as usual, and the learned scale is used.")
def test_cfg_zero_star_rescales_the_negative_with_the_used_scale():
    run = assert_both_act(SCENE, patch_by("nodes_cfg", "CFGZeroStar"))
    for call, scale in run.with_used():
        cond, uncond = call.x - call.cond, call.x - call.uncond
        negative = call.uncond * dot(cond, uncond) / dot(uncond, uncond)
        assert_close(call.denoised, negative + scale * (call.cond - negative))


@pytest.mark.beside("CFGNorm", "Both act: a guided prediction that is larger than the positive one is scaled down to it.")
def test_cfg_norm_limits_the_guided_prediction():
    run = assert_both_act(SCENE, patch_by("nodes_cfg", "CFGNorm", 1.0))
    for call, scale in run.with_used():
        prediction = guided(call, scale)
        ratio = call.cond.norm(dim=1, keepdim=True) / prediction.norm(dim=1, keepdim=True)
        assert_close(call.denoised, prediction * ratio.clamp(max=1))


@pytest.mark.beside("TCFG", "Both act: the scale is chosen for the gap that TCFG leaves.")
def test_tcfg_damps_the_negative_and_its_gap_is_guided():
    run = assert_both_act(SCENE, patch_by("nodes_tcfg", "TCFG"))
    for call, scale in run.with_used():
        scores = torch.stack([call.x - call.uncond, call.x - call.cond], dim=1).flatten(2).double()  # [B, 2, N]
        # The first right singular vector, from the eigenvectors of the 2 x 2 matrix of inner products.
        _, vectors = torch.linalg.eigh(scores @ scores.mT)
        direction = torch.nn.functional.normalize((vectors[:, None, :, -1] @ scores), dim=-1)
        damped = (scores[:, :1] @ direction.mT) * direction
        negative = call.x - damped.view_as(call.x).float()
        # TCFG's own decomposition, in float32, is another on another processor.
        assert_close(call.denoised, negative + scale * (call.cond - negative), 2e-4)


@pytest.mark.beside("Mahiro", "Both act: Mahiro blends with the positive prediction times the learned scale.")
def test_mahiro_blends_with_the_used_scale():
    run = assert_both_act(SCENE, patch_by("nodes_mahiro", "Mahiro"))
    for call, scale in run.with_used():
        prediction, leap = guided(call, scale), call.cond * scale

        def signed_root(values):
            return values.abs().sqrt() * values.sign()

        merged = signed_root((leap + prediction) / 2)
        similarity = torch.cosine_similarity(signed_root(call.uncond * scale), merged).mean()
        share = (similarity + 1) / 2
        assert_close(call.denoised, share * prediction + (1 - share) * leap)


@pytest.mark.beside("FreSca", "Both act: the scale is chosen for the gap that FreSca leaves.")
def test_fresca_filters_the_gap_that_is_guided():
    run = assert_both_act(SCENE, patch_by("nodes_fresca", "FreSca", 1.0, 1.25, 2))
    for call, scale in run.with_used():
        frequencies = torch.fft.fftn(call.cond - call.uncond, dim=(-2, -1))
        high = torch.full((8, 8), 1.25)
        low = torch.tensor([-2, -1, 0, 1])  # the frequencies within the cutoff
        high[low[:, None], low[None, :]] = 1.0
        gap = torch.fft.ifftn(frequencies * high, dim=(-2, -1)).real
        assert_close(call.denoised, call.uncond + scale * gap)


@pytest.mark.beside(
    "RenormCFG", "Both act: a guided prediction that is larger than the positive one is scaled down. Batches of one."
)
def test_renorm_cfg_limits_the_guided_prediction():
    scene = small_scene("SD3")
    run = assert_both_act(scene, patch_by("nodes_lumina2", "RenormCFG", 100.0, 1.0))
    for call, scale in run.with_used():
        prediction = guided(call, scale)
        assert_close(call.denoised, prediction * (call.cond.norm() / prediction.norm()).clamp(max=1))


@pytest.mark.beside("Epsilon Scaling", "Both act: the noise that is left after guidance is scaled.")
def test_epsilon_scaling_scales_what_guidance_leaves():
    run = assert_both_act(SCENE, patch_by("nodes_eps", "EpsilonScaling", 1.1))
    for call, scale in run.with_used():
        assert_close(call.denoised, call.x - (call.x - guided(call, scale)) / 1.1)


@pytest.mark.beside("Latent Apply Operation CFG", "Both act: the scale is chosen for the gap that the operation leaves.")
def test_a_latent_operation_changes_the_gap_that_is_guided():
    run = assert_both_act(SCENE, patch_by("nodes_latent", "LatentApplyOperationCFG", lambda latent: latent.clamp(-1, 1)))
    for call, scale in run.with_used():
        assert_close(call.denoised, call.uncond + scale * (call.cond - call.uncond).clamp(-1, 1))


@pytest.mark.beside(
    "Perp-Neg (the old model patch)", "Both act: its step uses the learned scale. The Perp-Neg guider cannot be combined."
)
def test_the_old_perp_neg_patch_guides_with_the_used_scale():
    empty = SCENE.negative
    scene = SCENE.but(negative=[[0.5 * SCENE.positive[0][0], {"pooled_output": None}]])
    run = assert_both_act(scene, patch_by("nodes_perpneg", "PerpNeg", empty, 0.8))
    for call, scale in run.with_used():
        at_call = SCENE.but(positive=empty, noise=call.x / call.sigma[0], sigmas=torch.stack([call.sigma[0], torch.zeros(())]))
        nocond = at_call.plain().calls[0].cond
        pos, neg = call.cond - nocond, call.uncond - nocond
        perpendicular = neg - (neg * pos).sum() / (pos * pos).sum() * pos
        assert_close(call.denoised, nocond + scale * (pos - 0.8 * perpendicular))


def test_two_patches_at_once_both_act():
    """A pre-CFG and a post-CFG patch, on both sides of ours."""
    tcfg, zero = patch_by("nodes_tcfg", "TCFG"), patch_by("nodes_cfg", "CFGZeroStar")
    both = assert_both_act(SCENE, lambda model: zero(tcfg(model)))
    for alone in (tcfg, zero):
        assert not torch.allclose(both.latent, SCENE.annealed(alone).latent, rtol=1e-3)


def test_the_last_of_two_patches_in_the_one_slot_wins_as_without_us():
    """ComfyUI has one sampler_cfg_function: RescaleCFG after Perp-Neg leaves RescaleCFG alone."""
    rescale = patch_by("nodes_model_advanced", "RescaleCFG", 0.7)
    perp_neg = patch_by("nodes_perpneg", "PerpNeg", SCENE.negative, 0.8)
    assert torch.equal(SCENE.annealed(lambda model: rescale(perp_neg(model))).latent, SCENE.annealed(rescale).latent)


@pytest.mark.beside("VideoLinearCFGGuidance", "Not together: it needs one number as the scale. An error says so.")
@pytest.mark.beside("VideoTriangleCFGGuidance", "Not together: it needs one number as the scale. An error says so.")
@pytest.mark.parametrize("name", ["VideoLinearCFGGuidance", "VideoTriangleCFGGuidance"])
def test_a_patch_that_needs_one_number_fails_in_a_sentence_that_names_it(name):
    other = patch_by("nodes_video_model", name, 1.0)
    for arrangement in ARRANGEMENTS:
        with pytest.raises(AnnealingError, match=f"The patch {name}.* failed"):
            SCENE.annealed(other, arrangement)


def test_a_patch_that_runs_out_of_memory_says_so_itself():
    """ComfyUI frees memory on that very error."""

    def exhausted(args):
        raise comfy.model_management.OOM_EXCEPTION("out of memory")

    def other(model):
        model = model.clone()
        model.set_model_sampler_cfg_function(exhausted)
        return model

    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        SCENE.annealed(other)
