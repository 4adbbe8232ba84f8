"""Start a network from a trained one that knows fewer channels."""

import torch
from torch import nn

from silo.errors import BadRequest


@torch.no_grad()
def widen_from(model: nn.Module, smaller: nn.Module) -> None:
    """Copy the weights of `smaller` into `model`, in place.

    Where a tensor of `model` is larger, it keeps its own values for the new outputs and gets zeros
    for the new inputs: the old channels begin as they were, unmoved by the new ones.

    Raises:
        BadRequest: the two differ by more than numbers of channels.
    """
    target, source = model.state_dict(), smaller.state_dict()
    if target.keys() != source.keys():
        raise BadRequest("The network to start from has another architecture.")
    for name, wide in target.items():
        narrow = source[name]
        if narrow.dim() != wide.dim() or any(
            a > b for a, b in zip(narrow.shape, wide.shape, strict=True)
        ):
            raise BadRequest(
                f"{name} has shape {tuple(narrow.shape)} in the network to start from and "
                f"{tuple(wide.shape)} in the new one, which may be wider but not narrower."
            )
        if wide.dim() > 1:
            wide[:, narrow.shape[1] :] = 0
        wide[tuple(slice(size) for size in narrow.shape)] = narrow
