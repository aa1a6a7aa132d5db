"""Train the notes' small network on CIFAR-10 and watch it in TensorBoard.

    python train_cifar.py
    tensorboard --logdir runs

33 s on 2 cores of an AMD EPYC; 55.0 % of the test images are right after 2 epochs (median of five
seeds: 52.6 to 55.5 %).

In the order of the notes; main, at the end, puts it together: start reading there. How a picture
is drawn is in viz.py, where images come from in data.py, and what a loop needs and a lesson does
not (resuming, signals, several processes) in support/.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  before TensorBoard's writer: beside TensorFlow it crashes after it
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

import viz
from data import make_loaders, read_source
from model import Net
from support.device import choose_device, data_parallel, predict_all
from support.errors import DivergedError
from support.processes import broadcast_from_first, place, start_processes
from support.run import Evaluation, Report, Run, load_run, rank_zero_only
from support.settings import Parser, hyperparameters, settings_table
from support.terminal import exit_status, in_progress, note_chance, say


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the defaults are the notes'. Raises InputError on bad input."""
    parser = Parser("train_cifar.py", "Train a small network on CIFAR-10, watch it in TensorBoard.")
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type="count", default=2, help="passes over the images")
    add("--batch-size", type="count", default=4, help="images in a batch")
    add("--lr", type="positive", default=0.001, help="learning rate of SGD")
    add("--momentum", type="fraction", default=0.9, help="momentum of SGD")
    add("--schedule", choices=["constant", "onecycle"], default="constant", help="of the rate")
    add("--augment", action="store_true", help="flip and shift the training images at random")
    add("--seed", type="seed", default=0, help="same seed, same run")
    add("--device", default="auto", help="cpu, cuda or mps; auto: cuda if there is one, else cpu")
    add = parser.add_argument_group("images").add_argument
    add("--data", default="auto", metavar="SOURCE", help="cifar10, shapes, a picture folder, auto")
    add("--data-dir", default="data", help="where CIFAR-10 is kept")
    add("--mirror", action="append", default=[], metavar="URL", help="ask for CIFAR-10 here first")
    add("--train-images", type="count", metavar="N", help="train on N of the images (default: all)")
    add("--validation", type="count or 0", default=0, metavar="N", help="hold back N, watch those")
    add("--wrong-labels", type="fraction", default=0.0, metavar="SHARE", help="mislabel this share")
    add = parser.add_argument_group("output").add_argument
    add("--log-dir", default="runs", help="where the runs are kept")
    add("--run-name", type="folder", help="folder of this run in --log-dir (default: the time)")
    add("--report-every", type="count", default=8000, metavar="IMAGES", help="images a report")
    add("--views", choices=["all", "notes"], default="all", help="notes: only the notes' five")
    add("--resume", metavar="RUN_DIR", help="resume a stopped run, with its own settings")
    return parser.parse(argv)


def make_run(args: argparse.Namespace) -> Run:
    """Wire up a new run, or the one that --resume names. Raises InputError."""
    processes = start_processes()
    args, state = broadcast_from_first(lambda: load_run(args), processes)
    processes = place(processes, choose_device(args.device))
    batch_size, seed = args.batch_size, args.seed
    torch.manual_seed(seed)
    say("reading the images ...")
    where = args.data, args.data_dir, args.mirror
    train, test, source = broadcast_from_first(lambda: read_source(*where), processes)
    train, held = train.hold_back(args.validation, seed)
    train = train.subset(args.train_images, seed)  # of those that are left
    train, test, held = (part.mislabel(args.wrong_labels, seed) for part in (train, test, held))
    data = make_loaders(train, test, source, batch_size, seed, processes.device, args.augment, held)
    net = Net(len(data.classes)).to(processes.device)
    optimizer, scheduler = make_optimizer(net, args, len(data.train_loader))
    return Run(args, processes, data, net, optimizer, scheduler, state)  # last: makes the folder


def make_optimizer(net: nn.Module, args: argparse.Namespace, steps_per_epoch: int):
    """Return SGD and the schedule of its learning rate."""
    # fused: one kernel for all parameters, the same arithmetic
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=args.momentum, fused=True)
    if args.schedule == "constant":
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)
    steps = args.epochs * steps_per_epoch + 1  # it is stepped after the last batch, too
    return optimizer, OneCycleLR(optimizer, args.lr, steps, cycle_momentum=False)


def evaluate(run: Run, loader: DataLoader | None = None) -> Evaluation:
    """Run the net over the images that are watched; raises RunError if its loss is not finite."""
    loader = loader or run.data.validation_loader
    part = "test" if loader is run.data.test_loader else "validation"
    logits, labels = predict_all(run.net, loader, run.processes)
    loss = F.cross_entropy(logits, labels).item()
    run.check_finite(f"{part} loss", loss)
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return Evaluation(part, logits.softmax(dim=1), labels, loss, accuracy)


@rank_zero_only
def show_start(run: Run, result: Evaluation) -> None:
    """Before training: how the untrained net does, training images, graph, settings."""
    viz.add_test_scalars(run.writer, result.loss, result.accuracy, step=0, part=result.part)
    images, labels = run.data.train_loader.dataset.sample(16, run.args.seed)
    viz.add_image_grid(run.writer, images, labels, run.data.classes)
    viz.add_net_graph(run.writer, run.net, images[:1])
    if run.args.views == "all":
        viz.add_table(run.writer, "settings", settings_table(run))
        viz.add_hparams_start(run.writer, hyperparameters(run))
        viz.add_layout(run.writer, result.part)


# ----------------------------------------------------------------------------- the training loop


def train(run: Run) -> None:
    """Train until `--epochs` are done."""
    net = data_parallel(run.net, run.processes)
    criterion = nn.CrossEntropyLoss()
    optimizer, scheduler = run.optimizer, run.scheduler

    for _epoch in run.epochs():  # those that are left; after each, the run is saved
        for images, labels in run.batches():  # those that are left; Ctrl-C ends them, saved
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            scheduler.step()

            report = run.record(loss)
            if report:  # every 2,000 batches of 4, and at the end of an epoch
                run.print(f"training loss {report.loss:.3f}  {report.speed:,.0f} images/s")
                show_report(run, report, images, labels)

        result = evaluate(run)
        show_epoch(run, result)
        run.print(f"{result}")


@rank_zero_only
def show_report(run: Run, report: Report, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Every `--report-every` images: the loss, and what the net predicts for test images."""
    writer, net, step, classes = run.writer, run.net, run.progress.step, run.data.classes
    viz.add_training_loss(writer, report.loss, step)
    some = run.data.validation_loader.dataset.sample(8, run.args.seed)  # the same ones each time
    viz.add_predictions(writer, net, *some, classes, step)
    if run.args.views == "all":
        if report.is_first:  # the batch as the net and the loss got it
            viz.add_batch(writer, images, labels, classes, step)
        viz.add_training_scalars(writer, net, run.scheduler.get_last_lr()[0], report.speed, step)
        viz.add_histograms(writer, net, step)
        if report.profile:  # once, after the first report
            viz.add_table(writer, "where the time goes", report.profile, step)


@rank_zero_only
def show_epoch(run: Run, result: Evaluation) -> None:
    """After every epoch: how the net does on the test images, or on those held back."""
    writer, step, classes = run.writer, run.progress.step, run.data.classes
    part = result.part
    viz.add_test_scalars(writer, result.loss, result.accuracy, step, part)
    viz.add_pr_curves(writer, result.probs, result.labels, classes, step, part)
    if run.args.views == "all":
        dataset = run.data.validation_loader.dataset
        worst = viz.worst_mistakes(result.probs, result.labels, 8)
        images, labels = dataset.batch(worst)
        viz.add_confusion_matrix(writer, result.probs, result.labels, classes, step, part)
        viz.add_mistakes(writer, images, result.probs[worst], labels, classes, step, part=part)
        viz.add_filters(writer, run.net.conv1, step)
        viz.add_feature_maps(writer, run.net.conv1, dataset[0][0], step)


@rank_zero_only
def show_end(run: Run, test: Evaluation) -> None:
    """After the last epoch: the table per class, printed too, and the projector."""
    classes, step = run.data.classes, run.progress.step
    if run.args.validation:  # the first look at the test images
        viz.add_test_scalars(run.writer, test.loss, test.accuracy, step)
        say(f"{test}")
    rows = viz.class_report(test.probs, test.labels, classes)
    say(viz.markdown_table(rows))
    note_chance(test.accuracy, test.labels)
    if run.args.views == "all":
        images, labels = run.data.validation_loader.dataset.sample(1000, run.args.seed)
        with torch.inference_mode():
            features = run.net.features(images)
        viz.add_projector(run.writer, features, images, labels, classes, step)
        viz.add_table(run.writer, "per class", rows, step)
        viz.add_hparams_end(run.writer)


@rank_zero_only
def show_divergence(run: Run) -> None:
    """When the loss has become infinite or NaN: HPARAMS says that this run failed."""
    if run.args.views == "all":
        viz.add_hparams_end(run.writer, failed=True)


@exit_status  # errors become one line and a status: 1 for a run that failed, 2 for bad input
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    run = make_run(parse_args(argv))
    with in_progress(run):  # Ctrl-C stops it after a batch, saved
        if run.is_first:  # of several processes: one writer for a folder
            # A killed run may have shown steps that come again: purge_step drops them.
            run.writer = SummaryWriter(run.run_dir, purge_step=run.first_step)
        try:
            if run.is_new:
                show_start(run, evaluate(run))
            train(run)
            show_end(run, evaluate(run, run.data.test_loader))
        except DivergedError:
            show_divergence(run)
            raise
        run.save(finished=True)


if __name__ == "__main__":
    sys.exit(main())
