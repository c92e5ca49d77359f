"""An SDXL UNet with random weights as a ComfyUI model: what it draws means nothing, what it costs is SDXL's."""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

CONTEXT, POOLED = 2048, 1280
SDXL = comfy.supported_models.SDXL.unet_config | {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "use_spatial_transformer": True,
    "num_heads": -1,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "legacy": False,
}
SHRUNKEN = SDXL | {
    "model_channels": 64,
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
}


def random_sdxl(cuda: bool) -> tuple:
    """(MODEL, height and width of its latents): on a GPU SDXL's own sizes in bfloat16, else shrunken, in float32."""
    dtype = torch.bfloat16 if cuda else torch.float32
    config = comfy.supported_models.SDXL({**(SDXL if cuda else SHRUNKEN), "dtype": dtype})
    config.set_inference_dtype(dtype, None)
    device = comfy.model_management.get_torch_device()
    network = config.get_model({}, "", device=device).requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(0.5)
    model = comfy.model_patcher.ModelPatcher(network, device, comfy.model_management.unet_offload_device())
    return model, 128 if cuda else 32


def random_prompt(seed: int) -> list:
    """A CONDITIONING of the shape of SDXL's."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, POOLED, generator=generator)
    return [[torch.randn(1, 77, CONTEXT, generator=generator), {"pooled_output": pooled}]]
