"""Processes that train together: those that torchrun started, or just this one."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from ..ops.devices import computing_device

#: How long the others wait for one that renders the faces or writes a checkpoint. One that died is torchrun's to
# notice.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    rank of count: its number among all. local_rank of local_count: among those on this machine. device: what it
    computes on.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    def add_up(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor, in place, by its sum over the processes: one message, the same bits everywhere."""
        if self.count == 1:
            return
        together = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(together)
        parts = together.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def meet(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def one_first(self):
        """One process of each machine runs the block first (and fills a cache, say), then all the others at once."""
        if self.local_rank > 0:
            dist.barrier()
        yield
        if self.local_rank == 0 and self.count > 1:
            dist.barrier()


@contextmanager
def joined_processes(device: str | None = None):
    """The :class:`Processes` that this one is among: torchrun's, joined for the length of the block, or it alone.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:N``; None for CUDA if there is any. Of torchrun's processes each takes the
            CUDA device of its local rank.

    Raises:
        OptionError: there is no such device.
        ValueError: there are fewer CUDA devices than processes.
    """
    kind = computing_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Processes(kind)
        return
    rank, count, local_rank, local_count = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if kind.type == "cuda":
        if local_count > torch.cuda.device_count():
            raise ValueError(
                f"device: {local_count} processes on a machine with {torch.cuda.device_count()} CUDA devices"
            )
        kind = torch.device("cuda", local_rank)
        torch.cuda.set_device(kind)
    backend = "nccl" if kind.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_meeting_place(), rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield Processes(kind, rank, count, local_rank, local_count)
    finally:
        dist.destroy_process_group()


def _meeting_place() -> dist.Store:
    """Where the processes find each other, of their own for every restart.

    torchrun keeps the store through restarts, with the addresses of processes that are gone: whoever reads one before
    it is overwritten waits for the dead. On several machines restarts are counted by each, so that no number is common
    to all; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun start every time with a new store.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=_PATIENCE))
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return store
    return dist.PrefixStore(f"restart {_restarts()}", store)


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def restarted() -> bool:
    """Whether torchrun has started this process in place of one that failed."""
    return _restarts() > 0
