"""Which model this is, which scale an unconnected scale_model means, and what is said about a scale on another model."""

import importlib
import re

import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from annealing_guidance_pack.guidance.family import default_scale_name, model_name, remarks
from annealing_guidance_pack.models import catalogue
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.models.scale_file import load_scale
from annealing_guidance_pack.nodes import guider, sweep
from annealing_guidance_pack.shapes.loader import load_shapes
from closed_form import ClosedFormSDXL, closed_form_model
from comfy.model_base import ModelType
from comfy_extras.nodes_custom_sampler import RandomNoise
from scales import checkpoint
from small_models import CPU, small_conditioning, small_model
from small_sdxl import SmallVAE

V_PREDICTION = {"v_pred": torch.zeros(0)}
ZERO_SNR = {**V_PREDICTION, "ztsnr": torch.zeros(0)}
COSXL = {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}
PLAYGROUND = {"edm_mean": torch.zeros(0), "edm_std": torch.zeros(0)}


def known_as(name: str, keys: dict | None = None, **network):
    """A MODEL without a network, of ComfyUI's configuration `name`, with what ComfyUI reads out of a checkpoint's keys."""
    settings = {"disable_unet_model_creation": True, "in_channels": 4, "image_model": "", **network}
    model = getattr(comfy.supported_models, name)(settings).get_model(keys or {}, "", device=CPU)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def sampled_as(model, sampling: str, zsnr: bool = False):
    return importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]


@pytest.fixture(scope="module")
def authors_scale(tmp_path_factory):
    """Of the authors' layout, with made-up weights."""
    path = tmp_path_factory.mktemp("scale") / "authors.pt"
    torch.save(checkpoint(), path)
    return load_scale(path)


# ---- the family's own scale


@pytest.mark.parametrize("model_type", [ModelType.EPS, ModelType.V_PREDICTION], ids=lambda t: t.name)
def test_sdxl_has_the_authors_network(model_type):
    assert default_scale_name(closed_form_model(model_type, base=ClosedFormSDXL)) == catalogue.OFFICIAL_SDXL.name


def test_a_configuration_may_name_its_own():
    model = closed_form_model()
    model.model.model_config.annealing_scale = "shapes_epsilon.safetensors"
    assert default_scale_name(model) == "shapes_epsilon.safetensors"


@pytest.mark.parametrize(
    "model_type, base",
    [(ModelType.EPS, comfy.model_base.BaseModel), (ModelType.FLOW, ClosedFormSDXL), (ModelType.EDM, ClosedFormSDXL)],
    ids=["another epsilon model", "SDXL made a flow model", "SDXL's architecture trained anew"],
)
def test_other_models_get_an_error_that_says_what_to_do(model_type, base):
    with pytest.raises(
        AnnealingError, match="scale_model is not connected.*Set cfg.*Train Annealing Scale.*Load Annealing Scale"
    ):
        default_scale_name(closed_form_model(model_type, base=base))


@pytest.mark.parametrize(
    "model, why",
    [
        (lambda: known_as("SDXL", PLAYGROUND), r"\(Playground 2\.5\): it has SDXL's network, but .*other latents .*\(EDM\)"),
        (lambda: known_as("SDXLRefiner"), r"\(SDXL Refiner\): SDXL base has one, and the refiner is another network"),
        (lambda: known_as("SD15"), r"\(Stable Diffusion 1\.5\): only SDXL base"),
        (lambda: known_as("SD3"), r"\(Stable Diffusion 3\): only SDXL base"),
    ],
    ids=["Playground 2.5", "SDXL Refiner", "SD 1.5", "SD 3"],
)
def test_the_error_says_why_a_model_has_none(model, why):
    with pytest.raises(AnnealingError, match=why):
        default_scale_name(model())


def test_an_sdxl_that_a_node_made_a_flow_model_is_told_so():
    nodes = importlib.import_module("comfy_extras.nodes_model_advanced")
    with pytest.raises(AnnealingError, match=r"\(SDXL\): .*a ModelSampling node has made this a flow model"):
        default_scale_name(nodes.ModelSamplingSD3().patch(small_model("SDXL"), 3.0)[0])


# ---- names


@pytest.mark.parametrize(
    "model, name",
    [
        (lambda: small_model("SDXL"), "SDXL"),
        (lambda: small_model("SD15"), "Stable Diffusion 1.5"),
        (lambda: small_model("SD15 inpaint"), "Stable Diffusion 1.5 inpainting"),
        (lambda: small_model("SD3"), "Stable Diffusion 3"),
        (lambda: load_shapes("flow")[0], "Shapes demo"),
        (lambda: known_as("SDXL", COSXL), "CosXL"),
        (lambda: known_as("Flux"), "FLUX.1"),
        (lambda: known_as("GenmoMochi"), "Genmo Mochi"),
        (lambda: known_as("WAN21_T2V", model_type="t2v"), "Wan 2.1 T2V"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_are_called_what_people_call_them(model, name):
    assert model_name(model()) == name


@pytest.mark.parametrize("config", comfy.supported_models.models, ids=lambda config: config.__name__)
def test_every_configuration_of_this_comfyui_has_a_readable_name(config):
    model = closed_form_model()
    model.model.model_config = config({"in_channels": 4, "hidden_size": 64})
    name = model_name(model)
    assert name and "_" not in name and name == name.strip()


# ---- remarks


COUSINS = {
    "an inpainting SDXL": (lambda: known_as("SDXL", in_channels=9), "SDXL inpainting"),
    "SDXL InstructPix2Pix": (lambda: known_as("SDXL_instructpix2pix", in_channels=8), "SDXL InstructPix2Pix"),
    "CosXL Edit": (lambda: known_as("SDXL_instructpix2pix", COSXL), "SDXL InstructPix2Pix with v-prediction and noise up to"),
    "SSD-1B": (lambda: known_as("SSD1B"), "SSD-1B"),
    "Vega": (lambda: known_as("Segmind_Vega"), "Segmind Vega"),
    "KOALA 700M": (lambda: known_as("KOALA_700M"), "KOALA 700M"),
    "KOALA 1B": (lambda: known_as("KOALA_1B"), "KOALA 1B"),
    "v-prediction": (lambda: known_as("SDXL", V_PREDICTION), "SDXL with v-prediction"),
    "zero SNR": (lambda: known_as("SDXL", ZERO_SNR), r"SDXL with v-prediction and noise up to sigma \d{4}, where SDXL base ends"),
    "zero SNR by a node": (lambda: sampled_as(small_model("SDXL"), "eps", zsnr=True), r"SDXL with noise up to sigma \d{4}"),
    "CosXL": (lambda: known_as("SDXL", COSXL), "CosXL with v-prediction and noise up to sigma 120"),
    "LCM": (lambda: sampled_as(small_model("SDXL"), "lcm"), "SDXL with LCM sampling"),
    "SD 1.5": (lambda: small_model("SD15"), "Stable Diffusion 1.5"),
}


@pytest.mark.parametrize("case", COUSINS)
def test_a_scale_of_sdxl_base_on_another_model_is_told_with_the_models_name(case, authors_scale):
    model, name = COUSINS[case]
    (told, *_) = remarks(model(), authors_scale.info)
    pattern = rf'The scale "authors" was trained on SDXL base, and this model is {name}'
    assert re.match(pattern, told), told


@pytest.mark.parametrize("case", ["an inpainting SDXL", "SSD-1B", "CosXL", "LCM"])
def test_cousins_of_sdxl_still_get_its_scale(case):
    assert default_scale_name(COUSINS[case][0]()) == catalogue.OFFICIAL_SDXL.name


def test_sdxl_itself_and_scales_of_other_models_go_without_a_remark(authors_scale):
    assert remarks(small_model("SDXL"), authors_scale.info) == []
    assert remarks(known_as("SSD1B"), FixedScale().info) == []


@pytest.mark.parametrize(
    "model, name",
    [
        (lambda: sampled_as(small_model("SD15"), "lcm"), "This model is sampled as LCM"),
        (lambda: known_as("Flux", guidance_embed=True), r"FLUX\.1 has its guidance distilled"),
        (lambda: known_as("FluxSchnell", guidance_embed=False), r"FLUX\.1 schnell has its guidance distilled"),
        (lambda: known_as("HunyuanVideo", guidance_embed=True), "Hunyuan Video has its guidance distilled"),
    ],
    ids=["LCM", "FLUX.1 dev", "FLUX.1 schnell", "Hunyuan Video"],
)
def test_models_whose_guidance_is_distilled_are_told(model, name):
    (told,) = remarks(model(), FixedScale().info)
    assert re.match(name, told) and "CFG 1 to 2" in told


@pytest.mark.parametrize("name", ["SD15", "SDXL", "SD3"])
def test_ordinary_models_are_not_taken_for_distilled_ones(name):
    assert remarks(small_model(name), FixedScale().info) == []


# ---- where they are shown


class Hidden:
    unique_id = "7"


@pytest.mark.parametrize("node", [guider.AnnealingGuider, guider.AnnealingModelPatch])
def test_the_node_shows_them_and_the_log_has_them(node, authors_scale, caplog, monkeypatch):
    shown = []
    monkeypatch.setattr(guider, "show_text", lambda text, of: shown.append((of, text)))
    monkeypatch.setattr(node, "hidden", Hidden)
    conds = {} if node is guider.AnnealingModelPatch else {"positive": small_conditioning(1), "negative": small_conditioning(2)}
    node.execute(model=sampled_as(small_model("SDXL"), "lcm"), guidance_lambda=0.4, renoise="auto", match_training_steps=True,
                 scale_model=authors_scale, **conds)  # fmt: skip
    ((of, text),) = shown
    assert of == "7" and "was trained on SDXL base" in text and "sampled as LCM" in text
    assert "was trained on SDXL base" in caplog.text and "sampled as LCM" in caplog.text


def test_the_remarks_stay_above_what_the_run_says(monkeypatch):
    shown = []
    monkeypatch.setattr(guider, "show_text", lambda text, of: shown.append(text))
    chart = guider.live_chart(Hidden, ["Mind this."])
    chart._say("step 1: scale 1.04")
    assert shown == ["Mind this.", "Mind this.\nstep 1: scale 1.04"]


def test_the_sweep_shows_them_too(authors_scale, monkeypatch):
    shown = []
    monkeypatch.setattr(guider, "show_text", lambda text, of: shown.append(text))
    monkeypatch.setattr(sweep.AnnealingSweep, "hidden", Hidden)
    with torch.inference_mode():
        sweep.AnnealingSweep.execute(
            RandomNoise.execute(1).args[0], sampled_as(small_model("SDXL"), "lcm"), small_conditioning(1), small_conditioning(2),
            comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0]), {"samples": torch.zeros(1, 4, 8, 8)}, SmallVAE(),
            "0.4", scale_model=authors_scale,
        )  # fmt: skip
    assert "was trained on SDXL base" in shown[0] and "sampled as LCM" in shown[-1]
