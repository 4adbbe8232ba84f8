"""The network that marks scratches: a small U-Net on pixels, without normalization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (24, 48, 64, 96)  # channels at a half, a quarter, ... of the picture's side
MULTIPLE = 2 ** len(WIDTHS)  # of which both sides of its pictures have to be


class ScratchNet(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> log-odds (B, 1, H, W) of each pixel being a mark.

    It works at half the side, four pixels a place, which takes a quarter of the time. Nothing in it
    depends on the whole picture, so that a part of a photo is judged as it is in the photo.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        """Build it with random weights."""
        super().__init__()
        inputs = (12, *widths[:-1])
        self.down = nn.ModuleList(
            _Block(before, width) for before, width in zip(inputs, widths, strict=True)
        )
        finer, coarser = widths[:-1], widths[1:]
        self.up = nn.ModuleList(
            _Block(fine + coarse, fine) for fine, coarse in zip(finer, coarser, strict=True)
        )
        self.head = nn.Conv2d(widths[0], 4, 1)

    def inner_convolutions(self) -> list[Tensor]:
        """All but the first and the last: those that Muon trains (see `silo.training.muon`)."""
        _, *others = (each for each in self.modules() if isinstance(each, nn.Conv2d))
        return [each.weight for each in others if each is not self.head]

    def forward(self, pictures: Tensor) -> Tensor:
        """Judge pictures whose sides are multiples of `MULTIPLE`."""
        x = F.pixel_unshuffle(pictures, 2)
        skipped = []
        for block in self.down:
            if skipped:
                x = F.max_pool2d(x, 2)
            x = block(x)
            skipped.append(x)
        x = skipped.pop()
        for block in reversed(self.up):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([skipped.pop(), x], dim=1))
        return F.pixel_shuffle(self.head(x), 2)


class _Block(nn.Sequential):
    """Two convolutions of 3 x 3."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(),
        )
