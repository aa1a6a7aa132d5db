"""The folder of a run: made once, used by one process at a time, its event files in order."""

import os
import time
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from support.checkpoint import FILE_NAME
from support.errors import InputError
from support.processes import take_lock

LOCK_NAME = "run.lock"
BEFORE_FIRST_SAVE = {LOCK_NAME, f"{FILE_NAME}.tmp"}  # all that a kill may leave of a new run


def make_run_dir(log_dir: str, run_name: str | None, suffix: str) -> tuple[Path, FileLock]:
    """Make and lock the folder of a new run, named by `run_name` or the time, and the suffix.

    Raises InputError if the folder cannot be written, or if there is something of that name.
    """
    # The time is short, 1124-153012 for November 24, 15:30:12: TensorBoard's columns are narrow.
    name = (run_name or datetime.now().strftime("%m%d-%H%M%S")) + suffix
    others = [] if run_name else [f"{name}_{number}" for number in range(2, 1000)]
    for path in [Path(log_dir, each) for each in (name, *others)]:  # of runs in the same second
        try:
            if not os.path.lexists(path):
                path.mkdir(parents=True, exist_ok=True)
            if is_free(path):
                lock = take_lock(path / LOCK_NAME, timeout=0)
                if is_free(path):  # still, now that nobody else can take it
                    return path, lock
                lock.release()
        except Timeout:
            pass
        except OSError as error:
            raise InputError(cannot_write(path, error)) from error
    resume = ", or --resume that run" if os.path.isfile(path / FILE_NAME) else ""
    raise InputError(f"{str(path)!r} already exists: choose another --run-name{resume}")


def is_free(path: Path) -> bool:
    """Whether a run may begin in this folder: it holds nothing, or what is left of a start."""
    return path.is_dir() and {file.name for file in path.iterdir()} <= BEFORE_FIRST_SAVE


def lock_run_dir(run_dir: Path) -> FileLock:
    """Take the run for this process; InputError if another has it, OSError if not writable."""
    try:
        return take_lock(run_dir / LOCK_NAME, timeout=0)
    except Timeout:
        raise InputError(f"{str(run_dir)!r} is in use by another process: wait for it") from None


def check_log_dir(log_dir: str) -> None:
    """Raise InputError, before any work, if no folder can be made in `log_dir`."""
    path = Path(log_dir).absolute()
    while not os.path.lexists(path) and path != path.parent:  # a drive of Windows is its own parent
        path = path.parent
    if not os.path.isdir(path) or not os.access(path, os.W_OK):
        raise InputError(f"--log-dir {log_dir!r}: {str(path)!r} is not a writable folder")


def cannot_write(path: str | Path, error: OSError) -> str:
    """Say in one line that a folder cannot be written to, and why."""
    return f"cannot write to {str(path)!r} ({error.strerror or error})"


def order_event_files(run_dir: Path) -> None:
    """Wait, 3 s at most, until an event file opened now is read after those that are there."""
    # TensorBoard reads them in the order of the whole seconds in their names.
    times = (path.name.split(".")[3] for path in run_dir.glob("events.out.tfevents.*"))
    newest = max((int(text) for text in times if text.isdecimal()), default=0)
    patience = time.monotonic() + 3
    while int(time.time()) <= newest and time.monotonic() < patience:
        time.sleep(0.05)
