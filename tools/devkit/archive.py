"""The archive that users get from ComfyUI's registry: what is in it, whether it may be published, its bill of materials."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import SetupError
from .in_process import PACK, import_pack
from .process import output_of
from .tools import tool_python

NAME = "annealing-guidance"
PLACEHOLDER = "OWNER"
# The registry's scanner; `comfy node validate` only warns of them.
FORBIDDEN = "S102,S307,E702"
_VALIDATED = "All validation checks passed"


def version_of(root: Path) -> str:
    return re.search(r'^version = "(.*)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def archive_files(root: Path) -> list[str]:
    """What the archive carries: the files that git tracks, less those of .comfyignore. Paths below root, with /."""
    ignored = _git(root, "ls-files", "-z", "--cached", "--ignored", "--exclude-from=.comfyignore")
    return sorted(set(_git(root, "ls-files", "-z")) - set(ignored))


def release_problems(root: Path) -> list[str]:
    """What stands against publishing this state, each a sentence; nothing where it may go out."""
    version = version_of(root)
    problems = []
    if PLACEHOLDER in (root / "pyproject.toml").read_text(encoding="utf-8"):
        problems.append(f"pyproject.toml still says {PLACEHOLDER}: put in the publisher's id and the repository's address.")
    if release_notes(root) is None:
        problems.append(f"CHANGELOG.md has no section '## [{version}] - <date>': rename [Unreleased] to it.")
    return problems


def release_notes(root: Path) -> str | None:
    """The changelog's section of the current version; None where it has none with a date."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = rf"^## \[{re.escape(version_of(root))}\] - \d{{4}}-\d{{2}}-\d{{2}}$(.*?)(?=^## |\Z)"
    found = re.search(heading, text, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else None


def pack(root: Path, target: Path) -> None:
    """Let ComfyUI's own command line validate the pack and make the archive. SetupError where it, or the gate, objects."""
    with _copied(root) as copy:
        said = _comfy(copy, "node", "validate")
        if _VALIDATED not in said or "Warning" in said:
            raise SetupError(f"comfy node validate objects: {said}")
        _comfy(copy, "node", "pack")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(copy / "node.zip", target)
    with tempfile.TemporaryDirectory(prefix="annealing-guidance-unpacked-") as folder:
        shutil.unpack_archive(target, folder)
        check = ["ruff", "check", "--isolated", "--ignore-noqa", "--no-cache", "--select", FORBIDDEN, folder]
        status, found = output_of([str(tool_python("comfy-cli")), "-m", *check])
    if status != 0:
        raise SetupError(f"the registry forbids this: {' '.join(found.split())}")


def bill_of_materials(root: Path) -> dict[str, Any]:
    """What the archive contains and depends on, as CycloneDX 1.6: every file with its SHA-256, the packages that
    requirements.txt names (ComfyUI's Python has all but matplotlib; no versions are asked for), and what it may fetch."""
    files = archive_files(root)
    packages = [line for line in (root / "requirements.txt").read_text(encoding="utf-8").split("\n") if line.strip()]
    packages = [line for line in packages if not line.startswith("#")]
    top = {"type": "application", "bom-ref": NAME, "name": NAME, "version": version_of(root), **_licensed("Apache-2.0")}
    contained = [
        {
            "type": "machine-learning-model" if name.endswith(".safetensors") else "file",
            "bom-ref": name,
            "name": name,
            "hashes": [_hash((root / name).read_bytes())],
            **_licensed("Apache-2.0"),
        }
        for name in files
    ]
    needed = [{"type": "library", "bom-ref": f"pkg:pypi/{name}", "name": name, "purl": f"pkg:pypi/{name}"} for name in packages]
    identity = hashlib.sha256("".join(part["hashes"][0]["content"] for part in contained).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(identity[:32], version=4)}",
        "version": 1,
        "metadata": {"component": {**top, "components": contained}},
        "components": needed + _fetched(root),
        "dependencies": [{"ref": NAME, "dependsOn": [part["bom-ref"] for part in needed]}],
    }


def _fetched(root: Path) -> list[dict[str, Any]]:
    """What the pack may fetch on the user's machine: not in the archive."""
    if PACK not in sys.modules:
        import_pack(root)
    catalogue = importlib.import_module(f"{PACK}.models.catalogue").CATALOGUE
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": entry.url,
            "name": entry.name,
            "scope": "optional",
            "hashes": [{"alg": "SHA-256", "content": entry.sha256}],
            "externalReferences": [{"type": "distribution", "url": entry.url}],
        }
        for entry in catalogue
    ]


def _licensed(identifier: str) -> dict[str, Any]:
    return {"licenses": [{"license": {"id": identifier}}]}


def _hash(content: bytes) -> dict[str, str]:
    return {"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}


@contextlib.contextmanager
def _copied(root: Path) -> Iterator[Path]:
    """The tracked files in a repository of their own, so that nothing is written into this one."""
    with tempfile.TemporaryDirectory(prefix="annealing-guidance-pack-") as folder:
        copy = Path(folder)
        for name in _git(root, "ls-files", "-z"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy / name)
        _git(copy, "init", "--quiet")
        _git(copy, "-c", "core.autocrlf=false", "add", "--all", "--force")
        yield copy


def _comfy(folder: Path, *arguments: str) -> str:
    """What `comfy` says, in one line; its settings and records go to a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="annealing-guidance-comfy-") as home:
        variables = ("HOME", "USERPROFILE", "XDG_CONFIG_HOME", "LOCALAPPDATA")
        environment = {**os.environ, **dict.fromkeys(variables, home), "PYTHONUTF8": "1", "COLUMNS": "200"}
        command = [str(tool_python("comfy-cli")), "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", *arguments]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
        )
    said = " ".join((done.stdout + done.stderr).split())
    if done.returncode != 0:
        raise SetupError(f"comfy {' '.join(arguments)} failed: {said[-600:]}")
    return said


def _git(folder: Path, *arguments: str) -> list[str]:
    """What git prints, split at NUL."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    except FileNotFoundError as error:
        raise SetupError("git is needed to tell which files belong to the pack: install it.") from error
    if done.returncode != 0:
        raise SetupError(f"git {arguments[0]} failed in {folder}: {done.stderr.strip()}.")
    return [name for name in done.stdout.split("\0") if name]
