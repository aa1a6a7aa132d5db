"""Several processes train one net: the same result, one voice, and one end for all."""

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import read_events, read_scalars, same_weights
from forked import HANG, Fault, finish, kill, start, terminate, train
from test_faults import move_away

import train_cifar
from support.checkpoint import load_checkpoint
from support.errors import InputError
from support.processes import Processes, place

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)


@pytest.fixture(scope="module")
def words(image_folder) -> list[object]:
    """The settings of a run of 12 steps in two epochs, with 95 images to train on.

    The last batch of an epoch has 15, which two cannot share evenly.
    """
    words = ["--data", image_folder, "--validation", 25, "--batch-size", 16]
    return [*words, "--lr", 0.02, "--report-every", 32]


# What one of the processes does: rank 1, at its third batch, unless the run is resumed.
SCRIPT = """\
import os, sys, forked, train_cifar
if os.environ["RANK"] == "1" and "--resume" not in sys.argv:
    forked.arrange(forked.Fault("support.run.to_channels_last", forked.{happens}, 3))
sys.exit(train_cifar.main())
"""


def torchrun(folder: Path, *words: object, happens: str = "", host: str = "") -> subprocess.Popen:
    """Start torchrun in a folder as a reader does: two processes, or one on each of the hosts."""
    script = Path(train_cifar.__file__)
    if happens:
        script = folder / "script.py"
        script.write_text(SCRIPT.format(happens=happens))
    command = [sys.executable, "-m", "torch.distributed.run"]
    if host:
        rank = list(HOSTS).index(host)
        command = ["ip", "netns", "exec", host, *command, "--nnodes=2", f"--node_rank={rank}"]
        command += [f"--master_addr={HOSTS['here']}", "--master_port=29511", "--nproc_per_node=1"]
    else:
        command += ["--standalone", "--nproc_per_node=2"]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, script, *map(str, words)],
        cwd=folder,
        env=os.environ | environment | ({"GLOO_SOCKET_IFNAME": "cable"} if host else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


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


def two(words: Sequence[object], output: Path, *faults: Sequence[Callable]) -> list[int]:
    """Run two processes, with a list of faults each, and return their exit statuses.

    What both say goes to the same place.
    """
    output.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = []
    for rank, mine in enumerate(faults or [[], []]):
        processes.append(start(words, output, partial(join, rank, port), *mine))
    return [finish(process, output).status for process in processes]


def complaints(output: Path) -> list[str]:
    """What the program says about its failure, and no traceback of anything."""
    said = output.read_text(encoding="utf-8")
    assert "Traceback" not in said, said
    return [line for line in said.splitlines() if line.startswith("train_cifar.py: ")]


# ------------------------------------------------------------------------------------ the result


@pytest.fixture(scope="module")
def of_two(words, tmp_path_factory) -> Path:
    """A run by torchrun's two processes."""
    folder = tmp_path_factory.mktemp("two")
    process = torchrun(folder, *words, "--run-name", "run")
    said, errors = process.communicate(timeout=HANG)
    assert process.returncode == 0, errors
    for line in ("images  ", "epoch 2/2  step      12  validation loss", "finished in", "| sky"):
        assert said.count(line) == 1, said
    (run_dir,) = (folder / "runs").iterdir()
    assert len(read_scalars(run_dir)["validation/loss"]) == 3
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
    ((_, settings),) = read_events(run_dir)["settings/text_summary"]
    table = html.unescape(settings.tensor.string_val[0].decode())
    assert re.search(r"\| processes +\| 2 ", table)
    assert table.count("| torchrun --nproc_per_node=2 ") == 2  # the command, and how to resume
    return run_dir


def test_two_processes_train_the_net_of_one(words, tmp_path, of_two):
    """Within the noise of floats, the last batch of an epoch included."""
    assert train([*words, "--log-dir", tmp_path], tmp_path / "run").status == 0
    assert_close(tmp_path / "run", of_two)


def assert_close(run_dir: Path, of_two: Path) -> None:
    """Weights and scalars of two runs are the same within the noise of floats."""
    one, other = load_checkpoint(run_dir), load_checkpoint(of_two)
    for name, weights in one["net"].items():
        np.testing.assert_allclose(other["net"][name], weights, rtol=1e-3, atol=1e-5, err_msg=name)
    expected, scalars = read_scalars(run_dir), read_scalars(of_two)
    assert scalars.keys() == expected.keys()
    for tag, points in expected.items():
        steps, values = zip(*points, strict=True)
        found_steps, found = zip(*scalars[tag], strict=True)
        assert found_steps == steps, tag
        if tag != "training progress/images per second":
            np.testing.assert_allclose(found, values, rtol=1e-3, atol=1e-5, err_msg=tag)


# -------------------------------------------------------------------------------------- one voice

BAD = [
    ["--lr", "fast"],
    ["--batch-size", "17"],
    ["--data", "no/such/folder"],
    ["--run-name", "is there"],
    ["--resume", "no/such/run"],
]


@pytest.mark.parametrize("bad", BAD, ids=" ".join)
def test_bad_input_is_told_once(words, tmp_path, bad):
    log_dir = tmp_path / "runs"
    (log_dir / "is there").mkdir(parents=True)
    (log_dir / "is there" / "a file").touch()
    line = bad if "--resume" in bad else [*words, "--log-dir", log_dir, *bad]
    assert two(line, tmp_path / "output") == [2, 2]
    (error,) = complaints(tmp_path / "output")
    assert error.startswith("train_cifar.py: error: ")
    assert [path.name for path in log_dir.iterdir()] == ["is there"]


def test_a_finished_run_is_told_once(tmp_path, of_two):
    assert two(["--resume", of_two], tmp_path / "output") == [0, 0]
    assert (tmp_path / "output").read_text().count("is finished") == 1


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes on a machine with 1 GPU"):
        place(Processes(1, 2, torch.device("cpu")), torch.device("cuda"))


# ---------------------------------------------------------------------------------------- one end


def test_a_loss_that_is_no_number_ends_all(words, tmp_path):
    line = [*words, "--log-dir", tmp_path, "--run-name", "run", "--lr", 1e30]
    assert two(line, tmp_path / "output") == [1, 1]
    (error,) = complaints(tmp_path / "output")
    assert re.search("the loss became (nan|inf) at step 2: ", error)
    assert load_checkpoint(tmp_path / "run")["progress"]["step"] == 0


def test_a_signal_to_one_process_saves_and_ends_all(words, tmp_path, of_two):
    """The other stops at the same batch; both go on from there."""
    line = [*words, "--log-dir", tmp_path, "--run-name", "run"]
    press = [Fault("support.run.to_channels_last", terminate, 3)]
    assert two(line, tmp_path / "output", [], press) == [143, 143]
    assert complaints(tmp_path / "output") == []
    command = f"torchrun --nproc_per_node=2 train_cifar.py --resume {tmp_path / 'run'}"
    assert (tmp_path / "output").read_text().count(command) == 1
    assert load_checkpoint(tmp_path / "run")["progress"]["step"] == 6
    assert_goes_on(tmp_path / "run", of_two)


def assert_goes_on(run_dir: Path, whole: Path) -> None:
    """Resumed by two processes, the run ends with the weights of the one that was not stopped."""
    output = run_dir.with_name("resumed")
    assert two(["--resume", run_dir], output, [], []) == [0, 0]
    assert complaints(output) == []
    assert same_weights(run_dir, whole)


DEATHS = {
    "the first, reading images": (0, Fault("support.folder.read_image", kill, 30)),
    "the first, in an epoch": (0, Fault("support.run.to_channels_last", kill, 9)),
    "the other, in an evaluation": (1, Fault("train_cifar.evaluate", kill, 3)),
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_process_that_dies_ends_the_other(words, tmp_path, of_two, death):
    dead, fault = DEATHS[death]
    line = [*words, "--log-dir", tmp_path, "--run-name", "run"]
    faults = [[fault], []] if dead == 0 else [[], [fault]]
    found = two(line, tmp_path / "output", *faults)
    assert found.pop(dead) == -signal.SIGKILL
    assert found == [1]
    (error,) = complaints(tmp_path / "output")
    who = "" if dead == 1 else "process 1: "
    assert error.startswith(f"train_cifar.py: {who}failed: another process of this run has ended")
    assert ("to resume: torchrun " in error) == ("reading" not in death)
    if "epoch" in death:
        assert_goes_on(tmp_path / "run", of_two)


def test_a_disk_fault_of_the_first_ends_all(words, tmp_path):
    run_dir = tmp_path / "run"
    line = [*words, "--log-dir", tmp_path, "--run-name", "run"]
    vanish = [Fault("support.run.Run.save", partial(move_away, run_dir), 1)]
    assert two(line, tmp_path / "output", vanish, []) == [1, 1]
    first, second = sorted(complaints(tmp_path / "output"))
    assert f"cannot write to {str(run_dir)!r}" in first
    assert second.startswith("train_cifar.py: process 1: failed: another process")


def test_torchrun_ends_with_an_error_when_a_process_dies(words, tmp_path):
    """It does not wait for the other, whose line it passes on."""
    process = torchrun(tmp_path, *words, happens="kill")
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert errors.count("train_cifar.py: failed: another process of this run has ended") == 1
    assert "SIGKILL" in errors  # torchrun's own report
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert load_checkpoint(run_dir)["progress"]["step"] == 2


# ------------------------------------------------------------------------------------ two machines

HOSTS = {"here": "10.77.0.1", "there": "10.77.0.2"}  # network namespaces joined by a cable


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture
def hosts() -> list[str]:
    """Two machines, as far as the network can tell."""
    if not shutil.which("ip") or not ip("netns", "add", "here"):
        pytest.skip("network namespaces cannot be made here (it takes root and ip, on Linux)")
    assert ip("netns", "add", "there")
    assert ip(*"link add cable netns here type veth peer name cable netns there".split())
    for host, address in HOSTS.items():
        assert ip("-n", host, "addr", "add", f"{address}/24", "dev", "cable")
        assert ip("-n", host, "link", "set", "cable", "up")
        assert ip("-n", host, "link", "set", "lo", "up")
    yield list(HOSTS)
    for host in HOSTS:
        ip("netns", "del", host)


def on_both(hosts: list[str], folder: Path, words: list[object]) -> str:
    """Run torchrun on both machines, each in a folder of its own; what the first says."""
    processes = []
    for host in hosts:
        (folder / host).mkdir(exist_ok=True)
        processes.append(torchrun(folder / host, *words, happens="interrupt", host=host))
    first, _ = [process.communicate(timeout=5 * HANG)[0] for process in processes]
    return first


def test_two_machines_are_stopped_by_one_and_go_on_together(hosts, words, tmp_path):
    """Only the first has the run folder; the second gets settings and state from it."""
    first = on_both(hosts, tmp_path, [*words, "--run-name", "run"])
    assert "stopped by SIGTERM; to resume:" in first
    assert re.search(r"torchrun .*--node_rank=0 .*--master_addr=10.77.0.1 .*--resume", first)
    run_dir = tmp_path / "here" / "runs" / "run"
    assert load_checkpoint(run_dir)["progress"]["step"] == 6  # of 12
    assert "finished in" in on_both(hosts, tmp_path, ["--resume", "runs/run"])
    assert not (tmp_path / "there" / "runs").exists()
    assert train([*words, "--log-dir", tmp_path], tmp_path / "one").status == 0
    assert_close(tmp_path / "one", run_dir)
