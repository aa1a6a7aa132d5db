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

from data import DataError, ImageDataset


class Processes(NamedTuple):
    """Which process this is, from 0, and how many there are."""

    rank: int
    count: int


def start_processes(device: torch.device) -> Processes:
    """Join the processes that torchrun started; on its own, a process is the first of one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Processes(0, 1)
    backend = "nccl" if device.type == "cuda" else "gloo"
    # The others wait for rank 0, which may have to download the images for an hour.
    dist.init_process_group(backend, timeout=timedelta(hours=2))
    return Processes(dist.get_rank(), dist.get_world_size())


def local_device(device: torch.device) -> torch.device:
    """The device of this process: each process of a machine takes a GPU of its own."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def share_of_batch(
    images: torch.Tensor, labels: torch.Tensor, processes: Processes
) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's share of a batch (B, ...).

    A batch that cannot be shared out evenly, the last of an epoch, is computed whole by every
    process: the average of equal gradients is the same gradient.
    """
    rank, count = processes
    if len(labels) % count:
        return images, labels
    return images[rank::count], labels[rank::count]


def read_once(
    read: Callable[[], tuple[ImageDataset, ImageDataset, str]],
    processes: Processes,
    device: torch.device,
) -> tuple[ImageDataset, ImageDataset, str]:
    """Let rank 0 read the images and send them to the others: training set, test set, source.

    Raises DataError in every process if rank 0 cannot read them.
    """
    if processes.count == 1:
        return read()
    message: list = [None]  # what a process must know before it can receive the images
    if processes.rank == 0:
        try:
            train, test, source = read()
            message = [(train.classes, source, len(train), len(test))]
        except DataError as error:
            message = [error]
    dist.broadcast_object_list(message, device=device)
    if isinstance(message[0], DataError):
        raise message[0]
    classes, source, *lengths = message[0]
    if processes.rank > 0:
        train, test = (
            ImageDataset(
                torch.empty((length, 3, 32, 32), dtype=torch.uint8),
                torch.empty(length, dtype=torch.int64),
                classes,
            )
            for length in lengths
        )
    train, test = train.to(device), test.to(device)
    for tensor in (train.images, train.labels, test.images, test.labels):
        dist.broadcast(tensor, src=0)
    return train, test, source


def total(tensor: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Sum a tensor over all processes."""
    if processes.count > 1:
        dist.all_reduce(tensor)
    return tensor
