"""Muon beside AdamW: what one step does to each kind of weight, and that training resumes."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from silo.training.captions import build_tokenizer
from silo.training.denoiser import DenoiserTraining, TextToLatent
from silo.training.loop import TrainingLoop
from silo.training.muon import MOMENTUM, Muon, MuonAdamW, orthogonal

RATE = 0.1


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # On diffusers' networks, too, the convolutions' memory is laid out like that.
        convolution = nn.Conv2d(4, 6, 3)
        convolution.weight.data = convolution.weight.data.to(memory_format=torch.channels_last)
        self.convolution, self.linear = convolution, nn.Linear(24, 5)
        self.matrices = [self.convolution.weight, self.linear.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.convolution(inputs).flatten(1))


def loss(model: nn.Module, step: int) -> Tensor:
    inputs = torch.randn(32, 4, 4, 4, generator=torch.Generator().manual_seed(step))
    return model(inputs).square().mean()


def test_a_step_is_orthogonal_and_as_long_as_one_of_adamw() -> None:
    model = Network()
    before = copy.deepcopy(model)
    optimizer = MuonAdamW(list(model.parameters()), model.matrices, RATE, (0.9, 0.99), 0.0)
    loss(model, 0).backward()
    optimizer.step()
    for weight, old in zip(model.matrices, before.matrices, strict=True):
        assert weight.grad is not None
        gradient = weight.grad.flatten(1)
        u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
        along = u.T @ (old - weight).flatten(1) @ vh.T
        longest = RATE * 0.2 * math.sqrt(max(gradient.shape))
        assert (along.diagonal() > 0.5 * longest).all()
        assert (along.diagonal() < 1.4 * longest).all()
        assert (along - along.diagonal().diag()).abs().max() < 0.1 * longest
    # AdamW's first step is the learning rate, whatever the gradient.
    torch.testing.assert_close(
        (before.linear.bias - model.linear.bias).abs(), torch.full((5,), RATE), rtol=1e-3, atol=0
    )


def test_matrices_move_as_by_the_optimizer_of_torch() -> None:
    ours, theirs = Network().linear, Network().linear
    optimizers = (
        Muon([ours.weight], RATE, 0.1),
        torch.optim.Muon(
            [theirs.weight],
            lr=RATE,
            momentum=MOMENTUM,
            weight_decay=0.1,
            adjust_lr_fn="match_rms_adamw",
        ),
    )
    before = ours.weight.detach().clone()
    for step in range(3):
        inputs = torch.randn(32, 24, generator=torch.Generator().manual_seed(step))
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(inputs).square().mean().backward()
            optimizer.step()
    moved = (theirs.weight - before).norm()
    assert (ours.weight - theirs.weight).norm() < 0.02 * moved  # theirs rounds to bfloat16


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_it_computes_in_what_the_cpu_multiplies_fast(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("silo.training.muon._multiplies_bfloat16", lambda device: has_bfloat16)
    matrix = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    direction = orthogonal(matrix)
    assert direction.dtype == torch.float32 and direction.shape == matrix.shape
    is_rounded = torch.equal(direction, direction.bfloat16().float())
    assert is_rounded == has_bfloat16


def test_a_build_without_onednn_is_not_asked_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    monkeypatch.delattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", raising=False)
    matrix = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    direction = orthogonal(matrix)
    assert not torch.equal(direction, direction.bfloat16().float())


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> Network:
        model = Network()
        loop = TrainingLoop(
            model,
            folder,
            steps=steps,
            learning_rate=RATE,
            decay=0.9,
            seed=0,
            checkpointing_steps=2,
            matrices=model.matrices,
        )
        for _ in loop:
            loop.update({"loss": loss(model, loop.step)})
        return model

    run(tmp_path / "broken", 2)
    resumed, unbroken = run(tmp_path / "broken", 5), run(tmp_path / "whole", 5)
    for one, other in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_denoiser_gives_it_all_but_ends_embeddings_norms_and_biases() -> None:
    model = TextToLatent(DenoiserTraining(widths=(32, 64), head_width=32), 4, build_tokenizer([]))
    by_muon = {id(weight) for weight in model.inner_matrices()}
    others = {name for name, weight in model.named_parameters() if id(weight) not in by_muon}
    assert {name for name in others if not name.endswith("bias") and "norm" not in name} == {
        "text_encoder.embeddings.token_embedding.weight",
        "text_encoder.embeddings.position_embedding.weight",
        "unet.conv_in.weight",
        "unet.conv_out.weight",
    }
