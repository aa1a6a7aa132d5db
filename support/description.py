"""What a run is, in words and numbers: for the HPARAMS and TEXT tabs."""

import platform
from pathlib import Path

import torch
import torchvision

from support.run import Run
from support.session import STAND_IN_NOTE
from support.terminal import command_line, resume_command


def hyperparameters(run: Run) -> dict[str, str | bool | int | float]:
    """What distinguishes one run from another: a row of the HPARAMS table."""
    args = run.args
    return {
        "epochs": args.epochs,
        "batch size": args.batch_size,
        "lr": args.lr,
        "momentum": args.momentum,
        "schedule": args.schedule,
        "augment": "on" if args.augment else "off",
        "seed": args.seed,
        "train images": len(run.data.train_loader.dataset),
        "wrong labels": args.wrong_labels,
        "images": Path(run.data.source).name,
        "device": run.processes.device.type,
    }


def settings_table(run: Run) -> list[tuple[str, object]]:
    """Rows for the TEXT tab: what this run is, and how to resume it or do it again."""
    note = [("NOTE", STAND_IN_NOTE)] if run.data.is_stand_in else []
    return [
        ("setting", "value"),
        *note,
        *hyperparameters(run).items(),
        ("test images", len(run.data.test_loader.dataset)),
        ("classes", ", ".join(run.data.classes)),
        ("processes", run.processes.count),
        ("PyTorch", f"{torch.__version__}, torchvision {torchvision.__version__}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("command", command_line()),
        ("resume", resume_command(run.run_dir)),
    ]
