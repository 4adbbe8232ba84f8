from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from silo.errors import BadRequest
from silo.lpips import FILES, LPIPS, WEIGHTS_VARIABLE, find_weights

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


def _reference(features: nn.Sequential, net: str, weights: dict[str, Tensor], a, b) -> Tensor:
    """LPIPS from its definition, pixel by pixel of the features of a sequential network."""
    total = torch.zeros(len(a))
    x, y = ((image - weights["shift"]) / weights["scale"] for image in (a, b))
    for index, layer in enumerate(features):
        x, y = layer(x), layer(y)
        if index in LAST_RELUS[net]:
            stage = LAST_RELUS[net].index(index)
            difference = (F.normalize(x, dim=1) - F.normalize(y, dim=1)) ** 2
            linear = weights[f"lin{stage}.weight"].flatten()
            total += torch.einsum("bchw,c->bhw", difference, linear).mean((1, 2))
    return total


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_equals_the_definition_on_a_sequential_network(net: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    features = _torchvision_like(net)
    weights = {f"features.{k}": v.detach() for k, v in features.state_dict().items()}
    for stage, relu in enumerate(LAST_RELUS[net]):
        convolution = features[relu - 1]
        assert isinstance(convolution, nn.Conv2d)
        weights[f"lin{stage}.weight"] = torch.rand(1, convolution.out_channels, 1, 1)
    weights |= {"shift": torch.randn(1, 3, 1, 1) * 0.1, "scale": torch.rand(1, 3, 1, 1) + 0.3}
    save_file(weights, tmp_path / "weights.safetensors")
    distance = LPIPS(net, tmp_path / "weights.safetensors")
    a, b = torch.rand(3, 3, 64, 96) * 2 - 1, torch.rand(3, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(distance(a, b), _reference(features, net, weights, a, b))
        assert distance(a, a).abs().max() == 0


def test_weights_are_looked_for_where_they_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    assert find_weights("alex") is None
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(BadRequest, match="No LPIPS weights"):
        find_weights("alex")
    (tmp_path / FILES["alex"]).touch()
    assert find_weights("alex") == tmp_path / FILES["alex"]
    assert find_weights("alex", tmp_path) == tmp_path / FILES["alex"]
    assert find_weights("vgg") is None  # one net's weights may be there without the other's
