"""Every node's help page: complete, true to the schema and to the code, and served where ComfyUI's frontend looks for it."""

from __future__ import annotations

import ast
import asyncio
import re
import urllib.request
from pathlib import Path

import annealing_guidance_pack as pack
import pytest

ROOT = Path(pack.__file__).parent
PAGES = ROOT / "web" / "docs"
SOURCES = ("guidance", "models", "nodes", "plots", "shapes", "training")
WAYS_IN = {"annealing", "annealing guidance", "guidance", "cfg", "lambda"}
SHORT_LIST = 5  # options; longer lists depend on the host or the user's files
WITHOUT_END = 10**9  # seeds

pytestmark = pytest.mark.usefixtures("comfyui")


def schemas() -> dict:
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    return {schema.node_id: schema for schema in (node.GET_SCHEMA() for node in nodes)}


def pages() -> dict[str, str]:
    return {path.stem: path.read_text("utf-8") for path in PAGES.glob("*.md")}


def inputs(page: str) -> dict[str, str]:
    """The list of inputs: {id: what stands in brackets behind it, its range and default}."""
    listed = page.split("## Inputs")[1].split("##")[0]
    return dict(re.findall(r"^- `(\w+)`(?: \(([^)]*)\))?:", listed, re.MULTILINE))


@pytest.mark.parametrize("node", ["AnnealingGuider", "AnnealingModelPatch"])
def test_the_search_finds_the_guiders_by_the_words_that_people_know(node):
    schema = schemas()[node]
    if not hasattr(schema, "search_aliases"):
        pytest.skip("this ComfyUI has no search aliases")
    assert {"adaptive cfg", "dynamic cfg", "cfg scheduler", "cfg++", "annealing guidance"} <= set(schema.search_aliases)
    assert WAYS_IN <= set(schema.search_aliases)


def test_no_other_node_has_the_words_of_those_who_look_for_a_way_in():
    if not hasattr(next(iter(schemas().values())), "search_aliases"):
        pytest.skip("this ComfyUI has no search aliases")
    for node, schema in schemas().items():
        if node not in ("AnnealingGuider", "AnnealingModelPatch"):
            assert not WAYS_IN & set(schema.search_aliases or ()), node


def test_each_page_says_first_which_node_one_needs():
    for node, page in pages().items():
        assert -1 < page.find("## Which node do I need?\n") < page.find("## Wiring\n"), node


def test_every_node_has_a_page_and_no_page_is_of_another_node():
    assert pages().keys() == schemas().keys()


def test_each_page_begins_with_the_nodes_name():
    for node, schema in schemas().items():
        assert pages()[node].startswith(f"# {schema.display_name}\n"), node


def test_the_inputs_are_listed_in_the_nodes_order():
    for node, schema in schemas().items():
        assert list(inputs(pages()[node])) == [entry.id for entry in schema.inputs], node


def test_each_input_is_told_with_its_range_its_default_and_its_choices():
    for node, schema in schemas().items():
        for entry in schema.inputs:
            told = inputs(pages()[node])[entry.id]
            low, high, default = (getattr(entry, name, None) for name in ("min", "max", "default"))
            if low is not None:
                numbers = [float(number) for number in re.findall(r"[\d.]+", told)]
                wanted = [low, default] if high > WITHOUT_END else [low, high, default]
                assert numbers == wanted, f"{node}.{entry.id}"
            options = getattr(entry, "options", None) or []
            if len(options) <= SHORT_LIST and entry.id not in ("scale_name", "profile_name"):
                assert all(str(option) in told for option in options), f"{node}.{entry.id}"
            if isinstance(default, str) and "\n" in default:
                assert told.endswith(f"default a list of {len(default.splitlines())}"), f"{node}.{entry.id}"
            elif isinstance(default, str) and default:
                assert told.endswith(f"default {default}"), f"{node}.{entry.id}"


def test_every_output_is_named():
    for node, schema in schemas().items():
        outputs = pages()[node].split("## Outputs")[1].split("##")[0]
        named = re.findall(r"^- `(\w+)`:", outputs, re.MULTILINE)
        assert named == [output.display_name or output.io_type for output in schema.outputs], node


def test_the_sentences_that_pages_quote_are_those_that_the_code_says():
    said = [text for folder in SOURCES for path in (ROOT / folder).rglob("*.py") for text in texts_in(path)]
    quotations = {node: re.findall(r"^- \*(.{20,}?)\*$", page, re.MULTILINE) for node, page in pages().items()}
    assert sum(map(len, quotations.values())) > 20
    for node, quoted in quotations.items():
        for part in (part.strip() for sentence in quoted for part in sentence.split("…")):
            assert any(part in text for text in said), f"{node}: {part}"


def texts_in(path: Path) -> list[str]:
    """The string literals of a source file, as they read when put together; what is filled in is left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(re.sub(r"\{\w+\}", "\0", node.value))
    return found


def test_related_nodes_are_named_as_the_menu_names_them():
    names = {schema.display_name for schema in schemas().values()}
    for node, page in pages().items():
        related = set(re.findall(r"\*\*([^*]+)\*\*", " ".join(page.split("## See also")[1].split())))
        assert related and related <= names - {schemas()[node].display_name}, node


def test_pictures_are_there_small_and_all_in_use():
    used = {name for page in pages().values() for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)}
    assert used == {f"images/{path.name}" for path in (PAGES / "images").iterdir()}
    assert all((PAGES / name).stat().st_size < 60_000 for name in used)


def test_no_page_has_a_link_that_the_help_panel_would_not_follow():
    # The panel puts the page's folder before relative addresses of pictures, but not of links.
    for node, page in pages().items():
        links = re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", re.sub(r"!\[[^\]]*\]\([^)]*\)", "", page))
        assert all(link.startswith("https://") for link in links), node


def test_pages_are_readable_in_the_narrow_help_panel():
    # It is about 45 letters wide, and neither tables nor lines of code are wrapped there.
    assert not [node for node, page in pages().items() if re.search(r"^(\||```)", page, re.MULTILINE)]


@pytest.mark.server
def test_the_server_gives_pages_and_pictures_where_the_frontend_asks(server):
    folder = f"{server.address}/extensions/annealing-guidance/docs"
    for path in (*PAGES.glob("*.md"), *(PAGES / "images").iterdir()):
        with urllib.request.urlopen(f"{folder}/{path.relative_to(PAGES).as_posix()}", timeout=30) as response:
            assert response.read() == path.read_bytes()
