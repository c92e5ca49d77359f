"""The SDXL templates run to the end with a small model of SDXL's structure, where its 6.9 GB are not at hand."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from annealing_guidance_pack.models import catalogue
from client import run_workflow
from devkit.host import Host
from devkit.server import Server
from PIL import Image
from templates import api_format, numbered, template

ROOT = Path(__file__).resolve().parents[2]
# A node pack of one file.
LOADER_PACK = f"""
import sys
sys.path.append({str(ROOT / "tests" / "support")!r})
from small_sdxl import SmallSDXLLoader
NODE_CLASS_MAPPINGS = {{"SmallSDXLLoader": SmallSDXLLoader}}
"""

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def server_with_small_sdxl(comfyui, official_checkpoint, tmp_path_factory) -> Iterator[Server]:
    """A server that has the authors' network already, and a loader of a small SDXL."""
    base = tmp_path_factory.mktemp("server_with_small_sdxl")
    scales = base / "models" / "annealing_guidance"
    scales.mkdir(parents=True)
    shutil.copy(official_checkpoint, scales / catalogue.OFFICIAL_SDXL.file_name)
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "small_sdxl_loader.py").write_text(LOADER_PACK, encoding="utf-8")
    with Server(Host(comfyui, Path(sys.executable)), base, ROOT) as running:
        yield running


@pytest.mark.parametrize(("number", "steps"), [("07", 50), ("06", 25)])
def test_it_runs_to_the_end(server_with_small_sdxl, number, steps):
    name = f"sdxl_{number}"
    workflow = api_format(template(numbered(number)))
    (loader,) = (key for key, node in workflow.items() if node["class_type"] == "CheckpointLoaderSimple")
    (latent,) = (node for node in workflow.values() if node["class_type"] == "EmptyLatentImage")
    workflow[loader] = {"class_type": "SmallSDXLLoader", "inputs": {}}
    latent["inputs"] |= {"width": 128, "height": 128}
    (guider,) = (key for key, node in workflow.items() if node["class_type"] == "AnnealingGuider")
    (sampling,) = (key for key, node in workflow.items() if node["class_type"] == "SamplerCustomAdvanced")
    # Its numbers, to see that every step was guided.
    workflow["numbers"] = {
        "class_type": "AnnealingScalePlot",
        "inputs": {"trace": [guider, 1], "samples": [sampling, 0], "csv_prefix": name},
    }
    workflow["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["numbers", 0]}}
    saved = run_workflow(server_with_small_sdxl.address, workflow)
    (picture,) = (saved[key][0] for key, node in workflow.items() if node["class_type"] == "SaveImage")
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    assert pixels.shape == (128, 128, 3) and pixels.std() > 5
    (table,) = (Path(server_with_small_sdxl.base) / "output").glob(f"{name}*.csv")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + steps
