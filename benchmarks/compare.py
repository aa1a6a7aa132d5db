"""Our run beside the notes' way: how long it takes, how accurate it is, and what made it fast.

    python benchmarks/compare.py --data FOLDER_OF_IMAGES --write --jobs 8
    python benchmarks/compare.py --quick

Timings are taken one after the other, alternating in several rounds: they want an idle machine.
Accuracies are those of several seeds, --jobs runs at once, each in one thread. The first command
also fills in the pages; stopped, it goes on where it was (benchmarks/results.jsonl; delete that
file after a change to the code).
"""

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import figures
from figures import ROOT

sys.path.append(str(ROOT))
RESULTS = ROOT / "benchmarks" / "results.json"
UNFINISHED = RESULTS.with_suffix(".jsonl")

IMPATIENT = "--batch-size 64 --lr 0.05 --schedule onecycle"
QUICK_TRY = "--train-images 5000 --batch-size 32 --lr 0.05 --schedule onecycle --epochs 4"
WAYS = {  # name: settings of train_cifar.py; the notes' way has its own loop
    "notes": "",
    "ours": "",
    "impatient": IMPATIENT,
    "impatient, 2 processes": IMPATIENT,
    "thorough": "--batch-size 64 --lr 0.02 --schedule onecycle --augment --epochs 20",
    "shapes": "",
    "quick try": QUICK_TRY,
    "quick try, shapes": QUICK_TRY,
}
SWEEP = {f"lr {lr}": f"--validation 5000 --lr {lr}" for lr in (0.0005, 0.001, 0.002)}
ONCE = ("thorough", "shapes", "quick try", "quick try, shapes")  # timed in the first round only
SEEDED = [way for way in WAYS if "processes" not in way]
ROUNDS, SEEDS, SHAPES_SEEDS = 3, 5, 3
QUICK_IMAGES, STEPS = 10_000, 5_000  # of training; to time a step


# ----------------------------------------------------------------- one measurement, in a process


def measure_notes(args: argparse.Namespace, log_dir: str) -> dict:
    """Train by the notes' loop: two epochs and then the PR curves."""
    import notes_way
    import torch
    from torch.utils.data import DataLoader
    from torch.utils.tensorboard import SummaryWriter

    from data import read_source
    from model import Net

    torch.manual_seed(args.seed)
    train_set, test_set, _ = read_source(args.data, "data", ())
    train_set = train_set.subset(QUICK_IMAGES if args.quick else None, args.seed)
    classes, order = train_set.classes, torch.Generator()
    train_images = notes_way.OneByOne(train_set)
    train_loader = DataLoader(train_images, batch_size=4, shuffle=True, generator=order)
    test_loader = DataLoader(notes_way.OneByOne(test_set), batch_size=4)
    net, writer = Net(len(classes)), SummaryWriter(log_dir)
    started = time.perf_counter()
    start_s = since_start()
    notes_way.show_start(writer, net, next(iter(train_loader))[0])
    order.manual_seed(args.seed)  # as in our loader: both ways see the same batches
    notes_way.train(net, train_loader, writer, classes, epochs=2)
    trained = time.perf_counter()
    accuracy = notes_way.evaluate(net, test_loader, writer, classes)
    writer.close()
    ended = time.perf_counter()
    return {
        "total_s": ended - started,
        "evaluation_s": ended - trained,
        "start_s": start_s,
        "test_accuracy": accuracy,
    }


def measure_ours(args: argparse.Namespace, log_dir: str) -> dict:
    """Train by train_cifar.py; its event file says when each thing was written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    import train_cifar

    if train_cifar.main([*command_line(args, log_dir), "--run-name", args.way]):
        sys.exit("the run failed")
    if os.environ.get("RANK", "0") != "0":
        return {}  # the first process has written the file
    times, accuracies = [], {}  # the last one on each part
    (path,) = Path(log_dir, args.way).glob("events.*")
    for event in EventFileLoader(str(path)).Load():
        times.append(event.wall_time)
        for value in event.summary.value:
            part, _, name = value.tag.partition("/")
            if name == "accuracy":
                accuracies[f"{part}_accuracy"] = value.tensor.float_val[0]
    found = {
        "total_s": times[-1] - times[0],
        "start_s": times[0] - float(os.environ["BENCHMARK_STARTED"]),
        **accuracies,
    }
    return found | (evaluate_again(args, path.parent) if args.way == "ours" else {})


def command_line(args: argparse.Namespace, log_dir: str) -> list[str]:
    """What train_cifar.py is called with."""
    words = ["--data", args.data, "--seed", str(args.seed), "--log-dir", log_dir]
    words += ["--train-images", str(QUICK_IMAGES)] if args.quick else []
    return [*words, *(WAYS | SWEEP).get(args.way, "").split()]


def evaluate_again(args: argparse.Namespace, run_dir: Path) -> dict:
    """The time to predict the test images and draw the PR curves, and what was predicted."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    import viz
    from data import load_data
    from model import Net
    from support.checkpoint import load_checkpoint
    from support.device import to_channels_last, tune_cpu

    _, loader, classes, *_ = load_data(args.data)
    net = Net(len(classes))
    net.load_state_dict(load_checkpoint(run_dir)["net"])
    tune_cpu(loader.batch_size)
    with SummaryWriter(run_dir) as writer, torch.no_grad():
        started = time.perf_counter()
        logits = torch.cat([net(to_channels_last(images)) for images, _ in loader])
        probs, labels = logits.softmax(dim=1), loader.dataset.labels
        viz.add_pr_curves(writer, probs, labels, classes, 1)
        seconds = time.perf_counter() - started
    return {"evaluation_s": seconds, "classes": count_results(probs, labels, classes)}


def count_results(probs, labels, classes: list[str]) -> dict[str, dict[str, float]]:
    """True and false positives and negatives of each class, and what follows from them."""
    size = len(classes)
    cells = labels * size + probs.argmax(dim=1)
    counted = cells.bincount(minlength=size**2).view(size, size)  # row the true class
    results = {}
    for index, name in enumerate(classes):
        tp = counted[index, index].item()
        fp, fn = counted[:, index].sum().item() - tp, counted[index].sum().item() - tp
        tn = len(labels) - tp - fp - fn
        precision, recall = tp / max(tp + fp, 1), tp / max(tp + fn, 1)
        counts = {"TP": tp, "FP": fp, "FN": fn, "TN": tn}
        results[name] = counts | {"precision": round(precision, 4), "recall": round(recall, 4)}
    return results


def measure_steps(args: argparse.Namespace, log_dir: str) -> dict[str, dict[str, float]]:
    """A step of training, from the notes' loop to ours: each row has one change more."""
    import notes_way
    import torch
    from torch.utils.data import DataLoader

    import train_cifar
    from model import Net

    run = train_cifar.make_run(train_cifar.parse_args(command_line(args, log_dir)))
    train_set, threads = run.data.train_loader.dataset, torch.get_num_threads()
    one_by_one = DataLoader(notes_way.OneByOne(train_set), batch_size=4, shuffle=True)
    losses = torch.zeros(STEPS)

    def read(step: int, loss: torch.Tensor) -> None:
        loss.item()

    def keep(step: int, loss: torch.Tensor) -> None:
        losses[step] = loss.detach()

    def record(step: int, loss: torch.Tensor) -> None:
        run.scheduler.step()
        run.record(loss)

    rows = {  # threads, oneDNN, fused, no denormals, batches, what is done with the loss
        "notes": (threads, True, False, False, one_by_one, read),
        "batches": (threads, True, False, False, run.data.train_loader, read),
        "loss": (threads, True, False, False, run.data.train_loader, keep),
        "threads": (1, True, False, False, run.data.train_loader, keep),
        "onednn": (1, False, False, False, run.data.train_loader, keep),
        "fused": (1, False, True, False, run.data.train_loader, keep),
        "denormals": (1, False, True, True, run.data.train_loader, keep),
        "ours": (1, False, True, True, run.batches(), record),
    }
    found = {}
    for name, (threads, onednn, fused, flush, batches, use) in rows.items():
        torch.set_num_threads(threads)
        torch.backends.mkldnn.set_flags(onednn)
        torch.set_flush_denormal(flush)
        net, optimizer = run.net, run.optimizer
        if name != "ours":
            net = Net(len(train_set.classes))
            optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, fused=fused)
        found[name] = time_steps(net, optimizer, batches, use)
    return found


def time_steps(net, optimizer, batches: Iterable, use: Callable) -> dict[str, float]:
    """Train by STEPS of the batches; returns the mean time and CPU time of a step."""
    from torch.nn import CrossEntropyLoss

    criterion = CrossEntropyLoss()
    wall, cpu = time.perf_counter(), time.process_time()
    for step, (images, labels) in enumerate(itertools.islice(batches, STEPS)):
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        use(step, loss)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"step_ms": 1000 * wall / STEPS, "step_cpu_ms": 1000 * cpu / STEPS}


def since_start() -> float:
    """Seconds since the process of this measurement was started."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


def measure(args: argparse.Namespace) -> None:
    """Measure one way and print it as JSON; with several processes the first does."""
    do = {"notes": measure_notes, "steps": measure_steps}.get(args.way, measure_ours)
    with tempfile.TemporaryDirectory() as log_dir:
        found = do(args, log_dir)
    if args.way != "steps" and sys.platform != "win32":  # where Python cannot tell
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))


# ------------------------------------------------------------------------------- all of them


def run_way(way: str, args: argparse.Namespace, seed: int, **environment: str) -> dict:
    """Measure one way in a process of its own (or two)."""
    command = [sys.executable]
    if "processes" in way:
        command += ["-m", "torch.distributed.run", "--nproc_per_node=2"]
    data = "shapes" if "shapes" in way else args.data
    command += [__file__, "--way", way, "--data", data, "--seed", str(seed)]
    command += ["--quick"] if args.quick else []
    environment["BENCHMARK_STARTED"] = str(time.time())
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{way}: failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace, unfinished: Path) -> dict:
    """Measure everything; returns what the pages' figures are taken from."""
    timings, tests = {}, {}
    for index in range(1 if args.quick else ROUNDS):
        for way in ["steps", *WAYS]:
            if index == 0 or way not in ONCE:
                timings[f"{way}, round {index}"] = functools.partial(run_way, way, args, 0)
    for way in [] if args.quick else [*SEEDED, *SWEEP]:
        for seed in range(SHAPES_SEEDS if "shapes" in way else SEEDS):
            do = functools.partial(run_way, way, args, seed, OMP_NUM_THREADS="1")
            tests[f"{way}, seed {seed}"] = do
    timed = figures.measure_all(timings, unfinished)
    tested = figures.measure_all(tests, unfinished, args.jobs)
    accuracies: dict = {way: {} for way in [*SEEDED, *SWEEP]}
    for name, found in tested.items():
        way, seed = name.rsplit(", seed ", 1)
        accuracies[way][seed] = round(found["test_accuracy"], 4)
    return {
        "medians": {way: medians(rounds_of(timed, way)) for way in WAYS},
        "steps": step_by_step(rounds_of(timed, "steps")),
        "seeds": {
            way: {"test_accuracy": figures.over_seeds(by_seed)}
            for way, by_seed in accuracies.items()
            if by_seed
        },
        "sweep": {} if args.quick else best_of_sweep(tested),
        "classes": timed["ours, round 0"]["classes"],
    }


def best_of_sweep(tested: dict[str, dict]) -> dict[str, dict]:
    """The run that the images held back choose: its accuracy on them, and on the test images."""
    best = {}
    for seed in range(SEEDS):
        runs = [tested[f"{way}, seed {seed}"] for way in SWEEP]
        best[str(seed)] = max(runs, key=lambda run: run["validation_accuracy"])
    return {
        name: figures.over_seeds({seed: round(run[name], 4) for seed, run in best.items()})
        for name in ("validation_accuracy", "test_accuracy")
    }


def rounds_of(timed: dict[str, dict], way: str) -> list[dict]:
    """What was measured of a way, by round."""
    return [found for name, found in timed.items() if name.rsplit(", round ", 1)[0] == way]


def medians(rounds: list[dict]) -> dict[str, float]:
    """The median of each measure but the accuracy, which is one of the seeds'."""
    return {
        name: round(statistics.median(found[name] for found in rounds), 4)
        for name in rounds[0]
        if name not in ("classes", "test_accuracy")
    }


def step_by_step(rounds: list[dict]) -> dict[str, dict[str, float]]:
    """The medians of each row, and how much less a step takes than in the row before."""
    rows = {name: medians([found[name] for found in rounds]) for name in rounds[0]}
    for before, row in itertools.pairwise(rows.values()):
        row["saved_ms"] = round(before["step_ms"] - row["step_ms"], 4)
    return rows


def processor() -> str:
    """The name of this machine's processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Measure everything and print it; or, started by itself, measure one way."""
    parser = argparse.ArgumentParser(description="Compare our run with the notes' way.")
    parser.add_argument("--data", default="shapes", help="shapes, or a folder of images")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, where time is no matter")
    parser.add_argument("--write", action="store_true", help="update the results and the pages")
    parser.add_argument("--quick", action="store_true", help="fewer images, one round")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=["steps", *WAYS, *SWEEP], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        return measure(args)
    if args.write and (args.quick or args.data == "shapes"):
        parser.error("--write needs --data FOLDER, without --quick: the pages speak of photographs")
    import torch

    about = {
        "hardware": f"{os.cpu_count()} cores of {processor()}",
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        "images": "shapes" if args.data == "shapes" else "folder",
    }
    with tempfile.TemporaryDirectory() as folder:
        unfinished = UNFINISHED if args.write else Path(folder, UNFINISHED.name)
        text = json.dumps(about | compare(args, unfinished), indent=2)
    print(text)
    if args.write:
        RESULTS.write_text(text + "\n", encoding="utf-8")
        figures.write_pages()
        UNFINISHED.unlink()


if __name__ == "__main__":
    main()
