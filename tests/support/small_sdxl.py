"""A node for the server of a test: a model of SDXL's structure with random weights, in the place of its checkpoint.

Its pictures mean nothing; that they come proves the graph around it.
"""

from __future__ import annotations

import hashlib

import torch
from small_models import small_conditioning, small_model


class SmallClip:
    """As much of a CLIP as CLIP Text Encode asks for: another prompt gives another conditioning."""

    def tokenize(self, text: str) -> int:
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def encode_from_tokens_scheduled(self, tokens: int) -> list:
        return small_conditioning(tokens)


class SmallVAE:
    """As much of a VAE as VAE Decode asks for: three channels of the latent, 8 pixels for each of its places."""

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        pixels = latent[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        return torch.sigmoid(pixels).movedim(1, -1)


class SmallSDXLLoader:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "load", ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def load(self):
        return small_model("SDXL"), SmallClip(), SmallVAE()
