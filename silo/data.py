"""Training and evaluation pictures: folders and WebDataset tars, captions, held-out split."""

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from silo.decoding import SUFFIXES
from silo.errors import BadRequest

SPLITS = ("train", "held_out", "all")
HELD_OUT_ONE_IN = 40

# Crops of one picture carry one of these suffixes and must fall on the same side of the split.
_CROP_SUFFIX = re.compile(r"(_(face|whole|[qhf]\d+))?(_512)?$")


@dataclass(frozen=True)
class Photo:
    """One picture: `pixels` (H, W, 3) uint8, its name and its caption ("" where there is none)."""

    name: str
    caption: str
    pixels: np.ndarray


def is_held_out(name: str) -> bool:
    """Whether a picture is kept out of training: a fixed 1 in 40, by the hash of its name.

    All crops of one picture share its side of the split, in every folder that holds them.
    """
    group = _CROP_SUFFIX.sub("", name)
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def iterate_photos(folders: list[Path], split: str, min_side: int = 0) -> Iterator[Photo]:
    """Yield the pictures of `folders` in a fixed order.

    Args:
        folders: folders with pictures and/or `*.tar` WebDataset shards; `NAME.txt` beside
            `NAME.webp` is its caption.
        split: "train", "held_out" or "all" (see `is_held_out`).
        min_side: pictures whose short side is below this many pixels are enlarged to it.

    Raises:
        BadRequest: a folder that does not exist, or no picture anywhere.
    """
    if split not in SPLITS:
        raise BadRequest(f"Unknown split '{split}'; choose one of {', '.join(SPLITS)}.")
    found = False
    for folder in folders:
        if not folder.is_dir():
            raise BadRequest(f"There is no folder {folder}; name a folder of pictures or tars.")
        for name, caption, read in _samples(folder):
            if split != "all" and is_held_out(name) != (split == "held_out"):
                continue
            found = True
            yield Photo(name, caption, _decode(read, min_side))
    if not found:
        raise BadRequest(
            f"No pictures of the split '{split}' in {', '.join(map(str, folders))}; "
            f"expected {', '.join(SUFFIXES)} files or .tar shards."
        )


def _samples(folder: Path) -> Iterator[tuple[str, str, io.BytesIO]]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            text = path.with_suffix(".txt")
            caption = text.read_text().strip() if text.is_file() else ""
            yield path.stem, caption, io.BytesIO(path.read_bytes())
        elif path.suffix == ".tar":
            yield from _tar_samples(path)


def _tar_samples(path: Path) -> Iterator[tuple[str, str, io.BytesIO]]:
    with tarfile.open(path) as tar:
        contents: dict[str, dict[str, bytes]] = {}
        for member in tar:
            if not member.isfile():
                continue
            stem, _, suffix = member.name.rpartition(".")
            handle = tar.extractfile(member)
            if handle is not None:
                contents.setdefault(stem, {})["." + suffix.lower()] = handle.read()
    for stem, parts in contents.items():
        caption = parts.get(".txt", b"").decode().strip()
        for suffix in SUFFIXES:
            if suffix in parts:
                yield stem, caption, io.BytesIO(parts[suffix])


def _decode(data: io.BytesIO, min_side: int) -> np.ndarray:
    image = Image.open(data).convert("RGB")
    if min(image.size) < min_side:
        scale = min_side / min(image.size)
        width, height = (max(min_side, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


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
