"""Draws scratches, hairs, dust, creases and lost patches on clean photos, to learn from."""

import math
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from skimage.color import gray2rgb, rgb2gray

FINER = 3  # times as fine as the picture is what marks are drawn on
SEGMENTS = 24  # of a stroke
CLEAN_RATE = 0.2  # of pictures without a mark, from which to learn what is none
LEAST_CHANGE = 0.1  # in [0, 1], of a channel: what changes a pixel less is not seen
SEPIA = np.array([1.0, 0.89, 0.72])

Random = np.random.Generator


def draw_marks(photo: np.ndarray, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """A photo that time has marked, and where.

    Args:
        photo: (H, W, 3) in [0, 1].
        random: decides all of it.

    Returns:
        The photo, (H, W, 3) in [0, 1], and a bool (H, W), true where a mark is seen.
    """
    if random.random() < 0.4:
        photo = gray2rgb(rgb2gray(photo)) * (SEPIA if random.random() < 0.5 else 1)
    marked = photo
    if random.random() >= CLEAN_RATE:
        for _ in range(random.integers(1, 4)):
            opacity = _opacity(photo.shape[0], photo.shape[1], random)[..., None]
            marked = (1 - opacity) * marked + opacity * _colour(random)
    seen = np.abs(marked - photo).max(axis=-1) >= LEAST_CHANGE
    return _aged(marked, random), seen


def _log_uniform(random: Random, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))


def _colour(random: Random) -> np.ndarray:
    """Of what is under the picture, or of dirt on it: mostly bright, else dark."""
    level = random.uniform(0.7, 1) if random.random() < 0.65 else random.uniform(0, 0.3)
    return np.clip(level + random.normal(0, 0.05, 3), 0, 1)


def _opacity(height: int, width: int, random: Random) -> np.ndarray:
    """(H, W) in [0, 1] of marks of one kind, or of some."""
    canvas = Image.new("L", (width * FINER, height * FINER))
    draw = ImageDraw.Draw(canvas)
    side = min(height, width)
    kinds = random.random(5) < (0.6, 0.3, 0.5, 0.15, 0.1)
    if not kinds.any():
        kinds[0] = True
    if kinds[0]:  # scratches
        bend = _log_uniform(random, 0.01, 0.5)
        for _ in range(random.integers(1, 9)):
            length = side * _log_uniform(random, 0.1, 1.5)
            _stroke(draw, canvas.size, random, length, _log_uniform(random, 0.6, 5), bend)
    if kinds[1]:  # hairs and fibres
        for _ in range(random.integers(1, 7)):
            length = side * _log_uniform(random, 0.05, 0.3)
            _stroke(draw, canvas.size, random, length, random.uniform(0.6, 2), 0.6)
    if kinds[2]:  # dust
        for _ in range(round(_log_uniform(random, 1, 40))):
            _blob(draw, canvas.size, random, _log_uniform(random, 0.5, 4))
    if kinds[3]:  # a crease
        _stroke(draw, canvas.size, random, 3 * side, _log_uniform(random, 1.5, 6), 0.02)
    if kinds[4]:  # lost patches
        for _ in range(random.integers(1, 4)):
            _blob(draw, canvas.size, random, side * _log_uniform(random, 0.02, 0.07))
    soft = canvas.reduce(FINER).filter(ImageFilter.GaussianBlur(_log_uniform(random, 0.1, 1.2)))
    broken = _smooth_noise(height, width, _log_uniform(random, 2, 24), random)
    least = random.uniform(-0.3, 1)
    return np.asarray(soft) / 255 * np.clip(least + (1 - least) * 2 * broken, 0, 1)


def _stroke(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    random: Random,
    length: float,
    width: float,
    bend: float,
) -> None:
    """A line, `length` and `width` in pixels of the picture, that turns by about `bend` each step.

    Film is scratched along its edges, so that half of the lines are nearly upright or level.
    """
    direction = random.uniform(0, math.pi)
    if random.random() < 0.5:
        direction = random.integers(2) * math.pi / 2 + random.normal(0, 0.05)
    step = length * FINER / SEGMENTS
    start = np.array([random.uniform(0, size[0]), random.uniform(0, size[1])])
    turn, opacity = random.normal(0, bend / 2), random.uniform(0.5, 1)
    start -= step * SEGMENTS / 2 * np.array([math.cos(direction), math.sin(direction)])
    for _ in range(SEGMENTS):
        end = start + step * np.array([math.cos(direction), math.sin(direction)])
        thick = max(width * FINER * random.uniform(0.8, 1.2), 1)
        fill = round(255 * np.clip(opacity + random.normal(0, 0.1), 0.2, 1))
        draw.line([*start, *end], fill=fill, width=round(thick))
        if thick > 3:
            draw.ellipse([*(end - thick / 2), *(end + thick / 2)], fill=fill)
        direction += turn + random.normal(0, bend / 3)
        start = end


def _blob(draw: ImageDraw.ImageDraw, size: tuple[int, int], random: Random, radius: float) -> None:
    """An uneven spot, `radius` in pixels of the picture."""
    corners = random.integers(6, 12)
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    radii = radius * FINER * random.uniform(0.5, 1.4, corners)
    stretch = random.uniform(0.5, 1)
    x = random.uniform(0, size[0]) + radii * np.cos(angles)
    y = random.uniform(0, size[1]) + stretch * radii * np.sin(angles)
    fill = round(255 * random.uniform(0.4, 1))
    draw.polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=fill)


def _smooth_noise(height: int, width: int, cell: float, random: Random) -> np.ndarray:
    """(H, W), uniform in [0, 1] in cells of so many pixels, and smooth between them."""
    rows, columns = max(round(height / cell), 1) + 1, max(round(width / cell), 1) + 1
    coarse = Image.fromarray(random.integers(0, 256, (rows, columns), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255


def _aged(photo: np.ndarray, random: Random) -> np.ndarray:
    """A photo (H, W, 3) in [0, 1], faded, soft, grainy, grey, compressed: each now and then."""
    if random.random() < 0.4:
        lowest, highest = random.uniform(0, 0.2), random.uniform(0.75, 1)
        photo = lowest + (highest - lowest) * photo
    if random.random() < 0.2:
        photo = gray2rgb(rgb2gray(photo))
    picture = _to_image(photo)
    if random.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.2, 1)))
    if random.random() < 0.6:
        grain = random.normal(0, _log_uniform(random, 0.005, 0.04), photo.shape)
        if random.random() < 0.5:
            grain = grain[..., :1]
        picture = _to_image(np.asarray(picture) / 255 + grain)
    if random.random() < 0.5:
        file = BytesIO()
        picture.save(file, "JPEG", quality=int(random.integers(30, 96)))
        picture = Image.open(file)
    return np.asarray(picture) / 255


def _to_image(photo: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(photo, 0, 1) * 255).astype(np.uint8))
