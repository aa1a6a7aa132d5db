"""A small stand-in for CIFAR-10's archive, and a server on this machine with every bad habit.

For tests of the download and of the command line. A test module gets the fixtures with
`tiny, server = cifar_server.tiny, cifar_server.server`; `run_script` runs a script in a process of
its own, with `tiny` in the place of the real CIFAR-10 and no built-in mirrors.
"""

import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from support import cifar10, mirrors

ROOT = Path(__file__).resolve().parent.parent
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
PROBE_BYTES = 4096  # the tiny archive has about 180,000
TRAIN_FILES = [f"data_batch_{n}" for n in range(1, 6)]

# Runs SCRIPT with the constants of a JSON file: run_tiny.py CONSTANTS SCRIPT ARGUMENT...
RUN_TINY = """\
import json, pathlib, runpy, sys
constants, script, *arguments = sys.argv[1:]
sys.path.insert(0, str(pathlib.Path(script).resolve().parent))
sys.path.insert(0, {root!r})
from torchvision.datasets import CIFAR10
from support import cifar10, mirrors
owners = {{"cifar10": cifar10, "mirrors": mirrors, "CIFAR10": CIFAR10}}
for owner, values in json.loads(pathlib.Path(constants).read_text()).items():
    for name, value in values.items():
        setattr(owners[owner], name, value)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


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

    def constants(self) -> dict[str, dict]:
        """What stands in `cifar10` and `CIFAR10` for the real archive."""
        sums = [[name, md5(content)] for name, content in self.files.items()]
        return {
            "cifar10": {
                "ARCHIVE_SIZE": len(self.archive),
                "ARCHIVE_MD5": md5(self.archive),
                "BUILT_IN_MIRRORS": [],
            },
            "mirrors": {"PROBE_BYTES": PROBE_BYTES, "ENOUGH": PROBE_BYTES, "GRACE_S": 0.1},
            "CIFAR10": {
                "train_list": [pair for pair in sums if pair[0] in TRAIN_FILES],
                "test_list": [pair for pair in sums if pair[0] == "test_batch"],
                "meta": {
                    "filename": "batches.meta",
                    "key": "label_names",
                    "md5": md5(self.files["batches.meta"]),
                },
            },
        }


def make_tiny(per_file: int = 10) -> TinyCifar:
    """Noise images, `per_file` in each of the six batch files (30 kB per file at 10)."""
    rng = np.random.default_rng(0)
    files, images, labels = {}, {}, {}
    for train, names in ((True, TRAIN_FILES), (False, ["test_batch"])):
        count = per_file * len(names)
        images[train] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels[train] = [n % 10 for n in range(count)]
        for n, name in enumerate(names):
            some = slice(n * per_file, (n + 1) * per_file)
            rows = images[train][some].transpose(0, 3, 1, 2).reshape(per_file, 3072)
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
        if habit.isdigit():
            self.send_error(int(habit))
        elif habit.startswith("cuts"):  # cuts10: breaks off ten times
            self.good(stop_after=len(self.server.archive) // 12, cut=asked_before < int(habit[4:]))
        elif habit.startswith("rate"):  # rate80: 80 kB/s; rate80-10: 10 from the middle on
            self.throttled(*map(int, habit[4:].split("-")))
        else:
            getattr(self, habit)()

    def log_message(self, *args) -> None:
        pass

    def start(self) -> int:
        """The first byte that the client wants."""
        return int(re.match(r"bytes=(\d+)-|$", self.headers.get("Range", ""))[1] or 0)

    def stop(self) -> int:
        """The byte after the last one that the client wants."""
        last = re.fullmatch(r"bytes=\d+-(\d*)", self.headers.get("Range", ""))
        return int(last[1]) + 1 if last and last[1] else len(self.server.archive)

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
        size, stop = len(self.server.archive), self.stop()
        self.head(
            206, Content_Length=stop - start, Content_Range=f"bytes {start}-{stop - 1}/{size}"
        )

    def good(self, stop_after: int = 0, cut: bool = False, content: bytes = b"") -> None:
        content, start = (content or self.server.archive)[: self.stop()], self.start()
        if start >= len(content):
            return self.send_error(416)
        self.head_206(start)
        self.body(content[start : start + stop_after] if cut else content[start:])

    def throttled(self, rate: int, then: int = 0) -> None:
        """So many kB/s, and `then` from the middle on; without limit after `go_on`."""
        middle, start, due = len(self.server.archive) // 2, self.start(), time.monotonic()
        self.head_206(start)
        while start < self.stop() and not self.server.go_on.wait(max(0, due - time.monotonic())):
            is_late = then and start >= middle
            end = min(start + 20 * (then if is_late else rate), self.stop())
            if start < middle < end:
                end = middle
            self.body(self.server.archive[start:end])
            start, due = end, due + 0.02
        self.body(self.server.archive[start : self.stop()])

    def trickle(self) -> None:
        """A byte now and then."""
        self.head_206(self.start())
        for place in range(self.start(), self.stop()):
            self.server.go_on.wait(0.02)
            self.body(self.server.archive[place : place + 1])

    def late(self) -> None:
        """Answers later than others show what they can."""
        self.server.go_on.wait(2 * mirrors.PROBE_S)
        self.good()

    def one_byte(self) -> None:
        """One byte for each connection."""
        self.good(stop_after=1, cut=True)

    def rude(self) -> None:
        self.wfile.write(b"HTTP/1.0 404 \x1b[31mNot\x07 \x9bhere\r\n\r\n")

    def rude_size(self) -> None:
        self.head(206, Content_Range=f"bytes {self.start()}-9/\x1b[2J\x08")

    def lying(self) -> bytes:
        return self.server.archive.translate(bytes(range(255, -1, -1)))

    def half(self) -> None:
        """Stops in the middle, and never has more."""
        middle = len(self.server.archive) // 2
        self.good(stop_after=max(0, middle - self.start()), cut=True)

    def no_range(self) -> None:
        self.head(200, Content_Length=len(self.server.archive))
        self.body(self.server.archive)

    def no_range_half(self) -> None:
        self.head(200, Content_Length=len(self.server.archive))
        self.body(self.server.archive[: len(self.server.archive) // 2])

    def wrong(self) -> None:
        self.good(content=self.lying())

    def wrong_half(self) -> None:
        middle = len(self.server.archive) // 2
        self.good(content=self.lying(), stop_after=max(0, middle - self.start()), cut=True)

    def wrong_no_range(self) -> None:
        self.head(200, Content_Length=len(self.server.archive))
        self.body(self.lying())

    def silent(self) -> None:
        self.server.go_on.wait()

    def silent_body(self) -> None:
        self.head_206(self.start())
        self.server.go_on.wait()

    def pause(self) -> None:
        """Half of the archive, then silence until `go_on`, then the rest."""
        content, middle = self.server.archive[: self.stop()], len(self.server.archive) // 2
        self.head_206(self.start())
        if self.start() < middle:
            self.body(content[self.start() : middle])
        if self.start() < middle < self.stop():
            self.server.go_on.wait()
        self.body(content[max(middle, self.start()) :])

    def page(self) -> None:
        self.head(200, Content_Type="text/html", Content_Length=24)
        self.body(b"<html>Please log in.</ht")

    def page_of_no_size(self) -> None:
        self.head(200, Content_Type="text/html")
        self.body(b"<html>Please log in.</html>")

    def other_place(self) -> None:
        """206, but from the beginning, whatever was asked for."""
        size = len(self.server.archive)
        self.head(206, Content_Length=size, Content_Range=f"bytes 0-{size - 1}/{size}")
        self.body(self.server.archive)

    def other_size(self) -> None:
        self.head(206, Content_Length=10, Content_Range="bytes 0-9/10")
        self.body(b"0123456789")

    def endless(self) -> None:
        size = len(self.server.archive)
        self.head(206, Content_Range=f"bytes {self.start()}-{size - 1}/{size}")
        while True:
            self.body(b"too much" * 1000)

    def broken_chunks(self) -> None:
        """The archive as one chunk, broken off in its middle."""
        content, start = self.server.archive, self.start()
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(206, Transfer_Encoding="chunked", Content_Range=span)
        self.body(b"%x\r\n" % (len(content) - start) + content[start : len(content) // 2])

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
    pretend(monkeypatch, cifar.constants())
    monkeypatch.delenv("CIFAR10_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return cifar


def pretend(monkeypatch: pytest.MonkeyPatch, constants: dict[str, dict]) -> None:
    """Set the constants in this process, until the end of the test."""
    owners = {"cifar10": cifar10, "mirrors": mirrors, "CIFAR10": CIFAR10}
    for owner, values in constants.items():
        for name, value in values.items():
            monkeypatch.setattr(owners[owner], name, value)


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


def run_script(tiny: TinyCifar, folder: Path, script: Path, *arguments: object) -> subprocess.Popen:
    """Start SCRIPT in a process of its own, with `tiny` for CIFAR-10; files are put in `folder`.

    Its stdout and stderr are pipes of text; environment variables are those of this process.
    """
    runner, constants = folder / "run_tiny.py", folder / "tiny.json"
    runner.write_text(RUN_TINY.format(root=str(ROOT)))
    constants.write_text(json.dumps(tiny.constants()))
    command = [sys.executable, runner, constants, script, *arguments]
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
