"""Seconds and memory of the set measures on features of any size, against other ways to them."""

import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from ssl_diffusion.evaluation.frechet import Moments, frechet_distance
from ssl_diffusion.evaluation.kernel import (
    SUBSET_SIZE,
    SUBSETS,
    kernel_distance,
    subset_kernel_distance,
)
from ssl_diffusion.evaluation.manifold import precision_recall
from ssl_diffusion.evaluation.set_measures import NEIGHBOURS

OURS = "ssl_diffusion"


def features(count: int, dimension: int, seed: int) -> np.ndarray:
    """float32 [count, dimension] like those of a classifier: no less than 0, of falling variance.

    Values only decide how well a product's roots are conditioned: measured on real features, too.
    """
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, dimension), np.float32)
    values *= np.linspace(1, 0.05, dimension, dtype=np.float32)
    values += 0.02 * seed
    return np.maximum(values, 0, out=values)


def _ours_fd(x: np.ndarray, y: np.ndarray) -> float:
    return frechet_distance(Moments.of(x), Moments.of(y))


def _formula_fd(x: np.ndarray, y: np.ndarray) -> float:
    """Heusel et al. 2017, eq. 6 as it stands: np.cov and scipy's root of the product."""
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    shift = x.mean(axis=0) - y.mean(axis=0)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


def _torch_fidelity_fd(x: np.ndarray, y: np.ndarray) -> float:
    import torch
    from torch_fidelity import metric_fid

    first, second = (metric_fid.fid_features_to_statistics(torch.from_numpy(f)) for f in (x, y))
    return metric_fid.fid_statistics_to_metric(first, second, False)[metric_fid.KEY_METRIC_FID]


def _clean_fid_fd(x: np.ndarray, y: np.ndarray) -> float:
    from cleanfid import fid

    moments = [(f.mean(axis=0), np.cov(f, rowvar=False)) for f in (x, y)]
    return float(fid.frechet_distance(*moments[0], *moments[1]))


def _torch_fidelity_kid(x: np.ndarray, y: np.ndarray) -> float:
    import torch
    from torch_fidelity import metric_kid

    found = metric_kid.kid_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        kid_subsets=SUBSETS,
        kid_subset_size=min(SUBSET_SIZE, len(x), len(y)),
        verbose=False,
    )
    return found[metric_kid.KEY_METRIC_KID_MEAN]


def _clean_fid_kid(x: np.ndarray, y: np.ndarray) -> float:
    from cleanfid import fid

    return float(fid.kernel_distance(x, y, num_subsets=SUBSETS, max_subset_size=SUBSET_SIZE))


def _ours_precision(x: np.ndarray, y: np.ndarray) -> float:
    return precision_recall(x, y, NEIGHBOURS)[0]


def _scikit_learn_precision(x: np.ndarray, y: np.ndarray) -> float:
    """Neighbours by brute force; recall, density and coverage come from the same distances."""
    search = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute")
    of_samples, of_real = (search.fit(f).kneighbors()[0][:, -1] for f in (x, y))
    recalled, precise = np.zeros(len(y), bool), []
    start = 0
    for distances in pairwise_distances_chunked(x, y):
        rows = slice(start, start + len(distances))
        precise.append((distances <= of_real).any(axis=1))
        recalled |= (distances <= of_samples[rows, None]).any(axis=0)
        start = rows.stop
    return float(np.concatenate(precise).mean())


def _torch_fidelity_precision(x: np.ndarray, y: np.ndarray) -> float:
    import torch
    from torch_fidelity import metric_prc

    found = metric_prc.prc_features_to_metric(
        torch.from_numpy(x),
        torch.from_numpy(y),
        prc_neighborhood=NEIGHBOURS,
        save_cpu_ram=True,  # all distances of 50,000 features at once take 10 GB
        verbose=False,
    )
    return float(found[metric_prc.KEY_METRIC_PRECISION])


# Of each measure, ours first; a name with a module is left out where that is not installed.
WAYS: dict[str, dict[tuple[str, str | None], Callable[[np.ndarray, np.ndarray], float]]] = {
    "fd": {
        (OURS, None): _ours_fd,
        ("np.cov, sqrtm", None): _formula_fd,
        ("torch-fidelity", "torch_fidelity"): _torch_fidelity_fd,
        ("clean-fid", "cleanfid"): _clean_fid_fd,
    },
    "kid of subsets": {
        (OURS, None): subset_kernel_distance,
        ("torch-fidelity", "torch_fidelity"): _torch_fidelity_kid,
        ("clean-fid", "cleanfid"): _clean_fid_kid,
    },
    "kid of all pairs": {(OURS, None): kernel_distance},
    "precision": {
        (OURS, None): _ours_precision,
        ("scikit-learn", None): _scikit_learn_precision,
        ("torch-fidelity", "torch_fidelity"): _torch_fidelity_precision,
    },
}


def measure(measures: Sequence[str], samples: int, dimension: int) -> Iterator[dict[str, Any]]:
    """A row for each way to each measure, of two sets of `samples` features, each in a process.

    `core_seconds` are those of all cores together, which other work on the machine disturbs least;
    `ratio` is its seconds over ours, `core_ratio` that of core seconds. `gigabytes` is the
    most it held beyond the features.
    `precision` makes recall too; ours also density and coverage.
    Each is shown when it is done: others take minutes, and may be stopped.
    """
    ways = [
        (name, who, way)
        for name in measures
        for (who, module), way in WAYS[name].items()
        if not module or importlib.util.find_spec(module) is not None
    ]
    fresh = multiprocessing.get_context("spawn")
    ours: dict[str, dict[str, float]] = {}
    for name, who, way in (bar := tqdm(ways, "measures", unit="way")):
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            row = process.submit(_timed, way, samples, dimension).result()
        of_ours = ours.setdefault(name, row)
        bar.write(f"{name}, {who}: {row['seconds']:.1f} s", sys.stderr)
        sizes = {"samples": samples, "dimension": dimension}
        ratios = {
            "ratio": row["seconds"] / of_ours["seconds"],
            "core_ratio": row["core_seconds"] / of_ours["core_seconds"],
        }
        yield {"measure": name, "by": who} | sizes | row | ratios


def _timed(way: Callable, samples: int, dimension: int) -> dict[str, float]:
    x, y = features(samples, dimension, 0), features(samples, dimension, 1)
    few = slice(0, min(samples, 2 * NEIGHBOURS + 2))
    way(x[few, :4], y[few, :4])  # imports
    before = _held_bytes("VmRSS")
    start, worked = time.perf_counter(), time.process_time()
    value = way(x, y)
    return {
        "value": value,
        "seconds": time.perf_counter() - start,
        "core_seconds": time.process_time() - worked,
        "gigabytes": max(_held_bytes("VmHWM") - before, 0) / 1e9,
    }


def _held_bytes(which: str) -> int:
    """Memory that this process holds (VmRSS), or the most it has held (VmHWM)."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would tell the parent's, too
        line = next(x for x in status.read_text().splitlines() if x.startswith(which))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'measure':<18}{'by':<16}{'seconds':>9}{'/ ours':>8}{'core s':>9}{'/ ours':>8}"
        f"{'GB':>7}  value"
    ]
    lines += [
        f"{row['measure']:<18}{row['by']:<16}{row['seconds']:9.1f}{row['ratio']:8.2f}"
        f"{row['core_seconds']:9.1f}{row['core_ratio']:8.2f}{row['gigabytes']:7.2f}"
        f"  {row['value']:.8g}"
        for row in rows
    ]
    return "\n".join(lines)
