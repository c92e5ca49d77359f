"""The demo in ComfyUI's terms: a MODEL, a CLIP and a VAE for ComfyUI's own nodes."""

from __future__ import annotations

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.taesd.taesd
import torch
from comfy.model_base import ModelType
from torch import nn
from torch.nn import functional as F

from ..models.errors import AnnealingError
from . import scenes, text
from .autoencoder import CHANNELS, AutoEncoder
from .files import load_part
from .network import ShapesTransformer

ENLARGE = 4  # pictures of 32 x 32 are shown at 128 x 128, so that 8 pixels make a latent place, as with SDXL
VARIANTS = ("epsilon", "flow")


class ShapesLatents(comfy.latent_formats.LatentFormat):
    """Four channels of unit variance; the colours of previews are a least-squares fit on rendered pictures."""

    latent_channels = CHANNELS
    latent_rgb_factors = [[-0.069, 0.075, -0.092], [-0.112, -0.085, -0.101], [-0.101, -0.234, -0.187], [0.175, 0.016, -0.101]]
    latent_rgb_factors_bias = [0.726, 0.665, 0.58]


class ShapesConfig(comfy.supported_models_base.BASE):
    """What `BaseModel` asks of a model's configuration. `annealing_scale` names the bundled scale that belongs to it."""

    latent_format = ShapesLatents
    memory_usage_factor = 0.1

    def __init__(self, variant: str) -> None:
        super().__init__({"disable_unet_model_creation": True, "in_channels": CHANNELS})
        self.annealing_scale = f"shapes_{variant}.safetensors"
        self.sampling_settings = {"shift": 1.0} if variant == "flow" else {}


class FlowNetwork(nn.Module):
    """The picture model as ComfyUI calls flow models: timestep = 1000 s."""

    dtype = torch.float32

    def __init__(self, transformer: ShapesTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.transformer(x, timesteps / 1000, context)


class EpsilonNetwork(FlowNetwork):
    """The same, as ComfyUI calls SDXL: x = (x0 + sigma eps) / sqrt(1 + sigma^2), timestep 0 to 999; it gives eps.

    With s = sigma / (1 + sigma), z = (1 - s) x0 + s eps is x rescaled, and eps = z + (1 - s) v.
    """

    def __init__(self, transformer: ShapesTransformer, sigmas: torch.Tensor) -> None:
        super().__init__(transformer)
        self.register_buffer("sigmas", sigmas.float(), persistent=False)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, **kwargs) -> torch.Tensor:
        sigma = self.sigmas[timesteps.long()]
        s = sigma / (1 + sigma)
        z = x * ((1 + sigma**2).sqrt() / (1 + sigma))[:, None, None, None]
        return z + (1 - s)[:, None, None, None] * self.transformer(z, s, context)


class ShapesTokenizer:
    """ComfyUI's prompt syntax, with (word:1.2), for the demo's own words."""

    def __init__(self, **kwargs) -> None:
        pass

    def tokenize_with_weights(self, prompt: str, return_word_ids: bool = False, **kwargs) -> dict:
        pairs = []
        try:
            for segment, weight in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(prompt), 1.0):
                pairs += [(token, weight) for token in text.tokenize(comfy.sd1_clip.unescape_important(segment))]
            text.check_length(pairs)
        except text.UnknownWords as error:
            raise AnnealingError(str(error)) from None
        pairs += [(text.PAD, 1.0)] * (text.N_TOKENS - len(pairs))
        return {"shapes": [[(*pair, i) for i, pair in enumerate(pairs)] if return_word_ids else pairs]}

    def untokenize(self, token_weight_pairs: list[tuple]) -> list[tuple]:
        return [(pair, ("", *text.VOCABULARY)[pair[0]]) for pair in token_weight_pairs]

    def state_dict(self) -> dict:
        return {}


class ShapesClip(nn.Module, comfy.sd1_clip.ClipTokenWeightEncoder):
    """The text encoder, with ComfyUI's way of weighting words. It has no pooled output, as the model needs none."""

    dtypes = {torch.float32}
    disable_offload = True  # for newer hosts: keep it whole on its device, as it is tiny and has plain layers
    special_tokens = {"pad": text.PAD}

    def __init__(self, device=None, **kwargs) -> None:
        super().__init__()
        self.encoder = load_part("text", text.TextEncoder()).to(device)

    def encode(self, tokens: list[list[int]]) -> tuple[torch.Tensor, None]:
        device = next(self.encoder.parameters()).device
        return self.encoder(torch.tensor(tokens, device=device)), None

    def encode_token_weights(self, token_weight_pairs: dict) -> tuple:
        return super().encode_token_weights(token_weight_pairs["shapes"])

    def set_clip_options(self, options: dict) -> None:
        pass  # no layers to choose from

    def reset_clip_options(self) -> None:
        pass


class EnlargedAutoEncoder(nn.Module):
    """The autoencoder for pictures of four times its size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = load_part("autoencoder", AutoEncoder())

    def encode(self, pictures: torch.Tensor, **kwargs) -> torch.Tensor:
        if pictures.numel() == 0:  # ComfyUI crops to multiples of 8
            raise AnnealingError("The picture is smaller than 8 x 8 pixels, the least that this VAE encodes. Give a larger one.")
        return self.inner.encode(F.avg_pool2d(pictures, ENLARGE))

    def decode(self, latents: torch.Tensor, **kwargs) -> torch.Tensor:
        return F.interpolate(self.inner.decode(latents), scale_factor=ENLARGE, mode="nearest")


def _model(variant: str) -> comfy.model_patcher.ModelPatcher:
    model = comfy.model_base.BaseModel(ShapesConfig(variant), ModelType.FLOW if variant == "flow" else ModelType.EPS)
    transformer = load_part(variant, ShapesTransformer())
    if variant == "flow":
        model.diffusion_model = FlowNetwork(transformer)
    else:
        model.diffusion_model = EpsilonNetwork(transformer, model.model_sampling.sigmas)
    patcher = comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (_model, (variant,))  # for newer hosts: how to make it again on another GPU
    return patcher


def _clip() -> comfy.sd.CLIP:
    return comfy.sd.CLIP(comfy.supported_models_base.ClipTarget(ShapesTokenizer, ShapesClip))


def _vae() -> comfy.sd.VAE:
    # A VAE of ComfyUI's with the same geometry (4 channels, 8 pixels a place): it has whatever this host's version expects.
    vae = comfy.sd.VAE(comfy.taesd.taesd.TAESD(latent_channels=CHANNELS).state_dict(), dtype=torch.float32)
    vae.first_stage_model = EnlargedAutoEncoder()
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    vae.process_input = lambda image: image
    vae.process_output = lambda image: image.clamp(0.0, 1.0)
    return vae


def load_shapes(variant: str) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """MODEL, CLIP and VAE of the demo; variant: one of VARIANTS. Pictures of 128 x 128 (latents 4 x 16 x 16)."""
    if variant not in VARIANTS:
        raise AnnealingError(f"There is no Shapes variant {variant!r}: choose {' or '.join(VARIANTS)}.")
    return _model(variant), _clip(), _vae()


def enlarged(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, 32, 32] of the renderer as VAE Encode takes them: [B, 128, 128, 3]."""
    return pictures.repeat_interleave(ENLARGE, 2).repeat_interleave(ENLARGE, 3).movedim(1, -1)


def captioned_pictures(count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Pictures [count, 128, 128, 3] as VAE Encode takes them, and their captions, drawn by the demo's renderer.

    Scenes that the demo model is tested on are left out; either object may come first in the caption.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers, _ = scenes.scene_split()
    drawn = scenes.place(numbers[torch.randint(len(numbers), (count,), generator=generator)], generator)
    swapped = (torch.rand((), generator=generator) < 0.5 for _ in range(count))
    return enlarged(scenes.render(drawn)), [scenes.caption(drawn, i, swapped=bool(swap)) for i, swap in enumerate(swapped)]
