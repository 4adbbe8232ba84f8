"""Training and evaluation pictures: folders and WebDataset tars, captions, held-out split."""

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from silo.decoding import SUFFIXES, decode_bytes
from silo.errors import BadImage, BadRequest
from silo.images import on_white

SPLITS = ("train", "held_out", "all")
HELD_OUT_ONE_IN = 40
# Bytes at either end of a picture that tell it from another: all of most compressed ones, and in
# the others what recolouring or another crop changes. To read 60,000 whole ones takes too long.
END = 1 << 16

# Crops of one picture carry one of these suffixes and must fall on the same side of the split.
_CROP_SUFFIX = re.compile(r"(_(face|whole|[qhf]\d+))?(_512)?$")


@dataclass(frozen=True)
class Photo:
    """One picture: `pixels` (H, W, 3) uint8, its name and its caption ("" where there is none)."""

    name: str
    caption: str
    pixels: np.ndarray

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of its pixels and their shape."""
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()


def is_held_out(name: str) -> bool:
    """Whether a picture is kept out of training: a fixed 1 in 40, by the hash of its name.

    All crops of one picture share its side of the split, in every folder that holds them.
    """
    group = _CROP_SUFFIX.sub("", name)
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class PhotoFile:
    """Where a picture lies, on its own or inside a tar.

    Attributes:
        name: the file's, without its suffix.
        caption: "" where there is none.
        path: the picture's file, or the tar's.
        offset: of its first byte in `path`.
        size: in bytes.
    """

    name: str
    caption: str
    path: Path
    offset: int
    size: int

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of its size and of what is at its ends, by which its content is known.

        Raises:
            BadImage: it cannot be read.
        """
        digest = hashlib.sha256(f"{self.size}\n".encode())
        digest.update(self.read(0, END))
        digest.update(self.read(max(END, self.size - END), END))
        return digest.hexdigest()

    def load(self, min_side: int = 0) -> Photo:
        """Decode it, upright and on white; enlarge it to `min_side` pixels on its short side.

        Raises:
            BadImage: it cannot be read as a picture (see `decode`).
        """
        where = f"{self.name!r} in {self.path}"
        image, _ = decode_bytes(self.read(0, self.size), where)
        pixels = np.asarray(_enlarged(on_white(image), min_side))
        return Photo(self.name, self.caption, pixels)

    def read(self, start: int, count: int) -> bytes:
        """At most `count` bytes of it, from `start` on."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + start)
                return file.read(max(0, min(count, self.size - start)))
        except OSError as error:
            raise BadImage(
                f"{self.name!r} in {self.path} cannot be read ({error.strerror}): remove it."
            ) from error


def list_photos(folders: list[Path], split: str) -> list[PhotoFile]:
    """The pictures of `folders` in a fixed order, none of them read.

    Args:
        folders: folders with pictures and/or `*.tar` WebDataset shards; `NAME.txt` beside
            `NAME.webp` is its caption, in UTF-8.
        split: "train", "held_out" or "all" (see `is_held_out`).

    Raises:
        BadRequest: a folder that does not exist, a damaged tar, or no picture of the split.
    """
    if split not in SPLITS:
        raise BadRequest(f"Unknown split '{split}'; choose one of {', '.join(SPLITS)}.")
    photos = []
    for folder in folders:
        if not folder.is_dir():
            raise BadRequest(f"There is no folder {folder}; name a folder of pictures or tars.")
        photos += [
            photo
            for photo in _photo_files(folder)
            if split == "all" or is_held_out(photo.name) == (split == "held_out")
        ]
    if not photos:
        raise BadRequest(
            f"No pictures of the split '{split}' in {', '.join(map(str, folders))}: add "
            f"{', '.join(SUFFIXES)} files or .tar shards, of which 1 in {HELD_OUT_ONE_IN}, chosen "
            "by name, is held out, or name the folders inside, which are not searched (evaluate "
            "and sample take every picture with --split all)."
        )
    return photos


def pictures_fingerprint(photos: Iterable[Photo | PhotoFile]) -> str:
    """SHA-256 of the names and the content of pictures, in their order."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(f"{photo.name} {photo.fingerprint}\n".encode())
    return digest.hexdigest()


def iterate_photos(folders: list[Path], split: str, min_side: int = 0) -> Iterator[Photo]:
    """Yield the pictures that `list_photos` lists, decoded one after the other.

    Args:
        folders: as in `list_photos`.
        split: as in `list_photos`.
        min_side: pictures whose short side is below this many pixels are enlarged to it.

    Raises:
        BadRequest: as `list_photos`.
    """
    for photo in list_photos(folders, split):
        yield photo.load(min_side)


def _photo_files(folder: Path) -> Iterator[PhotoFile]:
    for path in sorted(folder.iterdir()):
        if not path.is_file():  # folders may be called anything, and links may lead nowhere
            continue
        if path.suffix.lower() in SUFFIXES:
            text = path.with_suffix(".txt")
            caption = _caption(text.read_bytes()) if text.is_file() else ""
            yield PhotoFile(path.stem, caption, path, 0, path.stat().st_size)
        elif path.suffix == ".tar":
            yield from _tar_photo_files(path)


def _tar_photo_files(path: Path) -> Iterator[PhotoFile]:
    try:
        with tarfile.open(path, "r:") as tar:  # uncompressed: pictures are read at their offsets
            yield from _member_photo_files(path, tar)
    except tarfile.TarError as error:
        raise BadRequest(f"{path} is no whole, uncompressed tar: pack it again.") from error


def _member_photo_files(path: Path, tar: tarfile.TarFile) -> Iterator[PhotoFile]:
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        stem, _, suffix = member.name.rpartition(".")
        if member.isfile():
            members.setdefault(stem, {})["." + suffix.lower()] = member
    for stem, parts in members.items():
        text = tar.extractfile(parts[".txt"]) if ".txt" in parts else None
        caption = _caption(text.read()) if text else ""
        for suffix in SUFFIXES:
            if suffix in parts:
                member = parts[suffix]
                yield PhotoFile(stem, caption, path, member.offset_data, member.size)


def _caption(content: bytes) -> str:
    """The text of a caption's file; what is not UTF-8 in it becomes replacement characters."""
    return content.decode(errors="replace").strip()


def _enlarged(image: Image.Image, min_side: int) -> Image.Image:
    if min(image.size) >= min_side:
        return image
    scale = min_side / min(image.size)
    width, height = (max(min_side, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (..., H, W, 3) in 0..255 -> float (..., 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).movedim(-1, -3).float() / 127.5 - 1.0


def random_crop(photo: Photo, size: int, generator: torch.Generator) -> np.ndarray:
    """A random `size` x `size` crop at native scale, mirrored half of the time: (size, size, 3)."""
    height, width = photo.pixels.shape[:2]
    top = int(torch.randint(height - size + 1, (), generator=generator))
    left = int(torch.randint(width - size + 1, (), generator=generator))
    crop = photo.pixels[top : top + size, left : left + size]
    return crop[:, ::-1] if torch.rand((), generator=generator) < 0.5 else crop


def random_resized_crop(photo: Photo, size: int, generator: torch.Generator) -> Tensor:
    """A square of 75% to 100% of the short side, scaled to `size`, mirrored half of the time.

    Returns (3, size, size) in [-1, 1].
    """
    short = min(photo.pixels.shape[:2])
    side = round(short * (0.75 + 0.25 * float(torch.rand((), generator=generator))))
    crop = to_tensor(random_crop(photo, side, generator))
    if side == size:
        return crop
    return F.interpolate(crop[None], (size, size), mode="bicubic", antialias=True)[0].clamp(-1, 1)


def center_crop(photo: Photo, size: int) -> Tensor:
    """The central square scaled to `size`: (3, size, size) in [-1, 1]."""
    height, width = photo.pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(photo.pixels[top : top + side, left : left + side])
    return to_tensor(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))
