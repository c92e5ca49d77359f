"""Builds the templates of graphs.py in ComfyUI's own interface, saves what it saves, and makes their thumbnails.

`tools/dev.py workflows` runs this in ComfyUI's own Python, against the server that it started, in a headless browser.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import urllib.parse
import urllib.request
import uuid
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from devkit import browser as browsers

from workflows.description import Workflow
from workflows.graphs import ALL

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(__file__).with_name("build.js").read_text(encoding="utf-8")
VIEW = {"width": 1920, "height": 1300}
SIDE = 512  # of a thumbnail, which is square
CORNER = 56  # its upper edge, where ComfyUI puts its marks
# The corners of all groups together, in the window's pixels.
FRAME_ON_SCREEN = """() => {
  const { graph, canvas } = window.app;
  const { left, top } = canvas.canvas.getBoundingClientRect();
  const frames = [...graph.groups].map(({ pos, size }) => [pos[0], pos[1], pos[0] + size[0], pos[1] + size[1]]);
  const ends = [0, 1, 2, 3].map((side) => Math[side < 2 ? "min" : "max"](...frames.map((frame) => frame[side])));
  const place = (end, side) =>
    Math.round((end + canvas.ds.offset[side % 2]) * canvas.ds.scale + [left, top][side % 2] + (side < 2 ? -8 : 8));
  return ends.map(place);
}"""
RUN_TIMEOUT_MS = 900_000


def pack() -> dict[str, str]:
    """The pack's name and version, by pyproject.toml. (tomllib is newer than the oldest Python that ComfyUI runs on.)"""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    return {name: next(line.split('"')[1] for line in lines if line.startswith(f"{name} =")) for name in ("name", "version")}


def packs(address: str) -> dict[str, dict[str, str]]:
    """{node: which pack it is from, in which version}."""
    ours = {"cnr_id": pack()["name"], "ver": pack()["version"]}
    with urllib.request.urlopen(f"{address}/system_stats") as answer:
        core = {"cnr_id": "comfy-core", "ver": json.load(answer)["system"]["comfyui_version"]}
    with urllib.request.urlopen(f"{address}/object_info") as answer:
        modules = {name: info["python_module"] for name, info in json.load(answer).items()}
    return {name: ours if module.startswith("custom_nodes.") else core for name, module in modules.items()}


def open_interface(browser, address: str):
    settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False, "Comfy.Minimap.Visible": False,
                "Comfy.Workflow.ShowMissingModelsWarning": False}  # fmt: skip
    for name, value in settings.items():
        body = json.dumps(value).encode()
        urllib.request.urlopen(urllib.request.Request(f"{address}/settings/{name}", data=body, method="POST")).close()
    page = browser.new_page(viewport=VIEW)
    page.goto(address)
    page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=120_000)
    page.wait_for_function("document.querySelector('canvas') && !document.querySelector('#splash-loader')", timeout=60_000)
    return page


def build(page, workflow: Workflow, origins: dict[str, dict[str, str]]) -> tuple[dict, dict[str, int]]:
    """What the interface saves for the workflow, and {key: node id}. origins: as packs() gives them."""
    description = {
        "rows": [[asdict(group) for group in row] for row in workflow.rows],
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{pack()['name']}/{workflow.name}")),
        "packs": origins,
    }
    built = page.evaluate(BUILD, description)
    return json.loads(built["saved"]), built["ids"]


def run(page) -> None:
    """Queue what is open, as the Run button does, and wait for its end."""
    page.evaluate(
        """() => {
          window.finished = null;
          for (const event of ["execution_success", "execution_error", "execution_interrupted"])
            window.app.api.addEventListener(event, ({ detail }) => (window.finished = { event, detail }), { once: true });
        }"""
    )
    page.evaluate("() => window.app.queuePrompt(0)")
    if refused := page.evaluate("() => window.app.lastNodeErrors"):
        raise SystemExit(f"ComfyUI refused the workflow: {refused}")
    end = page.wait_for_function("window.finished", timeout=RUN_TIMEOUT_MS).json_value()
    if end["event"] != "execution_success":
        raise SystemExit(f"The workflow ended with {end['event']}: {end['detail'].get('exception_message')}")
    page.wait_for_timeout(3000)  # pictures are loaded after that


def view_of_graph(page) -> Image.Image:
    """The graph as it looks in the interface when it is opened, without the bars around it."""
    page.evaluate("() => { window.app.canvas.ds.offset[1] += 80; window.app.graph.setDirtyCanvas(true, true); }")
    page.wait_for_timeout(1500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return picture.crop(page.evaluate(FRAME_ON_SCREEN))


def pictures_of(page, address: str, node: int) -> list[Image.Image]:
    """The pictures that a node of the open workflow shows."""
    references = page.evaluate("id => window.app.nodeOutputs[id].images", node)
    urls = (f"{address}/view?{urllib.parse.urlencode(reference)}" for reference in references)
    return [Image.open(io.BytesIO(urllib.request.urlopen(url).read())).convert("RGB") for url in urls]


def thumbnail(shown: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Nodes' pictures, each over its node's title, in a square; a node's own pictures in two columns."""
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(19)
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    width, height = SIDE // columns, (SIDE - CORNER) // rows
    for number, (title, pictures) in enumerate(shown):
        left, top = number % columns * width, CORNER + number // columns * height
        if number == len(shown) - 1 and len(shown) % 2 and columns == 2:
            left += width // 2
        block = pictures[0] if len(pictures) == 1 else _two_columns(pictures[:4])
        share = min((width - 12) / block.width, (height - 30) / block.height)
        block = block.resize((round(block.width * share), round(block.height * share)), Image.Resampling.LANCZOS)
        upper = top + (height - 30 - block.height) // 2
        sheet.paste(block, (left + (width - block.width) // 2, upper))
        draw.text((left + width / 2, upper + block.height + 16), title, "black", font, anchor="mm")
    return sheet


def _two_columns(pictures: list[Image.Image]) -> Image.Image:
    side = pictures[0].width
    block = Image.new("RGB", (2 * side + 4, -(-len(pictures) // 2) * (side + 4) - 4), "white")
    for number, picture in enumerate(pictures):
        block.paste(picture, (number % 2 * (side + 4), number // 2 * (side + 4)))
    return block


def drawn_thumbnail(kind: str) -> Image.Image:
    """What takes the place of results that cannot be made here."""
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    if kind == "fit":  # the left half of the plot that training ends with
        plot = Image.open(ROOT / "docs" / "training_plot.png").convert("RGB")
        plot = plot.crop((0, 0, plot.width * 58 // 100, plot.height))
    else:
        plot = _scale_over_steps()
    share = min((SIDE - 20) / plot.width, (SIDE - CORNER - 10) / plot.height)
    plot = plot.resize((round(plot.width * share), round(plot.height * share)), Image.Resampling.LANCZOS)
    sheet.paste(plot, ((SIDE - plot.width) // 2, CORNER + (SIDE - CORNER - plot.height) // 2))
    return sheet


def _scale_over_steps() -> Image.Image:
    """The authors' network over the noise levels, by its golden figures (a gap of norm 20), a line for each lambda."""
    golden = json.loads((ROOT / "tests" / "data" / "scale_grid.json").read_text(encoding="utf-8"))["rows"]
    figure = Figure(figsize=(5, 4.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for value, colour in ((0, "#56b4e9"), (0.4, "#0072b2"), (0.8, "#d55e00")):
        line = sorted(((t, w) for t, norm, one, w in golden if norm == 20 and one == value), reverse=True)
        axes.plot(*zip(*line, strict=True), color=colour, linewidth=3, label=f"lambda {value:g}")
    axes.invert_xaxis()
    axes.set(xlabel="noise level: from noise to picture", ylabel="guidance scale", xticks=[])
    axes.set_title("SDXL", loc="right")
    axes.legend(frameon=False)
    file = io.BytesIO()
    figure.savefig(file)
    return Image.open(file).convert("RGB")


def save_thumbnail(picture: Image.Image, path: Path) -> None:
    picture.save(path, quality=85, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="http://host:port of a running ComfyUI with this pack")
    parser.add_argument("names", nargs="*", help="templates to make (all)")
    parser.add_argument("--views", type=Path, help="folder for full views of the graphs, to look at")
    options = parser.parse_args()
    if missing := browsers.set_up(print):
        sys.exit(f"dev.py workflows: {missing}")
    origins = packs(options.address)
    with sync_playwright() as playwright:
        browser = browsers.launch(playwright)
        for workflow in (make() for make in ALL):
            if options.names and workflow.name not in options.names:
                continue
            page = open_interface(browser, options.address)
            saved, ids = build(page, workflow, origins)
            path = ROOT / "workflows" / f"{workflow.name}.json"
            path.write_text(json.dumps(saved, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            page.evaluate("saved => window.app.loadGraphData(saved)", saved)  # what users will open
            page.wait_for_timeout(1000)
            if workflow.thumbnail:
                run(page)
                titles = {node["id"]: node.get("title", node["type"]) for node in saved["nodes"]}
                shown = [(titles[ids[key]], pictures_of(page, options.address, ids[key])) for key in workflow.thumbnail]
                save_thumbnail(thumbnail(shown), path.with_suffix(".jpg"))
            else:
                save_thumbnail(drawn_thumbnail(workflow.drawn), path.with_suffix(".jpg"))
            if options.views:
                view_of_graph(page).save(options.views / f"{workflow.name}.png")
            page.close()
            print(path, flush=True)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
