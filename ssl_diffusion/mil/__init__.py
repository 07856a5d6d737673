"""Multiple instance learning: a slide is a bag of embeddings, and only the bag has a label."""
