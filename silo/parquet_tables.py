"""Unpacks the pictures of Parquet tables, as the Hub's datasets keep them, into WebDataset tars."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from operators.files import sync
from silo.decoding import MAX_FILE_BYTES, SUFFIXES
from silo.errors import BadRequest

SUFFIX = ".parquet"
_CAPTIONS = ("text", "caption", "captions", "prompt")  # names of columns, the first that there is
_ROWS = 8  # that are held in memory at once
OLDEST_PYARROW = 21  # those before 14.0.1 ran code that a table brought along (CVE-2023-47248)
GROWTH = 4  # pictures are compressed already; a table that grows by more is no table of pictures


class _Columns(NamedTuple):
    picture: str
    caption: str | None


def check_reader() -> None:
    """Raise BadRequest where there is no pyarrow to read the tables, or one that may run them."""
    try:
        installed = version("pyarrow")
    except PackageNotFoundError:
        installed = "0"
    if int(installed.partition(".")[0]) < OLDEST_PYARROW:
        raise BadRequest(
            "the dataset keeps its pictures in Parquet tables: "
            f'`pip install "pyarrow>={OLDEST_PYARROW}"`.'
        )


def unpack(table: Path, shard: Path, title: str) -> bool:
    """Write the pictures of `table`, and their captions, to the tar `shard`, whole or not at all.

    A picture is a row of the first column whose values have `bytes` and `path`, as the feature
    `Image` of the library `datasets` stores them, or else of the first of bytes. Its caption is the
    text of a column called text, caption, captions or prompt.

    Args:
        table: a Parquet file, of which nothing is believed.
        shard: the file to write.
        title: what sets it apart from other tables; pictures are called after it and their row,
            since the names in tables repeat.

    Returns:
        Whether there were pictures; without any, nothing is written.

    Raises:
        BadRequest: it is no Parquet table, or a damaged one, or grows beyond what pictures do.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    shard.parent.mkdir(parents=True, exist_ok=True)
    aside = shard.with_suffix(f".{os.getpid()}.partial")  # several processes may fetch at once
    most, count = GROWTH * table.stat().st_size + MAX_FILE_BYTES, 0
    try:
        # Unbuffered: else all row groups are read ahead.
        with ParquetFile(table, pre_buffer=False) as opened, tarfile.open(aside, "w") as tar:
            columns = _columns(opened.schema_arrow)
            if columns is None:
                return False
            for index, row in enumerate(_rows(opened, columns)):
                content, suffix = _picture(row[columns.picture])
                if not content:
                    continue
                if len(content) > MAX_FILE_BYTES or tar.offset > most:
                    raise BadRequest(f"{table} unpacks to more than pictures take: choose another.")
                name = f"{title}-{index:06d}"
                _add(tar, name + suffix, content)
                if columns.caption is not None and row[columns.caption]:
                    _add(tar, f"{name}.txt", row[columns.caption].encode())
                count += 1
        if count:
            sync(aside)
            aside.replace(shard)
    except (ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise BadRequest(f"{table} cannot be unpacked ({error}): download it again.") from error
    finally:
        aside.unlink(missing_ok=True)
    return count > 0


def _columns(schema: Any) -> _Columns | None:
    """Which columns hold pictures and captions; None where none holds pictures."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_image(kind: Any) -> bool:
        fields = {field.name: field.type for field in kind} if types.is_struct(kind) else {}
        return "path" in fields and is_bytes(fields.get("bytes"))

    pictures = [field.name for field in schema if is_image(field.type)]
    pictures += [field.name for field in schema if is_bytes(field.type)]
    if not pictures:
        return None
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
    """The encoded picture, None where there is none, and a suffix, which decides nothing."""
    if not isinstance(value, dict):
        return value, SUFFIXES[0]
    suffix = PurePosixPath(value["path"] or "").suffix.lower()
    return value["bytes"], suffix if suffix in SUFFIXES else SUFFIXES[0]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
