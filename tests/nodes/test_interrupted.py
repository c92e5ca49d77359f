"""Cancel in the middle of a run at a booted ComfyUI, and the same prompt again: the picture and the numbers of a whole run."""

from __future__ import annotations

import csv
import urllib.request
from typing import Any

import pytest
import safetensors.torch
import torch
from client import WorkflowError, run_workflow

pytestmark = pytest.mark.server

STEPS = 60  # enough for the interrupt to arrive on the way


def link(node: str, output: int = 0) -> list:
    return [node, output]


def workflow(way: str, name: str, guidance_lambda: float = 0.4) -> dict[str, dict[str, Any]]:
    """Two samples by the guider or by the patch, their latent and the table of their scales saved under the name.

    dpmpp_2m remembers its last step, and so does the guidance.
    """
    conds = {"positive": link("positive"), "negative": link("negative")}
    guidance = {"model": link("loader"), "guidance_lambda": guidance_lambda, "renoise": "auto", "match_training_steps": True}
    nodes = {
        "loader": ("ShapesLoader", {"variant": "epsilon"}),
        "positive": ("CLIPTextEncode", {"clip": link("loader", 1), "text": "a red circle left of a green cross"}),
        "negative": ("CLIPTextEncode", {"clip": link("loader", 1), "text": ""}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 2}),
        "plot": ("AnnealingScalePlot", {"trace": link("guided", 1), "samples": link("sampled"), "csv_prefix": name}),
        "shown": ("PreviewImage", {"images": link("plot")}),
        "saved": ("SaveLatent", {"samples": link("sampled"), "filename_prefix": name}),
    }
    if way == "guider":
        parts = {name: link(name) for name in ("noise", "guider", "sampler", "sigmas")} | {"guider": link("guided")}
        nodes |= {
            "noise": ("RandomNoise", {"noise_seed": 5}),
            "sampler": ("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
            "sigmas": ("BasicScheduler", {"model": link("loader"), "scheduler": "karras", "steps": STEPS, "denoise": 1.0}),
            "guided": ("AnnealingGuider", guidance | conds),
            "sampled": ("SamplerCustomAdvanced", {**parts, "latent_image": link("latent")}),
        }
    else:
        sampling = {"seed": 5, "steps": STEPS, "cfg": 8.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}
        nodes |= {
            "guided": ("AnnealingModelPatch", guidance),
            "sampled": ("KSampler", {**sampling, **conds, "model": link("guided"), "latent_image": link("latent")}),
        }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def interrupt(server) -> None:
    """What the Cancel button sends."""
    request = urllib.request.Request(f"{server.address}/interrupt", data=b"{}", headers={"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()


def results(server, name: str) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """The latent and the table that a run saved under the name."""
    (latent,) = (server.base / "output").glob(f"{name}_*.latent")
    (table,) = (server.base / "output").glob(f"{name}_*.csv")
    with table.open(encoding="utf-8", newline="") as file:
        return safetensors.torch.load_file(latent)["latent_tensor"], list(csv.DictReader(file))


@pytest.mark.parametrize("way", ["guider", "patch"])
def test_an_interrupted_prompt_run_again_gives_what_a_whole_run_gives(server, way):
    cancelled, again, fresh = (f"{way}_{name}" for name in ("cancelled", "again", "fresh"))
    steps = []

    def cancel(node, done, total):
        steps.append((node, done))
        if len(steps) == 1:
            interrupt(server)

    with pytest.raises(WorkflowError, match="interrupted"):
        run_workflow(server.address, workflow(way, cancelled), cancel)
    assert steps[0][0] == "sampled" and steps[-1][1] < STEPS
    assert not list((server.base / "output").glob(f"{cancelled}*"))
    run_workflow(server.address, workflow(way, again))  # with the guider or the patch that was interrupted, from the cache
    run_workflow(server.address, workflow(way, fresh, 0.4 + 1e-9))  # as good as the same, and nothing of it is in the cache
    (latent, table), (whole_latent, whole_table) = results(server, again), results(server, fresh)
    assert len(table) == len(whole_table) == 2 * STEPS
    torch.testing.assert_close(latent, whole_latent, rtol=0, atol=1e-4)
    for row, whole in zip(table, whole_table, strict=True):
        assert row.keys() == whole.keys()
        for column in row:
            assert float(row[column]) == pytest.approx(float(whole[column]), rel=1e-3, abs=1e-4), column
