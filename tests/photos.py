"""Photos that nothing was trained on, and what cameras and files do to them."""

import io

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from operators.blur import GaussianBlur
from silo.images import from_pil, to_pil

NAMES = ("astronaut", "coffee", "rocket", "chelsea")


def photo(name: str = "astronaut", side: int = 256) -> Tensor:
    """A photo of skimage's, (1, 3, side, side)."""
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return from_pil(picture.resize((side, side)))


def blurred(picture: Tensor, std: float) -> Tensor:
    """A picture, blurred if `std` is not 0."""
    return GaussianBlur(std=std).forward(picture) if std else picture


def noisy(picture: Tensor) -> Tensor:
    """A picture with noise of 0.01, in eight bits."""
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    return from_pil(to_pil(picture + 0.02 * noise))


def as_of_a_camera(picture: Tensor, sigma: float) -> Tensor:
    """A picture with noise that a camera has smoothed, in eight bits."""
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).expand(3, 1, 3, 3)
    smooth = F.conv2d(F.pad(noise, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)
    return from_pil(to_pil(picture + 2 * sigma * smooth / smooth.std()))


def as_jpeg(picture: Tensor, quality: int = 75) -> Tensor:
    """A picture as a JPEG file holds it."""
    file = io.BytesIO()
    to_pil(picture).save(file, "JPEG", quality=quality)
    with Image.open(file) as stored:
        return from_pil(stored.convert("RGB"))


def scratched(picture: Tensor, width: int = 2) -> tuple[Tensor, Tensor]:
    """A photo (1, 3, H, W) with two scratches and a spot, and where: 1 in (1, 1, H, W)."""
    height, columns = picture.shape[-2:]
    marks = Image.new("L", (columns, height))
    draw = ImageDraw.Draw(marks)
    draw.line((columns * 0.2, 0, columns * 0.25, height), 255, width)
    draw.line((columns * 0.3, height * 0.8, columns * 0.95, height * 0.6), 255, width)
    x, y, radius = columns * 0.6, height * 0.25, 2 * width
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    where = torch.from_numpy(np.array(marks))[None, None] / 255
    return from_pil(to_pil(torch.where(where > 0, torch.tensor(0.9), picture))), where
