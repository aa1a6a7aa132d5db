"""What surrounds the training: what is said at its start and end, signals, and the writer's end."""

import contextlib
import time
from collections.abc import Callable, Iterator

from support.device import device_errors
from support.errors import DivergedError
from support.run import Run
from support.run_dir import order_event_files
from support.state import not_writable
from support.terminal import caught_signals, quote, say

STAND_IN_NOTE = (
    "NOTE: these images are the built-in SHAPES, not CIFAR-10: its figures do not apply."
)
PATIENCE_NOTE = (
    "NOTE: with the default settings the loss stays near 2.30 for some 5,000 steps, then falls."
)


@contextlib.contextmanager
def in_progress(run: Run, on_divergence: Callable[[Run], None]) -> Iterator[None]:
    """Say what is run and where, catch signals, and close the writer at the end.

    `on_divergence` is called when a number became infinite or NaN, before that error is passed on.
    Raises RunError if the run folder does not take what is written, or if the device fails.
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
    order_event_files(run.run_dir)
    try:
        with caught_signals() as run.signals, device_errors(run.processes.device):
            yield
    except DivergedError:
        on_divergence(run)
        raise
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
