"""The public runners' workflow files: pinned, with the least rights, and doing nothing that cannot be done here."""

from __future__ import annotations

import re
from pathlib import Path

import annealing_guidance_pack as pack
import dev
import pytest
import yaml

ROOT = Path(pack.__file__).parent
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

pytestmark = pytest.mark.skipif(not FILES, reason="no workflow files here: this is no checkout")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_by_hash_with_their_version(file):
    uses = re.findall(r"uses: (.*)", file.read_text(encoding="utf-8"))
    assert [use for use in uses if not re.fullmatch(r"\./\S+|actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_they_may_only_read_and_end_in_time(file):
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job and ("timeout-minutes" in job or "uses" in job)
        for step in job.get("steps", []):
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", ""), "values go through env: a branch's name may be a command"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_step_is_a_command_of_the_repository(file):
    """All but the comparison of two versions is `python tools/dev.py ...`, and such a command there is."""
    for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
        for step in job.get("steps", []):
            if "run" in step and "git show" not in step["run"]:
                command = re.search(r"python tools/dev\.py (\w+)", step["run"])[1]
                assert re.search(rf"^    python tools/dev\.py {command}\b", dev.__doc__, re.MULTILINE), command


def test_the_matrix_is_what_the_readme_promises():
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]["tests"][
        "strategy"
    ]
    assert matrix["matrix"]["os"] == ["ubuntu-latest", "windows-latest", "macos-latest"]
    assert matrix["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert '["0.3.75", "master"]' in matrix["matrix"]["comfyui"]


def test_publishing_waits_for_the_tests():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["publish"]["needs"] == "tests" and jobs["tests"]["needs"] == "version"


def test_every_test_runs_in_some_job_and_those_in_a_browser_where_one_can_be_installed():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    chosen = {
        name: found[1].strip('"')
        for name, job in jobs.items()
        for step in job["steps"]
        if (found := re.search(r"dev\.py test -m (.+)", step.get("run", "")))
    }
    assert chosen == {"tests": "not browser", "browser": "browser"}
    assert jobs["browser"]["runs-on"] == "ubuntu-latest"
