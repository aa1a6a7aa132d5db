"""The runs of docs/sick-runs.md and docs/bugs.md, and whether each of them showed its sign.

    python benchmarks/sick_runs.py --data FOLDER --jobs 16
    python benchmarks/sick_runs.py --data FOLDER --write
    python benchmarks/sick_runs.py --seeds 1

The first makes every run, as a process with one thread, so many at once: on the images in FOLDER
with five seeds, on the shapes with three. What was stopped goes on where it was. The second then
brings figures and pictures of the pages up to date. The third takes one seed, and the shapes only.
"""

import argparse
import datetime
import functools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from compare import processor
from figures import ROOT, measure_all, over_seeds, pages, write_pages
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from bugs import BUGS  # noqa: E402

import viz  # noqa: E402
from data import ImageDataset, read_source  # noqa: E402
from model import Net  # noqa: E402
from support.checkpoint import load_checkpoint  # noqa: E402

RESULTS = ROOT / "benchmarks" / "sick_runs.json"
SEEDS = {"photographs": 5, "shapes": 3}
BY_HEART = "--train-images 20 --batch-size 4 --lr 0.01 --epochs 60 --views notes"

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
    # docs/bugs.md
    "no-zero-grad": lambda run, healthy: (
        run["gradient_norm"] > 10 * healthy["gradient_norm"] and run["highest_training_loss"] > 10
    ),
    "no-step": lambda run, healthy: run["conv1_moved"] == 0 and run["conv1_gradient"] > 0,
    "other-net": lambda run, healthy: (
        run["conv1_moved"] == 0 and run["gradient_norm"] > 3 * run["first_gradient_norm"]
    ),
    "double-softmax": lambda run, healthy: (
        run["test_loss"] > run["epoch_1_test_loss"] > run["test_loss_at_0"]
        and run["test_accuracy"] > run["epoch_1_test_accuracy"]
    ),
    "softmax-over-batch": lambda run, healthy: (
        run["first_gradient_norm"] < 0.01
        and run["epoch_1_training_loss"] > 0.98 * math.log(run["classes"])
    ),
    "rolled-labels": lambda run, healthy: is_flat(run) and run["conv1_gradient"] > 0,
    "sorted": lambda run, healthy: (
        run["last_class_recall"] > 0.9
        and run["classes_found"] <= 2
        and run["epoch_1_training_loss"] < 1.5
    ),
    "pixels-to-255": lambda run, healthy: run["test_loss_at_0"] > 1.02 * math.log(run["classes"]),
    "scaled-twice": lambda run, healthy: is_flat(run) and run["classes_found"] == 1,
    "test-in-bgr": lambda run, healthy: (
        run["epoch_1_test_loss"] > 1.1 * run["epoch_1_training_loss"]
        and run["epoch_1_training_loss"] < 1.1 * healthy["epoch_1_training_loss"]
    ),
    "dropout-at-test": lambda run, healthy: run["test_loss"] > 0.97 * run["training_loss"],
    "dropout": lambda run, healthy: run["test_loss"] < 0.97 * run["training_loss"],
}


def is_flat(run: dict) -> bool:
    """Whether the loss is still that of equal probabilities, though the weights have moved."""
    by_chance = math.log(run["classes"])
    return abs(run["training_loss"] - by_chance) < 0.03 * by_chance and run["conv1_moved"] > 0


# The second check before a long run, healthy and with each bug: what does not learn 20 images has
# been caught.
HEARTS = {"by-heart": f"train_cifar.py {BY_HEART}"}
HEARTS |= {f"{name}-by-heart": f"docs/bugs.py {name} {BY_HEART}" for name in BUGS}
SIGNS |= {name: lambda run, healthy: run["training_loss"] > 0.1 for name in HEARTS}
SIGNS["by-heart"] = lambda run, healthy: run["training_loss"] < 0.05
COMMANDS = {name: f"train_cifar.py {settings}" for name, settings in RUNS.items()}
COMMANDS |= {name: f"docs/bugs.py {name}" for name in BUGS} | HEARTS


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
    """What the signs are read off: scalars, gradients and weights of conv1, the table per class.

    Nothing at all of a run that fails before its first report.
    """
    events = read_events(run_dir)
    if "training loss" not in events:
        return {}
    steps, training = read_scalar(events, "training loss")
    tested, test = read_scalar(events, "test/loss")
    found = {
        "steps": steps[-1],
        "training_loss": training[-1],
        "highest_training_loss": max(training),
        "loss_digits": len(str(int(max(training)))),
        "test_loss_at_0": test[0],
    }
    _, norms = read_scalar(events, "training progress/gradient norm")
    if norms:  # not with --views notes
        first, *_, last = [value.histo for _, value in events["weights/conv1.weight"]] * 2
        found |= {
            "first_gradient_norm": norms[0],
            "gradient_norm": norms[-1],
            "conv1_gradient": events["gradients/conv1.weight"][-1][1].histo.sum_squares ** 0.5,
            "conv1_moved": abs(last.sum_squares - first.sum_squares),
        }
    if len(test) > 1:  # a run that fails in its first epoch is tested at step 0 only
        _, accuracies = read_scalar(events, "test/accuracy")
        found |= {
            "epoch_1_training_loss": training[steps.index(tested[1])],
            "epoch_1_test_loss": test[1],
            "epoch_1_test_accuracy": accuracies[1],
            "test_loss": test[-1],
            "lowest_test_loss": min(test[1:]),
            "lowest_test_loss_epoch": 1 + test[1:].index(min(test[1:])),
            "test_accuracy": accuracies[-1],
        }
    if "per class/text_summary" in events:
        recalls = recall_by_class(events["per class/text_summary"][-1][1])
        found["classes"] = len(recalls)
        found["classes_found"] = sum(recall > 0 for recall in recalls)
        found["last_class_recall"] = recalls[-1]
    return found


def read_scalar(events: dict[str, list], tag: str) -> tuple[list[int], list[float]]:
    """The steps and values of a tag; both are empty where there is none."""
    found = events.get(tag, [])
    return [step for step, _ in found], [value.simple_value for _, value in found]


def recall_by_class(table) -> list[float]:
    """The recall of each class in the table per class."""
    _, _, *rows = table.tensor.string_val[0].decode().splitlines()
    return [float(row.split("|")[4]) for row in rows]


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
        logits = net(test.batch(range(len(test)))[0])
    worst = viz.worst_mistakes(logits.softmax(dim=1), shown.labels, 8)
    _, right = train.sample(16, seed)
    _, given = train.mislabel(share, seed).sample(16, seed)
    return {
        "mislabelled_of_16_images": (right != given).sum().item(),
        "mislabelled_of_8_mistakes": (shown.labels[worst] != test.labels[worst]).sum().item(),
        "right_labels_accuracy": (logits.argmax(dim=1) == test.labels).float().mean().item(),
    }


# ------------------------------------------------------------------------------------- all of them


def run(name: str, data: str, seed: int, log_dir: Path, keep: bool = True) -> dict[str, object]:
    """Run one command of the pages; returns its figures, and how it ended.

    Of a run to keep, the event files are left in log_dir / name, of another nothing.
    """
    run_dir = log_dir / name
    shutil.rmtree(run_dir, ignore_errors=True)  # of a measurement that was stopped
    script, *settings = COMMANDS[name].split()
    command = [sys.executable, str(ROOT / script), *settings, "--run-name", name]
    command += ["--data", data, "--seed", str(seed), "--log-dir", str(log_dir)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=alone)
    if done.returncode not in (0, 1):  # 1: its loss became NaN; the others are no run at all
        sys.exit(f"{name}: ended with status {done.returncode}: {done.stderr.strip()}")
    found = figures(run_dir)
    if name == "wrong-labels":
        found |= compare_labels(run_dir)
    found = {key: value for key, value in found.items() if math.isfinite(value)}  # JSON has no inf
    for path in run_dir.iterdir():
        if not (keep and path.name.startswith("events.")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = done.stderr if done.returncode else ""  # the line that it failed with
    return found | {"status": done.returncode, "said": said}


def tasks(kinds: dict[str, str], seeds: dict[str, int], runs: Path) -> dict[str, Callable]:
    """Every run by kind of images, name and seed, the longest of each kind first.

    The check of 20 images takes one seed of the photographs. Event files are kept of the
    runs that are pictured: those on the first kind of images, with seed 0.
    """
    found = {}
    for kind, data in kinds.items():
        for name in sorted(COMMANDS, key=epochs, reverse=True):
            once = name in HEARTS
            for seed in range(1 if once else seeds[kind]):
                log_dir = runs / kind / f"seed-{seed}"
                keep = seed == 0 and kind == next(iter(kinds))
                if keep or not once:
                    args = name, data, seed, log_dir, keep
                    found[f"{kind} {name} {seed}"] = functools.partial(run, *args)
    return found


def epochs(name: str) -> int:
    """How many epochs a run has: how long it takes, roughly."""
    return int(([*re.findall(r"--epochs (\d+)", COMMANDS[name]), 3])[0])


def summarise(measured: dict[str, dict]) -> dict[str, dict]:
    """What the results file says: by kind and name, each measure over the seeds, and the signs."""
    by_run: dict = defaultdict(lambda: defaultdict(dict))
    for task, found in measured.items():
        kind, name, seed = task.split()
        by_run[kind][name][seed] = found
    results: dict = {}
    for kind, names in by_run.items():
        results[kind] = {}
        for name, by_seed in names.items():
            healthy = names["healthy"]
            signs = [is_seen(name, one, healthy.get(seed, {})) for seed, one in by_seed.items()]
            results[kind][name] = measures_over_seeds(by_seed) | {
                "0": by_seed[min(by_seed)],  # the run in the pictures
                "runs": len(by_seed),
                "seen": sum(signs),
                "failed": sum(found["status"] for found in by_seed.values()),
            }
        results[kind]["seeds"] = len(healthy)
    return results


def measures_over_seeds(by_seed: dict[str, dict]) -> dict[str, dict]:
    """Median and range of each measure that every seed has."""
    common = set.intersection(*map(set, by_seed.values())) - {"status", "said"}
    return {
        key: over_seeds({seed: by_seed[seed][key] for seed in sorted(by_seed)})
        for key in sorted(common)
    }


def is_seen(name: str, run: dict, healthy: dict) -> bool:
    """Whether a run has shown its sign; one that failed too early for it has not."""
    try:
        return SIGNS[name](run, healthy)
    except KeyError:
        return False


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run what the pages print.")
    parser.add_argument("--data", help="a folder of images, run before the shapes")
    parser.add_argument("--seeds", type=int, help="so many seeds, from 0 on (default: 5 and 3)")
    parser.add_argument("--jobs", type=int, default=1, help="how many runs at once")
    parser.add_argument("--runs", type=Path, default=Path("runs/measured"), help="where they go")
    parser.add_argument(
        "--write",
        action="store_true",
        help="update the figures and pictures of the pages, which needs Chromium",
    )
    args = parser.parse_args()
    if args.write and not args.data:
        parser.error("--write needs --data: the pages have figures of both kinds of images")

    kinds = ({"photographs": args.data} if args.data else {}) | {"shapes": "shapes"}
    seeds = {kind: args.seeds or SEEDS[kind] for kind in kinds}
    args.runs.mkdir(parents=True, exist_ok=True)
    about = args.runs / "about.json"  # on which machine it was begun
    if not about.exists():
        about.write_text(json.dumps(conditions()))
    measured = measure_all(tasks(kinds, seeds, args.runs), args.runs / "measured.jsonl", args.jobs)
    results = json.loads(about.read_text()) | {"runs": RUNS} | summarise(measured)
    print(json.dumps(results, indent=1))
    if args.write:
        write(results, args.runs / next(iter(kinds)) / "seed-0")


def conditions() -> dict[str, str]:
    """Where and when all this is measured."""
    return {
        "hardware": f"one thread of {processor()}",
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        "date": datetime.date.today().isoformat(),
    }


def write(results: dict, pictured: Path) -> None:
    """Update the results, the figures of all pages, and the pictures of these runs."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_pages()
    said = results["photographs"]["exploding"]["0"]["said"]
    for page in pages():
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"^train_cifar\.py: failed: .*\n", lambda _: said, text, flags=re.M)
        page.write_text(text, encoding="utf-8")
    capture = ROOT / "screenshots" / "capture.py"
    subprocess.run([sys.executable, capture, "--compare", pictured], check=True)


if __name__ == "__main__":
    main()
