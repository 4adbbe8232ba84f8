import copy
import signal
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from silo.training import checkpoints


def test_the_newest_complete_checkpoint_is_found_and_older_ones_pruned(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, {"w": torch.full((2,), float(step))})
    (tmp_path / ".step_00000009.partial").mkdir()
    (tmp_path / "step_00000008").mkdir()
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found[0] == 3 and found[1]["w"].tolist() == [3, 3]
    assert (
        sorted(p.name for p in tmp_path.glob("step_*/state.safetensors"))
        == ["state.safetensors"] * 2
    )


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 1, {"w": torch.ones(100)})
    newest = checkpoints.save(tmp_path, 2, {"w": torch.zeros(100)})
    file = newest / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    found = checkpoints.latest(tmp_path)
    assert found is not None and found[0] == 1


def _train(model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, steps) -> None:
    for step in steps:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        checkpoints.update_average(average, model, step, 0.9)


def _fresh() -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = copy.deepcopy(model).requires_grad_(False)
    return model, average, torch.optim.AdamW(model.parameters(), lr=0.1)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = _fresh()
    _train(*unbroken, range(6))
    first = _fresh()
    _train(*first, range(3))
    checkpoints.save(tmp_path, 3, checkpoints.training_tensors(*first))
    resumed = _fresh()
    found = checkpoints.latest(tmp_path)
    assert found is not None
    checkpoints.restore(found[1], *resumed)
    _train(*resumed, range(3, 6))
    for one, other in zip(unbroken[:2], resumed[:2], strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_kill_in_the_middle_of_saving_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from silo.training import checkpoints\n"
        "for step in range(1, 100000):\n"
        "    checkpoints.save(Path(sys.argv[1]), step, {'w': torch.full((200000,), float(step))})\n"
        "    print(step, flush=True)\n"
    )
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 5:
                process.send_signal(signal.SIGKILL)
                break
    found = checkpoints.latest(tmp_path)
    assert found is not None
    step, tensors = found
    assert step >= 5
    assert torch.equal(tensors["w"], torch.full((200000,), float(step)))
