"""The templates in the real interface, classic and Nodes 2.0: found, opened without a complaint, queued and run to the end."""

from __future__ import annotations

import pytest
from templates import NAMES, NEEDS_NOTHING, api_format, template

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

PACK = "annealing-guidance"
OPEN = """async ([pack, name]) => {
  const answer = await fetch(`/api/workflow_templates/${pack}/${name}.json`);
  await window.app.loadGraphData(await answer.json(), true, true, name);
}"""
WATCH = """() => {
  window.ended = null;
  for (const event of ["execution_success", "execution_error", "execution_interrupted"])
    window.app.api.addEventListener(event, ({ detail }) => (window.ended = { event, detail }), { once: true });
}"""
# What stays out of a quick run: the training's length.
SHORTER = {"ShapesDataset": {"count": 16}, "AnnealingFit": {"steps": 200, "hidden_width": 16, "depth": 1}}


def open_template(page, name: str) -> None:
    page.evaluate(OPEN, [PACK, name])
    page.wait_for_timeout(500)  # complaints come a moment later


def complaints(page) -> list[str]:
    """What the interface shows over the graph, and what our scripts wrote to the console."""
    return page.locator(".p-dialog, .p-toast-message").all_inner_texts() + page.complaints


def test_all_of_them_open_without_a_complaint(page):
    for name in NAMES:
        open_template(page, name)
        needs_checkpoint = name in ("03_sdxl_annealing", "04_sdxl_fast")  # which isn't here
        if needs_checkpoint:
            page.wait_for_selector(".p-dialog:has-text('sd_xl_base_1.0.safetensors')", timeout=20_000)
        shown = complaints(page)
        if needs_checkpoint:
            assert len(shown) == 1 and "sd_xl_base_1.0.safetensors" in shown[0], (name, shown)
            page.keyboard.press("Escape")
            page.wait_for_function("!document.querySelector('.p-dialog')")
        else:
            assert shown == [], name
        unknown = "window.app.graph.nodes.filter((node) => !(node.type in LiteGraph.registered_node_types)).length"
        assert page.evaluate(unknown) == 0, name
        assert page.evaluate("window.app.graph.nodes.length") == len(template(name)["nodes"]), name


@pytest.mark.parametrize("interface", ["classic"], indirect=True)
def test_what_the_interface_queues_is_what_the_other_tests_run(page):
    for name in NAMES:
        open_template(page, name)
        page.keyboard.press("Escape")
        queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
        plain = {node: {"class_type": told["class_type"], "inputs": told["inputs"]} for node, told in queued.items()}
        assert plain == api_format(template(name)), name


@pytest.mark.parametrize("interface", ["classic"], indirect=True)
@pytest.mark.parametrize("name", NEEDS_NOTHING)
def test_it_runs_to_the_end_from_the_interface(page, name):
    open_template(page, name)
    page.evaluate(WATCH)
    page.evaluate(
        """(shorter) => {
          for (const node of window.app.graph.nodes)
            for (const [name, value] of Object.entries(shorter[node.type] ?? {}))
              node.widgets.find((widget) => widget.name === name).value = value;
        }""",
        SHORTER,
    )
    page.evaluate("() => window.app.queuePrompt(0)")
    ended = page.wait_for_function("window.ended", timeout=400_000).json_value()
    assert ended["event"] == "execution_success", ended["detail"].get("exception_message")
    shows_pictures = [node["id"] for node in template(name)["nodes"] if node["type"] in ("PreviewImage", "SaveImage")]
    for node in shows_pictures:
        page.wait_for_function("(id) => window.app.nodeOutputs[id]?.images?.length", arg=node)
    assert page.complaints == []


@pytest.mark.parametrize("interface", ["classic"], indirect=True)
def test_the_template_browser_shows_and_opens_them(page):
    page.evaluate("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK, exact=False).first.click()
    page.get_by_text("02_shapes_compare").first.click()
    count = len(template("02_shapes_compare")["nodes"])
    page.wait_for_function(f"window.app.graph.nodes.length === {count}")
