"""The command line of train_cifar.py: every setting, its default, and what it accepts."""

import argparse
import math
import re
import sys


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """argparse's help with defaults, but only where the default says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line instead of the whole usage."""

    def error(self, message: str) -> None:
        message = " ".join(message.split())  # it quotes what was typed, line breaks too
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def number(convert: type, low: float, high: float, expected: str):
    """Return a parser for argparse that takes numbers from `low` to `high` and nothing else."""

    def parse(text: str):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {expected}, not {text!r}")
        return value

    return parse


count = number(int, 1, 10**9, "a whole number above zero")
seed_number = number(int, 0, 2**63 - 1, "a whole number from 0 to 2^63 - 1")
positive = number(float, math.nextafter(0, 1), sys.float_info.max, "a number above zero")
fraction = number(float, 0, math.nextafter(1, 0), "a number from 0 to below 1")


def folder_name(text: str) -> str:
    """Parse the name of one folder, one that Windows takes too."""
    if not text.strip(" .") or re.search(r'[\\/:*?"<>|\x00-\x1f]', text):
        raise argparse.ArgumentTypeError(f"expected the name of a folder, not {text!r}")
    return text


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the notes'. Exits with status 2 on bad input."""
    parser = Parser(
        prog="train_cifar.py",
        description="Train a small network on CIFAR-10 and watch it in TensorBoard.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=count, default=2, help="passes over the images")
    training.add_argument("--batch-size", type=count, default=4, help="images in a batch")
    training.add_argument("--lr", type=positive, default=0.001, help="learning rate of SGD")
    training.add_argument("--momentum", type=fraction, default=0.9, help="momentum of SGD")
    training.add_argument(
        "--schedule",
        choices=["constant", "onecycle"],
        default="constant",
        help="course of the learning rate; onecycle rises to --lr and falls to almost zero",
    )
    training.add_argument(
        "--augment", action="store_true", help="flip and shift the training images at random"
    )
    training.add_argument("--seed", type=seed_number, default=0, help="same seed, same run")
    training.add_argument(
        "--device", default="auto", help="cpu, cuda or mps; auto takes the fastest there is"
    )

    images = parser.add_argument_group("images")
    images.add_argument(
        "--data",
        default="auto",
        metavar="SOURCE",
        help="cifar10; shapes (built in); a folder with train/CLASS/ and test/CLASS/; "
        "or auto: cifar10 if it can be had, else shapes",
    )
    images.add_argument("--data-dir", default="data", help="where CIFAR-10 is kept")
    images.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="URL",
        help="ask this address for CIFAR-10 first (may be repeated)",
    )

    output = parser.add_argument_group("output")
    output.add_argument("--log-dir", default="runs", help="where the runs are kept")
    output.add_argument(
        "--run-name", type=folder_name, help="folder of this run in --log-dir (default: the time)"
    )
    output.add_argument(
        "--report-every", type=count, default=8000, metavar="IMAGES", help="images a report"
    )
    output.add_argument(
        "--views", choices=["all", "notes"], default="all", help="notes: only the notes' five views"
    )
    output.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="go on with a run that was stopped, with its own settings",
    )

    argv = sys.argv[1:] if argv is None else argv
    for text in argv:
        if "\0" in text or text != text.encode(errors="replace").decode():
            parser.error(f"{text!r} is not readable text")
    args = parser.parse_args(argv)
    if args.resume is not None:
        others = [text for text in argv if text.startswith("--") and text[:8] != "--resume"]
        if others:
            parser.error(f"--resume takes every setting from its run: leave out {' '.join(others)}")
    return args
