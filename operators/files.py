"""Files that appear under their names whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write a file to, beside `path`, which it replaces when the block ends.

    When the block fails, `path` stays as it was and nothing is left beside it. Each call has a path
    of its own, so that several processes may write the same file at once.

    Args:
        path: the file to make or replace; its folder must exist.
        durable: return only when it is on disk, for what has to survive a power failure.

    Raises:
        OSError: it cannot be written there.
    """
    aside = path.parent / f".{secrets.token_hex(8)}.partial"
    try:
        yield aside
        aside.chmod(0o644)  # safetensors writes 0600, which others could not read
        if durable:
            sync(aside)
        os.replace(aside, path)
        if durable:
            sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | memoryview, *, durable: bool = False) -> None:
    """Make or replace the file `path`, as `replacing` does, with `content`."""
    with replacing(path, durable=durable) as aside:
        aside.write_bytes(content)


def sync(path: Path) -> None:
    """Return when the content of a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
