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


def checkpoint(**changes):
    """The authors' layout with made-up weights; `changes` replace settings of the network."""
    sizes = {
        **{"type": "scalar_mlp", "noise_metric": "norm", "hidden_size": 16, "n_layers": 1, "output_size": 1},
        **{"t_embed_dim": 4, "delta_embed_dim": 4, "lambda_embed_dim": 4, "w_scale": 1, "w_bias": 1},
        **{"t_embed_normalization": 1000, "delta_embed_normalization": 5.0},
    }
    diffusion = {"model_id": "stabilityai/stable-diffusion-xl-base-1.0", "num_timesteps": 50}
    tensors = {
        f"combined_head.{2 * int(key.split('.')[1])}.{key.split('.')[2]}": value
        for key, value in made_up_network().state_dict().items()
    }
    return {
        "step": 1,
        "config": {"diffusion": diffusion, "guidance_scale_model": sizes | changes},
        "guidance_scale_model": tensors,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(4)}}},
    }
