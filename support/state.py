"""The state of a run: what a checkpoint holds, taken from a run and put back into it."""

from __future__ import annotations

import argparse
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from support.checkpoint import load_checkpoint, save_checkpoint
from support.errors import InputError, NothingToDo
from support.processes import broadcast_from_first
from support.run_dir import cannot_write, check_log_dir, lock_run_dir, make_run_dir
from support.settings import saved_settings
from support.terminal import not_writable


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches done in the current epoch
    step: int = 0  # batches done in all: the x axis in TensorBoard
    finished: bool = False


def saved_run(
    args: argparse.Namespace, parse_args: Callable[[list[str]], argparse.Namespace]
) -> tuple[argparse.Namespace, dict | None]:
    """Return the settings and the state of the run that `--resume` names; else `args` and None.

    Raises InputError if there is no such run, NothingToDo if it is finished.
    """
    if args.resume is None:
        check_log_dir(args.log_dir)
        return args, None
    state = load_checkpoint(args.resume)
    if state["progress"].get("finished"):
        raise NothingToDo(f"the run in {args.resume!r} is finished: nothing is left to resume")
    return saved_settings(state["settings"], parse_args, args.resume), state


def start_run(run, state: dict | None) -> None:
    """Make the folder of a new run, or bring back the one of which `state` was saved.

    Raises InputError if that cannot be; then nothing is left behind.
    """
    train_images, batch_size = len(run.data.train_loader.dataset), run.args.batch_size
    if batch_size > train_images:
        raise InputError(
            f"--batch-size {batch_size} is more than the {train_images} training images: "
            "take a smaller one"
        )
    run.data_checksum = data_checksum(run.data)
    if state:
        restore(run, state)
    take = take_saved_folder if state else make_folder
    run.run_dir = broadcast_from_first(lambda: take(run), run.processes)


def make_folder(run) -> Path:
    """Make and lock the folder of a new run, and save what `--resume` needs."""
    args, data = run.args, run.data
    # The name says that the images are not those of the notes, unless both were asked for.
    asked_for = args.run_name and args.data == data.source
    suffix = "-shapes" if data.is_stand_in and not asked_for else ""
    run_dir = make_run_dir(args.log_dir, args.run_name, suffix)
    # A resumed run must find the same images, wherever it is resumed from.
    args.data, args.data_dir = data.source, str(Path(args.data_dir).absolute())
    try:
        run.lock = lock_run_dir(run_dir)
        save_checkpoint(run_dir, state_of(run))
    except OSError as error:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise InputError(cannot_write(run_dir, error)) from error
    return run_dir


def take_saved_folder(run) -> Path:
    """Lock the folder of the run that is resumed."""
    run_dir = Path(run.args.resume)
    try:
        run.lock = lock_run_dir(run_dir)
    except OSError as error:
        raise not_writable(run_dir, error) from error
    if load_checkpoint(run_dir)["progress"] != vars(run.progress):
        run.lock.release()
        raise InputError(
            f"{str(run_dir)!r} was trained by another process meanwhile: resume it again"
        )
    return run_dir


def state_of(run) -> dict:
    """Everything that a resumed run needs to end as if it had not been stopped."""
    return {
        "settings": vars(run.args) | {"resume": None},
        "classes": run.data.classes,
        "data_checksum": run.data_checksum,
        "net": run.net.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "shuffle_state": run.shuffle_state,
        "random_state": torch.get_rng_state(),
        "progress": vars(run.progress),
        "losses": run.losses[: run.batches_since_report].clone(),
    }


def restore(run, state: dict) -> None:
    """Put a new run into the state that `state_of` returned; raises InputError if it cannot."""
    if state["classes"] != run.data.classes or state["data_checksum"] != run.data_checksum:
        raise InputError(
            f"{run.args.resume!r} was trained on other images than {run.args.data!r} holds now: "
            "bring those back, or start a new run"
        )
    try:
        run.net.load_state_dict(state["net"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scheduler.load_state_dict(state["scheduler"])
        run.data.train_loader.generator.set_state(state["shuffle_state"])
        run.shuffle_state = state["shuffle_state"]
        torch.set_rng_state(state["random_state"])
        run.progress = read_progress(run, state["progress"])
        run.losses[: run.batches_since_report] = state["losses"].to(run.losses.device)
    except Exception as error:  # strange content is refused in as many ways as there are parts
        raise InputError(
            f"the checkpoint in {run.args.resume!r} does not fit the net in model.py, or its "
            "content is damaged: start a new run"
        ) from error


def read_progress(run, state: dict) -> Progress:
    """Turn saved progress into Progress again; raises some error if it makes no sense."""
    progress = Progress(**state)
    for name, default in vars(Progress()).items():
        if type(state[name]) is not type(default):
            raise TypeError(f"{name} is {state[name]!r}")
    epoch_steps = len(run.data.train_loader)
    if (
        progress.step != progress.epoch * epoch_steps + progress.batch
        or not 0 <= progress.batch < epoch_steps
        or progress.epoch < 0
    ):
        raise ValueError(f"{progress} does not belong to this run")
    return progress


def data_checksum(data) -> int:
    """A checksum of all training and test images and their labels."""
    checksum = 0
    for dataset in (data.train_loader.dataset, data.test_loader.dataset):
        for tensor in (dataset.images, dataset.labels):
            checksum = zlib.crc32(tensor.cpu().numpy(), checksum)
    return checksum
