"""One file from the fastest of several mirrors.

All are asked at once, and the one that proves fastest goes on. When it breaks off or becomes slow,
all are asked again. What was received is kept, whoever continues it.
"""

import contextlib
import math
import os
import queue
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from http.client import HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

TIMEOUT_S = 7.0  # of a connection that is silent
PATIENCE_S = 18.0  # without ENOUGH new bytes from any mirror
ENOUGH = 2**16
PROBE_BYTES = 2**20  # show how fast a mirror is
PROBE_S = 3.0  # after that time, fewer do
GRACE_S = 0.3  # the least that the others get
WINDOW_S = 3.0  # a mirror is as fast as it was in the last seconds
MUCH = 3  # times as fast, or as slow
SLOW_S = 30.0  # a mirror is not left if the rest takes no longer
MIN_SPEED = 1000  # bytes/s; less is no better than silence


class NoMirrorError(Exception):
    """No mirror brings anything new; the message says what is wrong with each."""


def fetch_file(urls: Sequence[str], named: Sequence[str], path: Path, size: int, md5: str) -> None:
    """Download a file of `size` bytes into `path`.part, and give it its name when its md5 is right.

    An earlier part is continued. Of `urls`, those in `named` are left only for a much faster one.
    Raises NoMirrorError if none brings anything new (the part stays), and OSError from the disk.
    """
    part = path.with_name(f"{path.name}.part")
    groups, faults = [list(urls)], []
    while groups:
        transfer = Transfer(groups.pop(0), named, part, size)
        try:
            transfer.run()
        except NoMirrorError as error:
            faults.append(str(error))
            continue
        if check_integrity(part, md5):
            os.replace(part, path)
            return
        part.unlink()
        if transfer.had:  # an earlier run's bytes may be the wrong ones
            groups.insert(0, transfer.urls)
            continue
        suspects = sorted(transfer.brought)
        faults.append(f"{', '.join(map(transfer.name, suspects))}: wrong bytes (md5)")
        print_on_stderr(f"{faults[-1]}; starting again")
        others = [url for url in transfer.urls if url not in suspects]
        alone = [[url] for url in suspects] if len(suspects) > 1 else []  # each once more
        groups = [*([others] if others else []), *alone, *groups]
    raise NoMirrorError("; ".join(faults))


class Connection(threading.Thread):
    """The bytes of a file from `first` on, read by a thread that may be left alone if it hangs."""

    def __init__(self, url: str, first: int, size: int) -> None:
        super().__init__(name=f"mirror {url}", daemon=True)
        self.url, self.first, self.size = url, first, size
        self.blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # an empty one is the last
        self.received = 0  # bytes, also those before `first` from a server that ignores Range
        self.fault, self.is_closed = "", False  # why not all came; whether no more is wanted
        self.asked_at = time.monotonic()
        self.start()

    def run(self) -> None:
        try:
            with open_from(self.url, self.first, self.size) as response:
                place = self.first if response.status == 206 else 0
                while place < self.size and not self.is_closed:
                    block = response.read1(min(2**16, self.size - place))
                    if not block:
                        raise OSError(f"broke off after {self.received:,} bytes")
                    place += len(block)
                    self.received += len(block)
                    if place > self.first:
                        self.blocks.put(block[self.first - place :])
        except Exception as error:  # a server can bring about nearly any
            self.fault = in_words(error)
            if isinstance(error, HTTPError):
                error.close()  # it is a response, too
        self.blocks.put(b"")


class Transfer:
    """Fills a part file; see `fetch_file`."""

    def __init__(self, urls: Sequence[str], named: Sequence[str], part: Path, size: int) -> None:
        self.urls, self.named, self.part, self.size = urls, named, part, size
        self.had = self.position = part.stat().st_size if part.exists() else 0  # bytes in it
        self.brought: set[str] = set()  # the mirrors that contributed
        self.faults: dict[str, str] = {}  # why a mirror did not go on
        self.limits: dict[str, float] = {}  # and how many bytes/s are believed since

    def run(self) -> None:
        """Append to the part until it has its size; raises NoMirrorError and OSError."""
        is_hidden = None if sys.stderr else True  # None: shown on a terminal only
        bar = tqdm(initial=self.had, total=self.size, unit="B", unit_scale=True, disable=is_hidden)
        counted = -ENOUGH
        with self.part.open("ab") as file, bar:
            while self.position < self.size:
                if self.position - counted >= ENOUGH:
                    counted, self.give_up_at = self.position, time.monotonic() + PATIENCE_S
                best = self.choose()
                try:
                    self.receive(best, file, bar)
                finally:
                    best.is_closed = True

    def choose(self) -> Connection:
        """Ask all mirrors at once: the fastest, or one of the named that is not much slower."""
        asked, best = [Connection(url, self.position, self.size) for url in self.urls], None
        try:
            while not self.is_decided(asked):
                time.sleep(0.02)
            speeds = self.speeds(asked)
            if not speeds:
                raise NoMirrorError(self.summary(asked))
            best = max(speeds, key=speeds.get)
            named = [c for c in speeds if c.url in self.named and speeds[c] >= speeds[best] / MUCH]
            best = next(iter(named), best)
        finally:
            for connection in asked:
                connection.is_closed = connection is not best
        speed = tqdm.format_sizeof(speeds[best])
        left = tqdm.format_interval((self.size - self.position) / speeds[best])
        print_on_stderr(f"{self.name(best.url)}: {speed}B/s, at most {left} left")
        return best

    def is_decided(self, asked: Sequence[Connection]) -> bool:
        """Whether it is known who is fastest: a slow or dead mirror holds nobody up."""
        if not any(c.is_alive() for c in asked) or time.monotonic() > self.give_up_at:
            return True
        useful = self.speeds(asked)
        is_clear = any(c.received > PROBE_BYTES or not (c.is_alive() or c.fault) for c in useful)
        seconds = time.monotonic() - asked[0].asked_at
        return bool(useful) and seconds > (GRACE_S if is_clear else PROBE_S)

    def speeds(self, asked: Sequence[Connection]) -> dict[Connection, float]:
        """Bytes/s of those that have brought anything, as far as their mirrors can be believed."""
        now = time.monotonic()
        limits = {c: self.limits.get(c.url, math.inf) for c in asked if c.received}
        good = {c: limit for c, limit in limits.items() if limit >= MIN_SPEED}
        return {c: min(c.received / (now - c.asked_at), limit) for c, limit in good.items()}

    def receive(self, source: Connection, file: BinaryIO, bar: tqdm) -> None:
        """Write what a mirror sends until it ends, or is much slower than it was."""
        expected, block = self.speeds([source])[source], b"none yet"
        before, seen, seen_at = self.position, source.received, time.monotonic()
        while block:
            with contextlib.suppress(queue.Empty):
                block = source.blocks.get(timeout=0.2)
                self.brought |= {source.url} if block else set()
                file.write(block)
                file.flush()
                self.position += len(block)
                bar.update(len(block))
            seconds = time.monotonic() - seen_at
            if seconds > WINDOW_S:
                speed = (source.received - seen) / seconds
                expected = max(expected, speed)
                takes_long = self.size - self.position > SLOW_S * speed
                if speed < MIN_SPEED or (speed < expected / MUCH and takes_long):
                    source.fault = f"slow ({tqdm.format_sizeof(speed)}B/s)"
                    break
                seen, seen_at = source.received, time.monotonic()
        self.faults[source.url] = source.fault
        if source.fault:
            print_on_stderr(f"{self.name(source.url)}: {source.fault}")
        seconds = max(time.monotonic() - source.asked_at, 1)
        self.limits[source.url] = (self.position - before) / seconds

    def summary(self, asked: Sequence[Connection]) -> str:
        """What is wrong with each mirror, in one line."""
        names = defaultdict(list)
        for connection in asked:
            fault = connection.fault or self.faults.get(connection.url) or "no answer in time"
            names[fault].append(self.name(connection.url))
        return "; ".join(f"{', '.join(urls)}: {fault}" for fault, urls in names.items())

    def name(self, url: str) -> str:
        """What to call a mirror: the URL that the reader gave, or the host of a built-in one."""
        return url if url in self.named else urlsplit(url).netloc


def open_from(url: str, first: int, size: int) -> HTTPResponse:
    """Ask for the bytes from `first` on; some servers send all (200). Raises nearly any error."""
    request = Request(url, headers={"User-Agent": "cifar10-tutorial", "Range": f"bytes={first}-"})
    response = urlopen(request, timeout=TIMEOUT_S)
    span, _, offered = response.headers.get("Content-Range", "").partition("/")
    if response.status == 200:
        span, offered = f"bytes {first}-", response.headers.get("Content-Length", "unknown")
    if offered != str(size) or not span.startswith(f"bytes {first}-"):  # such as a login page
        response.close()
        raise OSError(f"offers something else (HTTP {response.status}, size {offered})")
    return response


def in_words(error: Exception) -> str:
    """A network error in a few words, without control characters that a server may have sent."""
    text = re.sub(r"<?urlopen error |\[\w+ -?\d+\] ", "", str(error)).strip("<>") or repr(error)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def print_on_stderr(line: str) -> None:
    """Print a line without tearing the progress bar: stdout is for results."""
    with contextlib.suppress(AttributeError, OSError):  # stderr is closed or broken
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()
