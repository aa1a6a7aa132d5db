"""The bookkeeping of a plain training loop: what is left to do, when to save, when to report.

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
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import nn
from torch.profiler import profile
from torch.utils.tensorboard import SummaryWriter

from support.checkpoint import (
    data_checksum,
    load_checkpoint,
    model_state,
    restore_model,
    save_checkpoint,
)
from support.device import to_channels_last, tune_cpu
from support.errors import DivergedError, InputError, NothingToDo, Stopped, first_line
from support.processes import (
    Processes,
    all_reduce_sum,
    broadcast_from_first,
    share_of_batch,
    wait_for_first,
)
from support.profiler import STEPS, finish_profile, start_profile
from support.run_dir import cannot_write, check_log_dir, lock_run_dir, make_run_dir
from support.terminal import not_writable, progress_bar, resume_command, say

BAR_EVERY = 50  # batches between two updates of the progress bar


class Report(NamedTuple):
    """How training goes."""

    loss: float  # mean over the last `--report-every` images, of an epoch at most
    speed: float  # images per second since the last report; views not counted
    is_first: bool  # of the run
    profile: list[tuple] | None  # a table of where the time goes, in one report of a run


class Evaluation(NamedTuple):
    """How the net does on N images of C classes."""

    part: str  # of the images, and the first word of their tags: "test" or "validation"
    probs: torch.Tensor  # (N, C) softmax probabilities, on the CPU
    labels: torch.Tensor  # (N,) true classes, on the CPU
    loss: float  # mean cross entropy
    accuracy: float  # 0 to 1

    def __str__(self) -> str:
        return f"{self.part} loss {self.loss:.3f}  {self.part} accuracy {self.accuracy:.1%}"


@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches done in the current epoch
    step: int = 0  # batches done in all: the x axis in TensorBoard
    finished: bool = False


class Run:
    """What the parts of a training run have in common, and how far it is.

    With a `state` from `load_run` it is the run that the state came from, else a new one, whose
    folder is made here. Raises InputError if that cannot be; then nothing is left behind.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        processes: Processes,
        data,  # the namedtuple of data.py: its loaders, the classes, where the images are from
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        state: dict | None = None,
    ):
        self.args, self.processes, self.data = args, processes, data
        self.net, self.optimizer, self.scheduler = net, optimizer, scheduler
        self.is_first = processes.rank == 0  # the process that prints, draws and saves
        self.writer: SummaryWriter | None = None  # the first process opens it
        self.progress = Progress()
        self.profile: profile | None = None  # while one is running
        self.profile_rows: list[tuple] | None = None  # until a report shows them
        self.view_seconds = 0.0  # spent on drawing and writing views
        self.signals: list[int] = []  # that have come
        # of the loader's generator, at the start of the epoch
        self.shuffle_state = data.train_loader.generator.get_state()
        self.images, self.started = 0, 0.0  # since the last report, for its images per second
        train_set = data.train_loader.dataset
        if args.batch_size > len(train_set):
            raise InputError(
                f"--batch-size {args.batch_size} is more than the {len(train_set)} training "
                "images: take a smaller one"
            )
        if args.batch_size % processes.count:
            raise InputError(
                f"--batch-size {args.batch_size} cannot be divided among {processes.count} "
                "processes: take a multiple"
            )
        # There is a report every so many batches, and one at the end of each epoch.
        report_batches = max(1, round(args.report_every / args.batch_size))
        self.report_batches = min(report_batches, len(data.train_loader))
        # The loss of each of the last batches, filled in a circle: `.item()` at every step would
        # make a GPU wait.
        self.losses = torch.zeros(self.report_batches, device=processes.device)
        loaders = data.train_loader, data.test_loader, data.validation_loader
        parts = dict.fromkeys(loader.dataset for loader in loaders)  # the last two may be one
        self.data_checksum = data_checksum(*parts)
        self.lock: FileLock | None = None  # the first process holds it
        if state:
            self.restore(state)
        take = self.take_folder if state else self.make_folder
        self.run_dir: Path = broadcast_from_first(take, processes)

    # -------------------------------------------------------------------- the loop's bookkeeping

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
        with progress_bar(title, "batches", progress.batch, len(loader)) as bar:
            try:
                for images, labels in batches:
                    if progress.step == self.report_batches:  # after the first report
                        self.start_profile()
                    self.images += len(labels)
                    images, labels = share_of_batch(images, labels, self.processes)
                    yield to_channels_last(images), labels
                    if progress.batch % BAR_EVERY == 0:
                        recent = self.last_losses(100).mean().item()
                        bar.set_postfix(loss=f"{recent:.3f}", refresh=False)
                        bar.update(BAR_EVERY)
                    if self.profile and progress.step == self.report_batches + STEPS:
                        running, self.profile = self.profile, None
                        self.profile_rows = finish_profile(running, self.run_dir)
                        self.restart_clock()
                    if progress.batch == len(loader):
                        # The epoch's end saves and stops. No break: the sampler draws once more
                        # at its end, and the order of the next epoch follows from that.
                        continue
                    if progress.batch % self.report_batches == 0:  # a report has just been made
                        self.save()
                        self.restart_clock()
                    self.stop_if_asked()
            finally:
                if self.profile:  # a stop, or the epoch's end: too few steps for a table
                    self.profile.stop()
                    self.profile = None

    def record(self, loss: torch.Tensor) -> Report | None:
        """Count a batch and keep its loss, a scalar; returns a report when one is due.

        Raises RunError if a loss since the last report, or a weight now, is NaN or infinite.
        """
        progress = self.progress
        self.losses[progress.step % self.report_batches] = loss.detach()
        progress.batch += 1
        progress.step += 1
        epoch_done = progress.batch == len(self.data.train_loader)
        if progress.batch % self.report_batches and not epoch_done:
            return None
        mean_loss = self.mean_loss()
        speed = self.images / (time.perf_counter() - self.started)
        rows, self.profile_rows = self.profile_rows, None
        return Report(mean_loss, speed, progress.step == self.report_batches, rows)

    def last_losses(self, count: int) -> torch.Tensor:
        """The losses of up to `count` batches before this moment, oldest first."""
        place = self.progress.step % self.report_batches  # of the next one
        return self.losses.roll(-place)[-min(count, self.progress.step) :]

    def mean_loss(self) -> float:
        """The mean of the last losses over all processes; raises RunError, see `record`."""
        self.losses = all_reduce_sum(self.losses, self.processes) / self.processes.count
        losses = self.last_losses(self.report_batches)
        bad = losses.isfinite().logical_not().nonzero()[:, 0]
        if len(bad) > 0:
            step = self.progress.step - len(losses) + 1 + bad[0].item()
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
            if self.progress.batch % self.report_batches:
                self.mean_loss()  # never save what is not finite
            self.save()
            # Without a signal here, another of several processes got one.
            signum = self.signals[0] if self.signals else signal.SIGTERM
            command = resume_command(self.run_dir)
            name = signal.Signals(signum).name
            raise Stopped(signum, f"stopped by {name}; to resume:\n  {command}")

    def start_profile(self) -> None:
        """Profile some steps, where somebody looks at all views."""
        if self.is_first and self.args.views == "all":
            self.profile = start_profile(self.processes.device)

    def restart_clock(self) -> None:
        """Start to count images and seconds anew, for a report's images per second."""
        self.images, self.started = 0, time.perf_counter()

    # ------------------------------------------------------------------- start, save, print

    def make_folder(self) -> Path:
        """Make and lock the folder of a new run, and save what `--resume` needs."""
        args, data = self.args, self.data
        # The name says that the images are not those of the notes, unless both were asked for.
        asked_for = args.run_name and args.data == data.source
        suffix = "-shapes" if data.is_stand_in and not asked_for else ""
        run_dir, self.lock = make_run_dir(args.log_dir, args.run_name, suffix)
        # A resumed run must find the same images, wherever it is resumed from.
        args.data, args.data_dir = data.source, str(Path(args.data_dir).absolute())
        try:
            save_checkpoint(run_dir, self.state())
        except OSError as error:
            self.lock.release()
            shutil.rmtree(run_dir, ignore_errors=True)
            raise InputError(cannot_write(run_dir, error)) from error
        return run_dir

    def take_folder(self) -> Path:
        """Lock the folder of the run that is resumed."""
        run_dir = Path(self.args.resume)
        try:
            self.lock = lock_run_dir(run_dir)
        except OSError as error:
            raise not_writable(run_dir, error) from error
        if load_checkpoint(run_dir)["progress"] != vars(self.progress):
            self.lock.release()
            raise InputError(
                f"{str(run_dir)!r} was trained by another process meanwhile: resume it again"
            )
        return run_dir

    def state(self) -> dict:
        """Everything that a resumed run needs to end as if it had not been stopped."""
        return {
            "settings": vars(self.args) | {"resume": None},
            "classes": self.data.classes,
            "data_checksum": self.data_checksum,
            **model_state(self.net, self.optimizer, self.scheduler),
            "shuffle_state": self.shuffle_state,
            "progress": vars(self.progress),
            "losses": self.losses,
            "profile_rows": self.profile_rows,
        }

    def restore(self, state: dict) -> None:
        """Go on where `state` was saved; raises InputError if it does not fit."""
        if (state["classes"], state["data_checksum"]) != (self.data.classes, self.data_checksum):
            raise InputError(
                f"{self.args.resume!r} was trained on other images than {self.args.data!r} holds "
                "now: bring those back, or start a new run"
            )
        try:
            restore_model(state, self.net, self.optimizer, self.scheduler)
            self.data.train_loader.generator.set_state(state["shuffle_state"])
            self.shuffle_state = state["shuffle_state"]
            self.progress = Progress(**state["progress"])
            self.losses.copy_(state["losses"])
            self.profile_rows = state["profile_rows"]
        except Exception as error:  # of PyTorch, as many as there are parts of a net
            raise InputError(
                f"the checkpoint in {self.args.resume!r} does not fit the net in model.py "
                f"({first_line(error)}): bring that net back, or start a new run"
            ) from error

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
            save_checkpoint(self.run_dir, self.state())
        wait_for_first(self.processes)

    def print(self, text: str) -> None:
        """Print a line that begins with epoch and step."""
        epoch, epochs = self.progress.epoch + 1, self.args.epochs
        say(f"epoch {epoch}/{epochs}  step {self.progress.step:>7,}  {text}")


def load_run(args: argparse.Namespace) -> tuple[argparse.Namespace, dict | None]:
    """Return the settings and the state of the run that `--resume` names; else `args` and None.

    Raises InputError if there is no such run, NothingToDo if it is finished.
    """
    if args.resume is None:
        check_log_dir(args.log_dir)
        return args, None
    state = load_checkpoint(args.resume)
    if state["progress"]["finished"]:
        raise NothingToDo(f"the run in {args.resume!r} is finished: nothing is left to resume")
    if state["settings"].keys() != vars(args).keys():
        raise InputError(
            f"the checkpoint in {args.resume!r} has other settings than this version of the "
            "program: start a new run"
        )
    return argparse.Namespace(**state["settings"] | {"resume": args.resume}), state


def rank_zero_only(show: Callable[..., None]) -> Callable[..., None]:
    """Let only the first process draw these views, in time that is not counted as training.

    What is written is flushed, for a kill would lose it. A view that fails costs the views of this
    call that come after it, never the run; an OSError (such as a full disk) does end the run.
    """

    @functools.wraps(show)
    def draw(run: Run, *args: object) -> None:
        begun = time.perf_counter()
        if run.is_first:
            try:
                show(run, *args)
            except OSError:
                raise
            except Exception as error:  # a picture is never worth the training
                say(f"WARNING: a view could not be drawn ({type(error).__name__}: {error})")
            run.writer.flush()
        wait_for_first(run.processes)
        run.view_seconds += time.perf_counter() - begun

    return draw


def diverged(what: str, step: int) -> DivergedError:
    """The error of a run in which something became infinite or NaN at a step."""
    return DivergedError(
        f"the {what} at step {step:,}: the learning rate is probably too high; "
        "start again with a smaller --lr"
    )
