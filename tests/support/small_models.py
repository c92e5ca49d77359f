"""ComfyUI's own model classes, shrunk to run in milliseconds and filled with random weights: for what needs a real network.

Their predictions mean nothing, but everything that patches a network finds its blocks, attentions and conditionings there.
"""

from __future__ import annotations

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.flux.model import FluxParams

CPU = torch.device("cpu")
TOKENS = 5
CONTEXT = 24  # features per token of SD15 and SDXL
POOLED = 32
HEADS = 2
_SDXL_SIZES = 6 * 256  # SDXL's pooled conditioning is followed by six embedded numbers: sizes and crops

_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 4],  # FreeU looks for the channels of the last two
    "use_spatial_transformer": True,
    "context_dim": CONTEXT,
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "legacy": False,
    "dtype": torch.float32,
}
# What newer hosts ask of a Flux model besides.
_NEWER_FLUX = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}
# The configuration class and what its network is built from. SD3's hidden width is 64 per block.
_MODELS = {
    "SD15": (comfy.supported_models.SD15, _UNET),
    "SD15 inpaint": (comfy.supported_models.SD15, {**_UNET, "in_channels": 9}),
    "SDXL": (
        comfy.supported_models.SDXL,
        {
            **_UNET,
            "num_classes": "sequential",
            "adm_in_channels": POOLED + _SDXL_SIZES,
            "use_linear_in_transformer": True,
        },
    ),
    "SD3": (
        comfy.supported_models.SD3,
        {
            "input_size": None,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "depth": 2,
            "pos_embed_max_size": 16,
            "num_patches": 256,
            "adm_in_channels": POOLED,
            "context_size": CONTEXT,
            "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": CONTEXT, "out_features": 128}},
            "dtype": torch.float32,
        },
    ),
    "Flux": (
        comfy.supported_models.FluxSchnell,
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": POOLED,
            "context_in_dim": CONTEXT,
            "hidden_size": 48,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 1,
            "axes_dim": [8, 8, 8],
            "theta": 10_000,
            "patch_size": 2,
            "qkv_bias": True,
            "guidance_embed": False,
            "dtype": torch.float32,
            **_NEWER_FLUX,
        },
    ),
    "Qwen-Image": (  # its latents have a frame: [B, 16, 1, H, W]
        comfy.supported_models.QwenImage,
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 1,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "joint_attention_dim": CONTEXT,
            "axes_dims_rope": (8, 8, 8),
            "dtype": torch.float32,
        },
    ),
}
NAMES = tuple(_MODELS)


def small_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of ComfyUI's own class with random weights, the same for the same seed; name: one of NAMES.

    dtype: of the weights; others than float32 are cast while computing, as ComfyUI does with 8-bit ones.
    Latents of 4 channels (SD3, Flux, Qwen-Image: 16) and any even size from 8 x 8 (SD15 and SDXL: multiples of 4) up to 32 x 32.
    """
    config_class, network = _MODELS[name]
    config = config_class(network)
    config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
    if name.startswith("SD") and name != "SD3":  # fewer heads than the real ones, whose widths divide by 8 heads or by 64
        config.unet_config.update(num_heads=HEADS, num_head_channels=-1)
    model = config.get_model({}, "", device=CPU)
    _randomise(model.diffusion_model, seed)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def small_conditioning(seed: int, tokens: int = TOKENS, **options) -> list:
    """A random CONDITIONING that fits every small model. Prompts of different seeds differ as prompts do."""
    generator = torch.Generator().manual_seed(1000 + seed)
    tokens = torch.randn(1, tokens, CONTEXT, generator=generator)
    return [[tokens, {"pooled_output": torch.randn(1, POOLED, generator=generator), **options}]]


def small_latent(name: str, batch: int = 1, size: int = 16) -> torch.Tensor:
    """An empty latent for the model, [batch, C, size, size]."""
    frames = [1] if name == "Qwen-Image" else []
    return torch.zeros(batch, 4 if name.startswith("SD") and name != "SD3" else 16, *frames, size, size)


class _SmallClip(comfy.sd1_clip.SD1ClipModel):
    """SD 1.5's text encoder, shrunk; its pooled embedding padded to what the small models take."""

    def encode_token_weights(self, token_weight_pairs):
        sequence, pooled, *rest = super().encode_token_weights(token_weight_pairs)
        return sequence, torch.nn.functional.pad(pooled, (0, max(POOLED - pooled.shape[-1], 0))), *rest


def small_clip(width: int = CONTEXT, seed: int = 0) -> comfy.sd.CLIP:
    """A CLIP with SD 1.5's tokenizer and random weights; with the default width it fits every small model."""
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 49408}
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, _SmallClip)
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": sizes, "dtype": torch.float32})
    generator = torch.Generator().manual_seed(seed)
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    return clip


def small_controlnet(seed: int = 0) -> comfy.controlnet.ControlNet:
    """A CONTROL_NET with random weights for the small SD15."""
    network = {key: value for key, value in _UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    control = comfy.cldm.cldm.ControlNet(**network, hint_channels=3, num_heads=HEADS, device=CPU)
    _randomise(control, seed)
    return comfy.controlnet.ControlNet(control, load_device=CPU)


@torch.no_grad()
def _randomise(network: torch.nn.Module, seed: int) -> None:
    """Weights that keep a signal's size: ComfyUI leaves them uninitialised, and zero weights would hide what they meet."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    for buffer in network.buffers():
        buffer.copy_(0.02 * torch.randn(buffer.shape, generator=generator))
    network.requires_grad_(False)
