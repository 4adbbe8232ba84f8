"""The rows of an evaluation on disk: each process appends to a file of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from silo.data import PhotoFile
from silo.errors import BadImage

Row = dict[str, Any]


class Record:
    """Rows by what was measured (`key`) and on which picture; a newer row replaces an older one.

    A picture is known by its name and its content: another one of the same name has other rows. One
    that cannot be read, whose rows are of failures, is known by its name alone.

    A row is on disk, whole, before the next one is begun; a line that an interruption cut short is
    dropped.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        """Read what all processes of this and of earlier runs have written."""
        self._folder = folder
        self._own = folder / f"rows-{rank}.jsonl"
        if self._own.is_file():
            content = self._own.read_bytes()
            with self._own.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
        self._rows: dict[tuple[str, str, str | None], Row] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the rows that the other processes have added."""
        for path in sorted(self._folder.glob("rows-*.jsonl")):
            complete, _, _ = path.read_text().rpartition("\n")
            for line in complete.splitlines():
                self._keep(json.loads(line))

    def get(self, key: str, photo: PhotoFile) -> Row | None:
        """The row of `key` and `photo`, if there is one."""
        return self._rows.get((key, photo.name, _content(photo)))

    def rows(self, key: str, photos: Iterable[PhotoFile]) -> list[Row]:
        """The rows of `key` that there are, in the order of `photos`."""
        return [row for photo in photos if (row := self.get(key, photo)) is not None]

    def add(self, key: str, photo: PhotoFile, entries: Row) -> None:
        """Append the row of `key` and `photo`, and note when."""
        name = {"key": key, "picture": photo.name, "content": _content(photo)}
        row = {**name, **entries, "written": time.time()}
        line = json.dumps(row, allow_nan=False) + "\n"
        with self._own.open("a") as file:
            file.write(line)
        self._keep(json.loads(line))

    def _keep(self, row: Row) -> None:
        # A run of fewer processes may have measured anew what another's file holds.
        place = row["key"], row["picture"], row.get("content")  # older versions wrote none
        older = self._rows.get(place)
        if older is None or older["written"] <= row["written"]:
            self._rows[place] = row


def _content(photo: PhotoFile) -> str | None:
    try:
        return photo.fingerprint
    except BadImage:
        return None
