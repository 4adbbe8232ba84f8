"""Which pictures a call of `restore` reads, and which files it writes: never one of the former."""

from collections.abc import Iterable
from pathlib import Path

from silo.decoding import SUFFIXES
from silo.errors import BadRequest
from silo.images import require_png


def find_pictures(inputs: Iterable[Path]) -> list[Path]:
    """The files named, and the pictures directly in the folders named, in order of name.

    Raises:
        BadRequest: an input does not exist, or a folder holds no picture.
    """
    pictures = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise BadRequest(f"The folder {path} holds no pictures ({', '.join(SUFFIXES)}).")
            pictures += inside
        elif path.exists():
            pictures.append(path)
        else:
            raise BadRequest(f"There is no file or folder {path}; check its name.")
    return pictures


def plan_outputs(
    inputs: list[Path],
    pictures: list[Path],
    out: Path | None,
    *,
    samples: int,
    mask: Path | None,
) -> list[list[Path]]:
    """The files that each picture's restorations go to, one a sample; makes no folder yet.

    `out` is a file for one picture if it ends in .png, else a folder. Without it a picture's
    restoration lies beside it, and a folder's in FOLDER_restored. Several samples are numbered.

    Raises:
        BadRequest: two restorations, or a restoration and an input, would share a file; or `out` is
            a file of another format.
    """
    if out is not None:
        require_png(out)
    if out is not None and out.suffix.lower() == ".png":
        if len(pictures) > 1:
            raise BadRequest(f"{out} is one file for {len(pictures)} pictures; name a folder.")
        outputs = [out]
    else:
        folders = {path.resolve() for path in inputs if path.is_dir()}
        outputs = []
        for picture in pictures:
            folder = picture.parent
            if out is not None:
                folder = out
            elif folder.resolve() in folders:
                folder = folder.resolve().with_name(folder.resolve().name + "_restored")
            outputs.append(folder / f"{picture.stem}_restored.png")
    planned = [_sample_paths(output, samples) for output in outputs]
    _check_collisions(pictures, planned, mask)
    return planned


def _sample_paths(output: Path, samples: int) -> list[Path]:
    """The files of the samples: `output` itself, or NAME_1.png, NAME_2.png, ... of several."""
    if samples == 1:
        return [output]
    return [output.with_stem(f"{output.stem}_{index + 1}") for index in range(samples)]


def _check_collisions(pictures: list[Path], planned: list[list[Path]], mask: Path | None) -> None:
    """Raise BadRequest if one file would hold two restorations, or be read and written."""
    sources = {path.resolve() for path in (*pictures, *([mask] if mask else []))}
    taken: dict[Path, Path] = {}
    for picture, paths in zip(pictures, planned, strict=True):
        for path in paths:
            if path.resolve() in sources:
                raise BadRequest(f"{path} is one of the inputs; restore into another --out folder.")
            other = taken.setdefault(path.resolve(), picture)
            if other is not picture:
                raise BadRequest(
                    f"{other} and {picture} would both become {path}: rename one of them, or "
                    "restore them one after the other into different --out folders."
                )
