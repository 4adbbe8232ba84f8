"""What the residual blocks of a denoiser's decoder add: the features for readout operators."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn


def decoder_resnets(unet: UNet2DConditionModel) -> list[nn.Module]:
    """The residual blocks of the denoiser's decoder, coarse to fine; 12 in SD 1.x."""
    blocks: Any = unet.up_blocks
    return [resnet for block in blocks for resnet in block.resnets]


def feature_channels(unet: UNet2DConditionModel) -> list[int]:
    """Channels of each decoder feature: 1280 x 6, 640 x 3, 320 x 3 in SD 1.x."""
    blocks: list[Any] = decoder_resnets(unet)
    return [len(resnet.conv2.weight) for resnet in blocks]  # LoRAs wrap layers, not weights


@contextmanager
def captured_features(unet: UNet2DConditionModel, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects what the decoder's residual blocks add to their shortcuts: the output of conv2."""
    features: list[Tensor] = []
    resnets: list[Any] = decoder_resnets(unet) if wanted else []
    handles = [
        resnet.conv2.register_forward_hook(lambda module, args, output: features.append(output))
        for resnet in resnets
    ]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
