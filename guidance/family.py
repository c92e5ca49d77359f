"""Which model this is: its name for people, the scale of its family, and what users should know about a scale on this model."""

from __future__ import annotations

import re

import comfy.model_base
import comfy.model_sampling
from comfy.model_patcher import ModelPatcher

from ..models import catalogue
from ..models.errors import AnnealingError
from ..models.scale_file import SDXL as SDXL_BASE
from ..models.scale_model import ScaleInfo
from . import coordinates
from .host_types import ModelSampling

# ComfyUI's configuration classes whose names differ from those that people know. Other names are split into words.
_NAMES = {
    "SD15": "Stable Diffusion 1.5",
    "SD15_instructpix2pix": "Stable Diffusion 1.5 InstructPix2Pix",
    "SD20": "Stable Diffusion 2",
    "SD21UnclipL": "Stable Diffusion 2.1 unCLIP",
    "SD21UnclipH": "Stable Diffusion 2.1 unCLIP",
    "SD_X4Upscaler": "Stable Diffusion x4 Upscaler",
    "SDXL": "SDXL",
    "SDXLRefiner": "SDXL Refiner",
    "SDXL_instructpix2pix": "SDXL InstructPix2Pix",
    "SSD1B": "SSD-1B",
    "Segmind_Vega": "Segmind Vega",
    "KOALA_700M": "KOALA 700M",
    "KOALA_1B": "KOALA 1B",
    "SVD_img2vid": "Stable Video Diffusion",
    "SV3D_u": "Stable Video 3D",
    "SV3D_p": "Stable Video 3D",
    "Stable_Zero123": "Stable Zero123",
    "Stable_Cascade_B": "Stable Cascade, stage B",
    "Stable_Cascade_C": "Stable Cascade, stage C",
    "SD3": "Stable Diffusion 3",
    "StableAudio3": "Stable Audio 3",
    "LotusD": "Lotus",
    "AuraFlow": "AuraFlow",
    "PixArtAlpha": "PixArt Alpha",
    "PixArtSigma": "PixArt Sigma",
    "HunyuanDiT": "Hunyuan-DiT",
    "HunyuanDiT1": "Hunyuan-DiT",
    "Flux": "FLUX.1",
    "FluxInpaint": "FLUX.1 Fill",
    "FluxSchnell": "FLUX.1 schnell",
    "Flux2": "FLUX.2",
    "LTXV": "LTX-Video",
    "LTXAV": "LTX-2",
    "HunyuanVideo": "Hunyuan Video",
    "HunyuanVideoI2V": "Hunyuan Video image-to-video",
    "HunyuanVideoSkyreelsI2V": "SkyReels image-to-video",
    "HunyuanVideo15": "Hunyuan Video 1.5",
    "HunyuanVideo15_SR_Distilled": "Hunyuan Video 1.5 super-resolution",
    "HunyuanImage21": "Hunyuan Image 2.1",
    "HunyuanImage21Refiner": "Hunyuan Image 2.1 Refiner",
    "Hunyuan3Dv2": "Hunyuan3D 2",
    "Hunyuan3Dv2_1": "Hunyuan3D 2.1",
    "Hunyuan3Dv2mini": "Hunyuan3D 2 mini",
    "CosmosT2V": "Cosmos text-to-video",
    "CosmosI2V": "Cosmos image-to-video",
    "CosmosT2IPredict2": "Cosmos Predict2",
    "CosmosI2VPredict2": "Cosmos Predict2 image-to-video",
    "Lumina2": "Lumina 2",
    "ZImage": "Z-Image",
    "HiDream": "HiDream",
    "HiDreamO1": "HiDream O1",
    "Kandinsky5": "Kandinsky 5",
    "Kandinsky5Image": "Kandinsky 5 Image",
    "Omnigen2": "OmniGen 2",
    "ACEStep": "ACE-Step",
    "ACEStep15": "ACE-Step 1.5",
    "QwenImage": "Qwen-Image",
    "QwenImage21": "Qwen-Image 2.1",
    "SeedVR2": "SeedVR2",
    "CogVideoX_T2V": "CogVideoX",
    "ShapesConfig": "Shapes demo",
}

# A little above SDXL base's largest sigma, 14.6.
_MOST_NOISE_OF_SDXL = 15.0


def model_name(model_patcher: ModelPatcher) -> str:
    """What people call this model, as far as ComfyUI can distinguish models: "SDXL", "Stable Diffusion 1.5 inpainting"."""
    model, sampling = model_patcher.model, model_patcher.get_model_object("model_sampling")
    name = type(model.model_config).__name__
    if name == "SDXL" and isinstance(sampling, comfy.model_sampling.ModelSamplingContinuousEDM):
        if isinstance(sampling, comfy.model_sampling.EDM):  # first, as it is a subclass of V_PREDICTION
            return "Playground 2.5"
        if isinstance(sampling, comfy.model_sampling.V_PREDICTION):
            return "CosXL"
    words = _NAMES.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", re.sub(r"^WAN(\d)(\d)", r"Wan \1.\2", name))
    return f"{words} inpainting" if "masked_image" in getattr(model, "concat_keys", ()) else words


class NoScaleError(AnnealingError):
    """No scale belongs to the model's family."""

    __module__ = AnnealingError.__module__  # ComfyUI shows the user the type with its module


def default_scale_name(model_patcher: ModelPatcher) -> str:
    """The name of the family's own scale, as the loader lists it.

    A model configuration may name its own in `annealing_scale`, as the bundled Shapes models do. SDXL base and models made from
    it get the authors' network. NoScaleError for every other model, saying what to do.
    """
    model = model_patcher.model
    # Not getattr: ComfyUI's configurations answer every unknown name and log a warning.
    if own := vars(model.model_config).get("annealing_scale"):
        return own
    # From the patcher: a ModelSampling node may have turned an SDXL into a flow model.
    sampling = model_patcher.get_model_object("model_sampling")
    path = coordinates.path_of(sampling)
    if not isinstance(model, comfy.model_base.SDXL):
        why = "only SDXL base, the models made from it and the Shapes demo have their own"
        if isinstance(model, comfy.model_base.SDXLRefiner):
            why = "SDXL base has one, and the refiner is another network with other prompts"
    elif path != "ve":
        why = "SDXL has one for its own epsilon or v-prediction, and a ModelSampling node has made this a flow model"
    elif isinstance(sampling, comfy.model_sampling.EDM):
        why = "it has SDXL's network, but was trained again on other latents and noise levels (EDM), where SDXL's scale is wrong"
    else:
        return catalogue.OFFICIAL_SDXL.name
    raise NoScaleError(
        f"scale_model is not connected, and no annealing scale is known for this model ({model_name(model_patcher)}): {why}. "
        "Set cfg to the CFG that you use with this model: it is then guided without a trained scale. Or train one with Train "
        "Annealing Scale, once per model; or connect Load Annealing Scale with one that was made for this model."
    )


def remarks(model_patcher: ModelPatcher, info: ScaleInfo) -> list[str]:
    """What the user should know about this scale on this model, a sentence or two each; [] where all is as in training.

    Judged by what ComfyUI knows of a model. A fine-tune with the same architecture and sampling looks like its base model, and so
    do turbo and lightning models.
    """
    sampling = model_patcher.get_model_object("model_sampling")
    found = []
    if info.trained_on.startswith(SDXL_BASE) and (this := _unlike_sdxl_base(model_patcher, sampling)):
        found.append(
            f'The scale "{info.name}" was trained on SDXL base, and this model is {this}. Its strength is not tested there: '
            "compare lambdas with Lambda Sweep, or train a scale for this model."
        )
    if why := _spent_guidance(model_patcher, sampling):
        found.append(
            f"{why}: it is made for CFG 1 to 2, far less than a learned scale is trained for. Set cfg to that, or sample it with "
            "CFGGuider or KSampler."
        )
    return found


def _unlike_sdxl_base(model_patcher: ModelPatcher, sampling: ModelSampling) -> str:
    """What the model is and how it differs from SDXL base; empty where it does not."""
    apart = []
    if isinstance(sampling, comfy.model_sampling.V_PREDICTION) and not isinstance(sampling, comfy.model_sampling.EDM):
        apart.append("v-prediction")
    if _is_lcm(sampling):
        apart.append("LCM sampling")
    elif (most := float(sampling.sigma_max)) > _MOST_NOISE_OF_SDXL:
        apart.append(f"noise up to sigma {most:.0f}, where SDXL base ends at 15")
    name = model_name(model_patcher)
    if name == "SDXL" and not apart:
        return ""
    return f"{name} with {' and '.join(apart)}" if apart else name


def _spent_guidance(model_patcher: ModelPatcher, sampling: ModelSampling) -> str:
    """The beginning of a sentence about a model with its guidance distilled into it; empty for any other."""
    config = model_patcher.model.model_config
    if _is_lcm(sampling):
        return "This model is sampled as LCM, with its guidance distilled into it"
    network = getattr(config, "unet_config", None) or {}
    if network.get("guidance_embed") or re.search("Schnell|Distilled", type(config).__name__):
        return f"{model_name(model_patcher)} has its guidance distilled into it, unless it was trained for CFG again"
    return ""


def _is_lcm(sampling: ModelSampling) -> bool:
    """By the name of the class: it is defined in ComfyUI's nodes, and other packs have copies of it."""
    return any(base.__name__ == "ModelSamplingDiscreteDistilled" for base in type(sampling).__mro__)
