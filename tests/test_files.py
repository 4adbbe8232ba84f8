import os
from pathlib import Path

import pytest

from operators.files import replacing, write_whole


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_whole_and_is_readable_by_everybody(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with replacing(path, durable=durable) as aside:
        aside.touch(0o600)
        aside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o644
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_what_fails_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as aside:
        aside.write_bytes(b"half")
        raise KeyboardInterrupt
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", b"content")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.json", "folder"]
    assert path.read_bytes() == b"old"


def test_a_file_of_two_writers_is_the_last_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as first, replacing(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"


def test_what_is_durable_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr("os.replace", lambda *paths: (done.append("rename"), rename(*paths)))
    write_whole(tmp_path / "a", b"content", durable=True)
    assert done == ["sync", "rename", "sync"]
    write_whole(tmp_path / "b", b"content")
    assert done[3:] == ["rename"]
