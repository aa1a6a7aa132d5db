"""Training by several processes at once, each with a share of every batch.

    torchrun --nproc_per_node=2 train_cifar.py --batch-size 64

Every process goes through the same batches in the same order and computes its share of each;
PyTorch's DistributedDataParallel averages the gradients, so the result is that of one process but
for rounding. Only the process of rank 0 reads images, prints, and writes.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from support.errors import InputError


class Processes(NamedTuple):
    """Which process this is, from 0, how many there are, and the device of this one."""

    rank: int
    count: int
    device: torch.device


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process has rank 0, or is alone; known before the processes have met."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def start_processes(device: torch.device, batch_size: int) -> Processes:
    """Join the processes that torchrun started; on its own, a process is the first of one.

    Raises InputError if they cannot share a batch, or if there are more of them than GPUs.
    """
    if not under_torchrun():
        return Processes(0, 1, device)
    count = int(os.environ["WORLD_SIZE"])
    if batch_size % count:  # every process finds out for itself, before it waits for the others
        raise InputError(
            f"--batch-size {batch_size} cannot be divided among {count} processes: take a multiple"
        )
    device = local_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The others wait for rank 0, which may have to download the images for an hour.
    dist.init_process_group(backend, timeout=timedelta(hours=2))
    return Processes(dist.get_rank(), count, device)


def local_device(device: torch.device) -> torch.device:
    """The device of this process: each process of a machine takes a GPU of its own.

    Raises InputError if there are not enough.
    """
    if device.type != "cuda":
        return device
    processes, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if processes > gpus:
        raise InputError(
            f"{processes} processes on a machine with {gpus} GPU: start one for each GPU "
            "(--nproc_per_node), or take --device cpu"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def share_of_batch(
    images: torch.Tensor, labels: torch.Tensor, processes: Processes
) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's share of a batch (B, ...).

    A batch that cannot be divided evenly, the last of an epoch, is computed whole by every
    process: the average of equal gradients is the same gradient.
    """
    rank, count = processes.rank, processes.count
    if count == 1 or len(labels) % count:
        return images, labels
    return images[rank::count], labels[rank::count]


def broadcast_from_first(do: Callable[[], object], processes: Processes):
    """Let rank 0 alone do something; every process gets its result.

    An InputError that it raises is raised in every process.
    """
    if processes.count == 1:
        return do()
    message: list = [None]
    if processes.rank == 0:
        try:
            message = [do()]
        except InputError as error:
            message = [error]
    dist.broadcast_object_list(message, device=processes.device)
    if isinstance(message[0], InputError):
        raise message[0]
    return message[0]


def all_reduce_sum(tensor: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Sum a tensor over all processes, in place, and return it."""
    if processes.count > 1:
        dist.all_reduce(tensor)
    return tensor


def is_lost_process(error: RuntimeError) -> bool:
    """Whether a joint operation failed, which is so when one of the processes has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
