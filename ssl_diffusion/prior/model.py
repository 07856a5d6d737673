"""The prior (stands in until it is merged)."""


def load_prior(folder, text_encoder=None):
    """Opens a prior's folder."""
    raise NotImplementedError
