"""Masks of holes: from files and editor layers to tensors, and onto the grid of their picture."""

import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from silo.decoding import decode
from silo.errors import BadImage, BadMask
from silo.images import Fit


def load_mask(path: str | os.PathLike[str]) -> Tensor:
    """Reads a mask file in which white (at least half-way to it) marks the hole.

    In a file with transparent pixels, such as an editor's layer, the painted ones (at least half
    opaque) mark the hole, whatever their colour.

    Returns:
        (1, 1, H, W) float32, 1 = known, 0 = hole.

    Raises:
        BadMask: the file cannot be read as a picture; the message is that of `images.load_image`.
    """
    try:
        image, _ = decode(path)
    except BadImage as error:
        raise BadMask(str(error)) from error
    return read_mask(image)


def read_mask(image: Image.Image) -> Tensor:
    """The mask of a picture, as of its file in `load_mask`; what is opaque in RGBA is the hole."""
    brightness = image.getchannel("A") if image.mode == "RGBA" else image.convert("L")
    hole = torch.from_numpy(np.array(brightness)) >= 128
    return (~hole)[None, None].float()


def check_size(mask: Tensor, image: Tensor) -> None:
    """Raises BadMask, naming both sizes, unless the mask is as large as its picture."""
    if mask.shape[-2:] != image.shape[-2:]:
        raise BadMask(
            f"the mask is {mask.shape[-1]} x {mask.shape[-2]} pixels and the picture "
            f"{image.shape[-1]} x {image.shape[-2]}; make the mask as large as the picture."
        )


def fit(mask: Tensor, plan: Fit) -> Tensor:
    """Puts a mask where `plan` puts its picture.

    A pixel of the result is known only if all the pixels it covers are, so that thin scratches
    survive scaling. The padding is known where the picture it mirrors is.

    Args:
        mask: (1, 1, *plan.original), 1 = known, 0 = hole.
        plan: how the picture of the same size was fitted.

    Returns:
        (1, 1, *plan.padded).

    Raises:
        BadMask: nothing known is left, since every pixel of the result covers some hole.
    """
    hole = F.adaptive_max_pool2d(1 - mask, plan.scaled)  # its windows overlap: none is missed
    if hole.all():
        (height, width), known = plan.scaled, mask.mean().item()
        raise BadMask(
            f"{known:.0%} of the picture is known, but nothing of it where it is scaled to "
            f"{width} x {height} pixels to be worked on: raise the working size, or cut out a "
            "part, and scale that down with its mask."
        )
    return plan.pad(1 - hole)
