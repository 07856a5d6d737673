"""Fractions of labelled data that a command is asked to train on."""

from collections.abc import Sequence

from ssl_diffusion.errors import InputError


def parse_fractions(words: Sequence[str]) -> list[float]:
    """Rising, each once, above 0 and up to 1; InputError for anything else."""
    try:
        found = sorted({float(word) for word in words})
    except ValueError:
        found = []
    if not found or not all(0 < fraction <= 1 for fraction in found):
        raise InputError(
            f"--fractions={','.join(words)}; expected numbers above 0 and up to 1, as 0.01,0.1,1"
        )
    return found
