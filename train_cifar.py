"""Train the notes' small network on CIFAR-10 and watch it in TensorBoard.

    python train_cifar.py
    tensorboard --logdir runs

The file reads top to bottom: optimiser and evaluation, what TensorBoard is shown and when, the
training loop, and `main`, which wires them. How a picture is drawn is in viz.py, where images come
from in data.py, and what a run keeps on disk in run.py.
"""

import argparse
import contextlib
import io
import math
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import viz
from data import make_loaders, read_source
from model import Net
from support.checkpoint import load_checkpoint
from support.device import choose_device, predict, prepare_net, to_layout, tune_cpu
from support.errors import InputError, RunError
from support.processes import (
    Processes,
    is_first,
    is_loss_of_a_process,
    local_device,
    only_first,
    share_of_batch,
    start_processes,
    total,
)
from support.run import (
    SHAPES_NOTE,
    Progress,
    Run,
    cannot_write,
    check_log_dir,
    hyperparameters,
    make_run_dir,
    read_settings,
    restore,
    save,
    settings_table,
)
from support.settings import parse_args
from support.terminal import Stopped, caught_signals, fail, quote, report_thread_error, say

BAR_EVERY = 50  # batches between two updates of the progress bar


# --------------------------------------------------------------------- optimiser and evaluation


def make_optimizer(net: nn.Module, args: argparse.Namespace, steps_per_epoch: int):
    """Return SGD and the schedule of its learning rate, which is stepped after every batch."""
    # fused: one kernel for all parameters, the same arithmetic
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=args.momentum, fused=True)
    if args.schedule == "onecycle":
        # The schedule is stepped after the last batch too: one step more than there are batches.
        total_steps = args.epochs * steps_per_epoch + 1
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, args.lr, total_steps, cycle_momentum=False
        )
    else:
        scheduler = None
    return optimizer, scheduler


def report_batches(args: argparse.Namespace, steps_per_epoch: int) -> int:
    """How many batches a report is about; there is one at the end of each epoch anyway."""
    return min(max(1, round(args.report_every / args.batch_size)), steps_per_epoch)


class Evaluation(NamedTuple):
    """How the net does on the N test images."""

    probs: torch.Tensor  # (N, C) softmax probabilities, on the CPU
    labels: torch.Tensor  # (N,) true classes, on the CPU
    loss: float  # mean cross entropy
    accuracy: float  # 0 to 1


def evaluate(net: nn.Module, loader: DataLoader, processes: Processes) -> Evaluation:
    """Run the net over all images of a loader, the batches dealt out to the processes."""
    tune_cpu(loader.batch_size)
    logits = torch.zeros(len(loader.dataset), len(loader.dataset.classes))
    logits = logits.to(loader.dataset.labels.device)
    net.eval()
    with torch.no_grad():
        for index, (images, _) in enumerate(loader):
            if index % processes.count == processes.rank:
                start = index * loader.batch_size
                # The first batch is computed as in training, for `predict` may hide NaN.
                found = net(to_layout(images)) if index == 0 else predict(net, images)
                logits[start : start + len(images)] = found
    net.train()
    logits, labels = total(logits, processes).cpu(), loader.dataset.labels.cpu()
    loss = F.cross_entropy(logits, labels).item()
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return Evaluation(logits.softmax(dim=1), labels, loss, accuracy)


# ----------------------------------------------------------------------- what is shown, and when


def show_start(run: Run, writer: SummaryWriter) -> None:
    """Before training: some training images, the net, and the settings."""
    images, labels = some_images(run.data.train_loader, 16, run.args.seed)
    viz.add_image_grid(writer, images, labels, run.data.classes)
    viz.add_net_graph(writer, run.net, images[:1])
    if run.args.views == "all":
        viz.add_table(writer, "settings", settings_table(run))
        viz.add_hparams_start(writer, hyperparameters(run))
        viz.add_layout(writer)


def show_report(
    run: Run, writer: SummaryWriter, images: torch.Tensor, labels: torch.Tensor, loss: float
) -> None:
    """Every `--report-every` images: the loss, and what the net says of the last batch."""
    progress = run.progress
    viz.add_training_loss(writer, loss, progress.step)
    viz.add_predictions(writer, run.net, images[:16], labels[:16], run.data.classes, progress.step)
    if run.args.views == "all":
        lr, speed = run.optimizer.param_groups[0]["lr"], progress.images / progress.seconds
        viz.add_training_scalars(writer, run.net, lr, speed, progress.step)
        viz.add_histograms(writer, run.net, progress.step)


def show_epoch(run: Run, writer: SummaryWriter, test: Evaluation) -> None:
    """After every epoch: how the net does on the test images."""
    step, classes = run.progress.step, run.data.classes
    viz.add_test_scalars(writer, test.loss, test.accuracy, step)
    viz.add_pr_curves(writer, test.probs, test.labels, classes, step)
    if run.args.views == "all":
        test_set = run.data.test_loader.dataset
        worst = worst_mistakes(test, 8)
        images, labels = test_set.__getitems__(worst)
        viz.add_confusion_matrix(writer, test.probs, test.labels, classes, step)
        viz.add_mistakes(writer, images, test.probs[worst], labels, classes, step)
        viz.add_filters(writer, run.net.conv1, step)
        viz.add_feature_maps(writer, run.net.conv1, test_set[0][0], step)


def show_end(run: Run, writer: SummaryWriter, report: list) -> None:
    """After the last epoch: the table per class and the projector."""
    step = run.progress.step
    if run.args.views == "all":
        images, labels = some_images(run.data.test_loader, 1000, run.args.seed)
        with torch.inference_mode():
            features = run.net.features(images)
        viz.add_projector(writer, features, images, labels, run.data.classes, step)
        viz.add_table(writer, "per class", report, step)
        viz.add_hparams_end(writer)


def some_images(loader: DataLoader, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick up to `count` images (count, 3, 32, 32) and labels (count,), the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(loader.dataset), generator=generator)[:count]
    return loader.dataset.__getitems__(chosen.tolist())


def worst_mistakes(test: Evaluation, count: int) -> list[int]:
    """Indices of the wrongly classified images whose true class got the least probability."""
    true_probs = test.probs.gather(1, test.labels[:, None])[:, 0]
    wrong = (test.probs.argmax(dim=1) != test.labels).nonzero()[:, 0]
    return wrong[true_probs[wrong].argsort()][:count].tolist()


# ------------------------------------------------------------------------------------- training


def train(run: Run, writer: SummaryWriter | None, signals: list[int]) -> Evaluation:
    """Train until `--epochs` are done, and return the last evaluation.

    Raises Stopped, with the run saved, after the batch in which `signals` got one; raises
    RunError if the loss is not finite.
    """
    args, progress, optimizer = run.args, run.progress, run.optimizer
    loader = run.data.train_loader
    criterion = nn.CrossEntropyLoss()
    any_images = torch.zeros(args.batch_size, 3, 32, 32, device=run.device)
    net = prepare_net(run.net, any_images, run.processes.count)
    test = None

    while progress.epoch < args.epochs:
        loader.generator.set_state(run.shuffle_state)
        batches = islice(loader, progress.batch, None)  # a resumed run passes over those done
        tune_cpu(args.batch_size // run.processes.count)
        bar = progress_bar(run)
        started = time.perf_counter()
        for images, labels in batches:
            progress.images += len(labels)
            images, labels = share_of_batch(images, labels, run.processes)
            optimizer.zero_grad()
            loss = criterion(net(to_layout(images)), labels)
            loss.backward()
            optimizer.step()
            if run.scheduler:
                run.scheduler.step()

            progress.batch += 1
            progress.step += 1
            run.losses[progress.window] = loss.detach()  # .item() would make a GPU wait
            progress.window += 1
            epoch_done = progress.batch == len(loader)
            if progress.batch % BAR_EVERY == 0:
                recent = run.losses[: progress.window][-100:].mean().item()
                bar.set_postfix(loss=f"{recent:.3f}", refresh=False)
                bar.update(BAR_EVERY)
            if progress.window == len(run.losses) or epoch_done:
                progress.seconds += time.perf_counter() - started
                report(run, writer, images, labels)
                started = time.perf_counter()
                if not epoch_done:
                    save(run)
            if not epoch_done and stop_wanted(run, signals):
                progress.seconds += time.perf_counter() - started
                check_losses(run)
                save(run)
                raise Stopped(signals)
        bar.close()

        test = evaluate(run.net, run.data.test_loader, run.processes)
        check_test_loss(run, test)
        if writer:
            with timed(run):
                show_epoch(run, writer, test)
                writer.flush()
        say(f"{where(run)}  test loss {test.loss:.3f}  test accuracy {test.accuracy:.1%}")
        progress.epoch += 1
        progress.batch = 0
        run.shuffle_state = loader.generator.get_state()
        save(run)
        if stop_wanted(run, signals):
            raise Stopped(signals)
    return test or evaluate(run.net, run.data.test_loader, run.processes)


def stop_wanted(run: Run, signals: list[int]) -> bool:
    """Whether a signal has come, here or in another process: all must stop at the same batch."""
    if run.processes.count == 1:
        return bool(signals)
    if run.progress.batch % BAR_EVERY:  # asking the others takes time
        return False
    return total(torch.tensor(len(signals), device=run.device), run.processes).item() > 0


def report(
    run: Run, writer: SummaryWriter | None, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Print and show how training went since the last report, and begin a new window."""
    progress = run.progress
    loss = check_losses(run)
    speed = progress.images / progress.seconds
    say(f"{where(run)}  training loss {loss:.3f}  {speed:,.0f} images/s")
    if writer:
        with timed(run):
            show_report(run, writer, images, labels, loss)
            writer.flush()  # a kill would lose what is still in the writer's queue
    progress.window = 0
    progress.images, progress.seconds = 0, 0.0


def check_losses(run: Run) -> float:
    """Return the mean loss since the last report; 0 if there was no batch since.

    Raises RunError, in every process alike, if one of the losses is NaN or infinite, or one
    of the weights that came out of the last of them.
    """
    progress = run.progress
    if not progress.window:
        return 0.0
    losses = run.losses[: progress.window]
    losses.copy_(total(losses.clone(), run.processes) / run.processes.count)
    bad = losses.isfinite().logical_not().nonzero()[:, 0]
    if len(bad) > 0:
        step = progress.step - len(losses) + 1 + bad[0].item()
        raise diverged(f"loss became {losses[bad[0]].item()}", step)
    if not all(weights.isfinite().all() for weights in run.net.parameters()):
        raise diverged("weights became infinite or nan", progress.step)
    return losses.mean().item()


def check_test_loss(run: Run, test: Evaluation) -> None:
    """Raise RunError if the net, after the last batch of an epoch, says nothing finite."""
    if not math.isfinite(test.loss):
        raise diverged(f"test loss became {test.loss}", run.progress.step)


def diverged(what: str, step: int) -> RunError:
    """The error of a run whose numbers have left the range of floats."""
    return RunError(
        f"the {what} at step {step:,}: the learning rate is probably too high; "
        "start again with a smaller --lr"
    )


# ----------------------------------------------------------------------------------------- main


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 for bad input, 1 for a run that failed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # class names may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # one process speaks for all
    threading.excepthook = report_thread_error
    try:
        with contextlib.redirect_stderr(sys.stderr if is_first() else io.StringIO()):
            args = parse_args(argv)
        state = None if args.resume is None else load_checkpoint(Path(args.resume))
        if state and state["progress"].get("finished"):
            say(f"the run in {args.resume!r} is finished: nothing is left to resume")
            return 0
        return train_to_the_end(prepare(args, state), is_new=state is None)
    except InputError as error:
        return fail(2, f"error: {error}")
    except RunError as error:
        return fail(1, f"stopped: {error}")
    except KeyboardInterrupt:
        return fail(128 + signal.SIGINT, "interrupted")
    except BrokenPipeError:  # after `| head`, say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it at exit
        return fail(1, "stopped: nobody reads the output; the last checkpoint can be resumed")
    except RuntimeError as error:
        if not is_loss_of_a_process(error):
            raise
        # Whoever is left says it: it may be the first that has ended.
        print("train_cifar.py: stopped: another process of this run has ended", file=sys.stderr)
        return 1


def prepare(args: argparse.Namespace, state: dict | None) -> Run:
    """Wire up a new run, or the one that the checkpoint `state` was made of.

    The directory of a new run is made last, when nothing else can go wrong any more.
    """
    if state:
        args = read_settings(state, args.resume)
    else:
        check_log_dir(args.log_dir)
    device = local_device(choose_device(args.device))
    processes = start_processes(device)
    if args.batch_size % processes.count:
        raise InputError(
            f"--batch-size {args.batch_size} cannot be shared out to {processes.count} processes: "
            "take a multiple"
        )
    torch.manual_seed(args.seed)

    def read():
        return read_source(args.data, Path(args.data_dir), args.mirror)

    parts = only_first(read, processes, device)
    data = make_loaders(*parts, args.batch_size, args.seed, device, args.augment)
    train_images = data.train_loader.dataset.images
    if args.batch_size > len(train_images):
        raise InputError(
            f"--batch-size {args.batch_size} is more than the {len(train_images)} training images: "
            "take a smaller one"
        )
    net = Net(len(data.classes)).to(device)
    optimizer, scheduler = make_optimizer(net, args, len(data.train_loader))
    run = Run(
        args=args,
        run_dir=Path(args.resume or ""),
        device=device,
        processes=processes,
        data=data,
        data_checksum=zlib.crc32(train_images.cpu().numpy()),
        net=net,
        optimizer=optimizer,
        scheduler=scheduler,
        shuffle_state=data.train_loader.generator.get_state(),
        progress=Progress(),
        losses=torch.zeros(report_batches(args, len(data.train_loader)), device=device),
    )
    if state:
        restore(run, state)
    else:
        say_shapes = data.source == "shapes" and (args.data == "auto" or not args.run_name)
        suffix = "-shapes" if say_shapes else ""
        run.run_dir = only_first(
            lambda: make_run_dir(args.log_dir, args.run_name, suffix), processes, device
        )
        # A resumed run must find the same images, wherever it is resumed from.
        folder = str(Path(args.data).absolute())
        args.data = folder if data.source == "folder" else data.source
        args.data_dir = str(Path(args.data_dir).absolute())
    return run


def train_to_the_end(run: Run, is_new: bool) -> int:
    """Train the run and show the views of its start and end; returns the exit status.

    That is 0, or 128 + the signal that stopped it, or 1 if the run directory was not writable.
    """
    begun = time.perf_counter()
    writer = None
    say(f"images  {run.data.source}: {len(run.data.train_loader.dataset):,} to train on")
    say(f"device  {run.device}")
    say(f"run     {run.run_dir}")
    say_if_shapes(run)
    try:
        with caught_signals() as signals:
            if run.processes.rank == 0:
                # A killed run may have shown more than its last checkpoint knows. Those steps come
                # again: purge_step drops what was shown of them.
                first_step = 0 if is_new else run.progress.step + 1
                writer = SummaryWriter(run.run_dir, purge_step=first_step)
            if is_new and writer:
                with timed(run):
                    show_start(run, writer)
                    writer.flush()
                save(run)
            test = train(run, writer, signals)
            finish(run, writer, test)
    except Stopped as stop:
        say(f"stopped by {stop}; to go on:")
        say(f"  python train_cifar.py --resume {quote(run.run_dir)}")
        return 128 + stop.signum
    except BrokenPipeError:
        raise
    except OSError as error:
        return fail(
            1,
            f"stopped: {cannot_write(run.run_dir, error)}; when that is mended, go on with "
            f"--resume {quote(run.run_dir)}",
        )
    finally:
        if writer:
            with contextlib.suppress(OSError):  # a full disk has been reported
                writer.close()
    seconds = time.perf_counter() - begun
    say(f"finished in {seconds:.1f} s, {run.view_seconds:.1f} s of it for views")
    say_if_shapes(run)
    say("now look at it:")
    say(f"  tensorboard --logdir {quote(run.run_dir.parent)} --samples_per_plugin images=100")
    return 0


def finish(run: Run, writer: SummaryWriter | None, test: Evaluation) -> None:
    """Print and show the results per class, and mark the run as finished."""
    rows = viz.class_report(test.probs, test.labels, run.data.classes)
    if writer:
        with timed(run):
            show_end(run, writer, rows)
            writer.flush()
    run.progress.finished = True
    save(run)
    say(viz.markdown_table(rows))


def say_if_shapes(run: Run) -> None:
    """Say it loudly when the images are not those of the notes."""
    if run.data.source == "shapes":
        say(SHAPES_NOTE)


@contextlib.contextmanager
def timed(run: Run) -> Iterator[None]:
    """Count the time of the block as time for views."""
    begun = time.perf_counter()
    yield
    run.view_seconds += time.perf_counter() - begun


def progress_bar(run: Run) -> tqdm:
    """A bar over the batches of the epoch under way, on a terminal only."""
    return tqdm(
        total=len(run.data.train_loader),
        initial=run.progress.batch,
        desc=f"epoch {run.progress.epoch + 1}",
        unit=" batches",
        disable=None,  # not in a file or pipe
        leave=False,
    )


def where(run: Run) -> str:
    """Where in the run a line of output belongs."""
    return f"epoch {run.progress.epoch + 1}/{run.args.epochs}  step {run.progress.step:>7,}"


if __name__ == "__main__":
    sys.exit(main())
