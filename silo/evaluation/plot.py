"""Quality against time as an SVG: a panel a task, a mark a method."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from statistics import fmean

from silo.evaluation.report import Cell

WIDTH, HEIGHT, MARGIN = 340, 250, 52  # of a panel, in pixels
PANELS_A_ROW = 3
LABEL = 13  # height of a label, in pixels
# Okabe and Ito's, the palest last.
COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #e69f00 #56b4e9 #000000 #f0e442".split()


def quality_against_time(cells: Sequence[Cell]) -> str:
    """The means of each cell that has them: seconds a picture (logarithmic) and LPIPS-Alex.

    PSNR stands in for LPIPS where that is not available. Better is always further up.
    """
    name, title = ("lpips", "LPIPS-Alex (lower is better)")
    if any(cell.means.get("lpips") is None for cell in cells if cell.pictures):
        name, title = ("psnr", "PSNR, dB")
    rows = list(dict.fromkeys(cell.row for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    columns = min(PANELS_A_ROW, len(rows))
    width, height = columns * WIDTH, ceil(len(rows) / columns) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    for index, row in enumerate(rows):
        points = [
            (cell.method + cell.shortfall, colours[cell.method], seconds, value)
            for cell in cells
            if cell.row == row
            and (seconds := cell.means.get("seconds")) is not None
            and (value := cell.means.get(name)) is not None
        ]
        place = index % columns * WIDTH, index // columns * HEIGHT
        parts += [f'<g transform="translate({place[0]},{place[1]})">']
        parts += _panel(row, title, points, flipped=name == "lpips")
        parts += ["</g>"]
    return "\n".join([*parts, "</svg>\n"])


def _panel(
    row: str,
    title: str,
    points: list[tuple[str, str, float, float]],
    *,
    flipped: bool,
) -> list[str]:
    parts = [
        f'<text x="{WIDTH / 2}" y="18" text-anchor="middle" font-size="13">{escape(row)}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">seconds a picture</text>',
        f'<text transform="translate(12,{HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(title)}</text>",
    ]
    if not points:
        return parts
    low, high = _range([log10(max(seconds, 1e-3)) for _, _, seconds, _ in points])
    bottom, top = _range([value for *_, value in points])
    left, right, up, down = MARGIN, WIDTH - 16, 30, HEIGHT - 40

    def x(seconds: float) -> float:
        return left + (log10(max(seconds, 1e-3)) - low) / (high - low) * (right - left)

    def y(value: float) -> float:
        share = (value - bottom) / (top - bottom)
        return up + share * (down - up) if flipped else down - share * (down - up)

    parts.append(
        f'<path d="M{left},{up}V{down}H{right}" fill="none" stroke="#888" stroke-width="1"/>'
    )
    for tick in _time_ticks(10**low, 10**high):
        parts.append(_tick(x(tick), down + 14, f"{tick:g}", "middle"))
        parts.append(f'<path d="M{x(tick):.1f},{down}v4" stroke="#888"/>')
    for share in (0.0, 0.5, 1.0):
        value = bottom + share * (top - bottom)
        parts.append(_tick(left - 6, y(value) + 4, f"{value:.3g}", "end"))
        parts.append(f'<path d="M{left - 4},{y(value):.1f}h4" stroke="#888"/>')
    for beside, anchor in ((9, "start"), (-9, "end")):
        side = [each for each in points if (x(each[2]) < (left + right) / 2) == (beside > 0)]
        heights = spread([y(value) for *_, value in side], LABEL)
        for (label, colour, seconds, value), height in zip(side, heights, strict=True):
            place = f'cx="{x(seconds):.1f}" cy="{y(value):.1f}"'
            parts.append(f'<circle {place} r="5" fill="{colour}"/>')
            parts.append(_tick(x(seconds) + beside, height + 4, label, anchor, colour))
    return parts


def spread(places: Sequence[float], apart: float) -> list[float]:
    """The places, moved as little as keeps their order and leaves each `apart` from the next."""
    groups: list[list[int]] = []
    for index in sorted(range(len(places)), key=lambda each: places[each]):
        groups.append([index])
        while len(groups) > 1 and _end(groups[-2], places, apart) > _start(
            groups[-1], places, apart
        ):  # those that are too close share the room around their mean
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = list(places)
    for group in groups:
        for rank, index in enumerate(group):
            moved[index] = _start(group, places, apart) + (rank + 0.5) * apart
    return moved


def _start(group: Sequence[int], places: Sequence[float], apart: float) -> float:
    return fmean(places[index] for index in group) - len(group) * apart / 2


def _end(group: Sequence[int], places: Sequence[float], apart: float) -> float:
    return _start(group, places, apart) + len(group) * apart


def _range(values: list[float]) -> tuple[float, float]:
    """The ends of an axis, with some room around the values."""
    room = (max(values) - min(values)) * 0.15 or abs(values[0]) * 0.1 or 0.1
    return min(values) - room, max(values) + room


def _time_ticks(low: float, high: float) -> list[float]:
    """Round times between `low` and `high`; where there are none, one between them."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) > 1:
            return inside
    return [float(f"{(low * high) ** 0.5:.2g}")]


def _tick(x: float, y: float, text: str, anchor: str, colour: str = "black") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="{colour}">{escape(text)}</text>'
