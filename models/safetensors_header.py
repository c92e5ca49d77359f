"""The header of a .safetensors file, read without its tensors."""

from __future__ import annotations

import json
from typing import Any


def header_of(data: bytes) -> dict[str, Any] | None:
    """The header: each tensor's name, and `__metadata__`. None where there is none. data: the file, or its first bytes."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length]) if 8 + length <= len(data) else None
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None
