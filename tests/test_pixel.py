"""The pixel-space degradations against independent implementations and closed forms."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage
from skimage import data

from operators.degradation import Degradation
from operators.errors import OperatorError
from operators.jpeg import LUMA_TABLE
from operators.pixel import KINDS, measure
from operators.resize import resize_matrix

PARAMETERS = {"super_resolution": {"factor": 4}}
LINEAR = [kind for kind, operator in KINDS.items() if operator.linear]
MASKED = [kind for kind, operator in KINDS.items() if operator.needs_mask]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(kind, **parameters) -> Any:
    return Degradation(kind, {**PARAMETERS.get(kind, {}), **parameters}).operator()


def uniform(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=seeded(seed), dtype=dtype) * 2 - 1


def channelwise(function, images):
    """A function of a 2-D array, applied to every channel of (B, C, H, W)."""
    planes = [function(plane) for plane in images.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack(planes)).unflatten(0, images.shape[:2])


def test_the_kinds_are_the_documented_ones():
    assert set(KINDS) == {
        "gaussian_blur",
        "super_resolution",
        "inpainting_box",
        "inpainting_free",
        "inpainting_random",
        "motion_blur",
        "jpeg",
        "denoising",
        "destriping",
    }
    assert set(KINDS) - set(LINEAR) == {"jpeg"}
    assert set(MASKED) == {
        "inpainting_box",
        "inpainting_free",
        "inpainting_random",
        "destriping",
    }


@pytest.mark.parametrize("size", [(96, 80), (31, 45), (9, 7), (2, 3), (1, 5)])
@pytest.mark.parametrize(("kernel_size", "std"), [(61, 3.0), (5, 1.5)])
def test_gaussian_blur_is_scipys(size, kernel_size, std):
    x = uniform(2, 3, *size)
    expected = channelwise(
        lambda plane: ndimage.gaussian_filter(plane, std, mode="mirror", radius=kernel_size // 2), x
    )
    blurred = build("gaussian_blur", kernel_size=kernel_size, std=std).forward(x)
    torch.testing.assert_close(blurred, expected, rtol=0, atol=2e-6)


def test_the_default_blur_is_the_papers():
    kernel = build("gaussian_blur").kernel()
    assert kernel.shape == (61, 61)
    assert kernel.sum().item() == pytest.approx(1)
    assert (kernel[30, 33] / kernel[30, 30]).item() == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize("size", [(40, 56), (11, 3)])
def test_motion_blur_is_scipys_convolution(size):
    operator = build("motion_blur", kernel_size=21, length=14, angle=25.0)
    x = uniform(1, 3, *size)
    kernel = operator.kernel().float().numpy()
    expected = channelwise(lambda plane: ndimage.convolve(plane, kernel, mode="mirror"), x)
    torch.testing.assert_close(operator.forward(x), expected, rtol=0, atol=2e-6)


def test_horizontal_and_vertical_motion_are_boxes():
    row = torch.zeros(61, 61, dtype=torch.float64)
    row[30, 28:33] = 0.2
    along = build("motion_blur", length=5, angle=0.0).kernel()
    torch.testing.assert_close(along, row)
    torch.testing.assert_close(build("motion_blur", length=5, angle=90.0).kernel(), row.T)
    identity = build("motion_blur", length=1, angle=33.0)
    x = uniform(1, 3, 12, 10)
    torch.testing.assert_close(identity.forward(x), x)


@pytest.mark.parametrize("angle", [20.0, 45.0, 120.0, -70.0])
def test_motion_runs_along_its_angle(angle):
    kernel = build("motion_blur", kernel_size=61, length=61, angle=angle).kernel().numpy()
    up, right = -np.arange(-30, 31)[:, None], np.arange(-30, 31)[None, :]
    assert kernel.sum() == pytest.approx(1)
    # The axis of the second moments, modulo half a turn.
    slope = np.arctan2(2 * (kernel * up * right).sum(), (kernel * (right**2 - up**2)).sum()) / 2
    assert math.sin(slope - math.radians(angle)) == pytest.approx(0, abs=0.01)
    length = math.sqrt(12 * (kernel * (up**2 + right**2)).sum())
    assert length == pytest.approx(61, rel=0.02)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 7), (16, 9), (530, 3)])
def test_super_resolution_is_pillows_bicubic(factor, size):
    operator = build("super_resolution", factor=factor)
    height, width = size
    x = uniform(2, 3, height * factor, width * factor)
    small = channelwise(
        lambda plane: np.asarray(
            Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)
        ),
        x,
    )
    y = operator.forward(x)
    torch.testing.assert_close(y, small, rtol=0, atol=2e-6)
    large = channelwise(
        lambda plane: np.asarray(
            Image.fromarray(plane).resize(
                (width * factor, height * factor), Image.Resampling.BICUBIC
            )
        ),
        small,
    )
    torch.testing.assert_close(operator.to_full_size(y), large, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(61, 96), (96, 61)])
def test_super_resolution_refuses_sizes_it_does_not_divide(size):
    with pytest.raises(OperatorError, match=f"{size[1]}x{size[0]} pixels.*multiples of 8"):
        build("super_resolution", factor=8).forward(uniform(1, 3, *size))


@pytest.mark.parametrize("quality", [1, 10, 30, 95])
@pytest.mark.parametrize("size", [(256, 256), (201, 135), (40, 300)])
def test_jpeg_is_pillows(quality, size):
    picture = np.ascontiguousarray(data.astronaut()[: size[0], 100 : 100 + size[1]])
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    expected = np.asarray(Image.open(file), dtype=np.float32) / 255
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = (build("jpeg", quality=quality).forward(x)[0].permute(1, 2, 0).numpy() + 1) / 2
    assert y.shape == expected.shape
    assert np.abs(y - expected).mean() < 0.004


@pytest.mark.parametrize("size", [(1, 1), (7, 17)])
def test_jpeg_takes_any_size_and_clips_what_no_file_holds(size):
    x = 3 * uniform(1, 3, *size)
    y = build("jpeg", quality=80).forward(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y, build("jpeg", quality=80).forward(x.clamp(-1, 1)))


def test_jpeg_has_the_gradient_of_cubic_rounding():
    table = (np.array(LUMA_TABLE) * 5.0).clip(max=255)  # quality 10

    def luma_codec(levels):
        """A grey block through JPEG with [c] + (c - [c])^3 in place of rounding."""
        coefficients = fft.dctn(levels, norm="ortho") / table
        rounded = coefficients.round()
        soft = rounded + (coefficients - rounded) ** 3
        return np.asarray(fft.idctn(soft * table, norm="ortho"))

    block = 0.4 * uniform(8, 8, dtype=torch.float64)
    direction = uniform(8, 8, seed=1, dtype=torch.float64)
    weights = uniform(8, 8, seed=2, dtype=torch.float64)
    picture = block.repeat(2, 2).expand(1, 3, 16, 16).clone().requires_grad_()
    y = build("jpeg").forward(picture)[0, 0, :8, :8]
    (gradient,) = torch.autograd.grad((y * weights).sum(), picture)
    assert gradient.isfinite().all()
    # Along grey directions chroma has no part: what is left is the luma block's derivative.
    grey = torch.zeros_like(picture)
    grey[..., :8, :8] = direction
    slope = (gradient * grey).sum().item()

    levels, step = 127.5 * block.numpy() - 0.5, 1e-6 * direction.numpy()
    change = luma_codec(levels + step) - luma_codec(levels - step)
    expected = (change * weights.numpy()).sum() / 2e-6
    assert abs(expected) > 0.01
    assert slope == pytest.approx(expected, rel=1e-5)


def test_a_step_along_the_jpeg_gradient_fits_the_measurement_better():
    operator = build("jpeg", quality=50)
    picture = data.astronaut()[:128, 128:256]
    x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = operator.forward(x)
    guess = (0.9 * x + 0.05 * uniform(*x.shape)).requires_grad_()
    loss = (operator.forward(guess) - y).square().mean()
    (gradient,) = torch.autograd.grad(loss, guess)
    step = guess - 0.05 * gradient / gradient.square().mean().sqrt()
    assert (operator.forward(step) - y).square().mean() < 0.97 * loss


def test_the_weights_of_a_long_strip_take_little_memory():
    assert sum(weights.numel() for _, weights in resize_matrix(8000, 32000)) < 32000 * 150


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("size", [(64, 64), (37, 53), (13, 90), (5, 3), (1, 2), (1030, 3)])
def test_the_adjoint_is_exact(kind, size):
    operator = build(kind)
    height, width = (side * operator.downscale for side in size)
    mask = operator.draw_mask(height, width, seeded())
    x = uniform(2, 3, height, width, seed=1)
    image = operator.forward(x, mask)
    y = uniform(*image.shape, seed=2)
    back = operator.adjoint(y, mask)
    assert back.shape == x.shape
    forward, backward = (image * y).double().sum(), (x * back).double().sum()
    scale = image.double().norm() * y.double().norm()
    assert (forward - backward).abs() <= 1e-6 * scale
    torch.testing.assert_close(forward, backward, rtol=1e-4, atol=1e-7 * scale.item())


@pytest.mark.parametrize("kind", LINEAR)
def test_the_gradient_of_a_linear_kind_is_its_adjoint(kind):
    operator = build(kind)
    size = (20 * operator.downscale, 11 * operator.downscale)
    mask = operator.draw_mask(*size, seeded())
    x = uniform(1, 3, *size).requires_grad_()
    image = operator.forward(x, mask)
    y = uniform(*image.shape, seed=1)
    (gradient,) = torch.autograd.grad((image * y).sum(), x)
    torch.testing.assert_close(gradient, operator.adjoint(y, mask), rtol=0, atol=3e-6)


@pytest.mark.parametrize("kind", LINEAR)
def test_the_adjoint_is_differentiable(kind):
    operator = build(kind)
    size = (6 * operator.downscale, 5 * operator.downscale)
    mask = operator.draw_mask(*size, seeded())
    y = uniform(1, 3, 6, 5).requires_grad_()
    back = operator.adjoint(y, mask)
    x = uniform(*back.shape, seed=1)
    (gradient,) = torch.autograd.grad((back * x).sum(), y)
    torch.testing.assert_close(gradient, operator.forward(x, mask), rtol=0, atol=3e-6)


def test_jpeg_has_no_adjoint():
    with pytest.raises(OperatorError, match="not linear"):
        build("jpeg").adjoint(uniform(1, 3, 8, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_its_images_give_alone(kind):
    operator = build(kind)
    degradation = Degradation(kind, PARAMETERS.get(kind, {}), noise_sigma=0.05)
    x = uniform(3, 3, 44, 36)
    drawn = [operator.draw_mask(44, 36, seeded(each)) for each in range(3)]
    masks = [each for each in drawn if each is not None]
    batch = measure(
        x, degradation, [seeded(each) for each in range(3)], torch.cat(masks) if masks else None
    )
    for each in range(3):
        alone = measure(x[each : each + 1], degradation, seeded(each), drawn[each])
        torch.testing.assert_close(batch[each : each + 1], alone, rtol=0, atol=1e-6)
    in_turn, shared = seeded(7), seeded(7)
    one_mask = drawn[0]
    together = measure(x, degradation, shared, one_mask)
    for each in range(3):
        alone = measure(x[each : each + 1], degradation, in_turn, one_mask)
        torch.testing.assert_close(together[each : each + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_twice_the_sigma_and_covers_the_hole(kind):
    degradation = Degradation(kind, PARAMETERS.get(kind, {}), noise_sigma=0.03)
    operator = degradation.operator()
    x = uniform(1, 3, 256, 256)
    mask = operator.draw_mask(256, 256, seeded(3))
    noise = measure(x, degradation, seeded(), mask) - operator.forward(x, mask)
    assert noise.std().item() == pytest.approx(0.06, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.003)
    if mask is not None:
        hole = noise[(mask == 0).expand_as(noise)]
        assert hole.std().item() == pytest.approx(0.06, rel=0.03)


def test_without_noise_the_measurement_is_a_of_x():
    degradation = Degradation("gaussian_blur", noise_sigma=0)
    x = uniform(1, 3, 20, 20)
    assert torch.equal(measure(x, degradation, seeded()), degradation.operator().forward(x))


def test_each_image_needs_its_generator():
    with pytest.raises(OperatorError, match="each of the 3 images, not 2"):
        measure(uniform(3, 3, 8, 8), Degradation("denoising"), [seeded(), seeded()])


def test_double_precision_stays_double():
    x = uniform(1, 3, 24, 24, dtype=torch.float64)
    for kind in KINDS:
        operator = build(kind)
        mask = operator.draw_mask(24, 24, seeded())
        degradation = Degradation(kind, PARAMETERS.get(kind, {}))
        assert measure(x, degradation, seeded(), mask).dtype == torch.float64
        assert operator.to_full_size(operator.forward(x, mask)).shape == x.shape


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("size", [(64, 64), (37, 90)])
def test_masking_zeroes_the_hole_and_keeps_the_rest(kind, size):
    operator = build(kind)
    mask = operator.draw_mask(*size, seeded())
    assert mask is not None and mask.shape == (1, 1, *size)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    x = 0.5 + 0.5 * uniform(2, 3, *size).abs()
    y = operator.forward(x, mask)
    known = (mask == 1).expand_as(x)
    assert torch.equal(y[known], x[known])
    assert not y[~known].any()
    assert torch.equal(operator.forward(x, mask.bool()), y)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(MASKED)))
def test_kinds_without_a_mask_draw_and_take_none(kind):
    operator = build(kind)
    assert operator.draw_mask(32, 32, seeded()) is None
    with pytest.raises(OperatorError, match="takes no mask"):
        operator.forward(uniform(1, 3, 32, 32), torch.ones(1, 1, 32, 32))


def test_the_box_is_centred_and_half_the_side():
    mask = build("inpainting_box").draw_mask(512, 512, seeded())
    expected = torch.ones(1, 1, 512, 512)
    expected[..., 128:384, 128:384] = 0
    assert torch.equal(mask, expected)
    odd = build("inpainting_box", fraction=0.3).draw_mask(30, 50, seeded())
    assert (odd[0, 0] == 0).sum() == 9 * 15
    rows, columns = torch.nonzero(odd[0, 0] == 0, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 18, 17, 31)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_random_pixels_are_kept_with_their_probability(keep):
    mask = build("inpainting_random", keep=keep).draw_mask(300, 200, seeded())
    assert mask.mean().item() == pytest.approx(keep, abs=0.01)
    # Neighbours are independent.
    both = (mask[..., 1:] * mask[..., :-1]).mean().item()
    assert both == pytest.approx(keep**2, abs=0.01)


def test_stripes_are_periodic_columns():
    mask = build("destriping", period=8, width=3).draw_mask(5, 20, seeded())
    assert torch.equal(mask[0, 0, 0].int(), torch.tensor([1, 1, 0, 0, 0, 1, 1, 1] * 3)[:20])
    assert (mask == mask[:, :, :1]).all()


def test_free_form_strokes_are_thin_to_broad_spread_and_reproducible():
    operator = build("inpainting_free")
    again = operator.draw_mask(96, 128, seeded(5))
    assert torch.equal(operator.draw_mask(96, 128, seeded(5)), again)
    coverages, centres, widths = [], [], []
    for seed in range(60):
        mask = operator.draw_mask(96, 128, seeded(seed))
        hole = mask[0, 0].numpy() == 0
        coverages.append(hole.mean())
        centres.append(ndimage.center_of_mass(hole))
        depth: Any = ndimage.distance_transform_edt(hole)
        widths.append(2 * depth.max())
    assert 0.02 <= min(coverages) < 0.06 and 0.25 < max(coverages) <= 0.35
    assert min(widths) <= 4 and max(widths) > 12  # of the broadest stroke, in pixels
    assert np.mean(centres, axis=0) == pytest.approx([48, 64], abs=12)
    assert np.std(centres, axis=0).min() > 5


def test_strokes_are_whole_although_they_are_drawn_around_their_line_alone(monkeypatch):
    sizes = [(48, 200), (96, 96), (5, 3)]
    operator = build("inpainting_free")
    drawn = [operator.draw_mask(*size, seeded(seed)) for size in sizes for seed in range(8)]
    monkeypatch.setattr(
        "operators.inpainting._around", lambda start, end, radius, size: slice(size)
    )
    again = [operator.draw_mask(*size, seeded(seed)) for size in sizes for seed in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_masks_of_tiny_pictures_are_drawn(kind, size):
    mask = build(kind).draw_mask(*size, seeded())
    assert mask.shape == (1, 1, *size)


@pytest.mark.parametrize("kind", MASKED)
def test_a_mask_has_to_be_there_and_fit(kind):
    operator = build(kind)
    x = uniform(2, 3, 24, 32)
    for function in (operator.forward, operator.adjoint):
        with pytest.raises(OperatorError, match="needs a mask"):
            function(x)
        with pytest.raises(OperatorError, match="mask is 24x32 pixels and the image 32x24"):
            function(x, torch.ones(1, 1, 32, 24))
        with pytest.raises(OperatorError, match="mask of shape"):
            function(x, torch.ones(3, 1, 24, 32))
        with pytest.raises(OperatorError, match="mask of shape"):
            function(x, torch.ones(24, 32))
    with pytest.raises(OperatorError, match="needs a mask"):
        measure(x, Degradation(kind), seeded())
    with pytest.raises(OperatorError, match="positive size"):
        operator.draw_mask(0, 5, seeded())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "shape"),
        (torch.zeros(1, 1, 8, 8), "shape"),
        (torch.zeros(1, 3, 0, 8), "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating-point"),
    ],
)
def test_what_is_no_image_is_refused(kind, images, message):
    with pytest.raises(OperatorError, match=message):
        build(kind).forward(images)
    with pytest.raises(OperatorError, match=message):
        build(kind).to_full_size(images)
