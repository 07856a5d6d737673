"""What `python -m ssl_diffusion.benchmark` measures; everything is a ratio within one run."""
