"""The perturbation of the conditional embeddings while training, after CADS (arXiv 2310.17347).

The scale network shall meet conditional predictions that miss the prompt, as they do in a real run, so that it learns when
to guide more. The noisier the level, the less of the embedding is left.
"""

from __future__ import annotations

import torch

NOISE_SCALE = 0.025


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


def perturbed_conditioning(conditioning: list, timestep: torch.Tensor, generator: torch.Generator) -> list:
    """A CONDITIONING with one perturbed copy per timestep [B] of every embedding, sequence and pooled; the rest as it was."""
    result = []
    for sequence, options in conditioning:
        options = dict(options)
        if isinstance(pooled := options.get("pooled_output"), torch.Tensor):
            options["pooled_output"] = perturbed(pooled, timestep, generator)
        result.append([perturbed(sequence, timestep, generator), options])
    return result
