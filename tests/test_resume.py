"""A run that was killed goes on as if nothing had happened; what is no run of ours is refused."""

import os
import pickle
import random
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import CLASSES, read_scalars, same_weights
from forked import Fault, arrange, finish, interrupt, kill, resume, settings, start, train
from loaders import in_python_loader, in_rust_loader, open_run
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch.utils.data import DataLoader

import train_cifar
from model import Net
from support import checkpoint
from support.checkpoint import load_checkpoint, save_checkpoint
from support.run import Run, load_run
from support.run_dir import LOCK_NAME, lock_run_dir

STEPS_PER_EPOCH = 15


KILLS = 20
SAVE = "support.run.Run.save"


# -------------------------------------------------------- a run, a kill, and what TensorBoard sees


class KillAt(NamedTuple):
    """SIGKILL at a step, after some more calls of Python functions: anywhere, but repeatable."""

    step: int
    calls: int

    def __call__(self) -> None:
        original = Run.stop_if_asked

        def stop_if_asked(run: Run) -> None:
            if run.progress.step >= self.step and sys.getprofile() is None:
                sys.setprofile(self.countdown())
            original(run)

        Run.stop_if_asked = stop_if_asked

    def countdown(self):
        left = self.calls

        def count(*_: object) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                kill()

        return count


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


# ------------------------------------------------------------------------------------------ kills


def test_twenty_kills_at_random_moments_change_nothing(image_folder, tmp_path):
    """SIGKILL at 20 random moments of a run of 45 steps, which is resumed each time.

    One of TensorBoard's readers watches all the time, others come when all is over.
    """
    arguments = settings(image_folder, tmp_path, "--epochs", 3, "--report-every", 24)
    chance = random.Random(0)
    steps = sorted(chance.sample(range(1, 3 * STEPS_PER_EPOCH - 3), KILLS))
    moments = [KillAt(step, int(10 ** chance.uniform(1, 5))) for step in steps]

    run_dir = tmp_path / "killed"
    for starts, moment in enumerate(moments):
        if starts == 0:
            finished = train(arguments, run_dir, moment)
            watching = open_run(run_dir)
        else:
            finished = resume(run_dir, moment)
        assert finished.status == -signal.SIGKILL, finished.output
        in_python_loader(watching)
    assert resume(run_dir).status == 0

    whole = tmp_path / "whole"
    assert train(arguments, whole).status == 0
    assert in_python_loader(watching) == assert_same_run(run_dir, whole)


def test_kills_with_onecycle_augmentation_and_images_held_back(image_folder, tmp_path):
    """The schedule and the random flips and crops go on in the middle of an epoch too."""
    arguments = settings(image_folder, tmp_path, "--schedule", "onecycle", "--augment")
    arguments += ["--report-every", 32, "--views", "notes", "--validation", 5]
    run_dir, whole = tmp_path / "killed", tmp_path / "whole"
    assert train(arguments, run_dir, KillAt(6, 200)).status == -signal.SIGKILL
    for step in [13, 21, 22, 27]:
        assert resume(run_dir, KillAt(step, 200)).status == -signal.SIGKILL
    assert load_checkpoint(run_dir)["progress"]["batch"] == 12
    assert resume(run_dir).status == 0
    assert train(arguments, whole).status == 0
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


def tear_a_checkpoint() -> None:
    """Die when half of the second checkpoint has reached the disk."""
    original, left = torch.save, 2

    def save(state: dict, file) -> None:
        nonlocal left
        left -= 1
        original(state, file)
        if left == 0:
            file.truncate(file.tell() // 2)
            arrange(Fault("support.checkpoint.os.fsync", kill))

    torch.save = save


class KillBeforeSlowWriter(NamedTuple):
    """Die when a checkpoint is in place and the writer has written nothing that it need not yet."""

    checkpoint: int

    def __call__(self) -> None:
        write, flush = EventFileWriter.add_event, EventFileWriter.flush
        waiting = []

        def flush_all(self) -> None:
            while waiting:
                write(self, waiting.pop(0))
            flush(self)

        EventFileWriter.add_event = lambda self, event: waiting.append(event)
        EventFileWriter.flush = flush_all
        arrange(Fault("support.checkpoint.os.replace", kill, self.checkpoint, after=True))


# A run of two epochs saves at its start, at steps 5, 10, 15 (the epoch), 20, 25 and, finished, 30.
# With each place goes the step of the checkpoint that a kill there leaves.
PLACES = {
    "in the middle of an event": (tear_an_event, 5),
    "in the first views": (Fault("viz.add_table", kill), 0),
    "between events and checkpoint": (Fault(SAVE, kill, 2), 5),
    "in the middle of a checkpoint": (tear_a_checkpoint, 0),
    "before the new checkpoint is in place": (Fault("support.checkpoint.os.replace", kill, 3), 5),
    "after the new checkpoint is in place": (
        Fault("support.checkpoint.os.replace", kill, 3, True),
        10,
    ),
    "after a checkpoint, the writer being slow": (KillBeforeSlowWriter(3), 10),
    "after that of an epoch, the writer being slow": (KillBeforeSlowWriter(4), 15),
    "in an evaluation": (Fault("train_cifar.evaluate", kill, 2), 10),
    "between the views of an epoch and its checkpoint": (
        Fault(SAVE, kill, 3),
        10,
    ),
    "after the last epoch": (Fault("train_cifar.show_end", kill), 25),
    "in the last views": (Fault("viz.add_projector", kill), 25),
    "before the last checkpoint": (Fault(SAVE, kill, 6), 25),
}


@pytest.fixture(scope="module")
def log_dir(image_folder, tmp_path_factory) -> Path:
    """Where the runs of `PLACES` are, and the same one without a kill."""
    log_dir = tmp_path_factory.mktemp("kills")
    assert train(two_epochs(image_folder, log_dir), log_dir / "whole").status == 0
    return log_dir


def two_epochs(image_folder: Path, log_dir: Path) -> list[object]:
    return settings(image_folder, log_dir, "--report-every", 40)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_the_worst_places_changes_nothing(image_folder, log_dir, place):
    fault, step = PLACES[place]
    run_dir = log_dir / place
    assert train(two_epochs(image_folder, log_dir), run_dir, fault).status == -signal.SIGKILL
    assert load_checkpoint(run_dir)["progress"]["step"] == step  # whole: the old or the new one
    assert resume(run_dir, Fault("train_cifar.train", kill)).status == -signal.SIGKILL
    assert resume(run_dir).status == 0
    assert_same_run(run_dir, log_dir / "whole")
    tables = open_run(run_dir)
    tables.Reload()
    for tag in ("settings/text_summary", "per class/text_summary"):
        assert len(tables.Tensors(tag)) == 1


def test_a_run_killed_before_its_first_checkpoint_can_be_started_again(image_folder, tmp_path):
    """Under the same name: the folder holds nothing that anybody would miss."""
    arguments = settings(image_folder, tmp_path, "--views", "notes", "--epochs", 1)
    run_dir = tmp_path / "run"
    for early in (
        Fault("support.run.save_checkpoint", kill),
        Fault("support.checkpoint.os.replace", kill),
    ):
        assert train(arguments, run_dir, early).status == -signal.SIGKILL
        assert run_dir.is_dir()
    assert train(arguments, run_dir).status == 0


def test_a_run_goes_on_at_the_very_batch(image_folder, tmp_path, monkeypatch):
    """Every batch of the run is trained on once, those before the stop and those after."""

    def share_of_batch(images, labels, processes):
        batches.append(images.clone())
        return images, labels

    def stop_if_asked(run):
        if run.progress.step == stop_at:
            run.signals.append(signal.SIGTERM)
        original(run)

    original = Run.stop_if_asked
    monkeypatch.setattr("support.run.share_of_batch", share_of_batch)
    monkeypatch.setattr(Run, "stop_if_asked", stop_if_asked)
    arguments = settings(image_folder, tmp_path, "--augment", "--views", "notes")
    arguments = [str(argument) for argument in arguments]
    batches, stop_at = [], None
    assert train_cifar.main([*arguments, "--run-name", "whole"]) == 0
    expected = batches

    batches, stop_at = [], 22
    assert train_cifar.main([*arguments, "--run-name", "stopped"]) == 128 + signal.SIGTERM
    assert len(batches) == 22
    stop_at = None
    assert train_cifar.main(["--resume", str(tmp_path / "stopped")]) == 0
    assert len(batches) == len(expected) == 30
    assert all(map(torch.equal, batches, expected))


def test_a_resumed_run_does_not_count_the_skipping(image_folder, tmp_path, monkeypatch):
    """Each batch takes one second from the loader; those done before do not count."""
    clock = [0.0]

    def slowly(loader):
        for batch in original(loader):
            clock[0] += 1
            yield batch

    original = DataLoader.__iter__
    arguments = settings(image_folder, tmp_path, "--report-every", 80)
    train(arguments, tmp_path / "run", Fault("support.run.Run.stop_if_asked", interrupt, 7))
    monkeypatch.setattr(DataLoader, "__iter__", slowly)
    monkeypatch.setattr("support.run.time.perf_counter", lambda: clock[0])
    assert train_cifar.main(["--resume", str(tmp_path / "run")]) == 0
    speeds = read_scalars(tmp_path / "run")["training progress/images per second"]
    # Views are timed too, but by the same clock: only batches move it. The last report is of half
    # as many batches as the others.
    assert [(step, round(speed, 3)) for step, speed in speeds[:2]] == [(10, 8.0), (15, 8.0)]


# --------------------------------------------------------------------------------------- settings

EVERY_KIND = """--epochs=3 --lr=5e-324 --momentum=0 --augment --seed=9223372036854775807
--data-dir=雪 --mirror=http://a --mirror=http://b --train-images=7 --wrong-labels=0.1
--run-name=-x""".split()


@pytest.mark.parametrize("words", [[], EVERY_KIND])
def test_settings_survive_save_and_resume(tmp_path, words):
    args = train_cifar.parse_args(words)
    state = {"settings": vars(args), "progress": {"finished": False}}
    save_checkpoint(tmp_path, state)
    loaded, _ = load_run(train_cifar.parse_args(["--resume", str(tmp_path)]))
    assert vars(loaded) == vars(args) | {"resume": str(tmp_path)}


def test_settings_of_another_version_are_refused(run_dir, capsys):
    state = load_checkpoint(run_dir)
    save_checkpoint(run_dir, state | {"settings": state["settings"] | {"new": 1}})
    assert "other settings" in refuse(run_dir, capsys)


# ---------------------------------------------------------------------------- one run, one process


class MeetAt(NamedTuple):
    """Let two processes go on together: each opens one end of a pipe, and waits for the other."""

    pipe: Path
    mode: str

    def __call__(self) -> None:
        open(self.pipe, self.mode).close()


def test_of_two_resumes_at_once_one_goes_on(run_dir, stopped_run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    outputs = [tmp_path / "one", tmp_path / "other"]
    both = [
        start(["--resume", run_dir], output, Fault("support.run.lock_run_dir", MeetAt(pipe, mode)))
        for output, pipe, mode in zip(outputs, [tmp_path / "pipe"] * 2, "rw", strict=True)
    ]
    ends = [finish(process, output) for process, output in zip(both, outputs, strict=True)]
    assert sorted(end.status for end in ends) == [0, 2], ends
    (refused,) = (end.output for end in ends if end.status == 2)
    _, line = refused.splitlines()  # after the images are read
    assert re.fullmatch(r"train_cifar.py: error: .*another process.*", line)
    whole = shutil.copytree(stopped_run, tmp_path / "alone" / "run")
    assert resume(whole).status == 0
    assert_same_run(run_dir, whole)


def test_a_run_in_progress_cannot_be_resumed(run_dir, capsys):
    lock = lock_run_dir(run_dir)
    line = refuse(run_dir, capsys)
    assert "in use" in line
    lock.release()
    assert train_cifar.main(["--resume", str(run_dir)]) == 0


# --------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def stopped_run(image_folder, tmp_path_factory) -> Path:
    """A run that Ctrl-C stopped at step 7, in the middle of its first epoch."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    arguments = settings(image_folder, run_dir.parent, "--schedule", "onecycle")
    arguments += ["--views", "notes"]
    finished = train(arguments, run_dir, Fault("support.run.Run.stop_if_asked", interrupt, 7))
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
    assert train_cifar.main(["--resume", str(run_dir)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train_cifar.py: error: ") and str(run_dir) in line
    assert contents(run_dir) == before
    return line


def test_a_finished_run_has_nothing_left_to_do(tiny_run, capsys):
    before = contents(tiny_run)
    assert train_cifar.main(["--resume", str(tiny_run)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert contents(tiny_run) == before


def test_a_run_goes_on_from_another_directory_and_under_another_name(
    run_dir, tmp_path, monkeypatch
):
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    run_dir.rename(moved)
    monkeypatch.chdir(moved.parent)
    assert train_cifar.main(["--resume", "renamed"]) == 0
    assert load_checkpoint(moved)["progress"]["finished"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["elsewhere"]


@pytest.mark.parametrize(
    "change",
    ["an image less", "another picture", "another label", "another class"]
    + ["a test image less", "another test picture", "another test label"],
)
def test_other_images_are_refused(image_folder, tmp_path, capsys, change):
    folder = Path(shutil.copytree(image_folder, tmp_path / "images"))
    run_dir = tmp_path / "run"
    arguments = settings(folder, tmp_path, "--views", "notes")
    train(arguments, run_dir, Fault("support.run.Run.stop_if_asked", interrupt, 2))
    images = folder / ("test" if "test" in change else "train")
    changed = images / CLASSES[0] / "00.png"
    if "less" in change:
        changed.unlink()
    elif "picture" in change:
        shutil.copy(images / CLASSES[1] / "00.png", changed)
    elif "label" in change:  # the last picture of a class becomes the first of the next
        last = max((images / CLASSES[0]).iterdir())
        last.rename(images / CLASSES[1] / "-.png")
    else:
        for part in ("train", "test"):
            (folder / part / CLASSES[0]).rename(folder / part / "a leaf")
    assert "other images" in refuse(run_dir, capsys)


@pytest.mark.parametrize("size", [0, 1, 1000, 0.5, 0.99, -1])
def test_a_truncated_checkpoint_is_refused(run_dir, capsys, size):
    path = run_dir / checkpoint.FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole)) if isinstance(size, float) else size])
    assert "cannot be read" in refuse(run_dir, capsys)


def test_a_flipped_bit_in_a_checkpoint_is_refused(run_dir, capsys):
    """It would change the weights and nobody would know; most bits are in the weights."""
    path = run_dir / checkpoint.FILE_NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "checksum" in refuse(run_dir, capsys)


def other_classes(state: dict) -> None:
    state["net"] = Net(7).state_dict()


def other_order(state: dict) -> None:
    """As if `fc1` and `fc2` had changed places in `Net`: the optimizer counts by place."""
    names = sorted(state["net"], key=lambda name: name.replace("fc1", "fc3"))
    state["net"] = {name: state["net"][name] for name in names}


def other_momentum(state: dict) -> None:
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1)


@pytest.mark.parametrize("change", [other_classes, other_order, other_momentum])
def test_a_checkpoint_of_another_net_is_refused(run_dir, capsys, change):
    """PyTorch itself takes the last two: fused SGD would then read past the end of a buffer."""
    state = load_checkpoint(run_dir)
    change(state)
    save_checkpoint(run_dir, state)
    assert "does not fit the net" in refuse(run_dir, capsys)


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [1, 2], "text", None, torch.zeros(3)])
def test_what_another_program_saved_is_refused(run_dir, capsys, content):
    torch.save(content, run_dir / checkpoint.FILE_NAME)
    assert "not a checkpoint of this program" in refuse(run_dir, capsys)


@pytest.mark.parametrize("name", ["no/such/run", "", "x" * 5000, "file"])
def test_a_directory_without_a_checkpoint_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no directory")
    assert train_cifar.main(["--resume", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no checkpoint.pt" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Malicious:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["torch.save", "pickle"])
def test_code_in_a_checkpoint_is_not_run(run_dir, tmp_path, capsys, way):
    trap = tmp_path / "trap"
    state = load_checkpoint(run_dir) | {"settings": Malicious(trap)}
    path = run_dir / checkpoint.FILE_NAME
    if way == "torch.save":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(trap)))
    assert "cannot be read" in refuse(run_dir, capsys)
    assert not trap.exists()
    torch.load(path, weights_only=False) if way == "torch.save" else pickle.loads(path.read_bytes())
    assert trap.exists()  # it would have been
