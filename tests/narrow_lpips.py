"""LPIPS weights of narrow networks and random numbers, for tests; not what anybody would see."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# torchvision's `alexnet().features` and `vgg16().features`, with narrow layers.
NETS = {
    "alex": [("conv", 4, 11, 4, 2), "pool3", ("conv", 6, 5, 1, 2), "pool3"]
    + [("conv", 5, 3, 1, 1)] * 3,
    "vgg": [("conv", 3, 3, 1, 1)] * 2
    + ["pool2"]
    + [("conv", 4, 3, 1, 1)] * 2
    + (["pool2"] + [("conv", 5, 3, 1, 1)] * 3) * 3,
}
LAST_RELUS = {"alex": [1, 4, 7, 9, 11], "vgg": [3, 8, 15, 22, 29]}


def write_weights(net: str, path: Path) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """Write a net's weights to a file; returns its network and the weights by their names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = _torchvision_like(net)
        weights = {f"features.{k}": v.detach() for k, v in features.state_dict().items()}
        for stage, relu in enumerate(LAST_RELUS[net]):
            convolution = features[relu - 1]
            assert isinstance(convolution, nn.Conv2d)
            weights[f"lin{stage}.weight"] = torch.rand(1, convolution.out_channels, 1, 1)
        weights |= {"shift": torch.randn(1, 3, 1, 1) * 0.1, "scale": torch.rand(1, 3, 1, 1) + 0.3}
    save_file(weights, path)
    return features, weights


def _torchvision_like(net: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for layer in NETS[net]:
        if isinstance(layer, str):
            layers.append(nn.MaxPool2d(int(layer[-1]), 2))
        else:
            _, width, kernel, stride, padding = layer
            layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)
