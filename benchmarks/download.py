"""The download from mirrors of all kinds on this machine, with an archive of CIFAR-10's real size.

    python benchmarks/download.py

For each case: what the reader sees, how long it takes, and the bytes that each mirror has sent.
Needs the packages of tests/requirements.txt: the server is that of the tests.
"""

import hashlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cifar_server import Server  # noqa: E402

from support.download import ARCHIVE_SIZE  # noqa: E402
from support.mirrors import Mirrors  # noqa: E402
from support.transfer import Transfer  # noqa: E402

# Habits of the server, see there: rate80-10 sends 80 kB/s, and 10 kB/s from the middle on.
CASES = {
    "a slow mirror before a fast one": ["rate80", "rate40000"],
    "the same, the slow one named by the reader": ["rate80 named", "rate40000"],
    "a fast mirror that becomes slow": ["rate40000-10 named", "rate39000"],
    "all are slow (the server has no limit any more after 20 s)": ["rate80", "rate81", "rate82"],
    "ten cuts, wrong bytes from one of three": ["cuts10 named", "wrong", "rate40000"],
    "a byte now and then, a byte for each connection": ["trickle named", "one_byte", "rate40000"],
    "two dead addresses": ["silent named", "hangs_up", "rate40000"],
}


def measure(habits: list[str], archive: bytes) -> None:
    """Download once, and print who has sent how much."""
    server = Server(archive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Timer(20, server.go_on.set).start()
    urls = [server.url(habit.split()[0]) for habit in habits]
    named = [url for url, habit in zip(urls, habits, strict=True) if "named" in habit]
    checksum = hashlib.md5(archive).digest()
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part"

        def is_right(path: Path) -> bool:
            return hashlib.md5(path.read_bytes()).digest() == checksum

        begin = time.perf_counter()
        Transfer(Mirrors(urls, named), part, len(archive), is_right).run()
        seconds = time.perf_counter() - begin
    server.go_on.set()
    server.shutdown()
    server.server_close()
    sent = ", ".join(f"{habit} {size:,}" for habit, size in server.sent_by.items())
    print(f"{seconds:.1f} s; sent: {sent}; together {server.sent / len(archive):.4f} of the file")


def main() -> None:
    archive = os.urandom(ARCHIVE_SIZE)
    for case, habits in CASES.items():
        print(f"\n{case}: {', '.join(habits)}", flush=True)
        measure(habits, archive)


if __name__ == "__main__":
    main()
