"""The books around a plain training loop: what is left to do, when to save, when to report.

    for epoch in run.epochs():
        for images, labels in run.batches():
            ...  # a step of training, as anyone writes it
            report = run.record(loss)

A resumed run differs in nothing that the loop can see: the generators yield what is left.
"""

from __future__ import annotations

import argparse
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from support.checkpoint import save_checkpoint
from support.device import to_channels_last, tune_cpu
from support.errors import DivergedError, Stopped
from support.processes import Processes, all_reduce_sum, share_of_batch
from support.profiler import STEPS, StepProfiler
from support.state import Progress, start_run, state_of
from support.terminal import progress_bar, resume_command, say

BAR_EVERY = 50  # batches between two updates of the progress bar


class Report(NamedTuple):
    """How training went since the last report."""

    loss: float  # mean over the batches
    speed: float  # images per second; views not counted
    profile: list[tuple] | None  # a table of where the time goes, in one report of a run


class Run:
    """What the parts of a training run have in common, and how far it is."""

    def __init__(
        self,
        args: argparse.Namespace,
        processes: Processes,
        data,  # the namedtuple of data.py: both loaders, the classes, where the images are from
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
    ):
        self.args, self.processes, self.data = args, processes, data
        self.net, self.optimizer, self.scheduler = net, optimizer, scheduler
        self.is_first = processes.rank == 0  # the process that prints, draws and saves
        self.writer: SummaryWriter | None = None  # the first process opens it
        self.progress = Progress()
        self.profiler = StepProfiler(processes.device)
        self.view_seconds = 0.0  # spent on drawing and writing views
        self.signals: list[int] = []
        # of the loader's generator, at the start of the epoch
        self.shuffle_state = data.train_loader.generator.get_state()
        self.images, self.started = 0, 0.0  # since the last report, for its images per second
        # How many batches a report is about; there is one at the end of each epoch anyway.
        report_batches = max(1, round(args.report_every / args.batch_size))
        report_batches = min(report_batches, len(data.train_loader))
        # The loss of each of them, filled in place: `.item()` at every step would make a GPU wait.
        self.losses = torch.zeros(report_batches, device=processes.device)

    # ------------------------------------------------------------------------- the loop's books

    def epochs(self) -> Iterator[int]:
        """Yield the number of each epoch that is left, from 0; after each the run is saved.

        After the last one `save(finished=True)` is left to the caller, who may have more to show.
        Raises Stopped if a signal has come.
        """
        for epoch in range(self.progress.epoch, self.args.epochs):
            yield epoch
            self.progress.epoch, self.progress.batch = epoch + 1, 0
            self.shuffle_state = self.data.train_loader.generator.get_state()
            if self.progress.epoch < self.args.epochs:
                self.save()
            self.stop_if_asked()

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of this epoch that are left: this process's share of each.

        After each report the run is saved. Raises Stopped, with the run saved, after the batch in
        which a signal has come.
        """
        loader, progress = self.data.train_loader, self.progress
        tune_cpu(self.args.batch_size // self.processes.count)
        loader.generator.set_state(self.shuffle_state)
        batches = iter(loader)
        for _ in range(progress.batch):  # those done before a stop: only their random numbers count
            next(batches)
        self.restart_clock()
        title = f"epoch {progress.epoch + 1}"
        bar = progress_bar(title, "batches", progress.batch, len(loader))
        with bar, self.profiler:
            for images, labels in batches:
                if progress.step == len(self.losses):  # after the first report
                    self.start_profile()
                self.images += len(labels)
                images, labels = share_of_batch(images, labels, self.processes)
                yield to_channels_last(images), labels
                if progress.batch % BAR_EVERY == 0:
                    recent = self.losses[: self.batches_since_report or None][-100:].mean().item()
                    bar.set_postfix(loss=f"{recent:.3f}", refresh=False)
                    bar.update(BAR_EVERY)
                if self.profiler.running and progress.step == len(self.losses) + STEPS:
                    self.profiler.stop(self.run_dir)
                    self.restart_clock()
                if progress.batch == len(loader):
                    break  # the epoch's end saves and stops
                if self.batches_since_report == 0:  # a report has just been made
                    self.save()
                    self.restart_clock()
                self.stop_if_asked()

    def record(self, loss: torch.Tensor) -> Report | None:
        """Count a batch and keep its loss, a scalar; returns a report when one is due.

        Raises RunError if a loss since the last report, or a weight now, is NaN or infinite.
        """
        self.losses[self.batches_since_report] = loss.detach()
        self.progress.batch += 1
        self.progress.step += 1
        epoch_done = self.progress.batch == len(self.data.train_loader)
        if self.batches_since_report and not epoch_done:
            return None
        mean_loss = self.mean_loss(self.batches_since_report or len(self.losses))
        seconds = time.perf_counter() - self.started
        return Report(mean_loss, self.images / seconds, self.profiler.take_rows())

    @property
    def batches_since_report(self) -> int:
        """The place of the next batch's loss in `losses`."""
        return self.progress.batch % len(self.losses)

    def mean_loss(self, count: int) -> float:
        """The mean of the last `count` losses over all processes; raises RunError, see `record`."""
        losses = all_reduce_sum(self.losses[:count].clone(), self.processes) / self.processes.count
        bad = losses.isfinite().logical_not().nonzero()[:, 0]
        if len(bad) > 0:
            step = self.progress.step - count + 1 + bad[0].item()
            raise diverged(f"loss became {losses[bad[0]].item()}", step)
        if not all(weights.isfinite().all() for weights in self.net.parameters()):
            raise diverged("weights became infinite or nan", self.progress.step)
        return losses.mean().item()

    def check_finite(self, name: str, value: float) -> None:
        """Raise RunError if a number that follows from the weights is NaN or infinite."""
        if not math.isfinite(value):
            raise diverged(f"{name} became {value}", self.progress.step)

    def stop_if_asked(self) -> None:
        """Raise Stopped, with the run saved, if a signal has come, here or in another process."""
        if self.processes.count == 1:
            stop = bool(self.signals)
        elif self.progress.batch % BAR_EVERY:  # asking the others takes time
            stop = False
        else:  # all must stop after the same batch
            signals = torch.tensor(len(self.signals), device=self.processes.device)
            stop = all_reduce_sum(signals, self.processes).item() > 0
        if stop:
            if self.batches_since_report:
                self.mean_loss(self.batches_since_report)  # never save what is not finite
            self.save()
            # Without a signal here, another of several processes got one.
            signum = self.signals[0] if self.signals else signal.SIGTERM
            command = resume_command(self.run_dir)
            name = signal.Signals(signum).name
            raise Stopped(signum, f"stopped by {name}; to resume:\n  {command}")

    def start_profile(self) -> None:
        """Profile some steps, where somebody looks at all views."""
        if self.is_first and self.args.views == "all":
            self.profiler.start()

    def restart_clock(self) -> None:
        """Start to count images and seconds anew, for a report's images per second."""
        self.images, self.started = 0, time.perf_counter()

    # ------------------------------------------------------------------- start, save, say, end

    def start(self, state: dict | None) -> None:
        """Make the folder of a new run, or bring back the one of which `state` was saved.

        Raises InputError if that cannot be; then nothing is left behind.
        """
        start_run(self, state)

    @property
    def is_new(self) -> bool:
        """Whether nothing has been trained yet."""
        return self.progress.step == 0

    @property
    def first_step(self) -> int:
        """The first step that TensorBoard has yet to be shown."""
        return 0 if self.is_new else self.progress.step + 1

    def save(self, finished: bool = False) -> None:
        """Write the checkpoint that `--resume` continues from; the first process does it."""
        self.progress.finished = finished
        if self.is_first:
            save_checkpoint(self.run_dir, state_of(self))

    def print(self, text: str) -> None:
        """Print a line that begins with epoch and step."""
        epoch, epochs = self.progress.epoch + 1, self.args.epochs
        say(f"epoch {epoch}/{epochs}  step {self.progress.step:>7,}  {text}")


def rank_zero_only(show: Callable[..., None]) -> Callable[..., None]:
    """Let only the first process draw these views, in time that is not counted as training.

    What is written is flushed, for a kill would lose it. A view that fails costs the views of this
    call that come after it, never the run; an OSError (such as a full disk) does end the run.
    """

    @functools.wraps(show)
    def draw(run: Run, *args: object) -> None:
        if not run.is_first:
            return
        begun = time.perf_counter()
        try:
            show(run, *args)
        except OSError:
            raise
        except Exception as error:  # a picture is never worth the training
            say(f"WARNING: a view could not be drawn ({type(error).__name__}: {error})")
        run.writer.flush()
        run.view_seconds += time.perf_counter() - begun

    return draw


def diverged(what: str, step: int) -> DivergedError:
    """The error of a run in which something became infinite or NaN at a step."""
    return DivergedError(
        f"the {what} at step {step:,}: the learning rate is probably too high; "
        "start again with a smaller --lr"
    )
