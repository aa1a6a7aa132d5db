"""What the program hears and says: signals, and lines on the terminal."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from support.processes import is_first


class Stopped(Exception):
    """A signal has ended the training; the run is saved."""

    def __init__(self, signals: list[int]):
        # Without a signal here, another of several processes got one.
        self.signum = signals[0] if signals else signal.SIGTERM
        super().__init__(signal.Signals(self.signum).name)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM instead of dying of it; a second one ends at once."""
    caught: list[int] = []
    signums = signal.SIGINT, signal.SIGTERM

    def note(signum: int, frame: object) -> None:
        caught.append(signum)
        for signum in signums:
            signal.signal(signum, signal.SIG_DFL)

    before = {signum: signal.signal(signum, note) for signum in signums}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def report_thread_error(error: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, but none of a full disk or the like.

    TensorBoard's writer hands the OSError of its thread on to ours, where it gets one line.
    """
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


def say(text: str) -> None:
    """Print a line without tearing the progress bar; a file or pipe gets it at once."""
    tqdm.write(text)
    sys.stdout.flush()


def fail(status: int, message: str) -> int:
    """Print one line on stderr, whatever the number of processes, and return the exit status."""
    if is_first():
        print(f"train_cifar.py: {message}", file=sys.stderr)
    return status


def quote(path: str | Path) -> str:
    """Quote a path for the shell of this system."""
    text = str(path)
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)
