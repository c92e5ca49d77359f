"""The perturbation of the conditional embeddings while training, after CADS (arXiv 2310.17347).

In a real run the conditional prediction may miss the prompt. The scale network must see such predictions in training, to learn
when to guide more. The noisier the level, the less of the embedding remains.
"""

from __future__ import annotations

from typing import Any

import torch

from ..guidance.host_types import Conditioning, Options

NOISE_SCALE = 0.025

# What ComfyUI's text encoders give for a prompt besides the sequence, each [1, ...], and its mask.
_MASK_OF = {
    "pooled_output": None,  # SDXL, SD3, Flux, HiDream, HunyuanVideo, SD2 unCLIP, Stable Cascade
    "conditioning_llama3": None,  # HiDream: [1, layers, tokens, channels]
    "conditioning_mt5xl": "attention_mask_mt5xl",  # HunyuanDiT
    "conditioning_byt5small": None,  # HunyuanImage 2.1, HunyuanVideo 1.5
}


def perturbed(embedding: torch.Tensor, timestep: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[B, ...]: one perturbed copy for each timestep [B], of the embedding's dtype, on the CPU.

        y' = sqrt(gamma) y + 0.025 sqrt(1 - gamma) n,    gamma = clamp(1 - t/1000, 0, 1)

    then shifted and rescaled to y's own mean and standard deviation, per sample over everything but the batch.

    embedding: [1, ...] (one prompt for all) or [B, ...]; timestep: the network's, 0..999 (flow: 0..1000).
    """
    clean = embedding.detach().cpu().to(torch.float32).expand(len(timestep), *embedding.shape[1:])
    gamma = (1.0 - timestep.cpu().to(torch.float32) / 1000.0).clamp(0, 1).view(-1, *[1] * (clean.ndim - 1))
    noise = torch.randn(clean.shape, generator=generator)
    noisy = gamma.sqrt() * clean + NOISE_SCALE * (1.0 - gamma).sqrt() * noise
    axes = tuple(range(1, clean.ndim))
    (clean_std, clean_mean), (std, mean) = (torch.std_mean(y, dim=axes, keepdim=True) for y in (clean, noisy))
    # An embedding that is the same everywhere (zeros) has no spread to restore.
    rescaled = torch.where(std > 0, (noisy - mean) / std, 0.0) * clean_std + clean_mean
    return rescaled.to(embedding.dtype)


def perturbed_tokens(
    sequence: torch.Tensor, mask: torch.Tensor | None, timestep: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The same for a sequence [1, L, C] with padding: masked or zero tokens stay as they are and do not count.

    mask: [1, L], 0 for tokens that the model ignores; or None.
    """
    read = (sequence[0] != 0).any(dim=1).cpu()
    if mask is not None and mask.shape == sequence.shape[:2]:
        read &= mask[0].cpu() != 0
    result = sequence.detach().cpu().repeat(len(timestep), 1, 1)
    if read.any():
        result[:, read] = perturbed(result[:1, read], timestep, generator)
    return result


def perturbed_conditioning(conditioning: Conditioning, timestep: torch.Tensor, generator: torch.Generator) -> Conditioning:
    """A CONDITIONING of one prompt, with one perturbed copy of every embedding per timestep [B]; the rest is unchanged."""

    def copies(embedding: Any, mask_name: str | None, options: Options) -> Any:
        if not isinstance(embedding, torch.Tensor):
            return embedding
        if embedding.ndim == 3:
            mask = options.get(mask_name) if mask_name else None
            return perturbed_tokens(embedding, mask, timestep, generator)
        return perturbed(embedding, timestep, generator)

    return [
        [
            copies(sequence, "attention_mask", options),
            {key: copies(value, _MASK_OF[key], options) if key in _MASK_OF else value for key, value in options.items()},
        ]
        for sequence, options in conditioning
    ]


def rows_of(conditioning: Conditioning, rows: torch.Tensor) -> Conditioning:
    """The copies in a perturbed CONDITIONING that belong to these rows. An embedding with a single copy stays."""

    def pick(embedding: Any) -> Any:
        return embedding[rows] if isinstance(embedding, torch.Tensor) and len(embedding) > 1 else embedding

    return [
        [pick(sequence), {key: pick(value) if key in _MASK_OF else value for key, value in options.items()}]
        for sequence, options in conditioning
    ]
