"""models/ stands alone: torch and safetensors, no ComfyUI, nothing else of the pack."""

import subprocess
import sys
from pathlib import Path

import annealing_guidance_pack
import pytest

MODELS = Path(annealing_guidance_pack.__file__).parent / "models"
MODULES = sorted(path.stem for path in MODELS.glob("*.py") if path.stem != "__init__")

# -I: neither the current folder, nor PYTHONPATH, nor the user's site are on the path; only models/ itself is added.
SCRIPT = """
import importlib, importlib.util, sys
spec = importlib.util.spec_from_file_location("models", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]])
sys.modules["models"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["models"])
for name in sys.argv[2:]:
    importlib.import_module("models." + name)
hosts = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server"}
print(sorted(hosts & set(sys.modules)))
"""


@pytest.mark.slow
def test_every_module_imports_without_comfyui():
    command = [sys.executable, "-I", "-c", SCRIPT, str(MODELS), *MODULES]
    done = subprocess.run(command, capture_output=True, text=True, cwd=MODELS.anchor, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_list_of_modules_is_not_empty():
    assert {"scale_network", "scale_file", "schedule", "catalogue"} <= set(MODULES)
