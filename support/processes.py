"""Training by several processes at once, on one machine or more, each with a share of every batch.

    torchrun --nproc_per_node=2 train_cifar.py --batch-size 64

Every process goes through the same batches in the same order and computes its share of each;
PyTorch's DistributedDataParallel averages the gradients, so the result is that of one process but
for rounding. Only the process of rank 0 reads images and checkpoints, prints, and writes.
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


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def start_processes() -> Processes:
    """Join the processes that torchrun started; on its own, a process is the first of one.

    Their device is the CPU until `place` gives them another.
    """
    cpu = torch.device("cpu")
    if not under_torchrun():
        return Processes(0, 1, cpu)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=STEP_SECONDS))
    patient = dist.new_group(timeout=PATIENCE, backend="gloo")
    return Processes(dist.get_rank(), dist.get_world_size(), cpu, patient)


def place(processes: Processes, device: torch.device) -> Processes:
    """Give each process its device: those of one machine take a GPU each.

    Raises InputError if there are not enough.
    """
    if processes.count > 1 and device.type == "cuda":
        wanted, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if wanted > gpus:
            raise InputError(
                f"{wanted} processes on a machine with {gpus} GPU: start one for each GPU "
                "(--nproc_per_node), or take --device cpu"
            )
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return processes._replace(device=device)


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

    An InputError or NothingToDo that it raises is raised in every process.
    """
    if processes.count == 1:
        return do()
    message: list = [None]
    if processes.rank == 0:
        try:
            message = [do()]
        except (InputError, NothingToDo) as reason:
            message = [reason]
    dist.broadcast_object_list(message, group=processes.patient)
    if isinstance(message[0], (InputError, NothingToDo)):
        raise message[0]
    return message[0]


def wait_for_first(processes: Processes) -> None:
    """Let the others wait until rank 0, which draws or saves, comes here."""
    if processes.count > 1:
        seconds = STEP_SECONDS if processes.rank == 0 else VIEWS_SECONDS
        dist.monitored_barrier(processes.patient, timedelta(seconds=seconds))


def all_reduce_sum(tensor: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Sum a tensor over all processes, in place, and return it."""
    if processes.count > 1:
        dist.all_reduce(tensor)
    return tensor


def lost_process(error: RuntimeError) -> str | None:
    """What has happened to another process if that made a joint operation fail, else None."""
    text = str(error)
    if not isinstance(error, dist.DistError) and not re.search("gloo|monitoredBarrier", text):
        return None
    if re.search("timed out|Barrier in [0-9]+ ms", text, re.IGNORECASE):
        return f"another process of this run has not answered for {STEP_SECONDS} s"
    return "another process of this run has ended"


def take_lock(path: Path, timeout: float) -> FileLock:
    """Take a lock, which the system gives free when this process ends; wait for `timeout` seconds.

    On a file system without locks (some NFS and Lustre) a line says so, and the lock is not held.
    Raises filelock.Timeout if another process has it, OSError if the file cannot be written.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        print(
            f"NOTE: {str(path.parent)!r} is on a file system without locks: "
            "see to it yourself that only one process works there",
            file=sys.stderr,
        )
    return lock
