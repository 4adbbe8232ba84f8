"""Contact sheets: a row a picture, a column for clean, measurement and each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MAX_PICTURES = 8  # on one sheet
CELL, GAP, TITLE, FONT_SIZE = 224, 6, 26, 15
_DETAIL = 0.25  # side of the magnified square at the centre, as a share of the picture's


def contact_sheet(
    path: Path, columns: Sequence[tuple[str, Sequence[Path | None]]], *, zoom: bool = False
) -> None:
    """Write a JPEG of some pictures of each column, evenly spaced.

    Args:
        path: the file to write.
        columns: a title and the pictures of each column, all in the same order; None stays empty.
        zoom: whether a magnified detail of the centre follows below each picture.
    """
    available = max(len(pictures) for _, pictures in columns)
    count = min(MAX_PICTURES, available)
    shown = [index * available // count for index in range(count)]
    heights = 2 if zoom else 1
    width = GAP + len(columns) * (CELL + GAP)
    sheet = Image.new("RGB", (width, TITLE + count * heights * (CELL + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for column, (title, pictures) in enumerate(columns):
        left = GAP + column * (CELL + GAP)
        while draw.textlength(title, font) > CELL:
            title = title[:-2] + "…"
        draw.text((left, 4), title, "black", font)
        for row, picture in enumerate(pictures[index] for index in shown):
            if picture is None:
                continue
            with Image.open(picture) as image:
                views = [image.convert("RGB")]
            if zoom:
                views.append(_centre(views[0]))
            for index, view in enumerate(views):
                top = TITLE + (row * heights + index) * (CELL + GAP)
                sheet.paste(view.resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top))
    sheet.save(path, quality=90)


def _centre(image: Image.Image) -> Image.Image:
    width, height = image.size
    x, y = width * (1 - _DETAIL) / 2, height * (1 - _DETAIL) / 2
    return image.crop((round(x), round(y), round(width - x), round(height - y)))
