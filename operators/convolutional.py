"""Convolutional latent operators, which read the latent alone: the paper's and a compact one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from operators.errors import OperatorError
from operators.latent import LatentOperator, check_flag, check_groups, check_integer

# The noise level (in [0, 1] units) that CompactCNN's noise map shows as 1: the top of the range of
# training, sigma ~ U(0, 0.1) in [-1, 1] units.
REFERENCE_NOISE_SIGMA = 0.05
DILATIONS = (1, 2, 4, 1)


class CompactCNN(LatentOperator):
    """A residual convolutional operator for latents of any size, starting as the identity.

    The input is z, a constant map of noise_sigma / 0.05 and, with `mask`, the pixel mask with each
    scale x scale block laid out as scale^2 channels. A 3x3 convolution, `blocks` residual blocks
    (GroupNorm, SiLU, 3x3, GroupNorm, SiLU, 3x3) with dilations 1, 2, 4, 1, ... and a 3x3
    convolution, zero at first, give a correction that is added to z. What lies wholly in a hole is
    left out of z: the measurement does not depend on it, so guidance must not pull at it. With the
    defaults 301,700 parameters (338,564 with a mask), and convolutions that span 37 x 37 latent
    pixels.
    """

    architecture: ClassVar[str] = "compact_cnn"
    needs_features: ClassVar[bool] = False
    needs_sigma_embedding: ClassVar[bool] = False

    def __init__(
        self,
        latent_channels: int = 4,
        width: int = 64,
        blocks: int = 4,
        mask: bool = False,
        scale: int = 8,
        groups: int = 32,
    ) -> None:
        """Build the network.

        Args:
            latent_channels: channels of the latents.
            width: channels of the hidden layers; a multiple of `groups`.
            blocks: number of residual blocks.
            mask: whether the network reads a mask.
            scale: pixels a latent pixel spans on a side (the autoencoder's factor), for the mask.
            groups: groups of the group normalisation.

        Raises:
            OperatorError: an argument is out of range.
        """
        super().__init__(
            {
                "latent_channels": check_integer("latent_channels", latent_channels, 1, 256),
                "width": check_integer("width", width, 1, 1024),
                "blocks": check_integer("blocks", blocks, 1, 64),
                "mask": check_flag("mask", mask),
                "scale": check_integer("scale", scale, 1, 64),
                "groups": check_groups(groups, [width]),
            }
        )
        self.scale = scale
        inputs = latent_channels + 1 + (scale**2 if mask else 0)
        self.input = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            _ResidualBlock(width, DILATIONS[index % len(DILATIONS)], groups)
            for index in range(blocks)
        )
        self.output = nn.Conv2d(width, latent_channels, 3, padding=1)
        nn.init.zeros_(self.output.weight)
        if self.output.bias is not None:
            nn.init.zeros_(self.output.bias)

    def forward(
        self,
        z: Tensor,
        noise_sigma: Tensor,
        *,
        mask: Tensor | None = None,
        features: Sequence[Tensor] | None = None,
        time_embedding: Tensor | None = None,
        sigma_embedding: Tensor | None = None,
    ) -> Tensor:
        """Return H_theta(z) from z, `noise_sigma` and the mask; see `LatentOperator.forward`."""
        self._check_inputs(z, noise_sigma, mask)
        batch, _, height, width = z.shape
        level = (noise_sigma.to(z) / REFERENCE_NOISE_SIGMA).view(batch, 1, 1, 1)
        maps = [level.expand(batch, 1, height, width)]
        if self.uses_mask and mask is not None:
            if mask.shape[2] != height * self.scale:
                raise OperatorError(
                    f"the mask must be {self.scale} times the latent's size {height} x {width}, "
                    f"not {mask.shape[2]} x {mask.shape[3]}"
                )
            pixels = pixel_unshuffle(mask.to(z), self.scale).expand(batch, -1, -1, -1)
            z = z * pixels.amax(dim=1, keepdim=True)  # 0 where no pixel is known
            maps.append(pixels)
        hidden = self.input(torch.cat([z, *maps], dim=1))
        for block in self.blocks:
            hidden = block(hidden)
        return z + self.output(hidden)


class _ResidualBlock(nn.Module):
    """Two dilated 3x3 convolutions, each after GroupNorm and SiLU, around a shortcut."""

    def __init__(self, width: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers(hidden)


class PaperCNN(LatentOperator):
    """The paper's convolutional operator: 3,548,566 parameters for latents of 4 x 64 x 64.

    A small network maps the embedding of the noise level to one map, which joins z. An encoder (3x3
    convolutions to 17, 33, 65, 128 channels) and a decoder (transposed ones to 64, 32, 16), each
    layer with LayerNorm and ReLU, a 1x1 skip from [encoding, map] to the decoder's output, and two
    last convolutions. The affine weights of LayerNorm lie on the latent's pixels, so that it works
    at `latent_size` only. The state dict is named as in the authors' files.
    """

    architecture: ClassVar[str] = "paper_cnn"
    needs_features: ClassVar[bool] = False
    needs_sigma_embedding: ClassVar[bool] = True

    def __init__(
        self, latent_channels: int = 4, latent_size: int = 64, embedding_dim: int = 1280
    ) -> None:
        """Build the network.

        Args:
            latent_channels: channels of the latents.
            latent_size: height and width of the latents, in latent pixels.
            embedding_dim: width E of the denoiser's time embedding.

        Raises:
            OperatorError: an argument is out of range.
        """
        super().__init__(
            {
                "latent_channels": check_integer("latent_channels", latent_channels, 1, 256),
                "latent_size": check_integer("latent_size", latent_size, 1, 256),
                "embedding_dim": check_integer("embedding_dim", embedding_dim, 1, 16384),
            }
        )
        self.latent_size = latent_size
        self.embedding_dim = embedding_dim

        def normalised(convolution: nn.Module, channels: int) -> list[nn.Module]:
            return [convolution, nn.LayerNorm([channels, latent_size, latent_size]), nn.ReLU()]

        self.sigma_condition_precondition = nn.Sequential(
            nn.Linear(embedding_dim, 32), nn.LeakyReLU(), nn.Linear(32, latent_size**2)
        )
        encoder: list[nn.Module] = []
        down = (latent_channels + 1, 17, 33, 65, 128)
        for inputs, outputs in zip(down[:-1], down[1:], strict=True):
            encoder += normalised(nn.Conv2d(inputs, outputs, 3, padding=1), outputs)
        self.encoder = nn.Sequential(*encoder)
        decoder: list[nn.Module] = []
        up = (128, 64, 32, 16)
        for inputs, outputs in zip(up[:-1], up[1:], strict=True):
            decoder += normalised(nn.ConvTranspose2d(inputs, outputs, 3, padding=1), outputs)
        self.decoder = nn.Sequential(*decoder)
        self.adjust_encoding = nn.Sequential(*normalised(nn.Conv2d(129, 16, 1), 16))
        self.processing = nn.Sequential(
            *normalised(nn.Conv2d(16, 16, 3, padding=1), 16),
            nn.Conv2d(16, latent_channels, 3, padding=1),
        )

    def forward(
        self,
        z: Tensor,
        noise_sigma: Tensor,
        *,
        mask: Tensor | None = None,
        features: Sequence[Tensor] | None = None,
        time_embedding: Tensor | None = None,
        sigma_embedding: Tensor | None = None,
    ) -> Tensor:
        """Return H_theta(z) from z and `sigma_embedding`; see `LatentOperator.forward`."""
        self._check_inputs(z, noise_sigma, mask)
        size = self.latent_size
        if z.shape[2:] != (size, size):
            raise OperatorError(
                f"this operator works on latents of {size} x {size} only, not {z.shape[2]} x "
                f"{z.shape[3]}: use a compact_cnn or readout operator for other sizes"
            )
        embedding = self._check_embedding("sigma_embedding", sigma_embedding, z, self.embedding_dim)
        sigma_map = self.sigma_condition_precondition(embedding).view(-1, 1, size, size)
        encoding = self.encoder(torch.cat([z, sigma_map], dim=1))
        skip = self.adjust_encoding(torch.cat([encoding, sigma_map], dim=1))
        return self.processing(self.decoder(encoding) + skip)
