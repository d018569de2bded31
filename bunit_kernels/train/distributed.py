"""Several processes that train one network: what ``torchrun`` started, and what they exchange.

Each process takes its share of every batch (see :mod:`.feed`), gradients are averaged by
``DistributedDataParallel``, batch statistics are those of all shares together. The first process
alone writes files and prints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..nn.sync_norm import convert_sync_norm
from .errors import UserError, first_line

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; alone where nothing says otherwise."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    restarts: int = 0  # how often torchrun started them again

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def agree(self, yes: bool, device: torch.device) -> bool:
        """What the first process says, whose clock counts; all have to ask."""
        if self.world == 1:
            return yes
        return bool(self.total(torch.tensor(float(yes and self.first), device=device)))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model`` with its norms synchronised, for training; the module itself where alone."""
        if self.world == 1:
            return model
        model = convert_sync_norm(model)
        device = next(model.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, ids)


def find_processes() -> Processes:
    """What ``torchrun`` says about this process in its environment.

    Raises:
        UserError: it says half of it, or no numbers.
    """
    said = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    if not said:
        return Processes()
    try:
        rank, world, local_rank = (int(said[name]) for name in _VARIABLES)
        if not 0 <= rank < world or local_rank < 0:
            raise ValueError
    except (KeyError, ValueError):
        values = ", ".join(f"{name}={said.get(name, '(not set)')}" for name in _VARIABLES)
        raise UserError(
            f"expected numbers of this process in the environment, as of torchrun; got {values}"
        ) from None
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Processes(rank, world, local_rank, int(restarts) if restarts.isdigit() else 0)


@contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """Connected to the other processes within.

    Raises:
        UserError: they cannot be reached, or the port is taken.
    """
    if processes.world == 1:
        yield
        return
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, world = next(dist.rendezvous("env://"))
        # torchrun may keep its store when it starts processes again: addresses of those that died
        # must not be found there.
        store = dist.PrefixStore(f"attempt {processes.restarts}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
    # By what is wrong: ValueError, RuntimeError, DistNetworkError, ...
    except Exception as error:
        raise UserError(
            f"process {processes.rank} of {processes.world} cannot join the others at {where}: "
            f"{first_line(error)}"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()
