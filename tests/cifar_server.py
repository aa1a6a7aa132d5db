"""A small stand-in for CIFAR-10's archive, and a server on this machine with every bad habit.

A test module gets the fixtures with `tiny, server = cifar_server.tiny, cifar_server.server`.
"""

import hashlib
import io
import pickle
import re
import tarfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from support import cifar10, mirrors

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
PROBE_BYTES = 4096  # the tiny archive has about 180,000
TRAIN_FILES = [f"data_batch_{n}" for n in range(1, 6)]
PER_FILE = 10  # images: 30 kB


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def tar_gz(members: list[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    """A .tar.gz of (name, or ready header; content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@dataclass
class TinyCifar:
    """An archive in CIFAR-10's layout, and the pixels and labels that are in it."""

    archive: bytes
    files: dict[str, bytes]  # the unpacked files by name
    images: dict[bool, np.ndarray]  # train? -> (N, 32, 32, 3) uint8
    labels: dict[bool, list[int]]

    def put(self, patch: pytest.MonkeyPatch) -> None:
        """Put it in the place of the real CIFAR-10, without mirrors, in this process."""
        sums = [[name, md5(content)] for name, content in self.files.items()]
        train = [pair for pair in sums if pair[0] in TRAIN_FILES]
        test = [pair for pair in sums if pair[0] == "test_batch"]
        meta = {"filename": "batches.meta", "key": "label_names", "md5": dict(sums)["batches.meta"]}
        for owner, values in {
            cifar10: {"ARCHIVE_SIZE": len(self.archive), "ARCHIVE_MD5": md5(self.archive)},
            mirrors: {"PROBE_BYTES": PROBE_BYTES, "ENOUGH": PROBE_BYTES, "GRACE_S": 0.1},
            CIFAR10: {"train_list": train, "test_list": test, "meta": meta},
        }.items():
            for name, value in values.items():
                patch.setattr(owner, name, value)
        patch.setattr(cifar10, "BUILT_IN_MIRRORS", ())


def make_tiny() -> TinyCifar:
    """Noise images, as many in each of the six batch files."""
    rng = np.random.default_rng(0)
    files, images, labels = {}, {}, {}
    for train, names in ((True, TRAIN_FILES), (False, ["test_batch"])):
        count = PER_FILE * len(names)
        images[train] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels[train] = [n % 10 for n in range(count)]
        for n, name in enumerate(names):
            some = slice(n * PER_FILE, (n + 1) * PER_FILE)
            rows = images[train][some].transpose(0, 3, 1, 2).reshape(PER_FILE, 3072)
            files[name] = pickle.dumps({"data": rows, "labels": labels[train][some]})
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES, "num_vis": 3072})
    members = [(f"{CIFAR10.base_folder}/{name}", content) for name, content in files.items()]
    return TinyCifar(tar_gz(members), files, images, labels)


class Server(ThreadingHTTPServer):
    """Serves `archive` under /HABIT/cifar-10-python.tar.gz; see Handler for the habits."""

    daemon_threads = True
    request_queue_size = 20

    def __init__(self, archive: bytes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive = archive
        self.asked: list[tuple[str, str]] = []  # (habit, Range header) of every request
        self.sent_by: Counter[str] = Counter()  # bytes of bodies, by habit
        self.counting = threading.Lock()
        self.go_on = threading.Event()  # ends the silence of the silent habits
        self.redirect_to = ""

    def url(self, habit: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{habit}/{cifar10.ARCHIVE_NAME}"

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return self.sent_by.total()

    def habits(self) -> list[str]:
        """Who was asked, in order."""
        return [habit for habit, _ in self.asked]

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    """One method per habit."""

    server: Server

    def do_GET(self) -> None:
        self.habit = habit = self.path.split("/")[1]
        asked_before = self.server.habits().count(habit)
        self.server.asked.append((habit, self.headers.get("Range", "")))
        self.archive, self.size = self.server.archive, len(self.server.archive)
        self.middle = self.size // 2
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.start = int(span[1]) if span else 0  # the first byte that the client wants
        if habit.isdigit():
            self.send_error(int(habit))
        elif habit.startswith("cuts"):  # cuts10: breaks off ten times
            self.good(self.size // 12 if asked_before < int(habit[4:]) else self.size)
        elif habit.startswith("rate"):  # rate80: 80 kB/s; rate80-10: 10 from the middle on
            self.throttled(*map(int, habit[4:].split("-")))
        else:
            getattr(self, habit)()

    def log_message(self, *args) -> None:
        pass

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, content: bytes) -> None:
        self.wfile.write(content)
        with self.server.counting:
            self.server.sent_by[self.habit] += len(content)

    def head_206(self, start: int) -> None:
        span = f"bytes {start}-{self.size - 1}/{self.size}"
        self.head(206, Content_Length=self.size - start, Content_Range=span)

    def good(self, most: int = 2**30, content: bytes = b"") -> None:
        """At most so many bytes; the client hears of a length that includes the rest."""
        if self.start >= self.size:
            return self.send_error(416)
        self.head_206(self.start)
        self.body((content or self.archive)[self.start :][:most])

    def throttled(self, rate: int, then: int = 0) -> None:
        """So many kB/s, and `then` from the middle on; without limit after `go_on`."""
        start, due = self.start, time.monotonic()
        self.head_206(start)
        while start < self.size and not self.server.go_on.wait(max(0, due - time.monotonic())):
            is_late = then and start >= self.middle
            end = min(start + 20 * (then if is_late else rate), self.size)
            if start < self.middle < end:
                end = self.middle
            self.body(self.archive[start:end])
            start, due = end, due + 0.02
        self.body(self.archive[start:])

    def trickle(self) -> None:
        """A byte now and then."""
        self.head_206(self.start)
        for place in range(self.start, self.size):
            self.server.go_on.wait(0.02)
            self.body(self.archive[place : place + 1])

    def late(self) -> None:
        """Answers later than others show what they can."""
        self.server.go_on.wait(2 * mirrors.PROBE_S)
        self.good()

    def one_byte(self) -> None:
        """One byte for each connection."""
        self.good(most=1)

    def rude(self) -> None:
        self.wfile.write(b"HTTP/1.0 404 \x1b[31mNot\x07 \x9bhere\r\n\r\n")

    def half(self) -> None:
        """Stops in the middle, and never has more."""
        self.good(most=max(0, self.middle - self.start))

    def no_range(self) -> None:
        self.head(200, Content_Length=self.size)
        self.body(self.archive)

    def no_range_half(self) -> None:
        self.head(200, Content_Length=self.size)
        self.body(self.archive[: self.middle])

    def wrong(self) -> None:
        self.good(content=bytes(self.size))

    def wrong_half(self) -> None:
        self.good(most=max(0, self.middle - self.start), content=bytes(self.size))

    def silent(self) -> None:
        self.server.go_on.wait()

    def silent_body(self) -> None:
        self.head_206(self.start)
        self.server.go_on.wait()

    def pause(self) -> None:
        """Half of the archive, then silence until `go_on`, then the rest."""
        self.head_206(self.start)
        if self.start < self.middle:
            self.body(self.archive[self.start : self.middle])
            self.server.go_on.wait()
        self.body(self.archive[max(self.middle, self.start) :])

    def page(self) -> None:
        self.head(200, Content_Type="text/html")
        self.body(b"<html>Please log in.</html>")

    def other_place(self) -> None:
        """206, but from the beginning, whatever was asked for."""
        self.head_206(0)
        self.body(self.archive)

    def other_size(self) -> None:
        self.head(206, Content_Length=10, Content_Range="bytes 0-9/10")
        self.body(b"0123456789")

    def endless(self) -> None:
        self.head(206, Content_Range=f"bytes {self.start}-{self.size - 1}/{self.size}")
        while True:
            self.body(b"too much" * 1000)

    def broken_chunks(self) -> None:
        """The archive as one chunk, broken off in its middle."""
        span = f"bytes {self.start}-{self.size - 1}/{self.size}"
        self.head(206, Transfer_Encoding="chunked", Content_Range=span)
        self.body(b"%x\r\n" % (self.size - self.start) + self.archive[self.start : self.middle])

    def no_http(self) -> None:
        self.wfile.write(b"220 this is a mail server\r\n" * 3)

    def hangs_up(self) -> None:
        pass

    def redirect(self) -> None:
        self.head(302, Location=self.server.redirect_to or self.server.url("good"))

    def loop(self) -> None:
        self.head(302, Location=self.server.url("loop"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> TinyCifar:
    """A tiny CIFAR-10, put in the place of the real one in this process."""
    cifar = make_tiny()
    cifar.put(monkeypatch)
    monkeypatch.delenv("CIFAR10_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return cifar


@pytest.fixture
def server(tiny: TinyCifar):
    """The server of `tiny`'s archive."""
    server = Server(tiny.archive)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()
    for thread in threading.enumerate():
        if thread.name.startswith("mirror"):  # left behind, and now without a server
            thread.join(5)
