"""The readout operator, which reads the denoiser's features (Readout Guidance, CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, group_norm, interpolate, relu

from operators.errors import OperatorError
from operators.latent import LatentOperator, check_flag, check_groups, check_integer

SD15_FEATURE_CHANNELS = (1280,) * 6 + (640,) * 3 + (320,) * 3


class ReadoutOperator(LatentOperator):
    """The paper's default operator: 13,746,864 parameters for SD 1.5, 13,748,016 with a mask.

    A linear layer and a LayerNorm turn the embedding of the noise level into one map. Each layer's
    features, resized to the latent and joined by the map, go through a bottleneck block of its own;
    the blocks' outputs are mixed with softmax weights, joined by the map (and the mask), and three
    convolutions make the latent of them. There is no residual: z gives only the size, since the
    features already depend on it. The state dict is named as in the authors' files.
    """

    architecture: ClassVar[str] = "readout"
    residual: ClassVar[bool] = False
    needs_features: ClassVar[bool] = True
    needs_sigma_embedding: ClassVar[bool] = True

    def __init__(
        self,
        feature_channels: Sequence[int] = SD15_FEATURE_CHANNELS,
        latent_channels: int = 4,
        embedding_dim: int = 1280,
        sigma_map_size: int = 64,
        mid_channels: int = 96,
        out_channels: int = 384,
        mask: bool = False,
        groups: int = 32,
    ) -> None:
        """Build the network.

        Args:
            feature_channels: channels of each of the denoiser's features, in its order.
            latent_channels: channels of the latents.
            embedding_dim: width E of the denoiser's time embedding.
            sigma_map_size: height and width of the noise map; it is resized to other latents.
            mid_channels: inner width of a bottleneck; a multiple of `groups`.
            out_channels: outer width of a bottleneck; a multiple of `groups`.
            mask: whether the network reads a mask.
            groups: groups of the group normalisation.

        Raises:
            OperatorError: an argument is out of range.
        """
        if not isinstance(feature_channels, list | tuple) or not 1 <= len(feature_channels) <= 64:
            raise OperatorError("feature_channels must be a list of 1 to 64 integers")
        super().__init__(
            {
                "feature_channels": [
                    check_integer("feature_channels", channels, 1, 16384)
                    for channels in feature_channels
                ],
                "latent_channels": check_integer("latent_channels", latent_channels, 1, 256),
                "embedding_dim": check_integer("embedding_dim", embedding_dim, 1, 16384),
                "sigma_map_size": check_integer("sigma_map_size", sigma_map_size, 1, 256),
                "mid_channels": check_integer("mid_channels", mid_channels, 1, 4096),
                "out_channels": check_integer("out_channels", out_channels, 1, 4096),
                "mask": check_flag("mask", mask),
                "groups": check_groups(groups, [mid_channels, out_channels]),
            }
        )
        self.feature_channels = tuple(feature_channels)
        self.embedding_dim = embedding_dim
        self.sigma_map_size = sigma_map_size
        self.mixing_weights = nn.Parameter(torch.ones(len(feature_channels)))
        self.bottleneck_layers = nn.ModuleList(
            _Bottleneck(channels + 1, mid_channels, out_channels, embedding_dim, groups)
            for channels in feature_channels
        )
        self.sigma_emb_linear = nn.Linear(embedding_dim, sigma_map_size**2)
        self.sigma_emb_norm = nn.LayerNorm([1, sigma_map_size, sigma_map_size])
        head_channels = out_channels + 1 + int(mask) + (latent_channels if self.residual else 0)
        self.output_head = nn.Sequential(
            nn.Conv2d(head_channels, 128, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(128, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, latent_channels, 1),
        )
        if self.residual:  # and so begins as the identity
            for parameter in self.output_head[-1].parameters():
                nn.init.zeros_(parameter)

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
        """Return H_theta from the features and `sigma_embedding`; see `LatentOperator.forward`.

        Without `time_embedding` the blocks add none, as the authors' sampler does.
        """
        self._check_inputs(z, noise_sigma, mask)
        features = self._check_features(features, z)
        embedding = self._check_embedding("sigma_embedding", sigma_embedding, z, self.embedding_dim)
        if time_embedding is not None:
            time_embedding = self._check_embedding(
                "time_embedding", time_embedding, z, self.embedding_dim
            )
        size, side = (z.shape[2], z.shape[3]), self.sigma_map_size
        sigma_map = self.sigma_emb_norm(self.sigma_emb_linear(embedding).view(-1, 1, side, side))
        sigma_map = _resize(sigma_map, size)
        # The mixture is summed layer by layer: a stack of all layers' outputs would be the largest
        # tensor of a whole restoration.
        weights = torch.softmax(self.mixing_weights, dim=0)
        layers = zip(weights, self.bottleneck_layers, features, strict=True)
        resized = ((w, block, _resize(feature.to(z.dtype), size)) for w, block, feature in layers)
        mixture = reduce(
            torch.add,
            (
                block(torch.cat([feature, sigma_map], dim=1), time_embedding, weight)
                for weight, block, feature in resized
            ),
        )
        head_inputs = [mixture, sigma_map]
        if self.uses_mask and mask is not None:
            # Averaged, so that a latent pixel shows which part of it is known.
            known = adaptive_avg_pool2d(mask.to(z), size)
            head_inputs.append(known.expand(z.shape[0], -1, -1, -1))
        if self.residual:
            head_inputs.append(z)
        read = self.output_head(torch.cat(head_inputs, dim=1))
        return z + read if self.residual else read

    def _check_features(self, features: Sequence[Tensor] | None, z: Tensor) -> Sequence[Tensor]:
        """Return `features`; raise OperatorError unless they fit the network."""
        if features is None:
            raise OperatorError("this operator reads the denoiser's features: pass features=[...]")
        wanted = [(z.shape[0], channels) for channels in self.feature_channels]
        given = [tuple(feature.shape[:2]) for feature in features if feature.ndim == 4]
        if given != wanted or len(given) != len(features):
            raise OperatorError(
                f"this operator reads {len(wanted)} features of (batch, channels) {wanted}, not "
                f"{given}: choose the prior it was trained on, named in its config.json"
            )
        return features


class ResidualReadoutOperator(ReadoutOperator):
    """A readout operator of what the damage changes in z, which its head reads and it adds.

    The paper's has no such path, and learns slowly what the features only hint at: z itself.
    """

    architecture: ClassVar[str] = "residual_readout"
    residual: ClassVar[bool] = True


class _Bottleneck(nn.Module):
    """A bottleneck residual block (1x1, 3x3, 1x1) that an embedding of the timestep may steer."""

    def __init__(
        self, inputs: int, mid: int, outputs: int, embedding_dim: int, groups: int
    ) -> None:
        super().__init__()
        self.shortcut = _NormalisedConv2d(inputs, outputs, 1, groups)
        self.conv1 = _NormalisedConv2d(inputs, mid, 1, groups)
        self.conv2 = _NormalisedConv2d(mid, mid, 3, groups)
        self.conv3 = _NormalisedConv2d(mid, outputs, 1, groups)
        self.emb_layers = nn.Linear(embedding_dim, mid)

    def forward(self, inputs: Tensor, time_embedding: Tensor | None, weight: Tensor) -> Tensor:
        """Return the block's output times `weight`, a positive number.

        It goes into the last normalisations: relu(weight x) = weight relu(x), and the outputs are
        the largest tensors here.
        """
        hidden = relu(self.conv1(inputs))
        if time_embedding is not None:
            hidden = hidden + relu(self.emb_layers(time_embedding))[:, :, None, None]
        hidden = relu(self.conv2(hidden))
        return relu(self.conv3(hidden, weight) + self.shortcut(inputs, weight))


class _NormalisedConv2d(nn.Conv2d):
    """A He-initialised convolution without bias, and a GroupNorm under the name `norm`."""

    def __init__(self, inputs: int, outputs: int, size: int, groups: int) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.GroupNorm(groups, outputs)

    def forward(self, input: Tensor, weight: Tensor | float = 1.0) -> Tensor:
        """Return the normalised convolution times `weight`."""
        norm, convolved = self.norm, super().forward(input)
        scale, shift = weight * norm.weight, weight * norm.bias
        return group_norm(convolved, norm.num_groups, scale, shift, norm.eps)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, C, h, w) bilinearly to `size`; the tensor itself where it has that size."""
    if images.shape[2:] == size:
        return images
    return interpolate(images, size=size, mode="bilinear", align_corners=False)
