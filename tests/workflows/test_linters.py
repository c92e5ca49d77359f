"""The templates under the field's own linters, each in an environment of its own."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from devkit import SetupError
from devkit.host import tool_python
from templates import NAMES, api_format, numbered, template

# What the user has: lists whose items lie on his disk.
USERS_FILES = {
    ("CheckpointLoaderSimple", "ckpt_name"): ["sd_xl_base_1.0.safetensors", "your_model.safetensors"],
    ("UNETLoader", "unet_name"): ["your_model.safetensors"],
    ("CLIPLoader", "clip_name"): ["its_text_encoder.safetensors"],
    ("VAELoader", "vae_name"): ["its_vae.safetensors"],
    ("LoadImageTextDataSetFromFolder", "folder"): ["training_pictures"],
}

pytestmark = [pytest.mark.server, pytest.mark.slow]
each_template = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def comfy_cli() -> list[str]:
    return [_python("comfy-cli"), "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "--json", "workflow", "validate"]


@pytest.fixture(scope="module")
def comfy_lint() -> list[str]:
    return [_python("comfy-lint"), "-m", "comfy_lint.cli", "--strict"]


def _python(name: str) -> str:
    try:
        return str(tool_python(name))
    except SetupError as error:
        pytest.skip(f"{name} cannot be installed here: {error}")


@pytest.fixture(scope="module")
def schema(object_info, tmp_path_factory) -> Path:
    """What the running ComfyUI offers, with the user's files in its lists."""
    offered = copy.deepcopy(object_info)
    for (node, name), files in USERS_FILES.items():
        kind = offered[node]["input"]["required"][name]
        if isinstance(kind[0], list):
            kind[0] = files
        else:
            kind[1]["options"] = files
    path = tmp_path_factory.mktemp("schema") / "object_info.json"
    path.write_text(json.dumps(offered), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Environment variables under which they leave their settings in a folder that goes."""
    folder = str(tmp_path_factory.mktemp("home"))
    yield {**os.environ, "HOME": folder, "USERPROFILE": folder, "XDG_CONFIG_HOME": folder}


def lint_saved(comfy_cli: list[str], schema: Path, home: dict[str, str], workflow: Path) -> dict:
    """What comfy-cli finds in a workflow as the interface saves it."""
    command = [*comfy_cli, "--workflow", str(workflow), "--input", str(schema)]
    done = subprocess.run(command, capture_output=True, text=True, env=home, timeout=120)
    return json.loads(done.stdout.strip().splitlines()[-1])


@each_template
def test_comfy_cli_finds_no_fault(name, comfy_cli, schema, home, tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(template(name)), encoding="utf-8")
    found = lint_saved(comfy_cli, schema, home, path)
    assert found["ok"], found["error"]
    assert found["data"]["warnings"] == []
    assert found["data"]["converted_node_count"] == len(api_format(template(name)))


@each_template
def test_comfy_lint_finds_no_fault(name, comfy_lint, schema, home, tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(api_format(template(name))), encoding="utf-8")
    command = [*comfy_lint, "--schema-cache", str(schema), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=home, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_comfy_cli_would_find_one(comfy_cli, schema, home, tmp_path):
    broken = template(numbered("01"))
    next(node for node in broken["nodes"] if node["type"] == "ShapesLoader")["widgets_values"] = ["no such variant"]
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(broken), encoding="utf-8")
    assert not lint_saved(comfy_cli, schema, home, path)["ok"]
