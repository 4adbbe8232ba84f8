"""What is wrong with a photo, found from the photo alone."""

from torch import Tensor

from silo.images import middle, to_pil
from silo.jpeg_noise import estimate_jpeg_noise
from silo.jpeg_quality import find_compression
from silo.matching import find_blur, may_be_shaken
from silo.noise import estimate_noise
from silo.shake import estimate_shake

# In pixels: sharp photos are found to have up to 0.8, and in noise some more.
LEAST_BLUR, BLUR_OF_NOISE = 0.9, 10.0
# The pits that a photo's cepstrum has without a shake are up to 14 times as deep as is common, and
# up to 24 times where it is blurred without any noise; those of shakes 20 to 100 times, and in
# noise 7 to 60 times.
SHAKEN, SHAKEN_FOR_BLURRED = 14.0, 24.0
BLURRED, WITHOUT_NOISE = 1.7, 0.005
HIGHEST_QUALITY = 50  # of a JPEG file that looks compressed
LEAST_NOISE = 0.03  # in [0, 1]; fine textures of sharp photos are taken for as much
SMALL = 256  # px, the longer side


def diagnose(photo: Tensor) -> str | None:
    """Find what damaged a photo most, of what a photo shows: lost pixels have to be marked.

    A shake or a blur goes first: noise and compression beside it are undone with it
    (`silo.matching`), while to undo them alone would take what detail it has left. A small photo
    is one that shows nothing else.

    Args:
        photo: (1, 3, H, W) in [-1, 1].

    Returns:
        A key of `operators.catalog.TASKS`; None where nothing is found.
    """
    noise = estimate_noise(to_pil(middle(photo)))
    blur, shake = find_blur(photo) or 0.0, estimate_shake(photo)
    has_rings = blur >= BLURRED and noise < WITHOUT_NOISE
    if shake is not None and shake.depth >= (SHAKEN_FOR_BLURRED if has_rings else SHAKEN):
        if may_be_shaken(middle(photo), shake, estimate_jpeg_noise(photo)):
            return "motion_blur"
    if blur >= LEAST_BLUR + BLUR_OF_NOISE * noise:
        return "gaussian_blur"
    compression = find_compression(photo)
    if compression is not None and compression.quality <= HIGHEST_QUALITY:
        return "jpeg_q10"
    if noise >= LEAST_NOISE:
        return "denoising"
    return "super_resolution_x4" if max(photo.shape[-2:]) < SMALL else None
