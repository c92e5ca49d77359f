"""The templates in the real interface, classic and Nodes 2.0: found, opened without a complaint, queued and run to the end."""

from __future__ import annotations

import pytest
from templates import NAMES, NEEDS_NOTHING, NOTES, SDXL, api_format, numbered, template

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.slow]

PACK = "annealing-guidance"
OPEN = """async ([pack, name]) => {
  const answer = await fetch(`/api/workflow_templates/${pack}/${encodeURIComponent(name)}.json`);
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
        needs_checkpoint = name in SDXL  # which isn't here
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


# Nodes as they are drawn: [title, left, top, right, bottom, id] with the title's bar; in Nodes 2.0 they are as tall as they need.
BOXES = """() => window.app.graph.nodes.map((node) => {
  const drawn = document.querySelector(`[data-node-id="${node.id}"]`);
  const [width, height] = drawn ? [drawn.offsetWidth, drawn.offsetHeight] : [node.size[0], node.size[1] + 30];
  const [left, top] = [node.pos[0], node.pos[1] - 30];
  return [`${node.type} ${node.title}`, left, top, left + width, top + height, node.id];
})"""
FIT = """async () => {
  window.app.canvas.deselectAll?.();
  await window.app.extensionManager.command.execute('Comfy.Canvas.FitView');
}"""
READABLE = 0.65  # below 0.57 the classic interface draws no text


def overlaps(page) -> list[tuple[str, str]]:
    boxes = page.evaluate(BOXES)
    return [
        (one[0], other[0])
        for number, one in enumerate(boxes)
        for other in boxes[:number]
        if one[1] < other[3] and other[1] < one[3] and one[2] < other[4] - 1 and other[2] < one[4] - 1
    ]


def test_no_node_covers_another_as_drawn(page):
    for name in NAMES:
        open_template(page, name)
        page.keyboard.press("Escape")
        page.evaluate(FIT)
        page.wait_for_timeout(1000)
        assert overlaps(page) == [], name


@pytest.mark.parametrize("interface", ["classic"], indirect=True)
def test_all_text_is_drawn_when_the_whole_is_in_view(page):
    for name in NAMES:
        open_template(page, name)
        page.keyboard.press("Escape")
        page.evaluate(FIT)
        page.wait_for_timeout(1000)  # it glides there
        assert page.evaluate("() => window.app.canvas.ds.scale") >= READABLE, name


# Wires as the interface draws them: curves that leave both ends by a quarter of their length.
ACROSS_NOTES = """(notes) => {
  const { graph } = window.app;
  const boxes = graph.nodes.filter((node) => notes.includes(node.type))
    .map(({ pos, size }) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]);
  const inside = ([x, y]) => boxes.some(([left, top, right, bottom]) => x > left && x < right && y > top && y < bottom);
  const wires = graph.nodes.flatMap((to) => (to.inputs ?? []).map((input, slot) => [to, slot, input.link]))
    .filter(([, , link]) => link != null);
  const across = wires.filter(([to, slot, id]) => {
    const link = graph.links.get?.(id) ?? graph.links[id];
    const from = graph.getNodeById(link.origin_id);
    const [x0, y0] = from.getConnectionPos(false, link.origin_slot);
    const [x3, y3] = to.getConnectionPos(true, slot);
    const bend = 0.25 * Math.hypot(x3 - x0, y3 - y0);
    const [x1, x2] = [x0 + bend, x3 - bend];
    return Array.from({ length: 101 }, (_, i) => i / 100).some((t) => {
      const [a, b, c, d] = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t ** 2 * (1 - t), t ** 3];
      return inside([a * x0 + b * x1 + c * x2 + d * x3, (a + b) * y0 + (c + d) * y3]);
    });
  });
  return [wires.length, across.map(([to, slot]) => `${to.title}: ${to.inputs[slot].name}`)];
}"""


@pytest.mark.parametrize("interface", ["classic"], indirect=True)
def test_no_wire_runs_across_a_note(page):
    for name in NAMES:
        open_template(page, name)
        page.keyboard.press("Escape")
        count, across = page.evaluate(ACROSS_NOTES, list(NOTES))
        assert count == len(template(name)["links"]) and across == [], name


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
    page.get_by_text(numbered("02")).first.click()
    count = len(template(numbered("02"))["nodes"])
    page.wait_for_function(f"window.app.graph.nodes.length === {count}")
