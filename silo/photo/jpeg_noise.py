"""How much noise JPEG compression has left in a photo, estimated from the photo alone."""

import torch
from torch import Tensor

from operators.jpeg import Jpeg, luma_coefficients
from silo.images import middle
from silo.photo.jpeg_quality import find_compression

LOW = 4  # of the eight frequencies in each direction, those that blurred photos have most of
MOST_KEPT = 0.999  # of coefficients: the rate of a Laplacian that keeps all is 0


def estimate_jpeg_noise(picture: Tensor) -> float:
    """Estimate what compression as a JPEG file was off by, as the standard deviation of noise.

    It is that of white noise, in [0, 1], which is as strong at the lower frequencies, where all
    of a blurred photo is. A coefficient that was kept is off by its rounding, q^2 / 12 for a step
    of q; one that was rounded to zero by what it was. At each frequency coefficients are taken
    for Laplacian, whose rate the share that was kept tells (Lam and Goodman, "A mathematical
    analysis of the DCT coefficient distributions for images", 2000).

    Args:
        picture: (1, 3, H, W) in [-1, 1], neither scaled nor cropped since.

    Returns:
        The estimate; 0 where the picture does not show that it was compressed.
    """
    compression = find_compression(picture)
    if compression is None:
        return 0.0
    upright = middle(torch.rot90(picture, -compression.turns, (-2, -1))).double()
    blocks = luma_coefficients(upright)[..., :LOW, :LOW].flatten(0, -3)
    step = Jpeg(compression.quality).luma_steps.to(blocks)[:LOW, :LOW]
    kept = (blocks.abs() > step / 2).to(blocks).mean(dim=0)
    energy = kept * step.square() / 12 + _energy_lost(kept.clamp(max=MOST_KEPT), step / 2)
    return float(energy.mean().sqrt()) / 255


def _energy_lost(kept: Tensor, threshold: Tensor) -> Tensor:
    """The mean of c^2 where |c| is below the threshold, else 0, of a Laplacian c.

    Args:
        kept: how likely |c| is above it; where that is 0, so is the energy.
        threshold: it.
    """
    scale = threshold / -kept.log()  # 0 where none is kept
    above = kept * (threshold.square() + 2 * threshold * scale + 2 * scale.square())
    return 2 * scale.square() - above
