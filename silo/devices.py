"""Chooses device and number format, measures peak memory, makes the seeded generators."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch

from silo.allocation import return_freed_memory
from silo.errors import BadRequest

# The first is the default. CPUs have fast kernels for bfloat16 at most; Apple's GPUs turn pictures
# black in half precision, and know no float64 at all, which is why nothing uses it on the device.
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "cuda": (torch.bfloat16, torch.float16, torch.float32),
    "mps": (torch.float32,),
    "cpu": (torch.float32, torch.bfloat16),
}


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        name: "auto" for the best there is (cuda, then mps, then cpu), or a device such as "cuda:1".

    Raises:
        BadRequest: the name is no device that is usable here.
    """
    available = [kind for kind in DTYPES if kind == "cpu" or _is_available(kind)]
    if name == "auto":
        return torch.device(available[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in available:
        raise BadRequest(
            f"device {name!r} is not usable here: choose auto, {', '.join(available)}."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadRequest(f"device {name!r} does not exist: there are {torch.cuda.device_count()}.")
    return device


def pick_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """The number format the networks run in; latents and pictures are float32 all the same.

    "auto" is float32 on cpu and mps. On cuda it is bfloat16 where the GPU has it, since gradients
    taken through the denoiser underflow in float16, and float16 elsewhere.

    Args:
        device: where the networks run.
        name: "auto", "float32", "bfloat16" or "float16".

    Raises:
        BadRequest: the format is unknown, or not for this device.
    """
    allowed = {dtype_name(dtype): dtype for dtype in DTYPES[device.type]}
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        del allowed["bfloat16"]
    if name == "auto":
        return next(iter(allowed.values()))
    if name not in allowed:
        raise BadRequest(
            f"dtype {name!r} is not for {device.type}: choose auto, {', '.join(allowed)}."
        )
    return allowed[name]


def dtype_name(dtype: torch.dtype) -> str:
    """How options and records name a number format: "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def describe_device(device: torch.device) -> str:
    """What seconds were measured on: a GPU's name, or how many threads of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads > 1)}"


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: allocated on cuda, else resident in the process.

    So far means since the process began or since `reset_peak_memory`.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux; getrusage's figure begins with that of the process's parent
        (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        return int(peak) * 1024
    import resource  # not there on Windows, where everything but this function works

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB


def reset_peak_memory(device: torch.device) -> bool:
    """Start `peak_memory` anew; returns whether that is possible here (cuda, else Linux alone)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident size
    except OSError:
        return False
    return True


def generators(seed: int, samples: int) -> list[torch.Generator]:
    """CPU generators of a batch, sample i seeded with seed + i: each can be repeated alone."""
    return [torch.Generator().manual_seed(seed + i) for i in range(samples)]


def _is_available(kind: str) -> bool:
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
