"""Profile Guidance, Load Annealing Profile, Fit and Save Annealing Scale, and the demo's training pictures."""

import dataclasses
import sys
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
import two_points
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.fixed_scale import FixedScale
from annealing_guidance_pack.models.scale_file import load_scale
from annealing_guidance_pack.models.scale_model import PATHS
from annealing_guidance_pack.nodes import fitting, progress, scale, training
from annealing_guidance_pack.nodes.fitting import AnnealingFit, AnnealingScaleSave
from annealing_guidance_pack.nodes.shapes import ShapesDataset
from annealing_guidance_pack.nodes.training import AnnealingProfileLoader, AnnealingProfiler
from annealing_guidance_pack.shapes.loader import load_shapes
from annealing_guidance_pack.training.own_scale import fingerprint_text
from annealing_guidance_pack.training.profile import steps_of_grid
from annealing_guidance_pack.training.training_grid import SCHEDULERS, USUAL_STEPS, training_grid
from comfy_extras.nodes_dataset import MakeTrainingDataset
from scales import made_up_network
from scales_folder import use_scales_folder

COUNT = 8  # the fewest that a scale can be fitted to


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    """ComfyUI's output folder, empty."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


@pytest.fixture
def scales_folder(tmp_path, monkeypatch) -> Path:
    return use_scales_folder(tmp_path, monkeypatch)


def widgets(node, **changed) -> dict:
    """What the interface sends for an untouched node, but for what is changed."""
    inputs = node.INPUT_TYPES()["required"]
    return {
        name: options[0]["default"] for name, (_, *options) in inputs.items() if options and "default" in options[0]
    } | changed


def pictures(count: int = COUNT) -> dict:
    """LATENTs and CONDITIONINGs as lists, as core's dataset nodes give them."""
    latents, captions = two_points.pictures(count)
    return {"latents": [{"samples": latent[None]} for latent in latents], "positive": captions}


def profiled(model=None, **inputs):
    """The node as the executor calls it: in inference mode, every input a list."""
    given = pictures() | {"model": [model or two_points.two_point_model("epsilon")], "negative": [two_points.NEGATIVE]}
    changed = {name: [value] for name, value in inputs.items() if name not in ("latents", "positive", "negative")}
    several = {name: value for name, value in inputs.items() if name in ("latents", "positive", "negative")}
    untouched = {name: [value] for name, value in widgets(AnnealingProfiler, batch_size=8).items()}
    with torch.inference_mode():
        return AnnealingProfiler.execute(**untouched | given | changed | several).args[0]


def fitted(profile, **changed):
    with torch.inference_mode():
        quick = {"steps": 200, "hidden_width": 16, "depth": 1}
        return AnnealingFit.execute(profile=profile, **widgets(AnnealingFit, **quick | changed)).args


def assert_same(one, other):
    for name, column in vars(one.entries).items():
        assert torch.equal(column, getattr(other.entries, name)), name


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(tmp_path_factory.mktemp("output")))
        return profiled()


# --- what the nodes look like -----------------------------------------------------------------------------------------

PUBLIC = {
    AnnealingProfiler: (
        ["model", "latents", "positive", "negative", "profile_name", "training_steps", "samples_per_picture", "seed"],
        ["ANNEALING_PROFILE"],
    ),
    AnnealingProfileLoader: (["profile_name"], ["ANNEALING_PROFILE"]),
    AnnealingFit: (["profile", "trained_on", "licence"], ["ANNEALING_SCALE", "LOSS_MAP", "IMAGE"]),
    AnnealingScaleSave: (["scale_model", "filename_prefix"], []),
}


@pytest.mark.parametrize("node", PUBLIC, ids=lambda node: node.__name__)
def test_ids_inputs_and_outputs_are_the_public_ones(node):
    schema = node.GET_SCHEMA()
    inputs, outputs = PUBLIC[node]
    assert schema.node_id == node.__name__
    simple = [given.id for given in schema.inputs if not getattr(given, "advanced", None)]
    assert simple[: len(inputs)] == inputs and (simple == inputs or not hasattr(schema.inputs[0], "advanced"))
    assert [output.io_type for output in schema.outputs] == outputs
    assert {given.id for given in schema.inputs if given.optional} <= {"latents", "projection"}
    assert all(given.tooltip for given in (*schema.inputs, *schema.outputs)) and schema.description
    assert not schema.is_experimental


def test_seeds_stay_as_they_are_between_runs():
    for node in (AnnealingProfiler, AnnealingFit, ShapesDataset):  # the interface draws new ones unless told not to
        assert node.INPUT_TYPES()["required"]["seed"][1]["control_after_generate"] is False


# --- measuring --------------------------------------------------------------------------------------------------------


def test_untouched_it_measures_every_picture_into_its_folder(profile, output):
    again = profiled(batch_size=AnnealingProfiler.INPUT_TYPES()["required"]["batch_size"][1]["default"])
    for name, column in vars(again.entries).items():  # in smaller batches: the same up to rounding
        torch.testing.assert_close(column, getattr(profile.entries, name), rtol=1e-4, atol=1e-6)
    assert len(profile.entries.picture.unique()) == COUNT and len(profile.entries) == 8 * COUNT
    assert profile.settings.training_grid == 20 and profile.settings.perturb and not profile.settings.projection
    assert list((output / "annealing_profiles" / "my_model").glob("*.safetensors"))


def test_a_batch_and_a_list_are_the_same_pictures(profile):
    latents, captions = two_points.pictures(COUNT)
    batch = {"samples": torch.stack(latents)}
    together = [[torch.cat([caption[0][0] for caption in captions]), captions[0][0][1]]]
    assert_same(profiled(latents=[batch], positive=[together]), profile)


def test_cancel_loses_nothing_and_the_next_run_goes_on(profile, monkeypatch):
    def cancel_after_five(text):
        if text.startswith("5 of"):
            comfy.model_management.interrupt_current_processing()

    model = two_points.two_point_model("epsilon")
    monkeypatch.setattr(progress, "show_text", cancel_after_five)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        profiled(model)
    assert model.model.diffusion_model.rows > 0
    monkeypatch.setattr(progress, "show_text", lambda text: None)
    assert_same(profiled(model), profile)
    at_once = two_points.two_point_model("epsilon")
    profiled(at_once, profile_name="at once")
    assert model.model.diffusion_model.rows == at_once.model.diffusion_model.rows  # no picture was measured twice
    profiled(model)
    assert model.model.diffusion_model.rows == at_once.model.diffusion_model.rows  # a third run measures nothing


def test_without_latents_the_model_makes_the_pictures_itself():
    sizes = {"width": 64, "height": 64, "sampling_steps": 4, "samples_per_picture": 4}
    made = profiled(latents=None, positive=pictures(5)["positive"], pictures_per_prompt=2, **sizes)
    assert len(made.entries.picture.unique()) == 10 and made.reference_numel == 256
    assert_same(profiled(latents=None, positive=pictures(5)["positive"], pictures_per_prompt=2, profile_name="b", **sizes), made)


def test_the_settings_reach_the_profile():
    chosen = {"training_steps": 10, "training_scheduler": "karras", "samples_per_picture": 3, "seed": 7, "knots": 5}
    settings = profiled(perturb_captions=False, projection=True, batch_size=2, **chosen).settings
    assert (settings.samples, settings.seed, len(settings.knots), settings.perturb) == (3, 7, 5, False)
    assert settings.projection
    assert len(settings.training_grid) == 11


def test_other_settings_in_the_same_folder_are_refused_by_name(profile):
    profiled()
    with pytest.raises(AnnealingError, match="samples.*folder of its own"):
        profiled(samples_per_picture=4)


def test_several_negatives_are_refused():
    with pytest.raises(AnnealingError, match="2 negatives"):
        profiled(negative=[two_points.NEGATIVE] * 2)


BAD_NAMES = ["", " ", "../outside", "a/../../outside", "/etc/passwd", "C:\\outside", "a//b", "question?", "a\nb", "trailing."]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leads_out_of_its_folder(name, scales_folder, tmp_path):
    with pytest.raises(AnnealingError, match="profile_name is"):
        profiled(profile_name=name)
    with pytest.raises(AnnealingError, match="filename_prefix is"):
        AnnealingScaleSave.execute(scale_model=made_up_network(), filename_prefix=name)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_gives_a_training_grid(kind, scheduler):
    grid = training_grid(two_points.two_point_model(kind).get_model_object("model_sampling"), 0, scheduler)
    nsr, following = steps_of_grid(PATHS[kind], grid)
    assert (following < nsr).all() and (following > 0).all()
    assert USUAL_STEPS[PATHS[kind]] - 2 <= len(nsr) <= USUAL_STEPS[PATHS[kind]] + 1


def test_the_papers_grid_and_an_unknown_scheduler():
    sampling = two_points.two_point_model("epsilon").get_model_object("model_sampling")
    assert [training_grid(sampling, steps) for steps in (0, 20, 1000)] == [20, 50, 1]
    with pytest.raises(AnnealingError, match="no scheduler 'none'.*paper"):
        training_grid(sampling, 20, "none")


# --- loading ----------------------------------------------------------------------------------------------------------


def test_folders_are_listed_loaded_and_merged(profile, output):
    assert AnnealingProfileLoader.INPUT_TYPES()["required"]["profile_name"][1]["options"] == []
    half = {name: value[: COUNT // 2] for name, value in pictures().items()}
    rest = {name: value[COUNT // 2 :] for name, value in pictures().items()}
    profiled(profile_name="big/first", **half)
    profiled(profile_name="big/second", **rest)
    assert training.profile_names() == ["big", "big/first", "big/second"]
    assert_same(AnnealingProfileLoader.execute("big").args[0], profile)
    assert len(AnnealingProfileLoader.execute("big/first").args[0].entries) == 8 * COUNT // 2


def test_a_folder_that_changed_is_read_again():
    half = {name: value[: COUNT // 2] for name, value in pictures().items()}
    profiled(**half)
    before = AnnealingProfileLoader.fingerprint_inputs("my_model")
    assert AnnealingProfileLoader.fingerprint_inputs("my_model") == before
    profiled()
    assert AnnealingProfileLoader.fingerprint_inputs("my_model") != before


def test_an_unknown_profile_is_refused_and_a_linked_name_is_left_to_the_run():
    profiled()
    assert AnnealingProfileLoader.validate_inputs("my_model") is True and AnnealingProfileLoader.validate_inputs() is True
    assert "no profile 'nothing'" in AnnealingProfileLoader.validate_inputs("nothing")
    with pytest.raises(AnnealingError, match="no profile '../outside'.*Available: my_model"):
        AnnealingProfileLoader.execute("../outside")


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_the_fit_remembers_the_model_and_its_usual_gaps(profile):
    info = fitted(profile)[0].info
    assert info.fingerprint == fingerprint_text(profile.model) and len(info.typical_gaps) == 50


def test_the_fit_gives_a_scale_its_losses_and_a_picture(profile):
    network, losses, plot = fitted(profile, trained_on="two points", licence=" ")
    assert network.info.training_grid == 20 and network.info.trained_on == "two points"
    assert network.info.licence == "not stated"
    assert len(losses["loss"]) == 2 and all(isinstance(loss, float) for loss in losses["loss"])
    assert plot.shape == (1, 512, 1024, 3) and plot.min() >= 0 and plot.max() <= 1


def test_its_choices_reach_the_network(profile):
    plain = fitted(profile)[0]
    other = fitted(profile, gap_divisor="5.0", loss_balance="ratio", hidden_width=8, depth=0)[0]
    assert (other.config.gap_divisor, other.config.hidden_width, other.config.depth) == (5.0, 8, 0)
    assert plain.config.gap_divisor != 5.0
    at = profile.entries.timestep, profile.entries.gap_norm, 0.8
    assert other(*at).mean() > plain(*at).mean() + 0.05  # the balanced loss asks for more guidance


def test_without_matplotlib_it_still_gives_its_scale(profile, monkeypatch):
    monkeypatch.setattr(fitting, "PREVIEW_EVERY_S", 0.0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    network, losses, plot = fitted(profile)
    assert torch.isfinite(network(torch.tensor([500.0]), torch.tensor([1.0]), 0.4)).all() and losses["loss"]
    assert plot.shape[0] == 1 and plot.shape[3] == 3


def test_a_preview_of_the_loss_is_shown_while_it_fits(profile, monkeypatch):
    shown = []
    monkeypatch.setattr(fitting, "PREVIEW_EVERY_S", 0.0)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda done, total, preview, node_id=None: shown.append(preview))
    fitted(profile)
    assert [preview[0] for preview in shown] == ["PNG"] * 2 and shown[0][1].size == (512, 320)


def test_profiles_that_are_too_small_or_teach_nothing_are_refused(profile):
    entries = profile.entries
    few = dataclasses.replace(profile, entries=entries[: 8 * 3])
    with pytest.raises(AnnealingError, match="3 pictures, too few"):
        fitted(few)
    same = dataclasses.replace(profile, entries=dataclasses.replace(entries, gap_norm=torch.zeros_like(entries.gap_norm)))
    with pytest.raises(AnnealingError, match="Every gap of the profile is zero"):
        fitted(same)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_saved_scale_is_offered_by_the_loader_and_never_overwritten(profile, scales_folder):
    network = fitted(profile)[0]
    for _ in range(2):
        said = AnnealingScaleSave.execute(scale_model=network, filename_prefix="mine/two_points")
    first, second = (scales_folder / "mine" / f"two_points_0000{number}.safetensors" for number in (1, 2))
    assert str(second) in said.ui.as_dict()["text"][0]
    assert all(map(torch.equal, load_scale(first).parameters(), load_scale(second).parameters()))
    assert "mine/two_points_00002.safetensors" in [name.replace("\\", "/") for name in scale.scale_names()]
    assert load_scale(first).config == network.config
    first.unlink()
    AnnealingScaleSave.execute(scale_model=network, filename_prefix="mine/two_points")
    assert (scales_folder / "mine" / "two_points_00003.safetensors").is_file() and not first.exists()


def test_a_fixed_scale_is_refused_and_leaves_no_file(scales_folder):
    with pytest.raises(AnnealingError, match="fixed rule, not a network"):
        AnnealingScaleSave.execute(scale_model=FixedScale(), filename_prefix="fixed")
    assert not any(scales_folder.iterdir())


def test_a_folder_that_cannot_be_written_to_is_named(scales_folder):
    scales_folder.write_text("a file where the folder should be")
    with pytest.raises(AnnealingError, match="No file can be created"):
        AnnealingScaleSave.execute(scale_model=made_up_network(), filename_prefix="mine")


# --- the demo's pictures ----------------------------------------------------------------------------------------------


def test_the_demos_pictures_go_into_cores_dataset_node():
    images, captions = ShapesDataset.execute(count=9, seed=3).args
    assert len(images) == len(captions) == 9 and images[0].shape == (1, 128, 128, 3)
    assert all(torch.equal(a, b) for a, b in zip(images, ShapesDataset.execute(count=9, seed=3).args[0], strict=True))
    assert captions != ShapesDataset.execute(count=9, seed=4).args[1]
    model, clip, vae = load_shapes("flow")
    latents, conditioning = MakeTrainingDataset.execute(images, [vae], [clip], captions).args
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    made = profiled(model, latents=latents, positive=conditioning, negative=[negative], batch_size=8)
    assert len(made.entries.picture.unique()) == 9 and made.kind == "velocity"
    assert made.settings.training_grid == pytest.approx([k / 28 for k in range(28, -1, -1)], abs=2e-3)
