"""What a user sees when `tools/dev.py` cannot do its work: one sentence, a failing status, and nothing broken left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devkit.host import COMPLETE

ROOT = Path(__file__).resolve().parents[2]
DEV = ROOT / "tools" / "dev.py"
UNREACHABLE = "http://127.0.0.1:9/simple"


def environment_with(cache: Path, **variables: str) -> dict[str, str]:
    """The tests' environment without a ComfyUI and without pip's settings, so that the set-up itself runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_") and name != "COMFYUI_PATH"}
    return {**kept, "ANNEALING_CACHE": str(cache), "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", **variables}


def run_dev(*arguments: str, environment: dict[str, str], prelude: str = "") -> subprocess.CompletedProcess:
    """`python tools/dev.py <arguments>`, after some Python that prepares the interpreter."""
    code = f"import runpy, sys; sys.argv = {[str(DEV), *arguments]!r}; sys.path[0] = {str(DEV.parent)!r}; {prelude or 'pass'}\n"
    code += f"runpy.run_path({str(DEV)!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=500, check=False)


def sentence(done: subprocess.CompletedProcess) -> str:
    """The one line that a failed run says why in, besides what it was about to do."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("Setting up ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_folder_without_comfyui_is_named(tmp_path):
    done = run_dev("test", environment=environment_with(tmp_path / "cache", COMFYUI_PATH=str(tmp_path)))
    assert f"COMFYUI_PATH names {tmp_path}" in sentence(done)
    assert not (tmp_path / "cache").exists()


def test_a_comfyui_that_is_too_old_is_refused_with_both_versions(tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.9"\n')
    done = run_dev("demo", environment=environment_with(tmp_path / "cache", COMFYUI_PATH=str(tmp_path)))
    assert "version 0.3.9, the pack needs 0.3.75" in sentence(done)


def test_an_unknown_benchmark_is_answered_with_the_known_ones(tmp_path):
    done = run_dev("bench", "nonsense", environment=environment_with(tmp_path / "cache"))
    assert "no benchmark 'nonsense'" in sentence(done)
    assert "quality" in sentence(done)


def test_without_network_it_says_so(tmp_path):
    done = run_dev("demo", environment=environment_with(tmp_path, PIP_INDEX_URL=UNREACHABLE))
    assert "the package index cannot be reached" in sentence(done)
    assert not list(tmp_path.rglob(COMPLETE))


def test_a_setup_killed_half_way_does_not_break_the_next(tmp_path):
    environment = environment_with(tmp_path, PIP_INDEX_URL=UNREACHABLE)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        killed = subprocess.Popen([sys.executable, str(DEV), "demo"], env={**environment, "PIP_INDEX_URL": address})
        silent.settimeout(60)
        connection, _ = silent.accept()  # pip asks for ComfyUI, so the virtual environment is there and not complete
        with contextlib.closing(connection):
            killed.kill()
            killed.wait()
    (half,) = tmp_path.glob("ComfyUI-*")
    (half / "left over").touch()
    assert "the package index cannot be reached" in sentence(run_dev("demo", environment=environment))
    assert not (half / "left over").exists() and not (half / COMPLETE).exists()


def test_two_runs_at_once_set_up_once(tmp_path):
    code = (
        f"import sys, time; sys.path.insert(0, {str(DEV.parent)!r})\n"
        "from devkit.host import made_once\n"
        "made_once('thing', 1, lambda folder: (time.sleep(1), print('made', flush=True)))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment_with(tmp_path), stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert sorted(run.communicate()[0] for run in runs) == ["", "", "made\n"]


def test_a_python_without_ensurepip_is_told_what_to_install(tmp_path):
    prelude = "import venv, subprocess; venv.create = lambda *_, **__: subprocess.run('false', check=True)"
    done = run_dev("demo", environment=environment_with(tmp_path), prelude=prelude)
    assert "python3-venv" in sentence(done)


def test_an_old_python_is_told_so(tmp_path):
    done = run_dev("demo", environment=environment_with(tmp_path), prelude="sys.version_info = (3, 8, 0)")
    assert "Python 3.10 or newer and this is Python 3.8" in sentence(done)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
def test_a_disk_that_fills_up_is_named(tmp_path):
    prelude = "import devkit.host; devkit.host.make_environment = lambda folder: open('/dev/full', 'wb', 0).write(b'x')"
    done = run_dev("demo", environment=environment_with(tmp_path), prelude=prelude)
    assert "No space left on device: free some space" in sentence(done)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in sentence(run_dev("demo", environment=environment_with(tmp_path / "file" / "cache")))


def test_it_runs_on_the_standard_library_alone(tmp_path):
    command = [sys.executable, "-S", "-E", str(DEV), "demo", "--help"]
    assert "--serve" in subprocess.run(command, capture_output=True, text=True, check=True, env=environment_with(tmp_path)).stdout


RUN_A_SERVER = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
sys.path.insert(0, {tools!r})
from devkit.host import Host
from devkit.server import Server
with Server(Host(Path({comfyui!r}), Path(sys.executable)), Path({base!r}), Path({root!r})) as server:
    print(server.port, flush=True)
    time.sleep(600)
"""


@pytest.mark.server
@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_the_server_ends_with_the_one_who_started_it(tmp_path, comfyui, how):
    code = RUN_A_SERVER.format(tools=str(DEV.parent), comfyui=str(comfyui), base=str(tmp_path), root=str(ROOT))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as starter:
        port = int(starter.stdout.readline())
        starter.send_signal(getattr(signal, how))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.1)
    pytest.fail("the server still answers")


def test_a_comfyui_whose_requirements_are_not_installed_is_named_with_what_is_missing(tmp_path):
    (tmp_path / "comfy").mkdir()
    for name in ("main", "comfy/cli_args"):
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "comfy" / "options.py").write_text("def enable_args_parsing(): ...")
    (tmp_path / "comfy" / "sd.py").write_text("import new_kernels")
    said = sentence(run_dev("test", environment=environment_with(tmp_path / "cache", COMFYUI_PATH=str(tmp_path))))
    assert f"The ComfyUI in {tmp_path} cannot be imported" in said
    assert "No module named 'new_kernels'" in said
