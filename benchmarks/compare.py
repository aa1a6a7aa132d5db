"""Our run beside the notes' way: how long it takes, how accurate it is, and what made it fast.

    python benchmarks/compare.py --data FOLDER_OF_IMAGES --write --jobs 8
    python benchmarks/compare.py --quick

Timings are taken one after the other, alternating in several rounds: they want an idle machine.
Accuracies are those of several seeds, --jobs runs at once, each in one thread. The first command
also fills in the pages; stopped, it goes on where it was (runs/compared; delete that folder after
a change to the code).
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import figures

RESULTS = figures.ROOT / "benchmarks" / "results.json"
UNFINISHED = Path("runs/compared")

IMPATIENT = "--batch-size 64 --lr 0.05 --schedule onecycle"
THOROUGH = "--batch-size 64 --lr 0.02 --schedule onecycle --augment --epochs 20"
SWEEP = {f"lr {lr}": f"--validation 5000 --lr {lr}" for lr in (0.0005, 0.001, 0.002)}
WAYS = {  # name: settings of train_cifar.py, rounds in which it is timed, seeds of its accuracy
    "notes": ("", 3, 5),  # has its own loop
    "ours": ("", 3, 5),
    "impatient": (IMPATIENT, 3, 5),
    "impatient, 2 processes": (IMPATIENT, 3, 0),
    "thorough": (THOROUGH, 1, 1),
    "shapes": ("", 1, 3),
    **{way: (settings, 0, 5) for way, settings in SWEEP.items()},
    "steps": ("", 3, 0),  # is no run: a step, change by change
}
QUICK_IMAGES, STEPS = 10_000, 5_000  # of training; to time a step


def measure(way: str, args: argparse.Namespace, seed: int, **environment: str) -> dict:
    """Measure one way once."""
    data = "shapes" if way == "shapes" else args.data
    script = "benchmarks/notes_way.py" if way == "notes" else "train_cifar.py"
    settings = WAYS[way][0] + (f" --train-images {QUICK_IMAGES}" if args.quick else "")
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        python, *words = figures.command(script, settings, data, seed, run_dir)
        if way == "steps":
            return apart(measure_steps, words[1:])
        if "processes" in way:
            words = ["-m", "torch.distributed.run", "--nproc_per_node=2", *words]
        env, started, found = os.environ | environment, time.time(), {}
        process = subprocess.Popen([python, *words], env=env, stdout=subprocess.DEVNULL)
        if hasattr(os, "wait4"):  # Windows cannot tell
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
            found["peak_mb"] = used.ru_maxrss * unit / 1e6
        if process.wait():
            sys.exit(f"{way}: failed with status {process.returncode}")
        return found | read_run(way, run_dir, started)


def read_run(way: str, run_dir: Path, started: float) -> dict:
    """What the event file of a run says; of ours, also what it predicted."""
    events = figures.read_events(run_dir)
    first, last = events[0].wall_time, events[-1].wall_time
    found: dict = {"total_s": last - first, "start_s": first - started}
    trained = evaluated = first
    for event in events:
        for value in event.summary.value:
            if value.tag.startswith(("gradients/", "trained")):  # the last before an evaluation
                trained = event.wall_time
            elif value.tag.startswith("pr curve/"):
                evaluated = event.wall_time
            elif value.tag.endswith("/accuracy"):
                found[value.tag.replace("/", "_")] = value.simple_value
    if way in ("notes", "ours"):
        found["evaluation_s"] = evaluated - trained
    if way == "ours":
        found["classes"] = apart(count_results, run_dir)
    return found


def apart(do: Callable[..., dict], *args: object) -> dict:
    """Do it in a process of its own: this one stays small, without PyTorch.

    What a process had in memory when it started another, Linux counts as the other's, too.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(do, *args).result()


def count_results(run_dir: Path) -> dict[str, dict[str, float]]:
    """True and false positives and negatives of each class, and what follows from them."""
    from sick_runs import predict

    _, _, test, logits = predict(run_dir)
    guesses, results = logits.argmax(dim=1), {}
    for index, name in enumerate(test.classes):
        said, true = guesses == index, test.labels == index
        parts = {"TP": said & true, "FP": said & ~true, "FN": ~said & true, "TN": ~said & ~true}
        counts = {part: images.sum().item() for part, images in parts.items()}
        precision = counts["TP"] / max(said.sum().item(), 1)
        recall = counts["TP"] / max(true.sum().item(), 1)
        results[name] = counts | {"precision": round(precision, 4), "recall": round(recall, 4)}
    return results


def measure_steps(words: list[str]) -> dict[str, dict[str, float]]:
    """A step of training, from the notes' loop to ours: each row has one change more."""
    import torch
    from notes_way import OneByOne

    import train_cifar
    from model import Net
    from support.device import ALL_THREADS

    run = train_cifar.make_run(train_cifar.parse_args(words))
    loader = run.data.train_loader
    losses, criterion = torch.zeros(STEPS), torch.nn.CrossEntropyLoss()
    one_by_one = torch.utils.data.DataLoader(OneByOne(loader.dataset), batch_size=4, shuffle=True)
    rows = {  # threads, oneDNN, fused, no denormals, batches
        "notes": (ALL_THREADS, True, False, False, one_by_one),
        "batches": (ALL_THREADS, True, False, False, loader),
        "loss": (ALL_THREADS, True, False, False, loader),
        "threads": (1, True, False, False, loader),
        "onednn": (1, False, False, False, loader),
        "fused": (1, False, True, False, loader),
        "denormals": (1, False, True, True, loader),
        "ours": (1, False, True, True, run.batches()),
    }
    found = {}
    for name, (threads, onednn, fused, flush, batches) in rows.items():
        torch.set_num_threads(threads)
        torch.backends.mkldnn.set_flags(onednn)
        torch.set_flush_denormal(flush)
        net, optimizer = run.net, run.optimizer
        if name != "ours":
            net = Net(len(run.data.classes))
            optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, fused=fused)
        wall, cpu = time.perf_counter(), time.process_time()
        for step, (images, labels) in enumerate(itertools.islice(batches, STEPS)):
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            if name in ("notes", "batches"):
                loss.item()
            elif name == "ours":
                run.scheduler.step()
                run.record(loss)
            else:
                losses[step] = loss.detach()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found[name] = {"step_ms": 1000 * wall / STEPS, "step_cpu_ms": 1000 * cpu / STEPS}
    return found


def compare(args: argparse.Namespace, unfinished: Path) -> dict:
    """Measure everything; returns what the pages' figures are taken from."""
    timings = {
        f"{way}, round {index}": functools.partial(measure, way, args, 0)
        for index in range(1 if args.quick else 3)
        for way, (_, rounds, _) in WAYS.items()
        if index < rounds
    }
    tests = {
        f"{way}, seed {seed}": functools.partial(measure, way, args, seed, OMP_NUM_THREADS="1")
        for way, (_, _, seeds) in WAYS.items()
        for seed in range(0 if args.quick else seeds)
    }
    timed, tested = defaultdict(list), defaultdict(dict)
    for name, found in figures.measure_all(timings, unfinished).items():
        timed[name.rsplit(", round ", 1)[0]].append(found)
    for name, found in figures.measure_all(tests, unfinished, args.jobs).items():
        way, seed = name.rsplit(", seed ", 1)
        tested[way][seed] = found
    steps = timed.pop("steps")
    rows = {name: medians([found[name] for found in steps]) for name in steps[0]}
    for before, row in itertools.pairwise(rows.values()):
        row["saved_ms"] = round(before["step_ms"] - row["step_ms"], 4)
    best = {  # of the sweep: the run that the images held back choose
        seed: max((tested[way][seed] for way in SWEEP), key=lambda run: run["validation_accuracy"])
        for seed in tested["lr 0.001"]
    }
    return {
        "medians": {way: medians(rounds) for way, rounds in timed.items()},
        "steps": rows,
        "seeds": {way: accuracies(found, "test") for way, found in tested.items() if found},
        "sweep": accuracies(best, "validation", "test") if best else {},
        "classes": timed["ours"][0]["classes"],
    }


def medians(rounds: list[dict]) -> dict[str, float]:
    """The median of each measure but the accuracy, which is one of the seeds'."""
    return {
        name: round(statistics.median(found[name] for found in rounds), 4)
        for name in rounds[0]
        if name not in ("classes", "test_accuracy")
    }


def accuracies(by_seed: dict[str, dict], *parts: str) -> dict[str, dict]:
    """The accuracies on these parts of the images, over the seeds."""
    return {
        f"{part}_accuracy": figures.over_seeds(
            {seed: round(found[f"{part}_accuracy"], 4) for seed, found in by_seed.items()}
        )
        for part in parts
    }


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description="Compare our run with the notes' way.")
    add = parser.add_argument
    add("--data", default="shapes", help="shapes, or a folder of images")
    add("--jobs", type=int, default=1, help="runs at once, where time is no matter")
    add("--write", action="store_true", help="update the results and the pages")
    add("--quick", action="store_true", help="fewer images, one round")
    args = parser.parse_args()
    if args.write and (args.quick or args.data == "shapes"):
        parser.error("--write needs --data FOLDER, without --quick: the pages speak of photographs")

    about = figures.conditions(f"{os.cpu_count()} cores")
    about["images"] = "shapes" if args.data == "shapes" else "folder"
    with tempfile.TemporaryDirectory() as folder:
        results = about | compare(args, UNFINISHED if args.write else Path(folder))
    print(json.dumps(results, indent=1))
    if args.write:
        figures.write_pages(RESULTS, results)
        shutil.rmtree(UNFINISHED)


if __name__ == "__main__":
    main()
