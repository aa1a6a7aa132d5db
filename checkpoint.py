"""Save and restore the state of a run, so that a kill at any moment loses little but time.

A checkpoint is a plain dictionary of tensors, numbers and strings in `RUN_DIR/checkpoint.pt`.
"""

import os
import pickle
from pathlib import Path

import torch

NAME = "checkpoint.pt"
FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not of this run; the message says what to do."""


def save_checkpoint(run_dir: Path, state: dict) -> None:
    """Write `state` to the run directory: whole, or not at all.

    It is written beside the old checkpoint and then moved over it, which is atomic, so a kill at
    any moment leaves the old one or the new one. Raises OSError if the disk does not take it.
    """
    path = run_dir / NAME
    beside = path.with_suffix(".pt.tmp")
    with open(beside, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())  # otherwise a power cut may leave the new name with no content
    os.replace(beside, path)


def load_checkpoint(run_dir: Path) -> dict:
    """Read the state that `save_checkpoint` wrote, with its tensors on the CPU.

    `weights_only=True` builds tensors and plain Python values only: a file from elsewhere cannot
    run code. Raises CheckpointError if there is none, or if it is not a whole checkpoint of ours.
    """
    path = run_dir / NAME
    if not path.is_file():
        raise CheckpointError(f"no {NAME} in {str(run_dir)!r}: give the directory of a run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{str(path)!r} cannot be read as a checkpoint ({reason}): it is damaged or comes from "
            "another program; start a new run without --resume"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{str(path)!r} is not a checkpoint of this program (format {FORMAT}): "
            "give the directory of a run"
        )
    return state
