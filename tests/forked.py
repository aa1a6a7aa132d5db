"""Runs of the program in processes of their own, for tests that kill them or do other harm.

A fresh Python needs three seconds to import PyTorch. Here one process imports it and forks for
every run, which takes some hundredths of a second. What goes wrong in a run, and when, is a
`Fault`.
"""

import functools
import itertools
import multiprocessing
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import pytest

import train_cifar

if "forkserver" not in multiprocessing.get_all_start_methods():
    pytest.skip("this system cannot fork a process", allow_module_level=True)

CONTEXT = multiprocessing.get_context("forkserver")
HANG = 120  # seconds; a run takes one or two

# What may happen to a process: a power cut, Ctrl-C, `kill` on the command line, a lost terminal.
kill = functools.partial(signal.raise_signal, signal.SIGKILL)
interrupt = functools.partial(signal.raise_signal, signal.SIGINT)
terminate = functools.partial(signal.raise_signal, signal.SIGTERM)
hang_up = functools.partial(signal.raise_signal, signal.SIGHUP)


class Fault(NamedTuple):
    """What is done to a run at a function of it, named as `module.name`, at its n-th call."""

    place: str
    do: Callable[[], None]
    call: int = 1
    after: bool = False  # once the function has returned

    def __call__(self) -> None:
        """Put a function that does it in the place of the one that is named."""
        owner_name, _, name = self.place.rpartition(".")
        owner = pkgutil.resolve_name(owner_name)
        original, calls = getattr(owner, name), itertools.count(1)

        @functools.wraps(original)
        def faulty(*args: object, **kwargs: object) -> object:
            is_due = next(calls) == self.call
            if is_due and not self.after:
                self.do()
            result = original(*args, **kwargs)
            if is_due and self.after:
                self.do()
            return result

        setattr(owner, name, faulty)


def put_clock_ahead(seconds: float) -> None:
    """Give this process a clock that is so much ahead.

    A resumed run waits until its event file gets a later second in its name than those before. It
    need not wait when its clock is a second ahead of theirs.
    """
    now = time.time
    time.time = lambda: now() + seconds


class Finished(NamedTuple):
    """How a run ended: exit status (minus the signal that killed it) and stdout with stderr."""

    status: int
    output: str


def start(
    arguments: Sequence[object], output: Path, *faults: Callable[[], None]
) -> multiprocessing.Process:
    """Start a run of `main`; its stdout and stderr are appended to the file `output`.

    A fault is any function without arguments; the new process calls it before it runs `main`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the server of Python 3.11
        # On macOS a fork that asks for the GPU would be aborted (Apple: "fork safety").
        patch.setenv("OBJC_DISABLE_INITIALIZE_FORK_SAFETY", "YES")
        CONTEXT.set_forkserver_preload(["forked"])
        forkserver.ensure_running()
    words = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=run_here, args=(words, output, faults))
    process.start()
    return process


def finish(process: multiprocessing.Process, output: Path) -> Finished:
    """Wait for the end of a run; one that hangs fails the test."""
    process.join(HANG)
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"the run hangs: {output.read_text(encoding='utf-8')}")
    return Finished(process.exitcode, output.read_text(encoding="utf-8"))


def train(arguments: list[object], run_dir: Path, *faults: Callable[[], None]) -> Finished:
    """Begin the run in `run_dir`, in a process of its own, and wait for its end."""
    return run([*arguments, "--run-name", run_dir.name], run_dir, *faults)


def resume(run_dir: Path, *faults: Callable[[], None]) -> Finished:
    """Resume the run in a process of its own."""
    return run(["--resume", run_dir], run_dir, *faults)


def run(arguments: list[object], run_dir: Path, *faults: Callable[[], None]) -> Finished:
    """Run `main` to its end; what it prints is kept beside the log directory."""
    output = run_dir.parent.with_name(f"{run_dir.parent.name}-{run_dir.name}.txt")
    output.unlink(missing_ok=True)
    return finish(start(arguments, output, *faults), output)


def run_here(words: list[str], output: Path, faults: Sequence[Callable[[], None]]) -> None:
    """In the new process: prepare the faults, then run the program."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    sys.argv = ["train_cifar.py", *words]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    for fault in faults:
        fault()
    sys.exit(train_cifar.main(words))
