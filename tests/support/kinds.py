"""Every kind of prediction that ComfyUI has, as a closed-form model, with its noise path written from its definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import comfy.model_sampling
import torch
from closed_form import closed_form_model
from comfy.model_base import ModelType
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete


@dataclass(frozen=True)
class Kind:
    """name, models: as the page shows it, and which models are of it. make: the MODEL.

    path: what x is, of data x0 and noise n at ComfyUI's sigma:
    "ve": x0 + sigma n.  "flow": (1 - sigma) x0 + sigma n.  "cosmos": x0 + sigma n, of a flow model with s = sigma/(sigma+1).
    None: no such path; refused.

    sigma_data: the data's standard deviation, for "ve". noise_scale: the noise's, for "flow".
    model_type: the member of ComfyUI's ModelType that it stands for; None where a ModelSampling node makes it.
    """

    name: str
    path: str | None
    make: Callable[[], object]
    models: str
    model_type: str | None = None
    sigma_data: float = 1.0
    noise_scale: float = 1.0

    def __str__(self):
        return self.name


def _of_type(name: str, path: str | None, models: str, model_type: str, **settings) -> Kind:
    sigma_data, noise_scale = settings.get("sigma_data", 1.0), settings.get("noise_scale", 1.0)
    return Kind(
        name, path, lambda: closed_form_model(ModelType[model_type], settings), models, model_type, sigma_data, noise_scale
    )


def _by_node(name: str, path: str | None, models: str, sampling: str) -> Kind:
    return Kind(name, path, lambda: ModelSamplingDiscrete().patch(closed_form_model(), sampling, False)[0], models)


_KINDS = [
    _of_type("eps", "ve", "SD1.5, SDXL", "EPS"),
    _of_type("v", "ve", "SD2.1, v-prediction SDXL", "V_PREDICTION"),
    _of_type("v zsnr", "ve", "the same with zero terminal SNR", "V_PREDICTION", zsnr=True),
    _of_type("v edm", "ve", "Stable Video Diffusion", "V_PREDICTION_EDM", sigma_min=0.002, sigma_max=700.0),
    _of_type("v continuous", "ve", "Stable Audio", "V_PREDICTION_CONTINUOUS", sigma_min=0.03, sigma_max=500.0),
    _of_type("edm", "ve", "Playground 2.5, Cosmos 1", "EDM", sigma_data=0.5, sigma_min=0.002, sigma_max=80.0),
    _of_type("cascade", "ve", "Stable Cascade", "STABLE_CASCADE", shift=2.0),
    _by_node("x0", "ve", "x0 of the node ModelSamplingDiscrete", "x0"),
    _by_node("lcm", "ve", "LCM: lcm of the node ModelSamplingDiscrete", "lcm"),
    _of_type("v ddpm", "ve", "CogVideoX", "V_PREDICTION_DDPM", zsnr=True),
    _of_type("flow 1000", "flow", "SD3, Wan, Hunyuan Video: timesteps to 1000", "FLOW", shift=3.0, multiplier=1000),
    _of_type("flow 1", "flow", "AuraFlow, Z-Image, Lumina 2: timesteps to 1", "FLOW", shift=1.73, multiplier=1.0),
    _of_type("flow, noise x 8", "flow", "HiDream-O1", "FLOW", shift=3.0, noise_scale=8.0),
    _of_type("flux", "flow", "Flux, Qwen-Image, LTX-Video", "FLUX", shift=1.15),
    _of_type("flow av", "flow", "MiniMax H3: video with sound", "FLOW_AV", shift=3.0),
    _of_type("cosmos", "cosmos", "Cosmos Predict 2", "FLOW_COSMOS", sigma_min=0.002, sigma_max=80.0),
    _of_type("img to img", None, "Lotus", "IMG_TO_IMG"),
    _of_type("img to img flow", None, "FlowRVS", "IMG_TO_IMG_FLOW"),
]


def _exists(kind: Kind) -> bool:
    """Some are only on newer hosts."""
    if kind.noise_scale != 1 and not hasattr(comfy.model_sampling.ModelSamplingDiscreteFlow, "set_noise_scale"):
        return False
    return kind.model_type is None or kind.model_type in ModelType.__members__


KINDS = [kind for kind in _KINDS if _exists(kind)]


@cache
def model_of(kind: Kind):
    """The kind's MODEL, one for all tests: nothing in it changes but the counters."""
    patcher = kind.make()
    patcher.model.diffusion_model.model_sampling = patcher.get_model_object("model_sampling")
    return patcher


def is_flow(kind: Kind) -> bool:
    return kind.path in ("flow", "cosmos")


def signal(kind: Kind, sigma: torch.Tensor) -> torch.Tensor:
    """The factor of the data in x."""
    return 1 - sigma if kind.path == "flow" else torch.ones_like(sigma)


def network_level(kind: Kind, sigma: torch.Tensor) -> torch.Tensor:
    """What a scale network calls the noise level: sigma of data with unit variance, or the flow time."""
    return {"ve": sigma / kind.sigma_data, "flow": sigma, "cosmos": sigma / (1 + sigma)}[kind.path]


def network_output(kind: Kind, denoised: torch.Tensor, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The noise n that a denoised prediction implies, or the velocity n - x0. sigma: shaped to broadcast over x."""
    noise = (x - signal(kind, sigma) * denoised) / sigma
    return noise - denoised if is_flow(kind) else noise
