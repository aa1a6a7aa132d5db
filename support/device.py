"""Which device trains, and what makes a net as small as ours fast on it."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn

from support.errors import InputError

ALL_THREADS = torch.get_num_threads()
SMALL_BATCH = 8  # images; up to here one CPU thread is faster than several


def choose_device(name: str) -> torch.device:
    """Turn `--device` into a device; raises InputError if this machine has no such device."""
    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.insert(0, "mps")
    if torch.cuda.is_available():
        found.insert(0, "cuda")
        found += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name == "auto":
        name = found[0]
    if name not in found:
        raise InputError(f"--device {name!r}: this machine has {', '.join(found)} (or say auto)")
    return torch.device(name)


def tune_cpu(batch_size: int) -> None:
    """Set PyTorch's CPU threads and kernels to suit the batch size (measured: benchmarks/).

    A layer of this net is done with four images in less time than threads need to meet and oneDNN
    needs to rearrange memory; with larger batches both pay.
    """
    small = batch_size <= SMALL_BATCH
    torch.set_num_threads(1 if small else ALL_THREADS)
    torch.backends.mkldnn.set_flags(not small)
    torch.set_flush_denormal(True)  # numbers below 1e-38 become 0: with them CPUs are very slow


def to_layout(images: torch.Tensor) -> torch.Tensor:
    """Give large batches (B, 3, H, W) the memory layout that convolutions are fastest with."""
    if len(images) <= SMALL_BATCH:
        return images
    return images.contiguous(memory_format=torch.channels_last)


def predict(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Compute logits (B, C) of a large batch (B, 3, 32, 32), where no gradients are wanted.

    On a CPU oneDNN is faster when one layer hands its result to the next in oneDNN's own format.
    Its relu and its pooling turn NaN into a number, though.
    """
    if images.device.type == "cpu" and torch.backends.mkldnn.is_available():
        with contextlib.suppress(RuntimeError):  # the net has a layer that oneDNN lacks: do without
            return net(images.to_mkldnn()).to_dense()
    return net(to_layout(images))


def prepare_net(net: nn.Module, images: torch.Tensor, processes: int) -> Callable:
    """Return what computes logits from a batch like `images` in training, by the weights of `net`.

    That is the net itself on one CPU. Several processes average their gradients. On CUDA a net as
    small as this one waits for Python at every kernel, so its kernels, forward and backward, are
    recorded once and replayed at every step.
    """
    if processes > 1:
        return nn.parallel.DistributedDataParallel(net)
    if images.device.type != "cuda":
        return net
    images = to_layout(images)
    recorded = torch.cuda.make_graphed_callables(nn.Sequential(net), (images,))

    def forward(batch: torch.Tensor) -> torch.Tensor:
        # A recording knows one batch size: the last batch of an epoch may be smaller.
        return recorded(batch) if batch.shape == images.shape else net(batch)

    return forward
