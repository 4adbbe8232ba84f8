"""The example photos: in scikit-image's wheel, so that nothing is downloaded."""

import skimage.data
from PIL import Image, ImageOps

EXAMPLES = {"astronaut": "Portrait", "chelsea": "Cat", "coffee": "Coffee", "rocket": "Rocket"}
THUMBNAIL = 128  # px


def example_photo(name: str, size: int) -> Image.Image:
    """Return the centre square of one of scikit-image's photos, `size` pixels wide."""
    photo = Image.fromarray(getattr(skimage.data, name)())
    return ImageOps.fit(photo, (size, size), Image.Resampling.LANCZOS)
