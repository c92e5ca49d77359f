"""Two guiders with the same settings in one graph: ComfyUI must not give both the same guider out of its cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from client import run_workflow

pytestmark = pytest.mark.server


def test_each_has_its_own_trace(server):
    def link(node, slot=0):
        return [node, slot]

    guider = {
        "model": link("loader"), "positive": link("prompt"), "negative": link("prompt"),
        "guidance_lambda": 0.35, "renoise": "auto", "match_training_steps": True,
    }  # fmt: skip
    workflow = {
        "loader": {"class_type": "ShapesLoader", "inputs": {"variant": "epsilon"}},
        "prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": link("loader", 1), "text": "a red circle"}},
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
        "sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "first": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }
    for name, steps, latent in (("a", 3, "first"), ("b", 5, "sampled_a")):  # b is sampled after a, from its latent
        workflow |= {
            f"guider_{name}": {"class_type": "AnnealingGuider", "inputs": guider},
            f"sigmas_{name}": {
                "class_type": "AnnealingPaperSigmas",
                "inputs": {"model": link("loader"), "steps": steps, "denoise": 1},
            },
            f"sampled_{name}": {
                "class_type": "SamplerCustomAdvanced",
                "inputs": {"noise": link("noise"), "guider": link(f"guider_{name}"), "sampler": link("sampler"),
                           "sigmas": link(f"sigmas_{name}"), "latent_image": link(latent)},
            },
        }  # fmt: skip
    for name in ("a", "b"):  # both plots wait for the second sampling
        plot = {"trace": link(f"guider_{name}", 1), "samples": link("sampled_b"), "csv_prefix": f"alike_{name}"}
        workflow[f"plot_{name}"] = {"class_type": "AnnealingScalePlot", "inputs": plot}
        workflow[f"shown_{name}"] = {"class_type": "PreviewImage", "inputs": {"images": link(f"plot_{name}")}}
    run_workflow(server.address, workflow)

    def calls(name):
        (table,) = (Path(server.base) / "output").glob(f"alike_{name}_*.csv")
        return len(table.read_text(encoding="utf-8").splitlines()) - 1

    assert (calls("a"), calls("b")) == (3, 5)
