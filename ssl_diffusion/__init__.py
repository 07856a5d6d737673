"""Representation-guided diffusion for large images in pure JAX (Graikos et al., CVPR 2024)."""

__version__ = "0.1.0"
