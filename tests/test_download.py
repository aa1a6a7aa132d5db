"""The download: what each fault of the network, the disk and the archive leads to.

Each good end is checked with torchvision's own CIFAR10 class; each bad end is one line that says
what to do.
"""

import io
import os
import re
import shlex
import signal
import socket
import sys
import tarfile
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import cifar_server
import numpy as np
import pytest
from cifar_server import TinyCifar, tar_gz
from forked import finish, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

import data
from support import cifar10, mirrors
from support.cifar10 import fetch_cifar10
from support.errors import InputError

tiny, server = cifar_server.tiny, cifar_server.server  # fixtures

BASE = CIFAR10.base_folder
NO_LIMIT = "rate400000"


@pytest.fixture
def short(monkeypatch):
    """Time-outs for tests in which a server is silent."""
    monkeypatch.setattr(mirrors, "TIMEOUT_S", 0.6)
    monkeypatch.setattr(mirrors, "PATIENCE_S", 1.8)
    monkeypatch.setattr(mirrors, "PROBE_S", 0.3)
    monkeypatch.setattr(mirrors, "WINDOW_S", 0.3)


@pytest.fixture
def quick(monkeypatch):
    """Speeds are looked at so often that it matters for a tiny archive."""
    monkeypatch.setattr(mirrors, "WINDOW_S", 0.2)
    monkeypatch.setattr(mirrors, "SLOW_S", 0.5)


def assert_whole(data_dir: Path, tiny: TinyCifar) -> None:
    """torchvision opens it, and finds the pixels that were put in."""
    for train in (True, False):
        dataset = CIFAR10(data_dir, train=train, download=False)
        np.testing.assert_array_equal(dataset.data, tiny.images[train])
        assert dataset.targets == tiny.labels[train]
    names = {path.name for path in data_dir.iterdir()}
    assert names <= {BASE, cifar10.ARCHIVE_NAME, f"{cifar10.ARCHIVE_NAME}.lock"}


def error_of(data_dir: Path, *mirrors: str) -> str:
    """The line that the reader gets; nothing is left that could be taken for CIFAR-10."""
    with pytest.raises(InputError) as caught:
        fetch_cifar10(data_dir, mirrors)
    message = str(caught.value)
    assert message.isprintable()  # hence one line
    assert not list((data_dir / BASE).glob("*"))
    return message


def part_of(data_dir: Path) -> Path:
    return data_dir / f"{cifar10.ARCHIVE_NAME}.part"


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("habit", ["good", "no_range", "redirect"])
def test_a_mirror_that_works(tmp_path, tiny, server, habit, capsys):
    fetch_cifar10(tmp_path / "new" / "folder", [server.url(habit)])
    assert_whole(tmp_path / "new" / "folder", tiny)
    out, err = capsys.readouterr()
    assert re.fullmatch(
        r"downloading CIFAR-10 \(0 MB\): 1 addresses are asked at once \(.*\)\n"
        rf"{re.escape(server.url(habit))}: [\d.]+[kM]?B/s, at most 00:0\d left\n",
        err,
    )
    assert out == "" and len(server.asked) == (2 if habit == "redirect" else 1)


def test_ten_cuts_cost_almost_nothing(tmp_path, tiny, server, capsys):
    fetch_cifar10(tmp_path, [server.url("cuts10")])
    assert_whole(tmp_path, tiny)
    assert len(server.asked) == 11
    assert server.sent <= 1.1 * len(tiny.archive)
    assert capsys.readouterr().err.count("broke off after") == 10


FAULTS = {  # what a mirror does, or its whole address, and what is said of it
    "404": "404: Not Found",
    "503": "503: Service Unavailable",
    "page": r"offers something else \(HTTP 200, size unknown\)",
    "other_size": r"offers something else \(HTTP 206, size 10\)",
    "other_place": r"offers something else \(HTTP 206, size \d{6}\)",
    "loop": "infinite loop",
    "hangs_up": "closed connection without response",
    "no_http": "220 this is a mail server",
    "broken_chunks": "IncompleteRead",
    "half": "broke off after",
    "no_range_half": "broke off after",
    "wrong_half": "broke off after",
    "wrong": r"wrong bytes \(md5\)",
    "endless": r"wrong bytes \(md5\)",
    "rude": r"404: \[31mNot here",
}
SILENT = {
    "silent": "no answer in time|timed out",
    "silent_body": "no answer in time|timed out",
    "trickle": r"slow \(",
    "one_byte": "broke off after 1 bytes",
}
ADDRESSES = {
    "http://127.0.0.1:1/x": "refused",
    "https://127.0.0.1:{port}/x": "SSL",
    "http://example.invalid/x": "Name or service not known",
    "http://[1": "",
    "http://u:p@h:x/x": "",
    "http://数据/数据": "",
    "http://" + "a" * 99: "",
}


@pytest.fixture
def only_here(monkeypatch):
    """No name is known but this machine's number."""
    look_up = socket.getaddrinfo

    def only_here(host, *args, **kwargs):
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


@pytest.mark.parametrize("mirror", [*FAULTS, *SILENT, *ADDRESSES])
def test_a_mirror_that_fails_is_named_and_the_next_helps(
    tmp_path, tiny, server, short, only_here, mirror
):
    url = mirror.format(port=server.server_port) if "//" in mirror else server.url(mirror)
    part_of(tmp_path).write_bytes(tiny.archive[:1000])
    message = error_of(tmp_path, url)
    assert re.search((FAULTS | SILENT | ADDRESSES)[mirror], message) and url in message
    assert str(tmp_path / cifar10.ARCHIVE_NAME) in message and "--mirror" in message
    assert not (tmp_path / cifar10.ARCHIVE_NAME).exists()
    assert part_of(tmp_path).exists() == ("wrong bytes" not in message)
    fetch_cifar10(tmp_path, [url, server.url("good")])
    assert_whole(tmp_path, tiny)


def test_silence_in_the_middle_is_continued(tmp_path, tiny, server, short):
    fetch_cifar10(tmp_path, [server.url("pause")])
    assert_whole(tmp_path, tiny)
    assert server.sent <= 1.1 * len(tiny.archive)


def test_ten_silent_mirrors_are_asked_once_and_together(tmp_path, server, short):
    urls = [server.url("silent") + f"?{n}" for n in range(10)]
    message = error_of(tmp_path, *urls)
    assert all(url in message for url in urls) and message.count("timed out") == 1
    assert server.habits() == ["silent"] * 10


def test_the_real_constants_end_within_30_seconds():
    # What comes too slowly at the start is left after a window, and then the patience may end.
    assert mirrors.PATIENCE_S + mirrors.WINDOW_S < 30


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1:1/x", "http://[1", ""])
def test_redirect_to_nowhere(tmp_path, server, target):
    server.redirect_to = target or "http://127.0.0.1:1/" + "x" * 10_000
    assert len(error_of(tmp_path, server.url("redirect"))) < 1000


# --- the fastest mirror ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_named", [False, True])
def test_the_fastest_mirror_is_found_at_once(
    tmp_path, tiny, server, quick, monkeypatch, capsys, is_named
):
    slow, fast = server.url("rate2"), server.url(NO_LIMIT)
    monkeypatch.setattr(cifar10, "BUILT_IN_MIRRORS", (fast,) if is_named else (slow, fast))
    fetch_cifar10(tmp_path, [slow] if is_named else [])
    assert_whole(tmp_path, tiny)
    assert sorted(server.habits()) == ["rate2", NO_LIMIT]  # and its one connection went on
    said = capsys.readouterr().err.splitlines()
    assert "2 addresses are asked at once" in said[0]
    assert len(said) == 2 and said[1].startswith(f"127.0.0.1:{server.server_port}: ")


def test_a_mirror_that_becomes_slow_is_left(tmp_path, tiny, server, quick, monkeypatch, capsys):
    drops, dead = "rate400000-5", ["silent", "404"]
    monkeypatch.setattr(cifar10, "BUILT_IN_MIRRORS", map(server.url, [*dead, NO_LIMIT]))
    monkeypatch.setattr(mirrors, "GRACE_S", 0.0)  # it has not yet become slow when it is chosen
    monkeypatch.setattr(mirrors, "MUCH", 10)
    fetch_cifar10(tmp_path, [server.url(drops)])
    assert_whole(tmp_path, tiny)
    assert server.sent_by[drops] < 0.6 * len(tiny.archive)
    assert sorted(server.habits()) == sorted(2 * [drops, *dead, NO_LIMIT])
    assert f"{server.url(drops)}: slow (" in capsys.readouterr().err


def test_a_mirror_without_a_faster_one_goes_on(tmp_path, tiny, server, quick):
    fetch_cifar10(tmp_path, [server.url("rate200"), server.url("rate50")])
    assert_whole(tmp_path, tiny)
    assert sorted(server.habits()) == ["rate200", "rate50"]  # asked once, and not again


@pytest.mark.parametrize("habit", ["trickle", "one_byte"])
def test_a_mirror_that_trickles_is_left(tmp_path, tiny, server, short, monkeypatch, habit):
    monkeypatch.setattr(mirrors, "TIMEOUT_S", 5.0)
    monkeypatch.setattr(mirrors, "PATIENCE_S", 5.0)
    fetch_cifar10(tmp_path, [server.url(habit), server.url("late")])
    assert_whole(tmp_path, tiny)
    assert server.habits().count(habit) <= 2


def test_a_dead_address_costs_nobody_anything(tmp_path, tiny, server):
    urls = [server.url(habit) for habit in ["silent", "silent_body", "404", "hangs_up", "good"]]
    fetch_cifar10(tmp_path, urls)
    assert_whole(tmp_path, tiny)
    assert len(server.asked) == 5 and server.sent == len(tiny.archive)
    for url in urls[:2]:  # nobody has waited for them: they have still time to answer
        assert f"mirror {url}" in {thread.name for thread in threading.enumerate()}


def go_on_after(word: str, server, monkeypatch) -> list[str]:
    """Lift the limit of the habit "rate" when a word has been said; returns what is said."""
    said = []

    def say(line: str) -> None:
        said.append(line)
        if word in line:
            server.go_on.set()

    monkeypatch.setattr(mirrors, "print_on_stderr", say)
    return said


def test_wrong_bytes_are_thrown_away_and_their_mirror_left(tmp_path, tiny, server, monkeypatch):
    said = go_on_after("wrong bytes", server, monkeypatch)
    fetch_cifar10(tmp_path, [server.url(habit) for habit in ["wrong", "rate1", "rate2"]])
    assert_whole(tmp_path, tiny)
    assert sorted(server.habits()[:3]) == ["rate1", "rate2", "wrong"]
    assert sorted(server.habits()[3:]) == ["rate1", "rate2"]
    assert f"{server.url('wrong')}: wrong bytes (md5); starting again" in said


def test_of_two_mirrors_the_wrong_one_is_found(tmp_path, tiny, server, monkeypatch):
    said = go_on_after("broke off", server, monkeypatch)
    good, wrong = server.url("rate1"), server.url("wrong_half")
    fetch_cifar10(tmp_path, [wrong, good])
    assert_whole(tmp_path, tiny)
    # Half from the wrong one, the rest from the other; then all from one of them.
    assert f"{good}, {wrong}: wrong bytes (md5); starting again" in said


class Unread(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [None, Unread()], ids=["closed", "unread"])
def test_nobody_need_read_what_is_said(tmp_path, tiny, server, monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    fetch_cifar10(tmp_path, [server.url("404"), server.url("cuts1")])
    assert_whole(tmp_path, tiny)


# --- the list of mirrors --------------------------------------------------------------------------


def test_all_mirrors_are_asked_and_the_named_ones_preferred(tmp_path, server, monkeypatch):
    monkeypatch.setenv("CIFAR10_MIRROR", f"{server.url('404')} {server.url('rate100')}")
    monkeypatch.setattr(cifar10, "BUILT_IN_MIRRORS", (server.url("503"), server.url("rate200")))
    fetch_cifar10(tmp_path, [server.url("page")])
    assert sorted(server.habits()) == ["404", "503", "page", "rate100", "rate200"]
    assert server.sent_by["rate200"] < server.sent_by["rate100"] == len(server.archive)


def test_a_mirror_may_be_a_folder(tmp_path, tiny, server):
    fetch_cifar10(tmp_path, [server.url("good").removesuffix(cifar10.ARCHIVE_NAME)])
    assert_whole(tmp_path, tiny)


BAD_URLS = ["", "http://h/\x1b[2J", "file:///x", "ftp://h/x", "host/x", "http://", "http:///x"]


@pytest.mark.parametrize("bad", [*BAD_URLS, "http://h/x\nx"])
def test_a_mirror_that_is_no_url(tmp_path, server, bad):
    assert repr(bad) in error_of(tmp_path / "new", bad, server.url("good"))
    assert not server.asked and not (tmp_path / "new").exists()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    habits=st.lists(st.sampled_from([*FAULTS, "cuts3", "no_range", "good"]), max_size=5),
    kept=st.integers(0, 250_000),
    rotten=st.booleans(),
)
def test_any_mixture_of_mirrors(server, tiny, habits, kept, rotten):
    """It always ends; with whole files if one mirror is good; if not, in one line."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        part_of(data_dir).write_bytes((b"x" * kept if rotten else tiny.archive)[:kept])
        try:
            fetch_cifar10(data_dir, map(server.url, habits))
            assert_whole(data_dir, tiny)
        except InputError as error:
            assert str(error).isprintable() and "good" not in habits


# --- what is already on the disk ------------------------------------------------------------------


def put_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("place", [f"{BASE}", ".", f"cifar10/{BASE}", f"{BASE}/{BASE}"])
def test_unpacked_files_are_found(tmp_path, tiny, server, place, capsys):
    """Also where other places have some of them."""
    put_files(tmp_path / BASE, {"test_batch": tiny.files["test_batch"], "data_batch_1": b"half"})
    folder = put_files(tmp_path / place, tiny.files)
    assert fetch_cifar10(tmp_path, [server.url("good")]) == folder
    loaded = data.load_data("cifar10", tmp_path)
    assert np.array_equal(loaded.train_loader.dataset.labels, tiny.labels[True])
    assert not server.asked and capsys.readouterr() == ("", "")


CIFAR100 = {"train": b"", "test": b"", "meta": b"", "file.txt~": b""}
NEARLY = {  # what is in the folder instead of its files, and what is said of it
    "one missing": ({"data_batch_3": None}, "data_batch_3 is missing"),
    "two": (
        {"test_batch": None, "data_batch_1": b"half"},
        "data_batch_1 is damaged, test_batch is",
    ),
    "another's": (CIFAR100, "does not hold CIFAR-10 but file.txt~, meta, test (CIFAR-100's files)"),
    "binary": ({"data_batch_1.bin": b"", "readme.html": b""}, "but data_batch_1.bin, r"),
}


@pytest.mark.parametrize("kind", NEARLY)
def test_what_is_wrong_with_a_folder_is_said_before_and_after_a_download(
    tmp_path, tiny, server, capsys, kind
):
    changes, said = NEARLY[kind]
    is_other = not changes.keys() & tiny.files.keys()
    files = {**({} if is_other else tiny.files), **changes}
    files = {name: content for name, content in files.items() if content is not None}
    put_files(tmp_path / BASE, files)
    with pytest.raises(InputError) as error:
        fetch_cifar10(tmp_path, [server.url("404")])
    assert f"{tmp_path / BASE} " in str(error.value) and said in str(error.value)
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[0] and "unpacked again" in lines[0] and lines[1].startswith("downloading")
    assert {path.name: path.read_bytes() for path in (tmp_path / BASE).iterdir()} == files
    (tmp_path / BASE / "unpacking").write_bytes(b"half")  # of a process that was killed
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    others = files.keys() - tiny.files.keys()
    assert all((tmp_path / BASE / name).read_bytes() == files[name] for name in others)
    assert {path.name for path in (tmp_path / BASE).iterdir()} == tiny.files.keys() | others


@pytest.mark.parametrize("name", [cifar10.ARCHIVE_NAME, "cifar-10-python (1).tar.gz", "数据.tgz"])
def test_an_archive_on_disk_is_used_without_network(tmp_path, tiny, server, name):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"the binary version")
    (tmp_path / name).write_bytes(tiny.archive)
    assert fetch_cifar10(str(tmp_path), [server.url("good")]) == tmp_path / BASE
    (tmp_path / BASE / "data_batch_3").unlink()
    fetch_cifar10(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / BASE).iterdir()} == tiny.files
    assert not server.asked


def test_an_archive_that_is_not_whole_is_named(tmp_path, tiny, server, capsys):
    (tmp_path / "cifar-10-python(1).tar.gz").write_bytes(tiny.archive[:-1])
    fetch_cifar10(tmp_path, [server.url("good")])
    said = "cifar-10-python(1).tar.gz is not the CIFAR-10 archive (it has"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "data_dir"),
    [
        (f"my data/{BASE}", "my data"),
        ("my data", "my data"),
        ("my data/cifar-10-python.tar.gz", "my data"),
        ("my data/x.tgz", "my data"),
        ("renamed", "renamed"),
    ],
)
def test_cifar10_given_as_a_folder_of_images_says_what_to_type(
    tmp_path, tiny, monkeypatch, given, data_dir
):
    monkeypatch.chdir(tmp_path)
    put_files(tmp_path / "my data" / BASE, {"data_batch_1": b"perhaps damaged"})
    put_files(tmp_path / "renamed", tiny.files)
    (tmp_path / "my data" / "cifar-10-python.tar.gz").write_bytes(b"half")
    (tmp_path / "my data" / "x.tgz").write_bytes(tiny.archive)
    with pytest.raises(InputError) as error:
        data.load_data(given)
    assert str(error.value).endswith(f"give --data cifar10 --data-dir {shlex.quote(data_dir)}")


@pytest.mark.parametrize("is_long", [False, True])
def test_wrong_archive_on_disk_is_named_and_kept(tmp_path, tiny, server, is_long):
    archive = tmp_path / cifar10.ARCHIVE_NAME
    archive.write_bytes(bytes(len(tiny.archive) if is_long else 5000))
    message = error_of(tmp_path, server.url("good"))
    assert str(archive) in message and "delete" in message
    assert archive.exists() and not server.asked


@pytest.mark.parametrize("missing", [100, 0])
def test_part_of_an_earlier_run_is_continued(tmp_path, tiny, server, missing):
    first = len(tiny.archive) - missing
    part_of(tmp_path).write_bytes(tiny.archive[:first])
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert server.asked == ([("good", f"bytes={first}-")] if missing else [])
    assert server.sent == missing


@pytest.mark.parametrize("extra", [-1000, 0, 1000])
def test_rotten_part_is_thrown_away(tmp_path, tiny, server, extra):
    part_of(tmp_path).write_bytes(bytes(len(tiny.archive) + extra))
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert server.asked[-1] == ("good", "bytes=0-")


@pytest.mark.parametrize("habit", ["404", "page", "other_size", "other_place", "no_range_half"])
def test_a_bad_answer_does_not_spoil_the_part(tmp_path, tiny, server, habit):
    part = tiny.archive[: len(tiny.archive) * 3 // 4]
    part_of(tmp_path).write_bytes(part)
    error_of(tmp_path, server.url(habit))
    assert part_of(tmp_path).read_bytes() == part


# --- the archive, the disk ------------------------------------------------------------------------


def test_only_files_of_cifar10_are_unpacked(tmp_path, tiny, server, monkeypatch):
    members = [(f"{BASE}/{name}", content) for name, content in tiny.files.items()]
    for name in ["../evil", f"{BASE}/../../evil", f"{tmp_path}/evil", "evil", f"{BASE}/evil"]:
        for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE):
            evil = tarfile.TarInfo(name)
            evil.type, evil.linkname = kind, "../../secret"
            members.insert(3, (evil, b""))
    tiny.archive = server.archive = tar_gz(members)
    tiny.put(monkeypatch)
    fetch_cifar10(tmp_path / "data", [server.url("good")])
    assert_whole(tmp_path / "data", tiny)
    assert not list(tmp_path.rglob("*evil*"))


def test_folder_that_cannot_be_made(tmp_path, tiny, server):
    (tmp_path / "file").write_text("")
    assert "--data-dir" in error_of(tmp_path / "file" / "data", server.url("good"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes")
@pytest.mark.parametrize("archive_fits", [False, True])
def test_disk_full(tmp_path, tiny, server, archive_fits):
    import resource

    if archive_fits:
        (tmp_path / cifar10.ARCHIVE_NAME).write_bytes(tiny.archive)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        message = error_of(tmp_path, server.url("good"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) in message and "free some space" in message
    fetch_cifar10(tmp_path, [server.url("good")])  # there is room again
    assert_whole(tmp_path, tiny)
    assert server.sent <= 2 * len(tiny.archive)


# --- other processes, the keyboard ----------------------------------------------------------------


def start_fetch(tiny: TinyCifar, folder: Path, url: str):
    """A process that fetches `tiny` into `folder`/data, and then would train; and its output."""
    words = "--data", "cifar10", "--data-dir", folder / "data", "--log-dir", folder / "runs"
    more = "--mirror", url, "--views", "notes", "--batch-size", 50
    output = folder / "output"
    return start([*words, *more], output, partial(tiny.put, pytest.MonkeyPatch())), output


def wait_for_half(tiny: TinyCifar, data_dir: Path) -> int:
    """Until the habit "pause" has sent its half, and it has been written; its size."""
    half, give_up = len(tiny.archive) // 2, time.monotonic() + 60
    while not (part_of(data_dir).exists() and part_of(data_dir).stat().st_size == half):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return half


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_during_the_download_keeps_the_part(tmp_path, tiny, server, signum):
    process, output = start_fetch(tiny, tmp_path, server.url("pause"))
    half = wait_for_half(tiny, tmp_path / "data")
    os.kill(process.pid, signum)
    ended = finish(process, output)
    assert ended.status == (130 if signum == signal.SIGINT else -signum)
    assert "Traceback" not in ended.output
    assert ended.output.endswith("train_cifar.py: interrupted\n") == (signum == signal.SIGINT)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data" / BASE).exists()
    fetch_cifar10(tmp_path / "data", [server.url("good")])
    assert_whole(tmp_path / "data", tiny)
    assert server.asked[-1] == ("good", f"bytes={half}-")


def test_two_processes_download_once(tmp_path, tiny, server, monkeypatch):
    data_dir, said = tmp_path / "data", []
    process, output = start_fetch(tiny, tmp_path, server.url("pause"))
    wait_for_half(tiny, data_dir)

    def say(line: str) -> None:
        said.append(line)
        server.go_on.set()  # we wait, so the other process may have the rest of the file

    monkeypatch.setattr(cifar10, "print_on_stderr", say)
    monkeypatch.setattr(cifar10, "unpack", None)  # the other process has done it
    fetch_cifar10(data_dir, [server.url("good")])
    assert said == [f"another process is fetching CIFAR-10 into {data_dir}: waiting for it"]
    assert finish(process, output).status == 0
    assert_whole(data_dir, tiny)
    assert server.habits() == ["pause"] and server.sent == len(tiny.archive)
