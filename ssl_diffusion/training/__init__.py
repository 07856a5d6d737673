"""Tasks (what is learned), the step (how), checkpoints and logs, for `ssl_diffusion.train`."""
