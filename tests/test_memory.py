"""Restorations on devices whose memory runs out, which the networks' hooks pretend to be."""

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from operators.convolutional import CompactCNN
from silo.bench import random_sd15
from silo.errors import OutOfMemory
from silo.memory import DIFFERENTIATING, OFFLOADING, SLICED_ATTENTION, is_out_of_memory
from silo.prior import LatentPrior
from silo.request import RestorationRequest
from silo.restorer import Progress, Restorer, Result

STEPS = 2
PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def restored(prior: LatentPrior, **settings: Any) -> tuple[list[Progress], Result]:
    request = RestorationRequest(
        "gaussian_blur", PICTURE, blur_std=3, noise_sigma=0.5, steps=STEPS, seed=3, **settings
    )
    *steps, result = Restorer(prior).restore(request)
    assert isinstance(result, Result)
    return [step for step in steps if isinstance(step, Progress)], result


def runs_out(network: nn.Module, when: Callable[[Tensor], bool]) -> None:
    """Makes a network raise what torch does on a GPU, for the inputs that do not fit."""

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if when(inputs[0]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    network.register_forward_pre_hook(check)


def test_samples_that_do_not_fit_together_are_made_in_batches_and_come_out_the_same(
    tiny_prior: LatentPrior,
) -> None:
    _, expected = restored(tiny_prior, samples=3, sampler="silo-fast")
    runs_out(tiny_prior._unet, lambda noisy: len(noisy) > 2)
    progress, result = restored(tiny_prior, samples=3, sampler="silo-fast")
    torch.testing.assert_close(result.images, expected.images, atol=1e-4, rtol=0)
    assert result.notices == ["Memory ran out: the samples were made in 2 batches."]
    assert [(step.step, step.total) for step in progress] == [(0, 2), (1, 2), (1, 2), (2, 2)]
    assert progress[0].seconds_left > progress[-1].seconds_left == 0


def test_gradients_that_do_not_fit_are_checkpointed_once_and_for_all(
    tiny_prior: LatentPrior,
) -> None:
    _, expected = restored(tiny_prior, sampler="silo")
    unet = tiny_prior._unet
    runs_out(unet, lambda noisy: noisy.requires_grad and not unet.is_gradient_checkpointing)
    _, result = restored(tiny_prior, sampler="silo")
    torch.testing.assert_close(result.images, expected.images, atol=1e-4, rtol=0)
    assert len(result.notices) == 1 and "gradients" in result.notices[0]
    _, again = restored(tiny_prior, sampler="silo")
    assert again.notices == result.notices and again.nfe == STEPS  # no second attempt
    _, other = restored(tiny_prior, sampler="silo-fast")  # takes no gradient through the denoiser
    assert other.notices == []


def test_a_late_failure_begins_the_samples_anew_with_the_same_noise(
    tiny_prior: LatentPrior,
) -> None:
    _, expected = restored(tiny_prior, sampler="silo")
    unet, calls = tiny_prior._unet, []
    runs_out(unet, lambda noisy: calls.append(noisy.shape) or len(calls) == STEPS)
    progress, result = restored(tiny_prior, sampler="silo")
    assert [step.step for step in progress] == [1, 1, 2]
    torch.testing.assert_close(result.images, expected.images, atol=1e-4, rtol=0)


def test_decoding_takes_its_rungs_in_order_without_sampling_again(
    variational_prior: LatentPrior,
) -> None:
    _, expected = restored(variational_prior, samples=2, sampler="silo-fast")
    decoder = variational_prior._vae.decoder
    runs_out(decoder, lambda latents: len(latents) > 1)
    progress, sliced = restored(variational_prior, samples=2, sampler="silo-fast")
    torch.testing.assert_close(sliced.images, expected.images, atol=1e-4, rtol=0)
    assert [step.step for step in progress] == [1, 2] and sliced.nfe == STEPS
    assert len(sliced.notices) == 1 and "one at a time" in sliced.notices[0]
    runs_out(decoder, lambda latents: latents.shape[-1] > 4)
    preview = progress[0].preview()
    assert preview.size == (64, 64)
    _, tiled = restored(variational_prior, samples=2, sampler="silo-fast")
    assert tiled.images.shape == expected.images.shape and tiled.images.isfinite().all()
    assert tiled.notices[:1] == sliced.notices
    assert len(tiled.notices) == 2 and "in tiles" in tiled.notices[1]


def test_past_the_last_rung_an_error_says_what_to_do_and_nothing_is_kept(
    tiny_prior: LatentPrior,
) -> None:
    seen = []

    def too_large(noisy: Tensor) -> bool:
        seen.append(weakref.ref(noisy))
        return True

    runs_out(tiny_prior._unet, too_large)
    with pytest.raises(
        OutOfMemory, match="cpu ran out of memory.*a smaller working size or picture"
    ) as error:
        restored(tiny_prior, samples=4, sampler="silo")
    assert len(seen) == 4  # four samples, two, one, and one with checkpointing
    assert all(noisy() is None for noisy in seen)
    assert error.value.__cause__ is error.value.__context__ is None


def test_a_prior_that_the_device_cannot_hold_is_refused_by_name(
    tiny_prior_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(network: UNet2DConditionModel, **placement: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(UNet2DConditionModel, "to", fail)
    with pytest.raises(OutOfMemory, match="cpu cannot hold .*: choose bfloat16"):
        LatentPrior.load(tiny_prior_folder)


def test_it_is_told_from_other_errors(tiny_prior: LatentPrior) -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 55)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GiB)"))
    cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert is_out_of_memory(RuntimeError(cublas))

    def fail(module: nn.Module, inputs: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    tiny_prior._unet.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1"):
        restored(tiny_prior)
    assert not tiny_prior.notices


def test_checkpointed_gradients_are_the_same_through_features_too(tiny_prior: LatentPrior) -> None:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    prompt = tiny_prior.embed("a cat")

    def gradient() -> Tensor:
        latents = noise.clone().requires_grad_()
        prediction = tiny_prior.predict(latents, 500, prompt, features=True)
        assert prediction.features is not None
        parts = [prediction.output, *prediction.features]
        loss = torch.stack([part.square().sum() for part in parts]).sum()
        return torch.autograd.grad(loss, latents)[0]

    expected = gradient()
    assert tiny_prior.checkpoint_gradients() and not tiny_prior.checkpoint_gradients()
    torch.testing.assert_close(gradient(), expected)


class _Peak(TorchDispatchMode):
    """Counts the bytes that tensors hold, fake ones as if they were real."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in self.held:
                storage = tensor.untyped_storage()
                self.held[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.held.pop, id(storage))
        self.most = max(self.most, sum(self.held.values()))
        return result


def test_stable_diffusion_at_512_pixels_in_half_precision_needs_less_than_four_gigabytes() -> None:
    prior = random_sd15(torch.device("meta"), torch.float16)
    with torch.device("meta"):
        operator = CompactCNN(4)
    vae: Any = prior._vae
    parts: list[nn.Module] = [prior._unet, vae.encoder, vae.decoder, prior._text_encoder, operator]
    shapes = [part.state_dict() for part in parts]
    # The kernels, and so what they keep, are those of fake tensors on a real device.
    with FakeTensorMode(), _Peak() as memory, torch.no_grad():
        placed = [
            {name: torch.empty(value.shape, dtype=value.dtype) for name, value in each.items()}
            for each in shapes
        ]
        unet, encoder, decoder, _, cnn = (
            partial(functional_call, part, weights)
            for part, weights in zip(parts, placed, strict=True)
        )
        weights = sum(memory.held.values())
        latent = torch.zeros(1, 4, 64, 64, dtype=torch.float16)
        prompt = torch.zeros(1, 77, 768, dtype=torch.float16)
        encoder(torch.zeros(1, 3, 512, 512, dtype=torch.float16))
        unet((latent, torch.tensor([500]), prompt))
        cnn((latent.float(), torch.full((1,), 0.01)))
        decoder(latent)
    assert weights == pytest.approx(2.13e9, rel=0.01)
    assert 0.2e9 < memory.most - weights < 0.45e9


@torch.no_grad()
def test_sliced_attention_is_the_same_and_for_apples_gpus(tiny_prior: LatentPrior) -> None:
    latents, prompt = torch.ones(2, 4, 16, 16), tiny_prior.embed("a cat")
    expected = tiny_prior.predict(latents, 500, prompt).output
    assert not SLICED_ATTENTION.take(tiny_prior)  # a cpu has better kernels
    tiny_prior.device = torch.device("mps")
    assert DIFFERENTIATING[0] is SLICED_ATTENTION and SLICED_ATTENTION.take(tiny_prior)
    assert not SLICED_ATTENTION.take(tiny_prior)
    tiny_prior.device = torch.device("cpu")
    torch.testing.assert_close(tiny_prior.predict(latents, 500, prompt).output, expected)


def test_offloading_leaves_one_network_on_the_gpu_but_never_takes_a_gradients(
    tiny_prior: LatentPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not OFFLOADING.take(tiny_prior)  # a cpu has nowhere to put them
    tiny_prior.device = torch.device("cuda")
    assert OFFLOADING.take(tiny_prior) and not OFFLOADING.take(tiny_prior)
    tiny_prior.device = torch.device("cpu:0")  # told from the "cpu" that they wait on
    parts = {
        "vae": tiny_prior._vae,
        "denoiser": tiny_prior._unet,
        "text": tiny_prior._text_encoder,
    }
    on_gpu = set(parts)
    for name, network in parts.items():

        def move(device: Any, name: str = name) -> None:
            (on_gpu.add if str(device) == "cpu:0" else on_gpu.discard)(name)

        monkeypatch.setattr(network, "to", move)
    latents = torch.zeros(1, 4, 16, 16)
    with torch.no_grad():
        prompt = tiny_prior.embed("a cat")
        assert on_gpu == {"text"}
        tiny_prior.encode(torch.zeros(1, 3, 64, 64))
        assert on_gpu == {"vae"}
        tiny_prior.predict(latents, 500, prompt)
        assert on_gpu == {"denoiser"}
    clean = tiny_prior.predict(latents.requires_grad_(), 500, prompt).output
    tiny_prior.decode(clean)
    assert on_gpu == {"denoiser", "vae"}
