"""What is wrong with a photo, found from the photo alone."""

from torch import Tensor

from silo.errors import Unrestorable
from silo.images import middle, to_pil
from silo.photo.jpeg_noise import estimate_jpeg_noise
from silo.photo.jpeg_quality import find_compression
from silo.photo.matching import find_blur, may_be_shaken
from silo.photo.noise import estimate_noise, estimate_noise_where_flat
from silo.photo.shake import estimate_shake

# In pixels: sharp photos are found to have up to 0.8, and noisy ones more.
LEAST_BLUR, BLUR_OF_NOISE = 0.9, 10.0
# The pits that a photo's cepstrum has without a shake are up to 14 times as deep as is common; up
# to 24 times where there is blur, in pixels, and no noise, in [0, 1]. Those of shakes are 20 to 100
# times as deep, and in noise 7 to 60 times.
LEAST_DEPTH, LEAST_DEPTH_IN_SMOOTH = 14.0, 24.0
SMOOTH_BLUR, SMOOTH_NOISE = 1.7, 0.005
HIGHEST_QUALITY = 50  # of a JPEG file that looks compressed
NOISY, NOISY_WHERE_FLAT = 0.03, 0.02  # in [0, 1]: fine texture is taken for noise, but not there
SMALL_SIDE = 256  # px, the longer one


def diagnose(photo: Tensor) -> str | None:
    """Find which damage to undo of what a photo shows; lost pixels do not show, and are marked.

    A shake or a blur goes first: noise and compression beside it are undone with it
    (`silo.photo.matching`), while to undo them alone would take what detail it has left. Then come
    compression, noise, and that the photo is small.

    Args:
        photo: (1, 3, H, W) in [-1, 1].

    Returns:
        A key of `operators.catalog.TASKS`; None where nothing is found.
    """
    image = to_pil(middle(photo))
    noise, where_flat = estimate_noise(image), estimate_noise_where_flat(image)
    blur, shake = find_blur(photo) or 0.0, estimate_shake(photo)
    smooth = blur >= SMOOTH_BLUR and noise < SMOOTH_NOISE
    if shake is not None and shake.depth >= (LEAST_DEPTH_IN_SMOOTH if smooth else LEAST_DEPTH):
        if may_be_shaken(photo, shake, estimate_jpeg_noise(photo)):
            return "motion_blur"
    if blur >= LEAST_BLUR + BLUR_OF_NOISE * noise:
        return "gaussian_blur"
    compression = find_compression(photo)
    if compression is not None and compression.quality <= HIGHEST_QUALITY:
        return "jpeg_q10"
    if where_flat is None:
        where_flat = noise
    if max(noise, where_flat) >= NOISY and where_flat >= NOISY_WHERE_FLAT:
        return "denoising"
    return "super_resolution_x4" if max(photo.shape[-2:]) < SMALL_SIDE else None


def require_task(photo: Tensor) -> str:
    """The same, of a photo that has to be restored.

    Raises:
        Unrestorable: nothing is found.
    """
    task = diagnose(photo)
    if task is None:
        raise Unrestorable(
            "The photo is not small, and shows no blur, shake, noise or JPEG compression to speak "
            "of: name the task, if there is one; scratches, dust and creases are inpainting_free's."
        )
    return task
