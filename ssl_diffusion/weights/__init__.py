"""Model folders on disk <-> networks with parameters."""
