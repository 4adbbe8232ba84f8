import re
from pathlib import Path

import pytest
import torch

from silo.allocation import keep_freed_memory
from silo.devices import generators, peak_memory, pick_device, pick_dtype, reset_peak_memory
from silo.errors import BadRequest

STATUS = Path("/proc/self/status")
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be on a machine of so many NVIDIA GPUs, or on a Mac."""

    def pretend(*, gpus=0, mac=False, bfloat16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mac)

    return pretend


def test_auto_takes_the_fastest_device(machine):
    machine()
    assert pick_device() == CPU
    machine(mac=True)
    assert pick_device() == MPS
    machine(gpus=1)
    assert pick_device() == CUDA
    assert pick_device("cpu") == CPU


def test_a_device_that_is_not_there_is_refused_with_the_choices(machine):
    machine(gpus=2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    for name in ("cuda:2", "mps", "meta", "toaster"):
        with pytest.raises(BadRequest, match=name):
            pick_device(name)
    machine()
    with pytest.raises(BadRequest, match="choose auto, cpu"):
        pick_device("cuda")


def test_default_dtypes(machine):
    machine(gpus=1)
    assert pick_dtype(CPU) == pick_dtype(MPS) == torch.float32
    assert pick_dtype(CUDA) == torch.bfloat16
    machine(gpus=1, bfloat16=False)
    assert pick_dtype(CUDA) == torch.float16


def test_dtypes_asked_for(machine):
    machine(gpus=1, bfloat16=False)
    assert pick_dtype(CPU, "bfloat16") == torch.bfloat16
    assert pick_dtype(CUDA, "float32") == torch.float32
    for device, name in ((CUDA, "bfloat16"), (MPS, "float16"), (CPU, "float16"), (CPU, "int8")):
        with pytest.raises(BadRequest, match=name):
            pick_dtype(device, name)


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells the peak a second way")
def test_peak_memory_is_in_bytes():
    def kernels_peak():
        return int(re.findall(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[0]) * 1024

    assert peak_memory(CPU) == pytest.approx(kernels_peak(), rel=0.05)


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux resets the peak of a process")
def test_the_peak_of_memory_can_be_started_anew():
    keep_freed_memory()
    assert reset_peak_memory(CPU)
    before = peak_memory(CPU)
    blocks = [torch.ones(1 << 20) for _ in range(50)]
    high = peak_memory(CPU)
    del blocks
    assert peak_memory(CPU) == high >= before + (190 << 20)
    assert reset_peak_memory(CPU)
    assert peak_memory(CPU) < high - (150 << 20)


def test_each_sample_of_a_batch_can_be_drawn_alone():
    together = [torch.randn(4, generator=g) for g in generators(5, 3)]
    alone = [torch.randn(4, generator=generators(seed, 1)[0]) for seed in (5, 6, 7)]
    assert torch.equal(torch.stack(together), torch.stack(alone))
    assert len({tuple(noise.tolist()) for noise in together}) == 3
