"""What `tools/dev.py` is made of: the cache, the environment, the server. Standard library only."""


class SetupError(Exception):
    """A failure the user can do something about. The message is one sentence: what failed and what to do."""
