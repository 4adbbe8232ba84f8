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
from silo.prior_files import weights_files

if TYPE_CHECKING:  # which fingerprints its autoencoder itself
    from silo.prior import LatentPrior


def weights_fingerprints(prior: LatentPrior, operator: str | Path | None) -> dict[str, str | None]:
    """The fingerprints of "prior" and "operator", None where there is none or a revision.

    Args:
        prior: of files, those of its networks, which are asked for again and again; of a pipeline,
            the networks themselves.
        operator: its folder or Hub id.
    """
    found: dict[str, str | None] = {"prior": None, "operator": None}
    if prior.revision is None:
        if prior.folder is None:
            found["prior"] = prior.networks_hash
        else:
            found["prior"] = files_fingerprint(weights_files(prior.folder, prior.dtype))
    if operator is not None and Path(operator).is_dir():
        found["operator"] = files_fingerprint([Path(operator) / WEIGHTS_NAME])
    return found


def network_fingerprint(network: nn.Module) -> str:
    """The SHA-256 of the weights of a network, their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def files_fingerprint(files: Iterable[Path]) -> str:
    """The SHA-256 of the content of files, one after the other."""
    status = [(path, path.stat()) for path in files]
    return _sha256(tuple((path, each.st_size, each.st_mtime_ns) for path, each in status))


@cache  # a large denoiser takes seconds, and is asked for with every picture
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Their sizes and times tell when the content changes."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
