"""A ComfyUI server with this checkout as its only node pack, on the loopback address, for as long as a `with` block."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from . import SetupError
from .host import Host, cache_folder
from .process import stop

PACK_NAME = "annealing-guidance"
START_TIMEOUT_S = 180.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's own address
LAUNCHER = Path(__file__).with_name("launch_comfyui.py")


def base_folder(checkout: Path) -> Path:
    """Where the demo of this checkout keeps its models, settings and outputs."""
    return cache_folder() / f"base-{hashlib.sha256(str(checkout).encode()).hexdigest()[:12]}"


def link_pack(custom_nodes: Path, checkout: Path) -> Path:
    """Make the checkout appear in a custom_nodes folder: as a link, or as a fresh copy where links are not allowed (Windows)."""
    place = custom_nodes / PACK_NAME
    if place == checkout:
        return place
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
    custom_nodes.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(checkout, target_is_directory=True)
    except OSError:
        shutil.copytree(checkout, place, ignore=shutil.ignore_patterns(".*", "__pycache__", "demo-output", "runs"))
    return place


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """Started on entering the `with` block, stopped on leaving it, however that happens. On the CPU, which the demo model suits.

    host: what to run; base: folder for models, outputs, settings and the log (made if missing); checkout: the pack.
    """

    def __init__(self, host: Host, base: Path, checkout: Path) -> None:
        self.host, self.base, self.checkout, self.port = host, base, checkout, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"

    def __enter__(self) -> Server:
        link_pack(self.base / "custom_nodes", self.checkout)
        with open(self.log, "wb") as log:
            self._child = subprocess.Popen(
                self._command(),
                cwd=self.host.comfyui,
                env=self.host.environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us, and we stop the server
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        stop(self._child)
        self._child.stdin.close()

    def wait(self) -> None:
        """Return when the server ends by itself."""
        self._child.wait()

    def _command(self) -> list[str]:
        return [
            str(self.host.python), str(LAUNCHER), str(self.host.comfyui / "main.py"),
            "--cpu", "--port", str(self.port),
            # Models, inputs, outputs, settings and node packs are all looked for below this one.
            "--base-directory", str(self.base),
            "--database-url", "sqlite:///:memory:",
            "--disable-auto-launch", "--disable-api-nodes",
        ]  # fmt: skip

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                last_line = self.log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
                raise SetupError(f"ComfyUI stopped while starting ({last_line}): the whole log is in {self.log}.")
            with contextlib.suppress(OSError), DIRECT.open(f"{self.address}/system_stats", timeout=5):
                return
            time.sleep(0.2)
        raise SetupError(f"ComfyUI did not answer within {START_TIMEOUT_S:.0f} s: see its log, {self.log}.")
