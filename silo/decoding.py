"""Decoding of untrusted picture files: bounded memory, and one clear error each."""

import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from silo.errors import BadImage

MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 4 * MAX_PIXELS  # so much they take uncompressed, as scanners save them
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")

# The first bytes of a file decide, not its name. The decoders are called directly and not through
# Image.open, which warns about large pictures before their size can be looked at.
_DECODERS: Mapping[bytes, type[ImageFile.ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"II*\x00": TiffImageFile,
    b"MM\x00*": TiffImageFile,
    b"II+\x00": TiffImageFile,
    b"MM\x00+": TiffImageFile,
    b"GIF87a": GifImageFile,
    b"GIF89a": GifImageFile,
}
_FORMATS = "PNG, JPEG, WEBP, BMP, TIFF or GIF"
# What Pillow's decoders raise on damaged files: mostly the first two, the others from odd fields.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,  # a frame that outgrows its header
)
# By EXIF's orientation: what turns the stored pixels upright.
_UPRIGHT: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_UNSCALED = ("I", "F")  # 32-bit integers and floats: what is white is not said
_COLOUR_SPACE = slice(16, 20)  # of a colour profile: where it says which numbers it explains
_ROUNDING = 2  # levels by which profiles of one colour space differ
_LOOKED_AT = 1024  # bytes of a file, to tell what it is


def decode(path: str | os.PathLike[str]) -> tuple[Image.Image, list[str]]:
    """Decodes an untrusted file of at most MAX_FILE_BYTES and MAX_PIXELS.

    The size in the header is looked at before any pixel is decoded. Sixteen bits are scaled to
    eight, palettes and CMYK are converted, colours of another profile become sRGB, the EXIF
    orientation is applied, and of an animation or of several pages only the first is used.

    Returns:
        An image of mode RGB, or RGBA where some pixel is not opaque; and the notices.

    Raises:
        BadImage: missing, empty, too large, damaged, or not in one of the formats.
    """
    with _opened(path) as file:
        return _decoded(file, printable_name(path))


def decode_bytes(data: bytes, name: str) -> tuple[Image.Image, list[str]]:
    """Decodes the content of a file as `decode` does; errors and notices call it `name`.

    Several threads may do so at once, since Pillow's warnings about odd metadata are not held back.

    Raises:
        BadImage: as in `decode`, but for the size of the file.
    """
    with _named_errors(name):
        return _decoded(BytesIO(data), name)


def _decoded(file: BinaryIO, name: str) -> tuple[Image.Image, list[str]]:
    image = _open(file, name)
    notices = []
    if getattr(image, "is_animated", False):
        notices.append(f"{name}: only the first of its frames or pages is used.")
    image.load()
    image = _upright(image)
    profile = image.info.pop("icc_profile", None)
    image = _to_eight_bits(image, name)
    if profile:
        try:
            image = _to_srgb(image, profile)
        except (ImageCms.PyCMSError, OSError):
            notices.append(f"{name}: its colour profile does not fit; sRGB was presumed.")
    return _to_rgb(image), notices


def read_header(path: str | os.PathLike[str]) -> Image.Image:
    """What a picture says before its pixels, which cannot be read from this.

    Its `size` is that before EXIF's orientation; its `info` has, for one, the text of a PNG.

    Raises:
        BadImage: as in `decode`.
    """
    with _opened(path) as file:
        return _open(file, printable_name(path))


def printable_name(path: str | os.PathLike[str]) -> str:
    """The file's name as it can be printed in one line."""
    name = Path(path).name or str(path)
    return "".join(c if c.isprintable() else "?" for c in name)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file, open; what a decoder raises on a damaged one, as a BadImage."""
    name = printable_name(path)
    try:
        kind = os.stat(path)
        if stat.S_ISDIR(kind.st_mode):
            raise BadImage(f"{name}: this is a folder; name a picture.")
        if not stat.S_ISREG(kind.st_mode):  # a pipe or device might never end
            raise BadImage(f"{name}: this is not a regular file; name a picture.")
        file = open(path, "rb")
    except FileNotFoundError as error:
        raise BadImage(f"{name}: there is no such file; check the path.") from error
    except OSError as error:
        raise BadImage(f"{name}: the file cannot be read ({error.strerror}).") from error
    except ValueError as error:  # a null character in the path
        raise BadImage(f"{name}: this is not a valid path; name a picture.") from error
    with file, _quiet(), _named_errors(name):
        if kind.st_size == 0:
            raise BadImage(f"{name}: the file is empty; choose another picture.")
        if kind.st_size > MAX_FILE_BYTES:
            raise BadImage(
                f"{name}: the file is larger than {MAX_FILE_BYTES // 10**6} MB; save it smaller, "
                "for example as JPEG."
            )
        yield file


def _open(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Reads the header only, except of WebP."""
    start = file.read(_LOOKED_AT)
    file.seek(0)
    for signature, decoder in _DECODERS.items():
        if start.startswith(signature) and (decoder is not WebPImageFile or start[8:12] == b"WEBP"):
            image = decoder(file)
            break
    else:
        raise BadImage(f"{name}: {_what_else(start)}; use {_FORMATS}.")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"{name}: {width} x {height} is {width * height / 10**6:,.0f} megapixels; "
            f"scale it down to at most {MAX_PIXELS // 10**6}."
        )
    return image


def _what_else(start: bytes) -> str:
    if b"<svg" in start.lower():
        return "this is an SVG drawing, which has no pixels"
    if start[4:8] == b"ftyp":
        return "this is a HEIC or AVIF picture or a video"
    return "this is not a picture in a known format"


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as EXIF says; as it is stored where that cannot be read.

    `ImageOps.exif_transpose` also writes the other tags anew, and fails on those that Pillow cannot
    write, however whole the pixels are.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DECODING_ERRORS:
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode in _UNSCALED:
        raise BadImage(
            f"{name}: its pixels are 32-bit numbers without a known white; save it as an 8- or "
            "16-bit PNG."
        )
    if image.mode not in _SIXTEEN_BIT:
        return image
    transparent = image.info.get("transparency")
    grey = np.array(image).astype(np.uint32)
    image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if isinstance(transparent, int):
        image.putalpha(Image.fromarray((grey != transparent).astype(np.uint8) * 255))
    return image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The same colours in sRGB.

    Raises:
        OSError, PyCMSError: not a profile, or not one for such pixels.
    """
    own = ImageCms.ImageCmsProfile(BytesIO(profile))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode in ("1", "L", "LA") and profile[_COLOUR_SPACE] == b"GRAY":
        opaque = image.convert("L")
    else:
        opaque = image if image.mode == "CMYK" else image.convert("RGB")
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(own, srgb, opaque.mode, "RGB")
    if opaque.mode == "RGB" and _changes_nothing(transform):
        return image
    converted = transform.apply(opaque)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether colours stay but for rounding: no two of the many profiles of sRGB are the same."""
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3)
    after = np.asarray(transform.apply(Image.fromarray(colours)))
    return int(np.abs(after.astype(int) - colours).max()) <= _ROUNDING


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    opaque = image.getchannel("A").getextrema() == (255, 255)
    return image.convert("RGB") if opaque else image


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Turns what a decoder raises on a damaged file into a BadImage."""
    try:
        yield
    except _DECODING_ERRORS as error:
        raise BadImage(
            f"{name}: the file is damaged or cut off; save or download it again."
        ) from error


class _Quiet:
    """Keeps Pillow's warnings about odd metadata away from the user; the result tells what matters.

    Python's warning filters belong to the process: the first of several threads sets them, and the
    last sets them back.
    """

    def __init__(self) -> None:
        self._lock, self._within, self._before = threading.Lock(), 0, warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._within == 0:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._within += 1
        try:
            yield
        finally:
            with self._lock:
                self._within -= 1
                if self._within == 0:
                    self._before.__exit__(None, None, None)


_quiet = _Quiet()
