"""Settings: what may be typed, errors in one line, and what TensorBoard shows of them."""

import argparse
import contextlib
import math
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torchvision

from support.errors import InputError
from support.run import Run
from support.terminal import STAND_IN_NOTE, resume_command, start_command


class Parser(argparse.ArgumentParser):
    """argparse that shows defaults, takes no abbreviations, and raises InputError on bad input."""

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False
        )
        for name, parse in TYPES.items():
            self.register("type", name, parse)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{' '.join(message.split())} (see --help)")  # whatever was typed

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Parse `argv`, by default the command line; raises InputError."""
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
        says_nothing = action.default in (None, []) or action.default is False
        return action.help if says_nothing else super()._get_help_string(action)


def number_type(convert: Callable, low: float, high: float, expected: str) -> Callable:
    """Return a type for argparse that takes numbers from `low` to `high` and nothing else."""

    def parse(text: str):
        with contextlib.suppress(ValueError):
            value = convert(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, not {text!r}")

    return parse


def folder_name(text: str) -> str:
    """Parse the name of one folder, on any system: Windows reserves the most names."""
    reserved = re.fullmatch(r"(?i:con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", text)
    if reserved or text[-1:] in ("", ".", " ") or re.search(r'[\\/:*?"<>|\x00-\x1f]', text):
        raise argparse.ArgumentTypeError(f"expected a folder's name, on any system, not {text!r}")
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
    names = "epochs, batch size, lr, momentum, schedule, augment, seed, train images, wrong labels"
    found = {name: getattr(run.args, name.replace(" ", "_")) for name in names.split(", ")}
    found["augment"] = "on" if run.args.augment else "off"
    found["train images"] = len(run.data.train_loader.dataset)
    found["images"] = Path(run.data.source).name
    found["device"] = run.processes.device.type
    return found


def settings_table(run: Run) -> list[tuple[str, object]]:
    """Rows for the TEXT tab: what this run is, and how to resume it or do it again."""
    return [
        ("setting", "value"),
        *([("NOTE", STAND_IN_NOTE)] if run.data.is_stand_in else []),
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
