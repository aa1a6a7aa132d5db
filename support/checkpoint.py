"""What is saved of a run, to a file and back: whole, or not at all.

A checkpoint is a plain dictionary of tensors, numbers and strings in `RUN_DIR/checkpoint.pt`.
"""

import io
import os
import zipfile
import zlib
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from support.errors import InputError, first_line

FILE_NAME = "checkpoint.pt"
FORMAT_VERSION = 3


def save_checkpoint(run_dir: Path, state: dict) -> None:
    """Write `state` to the run folder: whole, or not at all; raises OSError."""
    path = run_dir / FILE_NAME
    temporary = path.with_suffix(".pt.tmp")
    buffer = io.BytesIO()  # torch.save itself turns an OSError of its file into other errors
    torch.save({"format": FORMAT_VERSION, **state}, buffer)
    with open(temporary, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # otherwise a power cut may leave the new name with no content
    os.replace(temporary, path)  # atomic: a kill at any moment leaves the old one or the new one


def load_checkpoint(run_dir: str | Path) -> dict:
    """Read what `save_checkpoint` wrote, tensors on the CPU; InputError if it is not whole."""
    path = Path(run_dir) / FILE_NAME
    if not os.path.isfile(path):  # unlike Path.is_file, it never raises
        raise InputError(f"no {FILE_NAME} in {str(run_dir)!r}: give the folder of a run")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not check the sums in it
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)  # runs no code in it
        if not isinstance(state, dict) or state.get("format") != FORMAT_VERSION:
            raise ValueError(f"not a checkpoint of this program, format {FORMAT_VERSION}")
        return state
    except Exception as error:  # there are as many as there are ways to damage a file
        trouble = f"{str(path)!r} cannot be read as a checkpoint ({first_line(error)})"
        raise InputError(f"{trouble}: it is damaged or another program's; start anew") from error


def restore_net(state: dict, net: nn.Module, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Put back what training had changed in these; raises some error if it does not fit."""
    # The optimizer's state is kept by the place of a weight in the net: other places, or a buffer
    # of another shape, would be read past their ends.
    if list(state["net"]) != list(net.state_dict()):
        raise ValueError("the layers have other names or another order")
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    for weights, buffers in optimizer.state.items():
        for name, buffer in buffers.items():
            if isinstance(buffer, torch.Tensor) and buffer.shape not in ((), weights.shape):
                raise ValueError(f"the optimizer's {name} has the shape {tuple(buffer.shape)}")
    scheduler.load_state_dict(state["scheduler"])


def data_checksum(*datasets) -> int:
    """A checksum of the `images` and `labels` of all data sets; one given twice counts once."""
    checksum = 0
    for dataset in dict.fromkeys(datasets):
        for tensor in (dataset.images, dataset.labels):
            checksum = zlib.crc32(tensor.cpu().numpy(), checksum)
    return checksum
