"""Scale networks made up for tests: no weights of anyone's, only shapes and a seed."""

from __future__ import annotations

import torch
from annealing_guidance_pack.models.scale_model import ScaleInfo
from annealing_guidance_pack.models.scale_network import NetworkConfig, ScaleNetwork

INFO = ScaleInfo(
    name="made_up",
    prediction="epsilon",
    reference_numel=65536,
    training_grid=20,
    trained_on="nothing",
    source="the tests",
    licence="Apache-2.0",
    created_with="the tests",
)


def made_up_network(info: ScaleInfo = INFO, config: NetworkConfig | None = None, seed: int = 0) -> ScaleNetwork:
    """A network with random weights, so that its scale depends on all three inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ScaleNetwork(info, config or NetworkConfig(hidden_width=16, depth=1)).eval()
