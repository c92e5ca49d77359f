"""The command of `tools/train_scale.py`: measure a model's profile and fit a scale to it, without a server.

It runs on any number of GPUs and machines.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
import torch.distributed as dist

from ..guidance.host_types import Conditioning
from ..models.errors import AnnealingError
from ..models.whole_file import write_whole
from ..shapes.loader import VARIANTS
from .console import PictureLine, fit_and_save
from .fit import FitSettings
from .once import zeroed
from .pictures import PictureMaker, SampleSettings, empty_latent
from .profile import ProfileSettings
from .shards import load_folder, measure_into, measured_pictures
from .sources import ENCODED_AT_ONCE, Job, Loaded, given_jobs, load, pictures_of, prompted_jobs
from .training_grid import training_grid

LONGEST_WAIT = timedelta(days=7)  # for the slowest rank

DESCRIPTION = """\
Trains an annealing scale for a model: measures the model on captioned pictures (or on pictures that it makes from prompts), then
fits the scale. Stop it at any time; the same command resumes.

  python tools/train_scale.py my_model --checkpoint sdxl.safetensors --pictures my_pictures/
  torchrun --nproc-per-node 4 tools/train_scale.py my_model --checkpoint sdxl.safetensors --prompts prompts.txt

Under torchrun every process takes its own GPU and a share of the pictures. Arguments after -- go to ComfyUI itself:
-- --lowvram, -- --fp8_e4m3fn-unet and the like."""


def main(arguments: Sequence[str], comfyui: Path) -> None:
    """comfyui: the folder of the ComfyUI in use, where files go by default. AnnealingError for the user's mistakes."""
    options = parser().parse_args(arguments)
    folder = options.profile or comfyui / "output" / "annealing_profiles" / options.name
    output = options.output or comfyui / "models" / "annealing_guidance"
    with ranks() as (rank, world):
        if not options.fit_only:
            _measure(options, folder, rank, world)
        if rank == 0 and not options.measure_only:
            profile = load_folder(folder)
            trained_on = options.trained_on or _described(options)
            facts = {"trained_on": trained_on, "source": "trained locally", "licence": options.licence}
            fit_and_save(profile, FitSettings(seed=options.seed), output / f"{options.name}.safetensors", **facts)


def parser() -> argparse.ArgumentParser:
    """For the command's arguments, except those for ComfyUI itself."""
    result = argparse.ArgumentParser(
        prog="train_scale.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("name", type=_file_name, help="of the scale and of its profile")
    model = result.add_argument_group("model (files with their paths)")
    model.add_argument("--checkpoint", type=Path, metavar="FILE", help="with everything in it")
    model.add_argument("--diffusion-model", type=Path, metavar="FILE", help="only the diffusion model")
    model.add_argument("--clip", type=Path, nargs="+", default=[], metavar="FILE", help="text encoders")
    model.add_argument("--clip-type", default="stable_diffusion", metavar="TYPE", help="as in Load CLIP: sd3, flux, wan, ...")
    model.add_argument("--vae", type=Path, metavar="FILE")
    model.add_argument("--shapes", choices=VARIANTS, help="the demo model")
    what = result.add_argument_group("pictures (one of the two)")
    what.add_argument("--pictures", type=Path, metavar="FOLDER", help="pictures with captions: cat.png, cat.txt")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt per line; the model makes the pictures itself")
    what.add_argument("--resolution", type=int, default=1024, help="side of a square of as many pixels (1024; SD 1.5: 512)")
    what.add_argument("--negative", default="", help="the negative prompt that you sample with (none)")
    what.add_argument("--zero-negative", action="store_true", help="zeros as the negative (ConditioningZeroOut): for SDXL base")
    what.add_argument("--count", type=int, default=1, help="with --prompts: pictures per prompt (1)")
    what.add_argument("--sampling-steps", type=int, default=28, help="with --prompts (28)")
    what.add_argument(
        "--cfg", type=float, help="with --prompts (1, unguided: from guided pictures the scale comes out too strong)"
    )
    how = result.add_argument_group("training")
    how.add_argument("--steps", type=int, default=0, help="steps that the scale is made for (50, flow models 28)")
    how.add_argument("--samples", type=int, default=8, help="noise levels per picture (8)")
    how.add_argument("--projection", action="store_true", help="for guidance across the conditional prediction only")
    how.add_argument("--batch-size", type=int, default=4, help="noise levels at once: more memory, more speed (4)")
    how.add_argument("--seed", type=int, default=0)
    only = how.add_mutually_exclusive_group()
    only.add_argument("--measure-only", action="store_true", help="leave the fit for later")
    only.add_argument("--fit-only", action="store_true", help="fit to what the profile's folder holds, without a model")
    files = result.add_argument_group("files")
    files.add_argument("--profile", type=Path, metavar="FOLDER", help="(ComfyUI's output/annealing_profiles/NAME)")
    files.add_argument("--output", type=Path, metavar="FOLDER", help="for the scale (ComfyUI's models/annealing_guidance)")
    files.add_argument("--trained-on", default="", help="kept in the scale's file, for people (the model's and pictures' names)")
    files.add_argument("--licence", default="not stated", help="kept in the scale's file, for people")
    return result


def _file_name(text: str) -> str:
    if Path(text).name != text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name for a file: give --profile and --output for folders")
    return text


def _described(options: argparse.Namespace) -> str:
    model = options.checkpoint or options.diffusion_model
    return f"{model.stem if model else options.shapes or 'a profile'}, {options.pictures or options.prompts or options.name}"


@contextmanager
def ranks() -> Iterator[tuple[int, int]]:
    """(rank, number of processes). Joins torchrun's process group if there are several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)  # only names and small tables travel
    yield dist.get_rank(), world
    dist.destroy_process_group()  # not after an error: torchrun ends the other processes then


def _from_all(value: Any, world: int) -> list[Any]:
    """What every rank gives."""
    values = [value] * world
    if world > 1:
        dist.all_gather_object(values, value)
    return values


def _measure(options: argparse.Namespace, folder: Path, rank: int, world: int) -> None:
    """Measure this rank's share of what no rank has measured yet. Afterwards rank 0 has all shards in its folder."""
    if bool(options.pictures) == bool(options.prompts):
        raise AnnealingError("Give either --pictures FOLDER or --prompts FILE: what to measure the model on.")
    loaded = load(options)
    with torch.no_grad():
        negative = loaded.encode(options.negative)
    if options.zero_negative:
        negative = zeroed(negative)
    settings = ProfileSettings(
        training_grid(loaded.model.get_model_object("model_sampling"), options.steps),
        options.samples,
        seed=options.seed,
        projection=options.projection,
    )
    maker = None
    if options.prompts:
        size = empty_latent(loaded.model, options.resolution, options.resolution)
        sampling = SampleSettings(options.sampling_steps, options.cfg, count=options.count, seed=options.seed)
        maker = PictureMaker(loaded.model, size, negative, sampling)
        jobs = prompted_jobs(options.prompts, maker, loaded)
    else:
        jobs = given_jobs(options.pictures, options.resolution, loaded)

    mine = measured_pictures(folder, loaded.model, negative, settings)
    known = set().union(*_from_all(mine, world))
    jobs = list({job.identity: job for job in jobs}.values())
    share = [job for job in jobs if job.identity not in known][rank::world]
    device = comfy.model_management.get_torch_device()
    print(f"{_label(rank, world)}: {len(jobs)} pictures, {len(share)} of them to measure here, on {device}", flush=True)
    _measure_share(share, folder, loaded, negative, settings, maker, options, PictureLine(_label(rank, world)))
    _bring_together(folder, rank, world)


def _label(rank: int, world: int) -> str:
    return "profile" if world == 1 else f"profile, process {rank + 1} of {world}"


def _measure_share(
    share: list[Job],
    folder: Path,
    loaded: Loaded,
    negative: Conditioning,
    settings: ProfileSettings,
    maker: PictureMaker | None,
    options: argparse.Namespace,
    line: PictureLine,
) -> None:
    """In portions, so that the encoders and the model need not be in memory together."""
    line(0, len(share))
    for start in range(0, len(share), ENCODED_AT_ONCE):
        portion = share[start : start + ENCODED_AT_ONCE]
        pictures = pictures_of(portion, loaded, options.resolution, maker)

        def progress(done: int, total: int, start: int = start) -> None:
            line(start + done, len(share))

        if pictures:
            measure_into(folder, loaded.model, pictures, negative, settings, options.batch_size, progress)


def _bring_together(folder: Path, rank: int, world: int) -> None:
    """Copy to rank 0's folder the shards that it lacks, so that the machines need no shared disk."""
    if world == 1:
        return
    mine = {str(path.relative_to(folder)): path for path in folder.rglob("*.safetensors")}
    known = set(_from_all(sorted(mine), world)[0])
    sent = {name: path.read_bytes() for name, path in mine.items() if name not in known}
    received: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(sent, received)
    for shards in received or []:
        for name, data in shards.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
