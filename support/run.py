"""The bookkeeping of a plain training loop: what is left to do, when to save, when to report.

    for epoch in run.epochs():
        for images, labels in run.batches():
            ...  # a step of training, as anyone writes it
            report = run.record(loss)

A resumed run differs in nothing that the loop can see: the generators yield what is left.
"""

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
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from support.checkpoint import data_checksum, load_checkpoint, restore_net, save_checkpoint
from support.device import to_channels_last, tune_cpu
from support.errors import DivergedError, InputError, NothingToDo, Stopped, first_line
from support.processes import Processes, broadcast_from_first, share_of_batch
from support.profiler import STEPS, finish_profile, start_profile
from support.run_dir import cannot_write, check_log_dir, lock_run_dir, make_run_dir
from support.terminal import not_writable, resume_command, say

BAR = {"unit": " batches", "leave": False, "disable": None}  # None: on a terminal only
BAR_EVERY = 50  # batches between two losses in it


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
        self.profile_rows: list[tuple] | None = None  # until a report shows them
        self.view_seconds = 0.0  # spent on drawing and writing views
        self.signals: list[int] = []  # that have come
        self.shuffle_state = data.train_loader.generator.get_state()  # at the start of the epoch
        self.images, self.started = 0, 0.0  # since the last report, for its images per second
        size, available = f"--batch-size {args.batch_size}", len(data.train_loader.dataset)
        if args.batch_size > available:
            raise InputError(f"{size} is more than the {available} training images: take less")
        if args.batch_size % processes.count:
            raise InputError(f"{size} is no multiple of {processes.count}, the number of processes")
        # There is a report every so many batches, and one at the end of each epoch.
        report_batches = max(1, round(args.report_every / args.batch_size))
        self.report_batches = min(report_batches, len(data.train_loader))
        # The last losses, filled in a circle: `.item()` at every step would make a GPU wait.
        self.losses = torch.zeros(self.report_batches, device=processes.device)
        loaders = data.train_loader, data.test_loader, data.validation_loader
        self.data_checksum = data_checksum(*(loader.dataset for loader in loaders))
        self.lock: FileLock | None = None  # the first process holds it
        if state:
            self.restore(state)
        take = self.take_folder if state else self.make_folder
        self.run_dir: Path = broadcast_from_first(take, processes)

    def epochs(self) -> Iterator[int]:
        """Yield the number of each epoch that is left, from 0; raises Stopped after a signal."""
        for epoch in range(self.progress.epoch, self.args.epochs):
            yield epoch
            self.progress.epoch, self.progress.batch = epoch + 1, 0
            self.shuffle_state = self.data.train_loader.generator.get_state()
            if self.progress.epoch < self.args.epochs:  # after the last the caller has more to show
                self.save()
            self.stop_if_asked()

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of this epoch that are left: this process's share of each.

        After each report the run is saved, and after a signal, which raises Stopped.
        """
        loader, progress = self.data.train_loader, self.progress
        tune_cpu(self.args.batch_size // self.processes.count)
        loader.generator.set_state(self.shuffle_state)
        batches, profile = iter(loader), None
        for _ in range(progress.batch):  # those done before a stop: only their random numbers count
            next(batches)
        self.restart_clock()
        title = f"epoch {progress.epoch + 1}"
        bar = tqdm(batches, title, len(loader), initial=progress.batch, **BAR)
        is_profiled = self.is_first and self.args.views == "all"
        try:
            for images, labels in bar:
                if is_profiled and progress.step == self.report_batches:  # after the first report
                    profile = start_profile(self.processes.device)
                self.images += len(labels)
                images, labels = share_of_batch(images, labels, self.processes)
                yield to_channels_last(images), labels
                if progress.batch % BAR_EVERY == 0:
                    recent = self.last_losses(100).mean().item()
                    bar.set_postfix(loss=f"{recent:.3f}", refresh=False)
                if profile and progress.step == self.report_batches + STEPS:
                    self.profile_rows = finish_profile(profile, self.run_dir)
                    profile = None
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
            if profile:  # a stop, or the epoch's end: too few steps for a table
                profile.stop()

    def record(self, loss: torch.Tensor) -> Report | None:
        """Count a batch and keep its loss, a scalar; returns a report when one is due.

        Raises RunError if a loss since the last report, or a weight now, is NaN or infinite.
        """
        progress = self.progress
        self.losses[progress.step % self.report_batches] = loss.detach()
        progress.batch += 1
        progress.step += 1
        if progress.batch % self.report_batches and progress.batch < len(self.data.train_loader):
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
        self.losses = self.processes.all_reduce_sum(self.losses) / self.processes.count
        losses = self.last_losses(self.report_batches)
        bad = losses.isfinite().int().argmin().item()  # the first that is not, if there is one
        self.check_finite("loss", losses[bad].item(), self.progress.step - len(losses) + 1 + bad)
        for weights in self.net.parameters():
            self.check_finite("weights", weights.abs().max().item())
        return losses.mean().item()

    def check_finite(self, name: str, value: float, step: int | None = None) -> None:
        """Raise RunError if a number of the run, at a step or now, is NaN or infinite."""
        if not math.isfinite(value):
            what = f"the {name} became {value} at step {step or self.progress.step:,}"
            cure = "the learning rate is probably too high; start again with a smaller --lr"
            raise DivergedError(f"{what}: {cure}")

    def stop_if_asked(self) -> None:
        """Raise Stopped, with the run saved, if a signal has come, here or in another process."""
        asked = len(self.signals)
        if self.processes.count > 1:  # all must stop after the same batch
            if self.progress.batch % BAR_EVERY:
                return  # asking the others takes time
            asked = torch.tensor(asked, device=self.processes.device)
            asked = self.processes.all_reduce_sum(asked).item()
        if asked:
            if self.progress.batch % self.report_batches:
                self.mean_loss()  # never save what is not finite
            self.save()
            # Without a signal here, another of several processes got one.
            stop = signal.Signals(self.signals[0] if self.signals else signal.SIGTERM)
            message = f"stopped by {stop.name}; to resume:\n  {resume_command(self.run_dir)}"
            raise Stopped(stop, message)

    def restart_clock(self) -> None:
        """Start to count images and seconds anew, for a report's images per second."""
        self.images, self.started = 0, time.perf_counter()

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
            raise InputError(f"another process trained {str(run_dir)!r} meanwhile: resume it again")
        return run_dir

    def state(self) -> dict:
        """Everything that a resumed run needs to end as if it had not been stopped."""
        return {
            "settings": vars(self.args) | {"resume": None},
            "classes": self.data.classes,
            "data_checksum": self.data_checksum,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random_state": torch.get_rng_state(),
            "shuffle_state": self.shuffle_state,
            "progress": vars(self.progress),
            "losses": self.losses,
            "profile_rows": self.profile_rows,
        }

    def restore(self, state: dict) -> None:
        """Go on where `state` was saved; raises InputError if it does not fit."""
        if (state["classes"], state["data_checksum"]) != (self.data.classes, self.data_checksum):
            others = f"on other images than {self.args.data!r} holds: bring those back"
            raise InputError(f"{self.args.resume!r} was trained {others}, or start a new run")
        try:
            restore_net(state, self.net, self.optimizer, self.scheduler)
            torch.set_rng_state(state["random_state"])
            self.shuffle_state = state["shuffle_state"]
            self.progress = Progress(**state["progress"])
            self.losses.copy_(state["losses"])
            self.profile_rows = state["profile_rows"]
        except Exception as error:  # of PyTorch, as many as there are parts of a net
            trouble = f"{self.args.resume!r} does not fit the net in model.py ({first_line(error)})"
            raise InputError(f"{trouble}: bring that net back, or start a new run") from error

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
        self.processes.wait_for_first()

    def print(self, text: str) -> None:
        """Print a line that begins with epoch and step."""
        done = self.progress
        say(f"epoch {done.epoch + 1}/{self.args.epochs}  step {done.step:>7,}  {text}")


def load_run(args: argparse.Namespace) -> tuple[argparse.Namespace, dict | None]:
    """Settings and state of the run to resume, else `args` and None; InputError, NothingToDo."""
    if args.resume is None:
        check_log_dir(args.log_dir)
        return args, None
    state = load_checkpoint(args.resume)
    if state["progress"]["finished"]:
        raise NothingToDo(f"the run in {args.resume!r} is finished: nothing is left to resume")
    if state["settings"].keys() != vars(args).keys():
        raise InputError(f"{args.resume!r} has other settings than this program: start a new run")
    return argparse.Namespace(**state["settings"] | {"resume": args.resume}), state


def rank_zero_only(show: Callable[..., None]) -> Callable[..., None]:
    """Let only the first process draw, in time of its own; a view that fails never ends the run."""

    @functools.wraps(show)
    def draw(run: Run, *args: object) -> None:
        begun = time.perf_counter()
        if run.is_first:
            try:
                show(run, *args)
            except OSError:  # such as a full disk
                raise
            except Exception as error:  # a picture is never worth the training
                say(f"WARNING: a view could not be drawn ({type(error).__name__}: {error})")
            run.writer.flush()  # a kill would lose what is not
        run.processes.wait_for_first()
        run.view_seconds += time.perf_counter() - begun

    return draw
