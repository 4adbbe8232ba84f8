"""The crops that operators are trained on: which pictures, how cut and how varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from skimage.color import hsv2rgb, rgb2hsv
from torch import Tensor

from operators.blur import GaussianBlur
from silo.data import PhotoFile, pictures_fingerprint, random_resized_crop

BLUR_STD = (0.5, 6.0)  # px


@dataclass(frozen=True)
class Augmentation:
    """How crops vary beyond a square of 75% to 100% of the short side, mirrored half of the time.

    All of it happens to the clean picture, before A: a pair (x, A(x)) stays true whatever was done
    to x, also where A and a flip do not commute.

    Attributes:
        blurred_rate: share of blurred pictures. At high noise levels the clean estimate is a
            blurred picture, so an operator that reads it must know such pictures.
        upside_down: whether half of the crops are flipped vertically, too.
        brightness: the largest relative change of brightness.
        hue: the largest turn of the colour circle, 1 being all of it.
    """

    blurred_rate: float = 0.0
    upside_down: bool = False
    brightness: float = 0.0
    hue: float = 0.0

    def __call__(self, crop: Tensor, generator: torch.Generator) -> Tensor:
        """Vary one crop (3, H, W) in [-1, 1]."""

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        if uniform(0, 1) < self.blurred_rate:
            std = uniform(*BLUR_STD)
            crop = GaussianBlur(kernel_size=2 * round(3 * std) + 1, std=std).forward(crop[None])[0]
        if self.upside_down and uniform(0, 1) < 0.5:
            crop = crop.flip(-2)
        if self.brightness or self.hue:
            factor = uniform(1 - self.brightness, 1 + self.brightness)
            rgb = ((crop + 1) / 2 * factor).clamp(0, 1)
            hsv = rgb2hsv(rgb.numpy(), channel_axis=0)
            hsv[0] = (hsv[0] + uniform(-self.hue, self.hue)) % 1
            crop = torch.from_numpy(hsv2rgb(hsv, channel_axis=0)).float() * 2 - 1
        return crop


# What the authors' code does, besides the crop.
PAPER_AUGMENTATION = Augmentation(upside_down=True, brightness=0.05, hue=0.005)


@dataclass(frozen=True)
class TrainingPictures:
    """`count` square crops, spread evenly over the pictures; each is decided by its index.

    Attributes:
        files: the pictures.
        count: how many crops.
        resolution: their side, in pixels.
        augmentation: how they vary.
        seed: of the crops and of what is drawn for them.
    """

    files: tuple[PhotoFile, ...]
    count: int
    resolution: int
    augmentation: Augmentation
    seed: int

    def __len__(self) -> int:
        """How many crops there are."""
        return self.count

    def crop(self, index: int) -> Tensor:
        """Crop number `index`, (3, resolution, resolution) in [-1, 1]."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        photo = self.files[index * len(self.files) // self.count].load(self.resolution)
        return self.augmentation(random_resized_crop(photo, self.resolution, generator), generator)

    def describe(self) -> dict[str, Any]:
        """All that decides the crops, JSON-able; pictures by name and content."""
        return {
            "pictures": pictures_fingerprint(self.files),
            "count": self.count,
            "resolution": self.resolution,
            "augmentation": asdict(self.augmentation),
            "seed": self.seed,
        }


def spread(files: Sequence[PhotoFile], count: int) -> list[PhotoFile]:
    """At most `count` of `files`, evenly spaced, so that every folder has its share."""
    count = min(count, len(files))
    return [files[index * len(files) // count] for index in range(count)]
