"""Makes the folders that results go to, and tells beforehand where that cannot be done."""

import os
from pathlib import Path

from silo.errors import CannotSave


def require_place(folder: Path) -> None:
    """Make sure, as far as can be told without making anything, that files can go to a folder.

    Raises:
        CannotSave: it is a file, or lies in one, or must not be written to.
    """
    absolute = folder.absolute()
    there = next(each for each in (absolute, *absolute.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise CannotSave(f"{there} is no folder that can be written to: choose another place.")


def make_folder(folder: Path) -> None:
    """Make a folder that results go to, and those that it lies in, where they are not there yet.

    Raises:
        CannotSave: it cannot be made.
    """
    require_place(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotSave(
            f"{folder} cannot be made ({error.strerror}): choose another place."
        ) from error
