"""Queues the bundled demo workflow once per prompt and saves the pictures and one labelled picture of them all.

`tools/dev.py demo` runs this in ComfyUI's own Python, against the server that it started.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import sys
import time
from pathlib import Path

from client import Workflow, WorkflowError, run_workflow
from devkit import ROOT
from grid import labelled_grid
from PIL import Image

WORKFLOW = ROOT / "workflows" / "api" / "demo.json"
# Scenes that the demo model never saw in training, each with a seed of its own. The seeds were chosen so that in each column of
# the epsilon model as many are wrong as of all 512 held-out prompts: 4 without guidance, 1 with CFG, none with annealing.
FIRST_SEED = 25
PROMPTS = [
    "a red circle left of a green cross",
    "a green triangle above a red square",
    "a yellow square right of a purple cross",
    "a blue circle above a yellow triangle",
    "a blue triangle below a purple triangle",
    "a blue square right of a yellow square",
    "a red square below a green cross",
    "a purple circle above a green square",
]


def workflow_for(template: Workflow, variant: str, prompt: str, seed: int) -> Workflow:
    """A copy of the demo workflow with the model variant, the prompt and the seed filled in."""
    workflow = copy.deepcopy(template)
    workflow["loader"]["inputs"]["variant"] = variant
    # Named, because a scale that the user trained on the demo model would be found first.
    workflow["scale"]["inputs"]["scale_name"] = f"shapes_{variant}.safetensors"
    workflow["prompt"]["inputs"]["text"] = prompt
    workflow["noise"]["inputs"]["noise_seed"] = seed
    return workflow


def saving_nodes(template: Workflow) -> dict[str, str]:
    """{node: title} of the nodes that save pictures, in the workflow's order: the columns."""
    return {name: node["_meta"]["title"] for name, node in template.items() if node["class_type"] == "SaveImage"}


def run_prompts(address: str, template: Workflow, variant: str, folder: Path) -> list[list[Image.Image]]:
    """Run the workflow for every prompt, save each picture as it comes, and return them as [prompt][column]."""
    rows = []
    for number, prompt in enumerate(PROMPTS):
        print(f"  {number + 1} of {len(PROMPTS)}: {prompt}", flush=True)
        saved = run_workflow(address, workflow_for(template, variant, prompt, FIRST_SEED + number))
        for name in saving_nodes(template):
            (folder / f"{number + 1}-{name}.png").write_bytes(saved[name][0])
        rows.append([Image.open(io.BytesIO(saved[name][0])) for name in saving_nodes(template)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="http://host:port of a running ComfyUI with this pack")
    parser.add_argument("output", type=Path, help="folder for the pictures")
    parser.add_argument("--variant", default="epsilon", help="which demo model: epsilon or flow")
    options = parser.parse_args()
    template = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    folder = options.output / options.variant
    picture = options.output / f"demo-{options.variant}.png"
    started = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = run_prompts(options.address, template, options.variant, folder)
        labelled_grid(PROMPTS, list(saving_nodes(template).values()), rows).save(picture)
    except KeyboardInterrupt:
        sys.exit(130)
    except WorkflowError as error:
        sys.exit(f"The demo failed: {error}")
    except OSError as error:
        sys.exit(f"The pictures could not be saved ({error}): free some space or choose a folder with --output.")
    print(f"Done in {time.monotonic() - started:.0f} s. The picture: {picture}\nSingle pictures: {folder}", flush=True)


if __name__ == "__main__":
    main()
