"""Gets files from the Hugging Face Hub or its local cache; publishes and fetches operators."""

from __future__ import annotations

import functools
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    FileMetadataError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from tqdm.auto import tqdm  # the base that huggingface_hub asks for

from operators.download_record import changed_files, files_without_record, read_records
from operators.errors import OperatorFileError
from operators.latent import LatentOperator
from operators.pretrained import CONFIG_NAME, WEIGHTS_NAME, download_errors, enumerate_names
from silo.errors import BadRequest, HubUnavailable, PushRefused
from silo.hub_commit import commit_files, retried

PROBE_SECONDS = 1.5
REASK_SECONDS = 30
CARD_NAME = "README.md"
EXAMPLE_NAME = "example.png"  # what a card may show
NO_REPOSITORY = "FOLDER"  # what a card's command names as long as the operator has none
OPERATOR_FILES = (CONFIG_NAME, WEIGHTS_NAME, CARD_NAME)

Report = Callable[[int, int], None]  # bytes that are here, bytes in all files begun so far
_report: ContextVar[Report | None] = ContextVar("report", default=None)


def reachable() -> bool:
    """Whether the Hub answers: asked at most every `REASK_SECONDS`, known within `PROBE_SECONDS`.

    huggingface_hub itself retries for about half a minute before it gives up. HF_ENDPOINT,
    HF_HUB_OFFLINE and the proxy variables are honoured as the library reads them; with a proxy it
    is the proxy that must answer.
    """
    return reachable_during(int(time.monotonic() // REASK_SECONDS))


@functools.lru_cache(maxsize=1)
def reachable_during(_period: int) -> bool:
    """What `reachable` says, for the period of `REASK_SECONDS` that it is asked in."""
    if constants.is_offline_mode():
        return False
    address = _address(constants.ENDPOINT)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=PROBE_SECONDS).close()
        except OSError:
            return
        answered.set()

    # A thread, since no time-out bounds the look-up of the name; when late it ends by itself.
    probe = threading.Thread(target=connect, name="hub-probe", daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return answered.is_set()


def snapshot(
    repo_id: str,
    revision: str,
    allow_patterns: list[str],
    *,
    repo_type: str = "model",
    token: Literal[False] | None = None,
) -> tuple[Path, str]:
    """A repository's files in the local cache, downloaded first where the Hub is reachable.

    Args:
        repo_id: "owner/name".
        revision: branch, tag or commit hash.
        allow_patterns: the files wanted, as glob patterns; nothing else is downloaded.
        repo_type: "model" or "dataset".
        token: False asks as a stranger; None with the environment's or the login's token.

    Returns:
        The folder and the 40-digit commit hash it holds.

    Raises:
        HubUnavailable: the Hub is out of reach, or failed midway, and the cache lacks the files.
        RepositoryNotFoundError: huggingface_hub's own; no such repository, or it is not open to us.
        RevisionNotFoundError: huggingface_hub's own.
    """
    online = reachable()
    try:
        folder = snapshot_download(
            repo_id,
            repo_type=repo_type,
            revision=revision,
            allow_patterns=allow_patterns,
            local_files_only=not online,
            token=token,
            tqdm_class=_reporting_bar(_report.get()),
        )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (
        httpx2.HTTPError,
        LocalEntryNotFoundError,
        FileMetadataError,
        XetDownloadError,
    ) as error:
        raise unavailable(repo_id, revision, repo_type) from error
    return Path(folder), Path(folder).name


@contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Tell `report`, from several threads, what `snapshot` downloads inside the block."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def _reporting_bar(report: Report | None) -> type[tqdm] | None:
    """The kind of bar to download with; None for huggingface_hub's own, on the terminal."""
    if report is None:
        return None

    class Bar(tqdm):
        def __init__(self, *args: Any, unit: str = "it", **kwargs: Any) -> None:
            super().__init__(*args, unit=unit, **{**kwargs, "disable": True})
            self._counts_bytes = unit == "B"  # there is one of the files, too

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0  # a disabled bar does not count
            if self._counts_bytes:
                report(int(self.n), int(self.total or 0))

    return Bar


def unavailable(repo_id: str, revision: str, repo_type: str = "model") -> HubUnavailable:
    """The error for files that neither the Hub nor the local cache gives."""
    if reachable():
        reason, remedy = f"the download from {constants.ENDPOINT} failed", "try again"
    else:
        reason, remedy = _out_of_reach()
    kind = "" if repo_type == "model" else f" --repo-type {repo_type}"
    return HubUnavailable(
        f"{repo_id}@{revision} is not in the local cache and {reason}: "
        f"{remedy}, or run `hf download {repo_id}{kind}` beforehand."
    )


def require_online(purpose: str) -> None:
    """Raise HubUnavailable, naming `purpose`, unless the Hub can be reached."""
    if reachable():
        return
    reason, remedy = _out_of_reach()
    raise HubUnavailable(f"cannot {purpose}: {reason}; {remedy}.")


def _out_of_reach() -> tuple[str, str]:
    """Why the Hub cannot be reached, and what to do about it."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set", "unset it and try again"
    return f"{constants.ENDPOINT} does not answer", "go online and try again"


def push_operator(
    folder: Path, repo_id: str, *, private: bool = False, card: bytes | None = None
) -> str:
    """Publish a trained operator: one commit of its two files and its card, which names `repo_id`.

    The folder stays as it is.

    Args:
        folder: `config.json`, `model.safetensors`, the README.md of `silo.model_card`, and the
            picture that this may show.
        repo_id: "owner/name", created where it does not exist.
        private: create it private; one that exists must be private already.
        card: in place of the folder's README.md.

    Returns:
        The commit's address.

    Raises:
        OperatorError: the operator does not load; nothing has left this machine.
        PushRefused: it has no card or may not be published, or the Hub refuses.
        HubUnavailable: the Hub is out of reach, or failed; the repository is as it was.
    """
    metadata = _load(folder).metadata
    if "imported_from" in metadata:
        raise PushRefused(
            f"the weights in {folder} are the paper's authors', who gave them no licence: keep "
            "them to yourself, and publish operators of your own"
        )
    if not (folder / CARD_NAME).is_file():
        raise PushRefused(
            f"{folder} has no {CARD_NAME}: write one, as `silo train-operator` does, that says "
            "what the operator was trained on and under which licence it is"
        )
    require_online(f"push to {repo_id}")
    files: dict[str, Path | bytes] = {name: folder / name for name in OPERATOR_FILES}
    place, published = f"--operator {NO_REPOSITORY}", f"--operator {repo_id}"
    card = (folder / CARD_NAME).read_bytes() if card is None else card
    files[CARD_NAME] = card.replace(place.encode(), published.encode())
    if (folder / EXAMPLE_NAME).is_file():
        files[EXAMPLE_NAME] = folder / EXAMPLE_NAME
    title = f"Upload the operator for {metadata['task']} on {metadata['prior']}"
    return commit_files(repo_id, files, title, private=private)


def pull_operator(repo_id: str, folder: Path, *, revision: str | None = None) -> str:
    """Download an operator into `folder`, which holds a checked one afterwards, or what it held.

    Its commit and checksums are recorded where `hf download` records them.

    Args:
        repo_id: "owner/name".
        folder: made if it does not exist; an older download of this repository is replaced.
        revision: branch, tag or commit; resolved to a commit before anything is downloaded.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        OperatorNotFound: there is no such repository, revision or file, or the download failed.
        OperatorFileError: what arrived is damaged or no operator.
        BadRequest: `folder` holds something else: files that were changed or are not from the Hub,
            or another repository's operator.
        HubUnavailable: the Hub is out of reach.
    """
    _check_all_from_hub(folder)
    require_online(f"pull {repo_id}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Deeper than the shelf looks, and on the same disk, so that renaming is all that is left to do.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as aside:
        arrived = Path(aside) / folder.name
        with download_errors(repo_id, revision):
            commit = retried(lambda: HfApi().model_info(repo_id, revision=revision)).sha
            _check_same_repository(repo_id, folder)
            wanted = [*OPERATOR_FILES, EXAMPLE_NAME]
            retried(
                lambda: snapshot_download(
                    repo_id, revision=commit, allow_patterns=wanted, local_dir=arrived
                )
            )
        verify_operator(arrived)
        if folder.exists():
            _check_all_from_hub(folder)  # still: the download took its time
            folder.rename(Path(aside) / "replaced")
        arrived.rename(folder)
    return str(commit)


def _check_all_from_hub(folder: Path) -> None:
    """Raise BadRequest if replacing `folder` would lose something that is only there."""
    own = [*changed_files(folder), *files_without_record(folder)]
    if own or folder.is_file():
        names = enumerate_names(own or [folder.name])
        raise BadRequest(
            f"{folder} would be replaced, but not all of it is from the Hub ({names}): move that "
            "away, or pull into another --local_dir"
        )


def _check_same_repository(repo_id: str, folder: Path) -> None:
    """Raise BadRequest if `folder` holds a commit that is not of this repository.

    What `hf download` records names the commit alone, so the Hub is asked whether it is one here.
    """
    for commit in sorted({record.commit for record in read_records(folder).values()}):
        try:
            retried(lambda: HfApi().model_info(repo_id, revision=commit))  # noqa: B023
        except RevisionNotFoundError as error:
            raise BadRequest(
                f"{folder} holds another repository's operator (commit {commit[:12]}): pull "
                f"into another --local_dir, such as {folder.with_name(repo_id.replace('/', '_'))}"
            ) from error


def verify_operator(folder: Path) -> LatentOperator:
    """Load the operator in `folder` strictly, and compare its files with the Hub's checksums.

    Raises:
        OperatorError: it is damaged, incomplete, does not say what it is for, or was changed.
    """
    if changed := changed_files(folder):
        raise OperatorFileError(
            f"{', '.join(changed)} in {str(folder)!r} is not what the Hub holds: download it again"
        )
    return _load(folder)


def _load(folder: Path) -> LatentOperator:
    """The operator in `folder`; raises OperatorError unless it is whole and says what it is for."""
    operator = LatentOperator.from_pretrained(folder)
    if "task" not in operator.metadata or "prior" not in operator.metadata:
        raise OperatorFileError(
            f"{str(folder / CONFIG_NAME)!r} does not say its task and prior: train the operator "
            "again, or ask its author"
        )
    return operator


def _address(endpoint: str) -> tuple[str, int]:
    """Host and port that a request to the endpoint connects to first: the Hub's, or the proxy's."""
    url = urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
