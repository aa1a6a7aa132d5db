"""The state of a run, to a file and back: whole, or not at all.

A checkpoint is a plain dictionary of tensors, numbers and strings in `RUN_DIR/checkpoint.pt`.
"""

import io
import os
import zipfile
from pathlib import Path

import torch

from support.errors import InputError, first_line

FILE_NAME = "checkpoint.pt"
FORMAT_VERSION = 2
KEYS = {  # what a checkpoint holds
    "settings": dict,
    "classes": list,
    "data_checksum": int,
    "net": dict,
    "optimizer": dict,
    "scheduler": dict,
    "shuffle_state": torch.Tensor,
    "random_state": torch.Tensor,
    "progress": dict,
    "losses": torch.Tensor,
}


def save_checkpoint(run_dir: Path, state: dict) -> None:
    """Write `state` to the run folder: whole, or not at all.

    It is written next to the old checkpoint and then moved over it, which is atomic, so a kill at
    any moment leaves the old one or the new one. Raises OSError if the disk does not take it.
    """
    path = run_dir / FILE_NAME
    temporary = path.with_suffix(".pt.tmp")
    buffer = io.BytesIO()  # torch.save itself turns an OSError of its file into other errors
    torch.save({"format": FORMAT_VERSION, **state}, buffer)
    with open(temporary, "wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())  # otherwise a power cut may leave the new name with no content
    os.replace(temporary, path)


def load_checkpoint(run_dir: str | Path) -> dict:
    """Read the state that `save_checkpoint` wrote, with its tensors on the CPU.

    `weights_only=True` builds tensors and plain Python values only: a file from elsewhere cannot
    run code. Raises InputError if there is none, or if it is not a complete checkpoint of this
    program.
    """
    path = Path(run_dir) / FILE_NAME
    if not os.path.isfile(path):  # unlike Path.is_file, it never raises
        raise InputError(f"no {FILE_NAME} in {str(run_dir)!r}: give the folder of a run")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not check the sums in it
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there are as many as there are ways to damage a file
        raise InputError(
            f"{str(path)!r} cannot be read as a checkpoint ({first_line(error)}): it is damaged "
            "or comes from another program; start a new run without --resume"
        ) from error
    if (
        not isinstance(state, dict)
        or state.get("format") != FORMAT_VERSION
        or not all(isinstance(state.get(name), kind) for name, kind in KEYS.items())
    ):
        raise InputError(
            f"{str(path)!r} is not a checkpoint of this program (format {FORMAT_VERSION}): "
            "start a new run without --resume"
        )
    return state
