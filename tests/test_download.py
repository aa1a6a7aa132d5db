"""The download: what each fault of the network, the disk and the archive leads to.

Each good end is checked with torchvision's own CIFAR10 class; each bad end is one line that says
what to do.
"""

import io
import os
import re
import shlex
import signal
import sys
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import cifar_server
import forked
import numpy as np
import pytest
from cifar_server import TinyCifar, put_files, tar_gz
from torchvision.datasets import CIFAR10

import data
from support import cifar10, mirrors
from support.cifar10 import ARCHIVE_NAME, fetch_cifar10
from support.errors import InputError

tiny, server = cifar_server.tiny, cifar_server.server  # fixtures

BASE = CIFAR10.base_folder
PART = f"{ARCHIVE_NAME}.part"


@pytest.fixture
def short(monkeypatch):
    """Nobody waits long, and speeds are looked at so often that it matters for a tiny archive."""
    monkeypatch.setattr(mirrors, "TIMEOUT_S", 0.4)
    monkeypatch.setattr(mirrors, "PATIENCE_S", 0.9)
    monkeypatch.setattr(mirrors, "PROBE_S", 0.2)
    monkeypatch.setattr(mirrors, "WINDOW_S", 0.2)
    monkeypatch.setattr(mirrors, "SLOW_S", 0.2)


def fetch(data_dir: Path, *urls: str) -> None:
    """Download; torchvision finds each file with its md5, and nothing else is left."""
    fetch_cifar10(data_dir, urls)
    CIFAR10(data_dir)
    names = {path.name for path in data_dir.iterdir()}
    assert names <= {BASE, ARCHIVE_NAME, f"{ARCHIVE_NAME}.lock"}


def error_of(data_dir: Path, *urls: str) -> str:
    """The line that the reader gets; nothing is left that could be taken for CIFAR-10."""
    with pytest.raises(InputError) as caught:
        fetch_cifar10(data_dir, urls)
    message = str(caught.value)
    assert message.isprintable()  # hence one line
    assert not list((data_dir / BASE).glob("*"))
    return message


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("habit", ["good", "surplus", "no_range", "redirect"])
def test_a_mirror_that_works(tmp_path, server, habit, capsys):
    url = server.url(habit)
    fetch(tmp_path / "new" / "folder", url.removesuffix(ARCHIVE_NAME))  # a folder will do
    out, err = capsys.readouterr()
    first, last = err.splitlines()
    assert first.startswith("downloading CIFAR-10 (0 MB): 1 addresses are asked at once (")
    assert re.fullmatch(rf"{re.escape(url)}: [\d.]+[kM]?B/s, at most 00:0\d left", last)
    assert out == "" and len(server.habits) == (2 if habit == "redirect" else 1)


@pytest.mark.parametrize(("habit", "fault"), [("twelfths", "broke off"), ("pause", "slow (")])
def test_a_mirror_that_stops_is_continued(tmp_path, server, short, capsys, habit, fault):
    fetch(tmp_path, server.url(habit))
    assert sum(server.sent) == len(server.archive)
    assert capsys.readouterr().err.count(fault) == len(server.habits) - 1


FAULTS = {  # what a mirror does, or its whole address, and what is said of it
    "404": "404: Not Found",
    "page": r"offers something else \(HTTP 200, size unknown\)",
    "other_size": r"offers something else \(HTTP 206, size 10\)",
    "other_place": r"offers something else \(HTTP 206, size \d{6}\)",
    "hangs_up": "closed connection without response",
    "mail": "220 this is a mail server",
    "rude": r"404: \[31mNot here",
    "broken_chunks": "IncompleteRead",
    "no_range_half": "broke off after",
    "half_wrong": "broke off after",
    "wrong": r"wrong bytes \(md5\)",
    "silent": "no answer in time|timed out",
    "rate0": "no answer in time|timed out",
    "rate0.05": r"slow \(",  # a byte now and then
    "one_byte": "broke off after 1 bytes",
    "http://127.0.0.1:1/x": "refused",
    "https://127.0.0.1:{port}/x": "SSL",
    "http://u:p@h:x/x": "",
    "http://数据/数据": "",
}


@pytest.mark.parametrize("mirror", FAULTS)
def test_a_mirror_that_fails_is_named_and_the_next_helps(tmp_path, server, short, mirror):
    url = mirror.format(port=server.server_port) if "//" in mirror else server.url(mirror)
    part = tmp_path / PART
    part.write_bytes(server.archive[:80_000])  # more than a block, less than half
    message = error_of(tmp_path, url)
    assert re.search(FAULTS[mirror], message) and url in message
    assert str(tmp_path / ARCHIVE_NAME) in message and "--mirror" in message
    if "wrong" in mirror:
        assert part.exists() == (mirror == "half_wrong")
    else:
        assert part.stat().st_size >= 80_000 and server.archive.startswith(part.read_bytes())
    fetch(tmp_path, url, server.url("good"))


def test_ten_silent_mirrors_are_asked_once_and_together(tmp_path, server, short):
    urls = [server.url("silent") + f"?{n}" for n in range(10)]
    message = error_of(tmp_path, *urls)
    assert all(url in message for url in urls) and message.count("timed out") == 1
    assert server.habits == ["silent"] * 10


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1:1/x", "http://[1", ""])
def test_redirect_to_nowhere(tmp_path, server, target):
    server.redirect_to = target or "http://127.0.0.1:1/" + "x" * 10_000
    assert len(error_of(tmp_path, server.url("redirect"))) < 1000


def test_a_mirror_that_becomes_slow_is_left(tmp_path, server, short, monkeypatch, capsys):
    others = ["silent", "404", "good"]
    monkeypatch.setattr(cifar10, "BUILT_IN_MIRRORS", map(server.url, others))
    drops = server.url("rate400000-5")
    fetch(tmp_path, drops)
    assert sorted(server.habits) == sorted(2 * ["rate400000-5", *others])
    *_, left, chosen = capsys.readouterr().err.splitlines()
    assert left.startswith(f"{drops}: slow (") and chosen.startswith("127.0.0.1:")


def test_all_mirrors_are_asked_once_and_the_named_ones_preferred(
    tmp_path, server, short, monkeypatch, capsys
):
    """If they are not much slower than the fastest."""
    much_slower, slower = server.url("rate2"), server.url("rate200")
    monkeypatch.setenv("CIFAR10_MIRROR", f"{much_slower} {slower}")
    built_in = server.url("hangs_up"), server.url("rate400")
    monkeypatch.setattr(cifar10, "BUILT_IN_MIRRORS", built_in)
    fetch(tmp_path, server.url("page"))
    assert sorted(server.habits) == ["hangs_up", "page", "rate2", "rate200", "rate400"]
    assert sum(server.sent) < 1.8 * len(server.archive)  # the others are left off early
    first, chosen = capsys.readouterr().err.splitlines()  # and it is never left
    assert "5 addresses are asked at once" in first and chosen.startswith(f"{slower}: ")


@pytest.mark.parametrize("habit", ["rate0.05", "one_byte"])
def test_a_mirror_that_trickles_is_left(tmp_path, server, short, monkeypatch, habit):
    monkeypatch.setattr(mirrors, "TIMEOUT_S", 5.0)
    monkeypatch.setattr(mirrors, "PATIENCE_S", 5.0)
    fetch(tmp_path, server.url(habit), server.url("late"))
    assert server.habits.count(habit) <= 2


def test_a_dead_address_costs_nobody_anything(tmp_path, server, monkeypatch):
    monkeypatch.setattr(mirrors, "PROBE_S", 60.0)  # not where a mirror has shown what it can
    urls = [server.url(habit) for habit in ["silent", "rate0", "404", "hangs_up", "good"]]
    fetch(tmp_path, *urls)
    assert len(server.habits) == 5 and sum(server.sent) == len(server.archive)
    for url in urls[:2]:  # nobody has waited for them: they have still time to answer
        assert f"mirror {url}" in {thread.name for thread in threading.enumerate()}


def go_on_after(word: str, server, monkeypatch) -> list[str]:
    """Lift the server's limits when a word has been said; returns what is said."""
    said = []

    def say(line: str) -> None:
        said.append(line)
        if word in line:
            server.go_on.set()

    monkeypatch.setattr(mirrors, "print_on_stderr", say)
    monkeypatch.setattr(cifar10, "print_on_stderr", say)
    return said


def test_wrong_bytes_are_thrown_away_and_their_mirror_left(tmp_path, server, monkeypatch):
    said = go_on_after("wrong bytes", server, monkeypatch)
    fetch(tmp_path, *[server.url(habit) for habit in ["wrong", "rate1", "rate2"]])
    assert sorted(server.habits[:3]) == ["rate1", "rate2", "wrong"]
    assert sorted(server.habits[3:]) == ["rate1", "rate2"]
    assert f"{server.url('wrong')}: wrong bytes (md5); starting again" in said


def test_of_two_mirrors_the_wrong_one_is_found(tmp_path, server, monkeypatch):
    said = go_on_after("broke off", server, monkeypatch)
    good, wrong = server.url("rate1"), server.url("half_wrong")
    fetch(tmp_path, wrong, good)
    # Half from the wrong one, the rest from the other; then each alone, in this order.
    assert f"{wrong}, {good}: wrong bytes (md5); starting again" in said


class Unread(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [None, Unread()], ids=["closed", "unread"])
def test_nobody_need_read_what_is_said(tmp_path, server, monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    fetch(tmp_path, server.url("404"), server.url("twelfths"))


BAD_URLS = ["", "http://h/\x1b[2J", "http://h/x\nx", "file://h/x", "host/x", "http:///x"]


@pytest.mark.parametrize("bad", BAD_URLS)
def test_a_mirror_that_is_no_url(tmp_path, server, bad):
    assert repr(bad) in error_of(tmp_path / "new", bad, server.url("good"))
    assert not server.habits and not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", [f"{BASE}", ".", f"cifar10/{BASE}", f"{BASE}/{BASE}"])
def test_unpacked_files_are_found(tmp_path, tiny, server, place, capsys):
    """Also where other places have some of them."""
    put_files(tmp_path / BASE, {"test_batch": tiny.files["test_batch"], "data_batch_1": b"half"})
    folder = put_files(tmp_path / place, tiny.files)
    assert fetch_cifar10(tmp_path, [server.url("good")]) == folder
    loaded = data.load_data("cifar10", tmp_path)
    assert np.array_equal(loaded.train_loader.dataset.labels, tiny.labels[True])
    assert not server.habits and capsys.readouterr() == ("", "")


NEARLY = [  # what is in the folder instead of its files, and what is said of it
    ({"data_batch_1": b"half", "more": b""}, "data_batch_1 is damaged, data_batch_2 is missing, "),
    ({"train": b"", "test": b"", "meta": b"", "x~": b""}, "meta, test, train (CIFAR-100's files);"),
    ({"x.bin": b"", "readme.html": b""}, "does not hold CIFAR-10 but readme.html, x.bin;"),
]


@pytest.mark.parametrize(("files", "said"), NEARLY)
def test_what_is_wrong_with_a_folder_is_said_before_and_after_a_download(
    tmp_path, tiny, server, capsys, files, said
):
    folder = put_files(tmp_path / BASE, files)
    put_files(tmp_path, {"cifar-10-python(1).tar.gz": tiny.archive[:-1]})
    with pytest.raises(InputError) as error:
        fetch_cifar10(tmp_path, [server.url("404")])
    assert str(error.value).startswith(f"{folder} ") and said in str(error.value)
    of_folder, of_archive, last = capsys.readouterr().err.splitlines()
    assert said in of_folder and of_folder.endswith("; these files are unpacked again")
    assert "cifar-10-python(1).tar.gz is not the CIFAR-10 archive (it has" in of_archive
    assert last.startswith("downloading") and files_in(folder) == files
    put_files(folder, {"unpacking": b"half"})  # of a process that was killed
    fetch_cifar10(tmp_path, [server.url("good")])
    assert files_in(folder) == files | tiny.files


@pytest.mark.parametrize("name", [ARCHIVE_NAME, "数据.tgz"])
def test_an_archive_on_disk_is_used_without_network(tmp_path, tiny, server, name, capsys):
    put_files(tmp_path, {"cifar-10-binary.tar.gz": b"another version", name: tiny.archive})
    assert fetch_cifar10(str(tmp_path), [server.url("good")]) == tmp_path / BASE
    (tmp_path / BASE / "data_batch_3").unlink()
    fetch_cifar10(tmp_path)
    assert files_in(tmp_path / BASE) == tiny.files and not server.habits
    said = f"{tmp_path / BASE} is not whole: data_batch_3 is missing; these files are unpacked"
    assert capsys.readouterr().err == f"{said} again\n"


GIVEN = ["my data", f"my data/{BASE}", f"my data/{ARCHIVE_NAME}", "my data/x.tgz", "renamed"]


@pytest.mark.parametrize("given", GIVEN)
def test_cifar10_given_as_a_folder_of_images_says_what_to_type(tmp_path, tiny, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    put_files(tmp_path / "my data" / BASE, {"data_batch_1": b"perhaps damaged"})
    put_files(tmp_path / "my data", {ARCHIVE_NAME: b"half", "x.tgz": tiny.archive})
    put_files(tmp_path / "renamed", tiny.files)
    data_dir = shlex.quote(given.split("/")[0])
    with pytest.raises(InputError, match=f"give --data cifar10 --data-dir {data_dir}$"):
        data.load_data(given)


@pytest.mark.parametrize("is_long", [False, True])
def test_wrong_archive_on_disk_is_named_and_kept(tmp_path, server, is_long):
    archive = tmp_path / ARCHIVE_NAME
    archive.write_bytes(bytes(len(server.archive) if is_long else 5000))
    message = error_of(tmp_path, server.url("good"))
    assert str(archive) in message and "delete" in message
    assert archive.exists() and not server.habits


@pytest.mark.parametrize("missing", [100, 0])
def test_part_of_an_earlier_run_is_continued(tmp_path, server, missing):
    first = len(server.archive) - missing
    (tmp_path / PART).write_bytes(server.archive[:first])
    fetch(tmp_path, server.url("good"))
    assert server.ranges == ([f"bytes={first}-"] if missing else [])
    assert sum(server.sent) == missing


@pytest.mark.parametrize("extra", [-1000, 0, 1000])
def test_rotten_part_is_thrown_away(tmp_path, server, extra):
    (tmp_path / PART).write_bytes(bytes(len(server.archive) + extra))
    fetch(tmp_path, server.url("good"))
    assert server.ranges[-1] == "bytes=0-"


def test_only_files_of_cifar10_are_unpacked(tmp_path, tiny, server, monkeypatch):
    members = [(f"{BASE}/{name}", content) for name, content in tiny.files.items()]
    for name in ["../evil", f"{BASE}/../../evil", f"{tmp_path}/evil", "evil", f"{BASE}/evil"]:
        for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE):
            evil = tarfile.TarInfo(name)
            evil.type, evil.linkname = kind, "../../secret"
            members.insert(3, (evil, b""))
    tiny.archive = server.archive = tar_gz(members)
    tiny.put(monkeypatch)
    fetch(tmp_path / "data", server.url("good"))
    assert not list(tmp_path.rglob("*evil*"))


def test_folder_that_cannot_be_made(server):
    assert "--data-dir" in error_of(Path(os.devnull, "data"), server.url("good"))


@pytest.mark.parametrize("archive_fits", [False, True])
def test_disk_full(tmp_path, server, archive_fits):
    import resource  # not on Windows

    if archive_fits:
        (tmp_path / ARCHIVE_NAME).write_bytes(server.archive)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        message = error_of(tmp_path, server.url("good"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in message and "free some space" in message
    fetch(tmp_path, server.url("good"))  # there is room again
    assert sum(server.sent) <= 2 * len(server.archive)


def start_fetch(tiny: TinyCifar, folder: Path, url: str):
    """A process that has half of `tiny` in `folder`/data, and trains when it has the rest."""
    signal.alarm(forked.HANG)  # the first process takes its time
    words = "--data", "cifar10", "--data-dir", folder / "data", "--log-dir", folder / "runs"
    more = "--mirror", url, "--views", "notes", "--batch-size", 50, "--epochs", 1
    output, part = folder / "output", folder / "data" / PART
    process = forked.start([*words, *more], output, partial(tiny.put, pytest.MonkeyPatch()))
    while not (part.exists() and part.stat().st_size == len(tiny.archive) // 2):
        time.sleep(0.02)
    return process, output


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_during_the_download_keeps_the_part(tmp_path, tiny, server, signum):
    process, output = start_fetch(tiny, tmp_path, server.url("pause"))
    os.kill(process.pid, signum)
    ended = forked.finish(process, output)
    assert ended.status == (130 if signum == signal.SIGINT else -signum)
    assert "Traceback" not in ended.output
    assert ended.output.endswith("train_cifar.py: interrupted\n") == (signum == signal.SIGINT)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data" / BASE).exists()
    fetch(tmp_path / "data", server.url("good"))
    assert server.ranges[-1] == f"bytes={len(tiny.archive) // 2}-"


def test_two_processes_download_once(tmp_path, tiny, server, monkeypatch):
    data_dir = tmp_path / "data"
    process, output = start_fetch(tiny, tmp_path, server.url("pause"))
    said = go_on_after("waiting", server, monkeypatch)  # for the rest of the file
    monkeypatch.setattr(cifar10, "unpack", None)  # the other process has done it
    fetch(data_dir, server.url("good"))
    assert said == [f"another process is fetching CIFAR-10 into {data_dir}: waiting for it"]
    assert forked.finish(process, output).status == 0
    assert server.habits == ["pause"] and sum(server.sent) == len(tiny.archive)
