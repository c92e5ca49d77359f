"""Between a ComfyUI model's coordinates and a scale network's: noise path, noise-to-signal ratio, gap.

ComfyUI's samplers see a model only as its denoised prediction D(x, sigma). A scale network sees either the noise prediction of an
epsilon model or the velocity of a flow model. What is converted, and what is refused:

  EPS, V_PREDICTION, EDM, X0, LCM   path "ve": x = x0 + sigma noise, where eps = (x - D)/sigma. With sigma_data other than 1
  V_PREDICTION_DDPM (newer hosts)   (EDM) nsr = sigma/sigma_data. Whatever the model itself predicts.
  CONST                             path "flow": x = (1-s) x0 + s noise, v = (x - D)/s, sigma = s, nsr = s/(1-s).
  COSMOS_RFLOW                      path "flow" too, but ComfyUI keeps x/(1-s): sigma = nsr, v = (x (1-s) - D)/s.
  IMG_TO_IMG, anything unknown      refused: no noise path on which null renoising is defined.

An epsilon network with a flow model, or the reverse, is refused too. The gap could be converted, but the network would see noise
levels outside its training: an epsilon network ends at sigma 14.6 (s = 0.94), and a flow run begins above that.
"""

from __future__ import annotations

import comfy.model_sampling
import torch

from ..models import schedule
from ..models.errors import AnnealingError
from ..models.scale_model import Path, ScaleInfo
from .host_types import ModelSampling


def _that_exist(*names: str) -> tuple[type, ...]:
    """Of ComfyUI's kinds of prediction, those that this host has."""
    return tuple(getattr(comfy.model_sampling, name) for name in names if hasattr(comfy.model_sampling, name))


# Kinds without a noise path. They inherit from EPS and CONST, so they are looked up first.
_PATHLESS = _that_exist("IMG_TO_IMG", "IMG_TO_IMG_FLOW")
_VE = _that_exist("EPS", "V_PREDICTION_DDPM")
_FLOW = _that_exist("CONST", "COSMOS_RFLOW")


def path_of(model_sampling: ModelSampling) -> Path:
    """The noise path that the model is sampled on; AnnealingError for a model without one."""
    if not isinstance(model_sampling, _PATHLESS):
        if isinstance(model_sampling, _VE):
            return "ve"
        if isinstance(model_sampling, _FLOW):
            return "flow"
    bases = " + ".join(base.__name__ for base in type(model_sampling).__bases__)
    raise AnnealingError(
        f"Annealing guidance cannot guide this model: its sampling ({bases}) follows neither the noise path of epsilon and "
        "v-prediction models nor that of flow models. Use ComfyUI's own CFGGuider with it."
    )


def require_match(info: ScaleInfo, model_sampling: ModelSampling) -> None:
    """AnnealingError where the scale was made for the other noise path. A fixed rule fits both."""
    path = path_of(model_sampling)
    if info.path not in (None, path):
        names = {"ve": "epsilon (noise or v-prediction)", "flow": "flow (velocity)"}
        raise AnnealingError(
            f'The scale model "{info.name}" was made for {names[info.path]} models, but this model is of the kind '
            f"{names[path]}, whose noise levels and gaps it has never seen. Load a scale made for {names[path]} models, "
            "train one, or use Fixed Scale."
        )


def keeps_signal_scaled(model_sampling: ModelSampling) -> bool:
    """Whether ComfyUI's x is (1-s) x0 + s noise, and not x0 + sigma noise."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def nsr_of_sigma(model_sampling: ModelSampling, sigma: torch.Tensor) -> torch.Tensor:
    """The noise-to-signal ratio at ComfyUI's sigma, same shape, float32 or float64, 0 .. LARGEST_NSR."""
    sigma = sigma if sigma.dtype == torch.float64 else sigma.to(torch.float32)
    if keeps_signal_scaled(model_sampling):
        return schedule.nsr_of_share(sigma)
    return sigma if path_of(model_sampling) == "flow" else sigma / model_sampling.sigma_data


def sigma_of_nsr(model_sampling: ModelSampling, nsr: torch.Tensor) -> torch.Tensor:
    """ComfyUI's sigma of a noise-to-signal ratio, same shape, float32: the inverse of nsr_of_sigma."""
    if keeps_signal_scaled(model_sampling):
        return schedule.share_of_nsr(nsr).to(torch.float32)
    if path_of(model_sampling) == "flow":
        # Noise alone would be an infinite sigma; such models begin at their own largest one.
        return nsr.clamp(max=float(model_sampling.sigma_max)).to(torch.float32)
    return (nsr * model_sampling.sigma_data).to(torch.float32)


def gap_divisor(model_sampling: ModelSampling, sigma: torch.Tensor) -> torch.Tensor:
    """What D_u - D_c is divided by to become the network's gap, shaped as sigma: sigma itself (noise), or s (velocity)."""
    if path_of(model_sampling) == "flow":
        return schedule.share_of_nsr(nsr_of_sigma(model_sampling, sigma))
    return sigma.to(torch.float32)


def gap_norm(model_sampling: ModelSampling, cond: torch.Tensor, uncond: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """L2 norm of the gap per sample in the network's units: [B], float32.

    cond, uncond: denoised predictions [B, ...] of any rank; sigma: [B], > 0.
    """
    # Always in float32: in half precision a sum of squares overflows from a norm of 256.
    difference = (cond.to(torch.float32) - uncond.to(torch.float32)).flatten(1)
    # Not vector_norm: on the CPU it adds up one by one, which is 1% off for a video's ten million values.
    return difference.square().sum(dim=1).sqrt() / gap_divisor(model_sampling, sigma)
