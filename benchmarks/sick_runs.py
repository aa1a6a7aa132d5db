"""The runs of docs/sick-runs.md, each as printed there, and whether its sign was seen.

    python benchmarks/sick_runs.py --data FOLDER --write
    python benchmarks/sick_runs.py --seeds 1

The first makes all figures and pictures of the page: every run, as a process of its own, with three
seeds, on the images in FOLDER and on the shapes. The second takes the shapes only, and one seed.
"""

import argparse
import datetime
import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from compare import processor
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch.utils.data import DataLoader

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import viz  # noqa: E402
from data import ImageDataset, already_collated, read_source  # noqa: E402
from model import Net  # noqa: E402
from support.checkpoint import load_checkpoint  # noqa: E402

RESULTS = ROOT / "benchmarks" / "sick_runs.json"
FIGURE = re.compile(r"(?P<number>\d[\d,.]*)(?P<unit>(?: %| s)?)<!-- figure: (?P<path>.+?) -->")

RUNS = {  # name: settings; the page prints `python train_cifar.py SETTINGS --run-name NAME`
    "healthy": "--batch-size 32 --lr 0.01 --epochs 3",
    "dead": "--batch-size 32 --lr 0.4 --epochs 3",
    "exploding": "--batch-size 32 --lr 50 --epochs 1 --train-images 3200 --report-every 32",
    "too-low": "--batch-size 32 --lr 0.0001 --epochs 3",
    "restless": "--batch-size 32 --lr 0.05 --epochs 3",
    "restless-cured": "--batch-size 32 --lr 0.05 --epochs 3 --schedule onecycle",
    "big-batch": "--batch-size 512 --lr 0.01 --epochs 3",
    "big-batch-cured": "--batch-size 512 --lr 0.16 --epochs 3",
    "overfit": "--batch-size 32 --lr 0.01 --epochs 30 --train-images 2000",
    "overfit-cured": "--batch-size 32 --lr 0.01 --epochs 30 --train-images 2000 --augment",
    "wrong-labels": "--batch-size 32 --lr 0.01 --epochs 3 --wrong-labels 0.4",
    "augmented": "--batch-size 32 --lr 0.01 --epochs 3 --augment",
}

# What the page says of each run, asked of its figures and of those of the healthy run beside it.
SIGNS = {
    "healthy": lambda run, healthy: run["test_loss"] == run["lowest_test_loss"],
    "dead": lambda run, healthy: run["conv1_gradient"] == 0 and run["classes_found"] == 1,
    "exploding": lambda run, healthy: run["highest_training_loss"] > 100,
    "too-low": lambda run, healthy: run["training_loss"] > 2.25 and run["conv1_gradient"] > 0,
    "restless": lambda run, healthy: run["training_loss"] > 0.95 * run["epoch_1_training_loss"],
    "restless-cured": lambda run, healthy: run["test_accuracy"] > 0.9 * healthy["test_accuracy"],
    "big-batch": lambda run, healthy: run["test_accuracy"] < 0.7 * healthy["test_accuracy"],
    "big-batch-cured": lambda run, healthy: run["test_accuracy"] > 0.7 * healthy["test_accuracy"],
    "overfit": lambda run, healthy: run["test_loss"] > 1.3 * run["lowest_test_loss"],
    "overfit-cured": lambda run, healthy: run["test_loss"] < 1.1 * run["lowest_test_loss"],
    "wrong-labels": lambda run, healthy: run["mislabelled_of_8_mistakes"] >= 6,
    "augmented": lambda run, healthy: run["training_loss"] > run["test_loss"],
}


# ------------------------------------------------------------------------- what a run has shown


def read_events(run_dir: Path) -> dict[str, list]:
    """All values in the event files of a run, by tag: (step, value) as they were written."""
    found = defaultdict(list)
    for path in sorted(run_dir.glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():  # the newer one changes histograms
            for value in event.summary.value:
                found[value.tag].append((event.step, value))
    return found


def figures(run_dir: Path) -> dict[str, float]:
    """What the signs are read off: scalars, the last gradients of conv1, the table per class.

    Nothing at all of a run that fails before its first report.
    """
    events = read_events(run_dir)
    if "training loss" not in events:
        return {}
    tags = ("training loss", "test/loss", "test/accuracy", "training progress/gradient norm")
    scalars = {
        tag: [(step, value.simple_value) for step, value in events.get(tag, [])] for tag in tags
    }
    training = [loss for _, loss in scalars["training loss"]]
    found = {
        "steps": scalars["training loss"][-1][0],
        "training_loss": training[-1],
        "highest_training_loss": max(training),
        "loss_digits": len(str(int(max(training)))),
        "gradient_norm": scalars["training progress/gradient norm"][-1][1],
        "conv1_gradient": events["gradients/conv1.weight"][-1][1].histo.sum_squares ** 0.5,
    }
    tests = [(step, loss) for step, loss in scalars["test/loss"] if step > 0]
    if tests:  # a run that fails in its first epoch is never tested
        first_epoch = tests[0][0]
        found |= {
            "epoch_1_training_loss": dict(scalars["training loss"])[first_epoch],
            "test_loss": tests[-1][1],
            "lowest_test_loss": min(loss for _, loss in tests),
            "lowest_test_loss_epoch": 1 + min(range(len(tests)), key=lambda i: tests[i][1]),
            "test_accuracy": scalars["test/accuracy"][-1][1],
            "classes_found": classes_found(events["per class/text_summary"][-1][1]),
        }
    return found


def classes_found(table) -> int:
    """In how many rows of the table per class the recall is above zero."""
    _, _, *rows = table.tensor.string_val[0].decode().splitlines()
    return sum(float(row.split("|")[4]) > 0 for row in rows)


@functools.lru_cache(2)
def read_images(source: str) -> tuple[ImageDataset, ImageDataset]:
    """The images to train and to test on, with their right labels."""
    train, test, _ = read_source(source, "data", ())
    return train, test


def compare_labels(run_dir: Path) -> dict[str, float]:
    """What a run with wrong labels shows of them in two pictures, and how it does without them."""
    state = load_checkpoint(run_dir)
    share, seed = state["settings"]["wrong_labels"], state["settings"]["seed"]
    train, test = read_images(state["settings"]["data"])
    shown = test.mislabel(share, seed)
    net = Net(len(test.classes))
    net.load_state_dict(state["net"])
    with torch.inference_mode():
        batches = DataLoader(test, 200, collate_fn=already_collated)
        logits = torch.cat([net(images) for images, _ in batches])
    worst = viz.worst_mistakes(logits.softmax(dim=1), shown.labels, 8)
    _, right = train.sample(16, seed)
    _, given = train.mislabel(share, seed).sample(16, seed)
    return {
        "mislabelled_of_16_images": (right != given).sum().item(),
        "mislabelled_of_8_mistakes": (shown.labels[worst] != test.labels[worst]).sum().item(),
        "right_labels_accuracy": (logits.argmax(dim=1) == test.labels).float().mean().item(),
    }


# ------------------------------------------------------------------------------------- all of them


def run(name: str, data: str, seed: int, log_dir: Path) -> dict[str, object]:
    """Run one command of the page; returns its figures, and how it ended."""
    command = [sys.executable, str(ROOT / "train_cifar.py"), *RUNS[name].split()]
    command += ["--run-name", name, "--data", data, "--seed", str(seed), "--log-dir", str(log_dir)]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 1):  # 1: its loss became NaN; the others are no run at all
        sys.exit(f"{name}: ended with status {done.returncode}: {done.stderr.strip()}")
    found = figures(log_dir / name)
    if name == "wrong-labels":
        found |= compare_labels(log_dir / name)
    found = {key: value for key, value in found.items() if math.isfinite(value)}  # JSON has no inf
    return found | {"run_s": round(seconds, 1), "status": done.returncode, "said": done.stderr}


def run_all(data: str, seeds: range, log_dir: Path) -> dict[str, dict]:
    """Run every command with every seed; returns the figures by run and seed, and the signs."""
    results: dict = {name: {} for name in RUNS}
    for seed in seeds:
        for name in RUNS:
            found = run(name, data, seed, log_dir / f"seed-{seed}")
            results[name][str(seed)] = found
            print(f"{data} {name} seed {seed}: {found}", file=sys.stderr)
    for name, by_seed in results.items():
        found = list(by_seed.items())
        by_seed["seen"] = sum(is_seen(name, one, results["healthy"][seed]) for seed, one in found)
        by_seed["failed"] = sum(one["status"] for _, one in found)
    seconds = [[results[name][str(seed)]["run_s"] for name in RUNS] for seed in seeds]
    return results | {"page_s": sum(seconds[0]), "total_s": sum(map(sum, seconds))}


def is_seen(name: str, run: dict, healthy: dict) -> bool:
    """Whether a run has shown its sign; one that failed too early for it has not."""
    try:
        return SIGNS[name](run, healthy)
    except KeyError:
        return False


def fill_in(page: str, results: dict) -> str:
    """Replace every figure on a page by that of the results, with as many digits."""

    def figure(found: re.Match[str]) -> str:
        value = functools.reduce(lambda part, key: part[key], found["path"].split("."), results)
        digits = len(found["number"].partition(".")[2])
        factor = 100 if found["unit"] == " %" else 1
        return f"{value * factor:,.{digits}f}{found['unit']}<!-- figure: {found['path']} -->"

    return FIGURE.sub(figure, page)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run what docs/sick-runs.md prints.")
    parser.add_argument("--data", help="a folder of images, run before the shapes")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument(
        "--write",
        action="store_true",
        help="update the figures and pictures of the page, which needs Chromium",
    )
    args = parser.parse_args()
    if args.write and not args.data:
        parser.error("--write needs --data: the page has figures of both kinds of images")

    kinds = ({"photographs": args.data} if args.data else {}) | {"shapes": "shapes"}
    results: dict = {
        "hardware": f"{os.cpu_count()} cores of {processor()}",
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
        "seeds": args.seeds,
        "runs": RUNS,
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind, data in kinds.items():
            results[kind] = run_all(data, range(args.seeds), Path(folder, kind))
        results["total_s"] = sum(results[kind]["total_s"] for kind in kinds)
        print(json.dumps(results, indent=1))
        if args.write:
            write(results, Path(folder, next(iter(kinds)), "seed-0"))


def write(results: dict, pictured: Path) -> None:
    """Update the results, the figures in both languages, and the pictures of these runs."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    said = results["photographs"]["exploding"]["0"]["said"]
    for page in ROOT.glob("docs/sick-runs*.md"):
        text = fill_in(page.read_text(encoding="utf-8"), results)
        text = re.sub(r"^train_cifar\.py: failed: .*\n", lambda _: said, text, flags=re.M)
        page.write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, ROOT / "screenshots" / "sick.py", pictured], check=True)


if __name__ == "__main__":
    main()
