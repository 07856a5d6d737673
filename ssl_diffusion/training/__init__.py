"""Tasks (what is learned), the step (how) and checkpoints, for the one loop of
`ssl_diffusion.train`."""
