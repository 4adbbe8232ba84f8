"""The processes that train together: one, or those that `accelerate launch` or torchrun started."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from silo.errors import BadRequest

_ONE_PROCESS = (
    "`accelerate launch --cpu` starts a single process unless --mpirun_hostfile is given; this is "
    "it, and trains to the same result. For several without MPI, put --multi_gpu in the place of "
    "--cpu, and --device cpu at the end."
)


class Processes:
    """Splits a batch among the processes and averages what they found.

    Every process draws the whole batch from the same generator and computes its own share of it, so
    that together they take the step that one process would.

    Attributes:
        count: how many there are.
        rank: the number of this one.
        is_main: whether it is the one that writes files.
    """

    def __init__(self, *, cpu: bool) -> None:
        """Join the other processes, if the launcher's environment says that there are any."""
        self._state = PartialState(cpu=cpu)
        self.count: int = self._state.num_processes
        self.rank: int = self._state.process_index
        self.is_main = self.rank == 0
        # `accelerate launch --cpu` names a port for several processes, but leaves it to mpirun to
        # start them, and tells none how many there should be.
        left_alone = self.count == 1 and "MASTER_PORT" in os.environ
        if left_alone and parse_flag_from_env("ACCELERATE_USE_CPU"):
            print(_ONE_PROCESS, file=sys.stderr)

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device = self._state.device
        assert device is not None, "the state is complete once it is made"
        return device

    def share(self, batch: int) -> slice:
        """The part of a batch that is this process's.

        Raises:
            BadRequest: the batch cannot be split evenly.
        """
        if batch % self.count:
            raise BadRequest(
                f"a batch of {batch} cannot be split among {self.count} processes: choose a "
                f"--train_batch_size that is a multiple of {self.count}."
            )
        each = batch // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def average_(self, tensor: Tensor) -> Tensor:
        """The mean of `tensor` over the processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)
            tensor /= self.count
        return tensor

    def wait(self) -> None:
        """Return when every process has come here."""
        self._state.wait_for_everyone()

    def leave(self) -> None:
        """End the communication."""
        if self.count > 1:
            torch.distributed.destroy_process_group()
