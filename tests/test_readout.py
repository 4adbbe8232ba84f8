import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operators.errors import OperatorError
from operators.readout import (
    SD15_FEATURE_CHANNELS,
    ReadoutOperator,
    ResidualReadoutOperator,
)

CHANNELS = [12, 6, 4]
SIZES = [(2, 3), (4, 6), (8, 12)]


def randomise(network: nn.Module, seed: int = 0) -> None:
    """Give every weight a value of its own, so that no part of the network is neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def untrained(kind: type[ReadoutOperator] = ReadoutOperator, mask: bool = False) -> ReadoutOperator:
    return kind(
        CHANNELS,
        embedding_dim=10,
        sigma_map_size=4,
        mid_channels=8,
        out_channels=12,
        mask=mask,
        groups=4,
    )


def small(mask: bool = False) -> ReadoutOperator:
    operator = untrained(mask=mask)
    randomise(operator)
    return operator


def decoder_features(batch: int) -> list[Tensor]:
    shapes = zip(CHANNELS, SIZES, strict=True)
    return [noise(batch, channels, *size, seed=channels) for channels, size in shapes]


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts_of_every_part() -> None:
    with torch.device("meta"):
        operator = ReadoutOperator()
        assert parameter_count(operator) == 13_746_864
        assert parameter_count(ReadoutOperator(mask=True)) == 13_748_016
    assert parameter_count(operator.bottleneck_layers) == 8_011_008
    assert (
        parameter_count(operator.sigma_emb_linear) + parameter_count(operator.sigma_emb_norm)
        == 5_255_168
    )
    assert parameter_count(operator.output_head) == 480_676
    assert operator.mixing_weights.shape == (12,)


def test_state_dict_is_the_authors() -> None:
    with torch.device("meta"):
        operator = ReadoutOperator(mask=True)
    shapes = {name: tuple(value.shape) for name, value in operator.state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {
        "mixing_weights": (12,),
        "sigma_emb_linear.weight": (4096, 1280),
        "sigma_emb_linear.bias": (4096,),
        "sigma_emb_norm.weight": (1, 64, 64),
        "sigma_emb_norm.bias": (1, 64, 64),
        "output_head.0.weight": (128, 386, 3, 3),
        "output_head.0.bias": (128,),
        "output_head.2.weight": (32, 128, 3, 3),
        "output_head.2.bias": (32,),
        "output_head.4.weight": (4, 32, 1, 1),
        "output_head.4.bias": (4,),
    }
    for index, channels in enumerate([1280] * 6 + [640] * 3 + [320] * 3):
        layer = f"bottleneck_layers.{index}."
        convolutions = {
            "shortcut": (384, channels + 1, 1, 1),
            "conv1": (96, channels + 1, 1, 1),
            "conv2": (96, 96, 3, 3),
            "conv3": (384, 96, 1, 1),
        }
        for name, shape in convolutions.items():
            expected[f"{layer}{name}.weight"] = shape
            expected[f"{layer}{name}.norm.weight"] = shape[:1]
            expected[f"{layer}{name}.norm.bias"] = shape[:1]
        expected[f"{layer}emb_layers.weight"] = (96, 1280)
        expected[f"{layer}emb_layers.bias"] = (96,)
    assert len(expected) == 179
    assert shapes == expected


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96)])
def test_runs_on_the_features_of_stable_diffusion(height: int, width: int) -> None:
    with torch.device("meta"):
        factors = [8] * 3 + [4] * 3 + [2] * 3 + [1] * 3
        features = [
            torch.zeros(2, channels, height // factor, width // factor)
            for channels, factor in zip(SD15_FEATURE_CHANNELS, factors, strict=True)
        ]
        result = ReadoutOperator(mask=True)(
            torch.zeros(2, 4, height, width),
            torch.zeros(2),
            mask=torch.zeros(1, 1, 8 * height, 8 * width),
            features=features,
            time_embedding=torch.zeros(2, 1280),
            sigma_embedding=torch.zeros(2, 1280),
        )
    assert result.shape == (2, 4, height, width)


@pytest.mark.parametrize("with_time", [True, False])
@torch.no_grad()
def test_agrees_with_its_definition(with_time: bool) -> None:
    operator = small(mask=True)
    weights = operator.state_dict()
    features, time, sigma = decoder_features(2), noise(2, 10, seed=7), noise(2, 10, seed=8)
    mask = (noise(2, 1, 64, 96) > 0).float()

    def convolution(inputs: Tensor, name: str) -> Tensor:
        kernel = weights[f"{name}.weight"]
        scale, shift = weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"]
        return F.group_norm(F.conv2d(inputs, kernel, padding="same"), 4, scale, shift)

    level = F.linear(sigma, weights["sigma_emb_linear.weight"], weights["sigma_emb_linear.bias"])
    level = (level - level.mean(1, True)) / (level.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    level = level.reshape(2, 1, 4, 4) * weights["sigma_emb_norm.weight"]
    level = F.interpolate(level + weights["sigma_emb_norm.bias"], (8, 12), mode="bilinear")
    stack = []
    for index, feature in enumerate(features):
        name = f"bottleneck_layers.{index}."
        inputs = F.interpolate(feature, (8, 12), mode="bilinear")
        inputs = torch.cat([inputs, level], dim=1)
        hidden = convolution(inputs, name + "conv1").relu()
        if with_time:
            kernel, bias = weights[name + "emb_layers.weight"], weights[name + "emb_layers.bias"]
            hidden = hidden + F.linear(time, kernel, bias).relu()[..., None, None]
        hidden = convolution(convolution(hidden, name + "conv2").relu(), name + "conv3")
        stack.append((hidden + convolution(inputs, name + "shortcut")).relu())
    shares = weights["mixing_weights"].exp() / weights["mixing_weights"].exp().sum()
    mixture = torch.einsum("l,lbchw->bchw", shares, torch.stack(stack))
    known = mask.reshape(2, 1, 8, 8, 12, 8).mean(dim=(3, 5))
    hidden = torch.cat([mixture, level, known], dim=1)
    for index in (0, 2, 4):
        kernel, bias = (weights[f"output_head.{index}.{part}"] for part in ("weight", "bias"))
        hidden = F.conv2d(hidden if index == 0 else F.silu(hidden), kernel, bias, padding="same")
    actual = operator(
        noise(2, 4, 8, 12),
        torch.zeros(2),
        mask=mask,
        features=features,
        time_embedding=time if with_time else None,
        sigma_embedding=sigma,
    )
    torch.testing.assert_close(actual, hidden, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_batch_equals_single_runs_and_reads_each_noise_level() -> None:
    operator = small()
    one, sigma, time = decoder_features(1), noise(3, 10), noise(3, 10, seed=3)
    features = [feature.expand(3, -1, -1, -1) for feature in one]
    z, level = noise(3, 4, 8, 12), torch.zeros(3)
    together = operator(
        z, level, features=features, time_embedding=time[:1].expand(3, -1), sigma_embedding=sigma
    )
    for index in range(3):
        piece = slice(index, index + 1)
        alone = operator(
            z[piece],
            level[piece],
            features=one,
            time_embedding=time[:1],
            sigma_embedding=sigma[piece],
        )
        torch.testing.assert_close(together[piece], alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


@torch.no_grad()
def test_mask_matters_and_half_precision_features_are_taken() -> None:
    operator, features = small(mask=True), decoder_features(1)
    z, level, sigma = noise(1, 4, 8, 12), torch.zeros(1), noise(1, 10)
    mask = torch.ones(1, 1, 64, 96)
    whole = operator(z, level, mask=mask, features=features, sigma_embedding=sigma)
    mask[:, :, 10:20] = 0
    holed = operator(z, level, mask=mask, features=features, sigma_embedding=sigma)
    assert (whole - holed).abs().max() > 1e-3
    half = [feature.bfloat16() for feature in features]
    result = operator(z, level, mask=mask, features=half, sigma_embedding=sigma.bfloat16())
    assert result.dtype == torch.float32


def test_gradients_flow_to_every_feature_and_weight() -> None:
    operator, z = small(), noise(1, 4, 8, 12).requires_grad_()
    features = [z.mean() + feature for feature in decoder_features(1)]
    features = [feature * z.sum() for feature in features]
    for feature in features:
        feature.retain_grad()
    operator(
        z,
        torch.zeros(1),
        features=features,
        time_embedding=noise(1, 10),
        sigma_embedding=noise(1, 10),
    ).square().sum().backward()
    assert z.grad is not None and (z.grad != 0).all()
    assert all(feature.grad is not None and feature.grad.any() for feature in features)
    assert all(p.grad is not None and p.grad.any() for p in operator.parameters())


def test_starts_with_an_even_mixture_and_he_weights() -> None:
    operator = ReadoutOperator([320], sigma_map_size=4, mid_channels=32, out_channels=256)
    assert torch.equal(operator.mixing_weights, torch.ones(1))
    shortcut = operator.state_dict()["bottleneck_layers.0.shortcut.weight"]
    assert shortcut.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)


@torch.no_grad()
def test_the_residual_one_begins_as_the_identity_and_reads_z() -> None:
    operator, features = untrained(ResidualReadoutOperator), decoder_features(1)
    z, level, sigma = noise(1, 4, 8, 12), torch.zeros(1), noise(1, 10)
    assert torch.equal(operator(z, level, features=features, sigma_embedding=sigma), z)
    randomise(operator)
    plain = small()
    weights = operator.state_dict()
    first = weights["output_head.0.weight"]
    plain.load_state_dict(weights | {"output_head.0.weight": first[:, :-4]})
    result = operator(z, level, features=features, sigma_embedding=sigma)
    assert (result - z - plain(z, level, features=features, sigma_embedding=sigma)).abs().max() > 1
    first[:, -4:] = 0  # what reads z
    result = operator(z, level, features=features, sigma_embedding=sigma)
    expected = z + plain(z, level, features=features, sigma_embedding=sigma)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_refuses_features_of_another_prior() -> None:
    operator, features = small(mask=True), decoder_features(1)
    z, level, sigma = noise(1, 4, 8, 12), torch.zeros(1), noise(1, 10)
    mask = torch.ones(1, 1, 64, 96)
    with pytest.raises(OperatorError, match="pass features"):
        operator(z, level, mask=mask, sigma_embedding=sigma)
    for wrong in (features[::-1], features[:2], [], decoder_features(2)):
        with pytest.raises(OperatorError, match="reads 3 features"):
            operator(z, level, mask=mask, features=wrong, sigma_embedding=sigma)
    with pytest.raises(OperatorError, match="reads 3 features"):
        flat = [features[0], features[1], features[2], noise(1, 10)]
        operator(z, level, mask=mask, features=flat, sigma_embedding=sigma)
    with pytest.raises(OperatorError, match="pass it"):
        operator(z, level, mask=mask, features=features)
    with pytest.raises(OperatorError, match="time_embedding must be"):
        operator(
            z,
            level,
            mask=mask,
            features=features,
            sigma_embedding=sigma,
            time_embedding=noise(1, 11),
        )
    with pytest.raises(OperatorError, match="pass mask"):
        operator(z, level, features=features, sigma_embedding=sigma)


def test_refuses_a_configuration_out_of_range() -> None:
    for channels in ([], [0], [True], [1.5], [8] * 65, "abc", 8):
        with pytest.raises(OperatorError, match="feature_channels"):
            ReadoutOperator(channels)  # pyright: ignore[reportArgumentType]
    with pytest.raises(OperatorError, match="groups=32 does not divide the width 40"):
        ReadoutOperator([8], mid_channels=40)
