"""The nodes in the real interface: found by search, put into the graph, and their help read, classic and Nodes 2.0."""

from __future__ import annotations

import re
from pathlib import Path

import annealing_guidance_pack as pack
import pytest
from annealing_guidance_pack.nodes import NODES

pytestmark = [pytest.mark.server, pytest.mark.browser]

PAGES = Path(pack.__file__).parent / "web" / "docs"
SCHEMAS = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in NODES}


@pytest.fixture
def empty(page):
    """A page whose graph holds nothing."""
    page.evaluate("() => window.app.graph.clear()")
    page.wait_for_function("() => window.app.graph.nodes.length === 0")
    return page


def open_search(page) -> None:
    """The search box, by a double click. A click is lost while the interface starts or an earlier box fades, hence some more."""
    from playwright.sync_api import TimeoutError

    page.wait_for_function("() => !document.querySelector('input:focus')", timeout=20_000)
    for _ in range(10):
        page.mouse.dblclick(700, 500)
        try:
            page.wait_for_selector("input:focus", timeout=3_000)
            return
        except TimeoutError:
            page.keyboard.press("Escape")
    raise AssertionError("ten double clicks open no search box")


def test_a_node_is_found_by_search_and_put_into_the_graph(empty):
    open_search(empty)
    empty.keyboard.type("annealing guider")
    empty.get_by_role("option").filter(has_text="Annealing Guider").first.wait_for(timeout=20_000)
    empty.keyboard.press("Enter")
    empty.wait_for_function("() => window.app.graph.nodes.some((node) => node.type === 'AnnealingGuider')", timeout=20_000)
    assert not empty.complaints


@pytest.mark.parametrize("interface", ["classic"], indirect=True)
def test_the_search_offers_the_two_ways_in_for_the_words_that_lead_to_them(empty):
    """On an interface that knows aliases. It ranks names above aliases, so only among ours can they be first."""
    if not hasattr(next(iter(SCHEMAS.values())), "search_aliases"):
        pytest.skip("this ComfyUI has no search aliases")
    ways_in = {"Annealing Guider", "Annealing Guidance (KSampler)"}
    ours = [schema.display_name for schema in SCHEMAS.values()]
    for words in ("annealing guidance", "cfg", "dynamic cfg"):
        open_search(empty)
        empty.keyboard.type(words)
        empty.get_by_role("option").filter(has_text="Annealing Guider").first.wait_for(timeout=20_000)
        found = [
            next((name for name in ours if text.strip().startswith(name)), "")
            for text in empty.get_by_role("option").all_inner_texts()
        ]
        assert set([name for name in found if name][:2]) == ways_in, words
        empty.keyboard.press("Escape")


def test_every_node_can_be_added_with_its_inputs(empty):
    added = empty.evaluate(
        """ids => ids.map((id) => {
            const node = window.LiteGraph.createNode(id);
            if (!node) return [id, null];
            window.app.graph.add(node);
            return [id, [...(node.inputs ?? []), ...(node.widgets ?? [])].map((input) => input.name)];
        })""",
        list(SCHEMAS),
    )
    for node_id, names in added:
        assert names is not None, f"{node_id} is missing in the interface"
        missing = {input.id for input in SCHEMAS[node_id].inputs} - set(names)
        assert not missing, f"{node_id} lacks {missing}"
    assert not empty.complaints


def test_the_help_panel_shows_each_page(empty):
    for node_id in SCHEMAS:
        title = re.match(r"# (.+)", (PAGES / f"{node_id}.md").read_text(encoding="utf-8"))[1]
        empty.evaluate(
            """id => {
                const app = window.app;
                app.graph.clear();
                const node = window.LiteGraph.createNode(id);
                node.pos = [500, 300];
                app.graph.add(node);
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [0, 0];
                app.canvas.selectNode(node);
                app.canvas.setDirty(true, true);
            }""",
            node_id,
        )
        button = empty.wait_for_selector("[data-testid='info-button']", timeout=20_000)
        button.dispatch_event("click")
        # The page's own heading; the panel's head shows the node's name too.
        empty.wait_for_selector(f"h1:has-text({title!r})", timeout=20_000)
        button.dispatch_event("click")
        # Older interfaces close the panel, which takes them a frame or two; newer ones leave it open.
        empty.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
