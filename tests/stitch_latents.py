"""Latent canvases of the toy model in a process of its own, with other devices than the tests have.

python tests/stitch_latents.py OUT.npz [PROCESS PROCESSES PORT]
"""

import sys

import jax
import numpy as np

BATCHES = (1, 7, 64)
CASES = {
    "overlap": {"solver": "unipc"},  # with memory
    "shifted": {"scheme": "shifted", "solver": "ancestral"},  # with noise
}


def latents() -> dict[str, np.ndarray]:
    """The canvas of 49 x 37 px, 25 x 19 latent pixels, of every case and window batch."""
    from toy import large_image, make_toy  # makes arrays: not before jax.distributed starts

    return {
        f"{name} {batch}": np.asarray(large_image(make_toy(), 49, 37, batch, **change).latent())
        for name, change in CASES.items()
        for batch in BATCHES
    }


if __name__ == "__main__":
    out, *process = sys.argv[1:]
    if process:
        index, count, port = map(int, process)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    np.savez(out, devices=jax.device_count(), **latents())
