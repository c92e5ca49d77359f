"""lambda_per_sample: one run of a batch shows a sweep of lambda."""

import json

import comfy.samplers
import pytest
import safetensors.torch
import torch
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.nodes import guider
from client import WorkflowError, run_workflow
from closed_form import SmoothScale, closed_form_model, conditioning, sample
from comfy_api.latest import io

MEANS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
SIGMAS = torch.tensor([14.0, 6.0, 2.0, 0.5, 0.0])
POSITIVE, NEGATIVE = conditioning(MEANS, 0.5), conditioning(torch.zeros_like(MEANS[:1]), 0.9)


def guider_and_trace(text, model=None, **inputs):
    inputs = {"guidance_lambda": 0.4, "renoise": "auto", "match_training_steps": True} | inputs
    return guider.AnnealingGuider.execute(
        model or closed_form_model(), POSITIVE, NEGATIVE, scale_model=SmoothScale("epsilon"), lambda_per_sample=text, **inputs
    ).args


def run(built, noise=NOISE):
    return sample(built, comfy.samplers.sampler_object("euler"), SIGMAS, noise)


# ---- the text


@pytest.mark.parametrize(
    "text, values",
    [("", None), ("  ", None), ("0.4", [0.4]), ("0, 0.2,1", [0, 0.2, 1]), ("0 .5\n1,", [0, 0.5, 1]), ("1e-1", [0.1])],
)
def test_numbers_are_read_from_the_text(text, values):
    lambdas = guider.parse_lambdas(text, "lambda_per_sample")
    assert lambdas is None if values is None else torch.equal(lambdas, torch.tensor(values, dtype=torch.float32))


@pytest.mark.parametrize("text", ["a", "0.2; 0.4", "0,2, 0,4", "-0.1", "1.01", "nan", "inf", "[0, 1]", "0.1, None"])
def test_what_is_no_number_from_0_to_1_is_an_error_that_shows_the_text(text):
    with pytest.raises(AnnealingError, match="lambda_per_sample is .*from 0 to 1") as error:
        guider_and_trace(text)
    assert text in str(error.value)


@pytest.mark.parametrize("node", guider.NODES)
def test_it_comes_after_the_first_versions_inputs_and_is_optional_so_saved_workflows_keep_loading(node):
    names = [one.id for one in node.GET_SCHEMA().inputs]
    assert names[-3:] == ["lambda_per_sample", "cfg", "projection"]
    last = node.GET_SCHEMA().inputs[-3]
    assert last.id == "lambda_per_sample" and last.optional and last.default == "" and isinstance(last, io.String.Input)
    assert not node.GET_SCHEMA().is_input_list


# ---- the run


@pytest.mark.parametrize("text, batch", [("0, 0.4", 3), ("0, 0.2, 0.4, 0.8", 3), ("0, 0.4", 1)])
@pytest.mark.parametrize("way", ["guider", "patch"])
def test_another_count_than_the_batchs_is_an_error_before_the_first_step(way, text, batch):
    model, count = closed_form_model(), len(text.split())
    if way == "guider":
        built, trace = guider_and_trace(text, model)
    else:
        patched, trace = guider.AnnealingModelPatch.execute(model, 0.4, "auto", True, SmoothScale("epsilon"), text).args
        built = comfy.samplers.CFGGuider(patched)
        built.set_conds(POSITIVE, NEGATIVE)
    with pytest.raises(AnnealingError, match=f"has {count} numbers, but the batch to be sampled has {batch} sample.*batch_size"):
        run(built, NOISE[:batch])
    assert model.model.diffusion_model.calls == 0 and trace.calls == []


def test_one_number_and_an_empty_text_count_for_the_whole_batch():
    latents = [run(guider_and_trace(text, guidance_lambda=value)[0]) for text, value in (("0.8", 0.0), ("", 0.8))]
    assert torch.equal(*latents)


def test_the_trace_keeps_the_lambdas():
    built, trace = guider_and_trace("0, 0.4, 0.8")
    run(built)
    assert torch.equal(trace.latest.guidance_lambda, torch.tensor([0, 0.4, 0.8]))
    assert all((call.scale.diff() > 0.1).all() or call.scale.std() > 0.1 for call in trace.calls)


# ---- in a booted ComfyUI


def link(node, output=0):
    return [node, output]


def shapes_workflow(lambdas, sweep, way):
    """A batch with a sweep, or each of its samples alone: latents are saved by nodes named sweep, or 0, 1, ..."""
    workflow = {
        "loader": {"class_type": "ShapesLoader", "inputs": {"variant": "epsilon"}},
        "prompt": {
            "class_type": "CLIPTextEncode",
            "inputs": {"text": "a red circle left of a green cross", "clip": link("loader", 1)},
        },
        "empty": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": link("loader", 1)}},
        "batch": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": len(lambdas)}},
    }
    runs = {"sweep": ("batch", 0.4, sweep)} if sweep else {}
    for i, value in enumerate([] if sweep else lambdas):
        picked = {"samples": link("batch"), "batch_index": i, "length": 1}
        workflow[f"latent{i}"] = {"class_type": "LatentFromBatch", "inputs": picked}
        runs[str(i)] = (f"latent{i}", value, None)
    for name, (latent, value, text) in runs.items():
        conds = {"positive": link("prompt"), "negative": link("empty")}
        guidance = {"model": link("loader"), "guidance_lambda": value, "renoise": "auto", "match_training_steps": True}
        guidance |= {"lambda_per_sample": text} if text else {}  # without it: a prompt from before there was this input
        workflow |= (by_guider if way == "guider" else by_patch)(name, guidance, conds, latent)
        workflow[f"save{name}"] = {
            "class_type": "SaveLatent",
            "inputs": {"samples": link(name), "filename_prefix": f"{way}{name}"},
        }
    return workflow


def by_patch(name, guidance, conds, latent):
    sampling = {"seed": 5, "steps": 4, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        f"guided{name}": {"class_type": "AnnealingModelPatch", "inputs": guidance},
        name: {
            "class_type": "KSampler",
            "inputs": {**sampling, **conds, "model": link(f"guided{name}"), "latent_image": link(latent)},
        },
    }


def by_guider(name, guidance, conds, latent):
    parts = {"noise": link("noise"), "sampler": link("sampler"), "sigmas": link("sigmas"), "latent_image": link(latent)}
    return {
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "sigmas": {"class_type": "AnnealingPaperSigmas", "inputs": {"model": link("loader"), "steps": 4, "denoise": 1.0}},
        f"guided{name}": {"class_type": "AnnealingGuider", "inputs": guidance | conds},
        name: {"class_type": "SamplerCustomAdvanced", "inputs": {**parts, "guider": link(f"guided{name}")}},
    }


@pytest.mark.server
@pytest.mark.parametrize("way", ["guider", "patch"])
def test_a_sweep_in_one_run_gives_the_latents_of_a_run_per_lambda(server, way):
    lambdas, steps = [0.0, 0.4, 0.8], []
    text = json.dumps(lambdas).strip("[]")
    run_workflow(server.address, shapes_workflow(lambdas, text, way), lambda node, done, total: steps.append((node, done)))
    done = [done for node, done in steps if node == "sweep"]  # newer hosts leave out steps that follow quickly
    assert done[-1] == 4 and done == sorted(set(done))  # the sampler ran once, not once per lambda
    run_workflow(server.address, shapes_workflow(lambdas, None, way))

    def saved(name):
        (file,) = (server.base / "output").glob(f"{way}{name}_*.latent")
        return safetensors.torch.load_file(file)["latent_tensor"]

    alone = torch.cat([saved(i) for i in range(3)])
    # The network rounds a batch otherwise than single samples (ComfyUI's own CFG too: 8e-5); the closed form agrees to 2e-6.
    torch.testing.assert_close(saved("sweep"), alone, atol=5e-4, rtol=0)
    assert (alone - alone[:1]).abs().flatten(1).amax(dim=1)[1:].min() > 0.01


@pytest.mark.server
def test_a_count_that_does_not_fit_is_reported_at_the_node_that_samples(server):
    with pytest.raises(WorkflowError, match=r"KSampler \(sweep\): lambda_per_sample has 2 numbers, .* has 3 samples"):
        run_workflow(server.address, shapes_workflow([0, 0.4, 0.8], "0.1, 0.2", "patch"))
