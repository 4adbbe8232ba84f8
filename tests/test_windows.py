"""Networks that see no further than a window's overlap are the same in windows as at once."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from silo.windows import in_windows


def noise(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def local(inputs: Tensor) -> tuple[Tensor, ...]:
    """Outputs as large, twice as large and half as large, of what is at a place alone."""
    return 3 * inputs + 1, interpolate(inputs, scale_factor=2), avg_pool2d(inputs, 2)


@pytest.mark.parametrize("size", [(64, 66), (200, 20), (18, 130), (34, 34), (128, 96)])
def test_what_is_local_is_the_same_in_windows(size: tuple[int, int]) -> None:
    inputs = noise(*size)
    for one, other in zip(
        in_windows(local, inputs, side=32, multiple=2), local(inputs), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_windows_are_few_small_and_overlap() -> None:
    seen: list[tuple[int, int]] = []

    def note(inputs: Tensor) -> tuple[Tensor]:
        seen.append((inputs.shape[-2], inputs.shape[-1]))
        return (inputs,)

    for size, windows in (
        ((32, 32), [(32, 32)]),  # no larger than one
        ((16, 64), [(16, 64)]),
        ((64, 64), [(34, 34)] * 4),  # four of half the sides and the overlap
        ((64, 36), [(34, 36)] * 2),  # an eighth more than a side is still one
        ((20, 100), [(20, 36)] * 3),
    ):
        in_windows(note, noise(*size), side=32, multiple=2)
        assert seen == windows
        seen.clear()


def test_across_an_overlap_one_window_fades_into_the_next() -> None:
    values = iter([0.0, 1.0])

    def run(inputs: Tensor) -> tuple[Tensor]:
        return (torch.full_like(inputs, next(values)),)

    (blended,) = in_windows(run, torch.zeros(1, 1, 8, 34), side=16, multiple=1)
    expected = torch.cat([torch.zeros(16), torch.tensor([0.25, 0.75]), torch.ones(16)])
    torch.testing.assert_close(blended, expected.expand_as(blended))


@pytest.mark.parametrize("size", [(20, 24), (40, 80)])  # kept, and computed again
def test_gradients_pass_windows(size: tuple[int, int]) -> None:
    inputs = noise(*size).requires_grad_()
    of_windows, of_all = (
        torch.autograd.grad([each.square().sum() for each in run(inputs)], inputs)[0]
        for run in (partial(in_windows, local, side=16, multiple=2), local)
    )
    torch.testing.assert_close(of_windows, of_all)
