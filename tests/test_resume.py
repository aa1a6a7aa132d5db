"""A run that was killed goes on as if nothing had happened; what is no run of ours is refused."""

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, call_main, contents, read_scalars, refuse, same_weights, settings
from forked import Fault, finish, interrupt, kill, put_clock_ahead, run, start, train
from loaders import in_python_loader, in_rust_loader, open_run
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.data import DataLoader

from model import Net
from support import checkpoint
from support.checkpoint import load_checkpoint, save_checkpoint
from support.run import Run
from support.run_dir import lock_run_dir

KILLS = 20
SAVE, IN_PLACE = "support.run.Run.save", "support.checkpoint.os.replace"
FSYNC, AFTER_A_BATCH = "support.checkpoint.os.fsync", "support.run.Run.stop_if_asked"


def two_epochs(image_folder: Path, log_dir: Path) -> list[object]:
    """A run of 30 steps with all that is random, and a schedule; `add_dropout` belongs to it.

    It saves at its start, at steps 5, 10, 15 (the epoch), 20, 25 and, finished, 30.
    """
    words = settings(image_folder, log_dir, "--report-every", 40, "--validation", 6)
    return [*words, "--schedule", "onecycle", "--augment"]


def add_dropout() -> None:
    """Give the net what draws random numbers of its own while it trains."""
    original = Net.features

    def features(net: Net, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(original(net, images), training=net.training)

    Net.features = features


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    whole = tmp_path_factory.mktemp("runs") / "whole"
    assert train(two_epochs(image_folder, whole.parent), whole, add_dropout).status == 0
    return whole


# ------------------------------------------------------------------------------------------ kills


def begin_or_resume(image_folder: Path, run_dir: Path, number: int, *faults: Callable) -> int:
    """Run the n-th process of a run, from its last checkpoint; returns the exit status."""
    words = [*two_epochs(image_folder, run_dir.parent), "--run-name", run_dir.name]
    if (run_dir / checkpoint.FILE_NAME).exists():
        words = ["--resume", run_dir]
    return run(words, run_dir, add_dropout, partial(put_clock_ahead, number), *faults).status


def kill_at(step: int, calls: int) -> None:
    """SIGKILL at a step, after some more calls of Python functions: anywhere, but repeatable."""
    original = Run.stop_if_asked

    def count(*_: object) -> None:
        nonlocal calls
        calls -= 1
        if calls <= 0:
            kill()

    def stop_if_asked(run: Run) -> None:
        if run.progress.step >= step and sys.getprofile() is None:
            sys.setprofile(count)
        original(run)

    Run.stop_if_asked = stop_if_asked


def assert_same_run(run_dir: Path, whole: Path) -> dict[str, list]:
    """The weights are the same bit for bit, and the scalars, in both of TensorBoard's loaders.

    Returns the scalars.
    """
    assert load_checkpoint(run_dir)["progress"]["finished"]
    assert same_weights(run_dir, whole)
    expected = in_python_loader(open_run(whole))
    assert expected.keys() >= {"training loss", "test/loss", "test/accuracy"}
    assert in_python_loader(open_run(run_dir)) == expected
    assert in_rust_loader(run_dir, expected) == expected
    return expected


def test_twenty_kills_at_random_moments_change_nothing(image_folder, whole):
    """One of TensorBoard's readers watches all the time, others come when all is over."""
    chance = random.Random(0)
    run_dir = whole.with_name("killed")
    watching = open_run(run_dir)
    for number, step in enumerate(sorted(chance.sample(range(1, 27), KILLS))):
        moment = partial(kill_at, step, int(10 ** chance.uniform(1, 5)))
        assert begin_or_resume(image_folder, run_dir, number, moment) == -signal.SIGKILL
        in_python_loader(watching)
    assert begin_or_resume(image_folder, run_dir, KILLS) == 0
    assert in_python_loader(watching) == assert_same_run(run_dir, whole)


def tear_an_event() -> None:
    """Die when half of an event has reached the disk."""
    original, left = LocalFileSystem.append, 38

    def append(self, filename: bytes, content: bytes, binary_mode: bool = False) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            original(self, filename, content[: len(content) // 2], binary_mode)
            kill()
        original(self, filename, content, binary_mode)

    LocalFileSystem.append = append


def kill_before_slow_writer() -> None:
    """Die when a checkpoint is in place and the writer has written nothing that it need not yet."""
    write, flush = EventFileWriter.add_event, EventFileWriter.flush
    waiting = []

    def flush_all(self) -> None:
        while waiting:
            write(self, waiting.pop(0))
        flush(self)

    EventFileWriter.add_event = lambda self, event: waiting.append(event)
    EventFileWriter.flush = flush_all
    Fault(IN_PLACE, kill, after=True)()


PLACES = [  # one bad place after another, and the step of the checkpoint that the kill leaves
    (Fault("support.run.save_checkpoint", kill), None),  # it can be started again
    (Fault(IN_PLACE, kill), None),
    (Fault("viz.add_table", kill), 0),
    (Fault(FSYNC, kill), 0),  # in the middle of a checkpoint
    (tear_an_event, 5),
    (Fault(SAVE, kill), 5),  # between events and checkpoint
    (Fault(IN_PLACE, kill), 5),
    (Fault(IN_PLACE, kill, after=True), 10),
    (Fault("train_cifar.train", kill), 10),
    (Fault("train_cifar.evaluate", kill), 10),
    (Fault(SAVE, kill), 10),  # between the views of an epoch and its checkpoint
    (kill_before_slow_writer, 15),  # the end of an epoch
    (kill_before_slow_writer, 20),
    (Fault("train_cifar.show_end", kill), 25),
    (Fault("viz.add_projector", kill), 25),  # the last views
    (Fault(SAVE, kill), 25),  # before the last checkpoint
]


def test_kills_at_the_worst_places_change_nothing(image_folder, whole):
    run_dir = whole.with_name("killed at places")
    for number, (fault, step) in enumerate(PLACES):
        assert begin_or_resume(image_folder, run_dir, number, fault) == -signal.SIGKILL
        assert (run_dir / checkpoint.FILE_NAME).exists() == (step is not None)
        if step is not None:  # whole: the old one or the new one
            assert load_checkpoint(run_dir)["progress"]["step"] == step
    assert begin_or_resume(image_folder, run_dir, len(PLACES)) == 0
    assert_same_run(run_dir, whole)
    tables = open_run(run_dir)
    tables.Reload()
    for tag in ("settings/text_summary", "per class/text_summary"):
        assert len(tables.Tensors(tag)) == 1


# ------------------------------------------------------------------------------------ stopped runs


@pytest.fixture(scope="module")
def stopped_run(image_folder, tmp_path_factory) -> Path:
    """A run that Ctrl-C stopped at step 7, in the middle of its first epoch."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    words = two_epochs(image_folder, run_dir.parent)
    finished = train(words, run_dir, add_dropout, Fault(AFTER_A_BATCH, interrupt, 7))
    assert finished.status == 128 + signal.SIGINT
    return run_dir


@pytest.fixture
def run_dir(stopped_run, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def refuse_to_resume(run_dir: Path, capsys) -> str:
    """Resume what cannot be resumed; returns the one line that says so."""
    line = refuse(capsys, run_dir, "--resume", run_dir)
    assert str(run_dir) in line
    return line


def test_a_run_goes_on_elsewhere_once_it_is_free(run_dir, tmp_path, monkeypatch, capsys):
    """From another folder and under another name. What was done before is not timed again."""
    lock = lock_run_dir(run_dir)
    assert "in use" in refuse_to_resume(run_dir, capsys)
    lock.release()

    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run_dir.rename(moved)
    monkeypatch.chdir(moved.parent)
    clock, original = [0.0], DataLoader.__iter__

    def slowly(loader):
        for batch in original(loader):
            clock[0] += 1  # only batches move it
            yield batch

    monkeypatch.setattr(DataLoader, "__iter__", slowly)
    monkeypatch.setattr("support.run.time.perf_counter", lambda: clock[0])
    assert call_main("--resume", "renamed") == 0
    assert load_checkpoint(moved)["progress"]["finished"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["elsewhere"]
    _, *speeds = read_scalars(moved)["training progress/images per second"]
    # Batches of 8 images, the last of an epoch with 2; one a second.
    expected = [(10, 8.0), (15, 6.8), (20, 8.0), (25, 8.0), (30, 6.8)]
    assert [(step, round(speed, 3)) for step, speed in speeds] == expected


def meet_at(pipe: Path, mode: str) -> None:
    """Let two processes go on together: each opens one end of a pipe, and waits for the other."""
    open(pipe, mode).close()


def test_of_two_resumes_at_once_one_goes_on(run_dir, whole, tmp_path):
    """And waits: by its clock, the event file that is there is from a moment to come."""
    os.mkfifo(tmp_path / "pipe")
    (events,) = run_dir.glob("events.out.tfevents.*")
    earlier = partial(put_clock_ahead, int(events.name.split(".")[3]) - 1.9 - time.time())
    both = []
    for mode in "rw":
        meet = Fault("support.run.lock_run_dir", partial(meet_at, tmp_path / "pipe", mode))
        output = tmp_path / mode
        both.append((start(["--resume", run_dir], output, add_dropout, earlier, meet), output))
    ends = [finish(process, output) for process, output in both]
    assert sorted(end.status for end in ends) == [0, 2], ends
    (refused,) = (end.output for end in ends if end.status == 2)
    _, line = refused.splitlines()  # after the images are read
    assert re.fullmatch(r"train_cifar.py: error: .*another process.*", line)
    assert_same_run(run_dir, whole)


def test_a_finished_run_has_nothing_left_to_do(tiny_run, capsys):
    before = contents(tiny_run)
    assert call_main("--resume", tiny_run) == 0
    assert "is finished" in capsys.readouterr().out
    assert contents(tiny_run) == before


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("change", ["an image less", "another picture", "another label", "a class"])
def test_other_images_are_refused(image_folder, run_dir, tmp_path, capsys, part, change):
    folder = Path(shutil.copytree(image_folder, tmp_path / "images"))
    state = load_checkpoint(run_dir)
    state["settings"]["data"] = str(folder)
    save_checkpoint(run_dir, state)
    first, second = folder / part / CLASSES[0], folder / part / CLASSES[1]
    if change == "an image less":
        (first / "00.png").unlink()
    elif change == "another picture":
        shutil.copy(second / "00.png", first / "00.png")
    elif change == "another label":  # the last picture of a class becomes the first of the next
        max(first.iterdir()).rename(second / "-.png")
    else:
        for part in ("train", "test"):
            (folder / part / CLASSES[0]).rename(folder / part / "a leaf")
    assert "other images" in refuse_to_resume(run_dir, capsys)


def cut(share: float, path: Path) -> None:
    os.truncate(path, int(share * path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    """It would change the weights and nobody would know; most bits are in the weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change(part: str, edit: Callable, path: Path) -> None:
    state = load_checkpoint(path.parent)
    save_checkpoint(path.parent, state | {part: edit(state[part])})


def exchange_layers(net: dict) -> dict:
    """As if `fc1` and `fc2` had changed places: the optimizer counts them."""
    return {name: net[name] for name in sorted(net, key=lambda name: name.replace("fc1", "fc3"))}


def shorten_buffer(optimizer: dict) -> dict:
    optimizer["state"][0]["momentum_buffer"] = torch.zeros(1)
    return optimizer


OTHERS, MISFIT = "not a checkpoint of this program", "does not fit the net"
SPOILT = [  # what is done to a checkpoint, and what is said of it
    (partial(cut, 0), "cannot be read"),
    (partial(cut, 0.5), "cannot be read"),
    (partial(cut, 0.9999), "cannot be read"),
    (flip_a_bit, "checksum"),
    (partial(change, "net", lambda net: Net(7).state_dict()), MISFIT),
    # PyTorch itself takes these two: fused SGD would then read past the end of a buffer.
    (partial(change, "net", exchange_layers), MISFIT),
    (partial(change, "optimizer", shorten_buffer), MISFIT),
    (partial(change, "settings", lambda settings: settings | {"new": 1}), "other settings"),
    (partial(torch.save, {"state_dict": {}}), OTHERS),
    (partial(torch.save, [1, 2]), OTHERS),
    (partial(torch.save, torch.zeros(3)), OTHERS),
]


@pytest.mark.parametrize(("spoil", "said"), SPOILT)
def test_a_checkpoint_that_is_damaged_or_anothers_is_refused(run_dir, capsys, spoil, said):
    spoil(run_dir / checkpoint.FILE_NAME)
    assert said in refuse_to_resume(run_dir, capsys)


class Malicious:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(run_dir, tmp_path, capsys):
    trap, path = tmp_path / "trap", run_dir / checkpoint.FILE_NAME
    torch.save(load_checkpoint(run_dir) | {"settings": Malicious(trap)}, path)
    assert "cannot be read" in refuse_to_resume(run_dir, capsys)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # it would have been
