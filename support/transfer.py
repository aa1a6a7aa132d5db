"""Fill a file from several mirrors: from the fastest one, and without asking for a byte twice.

All mirrors are probed at once, and the fastest continues. When it becomes slow, a mirror that may
be much faster is probed beside it. What was received is kept, whoever continues it. A mirror that
sends wrong bytes is found by comparing the probes or, at the latest, by the md5 of the whole file.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from support import mirrors, streams
from support.mirrors import Mirrors
from support.streams import Stream

WINDOW_S = 3.0  # a mirror is as fast as it was in the last seconds
LONG_S = 600.0  # the reader should know what to do meanwhile
MB = 2**20
EARLIER_RUN = "an earlier run"


class NoMirrorError(Exception):
    """No mirror brings anything new; the message says what is wrong with each."""


class Transfer:
    """What is on the disk of CIFAR-10's archive, and who contributed to it.

    Args:
        asked: the mirrors.
        part: the file that receives the bytes; those of an earlier run are kept.
        size: of the whole file, in bytes.
        is_right: checks a file of that size.
    """

    def __init__(
        self, asked: Mirrors, part: Path, size: int, is_right: Callable[[Path], bool]
    ) -> None:
        self.mirrors, self.part, self.size, self.is_right = asked, part, size, is_right
        self.position = part.stat().st_size if part.exists() else 0  # of the first missing byte
        self.contributors = {EARLIER_RUN} if self.position else set()
        self.announced = ""  # the mirror that the reader knows to be next
        self.last = ""  # the mirror that was asked last
        self.trouble = ""  # and how that ended
        self.has_said_how_long = False

    def run(self) -> None:
        """Fill the part file until it is right.

        Raises:
            NoMirrorError: no mirror brings anything new; the part file stays for the next run.
            OSError: from the disk.
        """
        give_up_at = time.monotonic() + mirrors.PATIENCE_S
        with self.progress_bar() as self.bar:
            if self.position < self.size and len(self.mirrors.urls) > 1:
                self.choose()
            while not (self.position == self.size and self.is_right(self.part)):
                if self.position >= self.size:
                    self.start_again()
                waiting, patience = self.mirrors.waiting, give_up_at - time.monotonic()
                if not waiting or patience <= 0:
                    raise NoMirrorError(self.mirrors.summary())
                seconds = min(streams.TIMEOUT_S, patience / len(waiting))
                if self.continue_from(waiting[0], seconds) >= mirrors.ENOUGH:
                    give_up_at = time.monotonic() + mirrors.PATIENCE_S

    def choose(self) -> None:
        """Probe all mirrors at once, and keep what the best of them has sent."""
        count = len(self.mirrors.urls)
        say(f"CIFAR-10 ({self.size / MB:.0f} MB): asking {count} addresses at once")
        best = self.mirrors.choose(self.position, self.size)
        if best is None:
            return
        skipped = self.mirrors.skipped(best.url)
        for url in skipped:
            self.say_left(url, best.url)
        if not skipped:
            why = "as you asked" if best.url in self.mirrors.named else "the fastest"
            self.announce(best.url, f" ({why}): {self.outlook(best.url)}")
        self.last = self.announced = best.url
        with self.opened_part() as file:
            self.write(file, best)

    def continue_from(self, url: str, seconds: float) -> int:
        """Add what `url` sends, if it answers within `seconds`; returns the number of bytes."""
        if self.mirrors.is_last_round and not self.contributors <= {url}:
            self.empty_part()  # one mirror alone, to find out whose bytes are wrong
        if url != self.announced:
            self.announce(url)
        had, self.last, self.announced = self.position, url, ""
        stream = Stream(url, had, self.size)
        try:
            with self.opened_part() as file:
                faster = self.receive(stream, file, seconds)
        finally:
            stream.close()
        if faster:
            self.announced = faster
        else:
            self.trouble = f"{self.mirrors.name(url)}: {self.mirrors.faults[url]}"
            self.mirrors.note_end(url, self.position - had)
            if stream.start == 0 and stream.received >= max(had, 1):
                self.contributors = {url}  # it has overwritten the bytes of the others
        return stream.received

    def receive(self, stream: Stream, file: BinaryIO, seconds: float) -> str:
        """Write what arrives until it ends, and record why.

        Returns a mirror that proved much faster, its first bytes already written; "" if none did.
        """
        url, rival = stream.url, None
        try:
            while not stream.is_done or stream.buffer:
                stream.wait(0.2)
                self.write(file, stream)
                self.mirrors.faults[url] = stream.silence(seconds)
                if self.mirrors.faults[url]:
                    return ""
                if not stream.received or stream.age < WINDOW_S:
                    continue
                self.mirrors.speeds[url] = stream.received_within(WINDOW_S) / WINDOW_S
                if rival is None:
                    rival = self.start_rival(url)
                elif rival.is_done or rival.age > mirrors.PROBE_S:
                    rival.close()
                    if self.mirrors.is_overtaken(url, rival):
                        self.say_left(url, rival.url)
                        self.write(file, rival)
                        return rival.url
                    rival = None
            self.mirrors.faults[url] = stream.fault
            return ""
        finally:
            if rival:
                rival.close()

    def start_rival(self, url: str) -> Stream | None:
        """Probe another mirror if `url` is slow; if none is promising, say how long it takes."""
        left, speed = self.size - self.position, self.mirrors.speeds[url]
        if self.mirrors.is_last_round or left <= mirrors.SLOW_S * speed:
            return None
        rival = self.mirrors.start_rival(url, self.position, self.size)
        if not rival and left > LONG_S * speed > 0 and not self.has_said_how_long:
            self.has_said_how_long = True
            say(
                f"no mirror is faster than {per_second(speed)}: {duration(left / speed)} to go; "
                "meanwhile, in a second terminal: python train_cifar.py --data shapes"
            )
        return rival

    def write(self, file: BinaryIO, stream: Stream) -> None:
        """Write what a stream has received to its place in the file."""
        where, block = stream.take()
        if block:
            file.seek(where)
            file.write(block)
            self.contributors.add(stream.url)
            self.position = max(self.position, where + len(block))
            self.bar.update(self.position - self.bar.n)

    def start_again(self) -> None:
        """The file is full but wrong: drop the mirror that sent it, or find out which it was."""
        names = map(self.mirrors.name, sorted(self.contributors))
        self.trouble = f"wrong bytes (md5) from {' or '.join(names)}"
        if len(self.contributors) > 1:
            self.mirrors.start_last_round()
        else:
            self.mirrors.leave_out(self.contributors.pop(), "wrong bytes (md5)")
        self.empty_part()

    def empty_part(self) -> None:
        """Discard all bytes."""
        self.part.unlink(missing_ok=True)
        self.position, self.contributors = 0, set()
        self.bar.update(-self.bar.n)

    def announce(self, url: str, why: str = "") -> None:
        """Say which mirror is next."""
        name, megabytes = self.mirrors.name(url), f"{self.size / MB:.0f} MB"
        place = f"continuing at {self.position / MB:.0f} MB" if self.position else ""
        if not self.trouble:
            say(f"downloading CIFAR-10 ({megabytes}) from {name}{place and ', '}{place}{why}")
        elif url == self.last and place:
            say(f"{self.trouble}; {place}")
        else:
            say(f"{self.trouble}; {place or 'downloading'} from {name}")

    def say_left(self, url: str, other: str) -> None:
        """Say why `url` was left, and for which mirror."""
        known = self.mirrors
        why = known.faults[url] or per_second(known.speeds[url])
        say(f"{known.name(url)}: {why}, left for {known.name(other)}: {self.outlook(other)}")

    def outlook(self, url: str) -> str:
        """How fast a mirror is, and how long the rest takes.

        "At most", since a probe shares the line with others and ends while TCP still speeds up.
        """
        speed = self.mirrors.speeds[url]
        return f"{per_second(speed)}, at most {duration((self.size - self.position) / speed)} left"

    def progress_bar(self) -> tqdm:
        """On a terminal only."""
        return tqdm(
            total=self.size,
            initial=self.position,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            disable=None if sys.stderr else True,
        )

    def opened_part(self) -> BinaryIO:
        """The part file, to be written anywhere in it."""
        self.part.touch()
        return self.part.open("r+b")


def say(line: str) -> None:
    """Print a line on stderr without tearing the progress bar: stdout is for results."""
    with contextlib.suppress(AttributeError, OSError):  # stderr is closed or broken
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def per_second(speed: float) -> str:
    """A speed in bytes/s for the reader."""
    if speed >= 1e6:
        return f"{speed / 1e6:.{0 if speed >= 1e7 else 1}f} MB/s"
    return f"{speed / 1000:.{0 if speed >= 1e4 else 1}f} kB/s"


def duration(seconds: float) -> str:
    """A time for the reader."""
    if seconds < 100:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
