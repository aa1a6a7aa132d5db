"""What can go wrong from outside, and what becomes of the run.

A run that cannot go on ends with one line on stderr that says why, and never with a traceback. Its
last checkpoint stays whole, and `--resume` goes on from it.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import torch
from conftest import call_main, read_events, same_weights, settings
from forked import Fault, Finished, hang_up, interrupt, resume, terminate, train
from hypothesis import HealthCheck, example, given
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
from support.run_dir import make_run_dir
from support.terminal import caught_signals, exit_status, resume_command, start_command

IN_AN_EPOCH = "support.run.to_channels_last"  # called for every batch


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("whole") / "whole"
    assert train(one_epoch(image_folder, run_dir), run_dir).status == 0
    return run_dir


def one_epoch(image_folder: Path, run_dir: Path) -> list[object]:
    """15 batches, a report every five."""
    return settings(image_folder, run_dir.parent, "--report-every", 40, "--epochs", 1)


def short(image_folder: Path, log_dir: Path) -> list[object]:
    """Three batches with few views, for tests of something else."""
    more = "--views", "notes", "--epochs", 1, "--train-images", 24
    return settings(image_folder, log_dir, *more)


def assert_goes_on(run_dir: Path, whole: Path, *faults: Fault) -> None:
    """Resumed, the run ends as if nothing had happened."""
    finished = resume(run_dir, *faults)
    assert finished.status == 0, finished.output
    assert_same(run_dir, whole)


def assert_same(run_dir: Path, whole: Path) -> None:
    """The weights are the same bit for bit, and the scalars."""
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


@pytest.mark.parametrize(
    ("place", "call", "signum", "step"),
    [
        ("viz.add_net_graph", 1, signal.SIGINT, 1),  # before the first batch
        (IN_AN_EPOCH, 9, signal.SIGINT, 9),
        ("support.checkpoint.os.fsync", 3, signal.SIGTERM, 10),
        ("viz.add_pr_curves", 1, signal.SIGHUP, 15),  # at the end of an epoch
    ],
)
def test_a_signal_saves_the_run(image_folder, tmp_path, whole, place, call, signum, step):
    """And the last line says how to go on."""
    run_dir = tmp_path / "a run"
    fault = Fault(place, partial(signal.raise_signal, signum), call)
    finished = train(one_epoch(image_folder, run_dir), run_dir, fault)
    assert finished.status == 128 + signum
    *_, said, command = finished.output.splitlines()
    assert said == f"stopped by {signum.name}; to resume:"
    assert command == f"  python train_cifar.py --resume '{run_dir}'"
    assert "Traceback" not in finished.output
    assert progress_of(run_dir)["step"] == step
    assert_goes_on(run_dir, whole)


def open_terminal() -> None:
    """Give the program a terminal of its own, which is closed at the end of the epoch."""
    import fcntl  # these two are not on Windows
    import termios

    window, terminal = os.openpty()
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    Fault("train_cifar.evaluate", partial(os.close, window), 2)()


def test_a_terminal_that_is_closed_saves_the_run(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    fault = Fault("train_cifar.make_run", open_terminal)
    assert train(one_epoch(image_folder, run_dir), run_dir, fault).status == 129
    assert progress_of(run_dir)["step"] == 15 and not progress_of(run_dir)["finished"]


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
    with ThreadPoolExecutor() as pool:
        assert pool.submit(call_main, *short(image_folder, tmp_path)).result() == 0


def test_a_second_signal_ends_at_once(image_folder, tmp_path, whole):
    run_dir = tmp_path / "run"
    ctrl_c, kill = Fault(IN_AN_EPOCH, interrupt, 9), Fault(IN_AN_EPOCH, terminate, 9)
    finished = train(one_epoch(image_folder, run_dir), run_dir, ctrl_c, ctrl_c)
    assert finished.status == -signal.SIGINT and "Traceback" not in finished.output
    assert progress_of(run_dir)["step"] == 5
    both = resume(run_dir, kill, ctrl_c)  # the last one comes first
    assert both.status == -signal.SIGTERM
    assert_goes_on(run_dir, whole)


# ------------------------------------------------------------------------------------------- disk


def fill(run_dir: Path) -> None:
    """Fill a disk to the last byte."""
    run_dir.with_name("filler").write_bytes(bytes(shutil.disk_usage(run_dir).free))


def make_read_only(run_dir: Path) -> None:
    """Make a disk refuse every change, although a file on it is open: mount it over itself."""
    assert mount("--bind", run_dir.parent, run_dir.parent)
    assert mount("-o", "remount,bind,ro", run_dir.parent)


def limit_file_size(_: Path) -> None:
    """Let no file grow beyond 100 kB, which a checkpoint needs: a full disk without a mount."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def move_away(run_dir: Path) -> None:
    run_dir.rename(run_dir.with_name("moved"))


def replace_by_a_file(run_dir: Path) -> None:
    move_away(run_dir)
    run_dir.write_text("in the way")


def repair(run_dir: Path) -> None:
    """Undo what one of these has done."""
    if not os.access(run_dir.parent, os.W_OK):
        subprocess.run(["umount", run_dir.parent], check=True)
    run_dir.with_name("filler").unlink(missing_ok=True)
    if run_dir.with_name("moved").exists():
        run_dir.unlink(missing_ok=True)  # fails if the program has made a folder there
        run_dir.with_name("moved").rename(run_dir)


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
    while os.path.ismount(folder):  # twice where a test has failed
        subprocess.run(["umount", folder], check=True)


REPORT, SAVE, LAST_VIEWS = "viz.add_predictions", "support.run.Run.save", "viz.add_projector"
ONE_AFTER_ANOTHER = {  # on a disk that is mounted, and, where that takes root, in any folder
    "disk": [
        (fill, REPORT, "No space left on device"),
        (fill, SAVE, "No space left on device"),
        (make_read_only, SAVE, "Read-only file system"),
        (fill, LAST_VIEWS, "No space left on device"),
    ],
    "tmp_path": [
        (move_away, REPORT, "No such file or directory"),
        (limit_file_size, SAVE, "File too large"),
        (replace_by_a_file, SAVE, "Not a directory"),
    ],
}


@pytest.mark.parametrize("folder", ONE_AFTER_ANOTHER)
def test_a_folder_that_takes_no_more_ends_the_run(image_folder, whole, request, folder):
    """Each time, the run goes on from where it was saved."""
    run_dir = request.getfixturevalue(folder) / "run"
    for number, (happen, place, reason) in enumerate(ONE_AFTER_ANOTHER[folder]):
        fault = Fault(place, partial(happen, run_dir), 1 if number else 2)
        words = one_epoch(image_folder, run_dir)
        line = complaint(resume(run_dir, fault) if number else train(words, run_dir, fault))
        assert line.startswith(f"failed: cannot write to {str(run_dir)!r} ({reason}); ")
        gone = "the run folder is gone: bring it back and resume, or start a new run"
        is_gone = happen in (move_away, replace_by_a_file)
        assert line.endswith(gone if is_gone else f"--resume {run_dir}")
        if folder == "disk" and place == SAVE:
            assert complaint(resume(run_dir)) == line  # nothing has changed yet
        repair(run_dir)
        assert progress_of(run_dir)["step"] == (10 if place == LAST_VIEWS else 5)
    assert_goes_on(run_dir, whole)


def close_reader() -> None:
    """Give the program a pipe as stdout that nobody reads, as `| head` does after its ten lines."""
    read_end, write_end = os.pipe()
    os.dup2(write_end, 1)
    os.close(write_end)
    os.close(read_end)


def full_output() -> None:
    """Give the program a stdout that takes nothing, as a full disk does."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def no_streams() -> None:
    """Start the program as `>&- 2>&-` does."""
    os.close(1)
    os.close(2)
    sys.stdout = sys.stderr = None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_ends_the_run(image_folder, tmp_path, whole):
    """And is named; not the run folder, which is in order. Where nobody is to hear, it goes on."""
    run_dir = tmp_path / "run"
    words, failed = one_epoch(image_folder, run_dir), "failed: the output cannot be written"
    assert complaint(train(words, run_dir, full_output)).startswith(f"{failed} (No space left")
    assert not run_dir.exists()  # what was lost comes before
    fault = Fault("train_cifar.evaluate", close_reader, 2)
    assert complaint(train(words, run_dir, fault)).startswith(f"{failed} (nobody reads it)")
    assert_goes_on(run_dir, whole, no_streams)


# ------------------------------------------------------------------------------------------ views


def no_memory() -> None:
    raise MemoryError("of 3.2 GB")


VIEWS = ["add_net_graph", "add_histograms", "add_confusion_matrix", "add_projector"]


def test_failing_views_and_a_late_signal_do_not_end_the_run(image_folder, tmp_path, whole):
    """One view at the start, one in a report, one of an epoch and one at the end, and SIGTERM."""
    run_dir = tmp_path / "run"
    faults = [Fault(f"viz.{view}", no_memory) for view in VIEWS]
    faults.append(Fault("train_cifar.show_end", terminate))
    finished = train(one_epoch(image_folder, run_dir), run_dir, *faults)
    assert finished.status == 0, finished.output
    warning = "WARNING: a view could not be drawn (MemoryError: of 3.2 GB)"
    assert finished.output.count(warning) == len(VIEWS)
    assert progress_of(run_dir)["finished"]
    assert_same(run_dir, whole)


# ------------------------------------------------------------------------------- one line for each


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(image_folder, tmp_path, monkeypatch, capsys, number):
    def acquire(self, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert call_main(*short(image_folder, tmp_path)) == 0
    assert capsys.readouterr().err.count("is on a file system without locks") == 1


@pytest.mark.parametrize("version", ["2.5.1+cu124", "1.13.1"])
def test_a_pytorch_that_is_too_old_is_refused(monkeypatch, capsys, tmp_path, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert call_main("--log-dir", tmp_path / "runs") == 2
    assert f"PyTorch {version} is too old, 2.6 or later is needed" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


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


@pytest.mark.parametrize("name", ["-a 'run'", "--help", "*"])
def test_the_printed_command_may_be_pasted(monkeypatch, tmp_path, name):
    """Also where the script lies elsewhere, and where the folder looks like something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [os.path.relpath(train_cifar.__file__)])
    command = f"printf '%s\\n' {resume_command(Path(name))}"
    python, script, *words = subprocess.check_output(command, shell=True, text=True).splitlines()
    assert python == Path(sys.executable).stem and os.path.samefile(script, train_cifar.__file__)
    assert train_cifar.parse_args(words).resume == name


# ---------------------------------------------------------------------------------------- numbers

BAD_NUMBERS = {
    "loss": ["--lr", "1e30", "--report-every", "40"],
    "weights": ["--lr", "1.7e308", "--report-every", "8", "--schedule", "onecycle"],
    "test loss": ["--lr", "1e17", "--batch-size", "120"],
}


@pytest.mark.parametrize("what", BAD_NUMBERS)
def test_numbers_that_leave_the_floats_end_the_run(image_folder, tmp_path, whole, capsys, what):
    run_dir = tmp_path / "run"
    words = settings(image_folder, tmp_path, "--run-name", "run", *BAD_NUMBERS[what])
    assert call_main(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"train_cifar.py: failed: the {what} became .*(nan|inf) at step [1-5]: ", line)
    assert "smaller --lr" in line
    assert progress_of(run_dir)["step"] == 0  # the last good one
    assert status_in_hparams(run_dir) == "STATUS_FAILURE"
    assert status_in_hparams(whole) == "STATUS_SUCCESS"


def status_in_hparams(run_dir: Path) -> str:
    ((_, value),) = read_events(run_dir)["_hparams_/session_end_info"]
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    return Status.Name(content.session_end_info.status)


def test_the_smallest_and_largest_settings_are_taken(image_folder, tmp_path, capsys):
    words = "--lr 5e-324 --schedule onecycle --momentum 0.9999999999999999".split()
    assert call_main(*short(image_folder, tmp_path), *words, "--seed", 2**63 - 1) == 0
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------ two at once


def test_runs_begun_in_the_same_second_do_not_mix(tmp_path, monkeypatch):
    """Each of eight that start at once has a folder of its own, which it has locked."""
    clock = SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5))
    monkeypatch.setattr(support.run_dir, "datetime", clock)
    expected = ["0102-030405", *(f"0102-030405_{number}" for number in range(2, 9))]
    for attempt in range(10):
        with ThreadPoolExecutor(8) as pool:
            taken = [pool.submit(make_run_dir, tmp_path / str(attempt), None, "") for _ in range(8)]
        assert sorted(each.result()[0].name for each in taken) == expected


# -------------------------------------------------------------------------------------- any input

FLAGS = [f"--{name.replace('_', '-')}" for name in [*vars(train_cifar.parse_args([])), "help", ""]]
VALUES = """0 1 4 120 121 -1 1.5 1e9 1e-9 1e400 nan inf -inf 0x10 1_000 ٣ auto cpu cuda cuda:0 mps
meta onecycle constant all notes cifar10 shapes images runs file . .. ~ con nul a.b""".split()
TEXT = st.text(max_size=20).filter(lambda text: not text.startswith("/") and ".." not in text)
VALUE = st.sampled_from(VALUES) | TEXT | st.just("x" * 5000)
FLAG = st.sampled_from(FLAGS)
PAIR = st.builds("{}={}".format, FLAG, VALUE)


@pytest.fixture(scope="module")
def parts(image_folder) -> tuple:
    """Images that are there already."""
    return data.read_source(str(image_folder), Path(), ())


@example(words=["--log-dir", "x" * 5000])
@examples(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(words=st.lists(PAIR, max_size=3) | st.lists(PAIR | FLAG | VALUE, max_size=4))
def test_any_command_line_gives_a_run_or_one_line(parts, tmp_path, monkeypatch, capsys, words):
    """All but the download and the training itself is done."""

    def read_source(source: str, *where: object):
        known = source in ("auto", "cifar10", "shapes")
        return parts if known else data.read_source(source, *where)

    def in_progress(run: Run) -> None:
        raise NothingToDo("everything is ready to train")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_cifar, "read_source", read_source)
    monkeypatch.setattr(train_cifar, "in_progress", in_progress)
    (tmp_path / "file").write_text("no folder")
    status = call_main(*words)
    captured = capsys.readouterr()
    assert status in (0, 2)
    line = "train_cifar.py: error: .*\n" if status else ""
    assert re.fullmatch(line, captured.err, re.DOTALL)
