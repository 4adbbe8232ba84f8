from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from silo.errors import BadRequest
from silo.lpips import LEAST_SIDE, LPIPS, find_weights
from silo.metric_weights import FILES, WEIGHTS_VARIABLE
from silo.metrics import lpips
from tests.narrow_lpips import LAST_RELUS, write_weights


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
    features, weights = write_weights(net, tmp_path / "weights.safetensors")
    distance = LPIPS(net, tmp_path / "weights.safetensors")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 3, 64, 96, generator=generator) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(distance(a, b), _reference(features, net, weights, a, b))
        assert distance(a, a).abs().max() == 0


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_a_picture_that_is_too_small_for_the_network_has_no_distance(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    write_weights(net, tmp_path / FILES[f"lpips_{net}"])
    a, b = torch.rand(2, 1, 3, 40, LEAST_SIDE[net], generator=torch.Generator().manual_seed(0))
    distance = lpips(net, a, b)
    assert distance is not None and distance > 0
    for small in (torch.zeros(1, 3, 40, LEAST_SIDE[net] - 1), torch.zeros(1, 3, 8, 40)):
        assert lpips(net, small, small) is None
        with pytest.raises(RuntimeError, match="too small"):  # it is the least
            LPIPS(net, tmp_path / FILES[f"lpips_{net}"])(small, small)


def test_weights_are_looked_for_where_they_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    assert find_weights("alex") is None
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    with pytest.raises(BadRequest, match="No weights of metrics"):
        find_weights("alex")
    (tmp_path / FILES["lpips_alex"]).touch()
    assert find_weights("alex") == tmp_path / FILES["lpips_alex"]
    assert find_weights("alex", tmp_path) == tmp_path / FILES["lpips_alex"]
    assert find_weights("vgg") is None  # one net's weights may be there without the other's
