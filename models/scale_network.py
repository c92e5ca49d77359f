"""The learned scale: a small MLP from (timestep, gap norm, lambda) to one guidance scale.

After "Navigating with Annealing Guidance Scale in Diffusion Space" (arXiv 2506.24108).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from .errors import AnnealingError
from .scale_model import ScaleInfo, ScaleModel

TIMESTEP_RANGE = 1000.0  # timesteps are divided by it before they are embedded
INPUTS = 3  # timestep, gap norm, lambda


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes, normalisation and bounds of a scale network; all of it travels in its file.

    hidden_width, depth: width of each hidden layer, and the number of hidden-to-hidden layers after the first.
    frequencies: an input x is embedded as [x, cos(f x) for f in frequencies].
    gap_divisor: the gap norm is divided by it before it is embedded.
    max_gap_norm: the largest gap norm that the network may see; larger ones, infinity and NaN count as this one.
    min_scale, max_scale: the scale never leaves this range.

    The defaults are those of the authors' SDXL network. Its max_gap_norm of 200 is measured: up to there its scale stays within
    0.66 to 1.55, as at ordinary norms (0.70 to 1.09 from 150 to 200). Then it falls without end: below 0.66 by norm 300, below 0
    by 1,900, and -428 at 1e6. With every input clamped its scale cannot reach 0.5 or 2.
    """

    hidden_width: int = 128
    depth: int = 3
    frequencies: tuple[float, ...] = (1.0, 2.0, 3.0)
    gap_divisor: float = 5.0
    max_gap_norm: float = 200.0
    min_scale: float = 0.5
    max_scale: float = 2.0

    @property
    def widths(self) -> list[int]:
        """Values entering the first layer, then leaving each layer in turn."""
        return [INPUTS * (1 + len(self.frequencies)), *[self.hidden_width] * (1 + self.depth), 1]

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The state dict's keys and shapes, known without building the network."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(self.widths)):
            shapes[f"layers.{layer}.weight"] = (fan_out, fan_in)
            shapes[f"layers.{layer}.bias"] = (fan_out,)
        return shapes


class ScaleNetwork(ScaleModel):
    """Embedding, MLP, bounds. It is differentiable, so training uses this very module.

    It always computes in float32, with autocast too, and moves to the device of its inputs by itself. A sample whose gap norm is
    NaN or infinite gets the scale of max_gap_norm, and affects no other sample.
    """

    frequencies: torch.Tensor
    least: torch.Tensor
    largest: torch.Tensor
    divisors: torch.Tensor

    def __init__(self, info: ScaleInfo, config: NetworkConfig | None = None):
        super().__init__(info)
        self.config = config = config or NetworkConfig()
        # A network that is loaded while ComfyUI executes (in inference mode) must still be trainable.
        with torch.inference_mode(False):
            self.layers = torch.nn.ModuleList(
                torch.nn.Linear(fan_in, fan_out, dtype=torch.float32) for fan_in, fan_out in pairwise(config.widths)
            )
            self._constant("frequencies", config.frequencies)
            # For timestep, gap norm and lambda. Beyond 0..1 the network is periodic in lambda: 2 would guide less than 1.
            self._constant("least", (0.0, 0.0, 0.0))
            self._constant("largest", (TIMESTEP_RANGE, config.max_gap_norm, 1.0))
            self._constant("divisors", (TIMESTEP_RANGE, config.gap_divisor, 1.0))

    def forward(self, timestep: torch.Tensor, gap_norm: torch.Tensor, guidance_lambda: float | torch.Tensor) -> torch.Tensor:
        """See ScaleModel.forward. The scale lies within config.min_scale .. config.max_scale."""
        config, device = self.config, timestep.device
        self._move_to(device)
        inputs = torch.broadcast_tensors(
            timestep.to(torch.float32).reshape(-1),
            gap_norm.to(device, torch.float32).reshape(-1),
            _lambda_tensor(guidance_lambda, device),
        )
        with _autocast_off(device.type):
            # All three at once, as every operation costs time on a GPU. NaN becomes the largest, as infinity does.
            inputs = torch.stack(inputs, dim=-1).nan_to_num(nan=torch.inf).clamp(self.least, self.largest) / self.divisors
            hidden = self._embed(inputs).flatten(1)
            for layer in self.layers[:-1]:
                hidden = torch.relu(layer(hidden))
            scale: torch.Tensor = 1.0 + self.layers[-1](hidden).squeeze(-1)
        return scale.clamp(config.min_scale, config.max_scale)

    @torch.no_grad()
    def largest_value(self) -> float:
        """A bound on every value between any input and the scale; infinity or NaN where there is none."""
        config = self.config
        inputs = (1.0, config.max_gap_norm / config.gap_divisor, 1.0)
        angles = max(inputs) * max(map(abs, config.frequencies), default=0.0)
        cosines = [1.0] * len(config.frequencies)
        values = torch.tensor([value for x in inputs for value in (x, *cosines)], dtype=torch.float64)
        largest = [values.max(), values.new_tensor(angles)]
        for layer in self.layers:
            weight, bias = layer.parameters()
            values = weight.double().abs() @ values + bias.double().abs()
            largest.append(values.max())
        return float(torch.stack(largest).max())

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3] -> [B, 3, 1 + len(frequencies)]: for each input x: x, and cos(f x) for each frequency f."""
        x = x.unsqueeze(-1)
        return torch.cat([x, torch.cos(x * self.frequencies)], dim=-1)

    def _constant(self, name: str, values: tuple[float, ...]) -> None:
        """A tensor that moves with the network and is not saved."""
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def _move_to(self, device: torch.device) -> None:
        if self.frequencies.device != device:
            with torch.inference_mode(False):
                self.to(device)


def _lambda_tensor(guidance_lambda: float | torch.Tensor, device: torch.device) -> torch.Tensor:
    """[1] or [B]."""
    if isinstance(guidance_lambda, torch.Tensor):
        return guidance_lambda.to(device, torch.float32).reshape(-1)
    if math.isnan(guidance_lambda):
        raise AnnealingError("guidance_lambda is NaN, not a number from 0 to 1. Set it to a number, for example 0.4.")
    return torch.full((1,), guidance_lambda, dtype=torch.float32, device=device)


def _autocast_off(device_type: str) -> contextlib.AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device_type) and _autocast_is_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _autocast_is_on(device_type: str) -> bool:
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:  # PyTorch before 2.4 cannot say it of every kind of device
        return True
