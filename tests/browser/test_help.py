"""The help panel of the real interface, by the button that users press."""

from __future__ import annotations

from pathlib import Path

import annealing_guidance_pack as pack
import pytest

pytestmark = [pytest.mark.server, pytest.mark.browser]

HELP = ".node-help-content"


@pytest.mark.parametrize("interface", ["classic"], indirect=True)  # the panel is the same in both
def test_the_panel_shows_the_page_of_every_node_with_its_pictures(page):
    for path in (Path(pack.__file__).parent / "web" / "docs").glob("*.md"):
        title = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
        show_help(page, path.stem)
        page.wait_for_function(
            "title => document.querySelector('.node-help-content h1')?.innerText === title", arg=title, timeout=30_000
        )
        assert page.locator(f"{HELP} h2").all_inner_texts()[-1] == "See also"
        page.wait_for_function(f"[...document.querySelectorAll('{HELP} img')].every((picture) => picture.naturalWidth > 0)")


def show_help(page, node: str) -> None:
    page.evaluate(
        """name => {
            window.app.graph.clear();
            const node = window.LiteGraph.createNode(name);
            node.pos = [700, 400];
            window.app.graph.add(node);
            window.app.canvas.selectNode(node);
            window.app.canvas.setDirty(true, true);
        }""",
        node,
    )
    # Not a click by place: where the canvas shows the button, other panels may lie above it.
    page.get_by_test_id("info-button").dispatch_event("click")
