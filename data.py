"""From a source of images to two DataLoaders and the class names.

`load_data` reads CIFAR-10 or a folder of the reader's own pictures, or draws the built-in shapes.
All three become the same thing: one uint8 tensor of 32x32 RGB images in memory (CIFAR-10: 184 MB),
from which a batch is gathered and normalised at once. For a network as small as ours that is
many times faster than opening and converting the images one by one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CIFAR10

from support import shapes
from support.cifar10 import fetch_cifar10, refuse_cifar10
from support.errors import InputError
from support.folder import read_folder
from support.terminal import say

SIZE = 32  # height and width of every image
PAD = 4  # black pixels added on each side before a random crop
TEST_BATCH = 200  # on the CPU larger ones wait for fresh memory, smaller ones for each thread


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
        images, labels = self.batch([range(len(self))[index]])
        return images[0], int(labels[0])

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The images, float32 (B, 3, 32, 32) in [-1, 1], and labels, int64 (B,), at `indices`."""
        rows = torch.tensor(indices, dtype=torch.int64, device=self.images.device)
        images = self.images.index_select(0, rows)
        if self.augment is not None:
            images = flip_and_crop(images, self.augment)
        # The bytes 0..255 become -1..1, as with ToTensor() and Normalize(0.5, 0.5).
        return images.float().div_(127.5).sub_(1), self.labels.index_select(0, rows)

    __getitems__ = batch  # what DataLoader calls for a whole batch at once

    def sample(self, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Up to `count` images picked at random, as a batch: the same ones for a seed.

        Augmentation draws from the seed too, so that looking at images never changes a run.
        """
        generator = torch.Generator().manual_seed(seed)
        picked = torch.randperm(len(self), generator=generator)[:count].tolist()
        augment = None if self.augment is None else generator
        return ImageDataset(self.images, self.labels, self.classes, augment).batch(picked)

    def rows(self, indices: torch.Tensor) -> ImageDataset:
        """The data set of the images at `indices`, int64 (B,), alone."""
        return ImageDataset(self.images[indices], self.labels[indices], self.classes, self.augment)

    def hold_back(self, count: int, seed: int) -> tuple[ImageDataset, ImageDataset]:
        """The images without `count` of them, picked at random, and those: the same for a seed.

        Where a class is missing from either, a line says so.

        Raises:
            InputError: no image would be left.
        """
        if count >= len(self):
            raise InputError(
                f"--validation {count} leaves none of the {len(self)} training images: "
                "hold back fewer"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        held = self.rows(order[:count])
        if count == 0:
            return self, held
        rest = self.rows(order[count:])
        for part, images in (("held back", held), ("left to train on", rest)):
            missing = sorted(set(range(len(self.classes))) - set(images.labels.tolist()))
            if missing:
                names = ", ".join(repr(self.classes[label]) for label in missing)
                say(f"NOTE: of the {len(images):,} images {part}, none is of {names}")
        return rest, held

    def subset(self, count: int | None, seed: int) -> ImageDataset:
        """The first `count` images of a shuffle, the same ones for a seed; None for all.

        Raises:
            InputError: there are not so many.
        """
        if count is None:
            return self
        if count > len(self):
            raise InputError(
                f"--train-images {count} is more than the {len(self)} training images: take fewer"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.rows(order[:count])

    def mislabel(self, share: float, seed: int) -> ImageDataset:
        """The same images, a share (0 to 1) of them, picked at random, with another class."""
        generator = torch.Generator().manual_seed(seed)
        # Drawn first: otherwise `sample(seed)` would show exactly the mislabelled images.
        shift = torch.randint(1, len(self.classes), (len(self),), generator=generator)
        wrong = torch.randperm(len(self), generator=generator)[: round(share * len(self))]
        labels = self.labels.clone()
        labels[wrong] = (labels[wrong] + shift[wrong]) % len(self.classes)
        return ImageDataset(self.images, labels, self.classes, self.augment)

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
    """What `load_data` returns."""

    train_loader: DataLoader
    test_loader: DataLoader
    classes: list[str]
    source: str  # what finds the same images again: "cifar10", "shapes" or a folder's whole path
    is_stand_in: bool  # the images are the built-in shapes: CIFAR-10's figures do not apply
    validation_loader: DataLoader  # of the images held back; where none are, `test_loader`


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

    `train_cifar.py` does it in two steps, `read_source` and `make_loaders`, to take fewer images
    or mislabel some in between.

    Args:
        source: "cifar10", "shapes", "auto" (CIFAR-10, or the shapes where it is not available,
            which is said on stderr) or a folder that holds train/<class>/* and test/<class>/*.
        data_dir: where CIFAR-10 is, or is downloaded to.
        batch_size: images per training batch.
        seed: of the order of the training images, and of the augmentation.
        device: where the images are kept and the batches come out.
        augment: flip and crop the training images at random.
        mirrors: further addresses to download CIFAR-10 from, tried first.

    Raises:
        InputError: the images are not available.
    """
    train, test, source = read_source(source, data_dir, mirrors)
    return make_loaders(train, test, source, batch_size, seed, device, augment)


def make_loaders(
    train: ImageDataset,
    test: ImageDataset,
    source: str,
    batch_size: int,
    seed: int = 0,
    device: str | torch.device = "cpu",
    augment: bool = False,
    validation: ImageDataset | None = None,
) -> Data:
    """Put loaders on top of images that `read_source` read; see `load_data`.

    `validation`, if it is not empty, are training images that were held back.
    """
    train, test = train.to(device), test.to(device)
    # One generator gives both the order and the augmentation: to bring back its state at the start
    # of an epoch is to bring back the epoch.
    generator = torch.Generator().manual_seed(seed)
    if augment:
        train.augment = generator
    train_loader = DataLoader(
        train, batch_size, shuffle=True, generator=generator, collate_fn=already_collated
    )
    test_loader = validation_loader = DataLoader(test, TEST_BATCH, collate_fn=already_collated)
    if validation:
        validation = validation.to(device)
        validation_loader = DataLoader(validation, TEST_BATCH, collate_fn=already_collated)
    is_stand_in = source == "shapes"
    return Data(train_loader, test_loader, train.classes, source, is_stand_in, validation_loader)


def already_collated(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch as it is: DataLoader would take it for a list of images to be stacked."""
    return batch


def read_source(
    source: str, data_dir: str | Path, mirrors: Sequence[str]
) -> tuple[ImageDataset, ImageDataset, str]:
    """The train and test images of `source`, and `Data.source`; see `load_data`."""
    if source == "shapes":
        return *read_shapes(), "shapes"
    if source not in ("auto", "cifar10"):
        refuse_cifar10(Path(source))
        *parts, classes = read_folder(Path(source), SIZE)
        return *as_datasets(parts, classes), str(Path(source).absolute())
    try:
        return *read_cifar10(Path(data_dir), mirrors), "cifar10"
    except InputError as error:
        if source == "cifar10":
            raise
        print(
            f"WARNING: {error}\n"
            "WARNING: training on the built-in SHAPES instead. They are drawings, NOT CIFAR-10.",
            file=sys.stderr,
        )
        return *read_shapes(), "shapes"


def as_datasets(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], classes: list[str]
) -> tuple[ImageDataset, ImageDataset]:
    """Train and test set of two pairs of images, uint8 (N, 3, 32, 32), and labels, int64 (N,)."""
    train, test = (
        ImageDataset(torch.from_numpy(images), torch.from_numpy(labels), classes)
        for images, labels in parts
    )
    return train, test


def read_shapes() -> tuple[ImageDataset, ImageDataset]:
    """50,000 and 10,000 drawings of ten shapes: the same ones every time."""
    parts = shapes.draw_shapes(50_000, seed=0), shapes.draw_shapes(10_000, seed=1)
    return as_datasets(parts, shapes.CLASSES)


def read_cifar10(data_dir: Path, mirrors: Sequence[str]) -> tuple[ImageDataset, ImageDataset]:
    """CIFAR-10 from `data_dir`, downloaded first where it is not there."""
    try:
        folder = fetch_cifar10(data_dir, mirrors).absolute()
        reader = type("CIFAR10", (CIFAR10,), {"base_folder": folder.name})  # it may be renamed
        parts = [reader(folder.parent, train=is_train) for is_train in (True, False)]
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
