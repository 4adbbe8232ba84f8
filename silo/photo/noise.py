"""How noisy a photo is, estimated from the photo alone."""

from math import ceil, sqrt

import numpy as np
from PIL import Image

from operators.cosine import BLOCK, cosines
from operators.wiener import MEDIAN_OF_NORMAL

MAX_PIXELS = 4_000_000  # of larger photos, evenly spread blocks are looked at
LARGEST = 0.5  # of a pattern that is black and white by turns, more would be found

# Noise is looked for in the flattest tenth of so many blocks, evenly spread. Of fewer the flattest
# are not flat.
FLAT, BLOCKS, LEAST_BLOCKS = 0.1, 4096, 512
CLEARLY = 1.3  # times what the finest detail shows; of white noise the two are alike
# How flat a block is, its lowest frequencies tell, of which the sum of rows and columns is up to
# this. What noise they have, those of the next two sums tell: those of flat blocks have less.
LOWEST = 2


def estimate_noise(image: Image.Image) -> float:
    """Estimate the standard deviation of white noise, for pictures in [0, 1].

    The median absolute value of the finest diagonal Haar coefficients (Donoho and Johnstone, "Ideal
    spatial adaptation by wavelet shrinkage", 1994), of which edges and flat areas are few enough in
    a photo not to matter; the mean over the colours. It reads smooth noise, as left by JPEG or
    scaling, as less.

    Args:
        image: a picture of mode RGB.

    Returns:
        The estimate, up to `LARGEST`; 0 for a picture of a single row or column.
    """
    height, width = image.height // 2, image.width // 2  # in blocks of 2 x 2
    if min(height, width) < 1:
        return 0.0
    pixels = np.asarray(image)
    apart = 2 * ceil(sqrt(4 * height * width / MAX_PIXELS))

    def corner(row: int, column: int) -> np.ndarray:
        chosen = pixels[row : 2 * height : apart, column : 2 * width : apart]
        return chosen.reshape(-1, 3).astype(np.float32) / 255

    diagonal = (corner(0, 0) - corner(0, 1) - corner(1, 0) + corner(1, 1)) / 2
    return min(float(np.median(np.abs(diagonal), axis=0).mean() / MEDIAN_OF_NORMAL), LARGEST)


def estimate_camera_noise(image: Image.Image) -> float:
    """Estimate the standard deviation of a photo's noise, white or not, for pictures in [0, 1].

    What a camera has made of its sensor's noise is smooth: of it the finest detail, which
    `estimate_noise` reads, has a third. Detail is smooth as well, and told from it by where it is:
    noise is in the flattest blocks, too (`estimate_noise_where_flat`).

    Args:
        image: a picture of mode RGB.

    Returns:
        What the flattest blocks show, if it is clearly more; else what the finest detail does,
        which tells white noise more exactly.
    """
    white, where_flat = estimate_noise(image), estimate_noise_where_flat(image)
    return white if where_flat is None or where_flat < CLEARLY * white else where_flat


def estimate_noise_where_flat(image: Image.Image) -> float | None:
    """Estimate the standard deviation of noise from the flattest blocks, for pictures in [0, 1].

    The median energy of each frequency of their cosine transforms, summed, of blocks that were not
    cut off at black or white (as Ponomarenko et al., "An automatic approach to lossy compression of
    AVIRIS images", 2007, choose blocks).

    Args:
        image: a picture of mode RGB.

    Returns:
        The root of the mean over the colours; None of a picture that has too few blocks.
    """
    rows, columns = image.height // BLOCK, image.width // BLOCK
    if rows * columns < LEAST_BLOCKS:
        return None
    apart = ceil(sqrt(rows * columns / BLOCKS))
    pixels = np.asarray(image)[: rows * BLOCK, : columns * BLOCK]
    blocks = pixels.reshape(rows, BLOCK, columns, BLOCK, 3)[::apart, :, ::apart]
    blocks = blocks.transpose(4, 0, 2, 1, 3).reshape(3, -1, BLOCK, BLOCK)
    cut = ((blocks == 0) | (blocks == 255)).any(axis=(0, 2, 3))
    if (~cut).sum() < LEAST_BLOCKS * FLAT:
        return None
    waves = cosines().numpy()
    energy = (waves @ (blocks[:, ~cut] / 255) @ waves.T) ** 2
    order = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))
    lowest = (order > 0) & (order <= LOWEST)
    flatness = energy[..., lowest].sum(axis=-1)
    flattest = flatness.argsort(axis=1)[:, : ceil(FLAT * flatness.shape[1]), None, None]
    noise = np.median(np.take_along_axis(energy, flattest, axis=1), axis=1) / MEDIAN_OF_NORMAL**2
    next_to_lowest = (order > LOWEST) & (order <= LOWEST + 2)
    noise[:, order <= LOWEST] = noise[:, next_to_lowest].mean(axis=1, keepdims=True)
    return float(np.sqrt(noise.mean()))
