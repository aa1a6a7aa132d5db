"""What the program hears and says: signals, lines on the terminal, and the exit status."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from support.device import device_errors
from support.errors import InputError, NothingToDo, RunError, Stopped
from support.processes import is_first, is_lost_process, under_torchrun
from support.run_dir import cannot_write, order_event_files

if TYPE_CHECKING:
    from support.run import Run

PROGRAM = "train_cifar.py"
STAND_IN_NOTE = (
    "NOTE: these images are the built-in SHAPES, not CIFAR-10: its figures do not apply."
)
PATIENCE_NOTE = (
    "NOTE: with the default settings the loss stays near 2.30 for some 5,000 steps, then falls."
)
ENOUGH_STEPS = 2000  # a net that starts from chance needs about so many


def exit_status(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], int]:
    """Make `main` return an exit status, and every known error one line on stderr.

    0: done; 1: the run failed; 2: bad input; 128 + n: stopped by signal n.
    """

    @functools.wraps(main)
    def run_main(argv: list[str] | None = None) -> int:
        prepare_streams()
        threading.excepthook = report_thread_error
        try:
            main(argv)
        except NothingToDo as reason:
            say(str(reason))
        except InputError as error:
            return fail(2, f"error: {error}")
        except (RunError, OSError) as error:
            return fail(1, f"failed: {error}")
        except Stopped as stop:
            say(str(stop))
            return 128 + stop.signum
        except KeyboardInterrupt:
            return fail(128 + signal.SIGINT, "interrupted")
        except RuntimeError as error:
            if not is_lost_process(error):
                raise
            # The survivor reports it; rank 0 may be the one that died.
            return complain(1, "failed: another process of this run has ended")
        return 0

    return run_main


def prepare_streams() -> None:
    """Make stdout and stderr usable, whatever the shell has done to them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or (name == "stdout" and not is_first()):  # closed; or not the speaker
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # class names may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line without tearing the progress bar; a file or pipe gets it at once.

    Raises RunError if the output cannot be written.
    """
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            # Python would try once more, when it ends, to write what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        broken = isinstance(error, BrokenPipeError)  # for example after `| head`
        reason = "nobody reads it" if broken else error.strerror or error
        raise RunError(
            f"the output cannot be written ({reason}); a run that was saved can be resumed"
        ) from error


def progress_bar(title: str, unit: str, done: int, total: int) -> tqdm:
    """A bar on a terminal; in a file or a pipe, none."""
    return tqdm(total=total, initial=done, desc=title, unit=f" {unit}", disable=None, leave=False)


def fail(status: int, message: str) -> int:
    """Print one line on stderr, whatever the number of processes, and return the exit status."""
    return complain(status, message) if is_first() else status


def complain(status: int, message: str) -> int:
    """Print one line on stderr, in this process, and return the exit status."""
    with contextlib.suppress(OSError):  # stderr is closed or full: the status has to do
        print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)
    return status


def report_thread_error(error: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread, but not for an OSError (such as a full disk).

    TensorBoard's writer hands the OSError of its thread on to ours, where it gets one line.
    """
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


@contextlib.contextmanager
def in_progress(run: Run) -> Iterator[None]:
    """Say what is run and where, catch signals, and close the writer at the end.

    Raises RunError if the run folder cannot be written to, or if the device fails.
    """
    begun = time.perf_counter()
    watch = f"tensorboard --logdir {quote(run.run_dir.parent)} --samples_per_plugin images=100"
    say(f"images  {run.data.source}: {len(run.data.train_loader.dataset):,} to train on")
    say(f"device  {run.processes.device}")
    say(f"run     {run.run_dir}")
    say(f"watch   {watch}  (in a second terminal)")
    if run.data.is_stand_in:
        say(STAND_IN_NOTE)
        say(PATIENCE_NOTE)
    elif run.is_new and is_short(run):
        say(short_run_note(run))
    order_event_files(run.run_dir)
    try:
        with caught_signals() as run.signals, device_errors(run.processes.device):
            yield
    except OSError as error:
        raise not_writable(run.run_dir, error) from error
    finally:
        if run.writer:
            with contextlib.suppress(OSError):  # a full disk has been reported
                run.writer.close()
        if run.is_first:
            run.lock.release()
    seconds = time.perf_counter() - begun
    say(f"finished in {seconds:.1f} s, {run.view_seconds:.1f} s of it for views")
    if run.data.is_stand_in:
        say(STAND_IN_NOTE)
    say("now look at it:")
    say(f"  {watch}")


def is_short(run: Run) -> bool:
    """Whether a run on the reader's own pictures has the default rate and too few steps for it."""
    args = run.args
    steps = args.epochs * len(run.data.train_loader)
    by_default = args.lr == 0.001 and args.schedule == "constant"
    return run.data.source != "cifar10" and by_default and steps < ENOUGH_STEPS


def short_run_note(run: Run) -> str:
    """What to type instead: 16 images a step and about 2,000 steps, in 20 to 100 epochs."""
    steps = run.args.epochs * len(run.data.train_loader)
    tens = math.ceil(1.6 * ENOUGH_STEPS / len(run.data.train_loader.dataset))
    epochs = min(100, max(20, 10 * tens))
    words = f"--epochs {epochs} --batch-size 16 --lr 0.02 --schedule onecycle --augment".split()
    return (
        f"NOTE: {steps:,} steps are too few to learn with the default settings; better: "
        f"{start_command('--data', run.args.data, *words)}"
    )


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM instead of dying of it; a second one ends at once."""
    caught: list[int] = []
    signums = signal.SIGINT, signal.SIGTERM

    def on_signal(signum: int, frame: object) -> None:
        caught.append(signum)
        for signum in signums:
            signal.signal(signum, signal.SIG_DFL)

    before = {signum: signal.signal(signum, on_signal) for signum in signums}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def quote(text: str | Path) -> str:
    """Quote a word for the shell of this system."""
    text = str(text)
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


def start_command(*words: str) -> str:
    """A command line that starts this program with other words, from the same folder."""
    if under_torchrun():
        program = ["torchrun", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}"]
    else:
        program = [Path(sys.executable).stem or "python"]
    return " ".join(map(quote, [*program, sys.argv[0], *words]))


def command_line() -> str:
    """The command line that started this program."""
    return start_command(*sys.argv[1:])


def resume_command(run_dir: Path) -> str:
    """The command line that resumes a run."""
    if str(run_dir).startswith("-"):  # argparse would take it for a flag
        return start_command(f"--resume={run_dir}")
    return start_command("--resume", str(run_dir))


def not_writable(run_dir: Path, error: OSError) -> RunError:
    """The error of a run whose folder cannot be written to."""
    command = resume_command(run_dir)
    return RunError(f"{cannot_write(run_dir, error)}; when that is fixed, resume with {command}")
