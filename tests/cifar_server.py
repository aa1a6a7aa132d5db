"""A small stand-in for CIFAR-10's archive, and a server on this machine with every bad habit.

A test module gets the fixtures with `tiny, server = cifar_server.tiny, cifar_server.server`.
"""

import functools
import hashlib
import io
import pickle
import re
import signal
import tarfile
import threading
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from support import cifar10, mirrors

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
TRAIN_FILES = [f"data_batch_{n}" for n in range(1, 6)]


def tar_gz(members: list[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    """A .tar.gz of (name, or ready header; content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def put_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@dataclass
class TinyCifar:
    """An archive in CIFAR-10's layout, and the pixels and labels that are in it."""

    archive: bytes  # about 180,000
    files: dict[str, bytes]  # the unpacked files by name
    images: dict[bool, np.ndarray]  # train? -> (N, 32, 32, 3) uint8
    labels: dict[bool, list[int]]

    def put(self, patch: pytest.MonkeyPatch) -> None:
        """Put it in the place of the real CIFAR-10, without mirrors, in this process."""
        sums = {name: hashlib.md5(content).hexdigest() for name, content in self.files.items()}
        meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
        patch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in TRAIN_FILES])
        patch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
        patch.setattr(CIFAR10, "meta", meta)
        patch.setattr(cifar10, "ARCHIVE_SIZE", len(self.archive))
        patch.setattr(cifar10, "ARCHIVE_MD5", hashlib.md5(self.archive).hexdigest())
        patch.setattr(cifar10, "BUILT_IN_MIRRORS", ())
        patch.setattr(mirrors, "PROBE_BYTES", 4096)
        patch.setattr(mirrors, "ENOUGH", 4096)
        patch.setattr(mirrors, "GRACE_S", 0.1)


@functools.cache
def make_tiny() -> TinyCifar:
    """Noise, ten images in each of the six batch files."""
    rng = np.random.default_rng(0)
    files, images, labels = {}, {}, {}
    for train, names in ((True, TRAIN_FILES), (False, ["test_batch"])):
        batches = rng.integers(0, 256, (len(names), 10, 3, 32, 32), dtype=np.uint8)
        images[train] = batches.transpose(0, 1, 3, 4, 2).reshape(-1, 32, 32, 3)
        labels[train] = list(range(10)) * len(names)
        for name, batch in zip(names, batches, strict=True):
            rows = batch.reshape(10, 3072)
            files[name] = pickle.dumps({"data": rows, "labels": list(range(10))})
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
        self.habits: list[str] = []  # who was asked, in order
        self.ranges: list[str] = []  # and for what
        self.sent: list[int] = []  # bytes of bodies, piece by piece
        self.go_on = threading.Event()  # lifts every limit, ends every silence
        self.redirect_to = self.url("good")

    def url(self, habit: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{habit}/{cifar10.ARCHIVE_NAME}"

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no news."""


NO_HTTP = {
    "hangs_up": b"",
    "mail": b"220 this is a mail server\r\n" * 3,
    "rude": b"HTTP/1.0 404 \x1b[31mNot\x07 \x9bhere\r\n\r\n",
}


class Handler(BaseHTTPRequestHandler):
    """Answers as the habit in the path says."""

    server: Server

    def do_GET(self) -> None:
        server, habit = self.server, self.path.split("/")[1]
        server.habits.append(habit)
        server.ranges.append(self.headers["Range"])
        self.start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        if habit in NO_HTTP:
            self.wfile.write(NO_HTTP[habit])
        elif habit == "silent":
            server.go_on.wait()
        elif habit == "late":  # later than others show what they can
            server.go_on.wait(2 * mirrors.PROBE_S)
            self.answer("good")
        elif habit == "pause":  # silent in the middle, but only the first time
            self.throttled(1e6, 1e6 if self.start else 0)
        elif habit.startswith("rate"):  # rate80: 80 kB/s; rate80-10: 10 from the middle on
            rate, _, later = habit.removeprefix("rate").partition("-")
            self.throttled(float(rate), float(later or rate))
        else:
            self.answer(habit)

    def answer(self, habit: str) -> None:
        """One of the habits that need no time."""
        archive, start = self.server.archive, self.start
        size, rest, half = len(archive), archive[start:], archive[start : len(archive) // 2]
        span = {"Content-Range": f"bytes {start}-{size - 1}/{size}"}
        part = {**span, "Content-Length": len(rest)}
        whole = {"Content-Length": size}
        chunked = {**span, "Transfer-Encoding": "chunked"}
        status, headers, body = {
            "good": (206, part, rest),
            "surplus": (206, span, rest + archive),
            "twelfths": (206, part, rest[: size // 12 + 1]),
            "one_byte": (206, part, rest[:1]),
            "wrong": (206, part, bytes(len(rest))),
            "half_wrong": (206, part, bytes(len(half))),
            "no_range": (200, whole, archive),
            "no_range_half": (200, whole, archive[: size // 2]),
            "other_place": (206, {"Content-Range": f"bytes 0-{size - 1}/{size}"}, archive),
            "other_size": (206, {"Content-Range": "bytes 0-9/10"}, archive[:10]),
            "broken_chunks": (206, chunked, b"%x\r\n" % len(rest) + half),  # one, broken off
            "page": (200, {"Content-Type": "text/html"}, b"<html>Please log in.</html>"),
            "redirect": (302, {"Location": self.server.redirect_to}, b""),
            "404": (404, {}, b""),
        }[habit]
        self.head(status, headers)
        self.body(body)

    def throttled(self, rate: float, later: float) -> None:
        """So many kB/s, and `later` from the middle on."""
        archive, start = self.server.archive, self.start
        middle = len(archive) // 2
        self.head(206, {"Content-Range": f"bytes {start}-{len(archive) - 1}/{len(archive)}"})
        while start < len(archive):
            end = min(start + int(20 * rate), middle) if start < middle else start + int(20 * later)
            self.body(archive[start:end])
            start = end
            if self.server.go_on.wait(0.02):
                rate = later = 1e6

    def head(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def body(self, content: bytes) -> None:
        self.wfile.write(content)
        self.server.sent.append(len(content))

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> TinyCifar:
    """A tiny CIFAR-10, put in the place of the real one in this process."""
    cifar = replace(make_tiny())
    cifar.put(monkeypatch)
    monkeypatch.delenv("CIFAR10_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return cifar


@pytest.fixture
def server(tiny: TinyCifar):
    """The server of `tiny`'s archive; a test that waits for it for ever fails."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("the download does not end"))
    signal.alarm(15)  # seconds; it takes one or two
    with Server(tiny.archive) as server:
        threading.Thread(target=server.serve_forever, args=[0.01]).start()
        yield server
        signal.alarm(0)
        server.go_on.set()
        server.shutdown()
    for thread in threading.enumerate():
        if thread.name.startswith("mirror"):  # left behind, and now without a server
            thread.join(5)
