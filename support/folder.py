"""Pictures of any kind, from a folder with one folder for each class, as NumPy arrays.

    folder/train/cat/1.jpg    folder/train/dog/1.png    ...
    folder/test/cat/7.jpg     folder/test/dog/8.png     ...

Or folder/cat/1.jpg ... alone: every fifth picture of a class is then held back to test on.
What Pillow can read becomes RGB of one size; what it cannot is named in one line.
"""

import os
import re
import unicodedata
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from support.errors import InputError, first_line
from support.terminal import say

# A file without an ending is tried, too.
PICTURES = {"", *IMG_EXTENSIONS, *".gif .avif .jfif .jp2 .tga .heic .heif".split()}
LEFT_BY_SYSTEMS = {"__MACOSX", "@eaDir"}  # of macOS and Synology, beside pictures
PART_NAME = r"(?:.*[ _-])?(?:%s)(?:[ _-]?(?:set|data|images))?\d*"  # seg_train, val2017 as well
HOLD_BACK = 5  # of a folder without a test part, every fifth picture of a class is one
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262  # tags: bits of a pixel, and 0 where zero is white

FIRST_BYTES = {  # what a file that Pillow cannot read is, by its first bytes
    rb"^version https://git-lfs": "a pointer of Git LFS, not the picture: run `git lfs pull`",
    rb"<(!doctype html|html|head|body)": "a web page: its download failed, get it again",
    rb"^....ftyp(hei|hev|mif|msf)": "a HEIC picture, which Pillow cannot read: convert it to JPEG",
}

Files = dict[str, list[str]]  # for each class, in sorted order, the paths of its files
Part = tuple[np.ndarray, np.ndarray]  # images, uint8 (N, 3, size, size), and labels, int64 (N,)


def read_folder(folder: Path, size: int) -> tuple[Part, Part, list[str]]:
    """The training and the test pictures in `folder`, and the class names.

    Pictures may lie in folders inside those of the classes. Classes and files are taken in sorted
    order, hidden ones are skipped. Raises InputError for another layout, or a file that is none.
    """
    try:
        parts = train_files, test_files = find_parts(folder)
    except OSError as error:
        trouble = f"{error.filename!r} cannot be listed ({error.strerror})"
        raise InputError(f"{trouble}: make it readable or remove it") from error
    odd = sorted(train_files.keys() ^ test_files.keys())
    if odd:
        trouble = f"the two parts in {str(folder)!r} must hold the same classes"
        raise InputError(f"{trouble}; only one of them has: {quoted(odd)}")
    images = read_images([p for part in parts for files in part.values() for p in files], size)
    train, test = (np.repeat(np.arange(len(part)), [*map(len, part.values())]) for part in parts)
    return (images[: len(train)], train), (images[len(train) :], test), list(train_files)


def find_parts(folder: Path) -> tuple[Files, Files]:
    """The files to train and to test on; InputError if they cannot be told apart, OSError."""
    if not os.path.isdir(folder):  # unlike Path.is_dir, it never raises
        wanted = "images in train/CLASS/ and test/CLASS/, or in CLASS/; or auto, cifar10, shapes"
        raise InputError(f"{str(folder)!r} is not a folder: give one with {wanted}")
    folder = look_inside(folder)
    folders = folders_in(folder)
    train, test, val = (
        [f for f in folders if re.fullmatch(PART_NAME % names, f.name, re.IGNORECASE)]
        for names in ("train|training", "test|testing", "val|valid|validation")
    )
    skipped = []
    parts = train + (test or val)
    if len(train) == 1 and len(parts) == 2:
        unread = [f.name for f in folders if f not in parts]
        if unread:
            say(f"NOTE: left unread in {str(folder)!r}: {quoted(unread)}")
        train_files, test_files = (files_by_class(look_inside(f), skipped) for f in parts)
    else:
        refuse_unclear(folder, folders, train + test + val)
        train_files = files_by_class(folder, skipped)
        test_files = hold_back(train_files, folder)
    if skipped:
        say(f"NOTE: files skipped, by their ending: {len(skipped):,}, the first is {skipped[0]!r}")
    return train_files, test_files


def look_inside(folder: Path) -> Path:
    """`folder`, or the one folder in it if that holds folders: many archives have one around."""
    inner = folders_in(folder)
    return inner[0] if len(inner) == 1 and folders_in(inner[0]) else folder


def folders_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not is_hidden(f.name))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in LEFT_BY_SYSTEMS


def quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (" ..." if len(names) > 10 else "")


def refuse_unclear(folder: Path, folders: list[Path], parts: list[Path]) -> None:
    """Raise InputError for one part alone, two of a kind, or folders that hold the same folders."""
    inside = [[f.name for f in folders_in(f)] for f in folders]
    alike = len(inside) > 1 and len(inside[0]) > 1 and inside.count(inside[0]) == len(inside)
    if alike or len(parts) > 1 or any(folders_in(part) for part in parts):
        held = f"{str(folder)!r} holds {quoted([f.name for f in folders])}"
        unclear = "which one is to train and which to test on is not clear"
        raise InputError(f"{held}, but {unclear}: name them 'train', 'test', move others away")


def files_by_class(folder: Path, skipped: list[str]) -> Files:
    """The pictures of each class folder in `folder`; other files are added to `skipped`."""
    folders = folders_in(folder)
    if len(folders) < 2:
        pictures = [f for f in folder.iterdir() if f.is_file() and is_picture(f.name)]
        held = f"class folders: {len(folders)}, pictures: {len(pictures)}"
        advice = "put the images of each of two or more classes into a folder of their own"
        raise InputError(f"{str(folder)!r} holds {held}; {advice}")
    classes = {}
    for of_class in folders:
        files = files_below(str(of_class), {*map(str, of_class.resolve().parents)})
        pictures = [path for path in files if is_picture(path)]
        if not pictures:
            others = f"other files: {len(files)}"
            raise InputError(f"{str(of_class)!r} holds no images ({others}): add some or remove it")
        skipped += [path for path in files if not is_picture(path)]
        classes.setdefault(class_name(of_class), []).extend(pictures)
    return dict(sorted(classes.items()))


def is_picture(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in PICTURES


def class_name(folder: Path) -> str:
    """The name of a class folder as text; InputError if it is not UTF-8, as TensorBoard needs."""
    try:  # NFC: Macs write "é" as two characters, others as one; both are the same class
        return unicodedata.normalize("NFC", os.fsencode(folder.name).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{str(folder)!r} is not a name in UTF-8: rename the folder") from error


def files_below(folder: str, seen: set[str]) -> list[str]:
    """The files in `folder` and in the folders inside it, links followed, hidden ones left out."""
    here = os.path.realpath(folder)
    if here in seen:  # a link back to it would go round for ever
        return []
    seen.add(here)
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: (entry.is_dir(), entry.name)):
        if not is_hidden(entry.name):
            found += files_below(entry.path, seen) if entry.is_dir() else [entry.path]
    return found


def hold_back(files: Files, folder: Path) -> Files:
    """Take every fifth file of each class out of `files`; InputError if a class has too few."""
    few = [name for name, of_class in files.items() if len(of_class) < HOLD_BACK]
    if few:
        trouble = f"no test part, and fewer than {HOLD_BACK} pictures, of {quoted(few)}"
        raise InputError(f"{str(folder)!r} has {trouble}: add some, or make 'train' and 'test'")
    every = slice(HOLD_BACK - 1, None, HOLD_BACK)
    held = {name: of_class[every] for name, of_class in files.items()}
    for of_class in files.values():
        del of_class[every]
    count = f"{sum(map(len, held.values())):,} pictures, every {HOLD_BACK}th of a class"
    say(f"NOTE: {count}, are held back to test on")
    return held


def read_images(paths: list[str], size: int) -> np.ndarray:
    """Read files into one array, uint8 (N, 3, size, size); InputError counts the unreadable."""
    images = np.empty((len(paths), 3, size, size), np.uint8)
    faults = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on files that it can read after all
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for i, path in enumerate(tqdm(paths, "images", unit=" files", disable=None)):
            try:
                images[i] = read_image(path, size).transpose(2, 0, 1)
            except InputError as fault:
                faults.append(fault)
    if faults:
        others = f"{len(faults):,} files cannot be read; the first: " if len(faults) > 1 else ""
        raise InputError(f"{others}{faults[0]}")
    return images


def read_image(path: str, size: int) -> np.ndarray:
    """An image as uint8 (size, size, 3): upright, on white, resized; InputError if it is none."""
    try:
        if not os.path.isfile(path):  # opening a named pipe would wait for ever
            raise OSError("not a file, or a link to nothing")
        with Image.open(path) as picture:
            picture.draft(None, (4 * size, 4 * size))  # large JPEGs: decode at 1/2, 1/4 or 1/8
            ImageOps.exif_transpose(picture, in_place=True)
            return np.asarray(to_rgb(picture).resize((size, size), Image.Resampling.LANCZOS))
    except Exception as error:  # Pillow's many decoders fail in as many ways
        raise InputError(f"{path!r} {what_is_wrong(path, error)}") from error


def what_is_wrong(path: str, error: Exception) -> str:
    """What a file is, by its first bytes, or else Pillow's own words; and what to do about it."""
    if isinstance(error, Image.UnidentifiedImageError):
        with open(path, "rb") as file:
            start = file.read(512)
        for pattern, meaning in FIRST_BYTES.items():
            if re.search(pattern, start, re.IGNORECASE | re.DOTALL):
                return f"is {meaning}, or remove it"
    return f"is not an image that Pillow can read ({first_line(error)}): remove or replace it"


def to_rgb(picture: Image.Image) -> Image.Image:
    """Turn any of Pillow's modes into RGB; what is transparent becomes white."""
    if picture.mode == "F" or (picture.mode == "I" and picture.format not in ("PNG", "PPM")):
        raise ValueError("its pixels are floats or 32-bit integers: which one is white?")
    if picture.mode.startswith("I"):
        picture = from_16_bits(picture)
    if picture.has_transparency_data:
        key = picture.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:  # a colour in 16 bits; the pixels are in 8
            picture.info["transparency"] = tuple(value >> 8 for value in key)
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def from_16_bits(picture: Image.Image) -> Image.Image:
    """Grey of 12 or 16 bits a pixel in 8: convert() would clip it at 255, take zero for black."""
    pixels = np.asarray(picture).astype(np.float32)
    tags = getattr(picture, "tag_v2", {})
    grey = pixels / ((2 ** tags.get(TIFF_BITS, [16])[0] - 1) / 255)
    if tags.get(TIFF_PHOTOMETRIC) == 0:
        grey = 255 - grey
    grey[pixels == picture.info.get("transparency", -1)] = 255
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
