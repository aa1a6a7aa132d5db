"""The device that trains, what makes a small net fast on a CPU, and a pass over all test images."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader

from support.errors import InputError, RunError, first_line
from support.processes import Processes, all_reduce_sum, lost_process

ALL_THREADS = torch.get_num_threads()  # before `tune_cpu` changes it
SMALL_BATCH = 8  # images; up to here one CPU thread is faster than several


def check_pytorch() -> None:
    """Raise InputError if PyTorch is older than requirements.txt says."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise InputError(
            f"PyTorch {torch.__version__} is too old, 2.6 or later is needed: "
            "pip install -U torch torchvision"
        )


def choose_device(name: str) -> torch.device:
    """Turn `--device` into a device; raises InputError if it does not work here.

    `auto` is CUDA where there is one, and the CPU otherwise: with batches of four and so small a
    net, starting an operation on MPS takes longer than computing it on the CPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add(1).item()
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises the latter
        raise InputError(
            f"--device {name!r} does not work here ({first_line(error)}): take --device cpu"
        ) from error
    return device


@contextlib.contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Turn an error of a GPU (no memory, a missing operation) into a RunError of one line."""
    try:
        yield
    except RuntimeError as error:
        if device.type == "cpu" or isinstance(error, RunError) or lost_process(error):
            raise
        raise RunError(f"{device} failed ({first_line(error)}): try --device cpu") from error


def tune_cpu(batch_size: int) -> None:
    """Set, for the whole process, the CPU threads and kernels that suit the batch size.

    With four images, a layer of this net takes less time than threads need to synchronise and
    oneDNN needs to rearrange memory; with larger batches both pay (measured: benchmarks/).
    Denormals (numbers below 1e-38) become 0: CPUs are very slow with them.
    """
    small = batch_size <= SMALL_BATCH
    torch.set_num_threads(1 if small else ALL_THREADS)
    torch.backends.mkldnn.set_flags(not small)
    torch.set_flush_denormal(True)


def to_channels_last(images: torch.Tensor) -> torch.Tensor:
    """Give large batches (B, 3, H, W) the memory layout in which convolutions are fastest."""
    if len(images) <= SMALL_BATCH:
        return images
    return images.contiguous(memory_format=torch.channels_last)


def data_parallel(net: nn.Module, processes: Processes) -> nn.Module:
    """Return the net to train: of several processes, one that averages their gradients."""
    return nn.parallel.DistributedDataParallel(net) if processes.count > 1 else net


def predict_all(
    net: nn.Module, loader: DataLoader, processes: Processes
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the net over the N images of a loader, its batches distributed to the processes.

    Returns logits (N, C) and labels (N,), both on the CPU, in every process. The net is in
    evaluation mode meanwhile.
    """
    dataset = loader.dataset
    tune_cpu(loader.batch_size)
    logits = torch.zeros(len(dataset), len(dataset.classes), device=processes.device)
    net.eval()
    with torch.no_grad():
        for index, (images, _) in enumerate(loader):
            if index % processes.count == processes.rank:
                start = index * loader.batch_size
                logits[start : start + len(images)] = net(to_channels_last(images))
    net.train()
    return all_reduce_sum(logits, processes).cpu(), dataset.labels.cpu()
