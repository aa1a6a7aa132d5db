"""The runs of docs/sick-runs.md and docs/bugs.md, and whether each of them showed its sign.

    python benchmarks/sick_runs.py --data FOLDER --jobs 16
    python benchmarks/sick_runs.py --data FOLDER --write
    python benchmarks/sick_runs.py --seeds 1

The first makes every run, as a process with one thread, so many at once: on the images in FOLDER
with five seeds, on the shapes with three. What was stopped goes on where it was. The second then
brings figures and pictures of the pages up to date. The third takes one seed, and the shapes only.
"""

import argparse
import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from figures import ROOT, command, conditions, measure_all, over_seeds, read_events, write_pages

import viz
from data import ImageDataset, read_source
from model import Net
from support.checkpoint import load_checkpoint

sys.path.append(str(ROOT / "docs"))
from bugs import BUGS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "sick_runs.json"
MEASURED = Path("runs/measured")
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
COMMANDS = HEARTS | {name: f"train_cifar.py {settings}" for name, settings in RUNS.items()}
COMMANDS |= {name: f"docs/bugs.py {name}" for name in BUGS}


# ------------------------------------------------------------------------- what a run has shown


def figures(run_dir: Path) -> dict[str, float]:
    """What the signs are read off: scalars, gradients and weights of conv1, the table per class.

    Nothing at all of a run that fails before its first report.
    """
    values, steps = defaultdict(list), defaultdict(list)
    for event in read_events(run_dir):
        for value in event.summary.value:
            values[value.tag].append(value)
            steps[value.tag].append(event.step)

    def scalars(tag: str) -> list[float]:
        return [value.simple_value for value in values[tag]]

    training, test = scalars("training loss"), scalars("test/loss")
    if not training:
        return {}
    found = {
        "steps": steps["training loss"][-1],
        "training_loss": training[-1],
        "highest_training_loss": max(training),
        "loss_digits": len(str(int(max(training)))),
        "test_loss_at_0": test[0],
    }
    norms = scalars("training progress/gradient norm")
    if norms:  # not with --views notes
        weights = [value.histo.sum_squares for value in values["weights/conv1.weight"]]
        gradients = [value.histo.sum_squares for value in values["gradients/conv1.weight"]]
        found |= {
            "first_gradient_norm": norms[0],
            "gradient_norm": norms[-1],
            "conv1_gradient": gradients[-1] ** 0.5,
            "conv1_moved": abs(weights[-1] - weights[0]),
        }
    if len(test) > 1:  # a run that fails in its first epoch is tested at step 0 only
        accuracies, first_epoch = scalars("test/accuracy"), steps["test/loss"][1]
        found |= {
            "epoch_1_training_loss": training[steps["training loss"].index(first_epoch)],
            "epoch_1_test_loss": test[1],
            "epoch_1_test_accuracy": accuracies[1],
            "test_loss": test[-1],
            "lowest_test_loss": min(test[1:]),
            "lowest_test_loss_epoch": test.index(min(test[1:]), 1),
            "test_accuracy": accuracies[-1],
        }
    for table in values["per class/text_summary"]:
        _, _, *rows = table.tensor.string_val[0].decode().splitlines()
        recalls = [float(row.split("|")[4]) for row in rows]
        found["classes"] = len(recalls)
        found["classes_found"] = sum(recall > 0 for recall in recalls)
        found["last_class_recall"] = recalls[-1]
    return found


def predict(run_dir: Path) -> tuple[dict, ImageDataset, ImageDataset, torch.Tensor]:
    """The settings of a run, its images with their right labels, the logits of the test images."""
    state = load_checkpoint(run_dir)
    train, test, _ = read_source(state["settings"]["data"], "data", ())
    net = Net(len(test.classes))
    net.load_state_dict(state["net"])
    with torch.inference_mode():
        return state["settings"], train, test, net(test.batch(range(len(test)))[0])


def compare_labels(run_dir: Path) -> dict[str, float]:
    """What a run with wrong labels shows of them in two pictures, and how it does without them."""
    settings, train, test, logits = predict(run_dir)
    share, seed = settings["wrong_labels"], settings["seed"]
    shown = test.mislabel(share, seed)
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

    A run to keep is left in log_dir / name, of another nothing.
    """
    run_dir = log_dir / name
    shutil.rmtree(run_dir, ignore_errors=True)  # of a measurement that was stopped
    script, _, settings = COMMANDS[name].partition(" ")
    alone = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = command(script, settings, data, seed, run_dir)
    done = subprocess.run(words, capture_output=True, text=True, env=alone)
    if done.returncode not in (0, 1):  # 1: its loss became NaN; the others are no run at all
        sys.exit(f"{name}: ended with status {done.returncode}: {done.stderr.strip()}")
    found = figures(run_dir)
    if name == "wrong-labels":
        found |= compare_labels(run_dir)
    if not keep:
        shutil.rmtree(run_dir)
    found = {key: value for key, value in found.items() if math.isfinite(value)}  # JSON has no inf
    said = done.stderr if done.returncode else ""  # the line that it failed with
    return found | {"status": done.returncode, "said": said}


def tasks(kinds: dict[str, str], seeds: dict[str, int], runs: Path) -> dict[str, Callable]:
    """Every run by kind of images, name and seed.

    The check of 20 images takes one seed of the photographs. Those runs are kept that are
    pictured: on the first kind of images, with seed 0.
    """
    found = {}
    for kind, data in kinds.items():
        for name in COMMANDS:
            for seed in range(1 if name in HEARTS else seeds[kind]):
                keep = seed == 0 and kind == next(iter(kinds))
                if keep or name not in HEARTS:
                    args = name, data, seed, runs / kind / f"seed-{seed}", keep
                    found[f"{kind} {name} {seed}"] = functools.partial(run, *args)
    return found


def summarise(measured: dict[str, dict]) -> dict[str, dict]:
    """What the results file says: by kind and name, each measure over the seeds, and the signs."""
    by_run: dict = defaultdict(lambda: defaultdict(dict))
    for task, found in measured.items():
        kind, name, seed = task.split()
        by_run[kind][name][seed] = found
    results: dict = {}
    for kind, names in by_run.items():
        healthy = names["healthy"]
        results[kind] = {"seeds": len(healthy)}
        for name, by_seed in names.items():
            in_all = set.intersection(*map(set, by_seed.values())) - {"status", "said"}
            results[kind][name] = {
                key: over_seeds({seed: by_seed[seed][key] for seed in sorted(by_seed)})
                for key in sorted(in_all)
            } | {
                "0": by_seed[min(by_seed)],  # the run in the pictures
                "runs": len(by_seed),
                "seen": sum(is_seen(name, by_seed[s], healthy.get(s, {})) for s in by_seed),
                "failed": sum(found["status"] for found in by_seed.values()),
            }
    return results


def is_seen(name: str, run: dict, healthy: dict) -> bool:
    """Whether a run has shown its sign; one that failed too early for it has not."""
    try:
        return SIGNS[name](run, healthy)
    except KeyError:
        return False


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Run what the pages print.")
    add = parser.add_argument
    add("--data", help="a folder of images, run before the shapes")
    add("--seeds", type=int, help="so many seeds, from 0 on (default: 5 and 3)")
    add("--jobs", type=int, default=1, help="how many runs at once")
    add("--write", action="store_true", help="update figures and pictures, which needs Chromium")
    args = parser.parse_args()
    if args.write and not args.data:
        parser.error("--write needs --data: the pages have figures of both kinds of images")

    kinds = ({"photographs": args.data} if args.data else {}) | {"shapes": "shapes"}
    seeds = {kind: args.seeds or SEEDS[kind] for kind in kinds}
    begun = {"about": functools.partial(conditions, "one thread")}  # on which machine, and when
    found = measure_all(begun | tasks(kinds, seeds, MEASURED), MEASURED / "figures", args.jobs)
    results = found.pop("about") | {"runs": RUNS} | summarise(found)
    print(json.dumps(results, indent=1))
    if args.write:
        write(results, MEASURED / next(iter(kinds)) / "seed-0")


def write(results: dict, pictured: Path) -> None:
    """Update the results, the figures of all pages, and the pictures of these runs."""
    said = results["photographs"]["exploding"]["0"]["said"]
    failed = re.compile(r"^train_cifar\.py: failed: .*\n", re.M)
    write_pages(RESULTS, results, lambda page: failed.sub(lambda _: said, page))
    capture = ROOT / "screenshots" / "capture.py"
    subprocess.run([sys.executable, capture, "--compare", pictured], check=True)


if __name__ == "__main__":
    main()
