"""Features of a set of images, each chunk computed once for a network and kept on the disk."""

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from ssl_diffusion.errors import InputError
from ssl_diffusion.evaluation.image_sets import ImageSet
from ssl_diffusion.evaluation.spaces import Space
from ssl_diffusion.files import replacing

MOST, LARGEST = 512, 2**27  # images and bytes of a chunk


def cached_features(space: Space, images: ImageSet, cache: Path) -> Float[np.ndarray, "n d"]:
    """The features of all images, in their order: float32.

    Every chunk's are kept in `cache`, under a SHA-256 of the space's digest and the chunk's pixels:
    what was done before a run was killed, or met an image that cannot be read, is not done again,
    and neither is what another set of the same images had. Raises InputError for features that are
    not finite, and for images as the set does.
    """
    height, width = images.size
    size = chunk_size(height, width)
    found, done = None, 0
    with tqdm(total=len(images), unit="image", desc=f"{space.name}: {images.name}") as bar:
        for chunk in _ahead(images.chunks(size)):
            features = _features(space, images, chunk, done, cache)
            if found is None:
                found = np.empty((len(images), features.shape[1]), np.float32)
            found[done : done + len(chunk)] = features
            done += len(chunk)
            bar.update(len(chunk))
    return found


def chunk_size(height: int, width: int) -> int:
    """Images at a time: a power of two, by their size in pixels alone."""
    fitting = max(1, LARGEST // (height * width * 3))
    return min(MOST, 1 << (fitting.bit_length() - 1))


def _features(
    space: Space, images: ImageSet, chunk: UInt8[np.ndarray, "k h w 3"], done: int, cache: Path
) -> Float[np.ndarray, "k d"]:
    digest = hashlib.sha256(f"{space.digest} {chunk.shape} ".encode())
    digest.update(chunk)
    file = cache / f"{digest.hexdigest()}.npy"
    kept = _kept(file)
    if kept is not None and kept.ndim == 2 and len(kept) == len(chunk):
        return kept
    features = space.embed(chunk)
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise InputError(
            f"{space.name} gives {images.name} features with NaN or infinity, first for image "
            f"{done + bad[0]}; look at that image, or copy the network's weights again"
        )
    with replacing(file) as temporary:
        np.save(temporary, features)
    return features


def _kept(file: Path) -> Float[np.ndarray, "k d"] | None:
    """What is on the disk; a damaged file is as good as none."""
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _ahead(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same chunks, each read while the one before it is worked on."""
    iterator = iter(chunks)
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, iterator, None)
        while (chunk := following.result()) is not None:
            following = reader.submit(next, iterator, None)
            yield chunk
