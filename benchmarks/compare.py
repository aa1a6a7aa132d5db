"""Our run beside the notes' way of doing it: same images, same net, same machine, alternating.

    python benchmarks/compare.py --data FOLDER_OF_IMAGES --json benchmarks/results.json
    python benchmarks/compare.py --quick

Each measurement is a process of its own; the table gives the median of the rounds and their range.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

IMPATIENT = ["--batch-size", "64", "--lr", "0.05", "--schedule", "onecycle"]
THOROUGH = ["--batch-size", "64", "--lr", "0.02", "--schedule", "onecycle"]
THOROUGH += ["--augment", "--epochs", "20"]
WAYS = {  # name: settings of train_cifar.py; the notes' way has its own loop
    "notes": [],
    "ours": [],
    "ours, no views": [],
    "ours, 4 epochs": ["--epochs", "4"],
    "impatient": IMPATIENT,
    "impatient, 2 processes": IMPATIENT,
    "thorough": THOROUGH,
    "shapes": [],
}
ONCE = ("thorough", "shapes")  # measured in the first round only: what matters is their accuracy
QUICK_IMAGES = 10_000
MEASURES = {
    "step_ms": "a training step, ms",
    "step_cpu_ms": "CPU time of a step, ms",
    "total_s": "training, evaluation and views, s",
    "run_s": "the whole run, from the start of Python and with reading the images, s",
    "evaluation_s": "evaluation and PR curves of all test images, once, s",
    "start_s": "from the start of Python to the first step, s",
    "peak_mb": "peak memory, MB",
    "views_share": "share of the whole run spent on views",
    "save_share": "share of the whole run spent on checkpoints",
    "test_accuracy": "test accuracy",
}


# ----------------------------------------------------------------- one measurement, in a process


class Meter:
    """Adds up wall and CPU time (s) of the functions it is put around."""

    def __init__(self):
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def around(self, module, name: str, function=None) -> None:
        """Replace a function of a module by one that is timed."""
        function = function or getattr(module, name)

        def timed(*args, **kwargs):
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.wall[name] += time.perf_counter() - wall
                self.cpu[name] += time.process_time() - cpu
                self.calls[name] += 1

        setattr(module, name, timed)

    def training(self, steps: int, parts: list[str]) -> dict[str, float]:
        """Time of a step: that of `train` without the parts in it that are no steps."""
        wall = self.wall["train"] - sum(self.wall[part] for part in parts)
        cpu = self.cpu["train"] - sum(self.cpu[part] for part in parts)
        return {"step_ms": 1000 * wall / steps, "step_cpu_ms": 1000 * cpu / steps}


def measure_notes(args: argparse.Namespace, log_dir: str) -> dict[str, float]:
    """Train by the notes' loop: two epochs and then the PR curves."""
    import notes_way
    import torch
    from torch.utils.data import DataLoader
    from torch.utils.tensorboard import SummaryWriter

    from model import Net

    torch.manual_seed(args.seed)
    train_set, test_set = read_images(args)
    classes = train_set.classes
    order = torch.Generator()
    train_images = notes_way.OneByOne(train_set)
    train_loader = DataLoader(train_images, batch_size=4, shuffle=True, generator=order)
    test_loader = DataLoader(notes_way.OneByOne(test_set), batch_size=4)
    net, writer = Net(len(classes)), SummaryWriter(log_dir)
    meter = Meter()
    for name in ("show_start", "show_report", "train", "evaluate"):
        meter.around(notes_way, name)
    notes_way.show_start(writer, net, next(iter(train_loader))[0])
    start = since_start()
    order.manual_seed(args.seed)  # as in our loader: both ways see the same batches
    notes_way.train(net, train_loader, writer, classes, epochs=2)
    accuracy = notes_way.evaluate(net, test_loader, writer, classes)
    writer.close()
    run = since_start()
    total = sum(meter.wall[name] for name in ("show_start", "train", "evaluate"))
    views = meter.wall["show_start"] + meter.wall["show_report"]
    return {
        **meter.training(2 * len(train_loader), ["show_report"]),
        "total_s": total,
        "run_s": run,
        "evaluation_s": meter.wall["evaluate"],
        "start_s": start,
        "views_share": views / run,
        "test_accuracy": accuracy,
    }


def measure_ours(args: argparse.Namespace, log_dir: str, settings: list[str]) -> dict:
    """Train by train_cifar.py itself, with meters around its parts."""
    import train_cifar
    import viz
    from support.run import Run

    meter, start = Meter(), []
    views = ["show_start", "show_report", "show_epoch", "show_end"]
    for name in views:
        skipped = (lambda *_: None) if args.way == "ours, no views" else None
        meter.around(train_cifar, name, skipped)
    for name in ("evaluate", "train"):
        meter.around(train_cifar, name)
    meter.around(Run, "save")
    meter.around(viz, "add_pr_curves")
    timed_train, runs, tests = train_cifar.train, [], []

    def train(run: Run):
        start.append(since_start())
        runs.append(run)
        tests.append(timed_train(run))
        return tests[0]

    train_cifar.train = train
    train_cifar.read_source = lambda *_: (*read_images(args), args.data)
    everything = ["--data", args.data, "--seed", str(args.seed), "--log-dir", log_dir, *settings]
    if train_cifar.main(everything):
        raise SystemExit("the run failed")
    run, seen, run_s = runs[0], meter.wall, since_start()
    epochs = run.args.epochs
    total = seen["train"] + seen["show_start"] + seen["show_end"] + seen["save"]
    return {
        **meter.training(
            epochs * len(run.data.train_loader), ["evaluate", "save", "show_report", "show_epoch"]
        ),
        "total_s": total,
        "run_s": run_s,
        "evaluation_s": (seen["evaluate"] + seen["add_pr_curves"]) / epochs,
        "start_s": start[0],
        "views_share": sum(seen[name] for name in views) / run_s,
        "save_share": seen["save"] / run_s,
        "test_accuracy": tests[0].accuracy,
        "classes": count_results(tests[0], run.data.classes),
    }


def count_results(test, classes: list[str]) -> dict[str, dict[str, float]]:
    """True and false positives and negatives of each class, and what follows from them."""
    size = len(classes)
    cells = test.labels * size + test.probs.argmax(dim=1)
    counted = cells.bincount(minlength=size**2).view(size, size)  # row the true class
    results = {}
    for index, name in enumerate(classes):
        tp = counted[index, index].item()
        fp, fn = counted[:, index].sum().item() - tp, counted[index].sum().item() - tp
        tn = len(test.labels) - tp - fp - fn
        precision, recall = tp / max(tp + fp, 1), tp / max(tp + fn, 1)
        counts = {"TP": tp, "FP": fp, "FN": fn, "TN": tn}
        results[name] = counts | {"precision": round(precision, 4), "recall": round(recall, 4)}
    return results


def read_images(args: argparse.Namespace):
    """The images of `--data`, or with `--quick` the same few of them for every way."""
    import torch

    from data import ImageDataset, read_source

    train, test, _ = read_source(args.data, Path("data"), ())
    if args.quick:
        few = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:QUICK_IMAGES]
        train = ImageDataset(train.images[few], train.labels[few], train.classes)
    return train, test


def since_start() -> float:
    """Seconds since the process of this measurement was started."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


def measure(args: argparse.Namespace) -> None:
    """Run one way and print its measures as JSON; with several processes the first does."""
    if args.way == "shapes":
        args.data = "shapes"
    with tempfile.TemporaryDirectory() as log_dir:
        if args.way == "notes":
            found = measure_notes(args, log_dir)
        else:
            found = measure_ours(args, log_dir, WAYS[args.way])
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found | peak_memory()))


def peak_memory() -> dict[str, float]:
    """The most memory that this process has had; nothing on Windows, where Python cannot tell."""
    if sys.platform == "win32":
        return {}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}


# ------------------------------------------------------------------------------- all of them


def run_way(way: str, args: argparse.Namespace) -> dict:
    """Measure one way in a process of its own (or two)."""
    command = [sys.executable]
    if "processes" in way:
        command += ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [__file__, "--way", way, "--data", args.data, "--seed", str(args.seed)]
    command += ["--quick"] if args.quick else []
    environment = os.environ | {"BENCHMARK_STARTED": str(time.time())}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{way}: failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> tuple[dict[str, dict[str, list[float]]], dict]:
    """Measure all ways, alternating.

    Returns the values of each measure of each way, and the results of our run for each class.
    """
    found: dict = {way: defaultdict(list) for way in WAYS}
    classes: dict = {}
    for index in range(args.rounds):
        for way in WAYS:
            if way in ONCE and (args.quick or index > 0):
                continue
            print(f"round {index + 1} of {args.rounds}: {way}", file=sys.stderr)
            measured = run_way(way, args)
            classes[way] = measured.pop("classes", {})
            for measure_name, value in measured.items():
                found[way][measure_name].append(value)
    return found, classes["ours"]


def show(name: str, values: list[float]) -> str:
    """A median and its range as text, as fits the measure."""
    if not values:
        return ""
    percent = name in ("test_accuracy", "views_share", "save_share")
    digits = {"peak_mb": 0, "step_ms": 2, "step_cpu_ms": 2, "evaluation_s": 2}.get(name, 1)
    low, middle, high = (
        f"{value:.1%}" if percent else f"{value:,.{digits}f}"
        for value in (min(values), statistics.median(values), max(values))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def table(found: dict) -> str:
    """All medians and ranges as a Markdown table."""
    ways = [way for way in WAYS if found[way]]
    lines = ["| | " + " | ".join(ways) + " |", "|---|" + "---|" * len(ways)]
    for name, title in MEASURES.items():
        cells = (show(name, found[way].get(name, [])) for way in ways)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(found: dict) -> dict[str, float | None]:
    """What the comparison is made for, each from values of the same round."""

    def of(measure_name: str, above: str, below: str) -> float | None:
        pairs = zip(found[above][measure_name], found[below][measure_name], strict=True)
        values = [a / b for a, b in pairs]
        return round(statistics.median(values), 3) if values else None

    return {
        "a step: notes / ours": of("step_ms", "notes", "ours"),
        "CPU time of a step: notes / ours": of("step_cpu_ms", "notes", "ours"),
        "two epochs: notes / ours": of("total_s", "notes", "ours"),
        "evaluation and PR curves: notes / ours": of("evaluation_s", "notes", "ours"),
        "two epochs: notes / impatient": of("total_s", "notes", "impatient"),
        "peak memory: ours / notes": of("peak_mb", "ours", "notes"),
        "start: ours / notes": of("start_s", "ours", "notes"),
        "views on / off": of("run_s", "ours", "ours, no views"),
        "four epochs / two": of("total_s", "ours, 4 epochs", "ours"),
        "impatient: 2 processes / 1": of("total_s", "impatient, 2 processes", "impatient"),
    }


def processor() -> str:
    """The name of this machine's processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Measure everything and print the table; or, started by itself, measure one way."""
    parser = argparse.ArgumentParser(description="Compare our run with the notes' way.")
    parser.add_argument("--data", default="shapes", help="shapes, or a folder of images")
    parser.add_argument("--rounds", type=int, default=3, help="times that each way is measured")
    parser.add_argument("--quick", action="store_true", help="few images, one round: 5 minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the medians to this file as well")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return measure(args)
    if args.quick:
        args.rounds = 1
    found, classes = compare(args)
    import torch

    about = {
        "hardware": f"{os.cpu_count()} cores of {processor()}",
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        "images": "shapes" if args.data == "shapes" else "folder",
        "quick": args.quick,
        "rounds": args.rounds,
    }
    print(table(found))
    print(json.dumps(about | {"ratios": ratios(found)}, indent=2))
    if args.json:
        medians = {
            way: {name: round(statistics.median(v), 4) for name, v in measures.items()}
            for way, measures in found.items()
        }
        everything = about | {"medians": medians, "ratios": ratios(found), "classes": classes}
        Path(args.json).write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main()
