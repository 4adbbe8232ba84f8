from pathlib import Path

import pytest
import torch
from PIL import Image

from silo.data import list_photos
from silo.training.pictures import PAPER_AUGMENTATION, Augmentation, TrainingPictures


def _pictures(folder: Path, augmentation: Augmentation, count: int = 40) -> torch.Tensor:
    files = tuple(list_photos([folder], "all"))
    pictures = TrainingPictures(files, count, 48, augmentation, seed=0)
    return torch.stack([pictures.crop(index) for index in range(len(pictures))])


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """One picture of much detail, dark at its foot."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(100, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
    pixels[32:] //= 3
    Image.fromarray(pixels.numpy()).save(tmp_path / "p.png")
    return tmp_path


def test_crops_repeat_and_differ_and_some_are_blurred(noisy: Path) -> None:
    crops = _pictures(noisy, Augmentation(blurred_rate=0.5))
    assert crops.shape == (40, 3, 48, 48) and crops.abs().max() <= 1
    assert torch.equal(crops, _pictures(noisy, Augmentation(blurred_rate=0.5)))
    assert len({crop.numpy().tobytes() for crop in crops}) == 40
    detail = crops.diff(dim=-1).abs().mean((1, 2, 3))
    assert 0.2 < (detail < 0.5 * detail.max()).float().mean() < 0.8


def test_the_papers_crops_are_flipped_both_ways_and_vary_a_little_in_colour(noisy: Path) -> None:
    plain, varied = _pictures(noisy, Augmentation()), _pictures(noisy, PAPER_AUGMENTATION)

    def darker_below(crops: torch.Tensor) -> float:
        below, above = crops[:, :, 30:].mean((1, 2, 3)), crops[:, :, :18].mean((1, 2, 3))
        return float((below < above).float().mean())

    assert darker_below(plain) == 1 and 0.2 < darker_below(varied) < 0.8
    # Crop by crop: up to 5% of brightness, and 0.005 of the colour circle.
    upright = torch.where(
        (varied - plain).abs().mean((1, 2, 3), keepdim=True) < 0.2, varied, varied.flip(-2)
    )
    difference = (upright - plain).abs()
    assert 0.005 < difference.mean() < 0.05
    assert difference.max() < 0.15
