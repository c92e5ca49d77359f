"""What ComfyUI offers while the pack is in it, and the browser of the other browser tests."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest


@pytest.fixture(scope="session")
def object_info(server) -> dict[str, Any]:
    with urllib.request.urlopen(f"{server.address}/object_info", timeout=60) as answer:
        return json.load(answer)
