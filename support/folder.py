"""Pictures of any kind, from a folder with one folder for each class, as NumPy arrays.

    folder/train/cat/1.jpg    folder/train/dog/1.png    ...
    folder/test/cat/7.jpg     folder/test/dog/8.png     ...

Whatever Pillow can read is turned into RGB of one size; whatever it cannot is named in one line.
"""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from support.errors import InputError

IGNORED_FILES = {"thumbs.db", "desktop.ini"}  # Windows leaves these in folders of pictures

Part = tuple[np.ndarray, np.ndarray]  # images, uint8 (N, 3, size, size), and labels, int64 (N,)


def read_folder(folder: Path, size: int) -> tuple[Part, Part, list[str]]:
    """The pictures in folder/train/<class>/ and folder/test/<class>/, and the class names.

    Pictures may lie in folders inside those of the classes. Classes and files are taken in sorted
    order; hidden ones are skipped.

    Raises:
        InputError: the folder is not laid out like this, or a file in it is not an image.
    """
    for needed in (folder, folder / "train", folder / "test"):
        if not os.path.isdir(needed):  # unlike Path.is_dir, it never raises
            raise InputError(
                f"{str(needed)!r} is not a folder: give a folder that holds train/<class>/ and "
                "test/<class>/ with images, or one of auto, cifar10 and shapes"
            )
    try:
        train_files = files_by_class(folder / "train")
        test_files = files_by_class(folder / "test")
    except OSError as error:
        raise InputError(
            f"{error.filename!r} cannot be listed ({error.strerror}): make it readable or remove it"
        ) from error
    if train_files.keys() != test_files.keys():
        odd = ", ".join(map(repr, sorted(train_files.keys() ^ test_files.keys())))
        raise InputError(
            f"train and test in {str(folder)!r} must hold the same classes; only one of them has: "
            f"{odd}"
        )
    train = read_images(train_files, size, "train images")
    test = read_images(test_files, size, "test images")
    return train, test, list(train_files)


def files_by_class(folder: Path) -> dict[str, list[str]]:
    """For each class folder in `folder`, in sorted order, the paths of the files in it."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = [name for name in names if not name.startswith(".")]
    if len(names) < 2:
        raise InputError(
            f"{str(folder)!r} has {len(names)} class folders, but telling classes apart takes two "
            "or more: put the images of each class into a folder of their own"
        )
    classes = {}
    for name in names:
        files = files_below(str(folder / name))
        if not files:
            raise InputError(
                f"{str(folder / name)!r} holds no images: add some, or remove the folder"
            )
        classes[class_name(folder / name)] = files
    return classes


def class_name(folder: Path) -> str:
    """The name of a class folder as text, whatever encoding Python takes the file system's for.

    Raises InputError if it is not UTF-8, which TensorBoard could not show.
    """
    try:
        return os.fsencode(folder.name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{str(folder)!r} is not a name in UTF-8: rename the folder") from error


def files_below(folder: str) -> list[str]:
    """The files in `folder` and in the folders inside it, links followed, hidden ones left out.

    Raises:
        OSError: a folder cannot be listed.
    """
    here = Path(os.path.realpath(folder))
    seen = {here, *here.parents}  # a link back to one of these would go round for ever

    def fail(error: OSError) -> None:  # os.walk skips such a folder without a word
        raise error

    found = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        for name in sorted(folders):
            target = Path(os.path.realpath(os.path.join(root, name)))
            if name.startswith(".") or target in seen:
                folders.remove(name)  # os.walk then does not enter it
            seen.add(target)
        folders.sort()
        visible = [f for f in files if not f.startswith(".") and f.lower() not in IGNORED_FILES]
        found += [os.path.join(root, name) for name in sorted(visible)]
    return found


def read_images(files: dict[str, list[str]], size: int, title: str) -> Part:
    """Read the files of each class into one array; on a terminal, a progress bar is shown."""
    paths = [path for of_class in files.values() for path in of_class]
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
    images = np.empty((len(paths), 3, size, size), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on files that it can read after all
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # One after the other: with files as small as CIFAR-10's, threads only wait for each other.
        for i, path in enumerate(tqdm(paths, title, unit=" files", disable=None)):
            images[i] = read_image(path, size).transpose(2, 0, 1)
    return images, labels


def read_image(path: str, size: int) -> np.ndarray:
    """Any image that Pillow can read, as uint8 (size, size, 3): upright, on white, resized.

    Raises:
        InputError: it is not an image, or a broken one.
    """
    try:
        if not os.path.isfile(path):  # opening a named pipe would wait for ever
            raise OSError("not a file, or a link to nothing")
        with Image.open(path) as picture:
            picture.draft(None, (4 * size, 4 * size))  # large JPEGs: decode at 1/2, 1/4 or 1/8
            ImageOps.exif_transpose(picture, in_place=True)
            return np.asarray(to_rgb(picture).resize((size, size), Image.Resampling.LANCZOS))
    except Exception as error:  # Pillow's many decoders fail in as many ways
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"{path!r} is not an image that Pillow can read ({reason}): remove or replace it"
        ) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Turn any of Pillow's modes into RGB; what is transparent becomes white."""
    if picture.mode == "F":
        raise ValueError("its pixels are floats, and which value is white is not known")
    if picture.mode.startswith("I"):  # 16 bits per pixel: convert() would clip them at 255
        grey = np.asarray(picture).astype(np.float32) / 257
        picture = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
