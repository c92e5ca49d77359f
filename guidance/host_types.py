"""Names for what ComfyUI passes around. Its modules have hardly any types, so for a type checker these are mostly Any."""

from __future__ import annotations

from typing import Any

Conditioning = list[Any]  # CONDITIONING: [[sequence, options], ...]
PreparedConditioning = list[dict[str, Any]]  # the same, prepared by a run for its device and size
Latent = dict[str, Any]  # LATENT: {"samples": [B, C, ...], ...}
Options = dict[str, Any]  # model_options, and the arguments of hooks
ModelSampling = Any  # a torch.nn.Module of two classes of comfy.model_sampling: a kind of prediction, a table of noise levels
Sampler = Any  # SAMPLER: mostly a comfy.samplers.KSAMPLER, but node packs pass other objects too
