"""p(grid | condition): grids of embeddings without a reference."""
