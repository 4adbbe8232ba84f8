"""LPIPS v0.1 (AlexNet, VGG16) from a safetensors file, differentiable, in torch alone.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(arXiv 1801.03924). The weights are not part of this repository: see `find_weights`.
"""

from pathlib import Path
from typing import cast

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from silo.metric_weights import find_metric_weights

# Stages of convolutions as (torchvision's index in `features`, stride, padding); the distance
# compares the output of each stage. A stage of `_POOLED` starts with a max-pooling of that kernel.
_ALEX = [[(0, 4, 2)], [(3, 1, 2)], [(6, 1, 1)], [(8, 1, 1)], [(10, 1, 1)]]
_VGG = [[(i, 1, 1) for i in s] for s in ([0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28])]
_STAGES = {"alex": _ALEX, "vgg": _VGG}
_POOLED = {"alex": {1: 3, 2: 3}, "vgg": {1: 2, 2: 2, 3: 2, 4: 2}}
LEAST_SIDE = {"alex": 31, "vgg": 16}  # pixels; of a smaller picture a pooling leaves nothing


def find_weights(net: str, folder: Path | None = None) -> Path | None:
    """The LPIPS weights of `net`, "alex" or "vgg"; otherwise as `find_metric_weights`."""
    return find_metric_weights(f"lpips_{net}", folder)


class LPIPS(nn.Module):
    """The LPIPS distance of images (B, 3, H, W) in [-1, 1], H, W >= LEAST_SIDE: returns (B,)."""

    def __init__(self, net: str, weights: Path) -> None:
        """Load `weights`: torchvision's `features.N.*`, and `linN.weight`, `shift`, `scale`."""
        super().__init__()
        self.net = net
        for key, value in load_file(weights).items():
            self.register_buffer(key.replace(".", "_"), value.float())

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance between each image of `a` and its fellow in `b`."""
        distance = a.new_zeros(a.shape[0])
        for stage, (u, v) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            difference = (_unit(u) - _unit(v)).square()
            distance = distance + F.conv2d(difference, self._get(f"lin{stage}_weight")).mean(
                (1, 2, 3)
            )
        return distance

    def _features(self, x: Tensor) -> list[Tensor]:
        x = (x - self._get("shift")) / self._get("scale")
        features = []
        for stage, convolutions in enumerate(_STAGES[self.net]):
            if kernel := _POOLED[self.net].get(stage):
                x = F.max_pool2d(x, kernel, stride=2)
            for index, stride, padding in convolutions:
                weight = self._get(f"features_{index}_weight")
                bias = self._get(f"features_{index}_bias")
                x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
            features.append(x)
        return features

    def _get(self, name: str) -> Tensor:
        return cast(Tensor, getattr(self, name))


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
