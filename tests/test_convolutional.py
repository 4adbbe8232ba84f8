import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.convolutional import CompactCNN, PaperCNN
from operators.errors import OperatorError


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Give every weight a value of its own, the zero-initialised layers included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(mask: bool = False) -> CompactCNN:
    operator = CompactCNN(width=16, blocks=2, mask=mask, groups=4)
    randomise(operator)
    return operator


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        assert parameter_count(PaperCNN()) == 3_548_566
        assert parameter_count(CompactCNN()) == 301_700
        assert parameter_count(CompactCNN(mask=True)) == 338_564


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 64)])
def test_compact_starts_as_the_identity_at_any_size(height: int, width: int) -> None:
    z = noise(2, 4, height, width)
    with torch.no_grad():
        assert torch.equal(CompactCNN()(z, torch.tensor([0.0, 0.05])), z)
        mask = torch.ones(1, 1, 8 * height, 8 * width)
        assert torch.equal(CompactCNN(mask=True)(z, torch.zeros(2), mask=mask), z)


def test_compact_agrees_with_its_definition() -> None:
    operator = CompactCNN(2, width=8, blocks=5, mask=True, scale=2, groups=4)
    randomise(operator)
    weights = operator.state_dict()
    z, sigma = noise(2, 2, 6, 5), torch.tensor([0.01, 0.04])
    mask = (noise(2, 1, 12, 10, seed=2) > 0).float()
    mask[0, :, 2:6, 4:8] = 0  # latent pixels of which nothing is known
    z_known = z * F.max_pool2d(mask, 2)
    blocks = [mask[:, :, row::2, column::2] for row in range(2) for column in range(2)]
    level = torch.ones(2, 1, 6, 5) * sigma[:, None, None, None] * 20
    hidden = torch.cat([z_known, level, *blocks], dim=1)
    hidden = F.conv2d(hidden, weights["input.weight"], weights["input.bias"], padding=1)
    for index, dilation in enumerate([1, 2, 4, 1, 1]):
        inner = hidden
        for norm, convolution in ((0, 2), (3, 5)):
            name = f"blocks.{index}.layers."
            scale, shift = weights[f"{name}{norm}.weight"], weights[f"{name}{norm}.bias"]
            inner = F.silu(F.group_norm(inner, 4, scale, shift))
            kernel, bias = (weights[f"{name}{convolution}.{part}"] for part in ("weight", "bias"))
            inner = F.conv2d(inner, kernel, bias, padding=dilation, dilation=dilation)
        hidden = hidden + inner
    expected = z_known + F.conv2d(
        hidden, weights["output.weight"], weights["output.bias"], padding=1
    )
    torch.testing.assert_close(operator(z, sigma, mask=mask), expected)


def test_compact_gives_no_gradient_to_what_lies_in_a_hole() -> None:
    operator = CompactCNN(2, width=8, blocks=2, mask=True, scale=2, groups=4)
    randomise(operator)
    z = noise(1, 2, 8, 8).requires_grad_()
    mask = torch.ones(1, 1, 16, 16)
    mask[..., 4:11, 4:12] = 0  # the last row of this hole shares its latent pixels with known ones
    operator(z, torch.tensor([0.01]), mask=mask).square().sum().backward()
    gradient = z.grad
    assert gradient is not None
    assert gradient[..., 2:5, 2:6].abs().max() == 0
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[2:5, 2:6] = False
    assert (gradient[..., outside].abs() > 0).all()


@torch.no_grad()
def test_compact_batch_equals_single_runs_and_reads_each_noise_level() -> None:
    operator = small(mask=True)
    z, sigma = noise(1, 4, 8, 12).expand(3, -1, -1, -1), torch.tensor([0.0, 0.01, 0.05])
    mask = (noise(3, 1, 64, 96) > 0).float()
    together = operator(z, sigma, mask=mask)
    for index in range(3):
        piece = slice(index, index + 1)
        alone = operator(z[piece], sigma[piece], mask=mask[piece])
        torch.testing.assert_close(together[piece], alone)
    same_mask = operator(z, sigma, mask=mask[:1])
    torch.testing.assert_close(same_mask[:1], together[:1])
    assert (same_mask[0] - same_mask[1]).abs().max() > 1e-3
    assert (same_mask[1] - same_mask[2]).abs().max() > 1e-3


@torch.no_grad()
def test_compact_sees_one_pixel_of_the_mask() -> None:
    operator, z, sigma = small(mask=True), noise(1, 4, 8, 8), torch.zeros(1)
    mask = torch.ones(1, 1, 64, 64)
    whole = operator(z, sigma, mask=mask)
    results = [whole]
    for row, column in ((20, 20), (20, 21)):
        pierced = mask.clone()
        pierced[:, :, row, column] = 0
        results.append(operator(z, sigma, mask=pierced))
    for first, second in ((0, 1), (1, 2), (0, 2)):
        assert (results[first] - results[second]).abs().max() > 1e-4


def test_gradients_with_respect_to_z_flow() -> None:
    z = noise(2, 4, 8, 8).requires_grad_()
    small()(z, torch.zeros(2)).square().sum().backward()
    assert z.grad is not None and (z.grad != 0).all()
    z = noise(1, 2, 4, 4).requires_grad_()
    paper = PaperCNN(latent_channels=2, latent_size=4, embedding_dim=6)
    paper(z, torch.zeros(1), sigma_embedding=noise(1, 6)).square().sum().backward()
    assert z.grad is not None and (z.grad != 0).any()


def test_compact_learns_a_gain() -> None:
    operator = CompactCNN(width=16, blocks=1, groups=4)
    optimizer = torch.optim.Adam(operator.parameters(), lr=1e-2)
    z, losses = noise(8, 4, 8, 8), []
    for _ in range(30):
        loss = (operator(z, torch.zeros(8)) - 0.5 * z).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_compact_refuses_inputs_that_do_not_fit() -> None:
    operator, z, sigma = small(mask=True), noise(2, 4, 8, 8), torch.zeros(2)
    mask = torch.ones(2, 1, 64, 64)
    with pytest.raises(OperatorError, match="pass mask"):
        operator(z, sigma)
    with pytest.raises(OperatorError, match="8 times the latent's size 8 x 8, not 32 x 32"):
        operator(z, sigma, mask=torch.ones(2, 1, 32, 32))
    for shape in ((2, 1, 64, 72), (2, 3, 64, 64), (3, 1, 64, 64), (2, 64, 64), (2, 1, 0, 0)):
        with pytest.raises(OperatorError, match="the mask must be"):
            operator(z, sigma, mask=torch.ones(shape))
    with pytest.raises(OperatorError, match="one a latent"):
        operator(z, torch.zeros(1), mask=mask)
    with pytest.raises(OperatorError, match="one a latent"):
        operator(z, torch.tensor(0.0), mask=mask)
    with pytest.raises(OperatorError, match=r"latents \(B, 4, h, w\)"):
        operator(noise(2, 8, 8, 8), sigma, mask=mask)


def test_groups_must_divide_the_width() -> None:
    with pytest.raises(OperatorError, match="groups=32 does not divide the width 48"):
        CompactCNN(width=48)
    assert CompactCNN(width=48, groups=16).config["groups"] == 16


def test_paper_cnn_has_the_authors_state_dict() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in PaperCNN().state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {
        "sigma_condition_precondition.0.weight": (32, 1280),
        "sigma_condition_precondition.2.weight": (4096, 32),
        "adjust_encoding.0.weight": (16, 129, 1, 1),
        "adjust_encoding.1.weight": (16, 64, 64),
        "processing.0.weight": (16, 16, 3, 3),
        "processing.1.weight": (16, 64, 64),
        "processing.3.weight": (4, 16, 3, 3),
    }
    widths = [5, 17, 33, 65, 128]
    for index in range(4):
        expected[f"encoder.{3 * index}.weight"] = (widths[index + 1], widths[index], 3, 3)
        expected[f"encoder.{3 * index + 1}.weight"] = (widths[index + 1], 64, 64)
    widths = [128, 64, 32, 16]
    for index in range(3):
        expected[f"decoder.{3 * index}.weight"] = (widths[index], widths[index + 1], 3, 3)
        expected[f"decoder.{3 * index + 1}.weight"] = (widths[index + 1], 64, 64)
    assert {name for name in shapes if name.endswith("weight")} == set(expected)
    for name, shape in expected.items():
        assert shapes[name] == shape
        assert name.replace("weight", "bias") in shapes
    assert len(shapes) == 2 * len(expected)


def test_paper_cnn_agrees_with_its_definition() -> None:
    operator = PaperCNN(latent_channels=2, latent_size=4, embedding_dim=6)
    randomise(operator)
    weights = operator.state_dict()
    z, embedding = noise(3, 2, 4, 4), noise(3, 6)

    def both(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def layer(hidden: Tensor, part: str, index: int) -> Tensor:
        centred = hidden - hidden.mean(dim=(1, 2, 3), keepdim=True)
        spread = centred.square().mean(dim=(1, 2, 3), keepdim=True)
        scale, shift = both(f"{part}.{index}")
        return (centred / (spread + 1e-5).sqrt() * scale + shift).clamp(min=0)

    level = F.leaky_relu(F.linear(embedding, *both("sigma_condition_precondition.0")), 0.01)
    level = F.linear(level, *both("sigma_condition_precondition.2")).reshape(3, 1, 4, 4)
    hidden = torch.cat([z, level], dim=1)
    for index in (0, 3, 6, 9):
        hidden = F.conv2d(hidden, *both(f"encoder.{index}"), padding=1)
        hidden = layer(hidden, "encoder", index + 1)
    skip = F.conv2d(torch.cat([hidden, level], dim=1), *both("adjust_encoding.0"))
    skip = layer(skip, "adjust_encoding", 1)
    for index in (0, 3, 6):
        hidden = F.conv_transpose2d(hidden, *both(f"decoder.{index}"), padding=1)
        hidden = layer(hidden, "decoder", index + 1)
    hidden = layer(F.conv2d(hidden + skip, *both("processing.0"), padding=1), "processing", 1)
    expected = F.conv2d(hidden, *both("processing.3"), padding=1)
    actual = operator(z, torch.zeros(3), sigma_embedding=embedding)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    alone = operator(z[1:2], torch.zeros(1), sigma_embedding=embedding[1:2])
    torch.testing.assert_close(actual[1:2], alone, rtol=1e-4, atol=1e-5)
    other = operator(z, torch.zeros(3), sigma_embedding=embedding + 1)
    assert (other - actual).abs().max() > 1e-3


def test_paper_cnn_names_the_size_it_works_at() -> None:
    with torch.device("meta"):
        operator, z = PaperCNN(), torch.zeros(1, 4, 48, 64)
        with pytest.raises(OperatorError, match="64 x 64 only, not 48 x 64"):
            operator(z, torch.zeros(1), sigma_embedding=torch.zeros(1, 1280))
        z = torch.zeros(1, 4, 64, 64)
        with pytest.raises(OperatorError, match="sigma_embedding"):
            operator(z, torch.zeros(1))
        with pytest.raises(OperatorError, match=r"\(1, 1280\), not \(1, 320\)"):
            operator(z, torch.zeros(1), sigma_embedding=torch.zeros(1, 320))
