"""The example photos: in scikit-image's wheel, so that nothing is downloaded."""

import skimage.data
from PIL import Image, ImageOps

from silo.errors import BadRequest

EXAMPLES = {"astronaut": "Portrait", "chelsea": "Cat", "coffee": "Coffee", "rocket": "Rocket"}
THUMBNAIL = 128  # px


def example_photo(name: str, size: int) -> Image.Image:
    """Return the centre square of an example, `size` pixels wide.

    Raises:
        BadRequest: it is none of `EXAMPLES`. The page sends the name, and so may anybody.
    """
    if name not in EXAMPLES:
        raise BadRequest(f"there is no such example: choose one of {', '.join(EXAMPLES)}.")
    photo = Image.fromarray(getattr(skimage.data, name)())
    return ImageOps.fit(photo, (size, size), Image.Resampling.LANCZOS)
