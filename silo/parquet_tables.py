"""Unpacks the pictures of Parquet tables, as the Hub's datasets keep them, into WebDataset tars."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from silo.decoding import SUFFIXES
from silo.errors import BadRequest

SUFFIX = ".parquet"
_CAPTIONS = ("text", "caption", "captions", "prompt")  # names of columns, the first that there is
_ROWS = 64  # that are held in memory at once


class _Columns(NamedTuple):
    picture: str
    caption: str | None


def check_reader() -> None:
    """Raise BadRequest where pyarrow, which reads the tables, is not installed."""
    if find_spec("pyarrow") is None:
        raise BadRequest("the dataset keeps its pictures in Parquet tables: `pip install pyarrow`.")


def unpack(table: Path, shard: Path) -> None:
    """Write the pictures of `table`, and their captions, to the tar `shard`, whole or not at all.

    A picture is a row of the first column whose values have `bytes`, as the feature `Image` of the
    library `datasets` stores them, or are bytes; it is called what its `path` says, or after table
    and row. Its caption is the text of a column called text, caption, captions or prompt.

    Raises:
        BadRequest: it is no Parquet table, or holds no pictures.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    shard.parent.mkdir(parents=True, exist_ok=True)
    aside = shard.with_suffix(f".{os.getpid()}.partial")  # several processes may fetch at once
    try:
        with ParquetFile(table) as opened, tarfile.open(aside, "w") as tar:
            columns = _columns(opened.schema_arrow, table)
            names: set[str] = set()
            for index, row in enumerate(_rows(opened, columns)):
                content, path = _picture(row[columns.picture])
                if content is None:
                    continue
                name = _name(path, names, f"{table.stem}-{index:06d}")
                names.add(name)
                suffix = PurePosixPath(path).suffix.lower()  # of no account: content decides
                _add(tar, name + (suffix if suffix in SUFFIXES else SUFFIXES[0]), content)
                if columns.caption is not None and row[columns.caption]:
                    _add(tar, f"{name}.txt", row[columns.caption].encode())
        aside.replace(shard)
    except (ArrowException, OSError) as error:
        raise BadRequest(f"{table} cannot be unpacked ({error}).") from error
    finally:
        aside.unlink(missing_ok=True)


def _columns(schema: Any, table: Path) -> _Columns:
    """Which columns hold pictures and captions."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_picture(kind: Any) -> bool:
        if not types.is_struct(kind):
            return is_bytes(kind)
        return any(field.name == "bytes" and is_bytes(field.type) for field in kind)

    pictures = [field.name for field in schema if is_picture(field.type)]
    if not pictures:
        raise BadRequest(
            f"{table.name} holds no pictures (its columns: {', '.join(schema.names)}): choose a "
            "dataset with a column of images."
        )
    text = {
        field.name
        for field in schema
        if types.is_string(field.type) or types.is_large_string(field.type)
    }
    return _Columns(pictures[0], next((name for name in _CAPTIONS if name in text), None))


def _rows(opened: Any, columns: _Columns) -> Iterator[dict[str, Any]]:
    wanted = [name for name in columns if name is not None]
    for batch in opened.iter_batches(batch_size=_ROWS, columns=wanted):
        yield from batch.to_pylist()


def _picture(value: Any) -> tuple[bytes | None, str]:
    """The encoded picture, None where there is none, and the path that it had, "" without one."""
    if isinstance(value, dict):
        return value["bytes"], str(value.get("path") or "")
    return value, ""


def _name(path: str, taken: set[str], otherwise: str) -> str:
    """The file's name in `path`, without its suffix, where that tells it from the other rows."""
    stem = PurePosixPath(path.replace("\\", "/")).stem
    return stem if stem.isprintable() and stem.strip(".") and stem not in taken else otherwise


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
