import subprocess
import sys
from pathlib import Path

import pytest
import torch

from silo.devices import generators, pick_device, pick_dtype
from silo.errors import BadRequest

ROOT = Path(__file__).parent.parent
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


# In a process of its own, smaller than its parent, and without what other tests have left.
FIFTY_BLOCKS = """
import psutil
import torch
from silo.allocation import keep_freed_memory
from silo.devices import peak_memory, reset_peak_memory

cpu = torch.device("cpu")
keep_freed_memory()
assert reset_peak_memory(cpu)
before, resident = peak_memory(cpu), psutil.Process().memory_info().rss
blocks = [torch.ones(1 << 20) for _ in range(50)]
high = peak_memory(cpu)
del blocks
freed = peak_memory(cpu)
assert reset_peak_memory(cpu)
print(resident, before, high, freed, peak_memory(cpu))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux resets the peak")
def test_the_peak_of_memory_can_be_started_anew():
    run = subprocess.run(
        [sys.executable, "-c", FIFTY_BLOCKS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    resident, before, high, freed, after = map(int, run.stdout.split())
    assert before == pytest.approx(resident, rel=0.05)
    assert freed == pytest.approx(high, rel=0.001)
    assert high >= before + (190 << 20)
    assert after < high - (150 << 20)


def test_each_sample_of_a_batch_can_be_drawn_alone():
    together = [torch.randn(4, generator=g) for g in generators(5, 3)]
    alone = [torch.randn(4, generator=generators(seed, 1)[0]) for seed in (5, 6, 7)]
    assert torch.equal(torch.stack(together), torch.stack(alone))
    assert len({tuple(noise.tolist()) for noise in together}) == 3
