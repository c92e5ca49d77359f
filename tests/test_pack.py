"""The pack as a whole: what a host sees when it imports the root."""

import asyncio
import subprocess
import sys
from pathlib import Path

import annealing_guidance_pack as pack

ROOT = Path(pack.__file__).parent


def test_importing_the_root_imports_no_comfyui():
    code = (
        "import importlib.util, sys;"
        f"spec = importlib.util.spec_from_file_location('pack', {str(ROOT / '__init__.py')!r});"
        "module = importlib.util.module_from_spec(spec); sys.modules['pack'] = module; spec.loader.exec_module(module);"
        "print([name for name in sys.modules if name.startswith(('comfy', 'torch'))])"
    )
    assert subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_entry_point_lists_every_node_once(comfyui):
    extension = asyncio.run(pack.comfy_entrypoint())
    identifiers = [node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())]
    assert len(identifiers) == len(set(identifiers))


def test_the_code_keeps_to_the_projects_style_and_the_registrys_rules():
    checked = subprocess.run([sys.executable, "-m", "ruff", "check", str(ROOT)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
