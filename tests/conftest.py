"""What the test files share: a tiny folder of images, a run on it, and a reader of event files."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import train_cifar
from support import device
from support.checkpoint import load_checkpoint
from support.run_dir import LOCK_NAME

CLASSES = ["leaf", "sky", "雪 豹"]  # sorted, as the folder reader gives them
TRAIN_IMAGES, TEST_IMAGES = 40, 20  # per class


ROOT = Path(__file__).parents[1]
# Warnings that our own calls cause are errors; those of other packages among themselves are shown.
OURS = {path.stem for pattern in ("*.py", "*/*.py") for path in ROOT.glob(pattern)}
OUR_CALLS = rf"error:::(support\.)?({'|'.join(sorted(OURS))})$"
# Whether a Chinese font is installed where the tests run is no fault of the program's.
NO_FONT = "ignore:no font with Chinese characters"
os.environ["PYTHONWARNINGS"] = NO_FONT  # in programs that the tests start
# Two files are tested at a time: on two cores, several threads of each would wait for the other's.
# And a fork, whose threads are not those of its parent, may hang when OpenMP wants more than one.
os.environ["OMP_NUM_THREADS"] = "1"  # in programs and forks
torch.set_num_threads(1)
device.ALL_THREADS = 1


def pytest_configure(config: pytest.Config) -> None:
    for line in (OUR_CALLS, "error::pytest.PytestWarning", NO_FONT):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """Three classes of noisy images that differ in colour, so that a net can learn them."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for channel, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 160, (32, 32, 3), np.uint8)
                pixels[..., channel] += 90
                Image.fromarray(pixels).save(folder / part / name / f"{index:02}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_run(image_folder, tmp_path_factory) -> Path:
    """The directory of a finished run: 2 epochs of 15 batches of 8, a report every 5 batches."""
    return run_tiny(image_folder, tmp_path_factory.mktemp("runs"), "--run-name", "tiny")


def settings(image_folder: Path, log_dir: Path, *more: object) -> list[object]:
    """The command line of a run of 15 batches an epoch on the tiny folder."""
    return ["--data", image_folder, "--log-dir", log_dir, "--batch-size", 8, "--lr", 0.02, *more]


def call_main(*words: object) -> int:
    """Call `main` as the command line would; returns the exit status."""
    try:
        return train_cifar.main([str(word) for word in words])
    except SystemExit as exit:  # of the parser
        return exit.code


def run_tiny(image_folder: Path, log_dir: Path, *more: object) -> Path:
    """Train on the tiny folder, a report every 5 batches, and return the new run directory."""
    before = set(log_dir.iterdir()) if log_dir.exists() else set()
    assert call_main(*settings(image_folder, log_dir, "--report-every", 40, *more)) == 0
    (run_dir,) = set(log_dir.iterdir()) - before
    return run_dir


def read_events(run_dir: Path) -> dict[str, list]:
    """All values in the event files of a run, by tag: (step, value) as they were written."""
    found = defaultdict(list)
    for path in sorted(run_dir.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[value.tag].append((event.step, value))
    return found


def read_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a run, by tag: (step, number)."""
    return {
        tag: [(step, value.tensor.float_val[0]) for step, value in values]
        for tag, values in read_events(run_dir).items()
        if values[0][1].metadata.plugin_data.plugin_name == "scalars"
    }


def same_weights(one: Path, other: Path) -> bool:
    """Whether the checkpoints of two runs hold the same weights, bit for bit."""
    net, other_net = (load_checkpoint(run_dir)["net"] for run_dir in (one, other))
    return net.keys() == other_net.keys() and all(
        torch.equal(weights, other_net[name]) for name, weights in net.items()
    )


def contents(folder: Path) -> dict[Path, tuple | None]:
    """What is in a folder: of every file its bytes, and when it was changed.

    Of the lock without a time: it is empty, and filelock before 4.0 opens it for writing.
    """
    found = dict.fromkeys(folder.rglob("*"))
    for path in filter(Path.is_file, found):
        found[path] = path.read_bytes(), path.name == LOCK_NAME or path.stat().st_mtime_ns
    return found


def refuse(capsys, folder: Path, *words: object) -> str:
    """Call `main` with bad input, which changes nothing in the folder; returns its one line."""
    before = contents(folder)
    assert call_main(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_cifar.py: error: ")
    assert contents(folder) == before
    return line


@pytest.fixture(autouse=True)
def as_before():
    """Undo what training sets for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(True)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of what TensorBoard shows; they skip where there is none."""
    pytest.importorskip("playwright.sync_api", reason="needs tests/requirements.txt")
    import capture

    try:
        with capture.open_browser() as browser:
            yield browser
    except capture.CaptureError as error:
        pytest.skip(str(error))
