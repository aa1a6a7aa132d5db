"""What is known about the mirrors of a file: which is fastest, which fail, which send junk."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from urllib.parse import urlsplit

from support.streams import MIN_SPEED, Stream, news

PROBE_BYTES = 2**19  # asked of each mirror to see how fast it is
PROBE_S = 3.0  # a probe ends then, if another mirror can continue
PATIENCE_S = 18.0  # without anything new from any mirror
GRACE_S = 0.3  # the least that the others get after the first has delivered
MUCH_FASTER = 3  # times as fast: worth leaving a mirror for
SLOW_S = 30.0  # a mirror is slow if the rest would take longer
REST_S = 60.0  # before a mirror that was not much faster is tried again
ENOUGH = 2**16  # bytes of a connection that make its mirror worth asking again at once
POOR = 5  # connections in a row that bring something, but not enough: then no more


class Mirrors:
    """The mirrors of one file, and in which order they are asked.

    Args:
        urls: the mirrors, in order of preference.
        named: those that the reader has asked for; one that works is left for another only when it
            is slow and the other is much faster.

    Attributes:
        waiting: to be asked, in this order, before we give up.
        faults: what was last wrong with each mirror, "" for nothing.
    """

    def __init__(self, urls: Sequence[str], named: Sequence[str] = ()) -> None:
        self.urls, self.named = list(urls), list(named)
        self.waiting = self.urls
        self.faults: dict[str, str] = {}
        self.speeds: dict[str, float] = {}  # bytes/s, as last measured; 0 after a fault
        self.poor: Counter[str] = Counter()  # connections in a row that brought little
        self.rests_until: dict[str, float] = {}  # of mirrors that were tried and not faster
        self.is_last_round = False  # those that fail now get no other chance

    def choose(self, start: int, size: int) -> Stream | None:
        """Ask all at once for the bytes at `start`; put the best mirror first.

        Returns its stream, which holds the first bytes; None when no mirror delivered any.
        """
        streams = probe(self.urls, start, size)
        deviating = outvoted(streams)
        for stream in streams:
            if stream.received or stream.fault:
                self.speeds[stream.url] = 0.0 if stream in deviating else stream.speed
            fault = "not the bytes that others send" if stream in deviating else stream.fault
            self.faults[stream.url] = fault or ("" if stream.received else "no answer")
        useful = [stream for stream in streams if stream.received and stream not in deviating]
        if not useful:  # those that answered have failed
            self.waiting = [url for url in self.urls if url not in self.speeds]
            return None
        best = max(useful, key=lambda stream: (stream.is_complete, self.speeds[stream.url]))
        enough = min(self.speeds[best.url] / MUCH_FASTER, (size - start) / SLOW_S)
        named = (s for s in useful if s.url in self.named and self.speeds[s.url] >= enough)
        chosen = next(named, best)
        self.put_first(chosen.url)
        return chosen

    def start_rival(self, url: str, start: int, size: int) -> Stream | None:
        """Ask the mirror that is likely to be much faster than `url` now is, if there is one."""
        for other in self._ranked():
            hope = self.speeds.get(other, math.inf)
            rested = time.monotonic() >= self.rests_until.get(other, 0)
            if other != url and hope > MUCH_FASTER * self.speeds[url] and rested:
                return Stream(other, start, size, PROBE_BYTES)
        return None

    def is_overtaken(self, url: str, rival: Stream) -> bool:
        """Note what a rival's probe has shown; if it is much faster than `url`, put it first."""
        self.speeds[rival.url], self.faults[rival.url] = rival.speed, rival.fault
        if rival.speed > MUCH_FASTER * self.speeds[url]:
            self.put_first(rival.url)
            return True
        self.rests_until[rival.url] = time.monotonic() + REST_S
        return False

    def note_end(self, url: str, brought: int) -> None:
        """Decide who is next after a connection to `url` that brought `brought` new bytes."""
        if brought < ENOUGH:
            self.poor[url] += 1
            self.speeds[url] = 0.0  # whatever a probe has promised
            again = [url] if brought and self.poor[url] < POOR else []
            self.waiting = [*self.waiting[1:], *again]
        else:
            self.poor[url] = 0
            if not self.is_last_round:
                self.put_first(url)

    def put_first(self, url: str) -> None:
        """Ask `url` next; all others get another chance after it, the fastest first."""
        self.waiting = [url, *(other for other in self._ranked() if other != url)]

    def leave_out(self, url: str, fault: str) -> None:
        """Never ask `url` again."""
        self.faults[url] = fault
        self.urls = [other for other in self.urls if other != url]
        waiting = self.waiting if self.is_last_round else self._ranked()
        self.waiting = [other for other in waiting if other != url]

    def start_last_round(self) -> None:
        """Ask each mirror once more, alone, and then give up."""
        self.is_last_round, self.waiting = True, self._ranked()

    def name(self, url: str) -> str:
        """What to call a mirror: the URL that the reader gave, or the host of a built-in one."""
        return url if url in self.named else urlsplit(url).netloc or url

    def skipped(self, chosen: str) -> list[str]:
        """The named mirrors that would have come before `chosen`."""
        return [url for url in self.urls[: self.urls.index(chosen)] if url in self.named]

    def summary(self) -> str:
        """What is wrong with each mirror, in one line."""
        names = defaultdict(list)
        for url in dict.fromkeys([*self.faults, *self.waiting]):
            fault = self.faults.get(url) or f"not asked after {PATIENCE_S:.0f} s without a byte"
            names[fault].append(self.name(url))
        return "; ".join(f"{', '.join(urls)}: {fault}" for fault, urls in names.items())

    def _ranked(self) -> list[str]:
        """All mirrors: the fastest first, then the unknown ones, then those that failed."""
        return sorted(self.urls, key=lambda url: -self.speeds.get(url, MIN_SPEED))


def probe(urls: Sequence[str], start: int, size: int) -> list[Stream]:
    """Ask all for the same short range at once; returns their streams, stopped, in that order.

    Once the first has delivered, the others get MUCH_FASTER times as long as it took: enough to see
    whether they are much slower, and a dead address delays nobody.
    """
    begin = time.monotonic()
    streams = [Stream(url, start, size, PROBE_BYTES) for url in urls]
    try:
        with news:
            while not _is_decided(streams, time.monotonic() - begin):
                news.wait(0.1)
    finally:
        for stream in streams:
            stream.close()
    return streams


def _is_decided(streams: list[Stream], seconds: float) -> bool:
    if all(stream.is_done for stream in streams) or seconds >= PATIENCE_S:
        return True
    times = [s.arrivals[-1][0] - s.asked_at for s in streams if s.is_complete]
    if times:
        return seconds >= max(GRACE_S, MUCH_FASTER * min(times))
    return seconds >= PROBE_S and any(stream.received for stream in streams)


def outvoted(streams: Sequence[Stream]) -> list[Stream]:
    """The streams whose first bytes differ from those of the majority; all start at one place.

    A stream with less than 1 kB has no vote, unless it is complete.
    """
    voters = [s for s in streams if s.received and (s.received >= 1000 or s.is_complete)]
    if not voters:
        return []
    shared = min(stream.received for stream in voters)
    votes = Counter(bytes(stream.buffer[:shared]) for stream in voters)
    right, count = votes.most_common(1)[0]
    if count <= len(voters) / 2:
        return []
    return [stream for stream in voters if stream.buffer[:shared] != right]
