"""Training by several processes at once, on one machine or more, each with a share of every batch.

    torchrun --nproc_per_node=2 train_cifar.py --batch-size 64

Each computes its share of the same batches, and PyTorch's DistributedDataParallel averages the
gradients: the result is that of one process but for rounding. Only rank 0 reads, prints and writes.
"""

import errno
import os
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from filelock import FileLock
from torch import Tensor

from support.errors import InputError, NothingToDo

STEP_SECONDS = 120  # how long a process waits for the others in a step of training
VIEWS_SECONDS = 600  # and for rank 0, while it draws or saves
PATIENCE = timedelta(hours=2)  # or downloads the images


class Processes(NamedTuple):
    """Which process this is, from 0, how many there are, and the device of this one."""

    rank: int
    count: int
    device: torch.device
    patient: dist.ProcessGroup | None = None  # all of them, for what may take long

    def wait_for_first(self) -> None:
        """Let the others wait until rank 0, which draws or saves, comes here."""
        if self.count > 1:
            seconds = STEP_SECONDS if self.rank == 0 else VIEWS_SECONDS
            dist.monitored_barrier(self.patient, timedelta(seconds=seconds))

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def start_processes() -> Processes:
    """Join those that torchrun started, on the CPU until `place`; else this is the first of one."""
    cpu = torch.device("cpu")
    if not under_torchrun():
        return Processes(0, 1, cpu)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=STEP_SECONDS))
    patient = dist.new_group(timeout=PATIENCE, backend="gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), cpu, patient)


def place(processes: Processes, device: torch.device) -> Processes:
    """Give each process its device: a GPU of its machine; InputError if there are not enough."""
    if processes.count > 1 and device.type == "cuda":
        wanted, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if wanted > gpus:
            trouble = f"{wanted} processes on a machine with {gpus} GPU"
            raise InputError(f"{trouble}: take --nproc_per_node={gpus}, or --device cpu")
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return processes._replace(device=device)


def share_of_batch(images: Tensor, labels: Tensor, processes: Processes) -> tuple[Tensor, Tensor]:
    """This process's share of a batch (B, ...); the last of an epoch it may have to take whole."""
    rank, count = processes.rank, processes.count
    if count == 1 or len(labels) % count:  # the average of equal gradients is the same gradient
        return images, labels
    return images[rank::count], labels[rank::count]


def broadcast_from_first(do: Callable[[], object], processes: Processes):
    """Let rank 0 alone do something; every process gets its result, or InputError, NothingToDo."""
    if processes.count == 1:
        return do()
    message: list = [None]
    if processes.rank == 0:
        try:
            message = [do()]
        except (InputError, NothingToDo) as reason:
            message = [reason]
    dist.broadcast_object_list(message, group=processes.patient)
    if isinstance(message[0], Exception):
        raise message[0]
    return message[0]


def lost_process(error: RuntimeError) -> str | None:
    """What has happened to another process if that made a joint operation fail, else None."""
    text = str(error)
    if not isinstance(error, dist.DistError) and not re.search("gloo|monitoredBarrier", text):
        return None
    is_silent = re.search("timed out|Barrier in [0-9]+ ms", text, re.IGNORECASE)
    fate = f"not answered for {STEP_SECONDS} s" if is_silent else "ended"
    return f"another process of this run has {fate}"


def take_lock(path: Path, timeout: float) -> FileLock:
    """Take a lock, which the system gives free when this process ends; wait for `timeout` seconds.

    A file system without locks (some NFS and Lustre) is said, no more. Raises Timeout and OSError.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        where = f"NOTE: {str(path.parent)!r} is on a file system without locks"
        print(f"{where}: see to it that only one process works there", file=sys.stderr)
    return lock
