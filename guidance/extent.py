"""Over which values of a latent the gap is measured.

A scale was trained on whole latents of one size and kind. Where only a part of the latent is of that kind or can change at all,
the gap is measured there, and brought to the norm that a whole latent would have with the same gap per value:

    packed latents   video with sound and the like, packed by ComfyUI into [B, 1, N]: the first part, which is the picture's.
                     Its scale guides the other parts too: they are sampled together with it, and no scale was trained on
                     their latents.
    inpainting       where the mask lets the latent change, weighted by the mask. Of a packed latent the first part that
                     changes, so sound made for a given video goes by the sound's gap. A mask that lets nothing change
                     counts as none. DifferentialDiffusion's mask changes at every step; that of the step is used.
    frames           AnimateDiff, SVD and the like put a video's frames on the batch axis. They get one scale, from the root
                     mean square of their norms: a scale of each frame's own would make the video flicker.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import comfy.model_base
import torch
from comfy.model_patcher import ModelPatcher

from .host_types import Options

ANIMATEDIFF = "ADE"  # under which AnimateDiff-Evolved attaches its motion models to a model


class GapExtent:
    """Where the gap of one sampling run is measured. Reads no tensor's value, so it never waits for the device."""

    def __init__(self, latent_shapes: Sequence[Sequence[int]] = (), frames_on_batch: bool = False):
        """latent_shapes: of each part [B, ...], as ComfyUI's guiders are told them. frames_on_batch: the batch is one video."""
        self._parts = [math.prod(shape[1:]) for shape in latent_shapes]
        self._frames_on_batch = frames_on_batch
        self._mask: torch.Tensor | None = None
        self._weight: torch.Tensor | None = None

    def follow_mask(self, model_options: Options) -> None:
        """Learn from ComfyUI which mask each model call is masked with.

        model_options: the run's own. Its denoise_mask_function is asked for every call of a run that has a mask, right
        before the prediction; what was there already (DifferentialDiffusion) is called as before.
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

        It is the norm that a latent of `reference_numel` values would have, for a norm grows with the square root of their
        number. None: that of the latent itself (of packed ones, of the first part).
        """
        # In float32 whatever comes in: a half precision sum of squares overflows from a norm of 256. Not by vector_norm, which
        # adds up one by one on the CPU: 1% off for a video's ten million values.
        mean = self._weighed((cond.to(torch.float32) - uncond.to(torch.float32)).square()).mean(dim=1)
        if self._frames_on_batch:
            mean = mean.mean().expand_as(mean)
        return (mean * (reference_numel or self._numel(cond))).sqrt()

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Inner product per sample of two latents [B, ...] over the values that count: [B], in any unit."""
        product = self._weighed(a.to(torch.float32) * b.to(torch.float32)).sum(dim=1)
        return product.mean().expand_as(product) if self._frames_on_batch else product

    def _weighed(self, values: torch.Tensor) -> torch.Tensor:
        """[B, ...] to [B, N]: as they are where all count, so that nothing is multiplied in vain."""
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
