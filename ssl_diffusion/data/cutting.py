"""Cutting origins in other processes: rows of patches, as the bytes that records hold."""

import hashlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from ssl_diffusion.data.children import live_with_the_parent
from ssl_diffusion.data.image_bytes import decode, encode
from ssl_diffusion.data.origins import Example, Opened, Origin
from ssl_diffusion.data.patches import symmetry
from ssl_diffusion.errors import InputError

# Of pixels of a task at most, but for one row of patches: what it gives back is in memory.
TASK_BYTES = 2**26


class Broken(Exception):
    """An origin that cannot be used, and why."""

    def __init__(self, index: int, reason: str):
        super().__init__(reason)
        self.index, self.reason = index, reason

    def __reduce__(self):
        return Broken, (self.index, self.reason)


@dataclass(frozen=True)
class Form:
    """What becomes of a patch: `recipe.RECIPE` says the first two.

    `pixels` is whether the pixels come along with the bytes, for an encoder; `patch_px` is checked
    of patches that were cut before.
    """

    variants: int
    jpeg_quality: int | None
    pixels: bool
    patch_px: int


@lru_cache(maxsize=2)
def _opened(origin: Origin) -> Opened:
    return origin.open()


def survey(index: int, origin: Origin) -> dict[str, Any]:
    """`rows`, `most` and `about` of an origin, or the `reason` why it cannot be used."""
    try:
        opened = origin.open()
        return {"rows": opened.rows, "most": opened.most, "about": opened.about}
    except (InputError, OSError) as error:
        return {"reason": _reason(error)}


def check_usable(surveys: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError if no origin can be opened, with the first reasons."""
    reasons = [found["reason"] for found in surveys if "reason" in found]
    if len(reasons) == len(surveys):
        raise InputError(f"none of {len(surveys)} sources can be used: {'; '.join(reasons[:3])}")


def cut(index: int, origin: Origin, start: int, stop: int, form: Form) -> list[dict[str, Any]]:
    """Examples of rows start to stop, in every variant, each with

    encoded    its bytes
    image      its pixels, if the form wants them
    digest     of the patch itself, uint64, to find it again in other places
    variant    which symmetry it is

    besides what `Example` has. Raises Broken if the origin cannot be read.
    """
    try:
        opened = _opened(origin)
        examples = [example for row in range(start, stop) for example in opened.cut(row)]
        return [each for example in examples for each in _variants(example, origin, form)]
    except (InputError, OSError) as error:
        raise Broken(index, _reason(error)) from None


def _variants(example: Example, origin: Origin, form: Form) -> Iterator[dict[str, Any]]:
    encoded = example.get("encoded")
    pixels = example.get("image")
    if pixels is None and (form.pixels or form.variants > 1):
        pixels = decode(encoded)
        if pixels.shape[:2] != (form.patch_px, form.patch_px):
            height, width = pixels.shape[:2]
            raise InputError(
                f"a patch of {width}x{height} px, expected {form.patch_px} (config.data.patch_px)"
            )
    digest = _digest(encoded if pixels is None else pixels.tobytes())
    plain = {"label": origin.label, "text": origin.text} | dict(example) | {"digest": digest}
    for variant in range(form.variants if example["split"] == "train" else 1):
        each = plain | {"variant": variant}
        if variant or encoded is None:
            each["encoded"] = encode(symmetry(pixels, variant), form.jpeg_quality)
        each.pop("image", None)
        if form.pixels:
            # What is embedded is what the record holds, after JPEG if that is how it is stored.
            lossless = encoded is None and form.jpeg_quality is None
            each["image"] = symmetry(pixels, variant) if lossless else decode(each["encoded"])
        yield each


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())


class Cutters:
    """Processes that cut, or this one with `workers` 0. Results come in the order asked for.

    They are started afresh, not forked: this process has threads of JAX. A few results are made
    ahead of what is read, so that memory is bounded.
    """

    def __init__(self, workers: int):
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Cutters":
        if self._workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self._workers,
                context,
                initializer=live_with_the_parent,
                initargs=(signal.SIGINT,),  # the pool itself ends its processes by SIGTERM
            )
        return self

    def __exit__(self, *_) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable, calls: Iterable[tuple]) -> Iterator[Any]:
        """`function(*call)` for each, in order; what one raises is raised when its turn comes.

        Raises InputError if a process was killed.
        """
        if self._pool is None:
            yield from (function(*call) for call in calls)
            return
        try:
            yield from self._shared(self._pool, function, iter(calls))
        except BrokenProcessPool:
            raise InputError(
                "a process that cuts was killed, perhaps for want of memory; set --workers lower, "
                "and the same command goes on"
            ) from None

    def _shared(
        self, pool: ProcessPoolExecutor, function: Callable, calls: Iterator[tuple]
    ) -> Iterator[Any]:
        most = self._workers + 2  # results that are made before they are read
        ahead = deque(pool.submit(function, *call) for call in islice(calls, most))
        try:
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(pool.submit(function, *call) for call in islice(calls, 1))
        finally:
            for future in ahead:
                future.cancel()
