"""Operators of the Hub that a visitor asks for: found, fetched, checked, and limited in size."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi, constants, scan_cache_dir
from huggingface_hub.errors import (
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from operators.catalog import TASKS
from operators.degradation import Degradation
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound
from operators.latent import LatentOperator, architectures, read_config
from operators.pretrained import CONFIG_NAME, MAX_CONFIG_BYTES, WEIGHTS_NAME
from silo import hub
from silo.hub_commit import retried
from silo.operator_listing import in_cache
from silo.ui.wording import size_in_words

MAX_OPERATOR_BYTES = 500_000_000
MAX_ADDED_BYTES = 5_000_000_000  # of all in the Hub's cache, lest visitors fill the disk
_HOSTS = ("huggingface.co", "hf.co", "www.huggingface.co")
_LINK = re.compile(r"/([^/]+/[^/]+)(?:/(?:tree|blob|commit)/([^/]+).*)?/?")


@dataclass(frozen=True)
class Added:
    """An operator of the Hub: its name with the commit, what it is for, and what it reads."""

    name: str
    task: str
    reads_features: bool


class Adding:
    """Adds operators to the Hub's cache, from where `silo.ui.models.Models` offers them."""

    def __init__(self) -> None:
        """Nothing is being fetched yet."""
        self._fetching = 0  # bytes
        self._counting = threading.Lock()

    def add(self, text: str) -> Added:
        """Fetch and check the operator at a Hub id, ID@REVISION or pasted link.

        Its config.json is fetched first, so that nothing large is that is no operator.

        Raises:
            OperatorError: it is no such text, no operator, too large, damaged, or does not say
                its task and, of a task of its own, the degradation; or there are too many here.
            HubUnavailable: the Hub is out of reach, or failed again and again.
        """
        repo_id, revision = parse_link(text)
        with _hub_errors(repo_id, revision):
            commit, size = _looked_up(repo_id, revision)
            # Visitors must not come by what is open to this machine's token alone.
            folder, commit = hub.snapshot(repo_id, commit, [CONFIG_NAME], token=False)
            config = read_config(folder)
            task, described = config.metadata.get("task"), config.metadata.get("degradation")
            if task is None or (task not in TASKS and described is None):
                raise OperatorFileError(
                    f"{repo_id} does not say which task it is for: ask its author."
                )
            if task not in TASKS and described is not None:
                Degradation.from_dict(described)
            with self._room_for(repo_id, commit, size):
                hub.snapshot(repo_id, commit, [*hub.OPERATOR_FILES], token=False)
                LatentOperator.from_pretrained(folder)
        reads_features = architectures()[config.architecture].needs_features
        return Added(f"{repo_id}@{commit}", task, reads_features)

    @contextmanager
    def _room_for(self, repo_id: str, commit: str, size: int) -> Iterator[None]:
        """Reserve room for `size` bytes of an operator; it is deleted if the block refuses it.

        One that is here already needs no room, and stays.

        Raises:
            OperatorError: those here and those being fetched leave too little.
        """
        with self._counting:
            here = {(each.name, each.commit): each.size for each in in_cache()}
            if (repo_id, commit) in here:
                size = 0
            if size and sum(here.values()) + self._fetching + size > MAX_ADDED_BYTES:
                raise OperatorError(
                    f"{repo_id} has {size_in_words(size)}, and the operators here take up nearly "
                    f"all of the {size_in_words(MAX_ADDED_BYTES)} that this page keeps for them: "
                    "choose one of those, or use the command line."
                )
            self._fetching += size
        try:
            yield
        except OperatorError:
            if size:
                scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(commit).execute()
            raise
        finally:
            with self._counting:
                self._fetching -= size


def parse_link(text: str) -> tuple[str, str]:
    """Return the repository and revision that a Hub id, ID@REVISION or link names.

    Raises:
        OperatorNotFound: it names none; folders of this machine are not for visitors.
    """
    wanted = text.strip()
    if "://" in wanted or wanted.startswith(_HOSTS):
        own = urlsplit(constants.ENDPOINT).netloc
        try:
            url = urlsplit(wanted if "://" in wanted else f"https://{wanted}")
            match = _LINK.fullmatch(url.path) if url.netloc in (*_HOSTS, own) else None
        except ValueError:  # brackets that hold no address
            match = None
        if match is None:
            raise OperatorNotFound("This is no link to a model on the Hub: paste its address.")
        repo_id, revision = match[1], match[2] or "main"
    else:
        repo_id, _, revision = wanted.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise OperatorNotFound("This is no Hub id: write it as owner/name.") from error
    if repo_id.count("/") != 1:
        raise OperatorNotFound("This is no Hub id: write it as owner/name.")
    return repo_id, revision or "main"


@contextmanager
def _hub_errors(repo_id: str, revision: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into those of `Adding.add`."""
    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise OperatorNotFound(
            f"The Hub has no open model {repo_id} at {revision}: check the id on its page."
        ) from error
    # Behind a failing server, a proxy answers with a page where JSON is expected.
    except (httpx2.HTTPError, json.JSONDecodeError) as error:
        raise hub.unavailable(repo_id, revision) from error


def _looked_up(repo_id: str, revision: str) -> tuple[str, int]:
    """Refuse a large download before it begins; return the commit that was looked at, and its size.

    Without network the cache decides: the revision is returned as it is, and 0 bytes to fetch.
    """
    if not hub.reachable():
        return revision, 0
    describe = HfApi(token=False).model_info
    info = retried(lambda: describe(repo_id, revision=revision, files_metadata=True))
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if WEIGHTS_NAME not in sizes or CONFIG_NAME not in sizes:
        raise OperatorFileError(
            f"{repo_id} is no latent operator: it lacks {CONFIG_NAME} or {WEIGHTS_NAME}."
        )
    if sizes[CONFIG_NAME] > MAX_CONFIG_BYTES:
        raise OperatorFileError(
            f"{repo_id} is no latent operator: its {CONFIG_NAME} is larger than 1 MiB."
        )
    size = sum(sizes.get(name, 0) for name in hub.OPERATOR_FILES)
    if size > MAX_OPERATOR_BYTES:
        raise OperatorError(
            f"{repo_id} has {size_in_words(size)}, and this page takes operators of at most "
            f"{size_in_words(MAX_OPERATOR_BYTES)}: use the command line."
        )
    return str(info.sha), size
