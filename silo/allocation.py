"""Keep freed memory in the process, which on glibc is several times faster, or return it."""

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Stop malloc from returning large blocks to the system; whether that was possible.

    PyTorch on a CPU allocates and frees tens of megabytes for each activation. By default glibc
    maps and unmaps every such block, and the kernel clears its pages again each time.
    """
    mallopt = _from_glibc("mallopt")
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
    return all(mallopt(name, value) == 1 for name, value in settings.items())


def return_freed_memory() -> None:
    """Return freed memory to the system once, on glibc, so that what is in use can be measured."""
    malloc_trim = _from_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _from_glibc(name: str) -> Any:
    """A function of glibc; None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), name, None)
