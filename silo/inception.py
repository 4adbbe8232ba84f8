"""The Inception network of FID and KID, from a TorchScript file, with the preprocessing it needs.

Heusel et al. (arXiv 1706.08500) take the features of TensorFlow's Inception of 2015-12-05. The
weights are not part of this repository: see `find_inception`.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from silo.errors import BadRequest
from silo.fingerprint import files_fingerprint
from silo.metric_weights import find_metric_weights

# Distances are comparable only between features of one network; and a TorchScript file is code.
SHA256 = "2bb2e45b7c03cdfa0fa3b754c7315be5a7da79075db4ced79c9632729794f3b8"
_SIDE = 299


def find_inception(folder: Path | None = None) -> Path | None:
    """The network's file in `folder` or in $SILO_METRIC_WEIGHTS; None where there is none.

    Raises:
        BadRequest: there is a file of that name, but it is another one; or as for LPIPS.
    """
    path = find_metric_weights("inception", folder)
    if path is not None and files_fingerprint([path]) != SHA256:
        raise BadRequest(f"{path} is not the network that FID is measured with; remove it.")
    return path


class Inception:
    """Features (B, 2048) of pictures."""

    def __init__(self, path: Path) -> None:
        """Load the network from a file that `find_inception` found."""
        with warnings.catch_warnings():  # torch.jit is deprecated, but it is this file's format
            warnings.simplefilter("ignore", DeprecationWarning)
            self._network = torch.jit.load(path, map_location="cpu").float().eval()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features (B, 2048), float32, of images (B, 3, H, W) in [-1, 1], rounded to 8 bits."""
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255)
        return self._network(resize(pixels) / 128 - 1)


def resize(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, 299, 299), bilinear as in TensorFlow 1: not antialiased, corner first.

    Pixel i of the result lies at i * H / 299 of the source, without the half-pixel offset of later
    resizers.
    """
    height, width = pixels.shape[-2:]
    rows, columns = (torch.arange(_SIDE) * side / _SIDE for side in (height, width))
    grid = torch.stack(torch.meshgrid(2 * columns + 1, 2 * rows + 1, indexing="xy"), dim=-1)
    grid = grid / torch.tensor([width, height]) - 1
    return F.grid_sample(
        pixels,
        grid.to(pixels).expand(len(pixels), -1, -1, -1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
