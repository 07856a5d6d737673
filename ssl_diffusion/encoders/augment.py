"""Random views of a patch, to train an encoder and to judge it: pure functions of a key.

Images are float32 in [-1, 1], [n, size, size, 3]. `settings` is a mapping with

    crop         smallest area of the square crop, as a fraction of the image
    largest_crop    the largest; 1 where it is left out
    brightness, contrast, saturation     half-range of the factor around 1
    hue          half-range of the hue turn, as a fraction of the whole circle
    blur_px      largest standard deviation of the Gaussian blur, pixels

and every example gets its own draw, keyed by its place in the batch.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# RGB <-> YIQ (NTSC); a turn of the IQ plane is a turn of hue at constant luma.
RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)
YIQ_TO_RGB = np.linalg.inv(RGB_TO_YIQ)
# What the report judges an encoder by, however it was trained.
STRONG = {
    "crop": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "blur_px": 1.0,
}
BLUR_REACH = 3  # taps on either side; covers three standard deviations of the largest blur of 1 px


def strong_augment(
    key: Array, images: Float[Array, "n s s 3"], settings: Mapping[str, float]
) -> Float[Array, "n s s 3"]:
    """One random view of each image: crop, flip or turn, colour, blur."""
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(images.shape[0]))
    return jax.vmap(lambda k, image: augment(k, image, settings))(keys, images)


def views_of(
    images: UInt8[np.ndarray, "n s s 3"], settings: Mapping[str, float], draws: int, seed: int
) -> UInt8[np.ndarray, "draws n s s 3"]:
    """`draws` random views of each image, as uint8: the fixed set that encoders are judged on."""
    view = jax.jit(lambda key: strong_augment(key, jnp.asarray(images) / 127.5 - 1.0, settings))
    views = [np.asarray(view(jax.random.fold_in(jax.random.key(seed), i))) for i in range(draws)]
    return np.clip(np.round((np.stack(views) + 1) * 127.5), 0, 255).astype(np.uint8)


def augment(
    key: Array,
    image: Float[Array, "s s 3"],
    settings: Mapping[str, float],
    size_px: int | None = None,
) -> Float[Array, "view view 3"]:
    """One random view of one image, of `size_px` pixels (None: as many as the image has)."""
    crop_key, turn_key, colour_key, blur_key = jax.random.split(key, 4)
    areas = settings["crop"], settings.get("largest_crop", 1.0)
    image = _crop(crop_key, image, areas, size_px or image.shape[0])
    image = _turn(turn_key, image)
    image = _colour(colour_key, image, settings)
    return _blur(blur_key, image, settings["blur_px"])


def _crop(
    key: Array, image: Float[Array, "s s 3"], areas: tuple[float, float], size_px: int
) -> Float[Array, "{size_px} {size_px} 3"]:
    """A square of random area and place, resized to `size_px` (linear, antialiased)."""
    area_key, place_key = jax.random.split(key)
    size = image.shape[0]
    smallest, largest = areas
    side = jnp.sqrt(jax.random.uniform(area_key, minval=smallest, maxval=largest))
    corner = jax.random.uniform(place_key, (2,)) * (1 - side) * size_px
    scale = jnp.full(2, size_px / size / side)
    return jax.image.scale_and_translate(
        image, (size_px, size_px, 3), (0, 1), scale, -corner / side, "linear"
    )


def _turn(key: Array, image: Float[Array, "s s 3"]) -> Float[Array, "s s 3"]:
    """One of the eight flips and quarter turns."""
    flip_rows, flip_columns, transpose = jax.random.bernoulli(key, shape=(3,))
    image = jnp.where(flip_rows, image[::-1], image)
    image = jnp.where(flip_columns, image[:, ::-1], image)
    return jnp.where(transpose, image.swapaxes(0, 1), image)


def _colour(key: Array, image: Float[Array, "s s 3"], settings: Mapping[str, float]):
    """Brightness, contrast, saturation and hue, in that order, clipped to [-1, 1]."""
    draws = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
    x = (image + 1) / 2 * (1 + draws[0] * settings["brightness"])
    mean = jnp.mean(x @ jnp.asarray(RGB_TO_YIQ[0], jnp.float32))
    x = mean + (x - mean) * (1 + draws[1] * settings["contrast"])
    angle = draws[3] * settings["hue"] * 2 * jnp.pi
    chroma = (1 + draws[2] * settings["saturation"]) * jnp.array(
        [[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]
    )
    yiq = x @ jnp.asarray(RGB_TO_YIQ.T, jnp.float32)
    yiq = jnp.concatenate([yiq[..., :1], yiq[..., 1:] @ chroma.T], axis=-1)
    return jnp.clip(yiq @ jnp.asarray(YIQ_TO_RGB.T, jnp.float32), 0.0, 1.0) * 2 - 1


def _blur(key: Array, image: Float[Array, "s s 3"], largest: float) -> Float[Array, "s s 3"]:
    """Gaussian blur of random width, separable, edges replicated."""
    sigma = jax.random.uniform(key, minval=1e-3, maxval=max(largest, 2e-3))
    offsets = jnp.arange(-BLUR_REACH, BLUR_REACH + 1)
    taps = jax.nn.softmax(-0.5 * jnp.square(offsets / sigma))
    size = image.shape[0]
    for axis in (0, 1):
        reach = [(BLUR_REACH, BLUR_REACH) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(image, reach, mode="edge")
        slices = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(len(taps))]
        image = sum(tap * part for tap, part in zip(taps, slices, strict=True))
    return image
