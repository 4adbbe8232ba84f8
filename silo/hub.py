"""Gets files from the Hugging Face Hub, or from its local cache where the Hub is out of reach."""

from __future__ import annotations

import functools
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    FileMetadataError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)

from silo.errors import HubUnavailable

PROBE_SECONDS = 1.5


@functools.cache
def reachable() -> bool:
    """Whether the Hub answers, asked once a process and known within `PROBE_SECONDS`.

    huggingface_hub itself retries for about half a minute before it gives up. HF_ENDPOINT,
    HF_HUB_OFFLINE and the proxy variables are honoured as the library reads them; with a proxy it
    is the proxy that must answer.
    """
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


def snapshot(repo_id: str, revision: str, allow_patterns: list[str]) -> tuple[Path, str]:
    """A model repository's files in the local cache, downloaded first where the Hub is reachable.

    Args:
        repo_id: "owner/name".
        revision: branch, tag or commit hash.
        allow_patterns: the files wanted, as glob patterns; nothing else is downloaded.

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
            revision=revision,
            allow_patterns=allow_patterns,
            local_files_only=not online,
        )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (
        httpx2.HTTPError,
        LocalEntryNotFoundError,
        FileMetadataError,
        XetDownloadError,
    ) as error:
        raise unavailable(repo_id, revision) from error
    return Path(folder), Path(folder).name


def unavailable(repo_id: str, revision: str) -> HubUnavailable:
    """The error for files that neither the Hub nor the local cache gives."""
    if constants.is_offline_mode():
        reason = "HF_HUB_OFFLINE is set"
    elif reachable():
        reason = f"the download from {constants.ENDPOINT} failed"
    else:
        reason = f"{constants.ENDPOINT} does not answer"
    return HubUnavailable(
        f"{repo_id}@{revision} is not in the local cache and {reason}: "
        f"go online and try again, or run `hf download {repo_id}` beforehand."
    )


def _address(endpoint: str) -> tuple[str, int]:
    """Host and port that a request to the endpoint connects to first: the Hub's, or the proxy's."""
    url = urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
