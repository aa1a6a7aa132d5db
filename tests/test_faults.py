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
from functools import partial
from pathlib import Path

import filelock
import pytest
import torch
from conftest import call_main, read_events, same_weights, settings
from forked import Fault, Finished, finish, hang_up, interrupt, resume, start, terminate, train
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from loaders import in_python_loader, open_run
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import data
import support.run_dir
import train_cifar
from support.checkpoint import load_checkpoint
from support.errors import NothingToDo
from support.run import Run
from support.terminal import caught_signals, exit_status, resume_command, start_command

IN_AN_EPOCH = "support.run.to_channels_last"  # called for every batch
SHELL = shutil.which("sh")
needs_shell = pytest.mark.skipif(not SHELL, reason="needs a POSIX shell")


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("whole") / "whole"
    assert train(one_epoch(image_folder, run_dir), run_dir).status == 0
    return run_dir


def one_epoch(image_folder: Path, run_dir: Path) -> list[object]:
    """15 batches, a report every five."""
    return settings(image_folder, run_dir.parent, "--report-every", 40, "--epochs", 1)


def notes_only(image_folder: Path, log_dir: Path) -> list[object]:
    """The same with few views, for tests of something else."""
    return settings(image_folder, log_dir, "--views", "notes", "--epochs", 1)


def assert_goes_on(run_dir: Path, whole: Path) -> None:
    """Resumed, the run ends as if nothing had happened."""
    finished = resume(run_dir)
    assert finished.status == 0, finished.output
    assert same_weights(run_dir, whole)
    assert in_python_loader(open_run(run_dir)) == in_python_loader(open_run(whole))


def complaint(finished: Finished) -> str:
    """The one line that the program says about its failure; everything else is its usual output."""
    assert finished.status == 1, finished.output
    usual = r"(reading|images|device|run|watch|epoch \d+/\d+) |NOTE: |stopped by |  python |\|"
    (line,) = (line for line in finished.output.splitlines() if not re.match(usual, line))
    assert line.startswith("train_cifar.py: ")
    return line.removeprefix("train_cifar.py: ")


def progress_of(run_dir: Path) -> dict:
    return load_checkpoint(run_dir)["progress"]


# ---------------------------------------------------------------------------------------- signals

SIGNALS = {  # where, which, and the step at which the run is saved
    "before the first batch": ("viz.add_net_graph", 1, interrupt, 1),
    "in an epoch": (IN_AN_EPOCH, 9, interrupt, 9),
    "in a report": ("viz.add_predictions", 2, interrupt, 10),
    "in a save": ("support.checkpoint.os.fsync", 3, interrupt, 10),
    "in an evaluation": ("train_cifar.evaluate", 2, terminate, 15),
    "in the views of an epoch": ("viz.add_pr_curves", 1, hang_up, 15),
}
ENDS = {interrupt: ("SIGINT", 130), terminate: ("SIGTERM", 143), hang_up: ("SIGHUP", 129)}


@pytest.mark.parametrize("moment", SIGNALS)
def test_a_signal_saves_and_says_how_to_go_on(image_folder, tmp_path, whole, moment):
    place, call, press, step = SIGNALS[moment]
    name, status = ENDS[press]
    run_dir = tmp_path / "a run"
    finished = train(one_epoch(image_folder, run_dir), run_dir, Fault(place, press, call))
    assert finished.status == status
    *_, said, command = finished.output.splitlines()
    assert said == f"stopped by {name}; to resume:"
    assert command == f"  python train_cifar.py --resume '{run_dir}'"
    assert "Traceback" not in finished.output
    assert progress_of(run_dir)["step"] == step
    shown, expected = (in_python_loader(open_run(path)) for path in (run_dir, whole))
    for tag, points in expected.items():  # all that was to be shown so far
        assert shown.get(tag, []) == [point for point in points if point[0] <= step], tag
    assert_goes_on(run_dir, whole)


@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="needs a terminal")
def test_a_terminal_that_is_closed_saves_the_run(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = [*one_epoch(image_folder, run_dir), "--epochs", 100, "--run-name", "run"]
    process, terminal = os.forkpty()
    if process == 0:
        os.execv(sys.executable, [sys.executable, train_cifar.__file__, *map(str, words)])
    shown = b""
    while b"epoch 2/100" not in shown:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 129
    assert progress_of(run_dir)["step"] >= 15 and not progress_of(run_dir)["finished"]


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
    statuses = []
    words = notes_only(image_folder, tmp_path)
    thread = threading.Thread(target=lambda: statuses.append(call_main(*words)))
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
    assert call_main(*notes_only(image_folder, tmp_path)) == 0
    assert capsys.readouterr().err.count("is on a file system without locks") == 1


@pytest.mark.parametrize("version", ["2.5.1+cu124", "1.13.1"])
def test_a_pytorch_that_is_too_old_is_refused(monkeypatch, capsys, tmp_path, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert call_main("--log-dir", tmp_path / "runs") == 2
    assert f"PyTorch {version} is too old, 2.6 or later is needed" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_signal_after_the_last_batch_lets_the_run_end(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    press = Fault("viz.add_projector", terminate)
    assert train(one_epoch(image_folder, run_dir), run_dir, press).status == 0
    assert progress_of(run_dir)["finished"]


def press_twice(second: int) -> None:
    interrupt()
    signal.raise_signal(second)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(image_folder, tmp_path, whole, second):
    run_dir = tmp_path / "run"
    fault = Fault(IN_AN_EPOCH, partial(press_twice, second), 9)
    finished = train(one_epoch(image_folder, run_dir), run_dir, fault)
    assert finished.status == -second
    assert "Traceback" not in finished.output
    assert progress_of(run_dir)["step"] == 5
    assert_goes_on(run_dir, whole)


@pytest.mark.parametrize(("press", "status"), [(interrupt, 130), (terminate, -signal.SIGTERM)])
def test_a_signal_while_images_are_read_leaves_nothing(image_folder, tmp_path, press, status):
    log_dir, output = tmp_path / "runs", tmp_path / "output"
    process = start(
        settings(image_folder, log_dir), output, Fault("support.folder.read_image", press, 30)
    )
    said = {interrupt: "train_cifar.py: interrupted\n", terminate: ""}[press]
    assert finish(process, output) == (status, f"reading the images ...\n{said}")
    assert not log_dir.exists()


# ------------------------------------------------------------------------------------------- disk

AT_AN_EVENT = "viz.add_predictions"
AT_A_CHECKPOINT = "support.run.Run.save"


def fill(folder: Path) -> None:
    """Fill a disk to the last byte."""
    with open(folder / "filler", "wb", buffering=0) as file:
        size = 2**16
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def make_read_only(folder: Path) -> None:
    """Make a disk refuse every change, although a file on it is open: mount it over itself."""
    assert mount("--bind", folder, folder)
    assert mount("-o", "remount,bind,ro", folder)


def move_away(run_dir: Path) -> None:
    run_dir.rename(run_dir.with_name("moved"))


def replace_by_a_file(run_dir: Path) -> None:
    move_away(run_dir)
    run_dir.write_text("in the way")


def limit_file_size(_: Path) -> None:
    """Let no file grow beyond 100 kB, which a checkpoint needs, and events of two reports."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def mount(*words: object) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path) -> Path:
    """A disk of its own, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount") or not mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder):
        pytest.skip("a small tmpfs cannot be mounted here (it takes root on Linux)")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("happen", "place", "reason"),
    [
        (fill, AT_AN_EVENT, "No space left on device"),
        (fill, AT_A_CHECKPOINT, "No space left on device"),
        (fill, "viz.add_projector", "No space left on device"),  # the last views
        (make_read_only, AT_AN_EVENT, "Read-only file system"),
        (make_read_only, AT_A_CHECKPOINT, "Read-only file system"),
        (limit_file_size, AT_AN_EVENT, "File too large"),  # for those who cannot mount a disk
        (limit_file_size, AT_A_CHECKPOINT, "File too large"),
    ],
)
def test_a_disk_that_takes_no_more_ends_the_run(
    image_folder, tmp_path, whole, request, happen, place, reason
):
    disk = tmp_path if happen is limit_file_size else request.getfixturevalue("disk")
    run_dir, call = disk / "run", 1 if place == "viz.add_projector" else 2
    words = one_epoch(image_folder, run_dir)
    line = complaint(train(words, run_dir, Fault(place, partial(happen, disk), call)))
    assert line.startswith(f"failed: cannot write to {str(run_dir)!r} ({reason})")
    assert line.endswith(f"--resume {run_dir}")
    if happen is not limit_file_size:
        before = progress_of(run_dir)
        assert complaint(resume(run_dir)) == line  # nothing has changed yet
        assert progress_of(run_dir) == before
    if happen is fill:
        (disk / "filler").unlink()
    elif happen is make_read_only:
        subprocess.run(["umount", disk], check=True)
    assert_goes_on(run_dir, whole)


@pytest.mark.parametrize("place", [AT_AN_EVENT, AT_A_CHECKPOINT])
@pytest.mark.parametrize("happen", [move_away, replace_by_a_file])
def test_a_run_directory_that_vanishes_ends_the_run(image_folder, tmp_path, whole, happen, place):
    run_dir = tmp_path / "run"
    words = one_epoch(image_folder, run_dir)
    line = complaint(train(words, run_dir, Fault(place, partial(happen, run_dir), 2)))
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


def full_output() -> None:
    """Give the program a stdout that takes nothing, as a full disk does."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), sys.stdout.fileno())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    ("happen", "reason"), [(close_reader, "nobody reads it"), (full_output, "No space left")]
)
def test_output_that_cannot_be_written_ends_the_run(image_folder, tmp_path, whole, happen, reason):
    """And is named; not the run folder, which is in order."""
    run_dir = tmp_path / "run"
    fault = Fault("train_cifar.evaluate", happen, 2)
    line = complaint(train(one_epoch(image_folder, run_dir), run_dir, fault))
    assert line.startswith(f"failed: the output cannot be written ({reason}")
    assert_goes_on(run_dir, whole)


@needs_shell
@pytest.mark.parametrize(("streams", "status"), [(">&- 2>&-", 0), (">/dev/full 2>&-", 1)])
def test_closed_and_full_streams_give_no_traceback(image_folder, tmp_path, streams, status):
    """Where nobody wants to hear, training goes on; where a line is lost, it ends with 1."""
    words = [sys.executable, train_cifar.__file__, *notes_only(image_folder, tmp_path)]
    command = f"{shlex.join(map(str, words))} {streams}"
    done = subprocess.run([SHELL, "-c", command], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
    runs = list(tmp_path.iterdir())
    assert len(runs) == (status == 0)  # the line that is lost comes before the run is made
    assert all(progress_of(run_dir)["finished"] for run_dir in runs)


# ------------------------------------------------------------------------------------------ views


def no_memory() -> None:
    raise MemoryError("of 3.2 GB")


VIEWS = ["add_net_graph", "add_histograms", "add_confusion_matrix", "add_projector"]


def test_views_that_fail_cost_the_views_and_not_the_run(image_folder, tmp_path, whole):
    """One at the start, one in a report, one of an epoch and one at the end."""
    run_dir = tmp_path / "run"
    faults = [Fault(f"viz.{view}", no_memory) for view in VIEWS]
    finished = train(one_epoch(image_folder, run_dir), run_dir, *faults)
    assert finished.status == 0, finished.output
    warning = "WARNING: a view could not be drawn (MemoryError: of 3.2 GB)"
    assert finished.output.count(warning) == len(VIEWS)
    assert same_weights(run_dir, whole)
    shown, expected = (in_python_loader(open_run(path)) for path in (run_dir, whole))
    for tag in ("training loss", "test/loss", "test/accuracy"):
        assert shown[tag] == expected[tag]


# -------------------------------------------------------------------------------- what is printed


@needs_shell
def test_the_printed_command_resumes_the_run(image_folder, tmp_path, monkeypatch, capsys):
    """Pasted as it is, also where the script lies elsewhere and the folder begins with a dash."""

    def stop_at_once(run: Run) -> None:
        run.signals.append(signal.SIGINT)
        original(run)

    original, name = Run.stop_if_asked, "-a 'run'"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [os.path.relpath(train_cifar.__file__)])
    monkeypatch.setattr(Run, "stop_if_asked", stop_at_once)
    assert call_main(*notes_only(image_folder, Path(".")), f"--run-name={name}") == 130
    *_, said, command = capsys.readouterr().out.splitlines()
    assert said == "stopped by SIGINT; to resume:"
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert progress_of(tmp_path / name)["finished"]


# ---------------------------------------------------------------------------------------- numbers

BAD_NUMBERS = {
    "loss": ["--lr", "1e30", "--report-every", "40"],
    "weights": ["--lr", "1e39", "--report-every", "8"],
    "test loss": ["--lr", "1e17", "--batch-size", "120"],
}


@pytest.mark.parametrize("what", BAD_NUMBERS)
def test_numbers_that_leave_the_floats_end_the_run(image_folder, tmp_path, capsys, what):
    run_dir = tmp_path / "run"
    assert (
        call_main(*settings(image_folder, tmp_path, "--run-name", "run", *BAD_NUMBERS[what])) == 1
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"train_cifar.py: failed: the {what} became .*(nan|inf) at step [1-5]: ", line)
    assert "smaller --lr" in line
    state = load_checkpoint(run_dir)
    assert state["progress"]["step"] == 0  # the last good one
    assert all(weights.isfinite().all() for weights in state["net"].values())
    assert status_in_hparams(run_dir) == "STATUS_FAILURE"


def test_a_run_that_ends_well_is_shown_as_a_success(tiny_run):
    assert status_in_hparams(tiny_run) == "STATUS_SUCCESS"


def status_in_hparams(run_dir: Path) -> str:
    ((_, value),) = read_events(run_dir)["_hparams_/session_end_info"]
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    return Status.Name(content.session_end_info.status)


@pytest.mark.parametrize(
    ("lr", "schedule", "status"),
    [("5e-324", "onecycle", 0), ("3.4e38", "constant", 1), ("1.7e308", "onecycle", 1)],
)
def test_extreme_settings(image_folder, tmp_path, capsys, lr, schedule, status):
    words = [*notes_only(image_folder, tmp_path), "--lr", lr, "--schedule", schedule]
    assert call_main(*words, "--momentum", "0.9999999999999999", "--seed", 2**63 - 1) == status
    assert len(capsys.readouterr().err.splitlines()) == status


# ------------------------------------------------------------------------------------ two at once


def same_second() -> None:
    """Stop the clock that names the runs."""

    class Clock(support.run_dir.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    support.run_dir.datetime = Clock


def test_runs_begun_in_the_same_second_do_not_mix(image_folder, tmp_path):
    log_dir, outputs = tmp_path / "runs", [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    words = notes_only(image_folder, log_dir)
    processes = [start(words, output, same_second) for output in outputs]
    for process, output in zip(processes, outputs, strict=True):
        assert finish(process, output).status == 0
    names = sorted(path.name for path in log_dir.iterdir())
    assert names == ["0102-030405", "0102-030405_2", "0102-030405_3"]
    for name in names:
        assert progress_of(log_dir / name)["finished"]
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


@examples(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
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
        status = call_main(*words)
    said = capsys.readouterr().err
    assert status in (0, 2)
    assert re.fullmatch("train_cifar.py: error: .*\n" if status else "", said, re.DOTALL)


def enough(run: Run) -> None:
    """Ends a program that is about to train."""
    raise NothingToDo("everything is ready to train")


@functools.cache
def read_tiny(image_folder: Path) -> tuple:
    return data.read_source(str(image_folder), Path(), ())
