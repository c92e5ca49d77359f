"""The archive that users get from ComfyUI's registry: what is in it, whether it may be published, its bill of materials."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import SetupError
from .host import tool_python
from .in_process import PACK, import_pack
from .process import output_of

NAME = "annealing-guidance"
PLACEHOLDER = "OWNER"
# The registry's scanner; `comfy node validate` only warns of them.
FORBIDDEN = "S102,S307,E702"


def version_of(root: Path) -> str:
    return re.search(r'^version = "(.*)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]


def archive_files(root: Path) -> list[str]:
    """What the archive carries: the files that git tracks, less those of .comfyignore. Paths below root, with /."""
    ignored = git(root, "ls-files", "-z", "--cached", "--ignored", "--exclude-from=.comfyignore")
    return sorted({*git(root, "ls-files", "-z")} - {*ignored})


def require_releasable(root: Path) -> None:
    """SetupError with all that stands against publishing this state."""
    problems = []
    if PLACEHOLDER in (root / "pyproject.toml").read_text(encoding="utf-8"):
        problems.append(f"pyproject.toml still says {PLACEHOLDER}: put in the publisher's id and the repository's address.")
    if release_notes(root) is None:
        wanted = f"## [{version_of(root)}] - <date>"
        problems.append(f"CHANGELOG.md has no section '{wanted}': rename [Unreleased] to it.")
    if problems:
        raise SetupError(f"not ready to be published: {' '.join(problems)}")


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
        if "All validation checks passed" not in said or "Warning" in said:
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
    lines = (root / "requirements.txt").read_text(encoding="utf-8").split("\n")
    needed = [
        _part("library", f"pkg:pypi/{line}", line, purl=f"pkg:pypi/{line}") for line in lines if line.strip("# ") == line != ""
    ]
    licence = [{"license": {"id": "Apache-2.0"}}]
    contained = []
    for name in archive_files(root):
        kind = "machine-learning-model" if name.endswith(".safetensors") else "file"
        digest = hashlib.sha256((root / name).read_bytes()).hexdigest()
        contained.append(_part(kind, name, name, digest, licenses=licence))
    if PACK not in sys.modules:
        import_pack(root)
    fetched = [
        _part("machine-learning-model", entry.url, entry.name, entry.sha256, scope="optional",
              externalReferences=[{"type": "distribution", "url": entry.url}])
        for entry in importlib.import_module(f"{PACK}.models.catalogue").CATALOGUE
    ]  # fmt: skip
    top = _part("application", NAME, NAME, version=version_of(root), licenses=licence, components=contained)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(hashlib.sha256(repr(contained).encode()).hexdigest()[:32], version=4)}",
        "version": 1,
        "metadata": {"component": top},
        "components": needed + fetched,
        "dependencies": [{"ref": NAME, "dependsOn": [part["bom-ref"] for part in needed]}],
    }


def _part(kind: str, reference: str, name: str, sha256: str = "", **more: Any) -> dict[str, Any]:
    hashes = {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}
    return {"type": kind, "bom-ref": reference, "name": name, **hashes, **more}


@contextlib.contextmanager
def _copied(root: Path) -> Iterator[Path]:
    """The tracked files in a repository of their own, so that nothing is written into this one."""
    with tempfile.TemporaryDirectory(prefix="annealing-guidance-pack-") as folder:
        copy = Path(folder)
        for name in git(root, "ls-files", "-z"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy / name)
        git(copy, "init", "--quiet")
        git(copy, "-c", "core.autocrlf=false", "add", "--all", "--force")
        yield copy


def comfy_cli() -> list[str]:
    """ComfyUI's command line, which asks and reports nothing."""
    return [str(tool_python("comfy-cli")), "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry"]


def _comfy(folder: Path, *arguments: str) -> str:
    """What `comfy` says, in one line; its settings and records go to a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="annealing-guidance-comfy-") as home:
        variables = ("HOME", "USERPROFILE", "XDG_CONFIG_HOME", "LOCALAPPDATA")
        environment = {**os.environ, **dict.fromkeys(variables, home), "PYTHONUTF8": "1", "COLUMNS": "200"}
        status, said = output_of([*comfy_cli(), *arguments], environment, folder)
    if status != 0:
        raise SetupError(f"comfy {' '.join(arguments)} failed: {' '.join(said.split())[-600:]}")
    return " ".join(said.split())


def git(folder: Path, *arguments: str) -> list[str]:
    """What git prints, split at NUL."""
    status, said = output_of(["git", *arguments], folder=folder)
    if status != 0:
        raise SetupError(f"git, which tells what belongs to the pack, failed in {folder}: {said.strip()}.")
    return [name for name in said.split("\0") if name]
