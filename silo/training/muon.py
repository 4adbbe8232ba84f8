"""Muon on some of a network's matrices and convolutions, AdamW on the rest of its weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Of the iteration that makes a matrix orthogonal (Jordan et al. 2024): a x + b x^3 + c x^5.
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
LEAST_NORM = 1e-7
ADAMW_LENGTH = 0.2  # root mean square of a step of AdamW at a learning rate of 1


class Muon(torch.optim.Optimizer):
    """Moves whole matrices by nearly orthogonal steps (Jordan et al. 2024).

    They are as long as AdamW's, so that one learning rate is for both (Liu et al., arXiv
    2502.16982). The steps are `torch.optim.Muon`'s, which takes no convolutions, and always
    computes in bfloat16: on CPUs that have no instructions for it that takes many times as long as
    the rest of training.
    """

    def __init__(self, weights: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        """Train `weights`: (out, in), or (out, in, h, w) of convolutions."""
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  no closure
        """Move the weights along their gradients."""
        for group in self.param_groups:
            lr, weight_decay = group["lr"], group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient, state = _as_matrix(weight.grad), self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
                direction = orthogonal(gradient.lerp(momentum, MOMENTUM))
                length = lr * ADAMW_LENGTH * math.sqrt(max(direction.shape))
                weight.mul_(1 - lr * weight_decay)
                weight.add_(_as_weight(direction, weight), alpha=-length)


class MuonAdamW:
    """Both as one optimizer, as far as a training loop needs one."""

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
        self._muon = Muon(matrices, lr, weight_decay)
        self._adamw = torch.optim.AdamW(
            [p for p in parameters if id(p) not in by_muon],
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
        )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of both optimizers, which replace theirs when a state is loaded."""
        return [*self._adamw.param_groups, *self._muon.param_groups]

    def step(self) -> None:
        """Move the weights along their gradients."""
        self._adamw.step()
        self._muon.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of both."""
        self._muon.zero_grad(set_to_none)
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


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix to (m, n), about: its singular values are 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16 if _multiplies_bfloat16(matrix.device) else torch.float32)
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=LEAST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type != "cpu":
        return True
    # Builds without oneDNN, which asks the CPU, do not have that question either.
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _as_matrix(weight: Tensor) -> Tensor:
    """(out, in, h, w) as (out, h w in), in which order channels-last memory has it; or `weight`."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.dim() == 4 else weight


def _as_weight(matrix: Tensor, like: Tensor) -> Tensor:
    """Undo `_as_matrix`."""
    if like.dim() == 2:
        return matrix
    _, inputs, height, width = like.shape
    return matrix.unflatten(1, (height, width, inputs)).permute(0, 3, 1, 2)
