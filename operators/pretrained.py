"""The two files of a saved latent operator: finding them, reading them strictly, writing them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from httpx2 import HTTPError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor

from operators.download_record import recorded_commit
from operators.errors import OperatorError, OperatorFileError, OperatorNotFound, reason
from operators.files import write_whole

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})
STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16}
ONLY_SAFETENSORS = (
    "only safetensors are loaded, since a pickle can run code; convert the weights to "
    f"{WEIGHTS_NAME} (LatentOperator.save_pretrained writes it)"
)


def locate(
    path_or_repo_id: str | os.PathLike[str], revision: str | None, local_files_only: bool
) -> tuple[Path, str | None]:
    """Return the folder that holds both files, and the commit when they came from the Hub.

    Raises:
        OperatorNotFound: neither a folder nor a Hub repository with both files was found.
        OperatorFileError: it is a file, or holds pickles only.
        OperatorError: a revision was given for a folder.
    """
    name = os.fspath(path_or_repo_id)
    path = Path(name)
    # os.path, unlike Path, takes any text a person may type (empty, too long, with a NUL).
    if os.path.isfile(name):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise OperatorFileError(f"{name!r} is a pickle file: {ONLY_SAFETENSORS}")
        raise OperatorFileError(
            f"{name!r} is a file: pass the folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}"
        )
    if os.path.isdir(name):
        if revision is not None:
            raise OperatorError(f"{name!r} is a folder, which has no revisions: leave revision out")
        require_files(path, [CONFIG_NAME, WEIGHTS_NAME])
        return path, recorded_commit(path)
    if isinstance(path_or_repo_id, str) and name.count("/") == 1 and name[0] not in "/.~":
        return _download(name, revision, local_files_only)
    raise OperatorNotFound(
        f"there is no folder {name!r}: check the path, or name a Hub repository as owner/name"
    )


def require_files(folder: Path, names: Sequence[str]) -> None:
    """Raise OperatorNotFound, or OperatorFileError for pickles, unless `folder` has all `names`."""
    try:
        found = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise OperatorNotFound(
            f"cannot look into the folder {str(folder)!r} ({error.strerror}): check the path"
        ) from error
    missing = [name for name in names if name not in found]
    if not missing:
        return
    pickles = [name for name in found if Path(name).suffix.lower() in PICKLE_SUFFIXES]
    if pickles and WEIGHTS_NAME not in found:
        raise OperatorFileError(
            f"{str(folder)!r} holds only pickle weights ({enumerate_names(pickles)}): "
            f"{ONLY_SAFETENSORS}"
        )
    raise OperatorNotFound(
        f"{str(folder)!r} holds no {' and no '.join(missing)}: it is not a saved latent operator; "
        "check the path or download it again"
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`, a file of at most 1 MiB.

    Raises:
        OperatorFileError: the file cannot be read, is too large, or is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise OperatorFileError(
            f"cannot read {str(path)!r} ({error.strerror}): check its permissions"
        ) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise OperatorFileError(f"{str(path)!r} is larger than 1 MiB: download it again")
    try:
        content = json.loads(raw, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise OperatorFileError(
            f"{str(path)!r} is not JSON ({reason(error)}): download or save it again"
        ) from error
    if not isinstance(content, dict):
        raise OperatorFileError(f"{str(path)!r} must hold a JSON object: download or save it again")
    return content


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read `path` as float32, after comparing its header with the (meta) tensors `expected`.

    Raises:
        OperatorFileError: the file is damaged, does not match `expected`, or holds NaN or infinity.
    """
    again = "download or save it again"
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            names = set(file.keys())
            missing, unexpected = sorted(expected.keys() - names), sorted(names - expected.keys())
            if missing:
                raise OperatorFileError(
                    f"{str(path)!r} lacks {enumerate_names(missing)} of the network in "
                    f"{CONFIG_NAME}: {again}"
                )
            if unexpected:
                raise OperatorFileError(
                    f"{str(path)!r} holds {enumerate_names(unexpected)}, which the network in "
                    f"{CONFIG_NAME} does not have: {again}"
                )
            for name, tensor in expected.items():
                header = file.get_slice(name)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                if shape != tuple(tensor.shape):
                    raise OperatorFileError(
                        f"{name} in {str(path)!r} has the shape {shape}, the network in "
                        f"{CONFIG_NAME} {tuple(tensor.shape)}: {again}"
                    )
                if dtype not in STORED_DTYPES:
                    raise OperatorFileError(
                        f"{name} in {str(path)!r} is stored as {dtype}: store it as F32 or F16"
                    )
            # Copied: what safetensors returns is a view of the mapped file, which may be rewritten.
            weights = {
                name: file.get_tensor(name).to(torch.float32, copy=True) for name in expected
            }
    except (safetensors.SafetensorError, OSError) as error:
        raise OperatorFileError(f"{str(path)!r} is damaged ({reason(error)}): {again}") from error
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise OperatorFileError(
                f"{name} in {str(path)!r} holds values that are not finite: {again}"
            )
    return weights


def write_files(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Write `config` and `weights` (as `dtype`) to `folder`, each aside first and then renamed.

    Raises:
        OperatorError: `dtype` is not float32 or float16, or a weight is not finite in it.
        OperatorFileError: the folder cannot be written.
    """
    if dtype not in STORED_DTYPES.values():
        raise OperatorError(f"weights are stored as float32 or float16, not {dtype}: choose one")
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in weights.items()
    }
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise OperatorError(
                f"{name} is not finite as {dtype}, nothing was saved: train again with a lower "
                "learning rate, or save as float32"
            )
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        packed = safetensors.torch.save(tensors, metadata={"format": "pt"})
        write_whole(folder / WEIGHTS_NAME, packed)
        write_whole(folder / CONFIG_NAME, text.encode())
    except OSError as error:
        raise OperatorFileError(
            f"cannot write to {str(folder)!r} ({error.strerror}): choose another folder"
        ) from error


def shorten(value: object) -> str:
    """Return `repr(value)`, cut to what fits into a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def enumerate_names(names: Sequence[str]) -> str:
    """Return the first three names and how many more there are, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shorten(name) for name in names[:3]) + more


def _download(repo_id: str, revision: str | None, local_files_only: bool) -> tuple[Path, str]:
    """Fetch both files of one commit into the Hub's cache; return their folder and the commit."""
    with download_errors(repo_id, revision):
        config = hf_hub_download(
            repo_id, CONFIG_NAME, revision=revision, local_files_only=local_files_only
        )
        # The cache keeps snapshots/<commit>/<file>. Asking for the weights of that very commit
        # keeps a push between the two downloads from mixing two operators.
        folder = Path(config).parent
        hf_hub_download(
            repo_id, WEIGHTS_NAME, revision=folder.name, local_files_only=local_files_only
        )
    return folder, folder.name


@contextmanager
def download_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn huggingface_hub's errors of a download into OperatorNotFound that says what to do."""
    where = f"{repo_id!r}" if revision is None else f"{repo_id!r} at revision {revision!r}"
    try:
        yield
    except GatedRepoError as error:
        raise OperatorNotFound(
            f"the Hub repository {where} is gated: accept its terms on its page, then run "
            "'hf auth login'"
        ) from error
    except RevisionNotFoundError as error:
        raise OperatorNotFound(
            f"the Hub repository {repo_id!r} has no revision {revision!r}: check it on its page"
        ) from error
    except RepositoryNotFoundError as error:
        raise OperatorNotFound(
            f"{where} is neither a folder here nor a Hub repository you may read: check the name, "
            "or run 'hf auth login' if it is private"
        ) from error
    except HFValidationError as error:
        raise OperatorNotFound(
            f"{where} is neither a folder here nor a valid Hub repository name: check the spelling"
        ) from error
    except LocalEntryNotFoundError as error:
        raise OperatorNotFound(
            f"{where} is neither a folder here nor in the Hub's cache, and the Hub was not "
            "reached: check the network, or pass a folder"
        ) from error
    except EntryNotFoundError as error:
        raise OperatorNotFound(
            f"the Hub repository {where} lacks {CONFIG_NAME} or {WEIGHTS_NAME}: {ONLY_SAFETENSORS}"
        ) from error
    except (OSError, HTTPError) as error:
        raise OperatorNotFound(
            f"downloading {where} failed ({reason(error)}): check the network and the disk, then "
            "try again"
        ) from error


def _reject_constant(name: str) -> float:
    """Refuse the NaN and Infinity that Python's JSON reader would otherwise accept."""
    raise ValueError(f"{name} is not a JSON value")
