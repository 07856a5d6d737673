"""Self-supervised encoders: patches -> embeddings."""
