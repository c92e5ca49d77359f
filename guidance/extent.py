"""Over which values of a latent the gap is measured.

A scale is trained on whole latents of one size and kind. If only a part of a latent is of that kind, or can change at all, the
gap is measured there. Its norm is then scaled to that of a whole latent with the same gap per value:

    packed latents   ComfyUI packs video with sound and the like into [B, 1, N]. The first part, the picture's, is measured. Its
                     scale guides the other parts too: no scale was trained on their latents.
    inpainting       The part that the mask lets change is measured, weighted by the mask. In a packed latent it is the first
                     part that changes: sound made for a given video follows the sound's gap. A mask that lets nothing change
                     is ignored. Where the mask changes at every step (DifferentialDiffusion), the step's own is used.
    frames           AnimateDiff, SVD and the like put a video's frames on the batch axis. They share one scale, from the root
                     mean square of their norms: with a scale of its own for each frame the video would flicker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import comfy.model_base
import torch
from comfy.model_patcher import ModelPatcher

from .coverage import per_sample
from .host_types import Options

ANIMATEDIFF = "ADE"  # under which AnimateDiff-Evolved attaches its motion models to a model


class GapExtent:
    """Where the gap of one sampling run is measured. Reads no tensor's value, so it never waits for the device."""

    def __init__(self, latent_shapes: Sequence[Sequence[int]] = (), frames_on_batch: bool = False):
        """latent_shapes: of each part [B, ...], as ComfyUI's guiders get them. frames_on_batch: the batch is one video."""
        self._parts = [math.prod(shape[1:]) for shape in latent_shapes]
        self._frames_on_batch = frames_on_batch
        self._mask: torch.Tensor | None = None
        self._weight: torch.Tensor | None = None

    def follow_mask(self, model_options: Options) -> None:
        """Learn from ComfyUI which mask each model call is masked with.

        model_options: the run's own. ComfyUI calls its denoise_mask_function right before each prediction of a run with a mask.
        A function that is already there (DifferentialDiffusion's) is still called.
        """
        given = model_options.get("denoise_mask_function")

        def followed(sigma: torch.Tensor, denoise_mask: torch.Tensor, extra_options: Options) -> torch.Tensor:
            mask = given(sigma, denoise_mask, extra_options=extra_options) if given else denoise_mask
            if mask is not self._mask:  # an unchanging mask is prepared once per run
                self._mask, self._weight = mask, None
            return mask

        model_options["denoise_mask_function"] = followed

    def gap_norm(self, cond: torch.Tensor, uncond: torch.Tensor, reference_numel: int | None) -> torch.Tensor:
        """L2 norm of the difference of two denoised predictions [B, ...], over the values that count: [B], float32.

        A norm grows with the square root of the number of values, so it is scaled to a latent of `reference_numel` values. None:
        not scaled; for packed latents, the first part's number counts.
        """
        # As in coordinates.gap_norm: always in float32, and not by vector_norm.
        mean = self._weighed((cond.to(torch.float32) - uncond.to(torch.float32)).square()).mean(dim=1)
        if self._frames_on_batch:
            mean = mean.mean().expand_as(mean)
        return (mean * (reference_numel or self._numel(cond))).sqrt()

    def across(self, cond: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`other`, less the part of its difference from `cond` that is parallel to `cond`: all [B, ...].

        With d = other - D_c this is D_c + d_perp, d_perp = d - (<d, D_c> / <D_c, D_c>) D_c over the values that count. For the
        guided prediction it gives D_c + (cfg_scale - 1) delta_perp: APG (arXiv 2410.02416) with eta 0.
        """
        share = self.product(cond - other, cond) / self.product(cond, cond)
        return other + per_sample(share.nan_to_num(0.0), cond).to(cond.dtype) * cond

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Inner product per sample of two latents [B, ...] over the values that count: [B], in any unit."""
        product = self._weighed(a.to(torch.float32) * b.to(torch.float32)).sum(dim=1)
        return product.mean().expand_as(product) if self._frames_on_batch else product

    def _weighed(self, values: torch.Tensor) -> torch.Tensor:
        """[B, ...] to [B, N]: weighted, or as they are where all count equally."""
        if self._weight is None and (self._is_packed or self._mask is not None):
            self._weight = self._weight_of(values)
        return values.flatten(1) if self._weight is None else values.flatten(1) * self._weight

    def _numel(self, prediction: torch.Tensor) -> int:
        return self._parts[0] if self._is_packed else prediction[0].numel()

    @property
    def _is_packed(self) -> bool:
        return len(self._parts) > 1

    def _weight_of(self, like: torch.Tensor) -> torch.Tensor:
        """What each value's squared gap is multiplied by: [B, N], so that the mean over all is that over those that count."""
        mask = torch.ones_like(like[:1]) if self._mask is None else self._mask.expand_as(like)
        share = mask.to(torch.float32).clamp(0, 1).flatten(1)
        if self._is_packed:
            share = _first_that_changes(share.split(self._parts, dim=1))
        total = self._total(share)
        share = torch.where(total > 0, share, 1.0)
        return share * (share.shape[1] / self._total(share))

    def _total(self, share: torch.Tensor) -> torch.Tensor:
        """How many values count: [B, 1]; of frames on the batch axis the mean over all, [1, 1]."""
        total = share.sum(dim=1, keepdim=True)
        return total.mean(dim=0, keepdim=True) if self._frames_on_batch else total


def has_frames_on_batch(model_patcher: ModelPatcher, model_options: Options) -> bool:
    """Whether a batch of this model is one video: AnimateDiff-Evolved, SVD and SV3D, context windows along the batch."""
    return (
        bool(model_patcher.get_additional_models_with_key(ANIMATEDIFF))
        or isinstance(model_patcher.model, comfy.model_base.SVD_img2vid)
        or getattr(model_options.get("context_handler"), "dim", None) == 0
    )


def _first_that_changes(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mask [B, N] of the first part that changes, zero in the others. parts: the mask of each, [B, n]."""
    kept, found = [], torch.zeros_like(parts[0][:, :1], dtype=torch.bool)
    for part in parts:
        kept.append(torch.where(found, 0.0, part))
        found = found | (part > 0).any(dim=1, keepdim=True)
    return torch.cat(kept, dim=1)
