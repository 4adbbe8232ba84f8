"""Converts the paper authors' checkpoints, which are pickles in a zip, to operators of ours."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from operators.catalog import SD_PRIOR, get_task
from operators.convolutional import PaperCNN
from operators.errors import OperatorFileError, OperatorNotFound, reason
from operators.files import write_whole
from operators.latent import LatentOperator
from operators.pretrained import enumerate_names
from operators.readout import ReadoutOperator
from silo.errors import CannotSave
from silo.hub import CARD_NAME

MAX_FILE_BYTES = 1 << 29  # a readout operator takes 55 MB, three times that with its optimizer
MAX_FILES = 100
# What zipfile raises where a zip, or a member of it, is damaged, cut off, encrypted or unusual.
_UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)
# What the operators were trained with, in [0, 1] units (paper: section 5, U(0, 0.1) and U(0, 0.04)
# in [-1, 1] units).
READOUT_NOISE_RANGE, CNN_NOISE_RANGE = [0.0, 0.05], [0.0, 0.02]

CARD = """---
library_name: silo
pipeline_tag: image-to-image
license: other
license_name: none
---
# SILO operator: {task}, for the prior `{prior}`, by the paper's authors

Converted by `python -m silo operators import-official` from `{member}` of the checkpoints that the
authors of [SILO](https://arxiv.org/abs/2501.11746) released without a licence: for use on this
machine, not for publication.
"""


@dataclass(frozen=True)
class Checkpoint:
    """What a file of the release was trained for, by its name."""

    task: str
    prior: str
    folder: str


# Readout operators belong to the prior whose features they read: Realistic Vision for the faces of
# FFHQ, Stable Diffusion for COCO. The CNN reads the latent alone, which both priors share.
CHECKPOINTS = {
    "gb_rg_ffhq": Checkpoint("gaussian_blur", "rv51", "rv51_gaussian_blur"),
    "ip_rg_ffhq": Checkpoint("inpainting_box", "rv51", "rv51_inpainting_box"),
    "rand_ip_rg_ffhq": Checkpoint("inpainting_free", "rv51", "rv51_inpainting_free"),
    "jpeg_rg_ffhq": Checkpoint("jpeg_q10", "rv51", "rv51_jpeg_q10"),
    "sr_4_rg_ffhq": Checkpoint("super_resolution_x4", "rv51", "rv51_super_resolution_x4"),
    "sr_8_rg_ffhq": Checkpoint("super_resolution_x8", "rv51", "rv51_super_resolution_x8"),
    "ip_rg_coco": Checkpoint("inpainting_box", "sd15", "sd15_inpainting_box"),
    "sr_8_cnn_ffhq": Checkpoint("super_resolution_x8", SD_PRIOR, "cnn_super_resolution_x8"),
}
# The authors' later CNN, of another architecture.
UNSUPPORTED = {"sr_4_cnn_ffhq": "the later CNN ('preserve'), whose architecture is not here"}


def import_official(archive: Path, out: Path) -> Iterator[str]:
    """Convert every checkpoint in the release's archive, one folder in `out` each.

    Nothing in the archive is run or unpacked to disk: pickles are read as tensors only.

    Args:
        archive: `trained_ckpt.zip` of the paper's repository.
        out: where the operators' folders go.

    Yields:
        A sentence for each file: which task it is, or why it was left out.

    Raises:
        OperatorNotFound: there is no such file.
        OperatorFileError: it is no such archive; a checkpoint is damaged, unsafe or has another
            layout; or `out` cannot be written. What was converted before stays.
        CannotSave: a model card cannot be written.
    """
    try:
        release = zipfile.ZipFile(archive)
    except FileNotFoundError as error:
        raise OperatorNotFound(f"there is no file {str(archive)!r}: check its name") from error
    except _UNREADABLE as error:
        raise OperatorFileError(
            f"{str(archive)!r} is no readable zip file ({reason(error)}): download "
            "trained_ckpt.zip again"
        ) from error
    with release:
        members = [m for m in release.infolist() if m.filename.endswith((".pt", ".pth"))]
        if not 1 <= len(members) <= MAX_FILES:
            raise OperatorFileError(
                f"{str(archive)!r} holds {len(members)} checkpoints, not the release's: "
                "download trained_ckpt.zip again"
            )
        for member in members:
            yield _import_member(release, member, out)


def _import_member(release: zipfile.ZipFile, member: zipfile.ZipInfo, out: Path) -> str:
    name = member.filename
    stem = PurePosixPath(name).stem.removesuffix("_operator")
    if stem in UNSUPPORTED:
        return f"{name}: left out: {UNSUPPORTED[stem]}"
    if stem not in CHECKPOINTS:
        return f"{name}: left out: not a file of the paper's release"
    checkpoint = CHECKPOINTS[stem]
    operator = convert(read_checkpoint(_read(release, member), name), name)
    task = get_task(checkpoint.task)
    readout = isinstance(operator, ReadoutOperator)
    operator.metadata = {
        "task": task.name,
        "degradation": task.degradation.to_dict(),
        "prior": checkpoint.prior,
        "eta": task.eta,
        "noise_range": READOUT_NOISE_RANGE if readout else CNN_NOISE_RANGE,
        "imported_from": name,
    }
    folder = out / checkpoint.folder
    operator.save_pretrained(folder)
    card = CARD.format(task=task.name, prior=checkpoint.prior, member=name)
    try:
        write_whole(folder / CARD_NAME, card.encode())
    except OSError as error:
        raise CannotSave(
            f"{folder / CARD_NAME} cannot be written ({error.strerror}): choose another --out."
        ) from error
    count = sum(parameter.numel() for parameter in operator.parameters())
    return (
        f"{name}: {task.name} for {checkpoint.prior}, {operator.architecture} of {count:,} "
        f"parameters: {folder}"
    )


def read_checkpoint(content: bytes, name: str) -> dict[str, Tensor]:
    """The state dict in a file of the release: bare, or under the key `aggregation_network`.

    Args:
        content: a file by torch.save, in its zip format.
        name: what to call it in messages.

    Raises:
        OperatorFileError: it is damaged, holds more than tensors and plain values, or too much.
    """
    again = "download trained_ckpt.zip again"
    try:
        # Checked before torch reads it: members of this inner zip might be bombs.
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            size = sum(member.file_size for member in file.infolist())
    except _UNREADABLE as error:
        raise OperatorFileError(f"{name!r} is no file of PyTorch's: {again}") from error
    if size > MAX_FILE_BYTES:
        raise OperatorFileError(f"{name!r} unpacks to {size:,} bytes, which is too much: {again}")
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OperatorFileError(
            f"{name!r} holds something else than tensors, which could run code: it is not read"
        ) from error
    except (RuntimeError, ValueError, TypeError, KeyError, EOFError, AttributeError) as error:
        raise OperatorFileError(f"{name!r} is damaged ({type(error).__name__}): {again}") from error
    state = saved.get("aggregation_network", saved) if isinstance(saved, dict) else saved
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise OperatorFileError(f"{name!r} holds no state dict of an operator: {again}")
    return dict(state)


def convert(state: Mapping[str, Tensor], name: str) -> LatentOperator:
    """The operator with the weights of a state dict in the authors' layout.

    Ours carry the authors' names. A readout operator whose head reads one channel more has a mask.

    Raises:
        OperatorFileError: names or shapes are not those of the paper's operators.
    """
    head = state.get("output_head.0.weight")
    with torch.device("meta"):
        if "mixing_weights" in state:
            masked = head is not None and head.ndim == 4 and head.shape[1] == 386
            operator: LatentOperator = ReadoutOperator(mask=masked)
        else:
            operator = PaperCNN()
    expected: dict[str, Any] = operator.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        what = f"lacks {enumerate_names(missing)}" if missing else f"has {enumerate_names(extra)}"
        raise OperatorFileError(
            f"{name!r} is not the paper's {operator.architecture}, it {what}: check the file"
        )
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise OperatorFileError(
                f"{key} in {name!r} has the shape {tuple(state[key].shape)}, the paper's "
                f"{operator.architecture} {tuple(tensor.shape)}: check the file"
            )
    # Copied once their shapes are known: a pickle may describe huge views of a small storage.
    weights = {key: tensor.to(torch.float32, copy=True) for key, tensor in state.items()}
    operator.load_state_dict(weights, assign=True)
    return operator.eval()


def _read(release: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The member's bytes; the size its header claims is not relied on."""
    try:
        with release.open(member) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except _UNREADABLE as error:
        raise OperatorFileError(
            f"{member.filename!r} cannot be read ({reason(error)}): download trained_ckpt.zip again"
        ) from error
    if len(content) > MAX_FILE_BYTES:
        raise OperatorFileError(
            f"{member.filename!r} is too large: download trained_ckpt.zip again"
        )
    return content
