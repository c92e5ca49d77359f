"""What reaches a node through a link, a list or the API meets the rule of the node's own input, in a sentence."""

from __future__ import annotations

import inspect
import json
import math
import urllib.request

import comfy.samplers
import numpy as np
import pytest
import torch
from annealing_guidance_pack.guidance.trace import AnnealingTrace
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.nodes import NODES
from annealing_guidance_pack.nodes.guider import AnnealingGuider
from annealing_guidance_pack.nodes.sampling import AnnealingPaperSigmas
from annealing_guidance_pack.nodes.scale import AnnealingFixedScale
from annealing_guidance_pack.nodes.training import AnnealingProfiler
from annealing_guidance_pack.shapes.loader import load_shapes
from annealing_guidance_pack.training.profile import Profile
from client import WorkflowError, run_workflow
from closed_form import SmoothScale, closed_form_model, conditioning
from comfy_extras.nodes_custom_sampler import RandomNoise

MEANS = torch.zeros(1, 4, 8, 8)
THINGS = ["x", "", 1, 0.5, True, {}, object(), b"x", torch.zeros(2, 2)]  # none of them is what any type of socket carries


def valid() -> dict:
    """A value of each type of socket."""
    _, clip, vae = load_shapes("epsilon")
    return {
        "MODEL": closed_form_model(), "CLIP": clip, "VAE": vae, "CONDITIONING": conditioning(MEANS, 0.5),
        "LATENT": {"samples": MEANS}, "SIGMAS": torch.tensor([1.0, 0.0]), "NOISE": RandomNoise.execute(1).args[0],
        "SAMPLER": comfy.samplers.sampler_object("euler"), "ANNEALING_SCALE": SmoothScale("epsilon"),
        "ANNEALING_TRACE": AnnealingTrace(), "ANNEALING_PROFILE": Profile("epsilon", 256, None, None),
    }  # fmt: skip


@pytest.fixture(scope="module")
def values() -> dict:
    return valid()


def wrong_for(entry) -> list:
    kind = str(entry.io_type)
    wrong = [["x"], object(), b"x", torch.zeros(2), np.zeros(2)] + ([] if entry.optional else [None])
    if kind in ("FLOAT", "INT"):
        wrong += [math.nan, math.inf, -math.inf, entry.min - 1, entry.max + 1 if entry.max < 2**62 else 2**63, True, False, "0.4"]
        return wrong + ([entry.min + 0.5] if kind == "INT" else [])
    if kind == "BOOLEAN":
        return [*wrong, "false", "", 2, -1, 0.5, math.nan]
    if kind == "STRING":
        return [*wrong, 5, 0.4, True]
    if kind == "COMBO":
        return [*wrong, "no such thing", "", 0, 5.0, True]
    return THINGS + ([] if entry.optional else [None])


def cases() -> list:
    """Every input of every node, but for the names of files that a loader judges itself."""
    return [
        pytest.param(node, entry, id=f"{node.__name__}.{entry.id}")
        for node in NODES
        for entry in node.define_schema().inputs
        if entry.id not in inspect.signature(node.validate_inputs).parameters
    ]


def test_only_the_loaders_judge_their_names_themselves():
    every = {(node.__name__, entry.id) for node in NODES for entry in node.define_schema().inputs}
    judged_here = {tuple(case.id.split(".")) for case in cases()}
    assert every - judged_here == {("AnnealingScaleLoader", "scale_name"), ("AnnealingProfileLoader", "profile_name")}


@pytest.mark.parametrize("node, entry", cases())
def test_every_input_of_every_node_refuses_what_its_rule_forbids(node, entry, values):
    schema = node.define_schema()
    inputs = {
        other.id: values[str(other.io_type)] if str(other.io_type) in values else
        other.options[0] if str(other.io_type) == "COMBO" else other.default
        for other in schema.inputs
    }  # fmt: skip
    for wrong in wrong_for(entry):
        given = {**inputs, entry.id: wrong}
        if schema.is_input_list:
            given = {name: [value] for name, value in given.items()}
        with pytest.raises(AnnealingError) as caught:
            node.execute(**given)
        sentence = str(caught.value)
        assert sentence.startswith(f"{entry.id} is "), wrong
        assert any(word in sentence for word in ("Set it to", "Choose one of", "Connect ")), wrong
        assert len(sentence) < 3000 and "Error" not in sentence


@pytest.mark.parametrize("name", ["scale_name", "profile_name"])
@pytest.mark.parametrize("wrong", [None, 5, 0.5, True, ["x"], object(), "no such thing", "../x", torch.zeros(2)])
def test_names_of_files_are_judged_by_their_own_nodes(name, wrong):
    (node,) = [node for node in NODES if [entry.id for entry in node.define_schema().inputs] == [name]]
    with pytest.raises(AnnealingError, match="There is no"):
        node.execute(wrong)


def test_numbers_at_the_ends_of_their_range_are_taken():
    for value in (0.0, 1, np.float32(0.5), np.float64(1.0)):
        guider = AnnealingGuider.execute(closed_form_model(), conditioning(MEANS, 0.5), conditioning(MEANS, 0.9), value, "auto",
                                         True, SmoothScale("epsilon")).args[0]  # fmt: skip
        assert guider.guidance.guidance_lambda == float(value)


def test_whole_numbers_are_taken_from_nodes_that_compute():
    expected = AnnealingPaperSigmas.execute(closed_form_model(), 10, 1.0).args[0]
    for steps in (10.0, np.int64(10), np.float32(10)):
        assert torch.equal(AnnealingPaperSigmas.execute(closed_form_model(), steps, 1.0).args[0], expected)


@pytest.mark.parametrize("given, expected", [(True, True), (1, True), (0, False), (False, False)])
def test_nodes_that_compute_may_give_0_and_1_for_false_and_true(given, expected):
    guider = AnnealingGuider.execute(closed_form_model(), conditioning(MEANS, 0.5), conditioning(MEANS, 0.9), 0.4, "auto",
                                     given, SmoothScale("epsilon")).args[0]  # fmt: skip
    assert guider.guidance.match_training_steps is expected


def test_nothing_for_an_optional_input_is_as_if_it_were_unconnected():
    guider = AnnealingGuider.execute(closed_form_model(), conditioning(MEANS, 0.5), conditioning(MEANS, 0.9), 0.4, "auto",
                                     True, SmoothScale("epsilon"), None).args[0]  # fmt: skip
    assert guider.guidance.guidance_lambda == 0.4


def test_rules_are_told_with_their_numbers_and_choices():
    with pytest.raises(AnnealingError, match=r"^scale is 11\.0\. Set it to a number from 0 to 10\.$"):
        AnnealingFixedScale.execute("constant", 11.0, 0.1, 0.0, 1.0)
    with pytest.raises(AnnealingError, match=r'^rule is "step"\. Choose one of: constant, linear, cosine, interval\.$'):
        AnnealingFixedScale.execute("step", 1.0, 0.1, 0.0, 1.0)
    with pytest.raises(AnnealingError, match=r"^steps is 2\.5\. Set it to a whole number from 1 to 1000\.$"):
        AnnealingPaperSigmas.execute(closed_form_model(), 2.5, 1.0)


# ---- lists


def profiler_inputs(values, **changes):
    inputs = {
        entry.id: [values.get(str(entry.io_type), getattr(entry, "default", None))]
        for entry in AnnealingProfiler.define_schema().inputs
    }
    return {**inputs, **changes}


def test_an_empty_list_is_told(values):
    with pytest.raises(AnnealingError, match="^seed is an empty list"):
        AnnealingProfiler.execute(**profiler_inputs(values, seed=[]))


@pytest.mark.parametrize("name", ["seed", "profile_name", "model"])
def test_several_values_where_one_counts_are_told(values, name):
    given = profiler_inputs(values)
    with pytest.raises(AnnealingError, match=f"^{name} is a list of 2, and a profile is measured with one"):
        AnnealingProfiler.execute(**{**given, name: given[name] * 2})


# ---- through the server


def prompt(**guidance) -> dict:
    inputs = {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "guidance_lambda": 0.4, "renoise": "auto",
              "match_training_steps": True}  # fmt: skip
    return {
        "1": {"class_type": "ShapesLoader", "inputs": {"variant": "epsilon"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red circle"}},
        "3": {"class_type": "AnnealingGuider", "inputs": {**inputs, **guidance}},
        "4": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
        "5": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "6": {"class_type": "AnnealingPaperSigmas", "inputs": {"model": ["1", 0], "steps": 2, "denoise": 1.0}},
        "7": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "8": {"class_type": "SamplerCustomAdvanced",
              "inputs": {"noise": ["4", 0], "guider": ["3", 0], "sampler": ["5", 0], "sigmas": ["6", 0],
                         "latent_image": ["7", 0]}},
        "9": {"class_type": "SaveLatent", "inputs": {"samples": ["8", 0], "filename_prefix": "checked"}},
        "value": {"class_type": "PrimitiveFloat", "inputs": {"value": 5.0}},
    }  # fmt: skip


@pytest.mark.server
@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"guidance_lambda": ["value", 0]}, r"guidance_lambda is 5\.0\. Set it to a number from 0 to 1\."),
        ({"guidance_lambda": math.nan}, r"guidance_lambda is nan\. Set it to a number from 0 to 1\."),
        ({"scale_model": "x"}, r'scale_model is "x"\. Connect a scale: Load Annealing Scale'),
        ({"model": "x"}, r'model is "x"\. Connect a MODEL'),
        ({"positive": 5}, r"positive is 5\. Connect a CONDITIONING"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_the_server_shows_the_sentence(server, wrong, sentence):
    with pytest.raises(WorkflowError, match=sentence):
        run_workflow(server.address, prompt(**wrong))


@pytest.mark.server
def test_the_history_shows_the_type_as_a_plain_word(server):
    with pytest.raises(WorkflowError):
        run_workflow(server.address, prompt(scale_model="y"))
    with urllib.request.urlopen(f"{server.address}/history?max_items=1", timeout=30) as response:
        (entry,) = json.load(response).values()
    told = [message for event, message in entry["status"]["messages"] if event == "execution_error"]
    assert [message["exception_type"] for message in told] == ["AnnealingError"]
