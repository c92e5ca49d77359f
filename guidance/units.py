"""Between a ComfyUI model's coordinates and a scale network's: kind of prediction, noise level, timestep, gap.

ComfyUI's samplers know a model only through its denoised prediction D(x, sigma). A network knows either the noise
prediction of an epsilon model or the velocity of a flow model. What is converted, and what is refused:

  EPS, V_PREDICTION, EDM, X0, LCM   "epsilon": all sampled in the form x = x0 + sigma noise, where eps = (x - D)/sigma
  V_PREDICTION_DDPM (newer hosts)   whatever the model itself predicts. With sigma_data other than 1 (EDM) the noise
                                    level is sigma/sigma_data.
  CONST (flow)                      "velocity": x = (1-s) x0 + s noise, v = (x - D)/s, sigma = s.
  COSMOS_RFLOW                      "velocity", though sampled like EPS: s = sigma/(sigma+1), v = (x (1-s) - D)/s.
  IMG_TO_IMG, anything unknown      refused: no noise path on which null renoising is defined.

An epsilon network with a flow model, or the reverse, is refused too. The gap itself could be converted, but the
network's inputs would leave what it was trained on: an epsilon network ends at sigma 14.6 (s = 0.94), where a flow run
has yet to begin.
"""

from __future__ import annotations

import comfy.model_sampling
import torch

from ..models import schedule
from ..models.errors import AnnealingError
from ..models.scale_model import Prediction, ScaleInfo
from .host_types import ModelSampling


def _that_exist(*names: str) -> tuple[type, ...]:
    """Of ComfyUI's kinds of prediction, those that this host has."""
    return tuple(getattr(comfy.model_sampling, name) for name in names if hasattr(comfy.model_sampling, name))


# Kinds without a noise path. They inherit from EPS and CONST, so they are looked up first.
_PATHLESS = _that_exist("IMG_TO_IMG", "IMG_TO_IMG_FLOW")
_VE_FORM = _that_exist("EPS", "V_PREDICTION_DDPM")
_FLOW = _that_exist("CONST", "COSMOS_RFLOW")


def prediction_kind(model_sampling: ModelSampling) -> Prediction:
    """Which of the two the model is sampled as; AnnealingError for neither."""
    if not isinstance(model_sampling, _PATHLESS):
        if isinstance(model_sampling, _VE_FORM):
            return "epsilon"
        if isinstance(model_sampling, _FLOW):
            return "velocity"
    bases = " + ".join(base.__name__ for base in type(model_sampling).__bases__)
    raise AnnealingError(
        f"Annealing guidance cannot guide this model: its sampling ({bases}) follows neither the noise path of epsilon and "
        "v-prediction models nor that of flow models. Use ComfyUI's own CFGGuider with it."
    )


def require_match(info: ScaleInfo, model_sampling: ModelSampling) -> None:
    """AnnealingError where the scale was made for the other kind of prediction. A fixed rule fits both."""
    kind = prediction_kind(model_sampling)
    if info.prediction not in (None, kind):
        names = {"epsilon": "epsilon (noise or v-prediction)", "velocity": "flow (velocity)"}
        raise AnnealingError(
            f'The scale model "{info.name}" was made for {names[info.prediction]} models, but this model is of the kind '
            f"{names[kind]}, whose noise levels and gaps it has never seen. Load a scale made for {names[kind]} models, "
            "train one, or use Fixed Scale."
        )


def noise_level(model_sampling: ModelSampling, sigma: torch.Tensor) -> torch.Tensor:
    """The network's noise level of ComfyUI's sigma, same shape, float32.

    epsilon: the VE sigma of data with unit variance, 0..inf. velocity: s, 0..1.
    """
    sigma = sigma.to(torch.float32)
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return sigma
    if isinstance(model_sampling, comfy.model_sampling.COSMOS_RFLOW):
        return sigma / (sigma + 1.0)
    return sigma / model_sampling.sigma_data


def sigma_of_level(model_sampling: ModelSampling, level: torch.Tensor) -> torch.Tensor:
    """ComfyUI's sigma of a noise level, same shape, float32: the inverse of noise_level."""
    if isinstance(model_sampling, comfy.model_sampling.CONST):
        return level.to(torch.float32)
    if isinstance(model_sampling, comfy.model_sampling.COSMOS_RFLOW):
        # s = 1 would be an infinite sigma; such models begin at their own largest one.
        return (level / (1.0 - level)).clamp(max=float(model_sampling.sigma_max)).to(torch.float32)
    return (level * model_sampling.sigma_data).to(torch.float32)


def network_timestep(kind: Prediction, level: torch.Tensor) -> torch.Tensor:
    """The timestep that the network was trained with at this noise level: 0..999 (epsilon), 0..1000 (velocity)."""
    return schedule.timestep_of_sigma(level) if kind == "epsilon" else 1000.0 * level


def gap_norm(
    model_sampling: ModelSampling,
    cond: torch.Tensor,
    uncond: torch.Tensor,
    sigma: torch.Tensor,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """L2 norm of the gap per sample in the network's units: [B], float32.

    cond, uncond: denoised predictions [B, ...] of any rank; sigma: [B], > 0; weight: what each value's squared gap is
    multiplied by, [B or 1, N].
    epsilon: eps_c - eps_u = (D_u - D_c)/sigma. velocity: v_c - v_u = (D_u - D_c)/s. The sign does not matter here.
    """
    # In float32 whatever comes in: a half precision sum of squares overflows from a norm of 256.
    difference = (cond.to(torch.float32) - uncond.to(torch.float32)).flatten(1)
    is_flow = prediction_kind(model_sampling) == "velocity"
    denominator = noise_level(model_sampling, sigma) if is_flow else sigma.to(torch.float32)
    squares = difference.square() if weight is None else difference.square() * weight
    # Not by vector_norm, which adds up one by one on the CPU: 1% off for a video's ten million values.
    return squares.sum(dim=1).sqrt() / denominator


def norm_at_reference_size(norm: torch.Tensor, numel: int, info: ScaleInfo) -> torch.Tensor:
    """The norm that a latent of the training size would have: a norm grows with the square root of the number of values."""
    if info.reference_numel is None:
        return norm
    return norm * (info.reference_numel / numel) ** 0.5
