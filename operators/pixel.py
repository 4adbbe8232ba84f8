"""The pixel-space degradations by kind, and the noisy measurement y = A(x) + n."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from operators.blur import GaussianBlur, MotionBlur
from operators.denoising import Denoising
from operators.errors import OperatorError
from operators.inpainting import BoxInpainting, Destriping, FreeFormInpainting, RandomInpainting
from operators.jpeg import Jpeg
from operators.pixel_operator import PixelOperator
from operators.resize import SuperResolution

if TYPE_CHECKING:
    from operators.degradation import Degradation


KINDS: dict[str, type[PixelOperator]] = {
    "gaussian_blur": GaussianBlur,
    "super_resolution": SuperResolution,
    "inpainting_box": BoxInpainting,
    "inpainting_free": FreeFormInpainting,
    "inpainting_random": RandomInpainting,
    "motion_blur": MotionBlur,
    "jpeg": Jpeg,
    "denoising": Denoising,
    "destriping": Destriping,
}


def measure(
    x: Tensor,
    degradation: "Degradation",
    generator: torch.Generator | Sequence[torch.Generator],
    mask: Tensor | None = None,
) -> Tensor:
    """The measurement y = A(x) + 2 sigma n with n ~ N(0, 1), for images in [-1, 1].

    Args:
        x: clean images (B, 3, H, W) in [-1, 1].
        degradation: A and `noise_sigma` in [0, 1] units, whence the factor 2.
        generator: CPU generator; or one for each image, which makes what is drawn for an image
            independent of its place in the batch. A single one serves the images in turn.
        mask: as in `PixelOperator.forward`; noise is added to the hole, too.

    Returns:
        (B, 3, H / downscale, W / downscale), not clipped.

    Raises:
        OperatorError: as in `PixelOperator.forward`, or the wrong number of generators.
    """
    operator = degradation.operator()
    generators = [generator] * len(x) if isinstance(generator, torch.Generator) else generator
    if len(generators) != len(x):
        raise OperatorError(
            f"Pass one generator for each of the {len(x)} images, not {len(generators)}."
        )
    if operator.random:
        pairs = zip(x, generators, strict=True)
        y = torch.cat([operator.forward(image[None], None, each) for image, each in pairs])
    else:
        y = operator.forward(x, mask)
    # Drawn on the CPU in one type and image by image: one seed, one picture, on every device.
    noise = torch.stack([torch.randn(y.shape[1:], generator=each) for each in generators])
    return y + 2 * degradation.noise_sigma * noise.to(y)
