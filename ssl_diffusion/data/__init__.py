"""Slides and images -> patches -> records (TFDS, ArrayRecord) -> Grain batches."""
