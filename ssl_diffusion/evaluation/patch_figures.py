"""Plots of sets of patches: similarities, distances to the training set, leading components."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib import pyplot
from sklearn.decomposition import PCA

from ssl_diffusion.evaluation.figures import MIDDLE, png_of, scatter_plot
from ssl_diffusion.evaluation.intervals import evenly

SAMPLES, REAL, CONTROL = "#b8326e", "#2f6db5", "#c99a2e"  # are told apart on light and on dark
POINTS = 2000  # of each group in a scatter plot


def similarity_histogram(own: Float[np.ndarray, " n"], shuffled: Float[np.ndarray, " n"]) -> bytes:
    """PNG: how similar samples are to the embedding asked for, and to all others."""
    figure, axes = _panel("similarity (cosine from the mean)", "samples")
    values = np.concatenate([own, shuffled])
    bins = np.linspace(min(values.min(), 0), 1, 41)
    axes.hist(shuffled, bins, color=CONTROL, alpha=0.75, label="another embedding")
    axes.hist(own, bins, color=SAMPLES, alpha=0.75, label="the embedding asked for")
    return _finished(figure, axes)


def distance_curves(distances: Mapping[str, Float[np.ndarray, " n"]]) -> bytes:
    """PNG: share of images (0 to 1) nearer to the training set than a distance, by set.

    `distances` (1 - cosine) have "samples", "real" and maybe "copies".
    """
    look = {
        "samples": ("samples", SAMPLES),
        "real": ("real, held out", REAL),
        "copies": ("training patches through the autoencoder", CONTROL),
    }
    figure, axes = _panel("distance to the nearest training patch", "share of images nearer")
    for name, values in distances.items():
        label, colour = look[name]
        axes.ecdf(values, color=colour, linewidth=1.8, label=label)
    axes.set_xlim(left=0)
    return _finished(figure, axes)


def component_scatter(
    reference: Float[np.ndarray, "r d"],
    real: Float[np.ndarray, "n d"],
    samples: Float[np.ndarray, "m d"],
) -> bytes | None:
    """PNG: real images and samples in the two leading components of the reference.

    Of more than POINTS, evenly spaced ones are drawn. None where there are no two.
    """
    if min(reference.shape) < 2:
        return None
    axes = PCA(2, random_state=0).fit(reference)
    groups = [axes.transform(few[evenly(len(few), POINTS)]) for few in (real, samples)]
    share = axes.explained_variance_ratio_
    labels = tuple(f"component {i + 1} ({share[i]:.0%} of the variance)" for i in range(2))
    return scatter_plot(
        np.concatenate(groups),
        np.repeat([0, 1], [len(group) for group in groups]),
        (REAL, SAMPLES),
        labels,
    )


def _panel(x_label: str, y_label: str) -> tuple[pyplot.Figure, pyplot.Axes]:
    figure, axes = pyplot.subplots(figsize=(5.6, 4.8), dpi=144, layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.set_xlabel(x_label, fontsize=12, color=MIDDLE)
    axes.set_ylabel(y_label, fontsize=12, color=MIDDLE)
    axes.tick_params(labelsize=10, color=MIDDLE, labelcolor=MIDDLE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(MIDDLE)
    return figure, axes


def _finished(figure: pyplot.Figure, axes: pyplot.Axes) -> bytes:
    axes.legend(frameon=False, fontsize=10, labelcolor=MIDDLE)
    return png_of(figure)
