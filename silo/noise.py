"""How noisy a photo is, estimated from the photo alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

_MAD_OF_NORMAL = 0.6745  # median of |x|, x standard normal


def estimate_noise(image: Tensor) -> float:
    """Estimate the standard deviation of white noise, for pictures in [0, 1].

    The median absolute value of the finest diagonal Haar coefficients (Donoho and Johnstone, "Ideal
    spatial adaptation by wavelet shrinkage", 1994), of which edges and flat areas are few enough in
    a photo not to matter; the mean over the colours. It reads smooth noise, as left by JPEG or
    scaling, as less.

    Args:
        image: (1, 3, H, W) in [-1, 1].

    Returns:
        The estimate; 0 for a picture of a single row or column.
    """
    if min(image.shape[-2:]) < 2:
        return 0.0
    haar = image.new_tensor([[1, -1], [-1, 1]]).div(2).expand(3, 1, 2, 2)
    diagonal = F.conv2d(image / 2, haar, stride=2, groups=3)[0].flatten(1)
    return float(torch.median(diagonal.abs(), dim=1).values.mean() / _MAD_OF_NORMAL)
