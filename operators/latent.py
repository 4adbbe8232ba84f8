"""The base of every latent operator H_theta: its interface and its configuration."""

from __future__ import annotations

import abc
import inspect
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from operators.errors import OperatorError, OperatorFileError
from operators.pretrained import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    enumerate_names,
    locate,
    read_json_object,
    read_weights,
    require_files,
    shorten,
    write_files,
)

FORMAT_VERSION = 1
MAX_PARAMETERS = 1 << 28
_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True)
class OperatorConfig:
    """What `config.json` of an operator says.

    Attributes:
        architecture: a key of `architectures()`.
        parameters: the constructor arguments of that class.
        metadata: what the operator was trained for; see `check_metadata`.
    """

    architecture: str
    parameters: dict[str, Any]
    metadata: dict[str, Any]


class LatentOperator(nn.Module, abc.ABC):
    """A learned degradation in latent space: H_theta(E(x)) = E(A(x) + n) (arXiv 2501.11746).

    Attributes:
        architecture: the name of the class in `config.json`.
        needs_features: whether `forward` reads the denoiser's decoder features.
        needs_sigma_embedding: whether `forward` reads `sigma_embedding` instead of `noise_sigma`.
        config: the constructor's arguments; `type(self)(**config)` builds the same network.
        metadata: what the operator was trained for; saved with it. See `check_metadata`.
        latent_channels: channels C of the latents.
        uses_mask: whether `forward` reads the mask; an operator that does not ignores it.
        revision: the commit of the Hub repository it was loaded from, else None.
    """

    architecture: ClassVar[str]
    needs_features: ClassVar[bool]
    needs_sigma_embedding: ClassVar[bool]

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Keep the (JSON-able) constructor arguments: `latent_channels`, perhaps `mask`, others."""
        super().__init__()
        self.config: dict[str, Any] = dict(config)
        self.metadata: dict[str, Any] = {}
        self.latent_channels: int = self.config["latent_channels"]
        self.uses_mask: bool = self.config.get("mask", False)
        self.revision: str | None = None

    @abc.abstractmethod
    def forward(
        self,
        z: Tensor,
        noise_sigma: Tensor,
        *,
        mask: Tensor | None = None,
        features: Sequence[Tensor] | None = None,
        time_embedding: Tensor | None = None,
        sigma_embedding: Tensor | None = None,
    ) -> Tensor:
        """Predict the latent of the measurement from the latent of the clean picture.

        Args:
            z: clean latents (B, C, h, w).
            noise_sigma: (B,) noise level of each measurement, in [0, 1] units.
            mask: pixel mask (B or 1, 1, H, W), 1 = known; H and W the same multiple of h and w.
            features: the denoiser's decoder features, each (B, C_i, h_i, w_i).
            time_embedding: the denoiser's embedding of the timestep, (B, E), or None for none.
            sigma_embedding: (B, E), that embedding at "timestep" (2 noise_sigma / 0.1) 999.

        Returns:
            Latents (B, C, h, w).

        Raises:
            OperatorError: an input is missing or has the wrong shape.
        """

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write `config.json` and `model.safetensors`, never leaving either half written.

        Args:
            folder: made if it does not exist; other files in it are left alone.
            dtype: what the weights are stored as, torch.float32 or torch.float16.

        Raises:
            OperatorError: the weights are not finite (in `dtype`), or the metadata is malformed.
            OperatorFileError: the folder cannot be written.
        """
        content = {
            "format_version": FORMAT_VERSION,
            "architecture": self.architecture,
            "config": self.config,
            "metadata": check_metadata(self.metadata),
        }
        write_files(Path(folder), content, self.state_dict(), dtype)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load an operator from a folder, or else from a repository of the Hugging Face Hub.

        Names, shapes and sizes are compared with the network that `config.json` describes before
        any weight is read; the weights become float32 on the CPU, in evaluation mode.

        Args:
            path_or_repo_id: a folder with `config.json` and `model.safetensors`, or "owner/name".
            revision: branch, tag or commit of the repository; folders have none.
            local_files_only: look into the Hub's cache only.

        Raises:
            OperatorNotFound: there is no such folder, repository, revision or file, or no network.
            OperatorFileError: a file is damaged, malformed, not finite, or of another architecture.
        """
        folder, commit = locate(path_or_repo_id, revision, local_files_only)
        config = read_config(folder)
        network_class = architectures()[config.architecture]
        if not issubclass(network_class, cls):
            raise OperatorFileError(
                f"{str(folder)!r} holds the architecture {config.architecture!r}, which is not "
                f"{cls.__name__}: load it with LatentOperator.from_pretrained"
            )
        operator = _build(network_class, config, folder / CONFIG_NAME)
        weights = read_weights(folder / WEIGHTS_NAME, operator.state_dict())
        operator.load_state_dict(weights, strict=True, assign=True)
        operator.metadata = config.metadata
        operator.revision = commit
        return operator.eval()

    def _check_inputs(self, z: Tensor, noise_sigma: Tensor, mask: Tensor | None) -> None:
        """Raise OperatorError unless `z`, `noise_sigma` and, if it is read, `mask` fit together."""
        channels = self.latent_channels
        if z.ndim != 4 or z.shape[1] != channels:
            raise OperatorError(
                f"this operator takes latents (B, {channels}, h, w), not {tuple(z.shape)}: choose "
                "an operator that was trained for this prior"
            )
        batch, _, height, width = z.shape
        if noise_sigma.shape != (batch,):
            raise OperatorError(
                f"noise_sigma must be ({batch},), one a latent, not {tuple(noise_sigma.shape)}"
            )
        if not self.uses_mask:
            return
        if mask is None:
            raise OperatorError("this operator was trained with a mask: pass mask=(B, 1, H, W)")
        fits = (
            mask.ndim == 4
            and mask.shape[0] in (1, batch)
            and mask.shape[1] == 1
            and mask.shape[2] > 0
            and mask.shape[2] % height == 0
            and mask.shape[2] * width == mask.shape[3] * height
        )
        if not fits:
            raise OperatorError(
                f"the mask must be ({batch}, 1, H, W) with H and W the same multiple of {height} "
                f"and {width}, not {tuple(mask.shape)}"
            )

    @staticmethod
    def _check_embedding(name: str, embedding: Tensor | None, z: Tensor, width: int) -> Tensor:
        """Return `embedding` as precise as `z`; raise OperatorError unless it is (B, width)."""
        wanted = (z.shape[0], width)
        if embedding is None:
            raise OperatorError(f"this operator reads the prior's {name}: pass it, {wanted}")
        if embedding.shape != wanted:
            raise OperatorError(
                f"{name} must be {wanted}, not {tuple(embedding.shape)}: take it from the prior "
                "that the operator was trained with"
            )
        return embedding.to(z)


Network = TypeVar("Network", bound=LatentOperator)


def architectures() -> dict[str, type[LatentOperator]]:
    """Return the network classes that `config.json` may name, by `architecture`."""
    # Imported here because these modules derive their classes from the base above.
    from operators.convolutional import CompactCNN, PaperCNN
    from operators.readout import ReadoutOperator, ResidualReadoutOperator

    networks = (ReadoutOperator, ResidualReadoutOperator, PaperCNN, CompactCNN)
    return {network.architecture: network for network in networks}


def read_config(folder: str | os.PathLike[str]) -> OperatorConfig:
    """Read and check `config.json` in `folder`, without reading the weights.

    Raises:
        OperatorNotFound: the folder or the file does not exist.
        OperatorFileError: the file is malformed, or names an unknown architecture.
    """
    require_files(Path(folder), [CONFIG_NAME])
    path = Path(folder) / CONFIG_NAME
    content = read_json_object(path)
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise OperatorFileError(
            f"{str(path)!r} has format_version {shorten(version)}, this program reads "
            f"{FORMAT_VERSION}: update the program, or save the operator again"
        )
    known = {"format_version", "architecture", "config", "metadata"}
    if content.keys() != known:
        raise OperatorFileError(
            f"{str(path)!r} must hold exactly {', '.join(sorted(known))}, not "
            f"{enumerate_names(sorted(content))}: save the operator again"
        )
    architecture, parameters = content["architecture"], content["config"]
    classes = architectures()
    if not isinstance(architecture, str) or architecture not in classes:
        raise OperatorFileError(
            f"{str(path)!r} names the unknown architecture {shorten(architecture)}: known are "
            f"{', '.join(classes)}; update the program, or save the operator again"
        )
    wanted = list(inspect.signature(classes[architecture]).parameters)
    if not isinstance(parameters, dict) or sorted(parameters) != sorted(wanted):
        raise OperatorFileError(
            f"'config' in {str(path)!r} must be an object with exactly {', '.join(wanted)}: "
            "save the operator again"
        )
    if not isinstance(content["metadata"], dict):
        raise OperatorFileError(f"'metadata' in {str(path)!r} must be an object: save it again")
    try:
        metadata = check_metadata(content["metadata"])
    except OperatorError as error:
        raise OperatorFileError(f"{str(path)!r}: {error}; correct it or save it again") from error
    return OperatorConfig(architecture, parameters, metadata)


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Check what is known about an operator and return a JSON-able copy.

    Known keys, all optional; further keys are kept as long as they are JSON:
        task: the task's name; see `is_task_name`.
        degradation: `Degradation.to_dict()`.
        prior: name of the prior whose latents (and features) it was trained on.
        eta: recommended consistency scale, above 0.
        rmse: root mean squared error per latent element on held-out latents, above 0.
        noise_range: [low, high] of noise_sigma in training, in [0, 1] units.

    Raises:
        OperatorError: a value has the wrong type or range, or is not JSON.
    """
    try:
        copy = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise OperatorError(f"the metadata must be finite JSON values: {error}") from error
    checks = {
        "task": ("a name of letters, digits, _ and -", is_task_name),
        "degradation": ("an object", lambda value: isinstance(value, dict)),
        "prior": ("a name", _is_name),
        "eta": ("a number above 0", lambda value: _is_number(value) and value > 0),
        "rmse": ("a number above 0", lambda value: _is_number(value) and value > 0),
        "noise_range": ("[low, high] with 0 <= low <= high", _is_range),
    }
    for key, (wanted, accepts) in checks.items():
        if key in copy and not accepts(copy[key]):
            raise OperatorError(f"metadata {key!r} must be {wanted}, not {shorten(copy[key])}")
    return copy


def is_task_name(name: object) -> bool:
    """Whether a task may be called so: it becomes the name of files, and anybody may choose it.

    Up to 100 ASCII letters, digits, _ and -, of which the first is a letter or digit.
    """
    return isinstance(name, str) and _TASK_NAME.fullmatch(name) is not None


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """Return `value`; raise OperatorError naming it unless it is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise OperatorError(f"{name} must be an integer from {low} to {high}, not {shorten(value)}")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return `value`; raise OperatorError naming it unless it is a bool."""
    if not isinstance(value, bool):
        raise OperatorError(f"{name} must be true or false, not {shorten(value)}")
    return value


def check_groups(groups: object, widths: Iterable[int]) -> int:
    """Return the number of GroupNorm groups; raise OperatorError unless it divides all widths."""
    count = check_integer("groups", groups, 1, 1024)
    for width in widths:
        if width % count:
            raise OperatorError(
                f"groups={count} does not divide the width {width}: set groups to a divisor of it"
            )
    return count


def load_operator(name: str | os.PathLike[str]) -> LatentOperator:
    """Load the operator of a folder, or of a Hub id that may end in "@" and a revision.

    Raises:
        OperatorNotFound, OperatorFileError: as `LatentOperator.from_pretrained`.
    """
    if Path(name).is_dir():  # whose own name may have an "@"
        return LatentOperator.from_pretrained(name)
    repository, _, revision = str(name).partition("@")
    return LatentOperator.from_pretrained(repository, revision=revision or None)


def _build(network_class: type[Network], config: OperatorConfig, path: Path) -> Network:
    """Build the network without memory for its weights (meta device)."""
    try:
        with torch.device("meta"):
            operator = network_class(**config.parameters)
    except OperatorError as error:
        raise OperatorFileError(f"{str(path)!r}: {error}; correct it or save it again") from error
    count = sum(parameter.numel() for parameter in operator.parameters())
    if count > MAX_PARAMETERS:
        raise OperatorFileError(
            f"{str(path)!r} describes {count:,} parameters, more than the {MAX_PARAMETERS:,} that "
            "are loaded: correct its 'config'"
        )
    return operator


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_number(end) for end in value)
        and 0 <= value[0] <= value[1]
    )
