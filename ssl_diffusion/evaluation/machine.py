"""What the numbers were measured on: processor, devices, library versions."""

import os
import platform
from importlib import metadata
from typing import Any

import jax

LIBRARIES = (
    "ssl-diffusion",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "array-record",
    "numpy",
    "openslide-python",
    "safetensors",
    "scikit-learn",
    "scipy",
    "pillow",
)


def hardware() -> dict[str, Any]:
    """Processor name, cores this process may use, and JAX's devices."""
    cores = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    device = jax.devices()[0]
    return {
        "cpu": _cpu_name(),
        "cores": len(cores),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str | None]:
    """Python and the libraries; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):  # not Linux, or an ARM core that gives no name
        return platform.processor() or platform.machine()
