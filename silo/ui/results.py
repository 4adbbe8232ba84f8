"""What remains of a restoration: PNG files with the parameters inside, and where samples differ."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from silo import images
from silo.restorer import Result

# Dark to bright, the lightness growing evenly: readable in grey and without seeing red or green.
_RAMP = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)]) / 255


def new_folder(cache: Path) -> Path:
    """Make a folder in gradio's cache, which deletes the files of components in time."""
    cache.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=cache))


def save_all(
    before: Tensor, restored: Iterable[Tensor], parameters: Mapping[str, Any], cache: Path
) -> list[str]:
    """Write the measurement, then every sample, as PNG files with the parameters inside.

    Args:
        before: (1, 3, H, W), the measurement as large as the restoration.
        restored: the samples, each (3, H, W) or (1, 3, H, W).
        parameters: those of `Restorer.parameters`; each sample's file says which it is.
        cache: where the files go.
    """
    folder = new_folder(cache)
    path = folder / f"{parameters['task']}-before.png"
    images.save_png(path, before, parameters)
    return [str(path), *save_samples(restored, parameters, folder)]


def save_samples(
    restored: Iterable[Tensor], parameters: Mapping[str, Any], folder: Path
) -> list[str]:
    """Write every sample into a folder; see `save_all`."""
    paths = []
    for index, image in enumerate(restored):
        paths.append(folder / f"{parameters['task']}-seed-{parameters['seed'] + index}.png")
        images.save_png(paths[-1], image, {**parameters, "sample": index})
    return [str(path) for path in paths]


def save_result(result: Result, cache: Path) -> tuple[list[str], tuple[str, float] | None]:
    """Write what a finished restoration gave.

    Returns:
        The files of `save_all`; and what `save_uncertainty` does, None of a single sample.
    """
    deviation = Deviation()  # made of each sample as it is written: to make it may take seconds
    samples = deviation.of(result.image_by_image())
    files = save_all(result.measurement, samples, result.parameters, cache)
    several = len(result.restored) > 1
    return files, save_uncertainty(deviation.value, cache) if several else None


class Deviation:
    """The standard deviation over samples, without all of them in memory (Welford, 1962)."""

    def __init__(self) -> None:
        """Begin with none."""
        self._mean = self._squares = torch.zeros(())

    def of(self, samples: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the samples, each (1, 3, H, W) in [-1, 1], as they are."""
        for count, sample in enumerate(samples, 1):
            off = sample / 2 - self._mean
            self._mean = self._mean + off / count
            self._squares = (
                self._squares + (off * (sample / 2 - self._mean) - self._squares) / count
            )
            yield sample

    @property
    def value(self) -> Tensor:
        """That of pictures in [0, 1] at each pixel, (1, 1, H, W), over the colours, too."""
        return self._squares.mean(1, keepdim=True).sqrt()


def save_uncertainty(deviation: Tensor, cache: Path) -> tuple[str, float]:
    """Write a map of where samples differ; bright is where they differ most.

    Args:
        deviation: (1, 1, H, W), their standard deviation.
        cache: where the file goes.

    Returns:
        The file, and the standard deviation that is brightest.
    """
    spread = deviation[0, 0]
    largest = float(spread.max())
    position = (spread / max(largest, 1e-12)).numpy()
    stops = np.linspace(0, 1, len(_RAMP))
    ramp = 2 * _RAMP.T - 1
    colours = [torch.from_numpy(np.interp(position, stops, channel)).float() for channel in ramp]
    path = new_folder(cache) / "uncertainty.png"
    images.save_png(path, torch.stack(colours))
    return str(path), largest
