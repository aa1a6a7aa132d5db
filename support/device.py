"""The device that trains, what makes a small net fast on a CPU, and a pass over all test images."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from support.errors import InputError, RunError, first_line
from support.processes import Processes, lost_process

ALL_THREADS = torch.get_num_threads()  # before `tune_cpu` changes it
SMALL_BATCH = 8  # images; up to here one CPU thread is faster than several


def check_pytorch() -> None:
    """Raise InputError if PyTorch is older than requirements.txt says."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        trouble = f"PyTorch {torch.__version__} is too old, 2.6 or later is needed"
        raise InputError(f"{trouble}: pip install -U torch torchvision")


def choose_device(name: str) -> torch.device:
    """Turn `--device` into a device; raises InputError if it does not work here."""
    if name == "auto":  # not MPS: to start so small an operation there takes longer than the CPU
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).add(1).item()
    except (RuntimeError, AssertionError) as error:  # PyTorch without CUDA raises the latter
        trouble = f"--device {name!r} does not work here ({first_line(error)})"
        raise InputError(f"{trouble}: take --device cpu") from error
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

    With four images, a layer takes less time than threads need to synchronise and oneDNN to
    rearrange memory; with larger batches both pay. Denormals (below 1e-38) are slow, and become 0.
    """
    small = batch_size <= SMALL_BATCH
    torch.set_num_threads(1 if small else ALL_THREADS)
    torch.backends.mkldnn.set_flags(not small)
    torch.set_flush_denormal(True)


def to_channels_last(images: Tensor) -> Tensor:
    """Give large batches (B, 3, H, W) the memory layout in which convolutions are fastest."""
    is_small = len(images) <= SMALL_BATCH
    return images if is_small else images.contiguous(memory_format=torch.channels_last)


def data_parallel(net: nn.Module, processes: Processes) -> nn.Module:
    """Return the net to train: of several processes, one that averages their gradients."""
    return nn.parallel.DistributedDataParallel(net) if processes.count > 1 else net


def predict_all(net: nn.Module, loader: DataLoader, processes: Processes) -> tuple[Tensor, Tensor]:
    """Run the net, in evaluation mode, over the N images of a loader, distributed to the processes.

    Returns logits (N, C) and labels (N,), both on the CPU, in every process.
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
    return processes.all_reduce_sum(logits).cpu(), dataset.labels.cpu()
