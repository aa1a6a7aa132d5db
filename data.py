"""From a source of images to two DataLoaders and the class names.

`load_data` reads CIFAR-10, a folder of the reader's own pictures, or draws the built-in shapes.
All three become the same thing: one uint8 tensor of 32x32 RGB images in memory (CIFAR-10: 184 MB),
from which a batch is gathered and normalised at once. For a network as small as ours that is
many times faster than opening and converting the images one by one.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from support import shapes
from support.download import DownloadError, fetch_cifar10
from support.errors import InputError

SIZE = 32  # height and width of every image
PAD = 4  # black pixels added on each side before a random crop
TEST_BATCH = 200  # on the CPU larger ones wait for fresh memory, smaller ones for each thread
GATHERED = 128  # training images that are taken from memory at once
NOT_IMAGES = {"thumbs.db", "desktop.ini"}  # Windows leaves these in folders of pictures


class ImageDataset(Dataset):
    """Images and labels that are wholly in memory, on one device.

    Args:
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,).
        classes: the name of each label.
        augment: a CPU generator from which random flips and crops are drawn; None for no change.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        classes: list[str],
        augment: torch.Generator | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.classes = classes
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image, float32 (3, 32, 32) in [-1, 1], and its label.

        Raises:
            IndexError: there is no such image.
        """
        images, labels = self.__getitems__([range(len(self))[index]])
        return images[0], int(labels[0])

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch: images, float32 (B, 3, 32, 32) in [-1, 1], and labels, int64 (B,).

        DataLoader calls this, where it exists, instead of __getitem__ for each image.
        """
        rows = torch.tensor(indices, dtype=torch.int64, device=self.images.device)
        images = self.images.index_select(0, rows)
        if self.augment is not None:
            images = flip_and_crop(images, self.augment)
        # The bytes 0..255 become -1..1, as with ToTensor() and Normalize(0.5, 0.5).
        return images.float().div_(127.5).sub_(1), self.labels.index_select(0, rows)

    def to(self, device: str | torch.device) -> ImageDataset:
        """The same data set with its images and labels on `device`."""
        return ImageDataset(
            self.images.to(device), self.labels.to(device), self.classes, self.augment
        )


def flip_and_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image with probability 1/2, pad it with 4 black pixels and cut 32x32 out again.

    Args:
        images: uint8 (B, 3, 32, 32); returned as a changed copy.
        generator: a CPU generator, so that every device gets the same random numbers.
    """
    count, device = len(images), images.device
    flip = torch.randint(2, (count, 1), generator=generator).to(device)
    top, left = torch.randint(2 * PAD + 1, (2, count, 1), generator=generator).to(device)
    across = torch.arange(SIZE, device=device)
    rows = across + top  # (B, 32): the rows of the padded image that are kept
    columns = torch.where(flip == 1, across.flip(0), across) + left  # (B, 32)
    padded = torch.nn.functional.pad(images, (PAD, PAD, PAD, PAD))  # (B, 3, 40, 40)
    image = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(3, device=device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Data(NamedTuple):
    """What `load_data` returns. `source` says what was loaded: "cifar10", "folder" or "shapes"."""

    train_loader: DataLoader
    test_loader: DataLoader
    classes: list[str]
    source: str


def load_data(
    source: str = "auto",
    data_dir: str | Path = "data",
    batch_size: int = 4,
    seed: int = 0,
    device: str | torch.device = "cpu",
    augment: bool = False,
    mirrors: Sequence[str] = (),
) -> Data:
    """Load the images of `source` and put a train and a test loader on top of them.

    Args:
        source: "cifar10", "shapes", "auto" (CIFAR-10, or the shapes where it cannot be had, which
            is said on stderr) or a folder that holds train/<class>/* and test/<class>/*.
        data_dir: where CIFAR-10 is, or is downloaded to.
        batch_size: images per training batch.
        seed: of the order of the training images, and of the augmentation.
        device: where the images are kept and the batches come out.
        augment: flip and crop the training images at random.
        mirrors: further addresses to download CIFAR-10 from, tried first.

    Raises:
        InputError: the images cannot be had.
    """
    train, test, kind = read_source(source, Path(data_dir), mirrors)
    return make_loaders(train, test, kind, batch_size, seed, device, augment)


def make_loaders(
    train: ImageDataset,
    test: ImageDataset,
    kind: str,
    batch_size: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
    augment: bool = False,
) -> Data:
    """Put the two loaders on top of images that `read_source` read; see `load_data`."""
    train, test = train.to(device), test.to(device)
    generator = torch.Generator().manual_seed(seed)
    if augment:
        train.augment = generator
    # The data set hands out whole batches, so there is nothing left for DataLoader to collate.
    train_loader = BatchLoader(
        train, batch_size, shuffle=True, generator=generator, collate_fn=as_it_is
    )
    test_loader = DataLoader(test, TEST_BATCH, collate_fn=as_it_is)
    return Data(train_loader, test_loader, train.classes, kind)


class BatchLoader(DataLoader):
    """A DataLoader that gives the same batches sooner, for data sets that hand out whole batches.

    It asks for about 128 images at once and cuts them into batches: Python and PyTorch need hardly
    longer to gather and normalise many images than to do so with four.
    """

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        count = max(1, GATHERED // self.batch_size) * self.batch_size
        several = DataLoader(
            self.dataset,
            count,
            sampler=self.sampler,
            generator=self.generator,
            collate_fn=self.collate_fn,
        )
        for images, labels in several:
            yield from zip(
                images.split(self.batch_size), labels.split(self.batch_size), strict=True
            )


def as_it_is(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch that `ImageDataset.__getitems__` made."""
    return batch


def read_source(
    source: str, data_dir: Path, mirrors: Sequence[str]
) -> tuple[ImageDataset, ImageDataset, str]:
    """The train and test images of `source`, and its kind as in `Data.source`; see `load_data`."""
    if source == "shapes":
        return *read_shapes(), "shapes"
    if source not in ("auto", "cifar10"):
        return *read_folder(Path(source)), "folder"
    try:
        return *read_cifar10(data_dir, mirrors), "cifar10"
    except InputError as error:
        if source == "cifar10":
            raise
        print(
            f"WARNING: {error}\n"
            "WARNING: training on the built-in SHAPES instead. They are drawings, NOT CIFAR-10.",
            file=sys.stderr,
        )
        return *read_shapes(), "shapes"


def read_shapes() -> tuple[ImageDataset, ImageDataset]:
    """50,000 and 10,000 drawings of ten shapes: the same ones every time."""
    parts = shapes.draw_shapes(50_000, seed=0), shapes.draw_shapes(10_000, seed=1)
    train, test = (
        ImageDataset(torch.from_numpy(images), torch.from_numpy(labels), shapes.CLASSES)
        for images, labels in parts
    )
    return train, test


def read_cifar10(data_dir: Path, mirrors: Sequence[str]) -> tuple[ImageDataset, ImageDataset]:
    """CIFAR-10 from `data_dir`, downloaded first where it is not there."""
    try:
        fetch_cifar10(data_dir, mirrors)
        parts = [CIFAR10(data_dir, train=is_train) for is_train in (True, False)]
    except DownloadError as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:  # torchvision found another md5
        folder = data_dir / CIFAR10.base_folder
        raise InputError(f"{str(folder)!r} is damaged: delete it and try again") from error
    except OSError as error:
        raise InputError(f"CIFAR-10 in {str(data_dir)!r} cannot be read: {error}") from error
    train, test = (
        ImageDataset(
            torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),  # (N, 3, 32, 32)
            torch.tensor(part.targets),
            part.classes,
        )
        for part in parts
    )
    return train, test


def read_folder(folder: Path) -> tuple[ImageDataset, ImageDataset]:
    """The images of folder/train/<class>/ and folder/test/<class>/, with any folders inside them.

    Classes and files are taken in sorted order; hidden ones are passed over.
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
    return read_images(train_files, "train images"), read_images(test_files, "test images")


def files_by_class(folder: Path) -> dict[str, list[str]]:
    """For each class folder in `folder`, in sorted order, the paths of the files in it."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = [name for name in names if not name.startswith(".")]
    if len(names) < 2:
        raise InputError(
            f"{str(folder)!r} has {len(names)} class folders, but telling classes apart takes two "
            "or more: put the images of each class into a folder of their own"
        )
    classes = {name: files_below(str(folder / name)) for name in names}
    for name, files in classes.items():
        if not files:
            raise InputError(
                f"{str(folder / name)!r} holds no images: add some, or remove the folder"
            )
        if name.encode(errors="ignore").decode() != name:  # TensorBoard could not show it
            raise InputError(f"{str(folder / name)!r} is not a name in UTF-8: rename the folder")
    return classes


def files_below(folder: str) -> list[str]:
    """The files in `folder` and in the folders inside it, links followed, hidden ones left out.

    Raises:
        OSError: a folder cannot be listed.
    """
    here = Path(os.path.realpath(folder))
    seen = {here, *here.parents}  # a link back to one of these would go round for ever

    def fail(error: OSError) -> None:  # os.walk passes over such a folder in silence
        raise error

    found = []
    for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        for name in sorted(folders):
            target = Path(os.path.realpath(os.path.join(root, name)))
            if name.startswith(".") or target in seen:
                folders.remove(name)  # os.walk then does not go into it
            seen.add(target)
        folders.sort()
        visible = [f for f in files if not f.startswith(".") and f.lower() not in NOT_IMAGES]
        found += [os.path.join(root, name) for name in sorted(visible)]
    return found


def read_images(files: dict[str, list[str]], title: str) -> ImageDataset:
    """Read the files of each class into one array; on a terminal, a progress bar is shown."""
    paths = [path for of_class in files.values() for path in of_class]
    labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])
    images = np.empty((len(paths), 3, SIZE, SIZE), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on files that it can read after all
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # One after the other: with files as small as CIFAR-10's, threads only wait for each other.
        for i, path in enumerate(tqdm(paths, title, unit=" files", disable=None)):
            images[i] = read_image(path).transpose(2, 0, 1)
    return ImageDataset(torch.from_numpy(images), torch.from_numpy(labels), list(files))


def read_image(path: str) -> np.ndarray:
    """Any image that Pillow can read, as uint8 (32, 32, 3): upright, on white, resized.

    Raises:
        InputError: it is no image, or a broken one.
    """
    try:
        if not os.path.isfile(path):  # opening a named pipe would wait for ever
            raise OSError("not a file, or a link to nothing")
        with Image.open(path) as picture:
            picture.draft(None, (4 * SIZE, 4 * SIZE))  # large JPEGs: decode at 1/2, 1/4 or 1/8
            ImageOps.exif_transpose(picture, in_place=True)
            return np.asarray(to_rgb(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    except Exception as error:  # Pillow's many decoders fail in as many ways
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"{path!r} is not an image that Pillow can read ({reason}): remove or replace it"
        ) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """Turn any of Pillow's modes into RGB; what is transparent becomes white."""
    if picture.mode == "F":
        raise ValueError("its pixels are floats, and where white lies is not said")
    if picture.mode.startswith("I"):  # 16 bits per pixel: convert() would clip them at 255
        grey = np.asarray(picture).astype(np.float32) / 257
        picture = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
