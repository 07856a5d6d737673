"""Sampling of grids (stands in until it is merged)."""


def sample_grids(prior, asked, rows, cols, **options):
    """Samples grids."""
    raise NotImplementedError
