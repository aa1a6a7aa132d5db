"""What can go wrong from outside, and what becomes of the run.

A run that cannot go on ends with one line on stderr that says why, and never with a traceback. Its
last checkpoint stays whole, and `--resume` goes on from it.
"""

import errno
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import filelock
import pytest
import torch
from conftest import same_weights
from forked import (
    Fault,
    Finished,
    finish,
    hang_up,
    interrupt,
    resume,
    settings,
    start,
    terminate,
    train,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from loaders import in_python_loader, open_run

import data
import support.run_dir
import train_cifar
from support.checkpoint import load_checkpoint
from support.errors import NothingToDo
from support.run import Run
from support.terminal import caught_signals, exit_status, resume_command, start_command


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("whole") / "whole"
    assert train(arguments(image_folder, run_dir), run_dir).status == 0
    return run_dir


def arguments(image_folder: Path, run_dir: Path) -> list[object]:
    """One epoch of 15 batches, a report every five."""
    return settings(image_folder, run_dir.parent, "--report-every", 40, "--epochs", 1)


def assert_goes_on(run_dir: Path, whole: Path) -> None:
    """Resumed, the run ends as if nothing had happened."""
    finished = resume(run_dir)
    assert finished.status == 0, finished.output
    assert same_weights(run_dir, whole)
    assert in_python_loader(open_run(run_dir)) == in_python_loader(open_run(whole))


def complaint(finished: Finished) -> str:
    """The one line that the program says about its failure; everything else is its usual output."""
    usual = r"(reading|images|device|run|watch|epoch \d+/\d+) |NOTE: |stopped by |  python |\|"
    (line,) = (line for line in finished.output.splitlines() if not re.match(usual, line))
    assert line.startswith("train_cifar.py: ")
    return line.removeprefix("train_cifar.py: ")


# ---------------------------------------------------------------------------------------- signals

MOMENTS = {
    "before the first batch": ("viz.add_net_graph", 1, 1),
    "in an epoch": ("support.run.to_channels_last", 9, 9),
    "in a report": ("viz.add_predictions", 2, 10),
    "in a save": ("support.checkpoint.os.fsync", 3, 10),
    "in an evaluation": ("train_cifar.evaluate", 2, 15),
    "in the views of an epoch": ("viz.add_pr_curves", 1, 15),
}


@pytest.mark.parametrize(
    ("press", "moment"),
    [
        *((interrupt, moment) for moment in MOMENTS),
        (terminate, "in an epoch"),
        (hang_up, "in an epoch"),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(image_folder, tmp_path, whole, moment, press):
    place, call, step = MOMENTS[moment]
    run_dir = tmp_path / "a run"
    finished = train(arguments(image_folder, run_dir), run_dir, Fault(place, press, call))
    assert finished.status == {interrupt: 130, terminate: 143, hang_up: 129}[press]
    *_, said, command = finished.output.splitlines()
    name = {interrupt: "SIGINT", terminate: "SIGTERM", hang_up: "SIGHUP"}[press]
    assert said == f"stopped by {name}; to resume:"
    assert command == f"  python train_cifar.py --resume '{run_dir}'"
    assert "Traceback" not in finished.output
    assert load_checkpoint(run_dir)["progress"]["step"] == step
    shown, expected = (in_python_loader(open_run(path)) for path in (run_dir, whole))
    for tag, points in expected.items():  # all that was to be shown so far
        assert shown.get(tag, []) == [point for point in points if point[0] <= step], tag
    assert_goes_on(run_dir, whole)


@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="needs a terminal")
def test_a_terminal_that_is_closed_saves_the_run(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = [*arguments(image_folder, run_dir), "--epochs", 100, "--run-name", "run"]
    process, terminal = os.forkpty()
    if process == 0:
        command = [sys.executable, train_cifar.__file__, *map(str, words)]
        os.execv(sys.executable, command)
    shown = b""
    while b"epoch 2/100" not in shown:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 129
    progress = load_checkpoint(run_dir)["progress"]
    assert progress["step"] >= 15 and not progress["finished"]


def test_nohup_keeps_a_run_going():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with caught_signals(caught := []):
            hang_up()
            interrupt()
        assert caught == [signal.SIGINT]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_trains_without_signals(image_folder, tmp_path):
    words, statuses = list(map(str, arguments(image_folder, tmp_path / "run"))), []
    thread = threading.Thread(target=lambda: statuses.append(train_cifar.main(words)))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_in_a_notebook_the_commands_name_the_script(monkeypatch, capsys):
    @exit_status
    def main(argv: list[str]) -> None:
        print(resume_command(Path("runs/x")), start_command(*sys.argv[1:]), sep="\n")

    before = ["/usr/lib/ipykernel_launcher.py", "-f", "kernel.json"], threading.excepthook
    monkeypatch.setattr(sys, "argv", before[0])
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # xdist has none
    assert main(["--epochs", "1"]) == 0
    resume_line, command = capsys.readouterr().out.splitlines()
    assert resume_line.endswith(" train_cifar.py --resume runs/x")
    assert command.endswith(" train_cifar.py --epochs 1")
    assert (sys.argv, threading.excepthook) == before  # what it has replaced is put back


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(image_folder, tmp_path, monkeypatch, capsys, number):
    def acquire(self, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert train_cifar.main([*map(str, arguments(image_folder, tmp_path / "run"))]) == 0
    assert capsys.readouterr().err.count("is on a file system without locks") == 1


@pytest.mark.parametrize("version", ["2.5.1+cu124", "1.13.1"])
def test_a_pytorch_that_is_too_old_is_refused(monkeypatch, capsys, tmp_path, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert train_cifar.main(["--log-dir", str(tmp_path / "runs")]) == 2
    assert f"PyTorch {version} is too old, 2.6 or later is needed" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_signal_after_the_last_batch_lets_the_run_end(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    press = Fault("viz.add_projector", terminate)
    assert train(arguments(image_folder, run_dir), run_dir, press).status == 0
    assert load_checkpoint(run_dir)["progress"]["finished"]


def press_twice() -> None:
    interrupt()
    interrupt()


def press_both() -> None:
    interrupt()
    terminate()


@pytest.mark.parametrize(
    ("press", "signum"), [(press_twice, signal.SIGINT), (press_both, signal.SIGTERM)]
)
def test_a_second_signal_ends_at_once(image_folder, tmp_path, whole, press, signum):
    run_dir = tmp_path / "run"
    fault = Fault("support.run.to_channels_last", press, 9)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == -signum
    assert "Traceback" not in finished.output
    assert load_checkpoint(run_dir)["progress"]["step"] == 5
    assert_goes_on(run_dir, whole)


@pytest.mark.parametrize(("press", "status"), [(interrupt, 130), (terminate, -signal.SIGTERM)])
def test_a_signal_while_images_are_read_leaves_nothing(image_folder, tmp_path, press, status):
    log_dir = tmp_path / "runs"
    output = tmp_path / "output"
    words = settings(image_folder, log_dir)
    finished = finish(start(words, output, Fault("support.folder.read_image", press, 30)), output)
    said = {interrupt: "train_cifar.py: interrupted\n", terminate: ""}[press]
    assert finished == (status, f"reading the images ...\n{said}")
    assert not log_dir.exists()


# ------------------------------------------------------------------------------------------- disk


class Filled(NamedTuple):
    """Fill a disk to the last byte."""

    folder: Path

    def __call__(self) -> None:
        with open(self.folder / "filler", "wb", buffering=0) as file:
            size = 2**16
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2


class ReadOnly(NamedTuple):
    """Make a disk refuse every change, although a file on it is open: mount it over itself."""

    folder: Path

    def __call__(self) -> None:
        assert mount("--bind", self.folder, self.folder)
        assert mount("-o", "remount,bind,ro", self.folder)


class Vanished(NamedTuple):
    """Move the run directory away."""

    run_dir: Path

    def __call__(self) -> None:
        self.run_dir.rename(self.run_dir.with_name("moved"))


class Replaced(NamedTuple):
    """Put a file where the run directory was."""

    run_dir: Path

    def __call__(self) -> None:
        Vanished(self.run_dir)()
        self.run_dir.write_text("in the way")


def mount(*words: object) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path) -> Path:
    """A disk of its own, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder)
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small tmpfs cannot be mounted here (it takes root on Linux)")
    yield folder
    subprocess.run(["umount", folder], check=True)


DISK_FAULTS = {
    "full, at an event": (Filled, "viz.add_predictions", 2, "No space left on device"),
    "full, at a checkpoint": (Filled, "support.run.Run.save", 2, "No space left on device"),
    "full, at the last views": (Filled, "viz.add_projector", 1, "No space left on device"),
    "read-only, at an event": (ReadOnly, "viz.add_predictions", 2, "Read-only file system"),
    "read-only, at a checkpoint": (ReadOnly, "support.run.Run.save", 2, "Read-only file system"),
}


@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_disk_that_takes_no_more_ends_the_run(image_folder, disk, whole, fault):
    run_dir = disk / "run"
    happen, place, call, reason = DISK_FAULTS[fault]
    finished = train(arguments(image_folder, run_dir), run_dir, Fault(place, happen(disk), call))
    assert finished.status == 1, finished.output
    line = complaint(finished)
    assert line.startswith(f"failed: cannot write to {str(run_dir)!r} ({reason})")
    assert line.endswith(f"--resume {run_dir}")
    before = load_checkpoint(run_dir)

    again = resume(run_dir)  # nothing has changed yet
    assert (again.status, complaint(again)) == (1, line)
    assert load_checkpoint(run_dir)["progress"] == before["progress"]

    if happen is Filled:
        (disk / "filler").unlink()
    else:
        subprocess.run(["umount", disk], check=True)
    assert_goes_on(run_dir, whole)


def limit_file_size() -> None:
    """Let no file grow beyond 100 kB, which a checkpoint needs, and events of two reports."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("place", ["viz.add_predictions", "support.run.Run.save"])
def test_a_file_that_may_not_grow_ends_the_run(image_folder, tmp_path, whole, place):
    """The same, for those who cannot mount a disk."""
    run_dir = tmp_path / "run"
    fault = Fault(place, limit_file_size, 2)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 1, finished.output
    assert complaint(finished).startswith(f"failed: cannot write to {str(run_dir)!r} (File too")
    assert_goes_on(run_dir, whole)


@pytest.mark.parametrize("place", ["viz.add_predictions", "support.run.Run.save"])
@pytest.mark.parametrize("happen", [Vanished, Replaced])
def test_a_run_directory_that_vanishes_ends_the_run(image_folder, tmp_path, whole, happen, place):
    run_dir = tmp_path / "run"
    fault = Fault(place, happen(run_dir), 2)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 1, finished.output
    line = complaint(finished)
    assert line.startswith(f"failed: cannot write to {str(run_dir)!r} (N")
    assert line.endswith("the run folder is gone: bring it back and resume, or start a new run")
    assert not run_dir.is_dir()
    assert_goes_on(tmp_path / "moved", whole)


def close_reader() -> None:
    """Give the program a pipe as stdout that nobody reads, as `| head` does after its ten lines."""
    read_end, write_end = os.pipe()
    os.dup2(write_end, sys.stdout.fileno())
    os.close(read_end)
    os.close(write_end)


def test_output_that_nobody_reads_ends_the_run(image_folder, tmp_path, whole):
    run_dir = tmp_path / "run"
    fault = Fault("train_cifar.evaluate", close_reader, 2)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 1
    assert complaint(finished).startswith("failed: the output cannot be written (nobody reads it)")
    assert_goes_on(run_dir, whole)


def full_output() -> None:
    """Give the program a stdout that takes nothing, as a full disk does."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), sys.stdout.fileno())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_is_named(image_folder, tmp_path, whole):
    """And not the run folder, which is in order."""
    run_dir = tmp_path / "run"
    fault = Fault("train_cifar.evaluate", full_output, 2)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 1
    assert complaint(finished).startswith("failed: the output cannot be written (No space left")
    assert_goes_on(run_dir, whole)


SHELL = shutil.which("sh")


@pytest.mark.skipif(not SHELL, reason="needs a POSIX shell")
@pytest.mark.parametrize(("streams", "status"), [(">&- 2>&-", 0), (">/dev/full 2>&-", 1)])
def test_closed_and_full_streams_give_no_traceback(image_folder, tmp_path, streams, status):
    """Where nobody wants to hear, training goes on; where a line is lost, it ends with 1."""
    words = settings(image_folder, tmp_path, "--views", "notes", "--epochs", 1)
    command = shlex.join(map(str, [sys.executable, train_cifar.__file__, *words]))
    done = subprocess.run([SHELL, "-c", f"{command} {streams}"], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
    runs = list(tmp_path.iterdir())
    assert len(runs) == (status == 0)  # the line that is lost comes before the run is made
    assert all(load_checkpoint(run_dir)["progress"]["finished"] for run_dir in runs)


# ------------------------------------------------------------------------------------------ views


def no_memory() -> None:
    raise MemoryError("of 3.2 GB")


VIEWS = ["add_net_graph", "add_histograms", "add_confusion_matrix", "add_projector"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_that_fails_costs_the_view_and_not_the_run(image_folder, tmp_path, whole, view):
    run_dir = tmp_path / "run"
    fault = Fault(f"viz.{view}", no_memory)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 0, finished.output
    assert "WARNING: a view could not be drawn (MemoryError: of 3.2 GB)" in finished.output
    assert same_weights(run_dir, whole)
    shown, expected = (in_python_loader(open_run(path)) for path in (run_dir, whole))
    for tag in ("training loss", "test/loss", "test/accuracy"):
        assert shown[tag] == expected[tag]


# -------------------------------------------------------------------------------- what is printed


@pytest.mark.skipif(not SHELL, reason="needs a POSIX shell")
@pytest.mark.parametrize("name", ["-x", "a 'run'"])
def test_the_printed_command_resumes_the_run(image_folder, tmp_path, monkeypatch, capsys, name):
    """Pasted as it is, also where the script lies elsewhere and the folder begins with a dash."""

    def stop_at_once(run: Run) -> None:
        run.signals.append(signal.SIGINT)
        original(run)

    original = Run.stop_if_asked
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [os.path.relpath(train_cifar.__file__)])
    words = settings(image_folder, Path("."), "--views", "notes", "--epochs", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "stop_if_asked", stop_at_once)
        assert train_cifar.main([*map(str, words), f"--run-name={name}"]) == 130
    *_, said, command = capsys.readouterr().out.splitlines()
    assert said == "stopped by SIGINT; to resume:"
    python = os.path.dirname(sys.executable)
    environment = os.environ | {"PATH": os.pathsep.join([python, os.environ["PATH"]])}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / name)["progress"]["finished"]


# ---------------------------------------------------------------------------------------- numbers

BAD_NUMBERS = {
    "loss": ["--lr", "1e30", "--report-every", "40"],
    "weights": ["--lr", "1e39", "--report-every", "8"],
    "test loss": ["--lr", "1e17", "--batch-size", "120"],
}


@pytest.mark.parametrize("what", BAD_NUMBERS)
def test_numbers_that_leave_the_floats_end_the_run(image_folder, tmp_path, capsys, what):
    words = [*settings(image_folder, tmp_path, "--run-name", "run"), *BAD_NUMBERS[what]]
    assert train_cifar.main([str(word) for word in words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"train_cifar.py: failed: the {what} became .*(nan|inf) at step [1-5]: ", line)
    assert "smaller --lr" in line
    state = load_checkpoint(tmp_path / "run")
    assert state["progress"]["step"] == 0
    assert all(weights.isfinite().all() for weights in state["net"].values())


@pytest.mark.parametrize(("lr", "status"), [("5e-324", 0), ("3.4e38", 1), ("1.7e308", 1)])
@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_extreme_settings(image_folder, tmp_path, capsys, lr, status, schedule):
    words = settings(image_folder, tmp_path, "--views", "notes", "--epochs", 1, "--lr", lr)
    words += ["--schedule", schedule, "--momentum", "0.9999999999999999", "--seed", 2**63 - 1]
    assert train_cifar.main([str(word) for word in words]) == status
    assert len(capsys.readouterr().err.splitlines()) == status


# ------------------------------------------------------------------------------------ two at once


def same_second() -> None:
    """Stop the clock that names the runs."""

    class Clock(support.run_dir.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    support.run_dir.datetime = Clock


def test_two_runs_begun_in_the_same_second_do_not_mix(image_folder, tmp_path):
    log_dir, outputs = tmp_path / "runs", [tmp_path / "one", tmp_path / "other"]
    words = settings(image_folder, log_dir, "--views", "notes", "--epochs", 1)
    processes = [start(words, output, same_second) for output in outputs]
    for process, output in zip(processes, outputs, strict=True):
        assert finish(process, output).status == 0
    names = sorted(path.name for path in log_dir.iterdir())
    assert names == ["0102-030405", "0102-030405_2"]
    for name in names:
        assert load_checkpoint(log_dir / name)["progress"]["finished"]
        assert len(list((log_dir / name).glob("events.out.tfevents.*"))) == 1


# -------------------------------------------------------------------------------------- any input

FLAGS = """--epochs --batch-size --lr --momentum --schedule --augment --seed --device --data
--data-dir --mirror --train-images --wrong-labels --log-dir --run-name --report-every --views
--resume --help --""".split()
VALUES = """0 1 4 120 121 -1 1.5 1e9 1e-9 1e400 nan inf -inf 0x10 1_000 ٣ auto cpu cuda cuda:0 mps
meta onecycle constant all notes cifar10 shapes images runs file . .. ~ con nul a.b""".split()
TEXT = st.text(max_size=20).filter(lambda text: not text.startswith("/") and ".." not in text)
VALUE = st.sampled_from(VALUES) | TEXT | st.just("x" * 5000)
FLAG = st.sampled_from(FLAGS)
WORDS = (
    st.tuples(FLAG, VALUE)
    | st.tuples(FLAG | VALUE)
    | st.builds("{}={}".format, FLAG, VALUE).map(lambda word: (word,))
)


@examples(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(WORDS, max_size=4).map(lambda groups: [word for group in groups for word in group]))
def test_any_command_line_gives_a_run_or_one_line(image_folder, tmp_path, capsys, words):
    """All but the download and the training itself is done."""
    parts = read_tiny(image_folder)

    def read_source(source: str, data_dir: Path, mirrors: list[str]):
        known = source in ("auto", "cifar10", "shapes")
        return parts if known else data.read_source(source, data_dir, mirrors)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(train_cifar, "read_source", read_source)
        patch.setattr(train_cifar, "in_progress", enough)
        (tmp_path / "file").write_text("no folder")
        try:
            status = train_cifar.main(words)
        except SystemExit as exit:  # of the parser
            status = exit.code
    said = capsys.readouterr()
    if status == 0:
        assert said.err == ""
    else:
        assert status == 2
        assert re.fullmatch("train_cifar.py: error: .*\n", said.err, re.DOTALL)


def enough(run: Run) -> None:
    """Ends a program that is about to train."""
    raise NothingToDo("everything is ready to train")


@functools.cache
def read_tiny(image_folder: Path) -> tuple:
    return data.read_source(str(image_folder), Path(), ())
