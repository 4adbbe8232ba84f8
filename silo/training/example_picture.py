"""The picture of an operator's card: a photo in the public domain, damaged and restored with it."""

from pathlib import Path

import skimage.data
import torch.nn.functional as F

from operators.catalog import Task
from silo.data import Photo, center_crop
from silo.images import save_png
from silo.prior import LatentPrior
from silo.restorer import Restorer
from silo.training.validation import restore_simulated, side_by_side

LARGEST_SIDE = 256  # px; three such squares of a photo are less than 300 kB


def write_example(path: Path, prior: LatentPrior, task: Task, operator: Path) -> str:
    """Write the photo clean, measured and restored, side by side.

    Trainings use pictures whose authors may not want them published, so that the example is a photo
    of NASA's instead, which scikit-image brings.

    Args:
        path: the PNG to write or replace.
        prior: restores.
        task: what the operator was trained for.
        operator: its folder.

    Returns:
        A sentence that says what the picture shows.
    """
    photo = Photo("astronaut", "", skimage.data.astronaut())
    result = restore_simulated(
        Restorer(prior, operator=operator),
        task,
        center_crop(photo, prior.native_size)[None],
        preset="balanced",  # quick is not for every operator: it diverges where H inverts detail
    )
    strip = side_by_side(result)
    if prior.native_size > LARGEST_SIDE:
        strip = F.interpolate(strip, (LARGEST_SIDE, 3 * LARGEST_SIDE), mode="area")
    save_png(path, strip)
    return (
        f"Clean, measured, and restored with `{result.parameters['sampler']}` in {result.nfe} "
        "denoiser evaluations. The photo, of Eileen Collins, is NASA's and in the public domain."
    )
