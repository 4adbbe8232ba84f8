"""Muon on some of a network's matrices and convolutions, AdamW on the rest of its weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95


class MuonAdamW:
    """Both as one optimizer, as far as a training loop needs one.

    Muon makes the step of a whole matrix orthogonal (Jordan et al. 2024): fewer steps, each a
    little slower. With its steps as long as AdamW's, one learning rate is for both (Liu et al.,
    arXiv 2502.16982). torch's takes matrices alone; a convolution is given to it as the matrix of
    its output channels by all the rest, which shares its memory.

    Attributes:
        param_groups: of both optimizers.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        matrices: Sequence[Tensor],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        """Train `parameters`: those that are among `matrices` by Muon, the others by AdamW."""
        by_muon = {id(matrix) for matrix in matrices}
        self._pairs = [(weight, nn.Parameter(_as_matrix(weight.detach()))) for weight in matrices]
        self._muon = torch.optim.Muon(
            [matrix for _, matrix in self._pairs],
            lr=lr,
            momentum=MOMENTUM,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = torch.optim.AdamW(
            [p for p in parameters if id(p) not in by_muon],
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
        )
        self.param_groups = [*self._adamw.param_groups, *self._muon.param_groups]

    def step(self) -> None:
        """Move the weights along their gradients."""
        for weight, matrix in self._pairs:
            matrix.grad = None if weight.grad is None else _as_matrix(weight.grad)
        self._adamw.step()
        self._muon.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of both."""
        for weight, _ in self._pairs:
            weight.grad = None
        self._adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of every weight by its index: AdamW's weights first."""
        first = len(self._adamw.param_groups[0]["params"])
        by_muon = self._muon.state_dict()["state"]
        shifted = {first + index: state for index, state in by_muon.items()}
        return {"state": {**self._adamw.state_dict()["state"], **shifted}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo `state_dict`."""
        first = len(self._adamw.param_groups[0]["params"])
        states: tuple[dict[int, Any], dict[int, Any]] = {}, {}
        for index, state in state_dict["state"].items():
            states[index >= first][index - first if index >= first else index] = state
        for optimizer, state in zip((self._adamw, self._muon), states, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _as_matrix(weight: Tensor) -> Tensor:
    """A view of (out, in, h, w) as (out, h w in), as channels-last memory allows; or `weight`."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.dim() == 4 else weight
