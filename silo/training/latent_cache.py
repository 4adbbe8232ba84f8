"""Latents of training pictures, clean and measured, computed once and kept on disk in shards.

Encoding is almost all of the time that training an operator takes. A cache lies in a folder that is
named by the hash of everything it depends on; its shards appear under their names only when they
are complete on disk, so that an interrupted run goes on where it stopped.

Kept is the mode of the autoencoder's posterior, not its moments: the restoration encodes the
measurement by its mode, and the mode is also the posterior's median, so an operator trained with L1
on samples of the posterior would tend to the same answer, only more slowly.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from operators.degradation import Degradation
from operators.files import replacing
from operators.function import FUNCTION
from operators.pixel import measure
from silo.errors import Stopped
from silo.prior import LatentPrior
from silo.streams import stream
from silo.training.interruption import signals_postponed
from silo.training.pictures import TrainingPictures
from silo.training.processes import Processes

FORMAT = 3
SHARD = 64  # pictures
ENCODED_AT_ONCE = 8
WORKERS = 4  # threads that read, cut and degrade, in each process
LEFT_SECONDS = 3600  # writing a shard takes seconds

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class LatentPairs:
    """A batch of training examples.

    Attributes:
        clean: (B, C, h, w) E(x).
        measured: (B, C, h, w) E(A(x) + n).
        noise_sigma: (B,) the standard deviation of each n, in [0, 1] units.
        mask: (B, 1, H, W), 1 = known, or None where A has none.
    """

    clean: Tensor
    measured: Tensor
    noise_sigma: Tensor
    mask: Tensor | None

    def to(self, device: torch.device) -> LatentPairs:
        """The same on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return LatentPairs(
            self.clean.to(device), self.measured.to(device), self.noise_sigma.to(device), mask
        )


class LatentCache:
    """Pairs (E(x), E(A(x) + n)) on disk: `draws` of them for each picture, once `encode` has run.

    Attributes:
        key: the hash of everything that the pairs depend on.
        side: of the pictures, in pixels.
        draws: how many measurements there are of each picture.
        seconds: how long encoding took in this run, 0 for a warm cache.
        encoded: how many pictures, clean and measured, were encoded in this run.
    """

    def __init__(
        self,
        folder: Path,
        prior: LatentPrior,
        pictures: TrainingPictures,
        degradation: Degradation,
        *,
        name: str,
        noise_range: tuple[float, float],
        draws: int,
        processes: Processes,
    ) -> None:
        """Say what the cache in `folder` is to hold; nothing is encoded or written yet.

        Args:
            folder: of all caches; each has a folder of its own inside.
            prior: whose autoencoder encodes.
            pictures: the clean pictures.
            degradation: A; the noise level of each measurement is drawn from `noise_range`.
            name: of the degradation, for people who look into the folder.
            noise_range: (low, high) of the noise levels, in [0, 1] units.
            draws: measurements of each picture, each with its own noise (and mask).
            processes: those that train together.
        """
        self.side, self.draws = pictures.resolution, draws
        self.seconds, self.encoded = 0.0, 0
        self._prior, self._pictures, self._degradation = prior, pictures, degradation
        self._noise_range, self._processes = noise_range, processes
        self._described_clean = {
            "format": FORMAT,
            "autoencoder": prior.autoencoder_hash(),
            **pictures.describe(),
        }
        self._described_measured = {
            **self._described_clean,
            # The noise level is what `noise_range` says; that of the description is for restoring.
            "degradation": replace(degradation, noise_sigma=0.0).to_dict(),
            "noise_range": list(noise_range),
            "draws": draws,
        }
        self.key = _key(self._described_measured)
        self._clean = _Shards(folder / f"clean-{_key(self._described_clean)[:16]}")
        self._measured = _Shards(folder / f"{name}-{self.key[:16]}")

    def encode(self) -> None:
        """Encode what the cache lacks, shared among the processes.

        Raises:
            Stopped: a signal asked to stop; complete shards are kept.
        """
        started = time.monotonic()
        with signals_postponed() as interruption, torch.no_grad():

            def encode(images: Tensor) -> Tensor:
                if interruption.signal_number is not None:
                    raise Stopped(
                        "stopped while encoding; the same command goes on from there.",
                        interruption.signal_number,
                    )
                self.encoded += len(images)
                return self._prior.encode(images).half().cpu().contiguous()

            workers = max(1, min(WORKERS, (os.cpu_count() or 1) // self._processes.count))
            make = partial(_clean_shard, self._pictures, encode=encode, workers=workers)
            self._fill(self._clean.folder, self._described_clean, make)
            make = partial(
                _measured_shard,
                self._pictures,
                self._degradation,
                self._noise_range,
                self.draws,
                encode=encode,
                # Nobody has promised that a function of one's own can run in several at once.
                workers=1 if self._degradation.kind == FUNCTION else workers,
            )
            self._fill(self._measured.folder, self._described_measured, make)
        self.seconds = time.monotonic() - started if self.encoded else 0.0

    def __len__(self) -> int:
        """How many pairs there are: pictures times draws."""
        return len(self._pictures) * self.draws

    def pairs(self, picks: Tensor) -> LatentPairs:
        """The pairs of the numbers `picks` (B,), from 0 to len - 1, as float32."""
        has_mask = self._degradation.needs_mask
        examples = [divmod(pick, self.draws) for pick in picks.tolist()]
        clean = torch.stack([self._clean.row("clean", i) for i, _ in examples])
        rows = {
            key: torch.stack([self._measured.row(key, i)[draw] for i, draw in examples])
            for key in ("measured", "noise_sigma", *(("mask",) if has_mask else ()))
        }
        mask = _unpack(rows["mask"], self.side) if has_mask else None
        return LatentPairs(clean.float(), rows["measured"].float(), rows["noise_sigma"], mask)

    def _fill(
        self, folder: Path, description: dict[str, Any], make: Callable[[range], dict[str, Tensor]]
    ) -> None:
        """Write the shards that `folder` lacks, those of this process's number."""
        folder.mkdir(parents=True, exist_ok=True)
        processes, count = self._processes, len(self._pictures)
        if processes.is_main:
            (folder / "cache.json").write_text(json.dumps(description, indent=1))
            _remove_left(folder)
        shards = [range(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]
        own = range(processes.rank, len(shards), processes.count)
        missing = [number for number in own if not _is_complete(_shard(folder, number))]
        for number in tqdm(missing, desc=f"encoding {folder.name}", unit="shard"):
            path = _shard(folder, number)
            if _is_complete(path):  # by another run, in the meantime
                continue
            tensors = make(shards[number])
            # Runs that share the cache may write the same shard at once.
            with replacing(path, durable=True) as aside:
                save_file(tensors, aside)
        processes.wait()


def _clean_shard(
    pictures: TrainingPictures, indices: range, *, encode: Callable[[Tensor], Tensor], workers: int
) -> dict[str, Tensor]:
    coming = _ahead(_batches(indices), lambda each: _crops(pictures, each), workers)
    with closing(coming) as batches:
        return {"clean": torch.cat([encode(images) for images in batches])}


def _measured_shard(
    pictures: TrainingPictures,
    degradation: Degradation,
    noise_range: tuple[float, float],
    draws: int,
    indices: range,
    *,
    encode: Callable[[Tensor], Tensor],
    workers: int,
) -> dict[str, Tensor]:
    def prepare(each: range) -> dict[str, Tensor]:
        return _measurements(pictures, each, degradation, noise_range, draws)

    parts: dict[str, list[Tensor]] = {}
    with closing(_ahead(_batches(indices), prepare, workers)) as batches:
        for batch in batches:
            images = batch.pop("images").flatten(0, 1).split(ENCODED_AT_ONCE)
            latents = torch.cat([encode(some) for some in images])
            batch["measured"] = latents.unflatten(0, (-1, draws))
            for key, tensor in batch.items():
                parts.setdefault(key, []).append(tensor)
    return {key: torch.cat(tensors) for key, tensors in parts.items()}


def _crops(pictures: TrainingPictures, indices: range) -> Tensor:
    return torch.stack([pictures.crop(index) for index in indices])


def _measurements(
    pictures: TrainingPictures,
    indices: range,
    degradation: Degradation,
    noise_range: tuple[float, float],
    draws: int,
) -> dict[str, Tensor]:
    """Measurements (B, draws, 3, H, W) at full size, not encoded, with noise levels and masks."""
    operator = degradation.operator()
    side, (low, high) = pictures.resolution, noise_range
    images, sigmas, masks = [], [], []
    for index in indices:
        picture = pictures.crop(index)[None]
        for draw in range(draws):
            generator = stream("measurement", pictures.seed, index, draw)
            sigma = low + (high - low) * float(torch.rand((), generator=generator))
            mask = operator.draw_mask(side, side, generator)
            y = measure(picture, degradation.with_noise(sigma), generator, mask)
            images.append(operator.to_full_size(y)[0])
            sigmas.append(sigma)
            if mask is not None:
                masks.append(_pack(mask[0]))
    result = {"images": torch.stack(images), "noise_sigma": torch.tensor(sigmas)}
    if masks:
        result["mask"] = torch.stack(masks)
    return {key: value.unflatten(0, (-1, draws)) for key, value in result.items()}


def _pack(mask: Tensor) -> Tensor:
    """(1, H, W) of 0 and 1 as bits."""
    return torch.from_numpy(np.packbits(mask.bool().flatten().numpy()))


def _unpack(bits: Tensor, side: int) -> Tensor:
    """Undo `_pack` for (B, bytes): (B, 1, side, side)."""
    pixels = np.unpackbits(bits.numpy(), axis=1, count=side * side)
    return torch.from_numpy(pixels).float().view(len(bits), 1, side, side)


def _key(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _batches(indices: range) -> list[range]:
    return [indices[i : i + ENCODED_AT_ONCE] for i in range(0, len(indices), ENCODED_AT_ONCE)]


def _ahead(
    items: Iterable[Item], prepare: Callable[[Item], Prepared], workers: int
) -> Generator[Prepared, None, None]:
    """`prepare` items in threads, as many ahead as there are, so that the encoder never waits.

    To be closed by who reads it: left to the garbage collector, it may end in one of the threads
    that it waits for.
    """
    with ThreadPoolExecutor(workers) as pool:
        coming: deque[Future[Prepared]] = deque()
        for item in items:
            coming.append(pool.submit(prepare, item))
            if len(coming) > workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _remove_left(folder: Path) -> None:
    """Remove what runs that were killed have left; what is young, a run may be writing."""
    for path in folder.glob("*.partial"):
        with suppress(FileNotFoundError):  # another run has removed or renamed it
            if time.time() - path.stat().st_mtime > LEFT_SECONDS:
                path.unlink()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def _is_complete(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt"):  # compares the header with the size of the file
            return True
    except SafetensorError:  # damaged by the file system: made again
        return False


class _Shards:
    """Rows of the tensors in a folder of shards, read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[int, Any] = {}

    def row(self, name: str, index: int) -> Tensor:
        number, row = divmod(index, SHARD)
        if number not in self._open:
            self._open[number] = safe_open(_shard(self.folder, number), "pt").__enter__()
        return self._open[number].get_slice(name)[row]
