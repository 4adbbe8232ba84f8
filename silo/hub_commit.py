"""Writes to a Hub repository: everything in one commit over a known parent, or nothing at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2  # what huggingface_hub speaks HTTP with
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from operators.errors import reason
from silo.errors import HubUnavailable, PushRefused, SiloError

RETRY_WAITS = (1.0, 4.0)  # seconds; huggingface_hub itself retries uploads, but no commit
TRANSIENT_STATUSES = (429, 500, 502, 503, 504)
Returned = TypeVar("Returned")


def check_rights(repo_id: str) -> None:
    """Ask the Hub, before work that is to be pushed, whether the push will be allowed.

    Of a repository that exists it knows; for one that does not, its owner and the kind of token
    are compared, which leaves open what a fine-grained token may create.

    Raises:
        PushRefused: nobody is logged in, or not with the right to write there.
        HubUnavailable: the Hub failed again and again.
    """
    api = HfApi()
    with explained(repo_id):
        validate_repo_id(repo_id)
        if get_token() is None:
            raise _unknown_user(repo_id)
        try:
            retried(lambda: api.auth_check(repo_id, write=True))
            return
        except RepositoryNotFoundError:
            user = retried(api.whoami)
        writable = [user["name"]]
        writable += [org["name"] for org in user["orgs"] if org.get("roleInOrg") != "read"]
        if repo_id.partition("/")[0] not in writable:
            raise _forbidden(repo_id, f"{user['name']} may write to {', '.join(writable)}")
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise _forbidden(repo_id, "the token is for reading only")


def commit_files(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    private: bool = False,
    space: bool = False,
    hardware: str | None = None,
    folders: Sequence[str] = (),
) -> str:
    """Make a repository hold `files`, in one commit; where that fails, it stays as it was.

    A repository that does not exist is created first, and removed again when the commit fails.
    Files that are there already, unchanged, are not sent; if all are, no commit is made.

    Args:
        repo_id: "owner/name".
        files: the local file, or its content, for each path in the repository.
        message: the commit's title.
        private: create it private; one that exists must be private already.
        space: a Gradio Space rather than a model repository.
        hardware: what a Space that is created shall run on; left to the Hub by default.
        folders: folders of the repository that shall hold nothing but `files`.

    Returns:
        The commit's address.

    Raises:
        PushRefused: no rights, an invalid name or card, or somebody else has pushed meanwhile.
        HubUnavailable: the Hub failed again and again; the message says so where a repository that
            was created could not be removed either.
    """
    api, kind = HfApi(), "space" if space else "model"
    describe = api.space_info if space else api.model_info
    with explained(repo_id):
        info = _find(describe, repo_id)
        if info is not None and private and not info.private:
            raise PushRefused(
                f"everybody can read {repo_id}: make it private on its page, or leave --private out"
            )
        created = False

        def create() -> None:
            # From the first request on it may be there, whatever is answered: an answer can be
            # lost. Only a request that is repeated may thus find the repository there.
            nonlocal created
            repeated, created = created, True
            try:
                api.create_repo(
                    repo_id,
                    private=private,
                    repo_type=kind,
                    space_sdk="gradio" if space else None,
                    space_hardware=hardware,  # pyright: ignore[reportArgumentType]
                    exist_ok=repeated,
                )
            except HfHubHTTPError as error:
                created = repeated or _is_transient(error)
                raise

        try:
            if info is None:
                retried(create)
                info = retried(lambda: describe(repo_id))
            parent = info.sha
            there = {sibling.rfilename for sibling in info.siblings or ()}
            stale = [p for p in sorted(there - files.keys()) if p.partition("/")[0] in folders]

            def commit() -> str:
                # Made afresh for each attempt: if the Hub committed and only its answer was lost,
                # nothing differs any more, and the address of that commit is returned.
                additions = [CommitOperationAdd(path, file) for path, file in files.items()]
                deletions = [CommitOperationDelete(path) for path in stale]
                return api.create_commit(
                    repo_id,
                    [*additions, *deletions],
                    commit_message=message,
                    repo_type=kind,
                    parent_commit=parent,
                ).commit_url

            return retried(commit)
        except BaseException:
            if created:
                _withdraw(api, repo_id, kind)
            raise


def retried(call: Callable[[], Returned]) -> Returned:
    """`call()`, again after a while where the connection or the server fails."""
    for wait in RETRY_WAITS:
        try:
            return call()
        except (httpx2.HTTPError, RuntimeError, json.JSONDecodeError) as error:
            if not _is_transient(error):
                raise
        time.sleep(wait)
    return call()


def _find(describe: Callable[[str], Returned], repo_id: str) -> Returned | None:
    """What the Hub says of the repository; None where there is none, or none for us to see."""
    try:
        return retried(lambda: describe(repo_id))
    except RepositoryNotFoundError:
        return None


def _withdraw(api: HfApi, repo_id: str, kind: str) -> None:
    """Delete the repository that was just created, unless it holds a commit of somebody's.

    Raises:
        HubUnavailable: that failed, too.
    """
    try:
        if len(retried(lambda: api.list_repo_commits(repo_id, repo_type=kind))) == 1:
            retried(lambda: api.delete_repo(repo_id, repo_type=kind, missing_ok=True))
    except RepositoryNotFoundError:
        return  # it never came to be
    except (httpx2.HTTPError, json.JSONDecodeError) as error:
        raise HubUnavailable(
            f"this push failed, and {repo_id}, which it created, may be left on the Hub, empty "
            f"({reason(error)}): delete it on its page, or push again later"
        ) from error


def _is_transient(error: Exception) -> bool:
    cause = error.__cause__ if isinstance(error, RuntimeError) else error
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code in TRANSIENT_STATUSES
    # Behind a failing server, a proxy answers with a page where JSON is expected.
    return isinstance(cause, httpx2.TransportError | json.JSONDecodeError)


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn huggingface_hub's errors of a push into one line that says what to do."""
    try:
        yield
    except SiloError:
        raise
    except HFValidationError as error:
        raise PushRefused(f"{repo_id!r} is no name of a repository: give ORG/NAME") from error
    except (httpx2.HTTPError, RuntimeError, ValueError, OSError) as error:
        # An upload's failure comes as a RuntimeError around the Hub's answer.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, HfHubHTTPError):
            raise _explain_status(repo_id, cause) from error
        if isinstance(cause, httpx2.HTTPError | json.JSONDecodeError):
            raise HubUnavailable(
                f"{constants.ENDPOINT} failed ({reason(cause)}); {repo_id} is as it was: "
                "push again later"
            ) from error
        if isinstance(error, ValueError):
            raise PushRefused(f"the Hub refuses this push to {repo_id}: {error}") from error
        raise


def _explain_status(repo_id: str, error: HfHubHTTPError) -> SiloError:
    """The error for an answer of the Hub that is a refusal, or a failure of its own."""
    status = error.response.status_code
    said = error.server_message or f"status {status}"
    if status == 401:
        return _unknown_user(repo_id)
    if status in (402, 403):
        return _forbidden(repo_id, said)
    if status in (409, 412):
        return PushRefused(
            f"somebody else has changed {repo_id} meanwhile; nothing was pushed: look at its "
            "newest commit, then push again"
        )
    if status in TRANSIENT_STATUSES:
        return HubUnavailable(
            f"{constants.ENDPOINT} failed ({said}); {repo_id} is as it was: push again later"
        )
    return PushRefused(f"the Hub refuses this push to {repo_id}: {said}")


def _unknown_user(repo_id: str) -> PushRefused:
    return PushRefused(
        f"the Hub does not know who pushes to {repo_id}: run `hf auth login`, or set HF_TOKEN"
    )


def _forbidden(repo_id: str, reason: str) -> PushRefused:
    return PushRefused(
        f"you may not write to {repo_id} ({reason}): use a repository of your own and a token with "
        "the right to write"
    )
