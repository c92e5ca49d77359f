"""The demo's picture model: a small transformer over 4x4 patches of the latent, with the prompt's tokens in the sequence."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from .autoencoder import CHANNELS, LATENT_SIZE
from .text import WIDTH as TEXT_WIDTH

PATCH = 4


def frequencies(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sinusoidal embedding [B, width] of times t [B] in [0, 1] (Vaswani et al., base 10,000, over 1000 t)."""
    omega = torch.exp(-math.log(10000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = 1000 * t[:, None].float() * omega
    return torch.cat([angle.cos(), angle.sin()], 1)


class Block(nn.Module):
    """Attention over text and picture, then an MLP, both modulated by the time as in DiT (adaLN-zero).

    All blocks share one modulation; each adds its own bias.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(width // heads), nn.RMSNorm(width // heads)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (modulation + self.modulation)[:, :, None].unbind(1)
        width = (x.shape[-1],)
        x = x + gate_a * self.attend(F.layer_norm(x, width) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(F.layer_norm(x, width) * (1 + scale_m) + shift_m)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class ShapesTransformer(nn.Module):
    """v = noise - x0 [B, 4, H, W] for z = (1 - s) x0 + s noise, time s [B] in [0, 1] and text [B, L, 64] of any length L.

    U-ViT's long skips (Bao et al., 2022) join the first half of the blocks to the second. A thin convolutional stem and
    head keep what the 4x4 patches would lose at their borders. Any H and W: the last patches are filled from the picture's other
    edge, and that part is cut off again, as in ComfyUI's own transformers.
    """

    def __init__(self, width: int = 128, depth: int = 6, heads: int = 4, stem: int = 16) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Conv2d(CHANNELS, stem, 3, padding=1)
        self.inward = nn.Conv2d(stem, width, PATCH, stride=PATCH)
        self.position = nn.Parameter(0.02 * torch.randn(1, width, LATENT_SIZE // PATCH, LATENT_SIZE // PATCH))
        self.text = nn.Linear(TEXT_WIDTH, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth // 2))
        self.outward = nn.Linear(width, stem * PATCH * PATCH)
        self.head = nn.Sequential(nn.Conv2d(2 * stem, stem, 3, padding=1), nn.SiLU(), nn.Conv2d(stem, CHANNELS, 3, padding=1))
        for last in (self.time[-1], self.head[-1]):
            nn.init.zeros_(last.weight)

    def forward(self, z: torch.Tensor, s: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        height, width = z.shape[-2:]
        stem = self.stem(_filled(_filled(z, -2), -1))
        picture = self.inward(stem)
        grid = picture.shape[-2], picture.shape[-1]
        position = self.position
        if position.shape[-2:] != grid:  # another picture size than the one trained on
            position = F.interpolate(position, grid, mode="bilinear")
        x = torch.cat([self.text(text), (picture + position).flatten(2).transpose(1, 2)], 1)
        modulation = self.time(frequencies(s, self.width)).unflatten(1, (6, self.width))
        half, past = len(self.blocks) // 2, []
        for i, block in enumerate(self.blocks):
            if i >= half:
                x = self.skips[i - half](torch.cat([x, past.pop()], -1))
            x = block(x, modulation)
            if i < half:
                past.append(x)
        x = self.outward(F.layer_norm(x[:, -grid[0] * grid[1] :], (self.width,)))
        x = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, grid), PATCH)
        return self.head(torch.cat([stem, x], 1))[..., :height, :width]


def _filled(z: torch.Tensor, dim: int) -> torch.Tensor:
    """z, its beginning repeated at its end along `dim` up to whole patches. Not by F.pad, which repeats it only once."""
    size = z.shape[dim]
    if size % PATCH == 0:
        return z
    return z.index_select(dim, torch.arange(math.ceil(size / PATCH) * PATCH, device=z.device) % size)
