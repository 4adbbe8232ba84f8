import pytest
import torch
from torch import nn

from silo.errors import BadRequest
from silo.training.widening import widen_from


def test_a_wider_network_begins_as_the_narrower_one_and_deaf_to_new_inputs() -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
    last = nn.Conv2d(5, 3, 3)
    wide = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), last)
    own = last.weight[2].clone()
    widen_from(wide, narrow)
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(wide(image)[:, :2], narrow(image[:, :2]))
    assert torch.equal(last.weight[2], own)


@pytest.mark.parametrize(
    ("network", "other"),
    [
        (nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Linear(4, 2))),
        (nn.Sequential(nn.Linear(3, 2)), nn.Sequential(nn.Conv2d(3, 2, 1))),
        (nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2)),
        (nn.Sequential(nn.Conv2d(3, 2, 1)), nn.Sequential(nn.Conv2d(4, 2, 1))),
        # Its groups would be of other channels than before.
        (nn.Sequential(nn.GroupNorm(2, 6)), nn.Sequential(nn.GroupNorm(2, 4))),
    ],
)
def test_another_network_is_refused(network: nn.Module, other: nn.Module) -> None:
    with pytest.raises(BadRequest):
        widen_from(network, other)
