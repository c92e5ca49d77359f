"""The demo's VAE: pictures [B, 3, 32, 32] in [0, 1] to latents [B, 4, 16, 16] of unit variance, and back."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS = 4
LATENT_SIZE = 16


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(F.silu(self.a(F.silu(x))))


class AutoEncoder(nn.Module):
    """2 x 2 pixels make one latent place. The latents are normalised by the mean and variance measured in training."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(), nn.Conv2d(width, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS, affine=False),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, width, 3, padding=1), _Residual(width), _Residual(width), nn.SiLU(),
            nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2),
        )  # fmt: skip

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.encoder(pictures * 2 - 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (self.decoder(latents) + 1) / 2
