"""A pretended GPU: computes on the CPU, and refuses what a GPU refuses, mixing tensors with its."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# Autograd works on it without a driver, as on none of the GPUs' names. The number tells it from
# where libraries make networks without weights.
PRETENDED = torch.device("meta", 0)
# What GPUs, too, do with tensors of several devices: copy, and index by those of the CPU.
MIXING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}


class OnGPU(Tensor):
    """A tensor on the pretended GPU.

    Attributes:
        held: its values, on the CPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGPU:
        """Put `held` on the GPU, as it is."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=PRETENDED,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute as the GPU would."""
        return _compute(op, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(op, args, kwargs or {})


class _FromLists(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not torch.tensor:  # which makes what it would make for `PRETENDED` out of sight
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        device = kwargs.pop("device", "cpu")
        return torch.tensor(*args, **kwargs).to(device)


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Have a GPU; yields the device."""
    with _FromLists(), _Mode():
        yield PRETENDED


def _compute(op: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = getattr(op, "overloadpacket", op).__name__
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in given if isinstance(tensor, OnGPU)]
    here = [tensor for tensor in given if not isinstance(tensor, OnGPU) and tensor.dim() > 0]
    device = kwargs.get("device")
    if there and here and name not in MIXING:
        shapes = [tuple(tensor.shape) for tensor in here]
        raise RuntimeError(f"{name}: tensors of the CPU, {shapes}, among those of the GPU")
    if device is not None:
        on_gpu = torch.device(device) == PRETENDED
        kwargs = {**kwargs, "device": torch.device("cpu") if on_gpu else device}
    else:
        on_gpu = isinstance(given[0], OnGPU) if name in MIXING else bool(there)
    if on_gpu and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{name}: a generator of the CPU draws nothing on the GPU")
    result = op(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not on_gpu:
        return result
    same = {id(tensor.held): tensor for tensor in there}  # what an op in place returns

    def put(made: Any) -> Any:
        return same[id(made)] if id(made) in same else OnGPU(made)

    return tree_map(lambda made: put(made) if isinstance(made, Tensor) else made, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGPU) else value
