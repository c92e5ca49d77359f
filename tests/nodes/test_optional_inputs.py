"""Prompts for the API that leave optional inputs out, as those that were saved before an input came: the defaults count."""

from __future__ import annotations

import copy
import io
import itertools
import json
import urllib.request
from typing import Any

import pytest
from client import run_workflow
from PIL import Image

pytestmark = pytest.mark.server

STEPS = 2
NUMBERS = itertools.count(1)


def link(node: str, output: int = 0) -> list:
    return [node, output]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


PARTS = {
    "loader": node("ShapesLoader", variant="epsilon"),
    "positive": node("CLIPTextEncode", clip=link("loader", 1), text="a red circle left of a green cross"),
    "negative": node("CLIPTextEncode", clip=link("loader", 1), text=""),
    "latent": node("EmptyLatentImage", width=64, height=64, batch_size=2),
    "noise": node("RandomNoise", noise_seed=5),
    "sampler": node("KSamplerSelect", sampler_name="euler"),
    "sigmas": node("AnnealingPaperSigmas", model=link("loader"), steps=STEPS, denoise=1.0),
    "scale": node("AnnealingScaleLoader", scale_name="shapes_epsilon.safetensors"),
}
MODEL = {"model": link("loader")}
PROMPTS = {"positive": link("positive"), "negative": link("negative")}
GUIDANCE = {"guidance_lambda": 0.4, "renoise": "auto", "match_training_steps": True}
RUN = {"noise": link("noise"), "sampler": link("sampler"), "sigmas": link("sigmas"), "latent_image": link("latent")}
PICTURES = {"width": 64, "height": 64, "pictures_per_prompt": 1, "sampling_steps": 2, "cfg": 2.0, "sampler_name": "euler"}
PROFILE = {"training_steps": 50, "samples_per_picture": 2, "seed": 1, "training_scheduler": "simple", "knots": 3}


def decoded(latents: list) -> dict[str, dict]:
    return {
        "decoded": node("VAEDecode", samples=latents, vae=link("loader", 2)),
        "shown": node("PreviewImage", images=link("decoded")),
    }


def guided() -> dict[str, dict]:
    return {
        "tested": node("AnnealingGuider", **MODEL, **PROMPTS, **GUIDANCE),
        "sampled": node("SamplerCustomAdvanced", **RUN, guider=link("tested")),
    }


def by_guider() -> dict[str, dict]:
    return guided() | decoded(link("sampled"))


def by_patch() -> dict[str, dict]:
    sampling = {"seed": 5, "steps": STEPS, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "tested": node("AnnealingModelPatch", **MODEL, **GUIDANCE),
        "sampled": node("KSampler", model=link("tested"), **PROMPTS, **sampling, latent_image=link("latent")),
        **decoded(link("sampled")),
    }


def plotted() -> dict[str, dict]:
    run = guided()
    return {
        "guider": run["tested"],
        "sampled": node("SamplerCustomAdvanced", **RUN, guider=link("guider")),
        "tested": node("AnnealingScalePlot", trace=link("guider", 1), samples=link("sampled")),
        "shown": node("PreviewImage", images=link("tested")),
    }


def mapped() -> dict[str, dict]:
    return {
        "tested": node("AnnealingScaleMap", scale_model=link("scale"), guidance_lambda=0.4),
        "shown": node("PreviewImage", images=link("tested")),
    }


def swept() -> dict[str, dict]:
    values = {"lambdas": "0, 0.8", "cfg_scales": "3"}
    return {
        "tested": node("AnnealingSweep", **RUN, **MODEL, **PROMPTS, vae=link("loader", 2), **values),
        "shown": node("PreviewImage", images=link("tested")),
    }


def profiled() -> dict[str, dict]:
    more = {"profile_name": f"optional_{next(NUMBERS)}", "perturb_captions": True, "batch_size": 4}
    return {
        "tested": node("AnnealingProfiler", **MODEL, **PROMPTS, **PROFILE, **PICTURES, **more),
        "shown": node("PreviewAny", source=link("tested")),
    }


WORKFLOWS = {
    "AnnealingGuider": by_guider,
    "AnnealingModelPatch": by_patch,
    "AnnealingScalePlot": plotted,
    "AnnealingScaleMap": mapped,
    "AnnealingSweep": swept,
    "AnnealingProfiler": profiled,
}
# It leaves a scale that every later workflow of this server would find; tests/nodes/test_train_once.py leaves its input out.
ELSEWHERE = {"AnnealingTrainScale"}


@pytest.fixture(scope="module")
def offered(server) -> dict[str, Any]:
    """Our nodes as the server offers them."""
    with urllib.request.urlopen(f"{server.address}/object_info", timeout=60) as answer:
        return {name: info for name, info in json.load(answer).items() if info["python_module"].startswith("custom_nodes.")}


def optional(info: dict[str, Any]) -> dict[str, list]:
    return info["input"].get("optional", {})


def pictures(server, workflow: dict[str, dict]) -> list[bytes]:
    """What the workflow shows. It is run with those of PARTS that it names."""
    needed = {**{name: part for name, part in PARTS.items() if name in json.dumps(workflow)}, **workflow}
    saved = run_workflow(server.address, needed)
    return [Image.open(io.BytesIO(file)).tobytes() for files in saved.values() for file in files]


def test_every_node_with_optional_inputs_has_a_workflow_here_without_them(offered):
    assert {name for name, info in offered.items() if optional(info)} == set(WORKFLOWS) | ELSEWHERE
    for name, workflow in WORKFLOWS.items():
        given = workflow()["tested"]["inputs"].keys()
        assert workflow()["tested"]["class_type"] == name
        assert given == offered[name]["input"]["required"].keys(), name


@pytest.mark.parametrize("name", WORKFLOWS)
def test_left_out_they_count_as_their_defaults(server, offered, name):
    left_out = WORKFLOWS[name]()
    defaults = {key: spec[1]["default"] for key, spec in optional(offered[name]).items() if "default" in spec[1]}
    given = copy.deepcopy(left_out)
    if "scale_model" in optional(offered[name]):
        defaults["scale_model"] = link("scale")  # the demo model's own
    given["tested"]["inputs"] |= defaults
    first = pictures(server, left_out)
    assert first == pictures(server, given)
    assert bool(first) is (name != "AnnealingProfiler")  # which shows words alone
