"""Tells weights apart that no revision of the Hub names: by the SHA-256 of what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from operators.pretrained import WEIGHTS_NAME
from silo.prior_files import locate, weights_files

if TYPE_CHECKING:  # which fingerprints its autoencoder itself
    from silo.prior import LatentPrior


def weights_fingerprints(prior: LatentPrior, operator: str | Path | None) -> dict[str, str | None]:
    """The fingerprints of "prior" and "operator", None where there is none or a revision.

    Args:
        prior: as it was loaded by its name.
        operator: its folder or Hub id.
    """
    found: dict[str, str | None] = {"prior": None, "operator": None}
    if prior.revision is None:
        folder, _ = locate(prior.name, None, prior.dtype)
        found["prior"] = _fingerprint(weights_files(folder, prior.dtype))
    if operator is not None and Path(operator).is_dir():
        found["operator"] = _fingerprint([Path(operator) / WEIGHTS_NAME])
    return found


def network_fingerprint(network: nn.Module) -> str:
    """The SHA-256 of the weights of a network, their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _fingerprint(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(_file_digest(path, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@cache  # a denoiser takes seconds, and is asked for with every picture
def _file_digest(path: Path, size: int, modified_ns: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
