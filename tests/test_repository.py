"""The repository for those who come after: its pages are true of its files, and neither a file nor a folder grows unnoticed."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import annealing_guidance_pack as pack
import pytest

ROOT = Path(pack.__file__).parent
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", *(f"docs/{page.name}" for page in ROOT.glob("docs/*.md"))]
FOLDERS = "benchmarks|docs|guidance|locales|models|nodes|plots|shapes|tests|tools|training|web|workflows"
IN_COMFYUI = "models/annealing_guidance/"  # the user's
LONGEST = 400  # lines


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Paths of all files that belong to the repository."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no checkout")
    return [name for name in listed.stdout.split("\0") if name]


@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders_that_a_page_names_are_there(page):
    named = re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*[\w/]", (ROOT / page).read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists() and name != IN_COMFYUI] == []


def test_the_address_to_clone_is_the_one_that_the_registry_is_given():
    repository = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"git clone (\S+)", readme) == [repository]
    named = re.findall(
        r"https://(?:raw\.githubusercontent|github)\.com/[\w-]+/ComfyUI-annealing-guidance",
        (ROOT / "pyproject.toml").read_text("utf-8"),
    )
    assert len(named) == 5 and {address.split("/")[3] for address in named} == {repository.split("/")[3]}


def test_commands_of_the_readme_that_the_archive_lacks_are_for_a_clone():
    paragraphs = re.split(r"\n\n|\n(?=- |#)", (ROOT / "README.md").read_text(encoding="utf-8"))
    commands = [text for text in paragraphs if "tools/dev.py" in text]
    assert commands and all("in a clone" in text for text in commands)


def test_no_source_is_too_long_to_read(tracked):
    sources = [name for name in tracked if name.endswith((".py", ".js", ".mjs"))]
    lengths = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in sources if (ROOT / name).is_file()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def lines_allowed() -> dict[str, int]:
    """Folder: lines at most, of the table in CONTRIBUTING.md, in its order: a folder may import from those below it."""
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ([\d,]+) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {folder: int(most.replace(",", "")) for folder, most in rows}


def test_no_folder_has_more_lines_than_contributing_allows(tracked):
    lines = dict.fromkeys(lines_allowed(), 0)
    for name in tracked:
        if "/" in name and name.endswith((".py", ".js", ".mjs")) and (ROOT / name).is_file():
            lines[name.split("/")[0]] += len((ROOT / name).read_text(encoding="utf-8").splitlines())
    too_many = {folder: count for folder, count in lines.items() if count > lines_allowed()[folder]}
    assert too_many == {}, "shorten something, or raise the limit in CONTRIBUTING.md and say why in the commit"
    assert all(lines.values())


def test_folders_import_only_from_those_below_them():
    order, found = list(lines_allowed()), []
    for folder in ("nodes", "plots", "training", "shapes", "guidance", "models"):
        for path in (ROOT / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.level == 2:
                    found.append((folder, node.module.split(".")[0]))
    assert len(found) > 100
    assert {pair for pair in found if order.index(pair[0]) >= order.index(pair[1])} == set()
