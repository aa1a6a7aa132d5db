"""Several processes train one net: the same result, one voice, and one end for all."""

import ctypes
import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import contents, read_events, read_scalars, same_weights
from forked import HANG, Fault, finish, kill, start, terminate, train

import train_cifar
from support.checkpoint import load_checkpoint
from support.errors import InputError
from support.processes import Processes, place

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

AT_A_BATCH = "support.run.to_channels_last"


@pytest.fixture(scope="module")
def words(image_folder) -> list[object]:
    """The settings of a run of 12 steps in two epochs, with 95 images to train on.

    The last batch of an epoch has 15, which two cannot share evenly.
    """
    words = ["--data", image_folder, "--validation", 25, "--batch-size", 16]
    return [*words, "--lr", 0.02, "--report-every", 32, "--run-name", "run"]


@pytest.fixture
def line(words, tmp_path) -> list[object]:
    """The command line that puts this run into the folder of the test."""
    return [*words, "--log-dir", tmp_path]


def join(rank: int, port: int) -> None:
    """Give this process the environment that torchrun gives the two that it starts."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }


def two(words: list[object], folder: Path, *faults: list[Callable]) -> tuple[list, list]:
    """Run two processes, with a list of faults each; what both say goes to `output` in the folder.

    Returns their exit statuses, and what the program says about its failure.
    """
    output = folder / "output"
    output.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank, mine in enumerate(faults or [[], []]):
        processes.append(start(words, output, partial(join, rank, port), *mine))
    statuses = [finish(process, output).status for process in processes]
    said = output.read_text(encoding="utf-8")
    assert "Traceback" not in said, said
    return statuses, [line for line in said.splitlines() if line.startswith("train_cifar.py: ")]


def start_torchrun(words: list[object], output: Path, *faults: Callable) -> BaseProcess:
    """Start torchrun in a fork, which forks for the processes of the run: nobody imports PyTorch.

    The processes have the faults, too.
    """
    return start(["--run_path", "--start_method=fork", *words], output, become_torchrun, *faults)


def become_torchrun() -> None:
    from torch.distributed import run  # not every PyTorch has it

    train_cifar.main = run.main


def only_in_the_other(do: Callable[[], None]) -> None:
    if os.environ["RANK"] == "1":
        do()


# ------------------------------------------------------------------------------------ the result


@pytest.fixture(scope="module")
def of_two(words, tmp_path_factory) -> Path:
    """A run by torchrun's two processes, as a reader starts it."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, train_cifar.__file__, *map(str, words)],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=HANG,
    )
    assert done.returncode == 0, done.stderr
    for line in ("images  ", "epoch 2/2  step      12  validation loss", "finished in", "| sky"):
        assert done.stdout.count(line) == 1, done.stdout
    run_dir = folder / "runs" / "run"
    assert len(read_scalars(run_dir)["validation/loss"]) == 3
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
    ((_, settings),) = read_events(run_dir)["settings/text_summary"]
    table = html.unescape(settings.tensor.string_val[0].decode())
    assert re.search(r"\| processes +\| 2 ", table)
    assert table.count("| torchrun --nproc_per_node=2 ") == 2  # the command, and how to resume
    return run_dir


def test_two_processes_train_the_net_of_one(line, tmp_path, of_two):
    """Within the noise of floats, the last batch of an epoch included."""
    run_dir = tmp_path / "run"
    assert train(line, run_dir).status == 0
    one, other = load_checkpoint(run_dir), load_checkpoint(of_two)
    for name, weights in one["net"].items():
        np.testing.assert_allclose(other["net"][name], weights, rtol=1e-3, atol=1e-5, err_msg=name)
    expected, scalars = read_scalars(run_dir), read_scalars(of_two)
    assert scalars.keys() == expected.keys()
    del expected["training progress/images per second"]
    for tag, points in expected.items():  # steps, too
        np.testing.assert_allclose(scalars[tag], points, rtol=1e-3, atol=1e-5, err_msg=tag)


# -------------------------------------------------------------------------------------- one voice


BAD = ["--lr fast", "--batch-size 17", "--data no/such/folder", "--run-name is_there"]


@pytest.mark.parametrize("bad", [*BAD, "--resume no/such/run"])
def test_bad_input_is_told_once(words, tmp_path, bad):
    log_dir = tmp_path / "runs"
    (log_dir / "is_there").mkdir(parents=True)
    (log_dir / "is_there" / "a file").touch()
    before = contents(log_dir)
    usual = [] if "--resume" in bad else [*words, "--log-dir", log_dir]
    statuses, (error,) = two([*usual, *bad.split()], tmp_path)
    assert statuses == [2, 2] and error.startswith("train_cifar.py: error: ")
    assert contents(log_dir) == before


def test_a_finished_run_is_told_once(tmp_path, of_two):
    assert two(["--resume", of_two], tmp_path) == ([0, 0], [])
    assert (tmp_path / "output").read_text().count("is finished") == 1


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes on a machine with 1 GPU"):
        place(Processes(1, 2, torch.device("cpu")), torch.device("cuda"))


# ---------------------------------------------------------------------------------------- one end


def test_a_loss_that_is_no_number_ends_all(line, tmp_path):
    statuses, (error,) = two([*line, "--lr", 1e30], tmp_path)
    assert statuses == [1, 1]
    assert re.search("the loss became (nan|inf) at step 2: ", error)
    assert load_checkpoint(tmp_path / "run")["progress"]["step"] == 0


def test_a_signal_to_one_process_saves_and_ends_all(line, tmp_path, of_two):
    """The other stops at the same batch; both go on from there."""
    press = [Fault(AT_A_BATCH, terminate, 3)]
    assert two(line, tmp_path, [], press) == ([143, 143], [])
    command = f"torchrun --nproc_per_node=2 train_cifar.py --resume {tmp_path / 'run'}"
    assert (tmp_path / "output").read_text().count(command) == 1
    assert load_checkpoint(tmp_path / "run")["progress"]["step"] == 6
    assert_goes_on(tmp_path, of_two)


def assert_goes_on(folder: Path, whole: Path) -> None:
    """Resumed by two processes, the run ends with the weights of the one that was not stopped."""
    assert two(["--resume", folder / "run"], folder) == ([0, 0], [])
    assert same_weights(folder / "run", whole)


DEATHS = {
    "the first, reading images": (0, Fault("support.folder.read_image", kill, 30)),
    "the first, in an epoch": (0, Fault(AT_A_BATCH, kill, 9)),
    "the other, in an evaluation": (1, Fault("train_cifar.evaluate", kill, 3)),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_process_that_dies_ends_the_other(line, tmp_path, of_two, death):
    dead, fault = DEATHS[death]
    faults = [[fault], []] if dead == 0 else [[], [fault]]
    statuses, (error,) = two(line, tmp_path, *faults)
    assert statuses.pop(dead) == -signal.SIGKILL
    assert statuses == [1]
    who = "" if dead == 1 else "process 1: "
    assert error.startswith(f"train_cifar.py: {who}failed: another process of this run has ended")
    assert ("to resume: torchrun " in error) == ("reading" not in death)
    if "epoch" in death:
        assert_goes_on(tmp_path, of_two)


def test_a_disk_fault_of_the_first_ends_all(line, tmp_path):
    run_dir = tmp_path / "run"
    vanish = [Fault("support.run.Run.save", partial(run_dir.rename, tmp_path / "moved"))]
    statuses, errors = two(line, tmp_path, vanish, [])
    assert statuses == [1, 1]
    first, second = sorted(errors)
    assert f"cannot write to {str(run_dir)!r}" in first
    assert second.startswith("train_cifar.py: process 1: failed: another process")


def test_torchrun_ends_with_an_error_when_a_process_dies(line, tmp_path):
    """It does not wait for the other, whose line it passes on."""
    words = ["--standalone", "--nproc_per_node=2", train_cifar.__file__, *line]
    output, death = tmp_path / "output", Fault(AT_A_BATCH, partial(only_in_the_other, kill), 3)
    status, said = finish(start_torchrun(words, output, death), output)
    assert status == 1
    assert said.count("train_cifar.py: failed: another process of this run has ended") == 1
    assert "ChildFailedError" in said  # torchrun's own report; which death it names is chance
    assert load_checkpoint(tmp_path / "run")["progress"]["step"] == 2


# ------------------------------------------------------------------------------------ two machines

HOSTS = {"here": "10.77.0.1", "there": "10.77.0.2"}  # network namespaces joined by a cable


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def hosts() -> None:
    """Two machines, as far as the network can tell."""
    if not shutil.which("ip") or not ip("netns", "add", "here"):
        pytest.skip("network namespaces cannot be made here (it takes root and ip, on Linux)")
    assert ip("netns", "add", "there")
    assert ip(*"link add cable netns here type veth peer name cable netns there".split())
    for host, address in HOSTS.items():
        assert ip("-n", host, "addr", "add", f"{address}/24", "dev", "cable")
        assert ip("-n", host, "link", "set", "cable", "up")
        assert ip("-n", host, "link", "set", "lo", "up")
    yield
    for host in HOSTS:
        ip("netns", "del", host)


def go_to(host: str, folder: Path) -> None:
    """Put this process on one of the machines, into a folder of its own there."""
    with open(f"/run/netns/{host}") as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
    os.environ["GLOO_SOCKET_IFNAME"] = "cable"
    (folder / host).mkdir(exist_ok=True)
    os.chdir(folder / host)


def on_both(folder: Path, words: list[object], *faults: Callable) -> str:
    """Run torchrun on both machines; what the first says."""
    both = []
    for rank, host in enumerate(HOSTS):
        options = ["--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1"]
        options += [f"--master_addr={HOSTS['here']}", "--master_port=29511", train_cifar.__file__]
        output = folder / f"output-{host}"
        output.unlink(missing_ok=True)
        process = start_torchrun([*options, *words], output, partial(go_to, host, folder), *faults)
        both.append((process, output))
    first, _ = (finish(process, output) for process, output in both)
    return first.output


def test_two_machines_are_stopped_by_one_and_go_on_together(hosts, words, tmp_path, of_two):
    """Only the first has the run folder; the second gets settings and state from it."""
    press = Fault(AT_A_BATCH, partial(only_in_the_other, terminate), 3)
    first = on_both(tmp_path, words, press)
    assert "stopped by SIGTERM; to resume:" in first
    assert re.search(r"torchrun .*--node_rank=0 .*--master_addr=10.77.0.1 .*--resume", first)
    run_dir = tmp_path / "here" / "runs" / "run"
    assert load_checkpoint(run_dir)["progress"]["step"] == 6  # of 12
    assert "finished in" in on_both(tmp_path, ["--resume", "runs/run"])
    assert not (tmp_path / "there" / "runs").exists()
    assert same_weights(run_dir, of_two)
