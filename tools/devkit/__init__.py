"""What `tools/dev.py` is made of: the cache, the environment, the server. Standard library only."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class SetupError(Exception):
    """A failure the user can do something about. The message is one sentence: what failed and what to do."""
