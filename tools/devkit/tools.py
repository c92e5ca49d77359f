"""Developer's tools from PyPI, each in an environment of its own in the cache: none of them can disturb the host's packages."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import venv
from pathlib import Path

from . import SetupError
from .cache import appearing, cache_folder, exclusive
from .environment import python_of
from .pip import run_pip

# By command; what is pinned gives the same findings tomorrow.
PACKAGES = {
    "comfy-cli": ["comfy-cli==1.23.0"],
    "comfy-lint": ["comfy-lint==0.1.0"],
    "mypy": ["mypy==2.4.1"],
    "pip-audit": ["pip-audit"],
    "fuzz": ["atheris==3.0.0"],
}


def tool_python(name: str) -> Path:
    """The Python of the tool's environment, which is made if need be. SetupError where that fails."""
    packages = PACKAGES[name]
    if not importlib.util.find_spec("ensurepip"):
        raise SetupError(
            f"{name} needs an environment of its own, and this Python ({sys.executable}) has no ensurepip to make it."
        )
    fingerprint = hashlib.sha256(repr((packages, sys.executable, sys.version_info[:3])).encode()).hexdigest()[:12]
    folder = cache_folder() / f"tool-{name}-{fingerprint}"
    with exclusive(cache_folder()):
        if not folder.is_dir():
            print(f"Installing {', '.join(packages)} into {folder} ...", file=sys.stderr, flush=True)
            with appearing(folder) as partial:
                venv.create(partial, with_pip=True)
                run_pip(python_of(partial), "install", *packages)
    return python_of(folder)
