"""From the photo to the canvas one paints a mask on, and from the canvas to the mask."""

from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from operators.catalog import FREE_FORM, Task
from silo import images, masks
from silo.errors import BadMask, SiloError
from silo.scratches.detector import find_scratches
from silo.ui.cache import keep

LARGEST_SIDE = 1024  # px, of a picture as the page shows it
# Two pictures are of one photo whose means of 32 by 32 parts differ by less, on average, in
# [-1, 1]: what scaling and a browser's canvas change is a hundredth of that.
LOOKED_AT, SAME_PHOTO = 32, 0.1


def view(pixels: Tensor) -> Image.Image:
    """Return pixels (1, 3, H, W) as a picture of a size fit to be shown and painted on."""
    picture = images.to_pil(pixels)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture


def at_most(picture: Image.Image) -> Image.Image:
    """Return a copy of a picture, of a size fit to be shown."""
    small = picture.copy()
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return small


def view_file(path: str) -> tuple[Image.Image, list[str]]:
    """Return a file's picture as `view` does, without its pixels as floats, and the notices.

    Raises:
        BadImage: it cannot be read.
    """
    picture, notices = images.load_rgb(path)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture, notices


def wants_mask(task: Task, simulate: bool) -> bool:
    """Tell whether a person has holes to mark: a simulation draws them, unless they are free."""
    return task.degradation.needs_mask and (not simulate or task.name == FREE_FORM)


def blank(path: str, folder: str) -> dict[str, Any]:
    """Return the value of a `gr.ImageEditor` with nothing painted on a photo yet.

    Its layer is there from the start: of a canvas without, *Undo* takes the photo away.

    Raises:
        BadImage: it cannot be read.
    """
    picture, _ = view_file(path)
    return _painted(picture, torch.zeros(1, 1, 1, 1), folder)


def blank_if_any(path: str | None, folder: str) -> dict[str, Any] | None:
    """Return what `blank` does; None without a photo, or one that cannot be read."""
    with suppress(SiloError):
        return None if path is None else blank(path, folder)
    return None


def paint_mask_file(path: str, photo: str, folder: str) -> dict[str, Any]:
    """Paint a mask file over the photo, where it can be seen and corrected.

    Returns:
        The value of a `gr.ImageEditor`, files in `folder`: the photo under one layer, white in the
        holes.

    Raises:
        BadImage, BadMask: a file that cannot be read, or a mask of another size than the photo.
    """
    pixels = images.load_image(photo).pixels
    mask = masks.load_mask(path)
    masks.check_size(mask, pixels)
    picture = view(pixels)
    return _painted(picture, _hole(mask, (picture.height, picture.width)), folder)


def look_for_scratches(photo: str, folder: str) -> str:
    """Write a mask file of the scratches that a photo shows, in `folder`; return its path.

    It is as large as the photo is on the canvas.

    Raises:
        BadImage: the photo cannot be read.
        Unrestorable: no scratches are found.
    """
    pixels = images.load_image(photo).pixels
    picture = view(pixels)
    hole = _hole(find_scratches(pixels), (picture.height, picture.width))
    return keep(images.to_pil(hole.expand(1, 3, -1, -1) * 2 - 1), folder, "scratches")


def add_mask_file(
    canvas: dict[str, Any] | None, path: str, photo: str, folder: str
) -> dict[str, Any]:
    """Paint what a mask file marks beside what is painted already.

    Args:
        canvas: the value of a `gr.ImageEditor` of type "pil"; None before any photo.
        path: the mask file, as `look_for_scratches` writes it.
        photo: the picture under it.
        folder: where the files of the new value go.

    Returns:
        The value of a `gr.ImageEditor`.

    Raises:
        BadImage, BadMask: a file that cannot be read.
    """
    picture, _ = view_file(photo)
    size = picture.height, picture.width
    hole, painted = _hole(masks.load_mask(path), size), painted_mask(canvas, size)
    return _painted(picture, hole if painted is None else torch.maximum(hole, 1 - painted), folder)


def invert(canvas: dict[str, Any] | None, photo: str, folder: str) -> dict[str, Any]:
    """Paint what is free on the canvas, and free what is painted.

    Args:
        canvas: the value of a `gr.ImageEditor` of type "pil"; None before any photo.
        photo: the picture under it.
        folder: where the files of the new value go.

    Returns:
        The value of a `gr.ImageEditor`.

    Raises:
        BadImage, BadMask: a file that cannot be read.
    """
    picture, _ = view_file(photo)
    mask = painted_mask(canvas, (picture.height, picture.width))
    return _painted(picture, torch.ones(1, 1, 1, 1) if mask is None else mask, folder)


def painted_mask(
    canvas: dict[str, Any] | None, size: tuple[int, int], uploaded: str | None = None
) -> Tensor | None:
    """Read the mask off the canvas: white is to be filled in, what is black or bare is to stay.

    Args:
        canvas: the value of a `gr.ImageEditor` of type "pil"; None before any photo.
        size: (height, width) of the photo.
        uploaded: the mask file that was loaded last. The canvas of a large photo is smaller: where
            it shows this mask as `paint_mask_file` painted it, the file's own pixels are meant.

    Returns:
        (1, 1, *size), 1 = known, 0 = painted white; None if nothing is.
    """
    if canvas is None or not canvas["layers"]:
        return None
    shown = Image.new("RGBA", canvas["layers"][0].size, "black")
    for layer in canvas["layers"]:
        shown.alpha_composite(layer.convert("RGBA"))
    mask = masks.read_mask(shown.convert("L"))
    if mask.min() == 1:
        return None
    if uploaded is not None:
        # The button keeps even a file that could not be loaded, which was said then.
        with suppress(BadMask):
            exact = masks.load_mask(uploaded)
            if exact.shape[-2:] == size and torch.equal(_hole(exact, mask.shape[-2:]), 1 - mask):
                return exact
    return F.interpolate(mask, size)


def check_canvas(canvas: dict[str, Any] | None, photo: Tensor) -> None:
    """Check that what was painted lies on a photo (1, 3, H, W): the canvas comes after it.

    Raises:
        BadMask: on another.
    """
    if canvas is None or canvas["background"] is None:
        return
    seen = images.from_pil(canvas["background"].convert("RGB"))
    coarse = [F.adaptive_avg_pool2d(each, LOOKED_AT) for each in (seen, photo)]
    if (coarse[0] - coarse[1]).abs().mean() > SAME_PHOTO:
        raise BadMask("the canvas shows another photo: wait until it shows this one, and paint.")


def _hole(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """1 where any of what a pixel of the canvas covers is to be filled: no scratch gets lost."""
    return F.adaptive_max_pool2d(1 - mask, size)


def _painted(picture: Image.Image, hole: Tensor, folder: str) -> dict[str, Any]:
    """The value of a `gr.ImageEditor`: `picture` under a layer, white where `hole` is 1."""
    hole = hole.expand(1, 3, picture.height, picture.width)
    layer = Image.new("RGBA", picture.size, "white")
    layer.putalpha(images.to_pil(hole * 2 - 1).convert("L"))
    # The editor would paint on a composite in place of the photo: what it shows could be moved or
    # erased no more.
    return {
        "background": keep(picture, folder),
        "layers": [keep(layer, folder)],
        "composite": None,
    }
