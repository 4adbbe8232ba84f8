"""Random numbers for different purposes that do not repeat one another's."""

import hashlib

import torch


def stream(purpose: str, *numbers: int) -> torch.Generator:
    """A generator on the CPU for one purpose, and for one of many cases of it.

    torch seeds a generator on the CPU with the lowest 32 bits of a number alone, so that seeds
    cannot be kept apart by adding to them what is larger. Here they are hashed.
    """
    name = " ".join([purpose, *map(str, numbers)])
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))
