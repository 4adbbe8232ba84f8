"""Start a network from a trained one for fewer latent channels."""

import torch
from torch import nn

from silo.errors import BadRequest


@torch.no_grad()
def widen_from(model: nn.Module, smaller: nn.Module) -> None:
    """Copy the weights of `smaller` into `model`, in place.

    Where a convolution of `model` is larger, it keeps its own values for the new outputs and gets
    zeros for the new inputs: the old channels begin as they were, unmoved by the new ones. They
    would not in what mixes channels otherwise, as norms over groups of them do.

    Raises:
        BadRequest: the two differ by more than channels of convolutions.
    """
    target, source = model.state_dict(), smaller.state_dict()
    if target.keys() != source.keys():
        raise BadRequest("The network to start from has another architecture.")
    for name, wide in target.items():
        narrow = source[name]
        widens = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Conv2d)
        fits = narrow.dim() == wide.dim() and all(
            a == b or (widens and a < b) for a, b in zip(narrow.shape, wide.shape, strict=True)
        )
        if not fits:
            raise BadRequest(
                f"{name} has shape {tuple(narrow.shape)} in the network to start from and "
                f"{tuple(wide.shape)} in the new one: choose as many channels, or more latent ones."
            )
        if wide.dim() > 1:
            wide[:, narrow.shape[1] :] = 0
        wide[tuple(slice(size) for size in narrow.shape)] = narrow
