"""How a picture goes on beyond its rim: mirrored."""

import torch
from torch import Tensor


def mirror_index(size: int, radius: int) -> Tensor:
    """Index of the source pixel of each padded pixel, (size + 2 radius,).

    The edge pixel is not repeated (c b | a b c | b a), and the reflection repeats as often as a
    radius beyond the picture needs, so pictures smaller than the kernel are well defined.
    """
    period = max(2 * (size - 1), 1)
    offset = torch.arange(-radius, size + radius) % period
    return torch.minimum(offset, period - offset) if size > 1 else torch.zeros_like(offset)
