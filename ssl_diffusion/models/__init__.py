"""Networks only: pure functions of their parameters, which know nothing of diffusion."""
