"""A run: what it is made of, its folder, its settings, and its state, saved and restored."""

import argparse
import os
import platform
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
import torchvision
from torch import nn

from data import Data
from support.checkpoint import save_checkpoint
from support.errors import InputError
from support.processes import Processes
from support.settings import parse_args
from support.terminal import quote

SHAPES_NOTE = "NOTE: these images are the built-in SHAPES, not CIFAR-10: its figures do not apply."


@dataclass
class Progress:
    """How far a run has come; a checkpoint holds it, and `--resume` goes on from it."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches done in the epoch under way
    step: int = 0  # batches done in all: the x axis in TensorBoard
    window: int = 0  # batches since the last report
    images: int = 0  # since the last report
    seconds: float = 0.0  # of training since the last report, views not counted
    finished: bool = False


@dataclass
class Run:
    """What the parts of a run have in common."""

    args: argparse.Namespace
    run_dir: Path
    device: torch.device
    processes: Processes
    data: Data
    data_checksum: int
    net: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler | None
    shuffle_state: torch.Tensor  # of the loader's generator, at the start of the epoch
    progress: Progress
    losses: torch.Tensor  # of each batch since the last report; in one tensor, which stays
    view_seconds: float = 0.0  # spent on drawing and writing views


def make_run_dir(log_dir: str, run_name: str | None, suffix: str) -> Path:
    """Make a new folder for the run, named by `run_name` or else by the time, and the suffix.

    Raises InputError if it cannot be written or if a run of that name is there.
    """
    name = (run_name or datetime.now().strftime("%Y-%m-%d_%H-%M-%S")) + suffix
    path = Path(log_dir) / name
    for attempt in range(2, 1000):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if run_name or not path.is_dir():
                raise InputError(
                    f"{str(path)!r} is there already: choose another --run-name, or go on with "
                    f"that run by --resume"
                ) from None
            path = path.with_name(f"{name}_{attempt}")  # two runs begun in the same second
        except OSError as error:
            raise InputError(cannot_write(path, error)) from error
    raise InputError(f"{log_dir!r} holds too many runs of this second")


def check_log_dir(log_dir: str) -> None:
    """Raise InputError, before any work, if no folder can be made in `log_dir`."""
    path = Path(log_dir).absolute()
    while not os.path.lexists(path):  # unlike Path.exists, it never raises
        path = path.parent
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        raise InputError(f"--log-dir {log_dir!r}: {str(path)!r} is no folder that can be written")


def cannot_write(path: str | Path, error: OSError) -> str:
    """Say in one line that a folder does not take our files, and why."""
    return f"cannot write to {str(path)!r} ({error.strerror or error})"


def hyperparameters(run: Run) -> dict[str, str | bool | int | float]:
    """What distinguishes one run from another, for the HPARAMS table."""
    args = run.args
    return {
        "epochs": args.epochs,
        "batch size": args.batch_size,
        "lr": args.lr,
        "momentum": args.momentum,
        "schedule": args.schedule,
        "augment": "on" if args.augment else "off",
        "seed": args.seed,
        "images": run.data.source,
        "device": run.device.type,
    }


def settings_table(run: Run) -> list[tuple[str, str]]:
    """Rows for the TEXT tab: what this run is, and how to go on with it or do it again."""
    train_set, test_set = run.data.train_loader.dataset, run.data.test_loader.dataset
    rows = [("setting", "value")]
    rows += [(name, str(value)) for name, value in hyperparameters(run).items()]
    rows += [
        ("training / test images", f"{len(train_set):,} / {len(test_set):,}"),
        ("classes", ", ".join(run.data.classes)),
        ("PyTorch", f"{torch.__version__}, torchvision {torchvision.__version__}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("command", f"`python {' '.join(map(quote, sys.argv))}`"),
        ("resume", f"`python train_cifar.py --resume {quote(run.run_dir)}`"),
    ]
    if run.data.source == "shapes":
        rows.insert(1, ("NOTE", SHAPES_NOTE))
    return rows


def save(run: Run) -> None:
    """Write the checkpoint that `--resume` goes on from; the process of rank 0 does it for all."""
    if run.processes.rank > 0:
        return
    progress = run.progress
    scheduler = run.scheduler.state_dict() if run.scheduler else None
    save_checkpoint(
        run.run_dir,
        {
            "settings": vars(run.args),
            "classes": run.data.classes,
            "data_checksum": run.data_checksum,
            "net": run.net.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scheduler": scheduler,
            "shuffle_state": run.shuffle_state,
            "random_state": torch.get_rng_state(),
            "progress": vars(progress),
            "losses": run.losses[: progress.window].clone(),
        },
    )


def restore(run: Run, state: dict) -> None:
    """Put the run into the state that `save` wrote; raises InputError if it does not fit."""
    if state["classes"] != run.data.classes or state["data_checksum"] != run.data_checksum:
        raise InputError(
            f"{str(run.run_dir)!r} was trained on other images than {run.args.data!r} holds now: "
            "bring those back, or start a new run"
        )
    try:
        run.net.load_state_dict(state["net"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.scheduler:
            run.scheduler.load_state_dict(state["scheduler"])
        run.data.train_loader.generator.set_state(state["shuffle_state"])
        torch.set_rng_state(state["random_state"])
        run.progress = read_progress(run, state["progress"])
        run.losses[: run.progress.window] = state["losses"].to(run.device)
    except Exception as error:  # strange content is refused in as many ways as there are parts
        raise InputError(
            f"the checkpoint in {str(run.run_dir)!r} is of another net than model.py's, or its "
            "content is damaged: start a new run"
        ) from error
    run.shuffle_state = state["shuffle_state"]


def read_progress(run: Run, state: dict) -> Progress:
    """Turn what `save` made of the progress into it again; raises an error of some kind if not."""
    progress = Progress(**state)
    for name, default in vars(Progress()).items():
        if type(state[name]) is not type(default):
            raise TypeError(f"{name} is {state[name]!r}")
    epoch_steps = len(run.data.train_loader)
    if progress.step != progress.epoch * epoch_steps + progress.batch or not (
        0 <= progress.batch < epoch_steps
        and progress.epoch >= 0
        and 0 <= progress.window < len(run.losses)
    ):
        raise ValueError(f"{progress} is none of this run")
    return progress


def read_settings(state: dict, run_dir: str) -> argparse.Namespace:
    """Return the settings of the run in `run_dir`, checked like those of a command line.

    Raises InputError if they are not the settings of this program.
    """
    settings = state["settings"] | {"resume": None}
    words = []
    for name, value in settings.items():
        flag = f"--{name}".replace("_", "-")
        if isinstance(value, list):
            words += [f"{flag}={item}" for item in value]
        elif value is True:
            words.append(flag)
        elif value not in (None, False):
            words.append(f"{flag}={value}")
    args = parse_args(words)
    if vars(args) != settings:
        raise InputError(
            f"the checkpoint in {run_dir!r} has other settings than this version of the program: "
            "start a new run"
        )
    args.resume = run_dir
    return args
