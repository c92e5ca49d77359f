"""Training a scale, first half: measure a model's profile, or load a measured one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
from comfy_api.latest import io

from ..models.errors import AnnealingError
from ..training.knots import spread_knots
from ..training.pictures import SampleSettings, empty_latent, given_pictures, sampled_pictures
from ..training.profile import Profile, ProfileSettings
from ..training.shards import load_folder, measure_into
from ..training.training_grid import PAPER, SCHEDULERS, training_grid
from .files import inside
from .host import TRAINING_ALIASES, TRAINING_CATEGORY, where_known
from .progress import PictureProgress, show_text

PROFILES = "annealing_profiles"  # in ComfyUI's output folder
LARGEST_SCALE = 4.0

AnnealingProfile = io.Custom("ANNEALING_PROFILE")


def profiles_folder() -> Path:
    return Path(folder_paths.get_output_directory(), PROFILES)


class AnnealingProfiler(io.ComfyNode):
    """Profile Guidance.

    It has no fingerprint: a finished run is cached until an input changes, even if its folder gets files from elsewhere. Load
    Annealing Profile reads those. A fingerprint of the folder would change with the files that the run itself writes, and repeat
    everything after it. A run that was stopped is not cached, so the next one continues.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingProfiler",
            display_name="Profile Guidance",
            category=TRAINING_CATEGORY,
            description="Measures on captioned pictures how a model responds to guidance: all that Fit Annealing Scale needs. It "
            "uses only forward passes, and as much memory as sampling. Stop it at any time: what was measured is kept in "
            "output/annealing_profiles/, and the next run continues from there.",
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to train a scale for, as you sample it, with its LoRAs if any."),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="The training pictures, encoded: one, a batch, or the list that Make Training Dataset gives. A few "
                    "hundred are enough. Unconnected: the model itself makes a picture for every prompt.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="The captions: one for each picture, in the same order. Without latents: the prompts to make "
                    "pictures from.",
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="The negative that you sample with: usually an empty prompt, for SDXL base ConditioningZeroOut.",
                ),
                io.String.Input(
                    "profile_name",
                    default="my_model",
                    tooltip="Folder in output/annealing_profiles/ for the measured numbers. All pictures in it count, so a run "
                    "with more pictures adds to it. Another model or other settings need another name.",
                ),
                io.Int.Input(
                    "training_steps",
                    default=0,
                    min=0,
                    max=500,
                    tooltip="Number of sampling steps that the scale is made for. It sets how strong the guidance is. 0: 50 for "
                    "epsilon and v-prediction models (the paper's, about CFG 12), 28 for flow models (about CFG 5). 20 is about "
                    "CFG 5 on epsilon models. With match_training_steps you can still sample with any number of steps.",
                ),
                io.Int.Input(
                    "samples_per_picture",
                    default=8,
                    min=1,
                    max=500,
                    tooltip="Number of noise levels at which each picture is measured. Twice as many take twice as long.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,  # else the interface changes it after every run
                    tooltip="Seed of the noise. The same seed gives the same numbers, even after interruptions.",
                ),
                *_expert_profiler_inputs(),
            ],
            outputs=[
                AnnealingProfile.Output(display_name="profile", tooltip="The measured table. Connect it to Fit Annealing Scale.")
            ],
            **where_known(io.Schema, search_aliases=TRAINING_ALIASES),
        )

    @classmethod
    def execute(cls, latents=None, **inputs) -> io.NodeOutput:
        # Every input comes as a list, because latents and captions may be many.
        several = {name: inputs.pop(name) for name in ("positive", "negative")}
        for name, values in inputs.items():
            if len(values) != 1:
                raise AnnealingError(f"{name} is a list of {len(values)}, and a profile is measured with one. Connect one.")
        one = {name: values[0] for name, values in inputs.items()}
        if len(several["negative"]) != 1:
            raise AnnealingError(
                f"{len(several['negative'])} negatives are connected, and a profile is measured against one. Connect one "
                "conditioning: an empty prompt."
            )
        model, negative = one["model"], several["negative"][0]
        folder = inside(profiles_folder(), one["profile_name"], "profile_name")
        settings = ProfileSettings(
            training_grid=training_grid(
                model.get_model_object("model_sampling"), one["training_steps"], one["training_scheduler"]
            ),
            samples=one["samples_per_picture"],
            knots=spread_knots(0.0, LARGEST_SCALE, one["knots"]),
            perturb=one["perturb_captions"],
            seed=one["seed"],
            projection=one.get("projection", False),
        )
        if latents:
            pictures = given_pictures(latents, several["positive"])
        else:
            sampling = SampleSettings(
                steps=one["sampling_steps"],
                cfg=one["cfg"] or None,
                sampler=one["sampler_name"],
                count=one["pictures_per_prompt"],
                seed=one["seed"],
            )
            size = empty_latent(model, one["width"], one["height"])
            pictures = sampled_pictures(model, size, several["positive"], negative, sampling)
        show_text(f"{len(pictures)} pictures to measure")
        profile = measure_into(folder, model, pictures, negative, settings, one["batch_size"], PictureProgress())
        show_text(_described(profile, folder))
        return io.NodeOutput(profile)


def _expert_profiler_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "training_scheduler",
            options=list(SCHEDULERS),
            default=PAPER,
            tooltip="Noise levels of the steps that the scale is made for. paper: as Paper Schedule gives them.",
            **where_known(io.Combo.Input, advanced=True),
        ),
        io.Int.Input(
            "knots",
            default=9,
            min=3,
            max=33,
            tooltip="The gap after a step is measured at about this many scales from 0 to 4: fewer where it changes evenly, more "
            "where it jumps. The time grows with 1 + knots.",
            **where_known(io.Int.Input, advanced=True),
        ),
        io.Boolean.Input(
            "perturb_captions",
            default=True,
            tooltip="As in the paper: noise is added to the captions' embeddings, more at noisier levels (CADS), so that the "
            "scale learns what to do where the picture misses the prompt.",
            **where_known(io.Boolean.Input, advanced=True),
        ),
        io.Int.Input(
            "batch_size",
            default=1,
            min=1,
            max=256,
            tooltip="Number of noise levels measured at once. It takes the memory of sampling that many pictures. The numbers "
            "stay the same, up to rounding. Raise it for small models.",
            **where_known(io.Int.Input, advanced=True),
        ),
        *(
            io.Int.Input(
                side,
                default=1024,
                min=16,
                max=16384,
                step=8,
                tooltip=f"Without latents: {side} of the pictures that the model makes. Use the size that it was trained on.",
                **where_known(io.Int.Input, advanced=True),
            )
            for side in ("width", "height")
        ),
        io.Int.Input(
            "pictures_per_prompt",
            default=1,
            min=1,
            max=1000,
            tooltip="Without latents: how many pictures the model makes for each prompt.",
            **where_known(io.Int.Input, advanced=True),
        ),
        io.Int.Input(
            "sampling_steps",
            default=28,
            min=1,
            max=1000,
            tooltip="Without latents: steps for making a picture.",
            **where_known(io.Int.Input, advanced=True),
        ),
        io.Float.Input(
            "cfg",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="Without latents: CFG scale for making a picture. 0: unguided. This is best, as guided pictures give too "
            "strong a scale.",
            **where_known(io.Float.Input, advanced=True),
        ),
        io.Combo.Input(
            "sampler_name",
            options=list(comfy.samplers.SAMPLER_NAMES),
            default="euler",
            tooltip="Without latents: sampler for making a picture.",
            **where_known(io.Combo.Input, advanced=True),
        ),
        io.Boolean.Input(
            "projection",
            default=False,
            optional=True,
            tooltip="Measures guidance that goes only across the conditional prediction. The fitted scale is made for it: guider "
            "and patch project then, where their projection is auto. The demo's own scales are made so.",
            **where_known(io.Boolean.Input, advanced=True),
        ),
    ]


def _described(profile: Profile, folder: Path) -> str:
    pictures, entries = len(profile.entries.picture.unique()), len(profile.entries)
    return f"{pictures} pictures, {entries} entries, in {folder}"


class AnnealingProfileLoader(io.ComfyNode):
    """Load Annealing Profile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnnealingProfileLoader",
            display_name="Load Annealing Profile",
            category=TRAINING_CATEGORY,
            description="Loads what Profile Guidance measured, without the model. It merges the files of several machines that "
            "measured the same model with the same settings: copy them into one folder.",
            inputs=[
                io.Combo.Input(
                    "profile_name",
                    options=profile_names(),
                    tooltip="A folder in output/annealing_profiles/. All its files are read. A picture that is in several files "
                    "counts once.",
                ),
            ],
            outputs=[
                AnnealingProfile.Output(display_name="profile", tooltip="The measured table. Connect it to Fit Annealing Scale.")
            ],
            **where_known(io.Schema, search_aliases=TRAINING_ALIASES),
        )

    @classmethod
    def validate_inputs(cls, profile_name: str | None = None) -> bool | str:
        """True, or why there is nothing to load. None: the name comes from another node, and execute will check it."""
        return profile_name is None or profile_name in profile_names() or str(_unknown_profile(profile_name))

    @classmethod
    def fingerprint_inputs(cls, profile_name: str) -> Any:
        """Changes with the files in the folder, so that new ones are read."""
        try:
            files = inside(profiles_folder(), profile_name, "profile_name").rglob("*.safetensors")
            return sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        except (AnnealingError, OSError):
            return None  # execute says what is wrong

    @classmethod
    def execute(cls, profile_name: str) -> io.NodeOutput:
        if profile_name not in profile_names():
            raise _unknown_profile(profile_name)
        folder = inside(profiles_folder(), profile_name, "profile_name")
        profile = load_folder(folder)
        show_text(_described(profile, folder))
        return io.NodeOutput(profile)


def profile_names() -> list[str]:
    """The folders that contain measured files, also in subfolders, as the user names them."""
    names = (file.relative_to(profiles_folder()).parents for file in profiles_folder().rglob("*.safetensors"))
    return sorted({name.as_posix() for parents in names for name in parents} - {"."})


def _unknown_profile(name: object) -> AnnealingError:
    found = "; ".join(profile_names()) or "none yet, run Profile Guidance first"
    return AnnealingError(f"There is no profile {str(name)[:120]!r} in {profiles_folder()}. Available: {found}.")


NODES = [AnnealingProfiler, AnnealingProfileLoader]
