"""An SDXL UNet, shrunken, with random weights, as a ComfyUI model: what it draws means nothing, what it costs is like SDXL's."""

from __future__ import annotations

import comfy.model_patcher
import comfy.supported_models
import torch

CONTEXT, POOLED, SIZE = 2048, 1280, 32  # SIZE: height and width of its latents
UNET = comfy.supported_models.SDXL.unet_config | {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "use_spatial_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
    "legacy": False,
    "dtype": torch.float32,
}


def random_sdxl() -> comfy.model_patcher.ModelPatcher:
    """The MODEL."""
    config, cpu = comfy.supported_models.SDXL(UNET), torch.device("cpu")
    config.set_inference_dtype(torch.float32, None)
    network, generator = config.get_model({}, "").requires_grad_(False), torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(0.5)
    return comfy.model_patcher.ModelPatcher(network, cpu, cpu)


def random_prompt(seed: int) -> list:
    """A CONDITIONING of the shape of SDXL's."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, POOLED, generator=generator)
    return [[torch.randn(1, 77, CONTEXT, generator=generator), {"pooled_output": pooled}]]
