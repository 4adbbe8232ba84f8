"""Fetches the pictures of a dataset repository on the Hub, to be read like folders of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi, cached_assets_path, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from silo import hub, parquet_tables
from silo.decoding import SUFFIXES
from silo.errors import BadRequest

# Describes the pictures that lie beside it, rather than holding them.
_TABLE_OF_NAMES = "metadata.parquet"
_ARROW = ".arrow"
UNPACKED = 1  # to be raised when tables are unpacked otherwise
_SHARD = ".tar"
_WANTED = [
    *(f"*{ending}" for suffix in SUFFIXES for ending in (suffix, suffix.upper())),
    f"*{_SHARD}",
    "*.txt",  # captions
]


@dataclass(frozen=True)
class HubDataset:
    """Pictures from the Hub.

    Attributes:
        repo_id: "owner/name".
        commit: 40 hexadecimal digits.
        folders: of the local cache, those with pictures or tars, for `silo.data.list_photos`.
    """

    repo_id: str
    commit: str
    folders: list[Path]


def fetch_dataset(name: str) -> HubDataset:
    """The pictures, WebDataset tars and captions of a dataset repository, in the local cache.

    Where it keeps its pictures in Parquet tables, these are unpacked beside the cache, and other
    pictures are left alone: they illustrate.

    Args:
        name: "owner/name", or "owner/name@REVISION" with a branch, tag or commit.

    Raises:
        BadRequest: there is no such dataset or revision; it holds no pictures; or it holds Parquet
            tables, and pyarrow is not installed.
        HubUnavailable: the Hub is out of reach, and the cache does not hold the dataset.
    """
    repo_id, _, revision = name.partition("@")
    revision = revision or "main"
    with _named_errors(repo_id, revision):
        in_tables = hub.reachable() and _has_tables(repo_id, _files(repo_id, revision))
        wanted = [*_WANTED, f"*{parquet_tables.SUFFIX}"] if in_tables else _WANTED
        folder, commit = hub.snapshot(repo_id, revision, wanted, repo_type="dataset")
    tables = sorted(path for path in folder.rglob(f"*{parquet_tables.SUFFIX}") if _is_table(path))
    if shards := _unpacked(tables, folder, repo_id, commit):
        return HubDataset(repo_id, commit, shards)
    folders = {
        path.parent
        for path in folder.rglob("*")
        if path.suffix == _SHARD or path.suffix.lower() in SUFFIXES
    }
    if not folders:
        raise BadRequest(
            f"the dataset {repo_id}@{commit} holds no pictures: choose one with "
            f"{', '.join(SUFFIXES)} files or WebDataset {_SHARD} shards."
        )
    return HubDataset(repo_id, commit, sorted(folders))


def _files(repo_id: str, revision: str) -> list[str]:
    try:
        info = HfApi().dataset_info(repo_id, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except httpx2.HTTPError as error:
        raise hub.unavailable(repo_id, revision, "dataset") from error
    return [sibling.rfilename for sibling in info.siblings or ()]


def _is_table(path: PurePath) -> bool:
    """Whether it is a Parquet table, and not one of names alone."""
    return path.suffix == parquet_tables.SUFFIX and path.name != _TABLE_OF_NAMES


def _has_tables(repo_id: str, files: Iterable[str]) -> bool:
    """Whether there are Parquet tables of pictures; an error where they could not be read."""
    paths = [PurePosixPath(file) for file in files]
    if any(map(_is_table, paths)):
        parquet_tables.check_reader()
        return True
    if arrow := [path for path in paths if path.suffix == _ARROW]:
        raise BadRequest(
            f"the dataset {repo_id} keeps its pictures in Arrow files ({arrow[0]}), which are not "
            f"read: try its branch of Parquet tables, {repo_id}@refs/convert/parquet."
        )
    return False


def _unpacked(tables: Iterable[Path], folder: Path, repo_id: str, commit: str) -> list[Path]:
    """The folders of the tars that hold the tables' pictures; those that are there are kept."""
    assets = cached_assets_path(
        "silo",
        namespace=repo_id,
        subfolder=f"{commit}-{UNPACKED}",
        assets_dir=constants.HF_ASSETS_CACHE,
    )
    folders = []
    for table in tables:
        place = table.relative_to(folder).with_suffix("")
        shard = assets / place.with_suffix(_SHARD)
        if not shard.is_file():
            parquet_tables.check_reader()
        if shard.is_file() or parquet_tables.unpack(table, shard, "_".join(place.parts)):
            folders.append(shard.parent)
    return list(dict.fromkeys(folders))


@contextmanager
def _named_errors(repo_id: str, revision: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into one line that says what to do."""
    try:
        yield
    except HFValidationError as error:
        raise BadRequest(f"{repo_id!r} names no dataset: give ORG/NAME[@REVISION].") from error
    except GatedRepoError as error:
        raise BadRequest(
            f"the dataset {repo_id} asks for consent: give it on its page, then run "
            "`hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise BadRequest(
            f"the Hub has no dataset {repo_id}: check the id; if private, run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise BadRequest(
            f"the dataset {repo_id} has no revision {revision!r}: give a branch, a tag or a commit."
        ) from error
