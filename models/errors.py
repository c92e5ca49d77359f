"""The pack's one error type for mistakes that a user can mend."""


class AnnealingError(ValueError):
    """A user's mistake, told in words: what was wired or read, why it cannot work, what to do instead."""
