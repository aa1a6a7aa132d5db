"""data.py and shapes.py: loaders, augmentation, and where images come from."""

import re
from pathlib import Path

import cifar_server
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10

from data import ImageDataset, load_data, make_loaders, read_source
from support import shapes
from support.errors import InputError

tiny = cifar_server.tiny  # fixture


def numbered(count: int, augment: torch.Generator | None = None) -> ImageDataset:
    """A data set in which every label is the image's own number."""
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    return ImageDataset(images, torch.arange(count), ["a", "b"], augment)


def to_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.add(1).mul(127.5).round().to(torch.uint8)


# --- ImageDataset, augmentation


def test_a_batch_is_normalised_as_torchvision_does_it_and_the_images_stay():
    dataset = numbered(5)
    dataset.images[1:3] = torch.tensor([0, 255]).view(2, 1, 1, 1)
    before = dataset.images.clone()
    oracle = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    images, labels = dataset.batch([3, 0, 3, 1, 2])
    expected = [oracle(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in before]
    torch.testing.assert_close(images, torch.stack([expected[i] for i in (3, 0, 3, 1, 2)]))
    assert images[3].unique().tolist() == [-1] and images[4].unique().tolist() == [1]  # exactly
    assert labels.tolist() == [3, 0, 3, 1, 2] and labels.dtype == torch.int64
    images.zero_()
    assert torch.equal(dataset.images, before)


def test_images_can_be_taken_one_by_one_until_there_are_no_more():
    dataset = numbered(4)
    assert [dataset[index][1] for index in (0, 3, -1)] == [0, 3, 3]
    assert isinstance(dataset[-1][1], int)
    with pytest.raises(IndexError):  # which ends an iteration
        dataset[4]


@pytest.mark.parametrize("seed", [3, 4])
def test_samples_subsets_and_images_held_back_come_from_one_shuffle(seed):
    whole = numbered(100)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
    rest, held = whole.hold_back(30, seed)
    few, every = whole.subset(20, seed), whole.subset(100, seed)
    parts = (held, order[:30]), (rest, order[30:]), (few, order[:20]), (every, order)
    for part, numbers in parts:
        assert torch.equal(part.labels, numbers) and part.classes == whole.classes
        assert torch.equal(part.images, whole.images[numbers])
    for count in (20, 200):  # there are no more than 100
        images, labels = whole.sample(count, seed)
        assert torch.equal(labels, order[:count])
        assert torch.equal(images, whole.batch(labels.tolist())[0])


def test_a_sample_leaves_the_augmentation_of_the_run_alone():
    generator = torch.Generator().manual_seed(0)
    dataset = numbered(20, generator)
    before = generator.get_state()
    first, second = dataset.sample(20, seed=1)[0], dataset.sample(20, seed=1)[0]
    assert torch.equal(generator.get_state(), before) and torch.equal(first, second)
    plain, _ = ImageDataset(dataset.images, dataset.labels, ["a", "b"]).sample(20, seed=1)
    assert not torch.equal(first, plain)  # augmented as in training


def test_to_moves_images_and_labels_and_keeps_the_rest():
    generator = torch.Generator()
    moved = numbered(3, generator).to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert moved.classes == ["a", "b"] and moved.augment is generator


def all_flips_and_crops(image: np.ndarray) -> dict[bytes, tuple[int, int, int]]:
    """Every picture that augmentation may make of one, in plain NumPy, with how it is made."""
    found = {}
    for flip, source in enumerate((image, image[:, :, ::-1])):
        padded = np.pad(source, ((0, 0), (4, 4), (4, 4)))
        for top in range(9):
            for left in range(9):
                crop = padded[:, top : top + 32, left : left + 32]
                found[crop.tobytes()] = flip, top, left
    return found


def test_augmented_images_are_flips_and_crops_and_all_of_them_occur():
    dataset = numbered(2, torch.Generator().manual_seed(0))
    oracles = [all_flips_and_crops(image.numpy()) for image in dataset.images]
    seen = []
    for _ in range(30):
        batch, labels = dataset.batch([0, 1] * 50)
        for image, label in zip(batch, labels, strict=True):  # KeyError: not a flip and crop
            seen.append(oracles[label][to_bytes(image).numpy().tobytes()])
    assert set(seen) == set(oracles[0].values()) and len(set(seen)) == 2 * 9 * 9
    assert 0.45 < np.mean([flip for flip, _, _ in seen]) < 0.55
    assert sum(a != b for a, b in zip(seen[::2], seen[1::2], strict=True)) > 1400  # one by one


# --- Fewer images, wrong labels


def test_more_images_than_there_are_is_an_input_error():
    with pytest.raises(InputError, match="--train-images 4 is more than the 3 training images"):
        numbered(3).subset(4, seed=0)
    for count in (3, 4):
        with pytest.raises(InputError, match=f"--validation {count} leaves none of the 3 training"):
            numbered(3).hold_back(count, seed=0)


def test_a_class_that_is_missing_is_named(capsys):
    images, labels = torch.zeros(51, 3, 1, 1), torch.tensor([0] * 50 + [1])
    whole = ImageDataset(images, labels, ["cat", "dog"])
    where = {True: "5 images held back", False: "46 images left to train on"}
    missing = [where[1 not in whole.hold_back(5, seed)[1].labels] for seed in range(20)]
    assert set(missing) == set(where.values())  # both happen
    expected = [f"NOTE: of the {part}, none is of 'dog'" for part in missing]
    assert capsys.readouterr().out.splitlines() == expected


def test_test_images_and_those_held_back_come_in_order_and_unchanged():
    (rest, held), test = numbered(20).hold_back(6, seed=1), numbered(4)
    loaded = make_loaders(rest, test, "here", 2, augment=True, validation=held)
    for loader, given in ((loaded.validation_loader, held), (loaded.test_loader, test)):
        ((images, labels),) = loader
        assert torch.equal(to_bytes(images), given.images) and torch.equal(labels, given.labels)
        assert loader.batch_size == 200
    assert len(loaded.train_loader.dataset) == 14


@pytest.mark.parametrize("share", [0.25, 0.999])
def test_just_the_share_of_labels_is_wrong_and_each_wrong_class_as_likely(share):
    labels = torch.arange(8000) % 4
    whole = ImageDataset(torch.zeros(8000, 3, 1, 1, dtype=torch.uint8), labels, [*"abcd"])
    spoilt = whole.mislabel(share, seed=1)
    wrong = spoilt.labels != labels
    assert wrong.sum() == round(share * 8000)
    assert torch.equal(labels, torch.arange(8000) % 4)  # what was passed in is as it was
    pairs = (labels * 4 + spoilt.labels)[wrong].bincount(minlength=16).view(4, 4)
    assert pairs[pairs > 0].numpy() == pytest.approx(share * 8000 / 12, rel=0.25)
    assert torch.equal(whole.mislabel(share, seed=1).labels, spoilt.labels)
    assert not torch.equal(whole.mislabel(share, seed=2).labels, spoilt.labels)
    sampled = [part.sample(1000, seed=1)[1] for part in (whole, spoilt)]
    assert (sampled[0] != sampled[1]).sum() == pytest.approx(1000 * share, abs=40)


def test_nothing_is_changed_where_nothing_is_asked_for():
    whole = numbered(10)
    rest, held = whole.hold_back(0, seed=1)
    same = rest.subset(None, seed=1).mislabel(0.0, seed=1)
    assert torch.equal(same.images, whole.images) and torch.equal(same.labels, whole.labels)
    loaded = make_loaders(rest, numbered(4), "here", 2, validation=held)
    assert len(held) == 0 and loaded.validation_loader is loaded.test_loader


# --- Loaders


@pytest.fixture
def few_shapes(monkeypatch) -> list[tuple[int, int]]:
    """The shapes in small, 50 to train on and 10 to test on; the counts and seeds asked for."""
    draw, asked = shapes.draw_shapes, []

    def draw_few(count: int, seed: int):
        asked.append((count, seed))
        return draw(count // 1000, seed)

    monkeypatch.setattr(shapes, "draw_shapes", draw_few)
    return asked


def order(loader: DataLoader) -> list[bytes]:
    return [image.numpy().tobytes() for images, _ in loader for image in images]


def test_epochs_repeat_with_the_seed_also_of_images_that_were_read_before(few_shapes, tmp_path):
    train, test, source = read_source("shapes", tmp_path, [])
    made = make_loaders(train, test, source, batch_size=8, seed=3, device="cpu", augment=True)
    loaded = load_data("shapes", batch_size=8, seed=3, augment=True)
    assert made.classes == loaded.classes and made.source == loaded.source
    assert made.train_loader.dataset.augment is made.train_loader.generator
    assert train.augment is None  # what was passed in is as it was
    epochs = [order(made.train_loader) for _ in range(2)]
    assert epochs == [order(loaded.train_loader) for _ in range(2)]
    assert order(made.test_loader) == order(loaded.test_loader)
    plain = make_loaders(train, test, source, batch_size=8, seed=3)
    assert sorted(epochs[0]) != sorted(order(plain.train_loader))


@pytest.mark.parametrize("batch_size", [4, 7, 50])
def test_whole_batches_are_those_of_a_loader_that_stacks_single_images(few_shapes, batch_size):
    """The same order for a seed, another in every epoch, all images, and the batches' last."""
    ours = load_data("shapes", batch_size=batch_size, seed=5).train_loader
    generator = torch.Generator().manual_seed(5)
    one_by_one = [ours.dataset[index] for index in range(50)]
    plain = DataLoader(one_by_one, batch_size, shuffle=True, generator=generator)
    for _ in range(2):
        batches, expected = list(ours), [tuple(batch) for batch in plain]
        torch.testing.assert_close(batches, expected, rtol=0, atol=0)
        assert torch.equal(ours.generator.get_state(), generator.get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_batches_are_the_same(few_shapes):
    here, there = (load_data("shapes", augment=True, device=device) for device in ("cpu", "cuda"))
    assert there.train_loader.dataset.images.is_cuda
    for (images, labels), (images2, labels2) in zip(here.train_loader, there.train_loader):  # noqa: B905
        assert images2.is_cuda and labels2.is_cuda
        torch.testing.assert_close(images, images2.cpu())
        assert torch.equal(labels, labels2.cpu())


# --- The shapes, and CIFAR-10


def test_shapes_are_the_same_every_time_and_balanced():
    images, labels = shapes.draw_shapes(1000, seed=0)
    again = shapes.draw_shapes(1000, seed=0)
    assert np.array_equal(images, again[0]) and np.array_equal(labels, again[1])
    assert images.shape == (1000, 3, 32, 32) and images.dtype == np.uint8
    assert labels.dtype == np.int64 and np.bincount(labels).tolist() == [100] * 10
    assert len(set(shapes.CLASSES)) == 10
    assert not np.array_equal(labels, np.sort(labels))
    assert len({image.tobytes() for image in images}) == 1000
    other = shapes.draw_shapes(1000, seed=1)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in other[0]}
    assert images.min() < 30 and images.max() > 225  # the whole range is used


@pytest.mark.parametrize("shape", shapes.CLASSES)
def test_a_shape_has_an_inside_and_lies_within_the_unit_circle(shape):
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j].astype(np.float32)
    inside = shapes.distance_to(shape, x, y) < 0
    assert 0.3 < inside.mean() * 9 < 2.6  # its area; the picture would show it
    assert (np.hypot(x, y)[inside] < 1.15).all()


def test_shapes_have_the_size_of_cifar10_and_are_the_same_for_any_seed(few_shapes):
    load_data("shapes", seed=7)
    assert few_shapes == [(50_000, 0), (10_000, 1)]


@pytest.fixture
def cifar10_dir(tmp_path, tiny) -> Path:
    """A data directory with the files of a tiny CIFAR-10, already unpacked; there is no mirror."""
    return cifar_server.put_files(tmp_path / CIFAR10.base_folder, tiny.files).parent


@pytest.mark.parametrize("source", ["cifar10", "auto"])
def test_cifar10_is_read_from_its_own_files(cifar10_dir, tiny, source, capsys):
    loaded = load_data(source, cifar10_dir)
    for is_train, loader in ((True, loaded.train_loader), (False, loaded.test_loader)):
        dataset = loader.dataset
        assert np.array_equal(dataset.images.permute(0, 2, 3, 1), tiny.images[is_train])
        assert dataset.images.dtype == torch.uint8 and dataset.images.is_contiguous()
        assert dataset.labels.tolist() == tiny.labels[is_train]
        assert dataset.labels.dtype == torch.int64
    assert loaded.classes == cifar_server.CLASSES
    assert loaded.source == "cifar10" and not loaded.is_stand_in
    assert capsys.readouterr().err == ""


def test_auto_alone_falls_back_to_the_shapes_loudly(few_shapes, cifar10_dir, capsys):
    (cifar10_dir / CIFAR10.base_folder / "test_batch").write_bytes(b"")
    where = {"data_dir": str(cifar10_dir), "mirrors": ["http://127.0.0.1:9/"]}
    loaded = load_data("auto", **where)
    assert loaded.source == "shapes" and loaded.is_stand_in and loaded.classes == shapes.CLASSES
    warning = capsys.readouterr().err
    assert re.search("WARNING: .*test_batch is damaged.*127.0.0.1:9", warning)
    assert "NOT CIFAR-10" in warning
    with pytest.raises(InputError, match="test_batch is damaged"):
        load_data("cifar10", **where)
