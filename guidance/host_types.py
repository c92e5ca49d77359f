"""What ComfyUI hands about, by name. Its modules carry hardly any types: to a type checker what is in these may be anything."""

from __future__ import annotations

from typing import Any

Conditioning = list[Any]  # CONDITIONING: [[sequence, options], ...]
PreparedConditioning = list[dict[str, Any]]  # the same as a run has prepared it for its device and size
Latent = dict[str, Any]  # LATENT: {"samples": [B, C, ...], ...}
Options = dict[str, Any]  # model_options, and what hooks are called with
ModelSampling = Any  # a torch.nn.Module of two of comfy.model_sampling's classes: a kind of prediction, a table of noise levels
Sampler = Any  # SAMPLER: a comfy.samplers.Sampler, mostly a KSAMPLER, or whatever node packs pass for one
