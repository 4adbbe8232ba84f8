"""What `hf download --local-dir` notes beside the files it fetched: their commit and checksums."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

RECORDS = Path(".cache", "huggingface", "download")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class DownloadRecord:
    """Where a file came from.

    Attributes:
        commit: the 40 hexadecimal digits of the repository's commit.
        checksum: the Hub's for the content: SHA-256 of a large file, git's SHA-1 of another.
    """

    commit: str
    checksum: str


def read_records(folder: Path) -> dict[str, DownloadRecord]:
    """The records of the files in `folder`, by their paths in it; none for a folder of one's own.

    The format is huggingface_hub's: lines with the commit, the checksum and the time.
    """
    records, root = {}, folder / RECORDS
    for path in sorted(root.rglob("*.metadata")):
        lines = path.read_text(errors="replace").splitlines()
        if len(lines) >= 2 and _COMMIT.fullmatch(lines[0]):
            name = path.relative_to(root).as_posix().removesuffix(".metadata")
            records[name] = DownloadRecord(lines[0], lines[1])
    return records


def recorded_commit(folder: Path) -> str | None:
    """The commit that `folder` holds; None without records, or when it is a mix or was changed."""
    commits = {record.commit for record in read_records(folder).values()}
    return commits.pop() if len(commits) == 1 and not changed_files(folder) else None


def changed_files(folder: Path) -> list[str]:
    """The names of files in `folder` that are not what the Hub held when they were downloaded."""
    return [
        name
        for name, record in read_records(folder).items()
        if (folder / name).is_file() and _checksum(folder / name, record) != record.checksum
    ]


def files_without_record(folder: Path) -> list[str]:
    """The paths of the files in `folder` that did not come from the Hub."""
    notes = folder / RECORDS.parent
    files = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    names = [path.relative_to(folder).as_posix() for path in files if notes not in path.parents]
    records = read_records(folder)
    return [name for name in names if name not in records]


def _checksum(path: Path, record: DownloadRecord) -> str:
    """The checksum of `path`, of the kind on record."""
    content = path.read_bytes()
    if _SHA256.fullmatch(record.checksum):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
