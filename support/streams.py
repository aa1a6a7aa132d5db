"""A range of a file from a web server, read by a thread that the caller can walk away from.

urlopen's time-out covers neither the look-up of a name, nor several addresses or redirects in a
row, nor a server that sends a byte now and then. Every response is closed by its own thread.
"""

import bisect
import re
import threading
import time
from http.client import HTTPResponse
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

TIMEOUT_S = 7.0  # for an answer, and without MIN_SPEED
MIN_SPEED = 1000  # bytes/s; less is no better than silence
BLOCK = 2**16
READ_AHEAD = 2**20  # bytes that a thread holds before it waits: more than a probe

news = threading.Condition()  # some stream has received bytes, or ended


class MirrorFault(Exception):
    """Why one mirror is of no use now; the next one may be."""


class Stream:
    """The bytes from `start` on of the file of `size` bytes at `url`.

    Args:
        probe: ask for this many bytes only; None for all.

    Attributes:
        start: where the received bytes begin; becomes 0 when the server sends the whole file.
        received: number of bytes so far, with those that are taken.
        is_done: no more bytes will come: all are there, or there is a fault.
        fault: why not all bytes came, in a few words; "" as long as there is nothing to say.
    """

    def __init__(self, url: str, start: int, size: int, probe: int | None = None) -> None:
        self.url, self.start, self.size, self.probe = url, start, size, probe
        self.stop = size if probe is None else min(start + probe, size)
        self.received, self.is_done, self.fault = 0, False, ""
        self.asked_at = time.monotonic()
        self.arrivals: list[tuple[float, int]] = []  # time, bytes received until then
        self.buffer = bytearray()  # received and not taken
        self.is_closed = False
        threading.Thread(target=self._run, name=f"mirror {url}", daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Until there are bytes to take, or there will be none; at most `seconds`."""
        with news:
            news.wait_for(lambda: self.buffer or self.is_done, seconds)

    def take(self) -> tuple[int, bytes]:
        """The place in the file and the bytes that have come since the last time."""
        with news:
            block = bytes(self.buffer)
            self.buffer.clear()
            news.notify_all()  # the thread may read on
            return self.start + self.received - len(block), block

    def close(self) -> None:
        """Take no more bytes; the thread closes its response as soon as it notices."""
        with news:
            self.is_closed = True
            news.notify_all()

    @property
    def is_complete(self) -> bool:
        """Whether all bytes came."""
        return self.is_done and self.received == self.stop - self.start

    @property
    def speed(self) -> float:
        """Bytes/s of the later half of what came: a connection needs time to get going."""
        arrivals = self.arrivals  # the thread only appends to it
        if not arrivals:
            return 0.0
        until = arrivals[-1][0] if self.is_done else time.monotonic()
        total = arrivals[-1][1]
        half_at, half = arrivals[bisect.bisect_left(arrivals, total / 2, key=lambda a: a[1])]
        if half == total or until == half_at:  # too few blocks to tell
            half_at, half = self.asked_at, 0
        return (total - half) / max(until - half_at, 1e-3)

    @property
    def age(self) -> float:
        """Seconds since the first bytes, or as long as there are none, since it was asked."""
        return time.monotonic() - (self.arrivals[0][0] if self.arrivals else self.asked_at)

    def silence(self, answer_s: float) -> str:
        """Why it is no use to wait: no answer in `answer_s`, or hardly any bytes; "" if it is."""
        if not self.arrivals:
            return f"no answer in {answer_s:.0f} s" if self.age > answer_s else ""
        got = self.received_within(TIMEOUT_S)
        if self.age > TIMEOUT_S and got < MIN_SPEED * TIMEOUT_S:
            return f"timed out ({got:,} bytes in {TIMEOUT_S:.0f} s)"
        return ""

    def received_within(self, seconds: float) -> int:
        """How many bytes came in the last `seconds`."""
        earlier = bisect.bisect(self.arrivals, time.monotonic() - seconds, key=lambda a: a[0])
        return self.received - (self.arrivals[earlier - 1][1] if earlier else 0)

    def _run(self) -> None:
        fault = ""
        try:
            self._read()
        except Exception as error:  # a server can bring about nearly any
            fault = short(error)
        with news:
            self.fault, self.is_done = fault, True
            news.notify_all()

    def _read(self) -> None:
        with open_range(self.url, self.start, self.stop, self.size) as response:
            if response.status == 200 and self.start:  # it ignores Range
                if self.probe:
                    return  # it would learn nothing
                self.start = 0
            wanted = self.stop - self.start
            while self.received < wanted and not self.is_closed:
                block = response.read1(min(BLOCK, wanted - self.received))
                if not block:
                    raise MirrorFault(f"broke off after {self.received:,} bytes")
                self._keep(block)

    def _keep(self, block: bytes) -> None:
        with news:
            if self.is_closed:
                return
            self.buffer += block
            self.received += len(block)
            self.arrivals.append((time.monotonic(), self.received))
            news.notify_all()
            news.wait_for(lambda: len(self.buffer) < READ_AHEAD or self.is_closed)


class ClosingRedirects(HTTPRedirectHandler):
    """Follow redirects as urllib does, but close each before the next, wherever that leads."""

    def http_error_302(self, req, fp, code, msg, headers):
        fp.close()  # unread: nobody needs its body, which may have no end
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def open_range(url: str, start: int, stop: int, size: int) -> HTTPResponse:
    """Ask for a range of a file of `size` bytes; the answer may also be the whole file (200).

    Raises:
        MirrorFault: the server offers something else.
        OSError, ValueError, http.client.HTTPException: it cannot be asked.
    """
    end = "" if stop == size else stop - 1
    headers = {"User-Agent": "cifar10-tutorial", "Range": f"bytes={start}-{end}"}
    try:
        response = build_opener(ClosingRedirects).open(
            Request(url, headers=headers), None, TIMEOUT_S
        )
    except HTTPError as error:
        error.close()  # it is a response, too
        raise
    if response.status == 206:
        span, _, offered = response.headers.get("Content-Range", "").partition("/")
        good = re.match(rf"bytes {start}-\d", span)
    else:
        offered, good = response.headers.get("Content-Length", "unknown"), response.status == 200
    if not good or offered != str(size):  # such as a login page
        response.close()
        raise MirrorFault(f"offers something else (HTTP {response.status}, size {offered})")
    return response


def short(error: Exception) -> str:
    """A network error in a few words, without control characters that a server may have sent."""
    text = re.sub(r"<?urlopen error |\[\w+ -?\d+\] ", "", str(error)).strip("<>") or repr(error)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
