"""models/ stands alone: torch and safetensors, no ComfyUI, nothing else of the pack. plots/ needs no ComfyUI either."""

import subprocess
import sys
from pathlib import Path

import annealing_guidance_pack
import pytest

ROOT = Path(annealing_guidance_pack.__file__).parent
MODELS = ROOT / "models"
MODULES = sorted(path.stem for path in MODELS.glob("*.py") if path.stem != "__init__")

# -I: neither the current folder, nor PYTHONPATH, nor the user's site are on the path; only the named folder is added.
SCRIPT = """
import importlib, importlib.util, sys
spec = importlib.util.spec_from_file_location("alone", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
sys.modules["alone"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["alone"])
for name in sys.argv[2:]:
    importlib.import_module("alone." + name)
hosts = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server"}
print(sorted(hosts & set(sys.modules)))
"""


PLOTS = [f"plots.{path.stem}" for path in (ROOT / "plots").glob("*.py")]


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "modules"), [(MODELS, MODULES), (ROOT, PLOTS)], ids=["models", "plots"])
def test_every_module_imports_without_comfyui(folder, modules):
    command = [sys.executable, "-I", "-c", SCRIPT, str(folder), *modules]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.anchor, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_lists_of_modules_are_not_empty():
    assert {"scale_network", "scale_file", "schedule", "catalogue"} <= set(MODULES)
    assert {"plots.figure", "plots.fit_plot", "plots.scale_map"} <= set(PLOTS)
