"""A run that was killed goes on as if nothing had happened; what is no run of ours is refused."""

import os
import random
import re
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, call_main, read_scalars, same_weights, settings
from forked import Fault, arrange, finish, interrupt, kill, resume, start, train
from loaders import in_python_loader, in_rust_loader, open_run
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.data import DataLoader

from model import Net
from support import checkpoint
from support.checkpoint import load_checkpoint, save_checkpoint
from support.run import Run
from support.run_dir import LOCK_NAME, lock_run_dir

KILLS = 20
SAVE, IN_PLACE = "support.run.Run.save", "support.checkpoint.os.replace"
AFTER_A_BATCH = "support.run.Run.stop_if_asked"


# ------------------------------------------------------------------------------------------ kills


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


def test_twenty_kills_at_random_moments_change_nothing(image_folder, tmp_path):
    """SIGKILL at 20 random moments of a run of 45 steps, which is resumed each time.

    One of TensorBoard's readers watches all the time, others come when all is over.
    """
    arguments = settings(image_folder, tmp_path, "--epochs", 3, "--report-every", 24)
    chance = random.Random(0)
    steps = sorted(chance.sample(range(1, 42), KILLS))
    moments = [partial(kill_at, step, int(10 ** chance.uniform(1, 5))) for step in steps]

    run_dir, whole = tmp_path / "killed", tmp_path / "whole"
    assert train(arguments, run_dir, moments[0]).status == -signal.SIGKILL
    watching = open_run(run_dir)
    for moment in moments[1:]:
        in_python_loader(watching)
        assert resume(run_dir, moment).status == -signal.SIGKILL
    assert resume(run_dir).status == 0
    assert train(arguments, whole).status == 0
    assert in_python_loader(watching) == assert_same_run(run_dir, whole)


def add_dropout() -> None:
    """Give the net what draws random numbers of its own while it trains."""
    original = Net.features

    def features(net: Net, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(original(net, images), training=net.training)

    Net.features = features


def test_kills_with_all_that_is_random_and_a_schedule_change_nothing(image_folder, tmp_path):
    """Flips, crops, dropout and the schedule go on in the middle of an epoch, too."""
    arguments = settings(image_folder, tmp_path, "--schedule", "onecycle", "--augment")
    arguments += ["--report-every", 32, "--views", "notes", "--validation", 5]
    run_dir, whole = tmp_path / "killed", tmp_path / "whole"
    killed = -signal.SIGKILL
    assert train(arguments, run_dir, add_dropout, partial(kill_at, 6, 200)).status == killed
    for step in [13, 21, 22, 27]:
        assert resume(run_dir, add_dropout, partial(kill_at, step, 200)).status == killed
    assert load_checkpoint(run_dir)["progress"]["batch"] == 12
    assert resume(run_dir, add_dropout).status == 0
    assert train(arguments, whole, add_dropout).status == 0
    scalars = assert_same_run(run_dir, whole)
    assert len(scalars["validation/loss"]) == 3 and len(scalars["test/loss"]) == 1


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
    arrange(Fault(IN_PLACE, kill, after=True))


# A run of two epochs saves at its start, at steps 5, 10, 15 (the epoch), 20, 25 and, finished, 30.
# Each of these is killed at one bad place after another; the number is the step of the checkpoint
# that each kill leaves.
PLACES = {
    "in views and in the writer": [
        (Fault("viz.add_table", kill), 0),
        (tear_an_event, 5),
        (Fault(IN_PLACE, kill, after=True), 10),
        (kill_before_slow_writer, 15),  # the end of an epoch
        (Fault("viz.add_projector", kill), 25),  # the last views
    ],
    "before checkpoints": [
        (Fault("support.checkpoint.os.fsync", kill, 2), 0),  # in the middle of one
        (Fault(SAVE, kill, 2), 5),  # between events and checkpoint
        (kill_before_slow_writer, 10),
        (Fault(SAVE, kill), 10),  # between the views of an epoch and its checkpoint
        (Fault("train_cifar.train", kill), 10),
        (Fault(SAVE, kill, 4), 25),  # the last one
    ],
    "in evaluations": [
        (Fault(IN_PLACE, kill, 3), 5),
        (Fault("train_cifar.evaluate", kill), 10),
        (Fault("train_cifar.train", kill), 10),
        (Fault("train_cifar.show_end", kill), 25),
    ],
}


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory) -> Path:
    """The run without a kill."""
    whole = tmp_path_factory.mktemp("kills") / "whole"
    assert train(two_epochs(image_folder, whole.parent), whole).status == 0
    return whole


def two_epochs(image_folder: Path, log_dir: Path) -> list[object]:
    return settings(image_folder, log_dir, "--report-every", 40)


@pytest.mark.parametrize("places", PLACES)
def test_kills_at_the_worst_places_change_nothing(image_folder, whole, places):
    run_dir = whole.with_name(places)
    for number, (fault, step) in enumerate(PLACES[places]):
        arguments = two_epochs(image_folder, whole.parent)
        killed = resume(run_dir, fault) if number else train(arguments, run_dir, fault)
        assert killed.status == -signal.SIGKILL
        assert load_checkpoint(run_dir)["progress"]["step"] == step  # whole: the old or the new one
    assert resume(run_dir).status == 0
    assert_same_run(run_dir, whole)
    tables = open_run(run_dir)
    tables.Reload()
    for tag in ("settings/text_summary", "per class/text_summary"):
        assert len(tables.Tensors(tag)) == 1


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again(image_folder, tmp_path):
    """Under the same name: the folder holds nothing that anybody would miss."""
    arguments = settings(image_folder, tmp_path, "--views", "notes", "--epochs", 1)
    run_dir = tmp_path / "run"
    for place in ("support.run.save_checkpoint", IN_PLACE):
        assert train(arguments, run_dir, Fault(place, kill)).status == -signal.SIGKILL
        assert run_dir.is_dir()
    assert train(arguments, run_dir).status == 0


def test_a_resumed_run_does_not_count_the_skipping(run_dir, monkeypatch):
    """Each batch takes one second from the loader; those done before do not count."""
    clock = [0.0]

    def slowly(loader):
        for batch in original(loader):
            clock[0] += 1
            yield batch

    original = DataLoader.__iter__
    monkeypatch.setattr(DataLoader, "__iter__", slowly)
    monkeypatch.setattr("support.run.time.perf_counter", lambda: clock[0])
    assert call_main("--resume", run_dir) == 0
    speeds = read_scalars(run_dir)["training progress/images per second"]
    # Views are timed too, but by the same clock: only batches move it.
    assert [(step, round(speed, 3)) for step, speed in speeds] == [(15, 8.0), (30, 8.0)]


# ---------------------------------------------------------------------------- one run, one process


def meet_at(pipe: Path, mode: str) -> None:
    """Let two processes go on together: each opens one end of a pipe, and waits for the other."""
    open(pipe, mode).close()


def test_of_two_resumes_at_once_one_goes_on(run_dir, stopped_run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    both = []
    for mode in "rw":
        meet = Fault("support.run.lock_run_dir", partial(meet_at, tmp_path / "pipe", mode))
        output = tmp_path / mode
        both.append((start(["--resume", run_dir], output, meet), output))
    ends = [finish(process, output) for process, output in both]
    assert sorted(end.status for end in ends) == [0, 2], ends
    (refused,) = (end.output for end in ends if end.status == 2)
    _, line = refused.splitlines()  # after the images are read
    assert re.fullmatch(r"train_cifar.py: error: .*another process.*", line)
    whole = shutil.copytree(stopped_run, tmp_path / "alone" / "run")
    assert resume(whole).status == 0
    assert_same_run(run_dir, whole)


def test_a_run_in_progress_cannot_be_resumed(run_dir, capsys):
    lock = lock_run_dir(run_dir)
    assert "in use" in refuse(run_dir, capsys)
    lock.release()
    assert call_main("--resume", run_dir) == 0


# --------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def stopped_run(image_folder, tmp_path_factory) -> Path:
    """A run that Ctrl-C stopped at step 7, in the middle of its first epoch."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    arguments = settings(image_folder, run_dir.parent, "--schedule", "onecycle")
    finished = train(arguments, run_dir, Fault(AFTER_A_BATCH, interrupt, 7))
    assert finished.status == 128 + signal.SIGINT
    return run_dir


@pytest.fixture
def run_dir(stopped_run, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file of a folder, with the time of its last change.

    Of the lock without a time: it is empty, and filelock before 4.0 opens it for writing.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in files if path.name != LOCK_NAME}
    return {path: (path.read_bytes(), times.get(path, 0)) for path in files}


def refuse(run_dir: Path, capsys) -> str:
    """Resume what cannot be resumed; returns the one line that says so."""
    before = contents(run_dir)
    assert call_main("--resume", run_dir) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_cifar.py: error: ") and str(run_dir) in line
    assert contents(run_dir) == before
    return line


def test_a_finished_run_has_nothing_left_to_do(tiny_run, capsys):
    before = contents(tiny_run)
    assert call_main("--resume", tiny_run) == 0
    assert "is finished" in capsys.readouterr().out
    assert contents(tiny_run) == before


def test_a_run_goes_on_from_another_directory_and_under_another_name(
    run_dir, tmp_path, monkeypatch
):
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run_dir.rename(moved)
    monkeypatch.chdir(moved.parent)
    assert call_main("--resume", "renamed") == 0
    assert load_checkpoint(moved)["progress"]["finished"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["elsewhere"]


@pytest.fixture(scope="module")
def run_on_own_folder(image_folder, tmp_path_factory) -> tuple[Path, Path]:
    """A folder of images for each test to change, and a run on it that was stopped."""
    folder, run_dir = (
        tmp_path_factory.mktemp("own") / "images",
        tmp_path_factory.mktemp("o") / "run",
    )
    shutil.copytree(image_folder, folder)
    arguments = settings(folder, run_dir.parent, "--views", "notes")
    train(arguments, run_dir, Fault(AFTER_A_BATCH, interrupt, 2))
    return folder, run_dir


@pytest.mark.parametrize(
    "change",
    ["an image less", "another picture", "another label", "another class"]
    + ["a test image less", "another test picture", "another test label"],
)
def test_other_images_are_refused(image_folder, run_on_own_folder, capsys, change):
    folder, run_dir = run_on_own_folder
    shutil.rmtree(folder)
    shutil.copytree(image_folder, folder)
    images = folder / ("test" if "test" in change else "train")
    first, second = images / CLASSES[0], images / CLASSES[1]
    if "less" in change:
        (first / "00.png").unlink()
    elif "picture" in change:
        shutil.copy(second / "00.png", first / "00.png")
    elif "label" in change:  # the last picture of a class becomes the first of the next
        max(first.iterdir()).rename(second / "-.png")
    else:
        for part in ("train", "test"):
            (folder / part / CLASSES[0]).rename(folder / part / "a leaf")
    assert "other images" in refuse(run_dir, capsys)


@pytest.mark.parametrize("share", [0, 0.5, 0.9999])
def test_a_truncated_checkpoint_is_refused(run_dir, capsys, share):
    path = run_dir / checkpoint.FILE_NAME
    os.truncate(path, int(share * path.stat().st_size))
    assert "cannot be read" in refuse(run_dir, capsys)


def test_a_flipped_bit_in_a_checkpoint_is_refused(run_dir, capsys):
    """It would change the weights and nobody would know; most bits are in the weights."""
    path = run_dir / checkpoint.FILE_NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "checksum" in refuse(run_dir, capsys)


@pytest.mark.parametrize("other", ["classes", "order", "momentum"])
def test_a_checkpoint_of_another_net_is_refused(run_dir, capsys, other):
    """PyTorch itself takes the last two: fused SGD would then read past the end of a buffer."""
    state = load_checkpoint(run_dir)
    if other == "classes":
        state["net"] = Net(7).state_dict()
    elif other == "order":  # as if `fc1` and `fc2` had changed places: the optimizer counts them
        names = sorted(state["net"], key=lambda name: name.replace("fc1", "fc3"))
        state["net"] = {name: state["net"][name] for name in names}
    else:
        state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1)
    save_checkpoint(run_dir, state)
    assert "does not fit the net" in refuse(run_dir, capsys)


def test_settings_of_another_version_are_refused(run_dir, capsys):
    state = load_checkpoint(run_dir)
    save_checkpoint(run_dir, state | {"settings": state["settings"] | {"new": 1}})
    assert "other settings" in refuse(run_dir, capsys)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_what_another_program_saved_is_refused(run_dir, capsys, content):
    torch.save(content, run_dir / checkpoint.FILE_NAME)
    assert "not a checkpoint of this program" in refuse(run_dir, capsys)


@pytest.mark.parametrize("name", ["no/such/run", "", "x" * 5000, "file"])
def test_a_directory_without_a_checkpoint_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no directory")
    assert call_main("--resume", name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no checkpoint.pt" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Malicious:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(run_dir, tmp_path, capsys):
    trap, path = tmp_path / "trap", run_dir / checkpoint.FILE_NAME
    torch.save(load_checkpoint(run_dir) | {"settings": Malicious(trap)}, path)
    assert "cannot be read" in refuse(run_dir, capsys)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # it would have been
