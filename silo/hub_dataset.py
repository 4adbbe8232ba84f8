"""Fetches the pictures of a dataset repository on the Hub, to be read like folders of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from silo import hub
from silo.decoding import SUFFIXES
from silo.errors import BadRequest

TABLES = (".parquet", ".arrow")
# Describes the pictures that lie beside it, rather than holding them.
TABLE_OF_NAMES = "metadata.parquet"
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

    Args:
        name: "owner/name", or "owner/name@REVISION" with a branch, tag or commit.

    Raises:
        BadRequest: there is no such dataset or revision, or it holds tables and not pictures.
        HubUnavailable: the Hub is out of reach, and the cache does not hold the dataset.
    """
    repo_id, _, revision = name.partition("@")
    revision = revision or "main"
    with _named_errors(repo_id, revision):
        if hub.reachable():
            _refuse_tables(repo_id, _files(repo_id, revision))
        folder, commit = hub.snapshot(repo_id, revision, _WANTED, repo_type="dataset")
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


def _refuse_tables(repo_id: str, files: Iterable[str]) -> None:
    """Refuse a dataset of tables: pictures beside those are illustrations, not the data."""
    for path in map(PurePosixPath, files):
        if path.suffix in TABLES and path.name != TABLE_OF_NAMES:
            raise BadRequest(
                f"the dataset {repo_id} keeps its pictures in tables ({path}), which are not read: "
                "export them to a folder, as by `image.save(...)` for each row of "
                f"`datasets.load_dataset({repo_id!r}, split='train')`, and name the folder instead."
            )


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
