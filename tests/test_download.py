"""The download: what each fault of the network, the disk and the archive leads to.

The table of faults is in these tests' names. Each good end is checked with torchvision's own
CIFAR10 class; each bad end is one line that says what to do.
"""

import contextlib
import io
import os
import re
import signal
import socket
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

from support import download, mirrors, streams, transfer
from support.download import fetch_cifar10
from support.errors import InputError
from support.mirrors import Mirrors
from support.transfer import Transfer

tiny, server = cifar_server.tiny, cifar_server.server  # fixtures

FETCH = (
    "import sys; from support import download\ndownload.fetch_cifar10(sys.argv[1], sys.argv[2:])\n"
)
BASE = CIFAR10.base_folder


@pytest.fixture
def short(monkeypatch):
    """Time-outs for tests in which a server is silent."""
    monkeypatch.setattr(streams, "TIMEOUT_S", 0.6)
    monkeypatch.setattr(mirrors, "PATIENCE_S", 1.8)
    monkeypatch.setattr(mirrors, "PROBE_S", 0.3)


def assert_whole(data_dir: Path, tiny: TinyCifar) -> None:
    """torchvision opens it, and finds the pixels that were put in."""
    for train in (True, False):
        dataset = CIFAR10(data_dir, train=train, download=False)
        np.testing.assert_array_equal(dataset.data, tiny.images[train])
        assert dataset.targets == tiny.labels[train]
    names = {path.name for path in data_dir.iterdir()}
    assert names <= {BASE, download.ARCHIVE_NAME, f"{download.ARCHIVE_NAME}.lock"}


def error_of(data_dir: Path, *mirrors: str) -> str:
    """The line that the reader gets; nothing is left that could be taken for CIFAR-10."""
    with pytest.raises(InputError) as caught:
        fetch_cifar10(data_dir, mirrors)
    message = str(caught.value)
    assert message.isprintable()  # hence one line
    assert not (data_dir / BASE).exists() and not (data_dir / f"{BASE}.tmp").exists()
    return message


def part_of(data_dir: Path) -> Path:
    return data_dir / f"{download.ARCHIVE_NAME}.part"


# --- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("habit", ["good", "no_range", "redirect"])
def test_a_mirror_that_works(tmp_path, tiny, server, habit, capsys):
    fetch_cifar10(tmp_path / "new" / "folder", [server.url(habit)])
    assert_whole(tmp_path / "new" / "folder", tiny)
    size = f"{len(tiny.archive) / 2**20:.0f} MB"
    assert capsys.readouterr() == ("", f"downloading CIFAR-10 ({size}) from {server.url(habit)}\n")


def test_ten_cuts_cost_almost_nothing(tmp_path, tiny, server, capsys):
    fetch_cifar10(tmp_path, [server.url("cuts10")])
    assert_whole(tmp_path, tiny)
    assert len(server.asked) == 11
    assert server.sent <= 1.1 * len(tiny.archive)
    assert capsys.readouterr().err.count("continuing at") == 10


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
    assert str(tmp_path / download.ARCHIVE_NAME) in message and "--mirror" in message
    assert not (tmp_path / download.ARCHIVE_NAME).exists()


@pytest.mark.parametrize("habit", [*FAULTS, "no_range_half", "wrong_half", "other_place"])
def test_the_next_mirror_helps(tmp_path, tiny, server, habit):
    part_of(tmp_path).write_bytes(tiny.archive[:1000])
    fetch_cifar10(tmp_path, [server.url(habit), server.url("good")])
    assert_whole(tmp_path, tiny)


@pytest.mark.parametrize("habit", ["silent", "silent_body"])
def test_silence(tmp_path, tiny, server, short, habit):
    message = error_of(tmp_path, server.url(habit))
    assert "no answer in" in message or "timed out" in message
    fetch_cifar10(tmp_path, [server.url(habit), server.url("good")])
    assert_whole(tmp_path, tiny)


def test_silence_in_the_middle_is_continued(tmp_path, tiny, server, short):
    fetch_cifar10(tmp_path, [server.url("pause")])
    assert_whole(tmp_path, tiny)
    assert server.sent <= 1.1 * len(tiny.archive)


def test_ten_silent_mirrors_share_the_patience_of_three(tmp_path, tiny, short, monkeypatch):
    clock = [0.0]
    waited = []
    monkeypatch.setattr(transfer.time, "monotonic", lambda: clock[0])

    def silent(self: Transfer, url: str, seconds: float) -> int:
        waited.append(seconds)
        clock[0] += seconds
        self.mirrors.note_end(url, 0)
        return 0

    monkeypatch.setattr(Transfer, "choose", lambda self: None)
    monkeypatch.setattr(Transfer, "continue_from", silent)
    error_of(tmp_path, *(f"http://127.0.0.1/{n}" for n in range(10)))
    assert len(waited) == 10 and max(waited) <= streams.TIMEOUT_S
    assert sum(waited) == pytest.approx(mirrors.PATIENCE_S)


def test_ten_silent_mirrors_are_asked_once_and_together(tmp_path, server, short):
    urls = [server.url("silent") + f"?{n}" for n in range(10)]
    message = error_of(tmp_path, *urls)
    assert all(url in message for url in urls) and message.count("timed out") == 1
    assert server.habits() == ["silent"] * 10


def test_patience_ends_before_the_last_mirror(tmp_path, server, short, monkeypatch):
    monkeypatch.setattr(mirrors, "PATIENCE_S", 0.5)  # less than the time-out of one mirror
    monkeypatch.setattr(Transfer, "choose", lambda self: None)
    message = error_of(tmp_path, server.url("trickle"), server.url("good"))
    assert f"{server.url('good')}: not asked after" in message
    assert server.habits() == ["trickle"]


def test_a_slow_mirror_is_not_given_up(tmp_path, tiny, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(transfer.time, "monotonic", lambda: clock[0])

    def slow(self: Transfer, url: str, seconds: float) -> int:
        with self.part.open("ab") as file:
            received = file.write(tiny.archive[self.position :][:20_000])
        self.position += received
        self.mirrors.note_end(url, received)
        clock[0] += 0.9 * mirrors.PATIENCE_S
        return received

    monkeypatch.setattr(Transfer, "continue_from", slow)
    fetch_cifar10(tmp_path, ["http://127.0.0.1/"])
    assert_whole(tmp_path, tiny)
    assert clock[0] > 5 * mirrors.PATIENCE_S


def test_the_real_constants_end_within_30_seconds():
    # The last mirror may answer just in time, and then stay silent for one more time-out.
    assert mirrors.PATIENCE_S + streams.TIMEOUT_S < 30


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
    assert "no answer in" in error_of(tmp_path, "http://example.invalid/")
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
    monkeypatch.setattr(transfer, "WINDOW_S", 0.2)
    monkeypatch.setattr(mirrors, "SLOW_S", 0.5)
    monkeypatch.setattr(mirrors, "PROBE_S", 0.3)


@pytest.fixture
def at_work(monkeypatch):
    """The number of connections at work beside each new one."""
    beside, opened, init = [], [], streams.Stream.__init__

    def counted(self, *args, **kwargs):
        beside.append(sum(not (stream.is_closed or stream.is_done) for stream in opened))
        init(self, *args, **kwargs)
        opened.append(self)

    monkeypatch.setattr(streams.Stream, "__init__", counted)
    return beside


def ask_in_order(monkeypatch):
    """Without the comparison at the start: the first mirror goes on."""
    monkeypatch.setattr(Transfer, "choose", lambda self: None)


@pytest.mark.parametrize("is_named", [False, True])
def test_the_fastest_mirror_is_found_at_once(
    tmp_path, tiny, server, quick, monkeypatch, capsys, is_named
):
    slow, fast = server.url("rate2"), server.url(NO_LIMIT)
    monkeypatch.setattr(download, "BUILT_IN_MIRRORS", (fast,) if is_named else (slow, fast))
    fetch_cifar10(tmp_path, [slow] if is_named else [])
    assert_whole(tmp_path, tiny)
    assert server.habits()[2:] == [NO_LIMIT] and server.sent_by[NO_LIMIT] == len(tiny.archive)
    assert server.sent_by["rate2"] <= cifar_server.PROBE_BYTES
    host = f"127.0.0.1:{server.server_port}"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "CIFAR-10 (0 MB): asking 2 addresses at once"
    if is_named:
        pattern = (
            rf"{re.escape(slow)}: [\d.]+ kB/s, left for {host}: [\d.]+ [kM]B/s, at most \d+ s left"
        )
    else:
        pattern = (
            rf"downloading CIFAR-10 \(0 MB\) from {host} \(the fastest\): "
            r"[\d.]+ [kM]B/s, at most \d+ s left"
        )
    assert len(said) == 2 and re.fullmatch(pattern, said[1])


PROBES = {  # name of a mirror: speed in MB/s, whether its probe is complete
    "named slow": (0.08, False),
    "named": (20, True),
    "named too": (50, True),
    "silent": (0, False),
    "slow": (0.1, False),
    "fast": (40, True),
    "faster": (50, True),
}


@pytest.mark.parametrize(
    ("asked", "chosen", "then"),
    [
        (["slow", "fast", "faster", "silent"], "faster", ["fast", "slow", "silent"]),
        (["named", "fast", "faster"], "named", ["faster", "fast"]),
        (["named", "named too", "faster"], "named", ["named too", "faster"]),
        (["named slow", "fast"], "fast", ["named slow"]),
        (["named slow", "slow"], "named slow", ["slow"]),
        (["silent", "slow"], "slow", ["silent"]),
    ],
)
def test_who_is_chosen(monkeypatch, asked, chosen, then):
    def probe(urls: list[str], start: int, size: int) -> list[SimpleNamespace]:
        found = []
        for url in urls:
            speed, complete = PROBES[url]
            received = mirrors.PROBE_BYTES if complete else int(100_000 * speed)
            state = {"received": received, "is_complete": complete, "speed": speed * 1e6}
            buffer = bytes(received)
            found.append(SimpleNamespace(url=url, start=start, fault="", buffer=buffer, **state))
        return found

    monkeypatch.setattr(mirrors, "probe", probe)
    known = Mirrors(asked, [url for url in asked if url.startswith("named")])
    assert known.choose(0, 2**30).url == chosen
    assert known.waiting == [chosen, *then]


def test_a_named_mirror_that_takes_no_time_is_kept(tmp_path, tiny, server, monkeypatch):
    monkeypatch.setattr(mirrors, "MUCH_FASTER", 1e-6)  # however fast the others are
    monkeypatch.setattr(download, "BUILT_IN_MIRRORS", (server.url(NO_LIMIT),))
    fetch_cifar10(tmp_path, [server.url("good")])
    assert server.habits()[2:] == ["good"]


@pytest.mark.parametrize("dead", [[], ["silent", "404"]])
def test_a_mirror_that_becomes_slow_is_left(
    tmp_path, tiny, server, quick, at_work, monkeypatch, capsys, dead
):
    ask_in_order(monkeypatch)
    drops = "rate400000-5"
    fetch_cifar10(tmp_path, [server.url(habit) for habit in [drops, *dead, NO_LIMIT]])
    assert_whole(tmp_path, tiny)
    assert server.habits() == [drops, *dead, NO_LIMIT, NO_LIMIT]
    assert max(at_work) == 1  # hence two at once
    assert server.sent <= len(tiny.archive) + 2 * cifar_server.PROBE_BYTES
    assert server.sent_by[drops] < 0.6 * len(tiny.archive)
    pattern = (
        rf"{re.escape(server.url(drops))}: .* kB/s, left for {server.url(NO_LIMIT)}: .*B/s, .*"
    )
    assert re.fullmatch(pattern, capsys.readouterr().err.splitlines()[-1])


def test_a_mirror_that_is_not_faster_does_not_help(tmp_path, tiny, server, quick, monkeypatch):
    ask_in_order(monkeypatch)
    said = []

    def say(line: str) -> None:
        said.append(line)
        if "meanwhile" in line:  # enough seen
            server.go_on.set()

    monkeypatch.setattr(transfer, "say", say)
    monkeypatch.setattr(transfer, "LONG_S", 1.0)
    fetch_cifar10(tmp_path, [server.url("rate20"), server.url("rate8")])
    assert_whole(tmp_path, tiny)
    assert server.habits() == ["rate20", "rate8"]  # tried once, and not again
    assert server.sent <= len(tiny.archive) + cifar_server.PROBE_BYTES
    start, hint = said
    assert re.fullmatch(
        r"no mirror is faster than [\d.]+ kB/s: \d+ s to go; meanwhile, "
        r"in a second terminal: python train_cifar.py --data shapes",
        hint,
    )


def test_a_probe_that_promises_too_much_is_not_believed_twice(
    tmp_path, tiny, server, quick, monkeypatch
):
    ask_in_order(monkeypatch)
    fetch_cifar10(tmp_path, map(server.url, ["rate10", "probes_only", NO_LIMIT]))
    assert_whole(tmp_path, tiny)
    probes = ["probes_only", "probes_only", "rate10", NO_LIMIT]
    assert server.habits() == ["rate10", *probes, NO_LIMIT]


@pytest.mark.parametrize("habit", ["trickle", "one_byte"])
@pytest.mark.parametrize("compared", [False, True])
def test_a_mirror_that_trickles_is_left(
    tmp_path, tiny, server, quick, short, monkeypatch, habit, compared
):
    if not compared:
        ask_in_order(monkeypatch)
    fetch_cifar10(tmp_path, [server.url(habit), server.url("good")])
    assert_whole(tmp_path, tiny)
    assert server.habits().count(habit) == 1


def test_a_mirror_that_only_trickles_is_no_mirror(tmp_path, server, short):
    assert "timed out" in error_of(tmp_path, server.url("trickle"))
    assert 1 <= len(server.asked) <= mirrors.PATIENCE_S / streams.TIMEOUT_S + 1
    server.asked.clear()
    assert "1 bytes" in error_of(tmp_path, server.url("one_byte"))
    assert len(server.asked) == mirrors.POOR


def test_a_dead_address_costs_nobody_anything(tmp_path, tiny, server, at_work):
    urls = [server.url(habit) for habit in ["silent", "silent_body", "404", "hangs_up", "good"]]
    fetch_cifar10(tmp_path, urls)
    assert_whole(tmp_path, tiny)
    assert server.habits()[5:] == ["good"] and server.sent == len(tiny.archive)
    assert at_work[5:] == [0]
    for url in urls[:2]:  # nobody has waited for them: they have still time to answer
        assert f"mirror {url}" in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("others", [[NO_LIMIT, "good"], ["cuts11", "good"]])
def test_wrong_bytes_from_one_of_three_cost_no_more_than_its_probe(
    tmp_path, tiny, server, others, capsys
):
    fetch_cifar10(tmp_path, [server.url(habit) for habit in ["wrong", *others]])
    assert_whole(tmp_path, tiny)
    assert server.habits().count("wrong") == 1
    assert server.sent <= len(tiny.archive) + 3 * cifar_server.PROBE_BYTES
    assert f"{server.url('wrong')}: not the bytes that others send" in capsys.readouterr().err


def test_of_two_mirrors_the_wrong_one_is_found(tmp_path, tiny, server, monkeypatch):
    ask_in_order(monkeypatch)
    fetch_cifar10(tmp_path, [server.url(habit) for habit in ["half", "wrong", "good"]])
    assert_whole(tmp_path, tiny)
    # Half, and no more; the rest, but wrong. Then all from one: those that have not failed first.
    assert server.habits() == ["half", "half", "wrong", "wrong", "good"]


def test_control_characters_of_a_server_reach_nobody(tmp_path, tiny, server, monkeypatch, capsys):
    ask_in_order(monkeypatch)
    fetch_cifar10(tmp_path, [server.url(habit) for habit in ["rude", "rude_size", "good"]])
    said = capsys.readouterr().err
    assert "Not here" in said and "[2J" in said
    assert all(line.isprintable() for line in said.splitlines())


def test_a_failure_is_said_once_and_faults_are_gathered(tmp_path, server, capsys, monkeypatch):
    monkeypatch.setattr(download, "BUILT_IN_MIRRORS", (server.url("404"), server.url("404") + "?"))
    message = error_of(tmp_path, server.url("500"))
    host = f"127.0.0.1:{server.server_port}"
    assert f"{host}, {host}: HTTP Error 404: Not Found" in message
    assert f"{server.url('500')}: HTTP Error 500" in message
    assert capsys.readouterr().err == "CIFAR-10 (0 MB): asking 3 addresses at once\n"


@pytest.mark.parametrize("speed", [80_000, 999, 1_200_000, 12_345_678])
def test_speeds_and_times_are_short(speed):
    shown = {80_000: "80 kB/s", 999: "1.0 kB/s", 1_200_000: "1.2 MB/s", 12_345_678: "12 MB/s"}
    assert transfer.per_second(speed) == shown[speed]
    assert [transfer.duration(s) for s in (0.1, 14, 2130, 9000)] == [
        "1 s",
        "14 s",
        "36 min",
        "2.5 h",
    ]


# --- what is left behind --------------------------------------------------------------------------


def test_every_response_is_closed(tmp_path, server, short, monkeypatch):
    """Python 3.14 warns of those that are not, when it happens to find them."""
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
    for target in "http://[1", "file:///x", server.url("404"):
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


def test_order_of_mirrors(tmp_path, server, monkeypatch):
    monkeypatch.setenv("CIFAR10_MIRROR", f"{server.url('404')} {server.url('500')}")
    monkeypatch.setattr(download, "BUILT_IN_MIRRORS", (server.url("503"), server.url("cuts1")))
    fetch_cifar10(tmp_path, [server.url("page"), server.url("half")])
    first, then = server.habits()[:6], server.habits()[6:]
    assert sorted(first) == ["404", "500", "503", "cuts1", "half", "page"]  # all together
    # "half" was asked for by name. It is asked again at once, because it brought something.
    assert then == ["half", "half", "cuts1"]


def test_a_mirror_may_be_a_folder(tmp_path, tiny, server):
    fetch_cifar10(tmp_path, [server.url("good").removesuffix(download.ARCHIVE_NAME)])
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
        urls = download.mirror_urls(texts)
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


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
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


def test_files_on_disk_are_used_without_network(tmp_path, tiny, server):
    (tmp_path / BASE).mkdir()
    for name, content in tiny.files.items():
        (tmp_path / BASE / name).write_bytes(content)
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert not server.asked
    assert [path.name for path in tmp_path.iterdir()] == [BASE]  # and without a trace


def test_archive_on_disk_is_used_without_network(tmp_path, tiny, server):
    (tmp_path / download.ARCHIVE_NAME).write_bytes(tiny.archive)
    fetch_cifar10(str(tmp_path), [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert not server.asked


@pytest.mark.parametrize("size", [0, 5000, -1])
def test_wrong_archive_on_disk_is_named_and_kept(tmp_path, tiny, server, size):
    archive = tmp_path / download.ARCHIVE_NAME
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


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ESCAPES = {
    "dots": ("../evil", b"evil"),
    "dots inside": (f"{BASE}/../../evil", b"evil"),
    "absolute": ("{outside}/evil", b"evil"),
    "beside": ("evil", b"evil"),
    "symbolic link": (link(f"{BASE}/evil", tarfile.SYMTYPE, "../../evil"), b""),
    "link inside": (link(f"{BASE}/evil", tarfile.SYMTYPE, "test_batch"), b""),
    "hard link": (link(f"{BASE}/evil", tarfile.LNKTYPE, "../../secret"), b""),
    "pipe": (link(f"{BASE}/evil", tarfile.FIFOTYPE, ""), b""),
    "device": (link(f"{BASE}/evil", tarfile.CHRTYPE, ""), b""),
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_archive_that_writes_outside(tmp_path, tiny, server, monkeypatch, escape):
    name, content = ESCAPES[escape]
    if isinstance(name, str):
        name = name.format(outside=tmp_path)
    members = [(f"{BASE}/{name}", content) for name, content in tiny.files.items()]
    tiny.archive = server.archive = tar_gz([*members[:3], (name, content), *members[3:]])
    pretend(monkeypatch, tiny.constants())
    (tmp_path / "secret").write_text("secret")
    data_dir = tmp_path / "data"
    message = error_of(data_dir, server.url("good"))
    assert "evil" in message and str(data_dir / download.ARCHIVE_NAME) in message
    assert not list(tmp_path.rglob("*evil*"))
    assert (tmp_path / "secret").stat().st_nlink == 1


@pytest.mark.parametrize("content", ["no tar", "empty tar", "other files"])
def test_archive_that_is_something_else(tmp_path, tiny, server, monkeypatch, content):
    other = [(f"{BASE}/{name}", b"other") for name in tiny.files]
    tiny.archive = server.archive = {
        "no tar": b"no tar",
        "empty tar": tar_gz([]),
        "other files": tar_gz(other),
    }[content]
    pretend(monkeypatch, tiny.constants())
    assert str(tmp_path / download.ARCHIVE_NAME) in error_of(tmp_path, server.url("good"))


def test_python_too_old_to_unpack(tmp_path, tiny, server, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    assert "update" in error_of(tmp_path, server.url("good"))


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
        (tmp_path / download.ARCHIVE_NAME).write_bytes(tiny.archive)
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


def test_ctrl_c_keeps_the_part(tmp_path, tiny, server, monkeypatch):
    blocks = iter([(0, tiny.archive[:50_000])])

    def interrupted(stream):
        for block in blocks:
            return block
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(streams.Stream, "take", interrupted)
        fetch_cifar10(tmp_path, [server.url("good")])
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert server.asked[-1] == ("good", "bytes=50000-")


def test_remains_of_a_killed_unpacking_are_cleared(tmp_path, tiny, server):
    (tmp_path / f"{BASE}.tmp" / BASE).mkdir(parents=True)
    (tmp_path / f"{BASE}.tmp" / BASE / "half a file").write_text("half")
    fetch_cifar10(tmp_path, [server.url("good")])
    assert_whole(tmp_path, tiny)
    assert not (tmp_path / BASE / "half a file").exists()


def test_two_processes_download_once(tmp_path, tiny, server, monkeypatch):
    script, data_dir = tmp_path / "fetch.py", tmp_path / "data"
    script.write_text(FETCH)
    process = run_script(tiny, tmp_path, script, data_dir, server.url("pause"))
    assert process.stderr.readline().startswith("downloading")
    said = []

    def say(line: str) -> None:
        said.append(line)
        server.go_on.set()  # we wait, so the other process may have the rest of the file

    monkeypatch.setattr(download, "say", say)
    monkeypatch.setattr(download, "unpack", None)  # the other process has done it
    fetch_cifar10(data_dir, [server.url("good")])
    assert said == [f"another process is fetching CIFAR-10 into {data_dir}: waiting for it"]
    assert process.communicate() == ("", "") and process.returncode == 0
    assert_whole(data_dir, tiny)
    assert server.habits() == ["pause"] and server.sent == len(tiny.archive)


def test_killed_process_is_continued_by_another(tmp_path, tiny, server):
    script, data_dir = tmp_path / "fetch.py", tmp_path / "data"
    script.write_text(FETCH)
    process = run_script(tiny, tmp_path, script, data_dir, server.url("pause"))
    assert process.stderr.readline().startswith("downloading")
    on_disk = len(tiny.archive) // 2 - io.DEFAULT_BUFFER_SIZE
    while download.size_of(part_of(data_dir)) < on_disk:
        assert process.poll() is None
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.communicate()
    had = download.size_of(part_of(data_dir))
    assert not (data_dir / download.ARCHIVE_NAME).exists() and not (data_dir / BASE).exists()
    fetch_cifar10(data_dir, [server.url("good")])
    assert_whole(data_dir, tiny)
    assert server.asked[-1] == ("good", f"bytes={had}-") and had >= on_disk
