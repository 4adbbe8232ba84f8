"""How noisy a photo is, estimated from the photo alone."""

from math import ceil, sqrt

import numpy as np
from PIL import Image

MAX_PIXELS = 4_000_000  # of larger photos, evenly spread blocks are looked at
LARGEST = 0.5  # of a pattern that is black and white by turns, more would be found
_MAD_OF_NORMAL = 0.6745  # median of |x|, x standard normal


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
    return min(float(np.median(np.abs(diagonal), axis=0).mean() / _MAD_OF_NORMAL), LARGEST)
