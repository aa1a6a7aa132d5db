"""The download: what each fault of the network, the disk and the archive leads to.

The table of faults is in these tests' names. Each good end is checked with torchvision's own
CIFAR10 class; each bad end is one line that says what to do.
"""

import contextlib
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import cifar_server
import numpy as np
import pytest
from cifar_server import TinyCifar, pretend, run_script, tar_gz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10

import data
from support import cifar10, mirrors
from support.cifar10 import fetch_cifar10
from support.errors import InputError
from support.mirrors import Transfer

tiny, server = cifar_server.tiny, cifar_server.server  # fixtures

FETCH = (
    "import sys; from support import cifar10\ncifar10.fetch_cifar10(sys.argv[1], sys.argv[2:])\n"
)
BASE = CIFAR10.base_folder


@pytest.fixture
def short(monkeypatch):
    """Time-outs for tests in which a server is silent."""
    monkeypatch.setattr(mirrors, "TIMEOUT_S", 0.6)
    monkeypatch.setattr(mirrors, "PATIENCE_S", 1.8)
    monkeypatch.setattr(mirrors, "PROBE_S", 0.3)
    monkeypatch.setattr(mirrors, "WINDOW_S", 0.3)


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


FAULTS = {
    "404": "404: Not Found",
    "500": "500: Internal Server Error",
    "503": "503: Service Unavailable",
    "page": "offers something else (HTTP 200, size 24)",
    "page_of_no_size": "offers something else (HTTP 200, size unknown)",
    "other_size": "offers something else (HTTP 206, size 10)",
    "loop": "infinite loop",
    "hangs_up": "closed connection without response",
    "no_http": "220 this is a mail server",
    "broken_chunks": "IncompleteRead",
    "half": "broke off after",
    "wrong": "wrong bytes (md5)",
    "wrong_no_range": "wrong bytes (md5)",
    "endless": "wrong bytes (md5)",
    "one_byte": "broke off after 1 bytes",
    "rude": "404: [31mNot here",
    "rude_size": "offers something else (HTTP 206, size [2J",
}


@pytest.mark.parametrize("habit", FAULTS)
def test_a_mirror_that_fails_is_named(tmp_path, server, habit):
    message = error_of(tmp_path, server.url(habit))
    assert FAULTS[habit] in message and server.url(habit) in message
    assert str(tmp_path / cifar10.ARCHIVE_NAME) in message and "--mirror" in message
    assert not (tmp_path / cifar10.ARCHIVE_NAME).exists()


@pytest.mark.parametrize("habit", [*FAULTS, "no_range_half", "wrong_half", "other_place"])
def test_the_next_mirror_helps(tmp_path, tiny, server, habit):
    part_of(tmp_path).write_bytes(tiny.archive[:1000])
    fetch_cifar10(tmp_path, [server.url(habit), server.url("good")])
    assert_whole(tmp_path, tiny)


@pytest.mark.parametrize("habit", ["silent", "silent_body"])
def test_silence(tmp_path, tiny, server, short, habit):
    assert re.search("no answer in time|timed out", error_of(tmp_path, server.url(habit)))
    fetch_cifar10(tmp_path, [server.url(habit), server.url("good")])
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


def test_nobody_listens(tmp_path, tiny):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "refused" in error_of(tmp_path, f"http://127.0.0.1:{port}/")


def test_no_tls(tmp_path, server):
    url = server.url("good").replace("http:", "https:")
    assert "SSL" in error_of(tmp_path, url)


def test_name_not_found(tmp_path, tiny, monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert "Name or service not known" in error_of(tmp_path, "http://example.invalid/")


def test_name_server_is_silent(tmp_path, tiny, short, monkeypatch):
    answer = threading.Event()

    def hang(*args, **kwargs):
        answer.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    assert "no answer in time" in error_of(tmp_path, "http://example.invalid/")
    answer.set()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1:1/x", "http://[1", ""])
def test_redirect_to_nowhere(tmp_path, server, target):
    server.redirect_to = target or "http://127.0.0.1:1/" + "x" * 10_000
    assert len(error_of(tmp_path, server.url("redirect"))) < 1000


# --- the fastest mirror ---------------------------------------------------------------------------

NO_LIMIT = "rate400000"


@pytest.fixture
def quick(monkeypatch):
    """Speeds are looked at so often that it matters for a tiny archive."""
    monkeypatch.setattr(mirrors, "WINDOW_S", 0.2)
    monkeypatch.setattr(mirrors, "SLOW_S", 0.5)


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


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({"slow": 100, "fast": 9000, "silent": 0}, "fast"),
        ({"named": 5000, "fast": 9000}, "named"),
        ({"named slow": 100, "named": 5000, "fast": 9000}, "named"),
        ({"named slow": 100, "fast": 9000}, "fast"),
        ({"named slow": 100, "slow": 100}, "named slow"),
        ({"slow": 100, "disappointed": 9000}, "slow"),
        ({"slow": 100, "as good as silent": 9000}, "slow"),
    ],
)
def test_who_is_chosen(tmp_path, monkeypatch, asked, chosen):
    class Probe(SimpleNamespace):
        __hash__ = object.__hash__

        def is_alive(self) -> bool:
            return False

    def probe(url: str, first: int, size: int) -> Probe:
        asked_at = mirrors.time.monotonic() - 1
        return Probe(url=url, received=1000 * asked[url], asked_at=asked_at, fault="")

    monkeypatch.setattr(mirrors, "Connection", probe)
    named = [url for url in asked if url.startswith("named")]
    transfer = Transfer(list(asked), named, tmp_path / "part", 2**30)
    transfer.limits = {"disappointed": 50_000, "as good as silent": 10}
    assert transfer.choose().url == chosen


@pytest.mark.parametrize("dead", [[], ["silent", "404"]])
def test_a_mirror_that_becomes_slow_is_left(
    tmp_path, tiny, server, quick, monkeypatch, capsys, dead
):
    drops = "rate400000-5"
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


@pytest.mark.parametrize(
    ("habit", "fault"), [("trickle", "slow ("), ("one_byte", "broke off after 1 bytes")]
)
def test_a_mirror_that_only_trickles_is_no_mirror(tmp_path, server, short, habit, fault):
    assert fault in error_of(tmp_path, server.url(habit))
    assert len(server.asked) == 2


def test_a_dead_address_costs_nobody_anything(tmp_path, tiny, server):
    urls = [server.url(habit) for habit in ["silent", "silent_body", "404", "hangs_up", "good"]]
    fetch_cifar10(tmp_path, urls)
    assert_whole(tmp_path, tiny)
    assert len(server.asked) == 5 and server.sent == len(tiny.archive)
    for url in urls[:2]:  # nobody has waited for them: they have still time to answer
        assert f"mirror {url}" in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def go_on_after(server, monkeypatch):
    """Mirrors of the habit "rate" have no limit any more when a certain word has been said."""

    def listen(word: str) -> list[str]:
        said = []

        def say(line: str) -> None:
            said.append(line)
            if word in line:
                server.go_on.set()

        monkeypatch.setattr(mirrors, "print_on_stderr", say)
        return said

    return listen


def test_wrong_bytes_are_thrown_away_and_their_mirror_left(tmp_path, tiny, server, go_on_after):
    said = go_on_after("wrong bytes")
    fetch_cifar10(tmp_path, [server.url(habit) for habit in ["wrong", "rate1", "rate2"]])
    assert_whole(tmp_path, tiny)
    assert sorted(server.habits()[:3]) == ["rate1", "rate2", "wrong"]
    assert sorted(server.habits()[3:]) == ["rate1", "rate2"]
    assert f"{server.url('wrong')}: wrong bytes (md5); starting again" in said


def test_of_two_mirrors_the_wrong_one_is_found(tmp_path, tiny, server, go_on_after):
    said = go_on_after("broke off")
    good, wrong = server.url("rate1"), server.url("wrong_half")
    fetch_cifar10(tmp_path, [wrong, good])
    assert_whole(tmp_path, tiny)
    # Half from the wrong one, the rest from the other; then all from one of them.
    assert f"{good}, {wrong}: wrong bytes (md5); starting again" in said


def test_control_characters_of_a_server_reach_nobody(tmp_path, tiny, server, capsys):
    message = error_of(tmp_path, server.url("rude"), server.url("rude_size"))
    assert "Not here" in message and "[2J" in message  # error_of has seen that it is printable


def test_faults_are_gathered(tmp_path, server, monkeypatch):
    monkeypatch.setattr(cifar10, "BUILT_IN_MIRRORS", (server.url("404"), server.url("404") + "?"))
    message = error_of(tmp_path, server.url("500"))
    host = f"127.0.0.1:{server.server_port}"
    assert f"{host}, {host}: HTTP Error 404: Not Found" in message
    assert f"{server.url('500')}: HTTP Error 500" in message


# --- what is left behind --------------------------------------------------------------------------


def test_every_response_is_closed(tmp_path, server, short, monkeypatch):
    """Python 3.14 warns of those that are not, when it happens to find them."""
    monkeypatch.setattr(mirrors, "PATIENCE_S", 20.0)
    responses, errors, closed = [], [], set()
    begin_response, begin_error, close = (
        HTTPResponse.__init__,
        HTTPError.__init__,
        HTTPError.close,
    )

    def response(self, *args, **kwargs):
        begin_response(self, *args, **kwargs)
        responses.append(self)

    def error(self, *args, **kwargs):
        begin_error(self, *args, **kwargs)
        errors.append(self)

    def close_error(self):
        closed.add(self)
        close(self)

    monkeypatch.setattr(HTTPResponse, "__init__", response)
    monkeypatch.setattr(HTTPError, "__init__", error)
    monkeypatch.setattr(HTTPError, "close", close_error, raising=False)
    habits = [*FAULTS, "redirect", "no_range", "cuts3", "good"]
    fetch_cifar10(tmp_path / "all", map(server.url, ["silent_body", "trickle", *habits]))
    for habit in habits:
        with contextlib.suppress(InputError):
            fetch_cifar10(tmp_path / habit, [server.url(habit)])
    for target in "file:///x", server.url("404"):
        server.redirect_to = target
        error_of(tmp_path / "redirected", server.url("redirect"))
    server.go_on.set()
    for thread in threading.enumerate():
        if thread.name.startswith("mirror"):
            thread.join()
    assert len(responses) > 2 * len(habits) and len(errors) > 8
    assert all(response.isclosed() for response in responses)
    assert set(errors) == closed


@pytest.mark.parametrize("stderr", ["closed", "unread"])
def test_nobody_need_read_what_is_said(tmp_path, tiny, server, monkeypatch, stderr):
    class Unread(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", None if stderr == "closed" else Unread())
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


BAD_URLS = [
    "",
    "http://h/\x1b[2J",
    "file:///x",
    "ftp://h/x",
    "host/x",
    "http://",
    "http:///x",
    "http://h/x\nx",
]


@pytest.mark.parametrize("bad", BAD_URLS)
def test_a_mirror_that_is_no_url(tmp_path, server, bad):
    message = error_of(tmp_path / "new", bad, server.url("good"))
    assert repr(bad) in message
    assert not server.asked and not (tmp_path / "new").exists()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text() | st.text().map("http://".__add__)))
def test_any_text_for_a_mirror(tiny, texts):
    try:
        urls = cifar10.mirror_urls(texts)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert all(url.startswith("http://") and len(url.split()) == 1 for url in urls)
        assert all(url.isprintable() for url in urls)


@pytest.mark.parametrize(
    "url",
    ["http://[1", "http://h:port/x", "http://u:p@h:x/", "http://数据/数据", "http://" + "a" * 99],
)
def test_a_url_that_cannot_be_asked(tmp_path, tiny, server, url, monkeypatch):
    look_up = socket.getaddrinfo

    def only_here(host, *args, **kwargs):
        if host != "127.0.0.1":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    fetch_cifar10(tmp_path, [url, server.url("good")])
    assert_whole(tmp_path, tiny)


BAD_HABITS = [*FAULTS, "no_range_half", "wrong_half", "other_place", "cuts3", "no_range"]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    habits=st.lists(st.sampled_from([*BAD_HABITS, "good"]), min_size=1, max_size=5),
    kept=st.integers(0, 250_000),
    rotten=st.booleans(),
)
def test_any_mixture_of_mirrors(server, tiny, habits, kept, rotten):
    """It always ends; with whole files if one mirror is good; if not, in one line."""
    server.asked.clear()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        part_of(data_dir).write_bytes((b"x" * kept if rotten else tiny.archive)[:kept])
        if "good" in habits:
            fetch_cifar10(data_dir, map(server.url, habits))
        else:
            try:
                fetch_cifar10(data_dir, map(server.url, habits))
            except InputError as error:
                assert str(error).isprintable()
                return
        assert_whole(data_dir, tiny)


# --- what is already on the disk ------------------------------------------------------------------


def test_archive_on_disk_is_used_without_network(tmp_path, tiny, server):
    (tmp_path / cifar10.ARCHIVE_NAME).write_bytes(tiny.archive)
    fetch_cifar10(str(tmp_path), [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert not server.asked


def put_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


PLACES = [f"{BASE}", ".", f"cifar10/{BASE}", f"{BASE}/{BASE}"]


@pytest.mark.parametrize("place", PLACES)
def test_unpacked_files_are_found(tmp_path, tiny, server, place, capsys):
    folder = put_files(tmp_path / "data" / place, tiny.files)
    assert fetch_cifar10(tmp_path / "data", [server.url("good")]) == folder
    loaded = data.load_data("cifar10", tmp_path / "data")
    assert np.array_equal(loaded.train_loader.dataset.labels, tiny.labels[True])
    assert not server.asked and capsys.readouterr() == ("", "")


def test_the_better_of_two_unpacked_folders_is_taken(tmp_path, tiny, server):
    put_files(tmp_path / BASE, {"test_batch": tiny.files["test_batch"], "data_batch_1": b"half"})
    whole = put_files(tmp_path / "again" / BASE, tiny.files)
    assert fetch_cifar10(tmp_path, [server.url("good")]) == whole and not server.asked


CIFAR100 = {"train": b"", "test": b"", "meta": b"", "file.txt~": b""}
NEARLY = {  # what is in the folder instead of its files, and what is said of it
    "one missing": ({"data_batch_3": None}, "data_batch_3 is missing"),
    "two": (
        {"test_batch": None, "data_batch_1": b"half"},
        "data_batch_1 is damaged, test_batch is",
    ),
    "no labels": ({"batches.meta": b""}, "batches.meta is damaged"),
    "others": (dict.fromkeys(("data_batch_1", "data_batch_5"), b"?"), "data_batch_5 is damaged"),
    "another's": (CIFAR100, "does not hold CIFAR-10 but file.txt~, meta, test (CIFAR-100's files)"),
    "the binary version": (
        {"data_batch_1.bin": b"", "readme.html": b""},
        "but data_batch_1.bin, r",
    ),
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
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    others = files.keys() - tiny.files.keys()
    assert all((tmp_path / BASE / name).read_bytes() == files[name] for name in others)


@pytest.mark.parametrize("name", ["cifar-10-python (1).tar.gz", "a", "cifar.tgz", "数据.tar.gz"])
def test_the_archive_is_found_under_any_name(tmp_path, tiny, server, name):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"the binary version")
    (tmp_path / name).write_bytes(tiny.archive)
    assert fetch_cifar10(tmp_path, [server.url("good")]) == tmp_path / BASE
    assert (tmp_path / BASE / "test_batch").exists() and not server.asked


def test_an_archive_that_is_not_whole_is_named(tmp_path, tiny, server, capsys):
    (tmp_path / "cifar-10-python(1).tar.gz").write_bytes(tiny.archive[:-1])
    fetch_cifar10(tmp_path, [server.url("good")])
    assert (
        "cifar-10-python(1).tar.gz is not the CIFAR-10 archive (it has" in capsys.readouterr().err
    )


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


@pytest.mark.parametrize("size", [0, 5000, -1])
def test_wrong_archive_on_disk_is_named_and_kept(tmp_path, tiny, server, size):
    archive = tmp_path / cifar10.ARCHIVE_NAME
    archive.write_bytes(bytes(len(tiny.archive) if size == -1 else size))
    message = error_of(tmp_path, server.url("good"))
    assert str(archive) in message and "delete" in message
    assert archive.exists() and not server.asked


def test_damaged_files_are_mended_and_others_kept(tmp_path, tiny, server):
    fetch_cifar10(tmp_path, [server.url("good")])
    (tmp_path / BASE / "test_batch").write_bytes(b"damaged")
    (tmp_path / BASE / "data_batch_3").unlink()
    (tmp_path / BASE / "my notes.txt").write_text("keep me")
    fetch_cifar10(tmp_path)
    assert_whole(tmp_path, tiny)
    assert (tmp_path / BASE / "my notes.txt").read_text() == "keep me"
    assert len(server.asked) == 1


def test_part_of_an_earlier_run_is_continued(tmp_path, tiny, server):
    part_of(tmp_path).write_bytes(tiny.archive[:-100])
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert server.asked == [("good", f"bytes={len(tiny.archive) - 100}-")] and server.sent == 100


def test_part_that_is_whole_needs_no_network(tmp_path, tiny, server):
    part_of(tmp_path).write_bytes(tiny.archive)
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert not server.asked


@pytest.mark.parametrize("extra", [-1000, 0, 1000])
def test_rotten_part_is_thrown_away(tmp_path, tiny, server, extra):
    part_of(tmp_path).write_bytes(bytes(len(tiny.archive) + extra))
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert server.asked[-1] == ("good", "bytes=0-")


NO_USE = ["404", "page", "page_of_no_size", "other_size", "other_place", "no_range_half"]


@pytest.mark.parametrize("habit", NO_USE)
def test_a_bad_answer_does_not_spoil_the_part(tmp_path, tiny, server, habit):
    part = tiny.archive[: len(tiny.archive) * 3 // 4]
    part_of(tmp_path).write_bytes(part)
    error_of(tmp_path, server.url(habit))
    assert part_of(tmp_path).read_bytes() == part


def test_wrong_bytes_are_not_kept_nor_asked_for_again(tmp_path, tiny, server):
    error_of(tmp_path, server.url("wrong"))
    assert server.habits() == ["wrong"] and not part_of(tmp_path).exists()
    fetch_cifar10(tmp_path, [server.url("wrong_half"), server.url("no_range")])
    assert_whole(tmp_path, tiny)


# --- the archive ----------------------------------------------------------------------------------


ESCAPES = ["../evil", f"{BASE}/../../evil", "{outside}/evil", "evil", f"{BASE}/evil"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE])
def test_only_files_of_cifar10_are_unpacked(tmp_path, tiny, server, monkeypatch, name, kind):
    evil = tarfile.TarInfo(name.format(outside=tmp_path))
    evil.type, evil.linkname = kind, "../../secret"
    members = [(f"{BASE}/{name}", content) for name, content in tiny.files.items()]
    tiny.archive = server.archive = tar_gz([*members[:3], (evil, b""), *members[3:]])
    pretend(monkeypatch, tiny.constants())
    fetch_cifar10(tmp_path / "data", [server.url("good")])
    assert_whole(tmp_path / "data", tiny)
    assert not list(tmp_path.rglob("*evil*"))


# --- the disk, other processes, the keyboard ------------------------------------------------------


def test_folder_that_cannot_be_made(tmp_path, tiny, server):
    (tmp_path / "file").write_text("")
    assert "--data-dir" in error_of(tmp_path / "file" / "data", server.url("good"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_folder_that_cannot_be_written(tmp_path, tiny, server):
    tmp_path.chmod(0o500)
    assert "--data-dir" in error_of(tmp_path, server.url("good"))
    tmp_path.chmod(0o700)


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


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_signal_during_the_download_keeps_the_part(tmp_path, tiny, server, signum, status):
    words = "--data", "cifar10", "--data-dir", tmp_path / "data", "--log-dir", tmp_path / "runs"
    words = *words, "--mirror", server.url("pause")
    process = run_script(tiny, tmp_path, cifar_server.ROOT / "train_cifar.py", *words)
    half = wait_for_half(tiny, tmp_path / "data", process)
    process.send_signal(signum)
    out, err = process.communicate()
    assert process.returncode == status and "Traceback" not in out + err
    assert err.endswith("train_cifar.py: interrupted\n") == (signum == signal.SIGINT)
    assert not (tmp_path / "runs").exists()
    fetch_cifar10(tmp_path / "data", [server.url("good")])
    assert_whole(tmp_path / "data", tiny)
    assert server.asked[-1] == ("good", f"bytes={half}-")


def wait_for_half(tiny: TinyCifar, data_dir: Path, process) -> int:
    """Until the habit "pause" has sent its half, and `process` has written it; its size."""
    half = len(tiny.archive) // 2
    while not (part_of(data_dir).exists() and part_of(data_dir).stat().st_size == half):
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"ended with {process.wait(0.02)}: {process.communicate()}")
    return half


def test_remains_of_a_killed_unpacking_are_cleared(tmp_path, tiny, server):
    (tmp_path / BASE).mkdir()
    (tmp_path / BASE / "unpacking").write_bytes(b"half")
    (tmp_path / BASE / "data_batch_1").write_bytes(tiny.files["data_batch_1"])
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert {path.name for path in (tmp_path / BASE).iterdir()} == set(tiny.files)


def test_two_processes_download_once(tmp_path, tiny, server, monkeypatch):
    script, data_dir = tmp_path / "fetch.py", tmp_path / "data"
    script.write_text(FETCH)
    process = run_script(tiny, tmp_path, script, data_dir, server.url("pause"))
    assert process.stderr.readline().startswith("downloading")
    said = []

    def say(line: str) -> None:
        said.append(line)
        server.go_on.set()  # we wait, so the other process may have the rest of the file

    monkeypatch.setattr(cifar10, "print_on_stderr", say)
    monkeypatch.setattr(cifar10, "unpack", None)  # the other process has done it
    fetch_cifar10(data_dir, [server.url("good")])
    assert said == [f"another process is fetching CIFAR-10 into {data_dir}: waiting for it"]
    assert "Traceback" not in process.communicate()[1] and process.returncode == 0
    assert_whole(data_dir, tiny)
    assert server.habits() == ["pause"] and server.sent == len(tiny.archive)


def test_killed_process_is_continued_by_another(tmp_path, tiny, server):
    script, data_dir = tmp_path / "fetch.py", tmp_path / "data"
    script.write_text(FETCH)
    process = run_script(tiny, tmp_path, script, data_dir, server.url("pause"))
    had = wait_for_half(tiny, data_dir, process)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.communicate()
    assert not (data_dir / cifar10.ARCHIVE_NAME).exists() and not (data_dir / BASE).exists()
    fetch_cifar10(data_dir, [server.url("good")])
    assert_whole(data_dir, tiny)
    assert server.asked[-1] == ("good", f"bytes={had}-")
