"""What the program hears and says: signals, lines on the terminal, and the exit status."""

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

import torch
from tqdm import tqdm

from support.device import check_pytorch, device_errors
from support.errors import InputError, LostProcessError, NothingToDo, RunError, Stopped
from support.processes import lost_process, under_torchrun
from support.run_dir import cannot_write, order_event_files

if TYPE_CHECKING:
    from support.run import Run

PROGRAM = "train_cifar.py"
STAND_IN_NOTE = "NOTE: these images are the built-in SHAPES, not CIFAR-10: its figures do not hold."
PATIENCE_NOTE = "NOTE: with these settings the loss stays at 2.30 for some 5,000 steps, then falls."
ENOUGH_STEPS = 2000  # a net that starts from chance needs about so many


def exit_status(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], int]:
    """Make `main` return an exit status, and every known error one line on stderr.

    0: done; 1: the run failed; 2: bad input; 128 + n: stopped by signal n.
    """

    @functools.wraps(main)
    def run_main(argv: list[str] | None = None) -> int:
        prepare_streams()
        before = threading.excepthook, sys.argv
        threading.excepthook = report_thread_error
        is_typed = hasattr(sys.modules["__main__"], "__file__")  # not so in a notebook or a shell
        if argv is not None and not is_typed and Path(sys.argv[0]).name != PROGRAM:
            sys.argv = [PROGRAM, *argv]  # for the commands that are printed
        try:
            check_pytorch()
            main(argv)
        except (NothingToDo, Stopped) as reason:
            say(str(reason))
            return reason.status
        except InputError as error:
            return fail(2, f"error: {error}")
        except (RunError, OSError) as error:
            # Each survivor tells of a lost process: the first may be the one.
            return fail(1, f"failed: {error}", each=isinstance(error, LostProcessError))
        except KeyboardInterrupt:
            return fail(128 + signal.SIGINT, "interrupted")
        except RuntimeError as error:
            if not lost_process(error):
                raise
            return fail(1, f"failed: {lost_process(error)}", each=True)
        finally:
            threading.excepthook, sys.argv = before
        return 0

    return run_main


def prepare_streams() -> None:
    """Make stdout and stderr usable, whatever the shell has done to them."""
    rank = os.environ["RANK"] if under_torchrun() else "0"
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or (name == "stdout" and rank != "0"):  # closed; or not the speaker
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # class names may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line without tearing the progress bar, at once; RunError if that cannot be."""
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            # Python would try once more, when it ends, to write what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        broken = isinstance(error, BrokenPipeError)  # for example after `| head`
        reason = "nobody reads it" if broken else error.strerror or error
        trouble = f"the output cannot be written ({reason})"
        raise RunError(f"{trouble}; a run that was saved can be resumed") from error


def fail(status: int, message: str, each: bool = False) -> int:
    """Print one line on stderr, on each machine or from each process; returns the status."""
    rank = os.environ["RANK"] if under_torchrun() else "0"
    if each or not under_torchrun() or os.environ["LOCAL_RANK"] == "0":
        who = "" if rank == "0" else f"process {rank}: "
        with contextlib.suppress(OSError):  # stderr is closed or full: the status has to do
            print(f"{PROGRAM}: {who}{message}", file=sys.stderr, flush=True)
    return status


def report_thread_error(error: threading.ExceptHookArgs) -> None:
    """Print a thread's traceback, but not of an OSError: TensorBoard's writer hands it on to us."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


@contextlib.contextmanager
def in_progress(run: "Run") -> Iterator[None]:
    """Say what is run and where, catch signals, and close the writer at the end; RunError."""
    begun = time.perf_counter()
    watch = f"tensorboard --logdir {quote(run.run_dir.parent)} --samples_per_plugin images=100"
    say(f"images  {run.data.source}: {len(run.data.train_loader.dataset):,} to train on")
    say(f"device  {run.processes.device}\nrun     {run.run_dir}")
    say("\n".join([f"watch   {watch}  (in a second terminal)", *notes(run)]))
    order_event_files(run.run_dir)
    try:
        with caught_signals(run.signals), device_errors(run.processes.device):
            yield
    except OSError as error:
        raise not_writable(run.run_dir, error) from error
    except RuntimeError as error:
        if not lost_process(error):
            raise
        resume = resume_command(run.run_dir)
        raise LostProcessError(f"{lost_process(error)}; to resume: {resume}") from error
    finally:
        if run.writer:
            with contextlib.suppress(OSError):  # a full disk has been reported
                run.writer.close()
        if run.is_first:
            run.lock.release()
    note = f"{STAND_IN_NOTE}\n" if run.data.is_stand_in else ""
    seconds = f"{time.perf_counter() - begun:.1f} s, {run.view_seconds:.1f} s of it for views"
    say(f"finished in {seconds}\n{note}now look at it:\n  {watch}")


def notes(run: "Run") -> list[str]:
    """What is worth knowing of a run before it trains, one line each."""
    args, data = run.args, run.data
    found = [STAND_IN_NOTE] if data.is_stand_in else []
    slow = args.lr == 0.001 and args.schedule == "constant"
    if slow and data.is_stand_in and args.batch_size == 4 and args.momentum == 0.9:
        found.append(PATIENCE_NOTE)
    steps = args.epochs * len(data.train_loader)
    own_pictures = data.source not in ("cifar10", "shapes")
    if slow and own_pictures and run.is_new and steps < ENOUGH_STEPS:
        images = len(data.train_loader.dataset)
        # What to type instead was tried on sets of 100 to 2,000 pictures.
        words = "--batch-size 4 --lr 0.01" if images < 500 else "--batch-size 16 --lr 0.02"
        words += f" --schedule onecycle --augment --epochs {40 if images < 2000 else 20}"
        few = f"NOTE: {steps:,} steps are too few to learn with the default settings; better: "
        found.append(few + start_command("--data", args.data, *words.split()))
    return found


def note_chance(accuracy: float, labels: torch.Tensor) -> None:
    """Say so if an accuracy (0 to 1) on labels (N,) is within three standard errors of chance."""
    share = labels.bincount().max().item() / len(labels)
    if accuracy <= share + 3 * math.sqrt(share * (1 - share) / len(labels)):
        chance = f"naming always the largest class ({share:.1%})"
        advice = "docs/sick-runs.md says what it may be"
        say(f"NOTE: a test accuracy of {accuracy:.1%} is no better than {chance}: {advice}")


@contextlib.contextmanager
def caught_signals(caught: list[int]) -> Iterator[None]:
    """Collect the first Ctrl-C, SIGTERM or hang-up, do not die of it; a second ends at once."""
    signums = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up and signal.getsignal(hang_up) != signal.SIG_IGN:  # as under nohup
        signums.append(hang_up)
    if threading.current_thread() is not threading.main_thread():
        signums.clear()  # only the main thread can catch them
    terminals = [stream for stream in (1, 2) if os.isatty(stream)]

    def on_signal(signum: int, frame: object) -> None:
        caught.append(signum)
        for other in signums:
            signal.signal(other, signal.SIG_DFL)
        if signum == hang_up:  # printing to a lost terminal would fail
            for stream in terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    before = {signum: signal.signal(signum, on_signal) for signum in signums}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def quote(text: str | Path) -> str:
    """Quote a word for the shell of this system."""
    return subprocess.list2cmdline([str(text)]) if os.name == "nt" else shlex.quote(str(text))


def start_command(*words: str) -> str:
    """A command line that starts this program with other words, from the same folder."""
    program = [Path(sys.executable).stem or "python"]
    if under_torchrun():
        flags = {"nproc_per_node": "LOCAL_WORLD_SIZE"}
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":  # this is the line for this machine
            flags |= {"nnodes": "GROUP_WORLD_SIZE", "node_rank": "GROUP_RANK"}
            flags |= {"master_addr": "MASTER_ADDR", "master_port": "MASTER_PORT"}
        program = ["torchrun", *(f"--{flag}={os.environ.get(env)}" for flag, env in flags.items())]
    return " ".join(map(quote, [*program, sys.argv[0], *words]))


def resume_command(run_dir: Path) -> str:
    """The command line that resumes a run."""
    is_like_a_flag = str(run_dir).startswith("-")
    words = [f"--resume={run_dir}"] if is_like_a_flag else ["--resume", str(run_dir)]
    return start_command(*words)


def not_writable(run_dir: Path, error: OSError) -> RunError:
    """The error of a run whose folder cannot be written to."""
    next_step = f"when that is fixed, resume with {resume_command(run_dir)}"
    if not run_dir.is_dir():
        next_step = "the run folder is gone: bring it back and resume, or start a new run"
    return RunError(f"{cannot_write(run_dir, error)}; {next_step}")
