"""What happens when memory runs out: the same work is done again in less of it, or not at all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from silo.errors import OutOfMemory

if TYPE_CHECKING:
    from silo.prior import LatentPrior

T = TypeVar("T")
Event = TypeVar("Event")


@dataclass(frozen=True)
class Rung:
    """One way for a prior to need less memory; it stays for the pictures that follow.

    Attributes:
        take: changes the prior; returns False where it cannot, or need not any more.
        notice: what it costs, a sentence for the user.
    """

    take: Callable[[LatentPrior], bool]
    notice: str


# SDPA's kernels on cuda and cpu hold no attention matrix that slices could make smaller.
SLICED_ATTENTION = Rung(
    lambda prior: prior.device.type == "mps" and prior.slice_attention(),
    "Memory ran out: attention is computed one head at a time, which is slower.",
)
GRADIENT_CHECKPOINTING = Rung(
    lambda prior: prior.checkpoint_gradients(),
    "Memory ran out: activations are computed a second time for gradients, which is slower.",
)
OFFLOADING = Rung(
    lambda prior: prior.device.type == "cuda" and prior.offload(),
    "Memory ran out: networks wait in the CPU's memory while others work, which is slower.",
)
SLICED_AUTOENCODER = Rung(
    lambda prior: prior.slice_autoencoder(),
    "Memory ran out: pictures are encoded and decoded one at a time.",
)
TILED_AUTOENCODER = Rung(  # the last, since it alone changes the picture
    lambda prior: prior.tile_autoencoder(),
    "Memory ran out: large pictures are encoded and decoded in tiles, whose tones may differ.",
)
EVALUATING = (SLICED_ATTENTION, OFFLOADING)
DIFFERENTIATING = (SLICED_ATTENTION, GRADIENT_CHECKPOINTING, OFFLOADING)


def autoencoding(pictures: int) -> tuple[Rung, ...]:
    """The rungs of encoding or decoding so many pictures at once."""
    rungs = OFFLOADING, TILED_AUTOENCODER
    return rungs if pictures == 1 else (SLICED_AUTOENCODER, *rungs)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether there was too little memory: cuda has a class for it, the others have words."""
    words = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")  # the last is cuBLAS's
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def within_memory(prior: LatentPrior, rungs: Sequence[Rung], work: Callable[[], T]) -> T:
    """Returns work(), which is repeated after each rung that it takes for it to fit.

    Raises:
        OutOfMemory: it does not fit after the last rung.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        _save(prior, rungs)  # past the clause: the error, which holds the work's tensors, is gone


def in_batches(
    prior: LatentPrior,
    rungs: Sequence[Rung],
    samples: int,
    work: Callable[[int, int], Generator[Event, None, T]],
) -> Generator[Event, None, list[T]]:
    """Runs work(first, size) for batches of the samples that are as large as fit, then in less.

    Args:
        prior: what the work runs on.
        rungs: what is tried when a single sample does not fit.
        samples: how many there are.
        work: does `size` samples from `first` on, as if alone; what it yields is handed on, that of
            an attempt that fails included.

    Returns:
        What each batch returned, in order.

    Raises:
        OutOfMemory: a single sample does not fit after the last rung.
    """
    done, first, size = [], 0, samples
    while first < samples:
        size = min(size, samples - first)
        try:
            done.append((yield from work(first, size)))
            first += size
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if size > 1:
            size = (size + 1) // 2
            _release(prior.device)
        else:
            _save(prior, rungs)
    return done


def _save(prior: LatentPrior, rungs: Sequence[Rung]) -> None:
    """Frees what nothing refers to, and takes the first rung that is left."""
    _release(prior.device)
    for rung in rungs:
        if rung.take(prior):
            prior.notices.append(rung.notice)
            return
    raise OutOfMemory(
        f"{prior.device} ran out of memory, and nothing that saves some is left: choose a "
        "smaller working size or picture, the preset quick, bfloat16 or another device."
    )


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
