"""Settings: what may be typed, errors in one line, and what TensorBoard shows of them."""

from __future__ import annotations

import argparse
import math
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
import torchvision

from support.errors import InputError
from support.terminal import STAND_IN_NOTE, resume_command, start_command

if TYPE_CHECKING:
    from support.run import Run


class Parser(argparse.ArgumentParser):
    """argparse that shows defaults, takes no abbreviations, and raises InputError on bad input."""

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False
        )
        for name, parse in TYPES.items():
            self.register("type", name, parse)

    def error(self, message: str) -> NoReturn:
        # argparse quotes what was typed, line breaks included
        raise InputError(f"{' '.join(message.split())} (see --help)")

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Parse `argv`, by default the command line; `--resume` must then stand alone.

        Raises InputError.
        """
        argv = sys.argv[1:] if argv is None else argv
        for text in argv:
            if "\0" in text or text != text.encode(errors="replace").decode():
                self.error(f"{text!r} is not readable text")
        args = self.parse_args(argv)
        others = [t for t in argv if t.startswith("--") and not t.startswith("--resume")]
        if args.resume is not None and others:
            self.error(f"--resume takes every setting from its run: leave out {' '.join(others)}")
        return args


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """argparse's help with defaults, but only where the default says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


def number_type(convert: Callable, low: float, high: float, expected: str) -> Callable:
    """Return a type for argparse that takes numbers from `low` to `high` and nothing else."""

    def parse(text: str):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {expected}, not {text!r}")
        return value

    return parse


def folder_name(text: str) -> str:
    """Parse the name of one folder, on any system: Windows reserves the most names."""
    reserved = re.fullmatch(r"(?i:con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", text)
    if reserved or text[-1:] in ("", ".", " ") or re.search(r'[\\/:*?"<>|\x00-\x1f]', text):
        raise argparse.ArgumentTypeError(
            f"expected the name of a folder, on every system, not {text!r}"
        )
    return text


TYPES = {  # what `type=` of a flag may be
    "count": number_type(int, 1, 10**9, "a whole number above zero"),
    "count or 0": number_type(int, 0, 10**9, "a whole number, 0 or more"),
    "seed": number_type(int, 0, 2**63 - 1, "a whole number from 0 to 2^63 - 1"),
    "positive": number_type(float, math.nextafter(0, 1), sys.float_info.max, "a number above zero"),
    "fraction": number_type(float, 0, math.nextafter(1, 0), "a number from 0 to below 1"),
    "folder": folder_name,
}


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
        ("images held back", run.args.validation),
        ("test images", len(run.data.test_loader.dataset)),
        ("classes", ", ".join(run.data.classes)),
        ("processes", run.processes.count),
        ("PyTorch", f"{torch.__version__}, torchvision {torchvision.__version__}"),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("command", start_command(*sys.argv[1:])),
        ("resume", resume_command(run.run_dir)),
    ]
