"""Lists the trained operators: the shelf's, those in the Hub's cache, a Hub collection's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from huggingface_hub import CacheNotFound, HfApi, constants, hf_hub_download, scan_cache_dir

from operators.catalog import SHELF, shelf
from operators.download_record import recorded_commit
from operators.errors import OperatorError
from operators.latent import OperatorConfig, read_config
from operators.pretrained import CONFIG_NAME, WEIGHTS_NAME, download_errors
from silo.hub import CARD_NAME, OPERATOR_FILES
from silo.hub_commit import retried
from silo.model_card import read_license


@dataclass(frozen=True)
class ListedOperator:
    """A trained operator and where it is.

    Attributes:
        source: "shelf", "cache" (of the Hub) or "hub".
        name: the folder's name on the shelf, else the repository's.
        commit: the Hub's, where it came from there.
        task: what it was trained for, None where it does not say so.
        prior: whose latent space it works in, as above.
        architecture: the kind of network.
        size: bytes of its files.
        license: the identifier in its card, None where that gives none.
    """

    source: Literal["shelf", "cache", "hub"]
    name: str
    commit: str | None
    task: str | None
    prior: str | None
    architecture: str
    size: int
    license: str | None


def on_shelf(folder: Path = SHELF) -> Iterator[ListedOperator]:
    """The operators in the folders of `folder`."""
    for entry in shelf(folder):
        commit = recorded_commit(entry.folder)
        yield _listed("shelf", entry.folder.name, commit, entry.folder)


def in_cache() -> Iterator[ListedOperator]:
    """The operators in the Hub's cache on this machine, every commit that is whole."""
    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda each: each.repo_id):
        if repository.repo_type != "model":
            continue
        for revision in sorted(repository.revisions, key=lambda each: each.commit_hash):
            folder = revision.snapshot_path
            if not all((folder / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME)):
                continue
            try:
                yield _listed("cache", repository.repo_id, revision.commit_hash, folder)
            except OperatorError:
                continue  # another program's model: the cache is shared


def in_collection(slug: str, report: Callable[[OperatorError], None]) -> Iterator[ListedOperator]:
    """The operators in a collection on the Hub, from their config.json and cards alone.

    Args:
        slug: the collection's, such as "owner/title-id".
        report: is told of each item that cannot be read, such as one that was deleted or is gated.

    Raises:
        OperatorNotFound: there is no such collection, or the Hub failed.
    """
    api = HfApi()
    with download_errors(slug, None):
        items = retried(lambda: api.get_collection(slug)).items
    for item in items:
        if item.item_type != "model":
            continue
        try:
            with download_errors(item.item_id, None):
                describe = partial(api.model_info, item.item_id, files_metadata=True)
                info = retried(describe)
                if info.library_name != "silo":
                    continue
                folder = Path(hf_hub_download(info.id, CONFIG_NAME, revision=info.sha)).parent
            config = read_config(folder)
        except OperatorError as error:
            report(error)
            continue
        sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
        size = sum(sizes.get(name, 0) for name in OPERATOR_FILES)
        license = None if info.card_data is None else info.card_data.get("license")
        license = license if isinstance(license, str) else None
        yield _describe("hub", info.id, info.sha, config, size, license)


def _listed(
    source: Literal["shelf", "cache"], name: str, commit: str | None, folder: Path
) -> ListedOperator:
    files = [path for path in (folder / each for each in OPERATOR_FILES) if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return _describe(
        source, name, commit, read_config(folder), size, read_license(folder / CARD_NAME)
    )


def _describe(
    source: Literal["shelf", "cache", "hub"],
    name: str,
    commit: str | None,
    config: OperatorConfig,
    size: int,
    license: str | None,
) -> ListedOperator:
    task, prior = config.metadata.get("task"), config.metadata.get("prior")
    return ListedOperator(source, name, commit, task, prior, config.architecture, size, license)
