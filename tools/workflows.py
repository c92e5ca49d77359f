"""Opens the templates of workflows/ in ComfyUI's own interface, saves what it saves, and makes their thumbnails.

A template is changed in ComfyUI itself and saved over its file; this brings it into the form in which all of them are kept, with
the nodes' present inputs. `tools/dev.py workflows` runs it in ComfyUI's own Python, against the server that it started.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import urllib.parse
import urllib.request
from pathlib import Path

from devkit import ROOT, archive
from devkit import browser as browsers
from grid import COLUMN_LABEL, GAP, labelled_grid
from PIL import Image
from playwright.sync_api import sync_playwright

WINDOW = {"width": 1920, "height": 1300}
SETTINGS = {"VueNodes.Enabled": False, "Minimap.Visible": False, "Workflow.ShowMissingModelsWarning": False}
SIDE = 512  # of a thumbnail, which is square
CORNER = 56  # its upper edge, where ComfyUI puts its marks
# What the window shows when a template is opened: the upper left corner, below the bars, as small as text is still drawn well.
VIEW = {"scale": 0.7, "offset": [100, 190]}
RUN = """async () => {
  const events = ["execution_success", "execution_error", "execution_interrupted"];
  const { api } = window.app;
  const end = new Promise((resolve) =>
    events.forEach((event) => api.addEventListener(event, ({ detail }) => resolve({ event, detail }), { once: true })),
  );
  await window.app.queuePrompt(0);
  const refused = Object.keys(window.app.lastNodeErrors ?? {}).length;
  return refused ? { event: "a refusal", detail: window.app.lastNodeErrors } : await end;
}"""


def fetched(address: str, **query: str) -> bytes:
    with urllib.request.urlopen(f"{address}?{urllib.parse.urlencode(query)}") as answer:
        return answer.read()


def packs(address: str) -> dict[str, dict[str, str]]:
    """{node: which pack it is from}, as ComfyUI Manager writes it: the interface asks for packs that are missing by it."""
    core = {"cnr_id": "comfy-core", "ver": json.loads(fetched(f"{address}/system_stats"))["system"]["comfyui_version"]}
    ours = {"cnr_id": archive.NAME, "ver": archive.version_of(ROOT)}
    nodes = json.loads(fetched(f"{address}/object_info"))
    return {name: ours if node["python_module"].startswith("custom_nodes.") else core for name, node in nodes.items()}


def saved(page, template: dict, origins: dict[str, dict[str, str]]) -> dict:
    """The template as the interface saves it. origins: as packs() gives them."""
    page.evaluate("template => window.app.loadGraphData(template)", template)
    page.wait_for_timeout(1000)
    # Through text: what has no value is left out, as in a file.
    workflow = json.loads(page.evaluate("() => JSON.stringify(window.app.graph.serialize())"))
    for node in workflow["nodes"]:
        node["properties"] |= origins.get(node["type"], {})
    return {**workflow, "extra": {"ds": VIEW}}


def run(page) -> None:
    """Queue what is open, as the Run button does, and wait for its end."""
    end = page.evaluate(RUN)
    if end["event"] != "execution_success":
        sys.exit(f"dev.py workflows: the workflow ended with {end['event']}: {end['detail']}")
    page.wait_for_timeout(3000)  # pictures are loaded after that


def picture_nodes(workflow: dict) -> list[dict]:
    """The nodes that show the workflow's results, in their order: pictures, and plots of what was learned."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sources = {link: nodes[source]["type"] for link, source, *_ in workflow["links"]}
    showing = [node for node in nodes.values() if node["type"] in ("PreviewImage", "SaveImage")]
    return [node for node in showing if sources[node["inputs"][0]["link"]] != "AnnealingScalePlot"]


def thumbnail(page, address: str, workflow: dict) -> Image.Image:
    """The pictures of the workflow that has just run: a column for each node that shows some."""
    columns = []
    for node in picture_nodes(workflow):
        references = page.evaluate("id => window.app.nodeOutputs[id].images", node["id"])
        columns.append([Image.open(io.BytesIO(fetched(f"{address}/view", **reference))) for reference in references])
    rows = list(zip(*columns, strict=True))
    titles = [node["title"] for node in picture_nodes(workflow)]
    # As large as there is room for, and no higher than the pictures; a title needs more room than a small picture.
    shape = max(picture.height / picture.width for column in columns for picture in column)
    width, height = (SIDE - GAP) // len(columns) - GAP, (SIDE - CORNER - COLUMN_LABEL) // len(rows) - GAP
    width, height = min(width, round(1.5 * height / shape)), min(height, round(width * shape))
    grid = labelled_grid([""] * len(rows), titles, rows, width, height)
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    sheet.paste(grid, ((SIDE - grid.width) // 2, CORNER + (SIDE - CORNER - grid.height) // 2))
    return sheet


def view(page, workflow: dict) -> bytes:
    """The graph as it looks in the interface, without the bars around it."""
    scale, (x, y) = VIEW["scale"], VIEW["offset"]
    page.evaluate("() => { window.app.canvas.ds.offset[1] += 80; window.app.graph.setDirtyCanvas(true, true); }")
    page.wait_for_timeout(1500)
    boxes = [group["bounding"] for group in workflow["groups"]]  # left, top, width, height
    left, top = (min(box[side] for box in boxes) for side in (0, 1))
    right, bottom = (max(box[side] + box[side + 2] for box in boxes) for side in (0, 1))
    place = {"x": (left + x) * scale - 8, "y": (top + y + 80) * scale - 8}
    return page.screenshot(clip={**place, "width": (right - left) * scale + 16, "height": (bottom - top) * scale + 16})


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py workflows", description=__doc__)
    parser.add_argument("address", help="http://host:port of a running ComfyUI with this pack")
    parser.add_argument("numbers", nargs="*", help="templates, by their numbers (all)")
    parser.add_argument("--views", type=Path, help="folder for full views of the graphs, to look at")
    options = parser.parse_args()
    if missing := browsers.set_up(print):
        sys.exit(f"dev.py workflows: {missing}")
    origins = packs(options.address)
    with sync_playwright() as playwright:
        browser = browsers.launch(playwright)
        context = browser.new_context(viewport=WINDOW)
        for path in sorted((ROOT / "workflows").glob("*.json")):
            if options.numbers and path.name.split()[0] not in options.numbers:
                continue
            page = browsers.open_interface(context, options.address, **SETTINGS)
            workflow = saved(page, json.loads(path.read_text(encoding="utf-8")), origins)
            path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
            if "nothing to download" in path.name:  # the others keep the thumbnail that they have
                run(page)
                thumbnail(page, options.address, workflow).save(path.with_suffix(".jpg"), quality=85, optimize=True)
            if options.views:
                (options.views / f"{path.stem}.png").write_bytes(view(page, workflow))
            page.close()
            print(path, flush=True)
        browser.close()


if __name__ == "__main__":
    main()
