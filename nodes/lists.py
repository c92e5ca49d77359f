"""Several numbers typed into one text field."""

from __future__ import annotations

import math

from ..models.errors import AnnealingError


def numbers_in(text: str, title: str, largest: float, example: str) -> list[float]:
    """The numbers of "0, 0.4, 0.8", each from 0 to `largest`; commas or spaces between them. Empty for an empty text.

    title: the input's name, for the AnnealingError where something else is written.
    """
    try:
        values = [float(entry) for entry in text.replace(",", " ").split()]
    except ValueError:
        values = [math.nan]
    if not all(0 <= value <= largest for value in values):
        raise AnnealingError(
            f'{title} is "{text[:200]}". Write numbers from 0 to {largest:g}, with commas between them and points inside them, '
            f'for example "{example}".'
        )
    return values
