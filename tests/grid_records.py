"""Records whose embeddings are drawn from a Gaussian over grids that is known in closed form."""

from pathlib import Path

import numpy as np

from ssl_diffusion.data.writer import Layout, RecordsWriter

DIM, ACROSS, DOWN = 4, 0.8, 0.6  # of an embedding; correlation of neighbours in a row, in a column
MEANS = {"a": np.array([3.0, 0, 1, 0]), "b": np.array([-3.0, 0, -1, 0])}
SPREAD = np.array([[1.0, 0, 0, 0], [0.5, 0.8, 0, 0], [0, 0, 2, 0], [0.3, 0, 0, 0.5]])
COVARIANCE = SPREAD @ SPREAD.T  # of one cell, given its class
PATCH_PX = 8


def correlated(rng, count: int, rows: int, cols: int) -> np.ndarray:
    """Standard normal [count, rows, cols, DIM], correlated as DOWN^|dy| ACROSS^|dx|."""

    def factor(size: int, neighbour: float) -> np.ndarray:
        steps = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
        return np.linalg.cholesky(neighbour**steps)

    white = rng.standard_normal((count, rows, cols, DIM))
    return np.einsum("yr,xc,nrcd->nyxd", factor(rows, DOWN), factor(cols, ACROSS), white)


def draw(rng, name: str, count: int, rows: int, cols: int) -> np.ndarray:
    """Grids of a class, [count, rows, cols, DIM]."""
    return MEANS[name] + correlated(rng, count, rows, cols) @ SPREAD.T


def write(folder: Path, grids: dict[str, list], dim: int = DIM, classes=(), **metadata) -> Path:
    """Records of grids: by split, a list of (source, [rows, cols, dim], facts); NaN is no patch.

    `facts` are "label", an index, and "text", of a source.
    """
    texts = any("text" in facts for found in grids.values() for *_, facts in found)
    layout = Layout(embedding=(1, dim), classes=tuple(classes), text=texts)
    writer = RecordsWriter(folder, grids, layout)
    image = np.zeros((PATCH_PX, PATCH_PX, 3), np.uint8)
    for split, found in grids.items():
        for source, grid, facts in found:
            for y, x in np.argwhere(np.isfinite(grid).all(-1)):
                writer.add(
                    split,
                    {"label": -1, "text": ""}
                    | facts
                    | {
                        "image": image,
                        "x": int(x) * PATCH_PX,
                        "y": int(y) * PATCH_PX,
                        "source": source,
                        "embedding": grid[y, x][None].astype(np.float32),
                    },
                )
    recipe = {"patch_px": PATCH_PX, "mpp": 0.5, "encoder": "", "autoencoder": ""} | metadata
    told = {"patch_px": PATCH_PX, "mpp": 0.5, "split_sha256": None, "classes": list(classes)}
    writer.close(told | {"recipe": recipe})
    return folder


def write_gaussian(folder: Path, sources: int, rows: int = 6, cols: int = 6) -> Path:
    """Records of both classes, so many sources of each in training and a tenth held out."""
    rng = np.random.default_rng(0)
    grids = {"train": [], "test": []}
    for split, count in (("train", sources), ("test", max(1, sources // 10))):
        for label, name in enumerate(MEANS):
            for number, grid in enumerate(draw(rng, name, count, rows, cols)):
                facts = {"label": label, "text": f"a grid of class {name}"}
                grids[split].append((f"{name}{number}.png", grid, facts))
    return write(folder, grids, classes=MEANS)
