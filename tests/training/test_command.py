"""The command for users: pictures or prompts in, a scale out; several processes give the table that one gives."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from annealing_guidance_pack.models.errors import AnnealingError
from annealing_guidance_pack.models.scale_file import load_scale
from annealing_guidance_pack.shapes.loader import captioned_pictures
from annealing_guidance_pack.training import command, sources
from annealing_guidance_pack.training.fit import FitSettings
from annealing_guidance_pack.training.shards import load_folder
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "tools" / "train_scale.py")
COUNT = 8
PATIENCE = 300


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A folder of captioned picture files, and a few that are none."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures, captions = captioned_pictures(COUNT, 0)
    for i, (pixels, caption) in enumerate(zip(pictures, captions, strict=True)):
        Image.fromarray((pixels * 255).round().byte().numpy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    (folder / "prompts.lst").write_text("\n".join(captions))
    return folder


def arguments(drawn: Path, *more: str) -> list[str]:
    return ["mine", "--shapes", "flow", "--pictures", str(drawn), "--resolution", "128", "--samples", "8", *more]


@pytest.fixture(scope="module")
def alone(drawn, tmp_path_factory) -> Path:
    """A ComfyUI's folder after the command ran in one process."""
    folder = tmp_path_factory.mktemp("comfyui")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "FitSettings", lambda seed: FitSettings(steps=20, hidden_width=8, depth=0, seed=seed))
        command.main(arguments(drawn), folder)
    return folder


def profile_folder(comfyui: Path) -> Path:
    return comfyui / "output" / "annealing_profiles" / "mine"


def test_it_makes_a_scale_where_comfyui_looks_for_it(alone, drawn):
    info = load_scale(alone / "models" / "annealing_guidance" / "mine.safetensors").info
    assert (info.name, info.prediction, info.reference_numel) == ("mine", "velocity", 4 * 16 * 16)
    assert info.trained_on == f"flow, {drawn}" and info.licence == "not stated"
    assert len(load_folder(profile_folder(alone)).entries) == 8 * COUNT


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_table_that_one_gives(alone, drawn, comfyui, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    places = ["--profile", str(tmp_path / "profile"), "--output", str(tmp_path), "--measure-only"]
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launch, SCRIPT, *arguments(drawn, *places)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"process 1 of 2: {COUNT} pictures, {COUNT // 2} of them" in done.stdout and "process 2 of 2" in done.stdout
    assert len(list((tmp_path / "profile").iterdir())) == 2
    one, two = load_folder(profile_folder(alone)), load_folder(tmp_path / "profile")
    assert (one.settings, one.reference_numel) == (two.settings, two.reference_numel)
    for name, tensor in vars(one.entries).items():
        assert torch.equal(tensor, getattr(two.entries, name)), name
    assert not (tmp_path / "mine.safetensors").exists()


def test_run_again_it_measures_nothing(alone, drawn, capsys):
    options = command.parser().parse_args(arguments(drawn))
    command._measure(options, profile_folder(alone), 0, 1)
    assert f"{COUNT} pictures, 0 of them" in capsys.readouterr().out


def test_the_model_makes_the_pictures_from_prompts_without_a_vae(drawn, tmp_path):
    prompts = ["mine", "--shapes", "epsilon", "--prompts", str(drawn / "prompts.lst"), "--resolution", "64", "--samples", "2"]
    options = command.parser().parse_args([*prompts, "--count", "2", "--sampling-steps", "2", "--steps", "5"])
    command._measure(options, tmp_path, 0, 1)
    profile = load_folder(tmp_path)
    assert len(profile.entries.picture.unique()) == 2 * COUNT and profile.reference_numel == 4 * 8 * 8


def test_a_picture_file_is_known_by_its_content_caption_and_resolution(drawn):
    loaded = sources.load(command.parser().parse_args(arguments(drawn)))
    jobs = sources.given_jobs(drawn, 128, loaded)
    assert [job.caption for job in jobs] == [path.with_suffix(".txt").read_text() for path in sorted(drawn.glob("*.png"))]
    assert len({job.identity for job in jobs}) == COUNT
    assert not {job.identity for job in sources.given_jobs(drawn, 64, loaded)} & {job.identity for job in jobs}


def test_what_is_left_out_is_said(drawn, tmp_path, capsys):
    for name in ("0.png", "0.txt", "1.png"):
        (tmp_path / name).write_bytes((drawn / name).read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("a red circle")
    loaded = sources.load(command.parser().parse_args(arguments(drawn)))
    jobs = sources.given_jobs(tmp_path, 128, loaded)
    assert len(sources.pictures_of(jobs, loaded, 128, None)) == 1
    said = capsys.readouterr().out
    assert "1 of 3 pictures have no caption" in said and "broken.png cannot be read" in said


def test_pictures_keep_their_aspect_at_the_resolution(tmp_path):
    Image.new("RGB", (900, 400), "red").save(tmp_path / "wide.png")
    pixels = sources.load_picture(tmp_path / "wide.png", 512)
    assert pixels.shape == (1, 320, 768, 3) and 0.0 <= pixels.min() and pixels.max() <= 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["mine", "--shapes", "flow"], "either --pictures FOLDER or --prompts FILE"),
        (["mine", "--checkpoint", "none.safetensors", "--pictures", "."], "There is no file none.safetensors"),
        (["mine", "--pictures", "."], "no diffusion model .* no text encoder .* no VAE"),
        (["mine", "--shapes", "flow", "--pictures", "{empty}"], "none with a caption"),
        (["mine", "--shapes", "flow", "--prompts", "{empty}/none.txt"], "cannot be read"),
        (["mine", "--fit-only"], "no measured pictures"),
    ],
)
def test_a_users_mistakes_are_told_in_words(given, message, tmp_path):
    with pytest.raises(AnnealingError, match=message):
        command.main([argument.format(empty=tmp_path) for argument in given], tmp_path)


def test_an_unknown_clip_type_is_answered_with_the_known_ones():
    with pytest.raises(AnnealingError, match="stable_diffusion"):
        sources._clip_type("fluxx")


def bring_together(folder: Path, rank: int, meeting: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    command._bring_together(folder, rank, 2)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are forked")
def test_shards_of_machines_without_a_disk_in_common_come_to_the_first(tmp_path):
    for rank, names in enumerate([("a", "both"), ("both", "b", "deep/c")]):
        for name in names:
            path = tmp_path / str(rank) / f"{name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of {rank}")
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=bring_together, args=(tmp_path / str(r), r, tmp_path / "meeting")) for r in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(PATIENCE)
    assert [process.exitcode for process in both] == [0, 0]
    first = {str(path.relative_to(tmp_path / "0")): path.read_text() for path in (tmp_path / "0").rglob("*.safetensors")}
    assert first == {
        "a.safetensors": "a of 0",
        "both.safetensors": "both of 0",
        "b.safetensors": "b of 1",
        "deep/c.safetensors": "deep/c of 1",
    }


def test_without_a_comfyui_it_says_where_it_looked(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    done = subprocess.run([sys.executable, SCRIPT, "mine"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Name your ComfyUI with COMFYUI_PATH" in done.stderr and "Traceback" not in done.stderr
