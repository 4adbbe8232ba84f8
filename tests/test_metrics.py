import hashlib
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import Tensor, nn

from silo import inception
from silo.errors import BadRequest
from silo.inception import Inception, find_inception, resize
from silo.metric_weights import FILES, WEIGHTS_VARIABLE
from silo.metrics import frechet_distance, kernel_distance, ssim


def _features(count: int, dimensions: int, seed: int) -> Tensor:
    """Correlated features whose covariance is no multiple of the identity."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator)
    return torch.randn(count, dimensions, generator=generator) @ mixing + seed


@pytest.mark.parametrize("counts", [(40, 30), (5, 7)])  # more and fewer pictures than dimensions
def test_frechet_distance_equals_the_one_with_a_matrix_square_root(counts: tuple[int, int]) -> None:
    a, b = _features(counts[0], 12, 1), _features(counts[1], 12, 2)
    # The square root of a singular matrix is found only roughly, so a little is added to both.
    ridge = 1e-9 * np.eye(12)
    s, t = (np.cov(x.double().numpy(), rowvar=False) + ridge for x in (a, b))
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    expected = shift + np.trace(s + t - 2 * np.real(sqrtm(s @ t)))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)


def test_a_set_has_no_frechet_distance_to_itself_and_a_shift_costs_its_square() -> None:
    a = _features(9, 32, 3)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(32 * 0.25, rel=1e-6)


def test_frechet_distance_between_scaled_sets_is_closed_form() -> None:
    a = _features(40, 6, 4)
    a = a - a.mean(0)
    total_variance = a.var(0).sum().item()
    assert frechet_distance(a, 3 * a) == pytest.approx((3 - 1) ** 2 * total_variance, rel=1e-5)


def test_kernel_distance_equals_the_sum_over_pairs() -> None:
    a, b = _features(6, 5, 1).numpy() / 4, _features(4, 5, 2).numpy() / 4

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / 5 + 1) ** 3

    within_a = np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    within_b = np.mean([kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    across = np.mean([kernel(x, y) for x in a for y in b])
    expected = within_a + within_b - 2 * across
    assert kernel_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected)


def test_kernel_distance_has_no_bias() -> None:
    # Sets of the same distribution: half of the estimates are below zero, their mean is zero.
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(400, 2, 5, 3, generator=generator)
    estimates = torch.tensor([kernel_distance(a, b) for a, b in pairs])
    standard_error = estimates.std() / math.sqrt(len(estimates))
    assert estimates.mean().abs() < 3 * standard_error
    assert 0.3 < (estimates < 0).double().mean() < 0.7


def test_structural_similarity_is_the_definition() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), -0.25)
    c1 = (0.01 * 2) ** 2  # of two constant pictures only the means are left
    expected = (2 * 0.5 * -0.25 + c1) / (0.5**2 + 0.25**2 + c1)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 3, 24, 20, dtype=torch.float64, generator=generator) * 2 - 1
    assert ssim(x, y).item() == pytest.approx(_windowed_ssim(x, y), rel=1e-9)


def _windowed_ssim(x: Tensor, y: Tensor) -> float:
    distance = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(distance**2) / (2 * 1.5**2))
    window = (window / window.sum()).outer(window / window.sum()).expand(3, 1, 11, 11)

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z, window, groups=3)

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    m, n = mean(x), mean(y)
    covariance = mean(x * y) - m * n
    spread = mean(x * x) - m**2 + mean(y * y) - n**2
    index = (2 * m * n + c1) * (2 * covariance + c2) / ((m**2 + n**2 + c1) * (spread + c2))
    return index.mean().item()


def test_resizing_is_bilinear_from_the_corner() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(40.0), indexing="ij")
    resized = resize((3 * rows + columns)[None, None].expand(1, 3, -1, -1))
    assert resized.shape == (1, 3, 299, 299)
    index = torch.arange(299.0)
    # A plane stays one, up to the last pixel, beyond which the edge is repeated.
    down, across = (index * 64 / 299).clamp(max=63), (index * 40 / 299).clamp(max=39)
    torch.testing.assert_close(resized[0, 0], 3 * down[:, None] + across, atol=1e-3, rtol=0)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_only_the_network_of_the_published_distances_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    assert find_inception() is None
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    (tmp_path / FILES["lpips_vgg"]).touch()
    assert find_inception() is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(_Mean()).save(tmp_path / FILES["inception"])
    with pytest.raises(BadRequest, match="is not the network"):
        find_inception()
    digest = hashlib.sha256((tmp_path / FILES["inception"]).read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "SHA256", digest)
    path = find_inception(tmp_path)
    assert path is not None and path == tmp_path / FILES["inception"]
    images = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(2, 3, 8, 8)
    expected = torch.tensor([[-1.0, 0.0, 127 / 128]]).expand(2, 3)  # 0, 128 and 255 of 0..255
    torch.testing.assert_close(Inception(path).features(images), expected)
