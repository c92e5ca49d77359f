"""The guider, patch, sampler and schedule as ComfyUI sees and runs them."""

import asyncio
import importlib
import inspect
import shutil
from pathlib import Path

import comfy.samplers
import folder_paths
import pytest
import torch
from annealing_guidance_pack.guidance.null_renoising import sample_null_renoising
from annealing_guidance_pack.models import catalogue
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.nodes import NODES, guider, host, sampling
from closed_form import ClosedFormSDXL, closed_form_model, conditioning, paper_trajectory, sample
from comfy.model_base import ModelType
from comfy_api.latest import io

OURS = [*guider.NODES, *sampling.NODES]
MEAN = torch.ones(1, 4, 8, 8)


def schema_of(node):
    return node.GET_SCHEMA()


# What DESIGN.md promises: ids, inputs with their defaults, and outputs
PUBLIC = {
    "AnnealingGuider": (
        {"model": None, "positive": None, "negative": None, "scale_model": None, "guidance_lambda": 0.4, "renoise": "auto",
         "match_training_steps": True, "lambda_per_sample": "", "cfg": 0.0, "projection": "auto"},
        ["GUIDER", "ANNEALING_TRACE"],
    ),
    "AnnealingModelPatch": (
        {"model": None, "scale_model": None, "guidance_lambda": 0.4, "renoise": "auto", "match_training_steps": True,
         "lambda_per_sample": "", "cfg": 0.0, "projection": "auto"},
        ["MODEL", "ANNEALING_TRACE"],
    ),
    "AnnealingSampler": ({"eta": 0.0, "renoise_mix": 1.0}, ["SAMPLER"]),
    "AnnealingPaperSigmas": ({"model": None, "steps": 50, "denoise": 1.0}, ["SIGMAS"]),
}  # fmt: skip


@pytest.mark.parametrize("node", OURS, ids=lambda node: node.__name__)
def test_ids_inputs_defaults_and_outputs_are_the_public_ones(node):
    schema = schema_of(node)
    inputs, outputs = PUBLIC[schema.node_id]
    assert {given.id: getattr(given, "default", None) for given in schema.inputs} == inputs
    assert [output.io_type for output in schema.outputs] == outputs


def test_the_scale_model_and_what_came_later_are_optional():
    later = {"scale_model", "lambda_per_sample", "cfg", "projection"}
    for node in OURS:
        assert {given.id for given in schema_of(node).inputs if given.optional} <= later


@pytest.mark.parametrize("node", OURS, ids=lambda node: node.__name__)
def test_everything_is_explained(node):
    schema = schema_of(node)
    assert schema.description and schema.display_name and schema.category.startswith(host.CATEGORY)
    assert all(part.tooltip for part in [*schema.inputs, *schema.outputs])


def test_every_node_of_the_pack_is_in_one_folder_of_the_menu_and_the_two_ways_in_are_at_its_top():
    places = {node.__name__: schema_of(node).category for node in NODES}
    assert all(place.startswith(host.CATEGORY) for place in places.values())
    assert {name for name, place in places.items() if place == host.CATEGORY} == {"AnnealingGuider", "AnnealingModelPatch"}
    folders = {place.removeprefix(f"{host.CATEGORY}/") for place in places.values()} - {host.CATEGORY}
    assert folders <= {"scale", "sampling", "pictures", "training", "demo"}


def test_arguments_that_this_host_lacks_are_left_out():
    def old_host(default=None):
        return default

    assert host.where_known(old_host, default=1, advanced=True) == {"default": 1}
    assert (
        "advanced" not in host.where_known(io.Float.Input, advanced=True)
        or "advanced" in inspect.signature(io.Float.Input).parameters
    )


def execute_guider(model=None, scale=0.8, **options):
    inputs = {"guidance_lambda": 0.4, "renoise": "auto", "match_training_steps": True} | options
    negative = inputs.pop("negative", conditioning(torch.zeros_like(MEAN), 0.9))
    scale_model = FixedScale("constant", scale) if scale is not None else None
    return guider.AnnealingGuider.execute(
        model or closed_form_model(), conditioning(MEAN, 0.5), negative, scale_model=scale_model, **inputs
    ).args


def test_the_guider_node_samples_and_fills_its_trace():
    built, trace = execute_guider()
    assert trace.calls == []
    latent = sample(built, comfy.samplers.sampler_object("euler"), torch.tensor([14.0, 3.0, 0.0]), torch.randn(1, 4, 8, 8))
    assert latent.isfinite().all() and len(trace.calls) == 2
    assert all((call.scale == 0.8).all() for call in trace.calls)


def test_an_empty_negative_is_an_error_in_the_guider_node():
    with pytest.raises(AnnealingError, match="negative"):
        execute_guider(negative=[])


def test_an_unconnected_scale_of_an_unknown_family_is_an_error_that_says_what_to_do():
    with pytest.raises(AnnealingError, match="scale_model is not connected"):
        execute_guider(scale=None)


def test_an_unconnected_scale_on_sdxl_is_the_authors_network(official_checkpoint, monkeypatch):
    """Found where a user would put it by hand: nothing is fetched."""
    monkeypatch.setenv(catalogue.OFFLINE_VARIABLE, "1")
    placed = Path(folder_paths.get_folder_paths("annealing_guidance")[0]) / catalogue.OFFICIAL_SDXL.file_name
    placed.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(official_checkpoint, placed)
    try:
        built, trace = execute_guider(model=closed_form_model(base=ClosedFormSDXL), scale=None)
    finally:
        placed.unlink()
    sample(built, comfy.samplers.sampler_object("euler"), torch.tensor([14.0, 3.0, 0.0]), torch.randn(1, 4, 8, 8))
    assert built.guidance.scale_model.info.prediction == "epsilon" and trace.run_id == 1


def test_the_patch_node_returns_a_model_for_ksampler():
    model, trace = guider.AnnealingModelPatch.execute(
        closed_form_model(), 0.4, "auto", True, scale_model=FixedScale("constant", 0.8)
    ).args
    core = importlib.import_module("nodes")
    positive, negative = conditioning(MEAN, 0.5), conditioning(torch.zeros_like(MEAN), 0.9)
    latent = {"samples": torch.zeros_like(MEAN)}
    core.KSampler().sample(model, 1, 4, 7.0, "dpmpp_2m", "karras", positive, negative, latent)
    assert len(trace.calls) == 4


def test_the_sampler_node_gives_the_null_renoising_sampler():
    (sampler,) = sampling.AnnealingSampler.execute(0.3, 0.5).args
    assert isinstance(sampler, comfy.samplers.KSAMPLER)
    assert sampler.sampler_function is sample_null_renoising
    assert sampler.extra_options == {"eta": 0.3, "renoise_mix": 0.5}


# ---- the paper's schedule


@pytest.mark.parametrize("steps", [20, 50])
def test_the_papers_schedule_is_that_of_the_papers_runs(steps):
    model = closed_form_model()
    (sigmas,) = sampling.AnnealingPaperSigmas.execute(model, steps, 1.0).args
    assert torch.equal(sigmas, paper_trajectory(steps).sigmas(model.get_model_object("model_sampling")))


@pytest.mark.parametrize("steps", [1, 7, 30, 999, 1000])
@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.FLOW, ModelType.FLUX, ModelType.EDM, ModelType.STABLE_CASCADE])
def test_any_number_of_steps_gives_a_schedule_that_never_rises(model_type, steps):
    (sigmas,) = sampling.AnnealingPaperSigmas.execute(closed_form_model(model_type), steps, 1.0).args
    assert sigmas.shape == (steps + 1,) and sigmas[-1] == 0
    assert (sigmas.diff() <= 0).all()  # Stable Cascade's table is flat at its ends


@pytest.mark.parametrize("denoise", [0.2, 0.5, 0.99])
def test_a_partial_run_takes_the_tail_like_basic_scheduler(denoise):
    model = closed_form_model()
    whole = sampling.AnnealingPaperSigmas.execute(model, int(20 / denoise), 1.0).args[0]
    assert torch.equal(sampling.AnnealingPaperSigmas.execute(model, 20, denoise).args[0], whole[-21:])


def test_a_run_of_no_denoising_is_empty():
    assert sampling.AnnealingPaperSigmas.execute(closed_form_model(), 20, 0.0).args[0].numel() == 0


def test_a_flow_schedule_starts_at_pure_noise_with_the_models_shift():
    (sigmas,) = sampling.AnnealingPaperSigmas.execute(closed_form_model(ModelType.FLOW, {"shift": 3.0}), 4, 1.0).args
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    torch.testing.assert_close(sigmas, 3 * t / (1 + 2 * t))


# ---- what the host refuses before anything runs


@pytest.fixture
def validate():
    """ComfyUI's own validation of one node of an API prompt: the errors by input name."""
    execution, core = importlib.import_module("execution"), importlib.import_module("nodes")
    before = dict(core.NODE_CLASS_MAPPINGS)
    core.NODE_CLASS_MAPPINGS.update({schema_of(node).node_id: node for node in OURS})

    def errors(class_type, **inputs):
        prompt = {"1": {"class_type": class_type, "inputs": inputs}}
        valid, found, _ = asyncio.run(execution.validate_inputs("test", prompt, "1", {}))
        return [] if valid else found

    yield errors
    core.NODE_CLASS_MAPPINGS.clear()
    core.NODE_CLASS_MAPPINGS.update(before)


@pytest.mark.parametrize("value, kind", [(1.2, "value_bigger_than_max"), (-0.1, "value_smaller_than_min")])
def test_lambda_out_of_range_through_the_api_is_refused_by_the_host(validate, value, kind):
    found = validate("AnnealingModelPatch", guidance_lambda=value, renoise="auto", match_training_steps=True)
    assert [error["type"] for error in found if error.get("extra_info", {}).get("input_name") == "guidance_lambda"] == [kind]


def test_lambda_out_of_range_is_clamped_by_the_step(official_checkpoint):
    from annealing_guidance_pack.models.scale_file import load_scale

    network, t, gap = load_scale(official_checkpoint), torch.tensor([500.0]), torch.tensor([5.0])
    assert torch.equal(network(t, gap, 7.0), network(t, gap, 1.0))


def test_a_valid_prompt_passes(validate):
    assert validate("AnnealingSampler", eta=0.0, renoise_mix=1.0) == []


@pytest.mark.parametrize(
    "options, said", [({"renoise": "twice"}, "twice.*auto, null, folded"), ({"guidance_lambda": float("nan")}, "nan")]
)
def test_what_the_host_lets_through_is_refused_by_the_node(options, said):
    """ComfyUI 0.3.75 does not check the choices of V3 nodes, and NaN is neither above a maximum nor below a minimum."""
    with pytest.raises(AnnealingError, match=said):
        execute_guider(**options)


def test_an_unknown_sampler_name_is_refused_by_core_naming_it(validate):
    found = validate("KSampler", seed=0, steps=4, cfg=7.0, denoise=1.0, scheduler="normal", sampler_name="euler_but_better")
    (error,) = [error for error in found if error["type"] == "value_not_in_list"]
    assert "euler_but_better" in error["details"]
    with pytest.raises(AttributeError, match="euler_but_better"):  # KSamplerSelect
        comfy.samplers.sampler_object("euler_but_better")
