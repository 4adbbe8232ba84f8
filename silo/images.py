"""Pictures in and out: decoding to tensors, fitting to the latent grid and back, PNG files."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import ceil, gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from operators.files import write_whole
from silo.decoding import MAX_PIXELS, SUFFIXES, decode, printable_name, read_header
from silo.errors import BadImage, BadRequest, CannotSave, NumericalError

MIDDLE_SIDE = 1024  # px; of larger pictures that much is looked at
_CHUNK = "silo"  # keyword of the PNG text chunk that holds the parameters


@dataclass(frozen=True)
class LoadedImage:
    """A decoded picture.

    Attributes:
        pixels: (1, 3, H, W) float32 in [-1, 1], upright.
        notices: one sentence on each thing in the file that was not taken over as it is.
    """

    pixels: Tensor
    notices: list[str]


def load_image(path: str | os.PathLike[str]) -> LoadedImage:
    """Reads a picture; transparent areas become white.

    Raises:
        BadImage: not a picture that can be read; see `decode`.
    """
    image, notices = load_rgb(path)
    return LoadedImage(from_pil(image), notices)


def load_rgb(path: str | os.PathLike[str]) -> tuple[Image.Image, list[str]]:
    """The same as an image of mode RGB, a quarter of the memory, and the notices.

    Raises:
        BadImage: as `load_image`.
    """
    image, notices = decode(path)
    if image.mode == "RGB":
        image.info.clear()  # a colour profile would be saved with it, and not with what it becomes
        return image, notices
    told = f"{printable_name(path)}: its transparent areas were filled with white."
    return on_white(image), [*notices, told]


def from_pil(image: Image.Image) -> Tensor:
    """An RGB or RGBA image, composited on white, as pixels (1, 3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(on_white(image)))
    return pixels.permute(2, 0, 1)[None].float().div_(127.5).sub_(1)


def on_white(image: Image.Image) -> Image.Image:
    """The image itself where it is of mode RGB, else one with white where it is transparent."""
    if image.mode == "RGB":
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def to_pil(image: Tensor) -> Image.Image:
    """Rounds an image (3, H, W) or (1, 3, H, W) in [-1, 1] to eight bits; values outside are cut.

    Raises:
        NumericalError: some value is not a finite number (it would come out black).
    """
    pixels = image.detach().reshape(image.shape[-3:])
    if not torch.stack(pixels.aminmax()).isfinite().all():  # which nan reaches, too
        raise NumericalError(
            "the result holds values that are not finite numbers: run again in float32."
        )
    # One copy, changed in place: a large picture is large in float32.
    pixels = pixels.permute(1, 2, 0).float().add(1).mul_(127.5).round_().clamp_(0, 255)
    return Image.fromarray(pixels.to(torch.uint8).cpu().contiguous().numpy())


def require_png(path: Path) -> None:
    """Raise BadRequest where the name of a file to be written is that of another format's."""
    if path.suffix.lower() in SUFFIXES and path.suffix.lower() != ".png":
        raise BadRequest(f"Results are PNG files: name {path.with_suffix('.png')}.")


def save_png(
    path: str | os.PathLike[str], image: Tensor, parameters: Mapping[str, Any] | None = None
) -> None:
    """Writes a PNG, whole or not at all.

    Args:
        path: the file to write or replace; its folder must exist.
        image: (3, H, W) or (1, 3, H, W) in [-1, 1].
        parameters: JSON-able; embedded for `read_parameters`.

    Raises:
        CannotSave: the folder is missing, not writable or full.
        NumericalError: as in `to_pil`.
    """
    chunks = PngInfo()
    if parameters is not None:
        chunks.add_text(_CHUNK, json.dumps(dict(parameters), allow_nan=False))
    buffer = BytesIO()
    to_pil(image).save(buffer, "PNG", pnginfo=chunks)
    try:
        write_whole(Path(path), buffer.getbuffer())
    except OSError as error:
        raise CannotSave(
            f"{printable_name(path)}: cannot be written ({error.strerror}); choose another place."
        ) from error


def read_parameters(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The parameters that `save_png` embedded in a PNG; None for a picture without any.

    Raises:
        BadImage: as in `decode`; the pixels are not decoded.
    """
    text = read_header(path).info.get(_CHUNK)
    if not isinstance(text, str):
        return None
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):  # another program's chunk of the same name
        return None
    return parameters if isinstance(parameters, dict) else None


@dataclass(frozen=True)
class Fit:
    """How pictures of one size go on the grid that a prior works on, and back.

    A picture is scaled down if it is too large, then padded on the right and at the bottom, so that
    its origin, and with it the blocks of a JPEG and the phase of a sampling grid, stay in place.

    Attributes:
        original: (height, width) of the picture as it came.
        scaled: (height, width) after scaling, equal to `original` when there was none.
        padded: (height, width) after padding: the size to work at.
        factor: how many times larger the restored picture's sides are than the measurement's.
    """

    original: tuple[int, int]
    scaled: tuple[int, int]
    padded: tuple[int, int]
    factor: int = 1

    @property
    def scale(self) -> float:
        """A length in `scaled` over the same in `original`, at most 1."""
        return max(self.scaled) / max(self.original)

    @property
    def working(self) -> tuple[int, int]:
        """(height, width) of the full-size picture that is worked on: `padded` times `factor`."""
        return self.padded[0] * self.factor, self.padded[1] * self.factor

    @property
    def output(self) -> tuple[int, int]:
        """(height, width) of what `undo` returns: `original` times `factor`."""
        return self.original[0] * self.factor, self.original[1] * self.factor

    def apply(self, pixels: Tensor) -> Tensor:
        """(B, C, *original) -> (B, C, *padded), antialiased; padded by mirroring."""
        _expect(pixels, self.original)
        return self.pad(resize(pixels, self.scaled))

    def pad(self, pixels: Tensor) -> Tensor:
        """(B, C, *scaled) -> (B, C, *padded), mirrored; edges are repeated where too small."""
        for axis, (size, target) in enumerate(zip(self.scaled, self.padded, strict=True)):
            missing = target - size
            sides = (0, 0, 0, missing) if axis == 0 else (0, missing, 0, 0)
            pixels = F.pad(pixels, sides, mode="reflect" if missing < size else "replicate")
        return pixels

    def undo(self, restored: Tensor) -> Tensor:
        """(B, C, *working) -> (B, C, *output): cuts the padding off, then scales back.

        A picture that was not scaled down comes back exactly.
        """
        return resize(self.cut(restored), self.output)

    def cut(self, restored: Tensor) -> Tensor:
        """(B, C, *working) -> (B, C, h, w), `factor` times `scaled`: without the padding."""
        _expect(restored, self.working)
        height, width = (side * self.factor for side in self.scaled)
        return restored[..., :height, :width]


def fit(
    pixels: Tensor,
    *,
    multiple: int,
    max_pixels: int,
    max_side: int | None = None,
    factor: int = 1,
) -> tuple[Tensor, Fit]:
    """Works out how `pixels` go on the grid, without distortion, and puts them there.

    Args:
        pixels: (B, 3, H, W) of any size: a picture, or the low-resolution measurement of one.
        multiple: the sides of the full-size picture must be multiples of this.
        max_pixels: the full-size picture, padding included, has at most so many.
        max_side: the longer side of the fitted pixels, without padding, is at most so long.
        factor: the full-size picture's sides over those of `pixels` (super-resolution).

    Returns:
        The fitted pixels (B, 3, h, w), with h * factor and w * factor multiples of `multiple`, and
        the `Fit`.

    Raises:
        BadImage: the restored picture would have more than MAX_PIXELS.
        BadRequest: no picture of `max_pixels` or less has such sides.
    """
    unit = multiple // gcd(multiple, factor)
    cells = max_pixels // (factor * unit) ** 2
    if cells < 1:
        raise BadRequest(
            f"no picture of fewer than {factor * unit} x {factor * unit} pixels can be worked on: "
            "raise the working size."
        )
    height, width = pixels.shape[-2:]
    if height * width * factor**2 > MAX_PIXELS:
        raise BadImage(
            f"{width} x {height}, enlarged {factor} times, would be "
            f"{height * width * factor**2 / 10**6:,.0f} megapixels; crop it or scale it down until "
            f"the result has at most {MAX_PIXELS // 10**6}."
        )
    scaled = _largest_size(height, width, unit, cells)
    if max_side is not None and max_side < max(scaled):
        scaled = _scaled_to(height, width, max_side)
    padded = (ceil(scaled[0] / unit) * unit, ceil(scaled[1] / unit) * unit)
    plan = Fit((height, width), scaled, padded, factor)
    return plan.apply(pixels), plan


def middle(pixels: Tensor) -> Tensor:
    """The middle of a large picture, (B, C, H, W) of at most MIDDLE_SIDE, whole blocks of JPEG."""
    above, left = (max(0, side - MIDDLE_SIDE) // 16 * 8 for side in pixels.shape[-2:])
    return pixels[..., above : above + MIDDLE_SIDE, left : left + MIDDLE_SIDE]


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale pixels (B, C, H, W) in [-1, 1] to (B, C, *size), antialiased."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    resized = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    return resized.clamp_(-1, 1)  # bicubic overshoots at edges


def _largest_size(height: int, width: int, unit: int, cells: int) -> tuple[int, int]:
    """The largest (height, width) of the same shape that covers at most `cells` unit x unit cells.

    Searched over the length of the long side, on which the number of cells depends monotonically.
    """
    low, high = 1, max(height, width)
    while low < high:
        middle = (low + high + 1) // 2
        first, second = _scaled_to(height, width, middle)
        if ceil(first / unit) * ceil(second / unit) <= cells:
            low = middle
        else:
            high = middle - 1
    return _scaled_to(height, width, low)


def _scaled_to(height: int, width: int, length: int) -> tuple[int, int]:
    """The (height, width) of the same shape whose longer side is `length`."""
    long, short = max(height, width), min(height, width)
    shorter = max(1, (2 * short * length + long) // (2 * long))  # rounded
    return (length, shorter) if height >= width else (shorter, length)


def _expect(pixels: Tensor, size: tuple[int, int]) -> None:
    if tuple(pixels.shape[-2:]) != size:
        raise ValueError(f"expected pixels of {size}, got {tuple(pixels.shape[-2:])}.")
