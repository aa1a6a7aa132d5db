"""data.py, folder.py, shapes.py: loaders, augmentation, and every source with its bad inputs."""

import os
import pickle
import random
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import cifar_server
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder

import data
from data import ImageDataset, load_data, make_loaders, read_source
from support import shapes
from support.errors import InputError
from support.folder import read_image

tiny = cifar_server.tiny  # fixture

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def one_thread():
    """These arrays are small: on a busy machine, threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_images(count: int) -> torch.Tensor:
    return torch.from_numpy(RNG.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))


def numbered(count: int, augment: torch.Generator | None = None) -> ImageDataset:
    """A data set in which every label is the image's own number."""
    return ImageDataset(random_images(count), torch.arange(count), ["a", "b"], augment)


def to_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.add(1).mul(127.5).round().to(torch.uint8)


# --- ImageDataset


def test_a_batch_is_normalised_as_torchvision_does_it():
    dataset = numbered(5)
    oracle = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    images, labels = dataset.take([3, 0, 3])
    expected = [oracle(Image.fromarray(dataset.images[i].permute(1, 2, 0).numpy())) for i in (3, 0)]
    torch.testing.assert_close(images, torch.stack([expected[0], expected[1], expected[0]]))
    assert images.dtype == torch.float32
    assert labels.tolist() == [3, 0, 3] and labels.dtype == torch.int64


def test_black_and_white_become_exactly_minus_one_and_one():
    images = torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 255)]).to(torch.uint8)
    batch, _ = ImageDataset(images, torch.tensor([0, 1]), ["a", "b"]).take([0, 1])
    assert batch[0].unique().tolist() == [-1] and batch[1].unique().tolist() == [1]


def test_a_single_image_is_a_row_of_the_batch():
    dataset = numbered(4)
    for index in (0, 3, -1):
        image, label = dataset[index]
        assert torch.equal(image, dataset.take([index % 4])[0][0])
        assert label == index % 4 and isinstance(label, int)
    with pytest.raises(IndexError):
        dataset[4]
    assert len(dataset) == len(list(dataset)) == 4  # iteration ends


def test_a_sample_is_the_same_for_a_seed_and_holds_no_image_twice():
    dataset = numbered(30)
    images, labels = dataset.sample(10, seed=3)
    again, same_labels = dataset.sample(10, seed=3)
    assert torch.equal(images, again) and torch.equal(labels, same_labels)
    assert torch.equal(images, dataset.take(labels.tolist())[0])  # labels are the images' numbers
    picked = torch.randperm(30, generator=torch.Generator().manual_seed(3))[:10]
    assert torch.equal(labels, picked) and len(set(labels.tolist())) == 10
    assert dataset.sample(10, seed=4)[1].tolist() != labels.tolist()
    assert sorted(dataset.sample(100, seed=3)[1].tolist()) == list(range(30))  # there are no more


def test_a_sample_leaves_the_augmentation_of_the_run_alone():
    generator = torch.Generator().manual_seed(0)
    dataset = numbered(20, generator)
    before = generator.get_state()
    first, second = dataset.sample(20, seed=1)[0], dataset.sample(20, seed=1)[0]
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(first, second)
    plain, _ = ImageDataset(dataset.images, dataset.labels, ["a", "b"]).sample(20, seed=1)
    assert not torch.equal(first, plain)  # augmented as in training


def test_what_is_read_can_be_sent_to_another_process(few_shapes, tmp_path):
    train, test, source = pickle.loads(pickle.dumps(read_source("shapes", tmp_path, [])))
    assert source == "shapes" and train.classes == shapes.CLASSES
    assert [len(train), len(test)] == [50, 10]
    assert torch.equal(train.images, read_source("shapes", tmp_path, [])[0].images)


def test_a_batch_does_not_change_the_images():
    dataset = numbered(3, torch.Generator().manual_seed(0))
    before = dataset.images.clone()
    dataset.take([0, 1, 2])[0].zero_()
    assert torch.equal(dataset.images, before)


def test_to_moves_images_and_labels_and_keeps_the_rest():
    generator = torch.Generator()
    moved = numbered(3, generator).to("meta")
    assert moved.images.device.type == moved.labels.device.type == "meta"
    assert moved.classes == ["a", "b"] and moved.augment is generator


# --- Augmentation


def all_flips_and_crops(image: np.ndarray) -> dict[bytes, tuple[bool, int, int]]:
    """Every picture that augmentation may make of one, in plain NumPy."""
    found = {}
    for flip in (False, True):
        source = image[:, :, ::-1] if flip else image
        padded = np.zeros((3, 40, 40), np.uint8)
        padded[:, 4:36, 4:36] = source
        for top in range(9):
            for left in range(9):
                crop = padded[:, top : top + 32, left : left + 32]
                found[crop.tobytes()] = (flip, top, left)
    return found


def test_augmented_images_are_flips_and_crops_and_all_of_them_occur():
    dataset = numbered(2, torch.Generator().manual_seed(0))
    oracles = [all_flips_and_crops(image.numpy()) for image in dataset.images]
    seen = []
    for _ in range(30):
        batch, labels = dataset.take([0, 1] * 50)
        for image, label in zip(batch, labels, strict=True):  # KeyError: not a flip and crop
            seen.append(oracles[label][to_bytes(image).numpy().tobytes()])
    assert set(seen) == {(f, t, s) for f in (False, True) for t in range(9) for s in range(9)}
    flips = [flip for flip, _, _ in seen]
    assert 0.45 < np.mean(flips) < 0.55
    assert sum(a != b for a, b in zip(seen[::2], seen[1::2], strict=True)) > 1400  # one by one


def test_augmentation_is_drawn_from_the_generator_alone():
    first = numbered(8, torch.Generator().manual_seed(5))
    second = ImageDataset(
        first.images, first.labels, first.classes, torch.Generator().manual_seed(5)
    )
    torch.manual_seed(1)
    batch = first.take(list(range(8)))[0]
    torch.manual_seed(2)
    assert torch.equal(batch, second.take(list(range(8)))[0])
    assert not torch.equal(batch, second.take(list(range(8)))[0])  # it goes on


# --- Fewer images, wrong labels


def test_a_subset_is_taken_at_random_with_its_labels():
    whole = numbered(100)
    few = whole.subset(20, seed=1)
    numbers = few.labels.tolist()
    assert few.classes == whole.classes and torch.equal(few.images, whole.images[numbers])
    assert len(set(numbers)) == 20 and numbers != sorted(numbers)
    assert max(numbers) > 60  # from everywhere
    assert whole.subset(20, seed=1).labels.tolist() == numbers
    assert whole.subset(20, seed=2).labels.tolist() != numbers
    assert whole.subset(30, seed=1).labels.tolist()[:20] == numbers  # of the same shuffle
    assert sorted(whole.subset(100, seed=1).labels.tolist()) == list(range(100))


def test_more_images_than_there_are_is_an_input_error():
    with pytest.raises(InputError, match="--train-images 4 is more than the 3 training images"):
        numbered(3).subset(4, seed=0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.999])
def test_just_the_share_of_labels_is_wrong_and_each_wrong_class_as_likely(share):
    classes = list("abcd")
    labels = torch.arange(8000) % 4
    whole = data.ImageDataset(torch.zeros(8000, 3, 1, 1, dtype=torch.uint8), labels, classes)
    spoilt = whole.mislabel(share, seed=1)
    wrong = spoilt.labels != labels
    assert wrong.sum() == round(share * 8000)
    assert torch.equal(labels, torch.arange(8000) % 4)  # what was passed in is as it was
    pairs = (labels * 4 + spoilt.labels)[wrong].bincount(minlength=16).view(4, 4)
    expected = share * 8000 / 12
    assert torch.allclose(pairs[pairs > 0].double(), torch.tensor(expected).double(), rtol=0.25)
    assert torch.equal(whole.mislabel(share, seed=1).labels, spoilt.labels)
    if share:
        assert not torch.equal(whole.mislabel(share, seed=2).labels, spoilt.labels)


def test_nothing_is_changed_where_nothing_is_asked_for():
    whole = numbered(10)
    same = whole.subset(None, seed=1).mislabel(0.0, seed=1)
    assert torch.equal(same.images, whole.images) and torch.equal(same.labels, whole.labels)


# --- Loaders


@pytest.fixture
def few_shapes(monkeypatch):
    """The shapes in small: 50 to train on and 10 to test on."""
    draw = shapes.draw_shapes
    monkeypatch.setattr(shapes, "draw_shapes", lambda count, seed: draw(count // 1000, seed))


def order(loader: DataLoader) -> list[bytes]:
    return [image.numpy().tobytes() for images, _ in loader for image in images]


def test_loaders_are_real_and_shuffle_with_the_seed(few_shapes):
    one, same, other = (load_data("shapes", seed=seed) for seed in (1, 1, 2))
    assert isinstance(one.train_loader, DataLoader) and isinstance(one.test_loader, DataLoader)
    epochs = [order(one.train_loader) for _ in range(3)]
    assert epochs == [order(same.train_loader) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3  # a new order every epoch
    assert order(other.train_loader) not in epochs
    dataset = one.train_loader.dataset
    everything = sorted(order(DataLoader(dataset, 7)))
    assert len(set(everything)) == 50
    assert all(sorted(epoch) == everything for epoch in epochs)  # each image once an epoch


def test_loaders_can_be_made_of_images_that_were_read_before(few_shapes, tmp_path):
    train, test, source = read_source("shapes", tmp_path, [])
    made = make_loaders(train, test, source, batch_size=8, seed=3, device="cpu", augment=True)
    loaded = load_data("shapes", batch_size=8, seed=3, augment=True)
    assert made.classes == loaded.classes and made.source == loaded.source
    assert order(made.train_loader) == order(loaded.train_loader)
    assert order(made.test_loader) == order(loaded.test_loader)
    assert train.augment is None  # what was passed in is as it was


def test_labels_stay_with_their_images(few_shapes):
    loader = load_data("shapes", batch_size=8).train_loader
    dataset = loader.dataset
    label_of = {dataset[i][0].numpy().tobytes(): dataset[i][1] for i in range(len(dataset))}
    for images, labels in loader:
        assert [label_of[image.numpy().tobytes()] for image in images] == labels.tolist()


def test_the_last_batch_is_what_is_left(few_shapes):
    loaded = load_data("shapes", batch_size=8)
    assert [len(images) for images, _ in loaded.train_loader] == [8] * 6 + [2]
    assert len(loaded.train_loader) == 7


@pytest.mark.parametrize("batch_size", [4, 7, 16, 17, 50])
@pytest.mark.parametrize("gathered", [1, 16, 128])
def test_gathering_many_images_at_once_gives_the_batches_of_a_plain_loader(
    few_shapes, monkeypatch, gathered, batch_size
):
    monkeypatch.setattr(data, "GATHER_SIZE", gathered)
    ours = load_data("shapes", batch_size=batch_size, seed=5).train_loader
    generator = torch.Generator().manual_seed(5)
    one_by_one = [ours.dataset[index] for index in range(50)]
    plain = DataLoader(one_by_one, batch_size, shuffle=True, generator=generator)
    for _ in range(2):
        batches, expected = list(ours), [tuple(batch) for batch in plain]
        torch.testing.assert_close(batches, expected, rtol=0, atol=0)
        assert torch.equal(ours.generator.get_state(), generator.get_state())


def test_a_batch_of_four_does_not_ask_for_four_images(few_shapes, monkeypatch):
    asked = []
    gather = ImageDataset.take
    monkeypatch.setattr(
        ImageDataset,
        "take",
        lambda self, indices: asked.append(len(indices)) or gather(self, indices),
    )
    monkeypatch.setattr(data, "GATHER_SIZE", 18)
    assert len(list(load_data("shapes").train_loader)) == 13
    assert asked == [16, 16, 16, 2]


def test_the_test_images_come_in_order_and_unchanged(few_shapes):
    loaded = load_data("shapes", augment=True)
    dataset = loaded.test_loader.dataset
    (images, labels), *rest = loaded.test_loader
    assert not rest and loaded.test_loader.batch_size == 200
    assert torch.equal(to_bytes(images), dataset.images) and torch.equal(labels, dataset.labels)


def test_augmented_epochs_repeat_with_the_seed(few_shapes):
    plain, one, same = (load_data("shapes", augment=augment) for augment in (False, True, True))
    assert one.train_loader.dataset.augment is one.train_loader.generator
    epochs = [order(one.train_loader) for _ in range(2)]
    assert epochs == [order(same.train_loader) for _ in range(2)]
    assert sorted(epochs[0]) != sorted(order(plain.train_loader))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_batches_are_the_same(few_shapes):
    here, there = (load_data("shapes", augment=True, device=device) for device in ("cpu", "cuda"))
    assert there.train_loader.dataset.images.is_cuda
    for (images, labels), (images2, labels2) in zip(here.train_loader, there.train_loader):  # noqa: B905
        assert images2.is_cuda and labels2.is_cuda
        torch.testing.assert_close(images, images2.cpu())
        assert torch.equal(labels, labels2.cpu())


# --- The shapes


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


@pytest.mark.parametrize("shape", shapes.SHAPES, ids=shapes.CLASSES)
def test_a_shape_has_an_inside_and_lies_within_the_unit_circle(shape):
    y, x = np.mgrid[-1.5:1.5:301j, -1.5:1.5:301j].astype(np.float32)
    inside = shape(x, y) < 0
    assert 0.3 < inside.mean() * 9 < 2.6  # its area; the picture would show it
    assert (np.hypot(x, y)[inside] < 1.15).all()


def test_shapes_have_the_size_of_cifar10(monkeypatch):
    asked = []

    def draw(count: int, seed: int):
        asked.append((count, seed))
        return np.zeros((1, 3, 32, 32), np.uint8), np.zeros(1, np.int64)

    monkeypatch.setattr(shapes, "draw_shapes", draw)
    loaded = load_data("shapes", seed=7)
    assert [count for count, _ in asked] == [50_000, 10_000]
    assert asked[0][1] != asked[1][1] and 7 not in (asked[0][1], asked[1][1])
    assert loaded.source == "shapes" and loaded.is_stand_in
    assert loaded.classes == shapes.CLASSES


# --- CIFAR-10


@pytest.fixture
def cifar10_dir(tmp_path, tiny, monkeypatch) -> Path:
    """A data directory with the files of a tiny CIFAR-10, already unpacked; nothing is fetched."""
    (tmp_path / CIFAR10.base_folder).mkdir()
    for name, content in tiny.files.items():
        (tmp_path / CIFAR10.base_folder / name).write_bytes(content)
    monkeypatch.setattr(data, "fetch_cifar10", lambda data_dir, mirrors: None)
    return tmp_path


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


def test_an_archive_in_the_data_directory_is_enough(tmp_path, tiny):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(tiny.archive)
    loaded = load_data("auto", tmp_path)
    assert loaded.source == "cifar10" and len(loaded.train_loader.dataset) == 50


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_cifar10_is_a_clear_error(cifar10_dir, name):
    file = cifar10_dir / CIFAR10.base_folder / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="cifar-10-batches-py' is damaged: delete it"):
        load_data("cifar10", cifar10_dir)


def test_fetching_is_told_where_to_and_from(cifar10_dir, monkeypatch):
    asked = []
    monkeypatch.setattr(data, "fetch_cifar10", lambda *arguments: asked.append(arguments))
    load_data("cifar10", str(cifar10_dir), mirrors=["http://a/"])
    assert asked == [(cifar10_dir, ["http://a/"])]


def no_network(data_dir: Path, mirrors: list[str]) -> None:
    raise InputError("no mirror answers")


def test_auto_falls_back_to_the_shapes_loudly(few_shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "fetch_cifar10", no_network)
    loaded = load_data("auto", tmp_path)
    assert loaded.source == "shapes" and loaded.is_stand_in
    assert loaded.classes == shapes.CLASSES
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "no mirror answers" in warning and "NOT CIFAR-10" in warning


def test_auto_falls_back_from_damaged_files_too(few_shapes, cifar10_dir, capsys):
    (cifar10_dir / CIFAR10.base_folder / "test_batch").write_bytes(b"")
    assert load_data("auto", cifar10_dir).source == "shapes"
    assert "damaged" in capsys.readouterr().err


def test_cifar10_never_falls_back(few_shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "fetch_cifar10", no_network)
    with pytest.raises(InputError, match="no mirror answers"):
        load_data("cifar10", tmp_path)


# --- A folder of images


def save(path: Path, color: str = "red", size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, "PNG")


@pytest.fixture
def folder(tmp_path):
    """Two classes; 3 and 2 images to train on, 1 and 1 to test on."""
    root = tmp_path / "my pictures"
    for name in ("train/cat/1.png", "train/cat/2.png", "train/cat/10.png", "train/dog/a.png"):
        save(root / name, RNG.choice(["red", "green", "blue", "gray"]))
    for name in ("train/dog/b.png", "test/cat/1.png", "test/dog/1.png"):
        save(root / name, RNG.choice(["red", "green", "blue", "gray"]))
    return root


def shown(path: str | Path) -> str:
    """A path as it stands in a message; Windows' backslashes are doubled there."""
    return repr(str(path))


def refusal(root: Path) -> str:
    """The message with which a folder is refused: one line."""
    with pytest.raises(InputError) as caught:
        load_data(str(root))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_is_read_as_imagefolder_reads_it(folder):
    save(folder / "train/cat/more/deep/3.png", "yellow")
    save(folder / "train/ant/1.png", "black")
    save(folder / "test/ant/1.png", "white")
    loaded = load_data(str(folder))
    for split, loader in (("train", loaded.train_loader), ("test", loaded.test_loader)):
        oracle = ImageFolder(folder / split, transforms.PILToTensor())
        dataset = loader.dataset
        assert torch.equal(dataset.images, torch.stack([image for image, _ in oracle]))
        assert dataset.labels.tolist() == oracle.targets and dataset.labels.dtype == torch.int64
        assert loaded.classes == dataset.classes == oracle.classes
    assert loaded.source == str(folder) and not loaded.is_stand_in


def test_the_type_of_an_image_is_not_read_from_its_name(folder):
    (folder / "train/cat/1.png").rename(folder / "train/cat/no-extension")
    (folder / "train/cat/2.png").rename(folder / "train/cat/2.txt")
    assert len(load_data(str(folder)).train_loader.dataset) == 5


def test_hidden_files_and_those_of_windows_are_skipped(folder):
    for name in (".DS_Store", "._1.png", "Thumbs.db", "desktop.ini", ".cache/x"):
        file = folder / "train/cat" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"no image")
    save(folder / "train/.hidden/1.png")
    (folder / "train/readme.txt").write_text("beside the classes")
    loaded = load_data(str(folder))
    assert loaded.classes == ["cat", "dog"] and len(loaded.train_loader.dataset) == 5


def test_chinese_names_and_spaces(folder):
    for split in ("train", "test"):
        save(folder / split / "小 猫" / "第 一 张.png")
    assert load_data(str(folder)).classes == ["cat", "dog", "小 猫"]


def test_links_are_followed_and_loops_end(folder, tmp_path):
    save(tmp_path / "elsewhere/1.png")
    cat = folder / "train/cat"
    try:
        (cat / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    (cat / "link.png").symlink_to(tmp_path / "elsewhere/1.png")
    for loop in ("self", "other"):  # two loops: every level would double the files
        (cat / loop).symlink_to(cat, target_is_directory=True)
    (cat / "up").symlink_to(folder, target_is_directory=True)
    (folder / "train/fox").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "test/fox").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    loaded = load_data(str(folder))
    assert loaded.classes == ["cat", "dog", "fox"]
    assert loaded.train_loader.dataset.labels.tolist() == [0] * 5 + [1] * 2 + [2]


def test_the_source_of_a_relative_folder_is_its_absolute_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    loaded = load_data(folder.name)
    assert loaded.source == str(folder)
    monkeypatch.chdir("/")
    again = load_data(loaded.source)
    assert torch.equal(again.train_loader.dataset.images, loaded.train_loader.dataset.images)


def test_a_folder_that_is_missing_or_not_laid_out(folder, tmp_path):
    assert "nowhere" in refusal(tmp_path / "nowhere") and "train/" in refusal(tmp_path / "nowhere")
    (folder / "test").rename(folder / "val")
    assert shown(folder / "test") in refusal(folder)
    (folder / "val").rename(folder / "test")
    (folder / "train").rename(folder / "val")
    assert shown(folder / "train") in refusal(folder)
    assert "is not a folder" in refusal(folder / "test/cat/1.png")
    assert "is not a folder" in refusal(folder / ("long" * 1000))


def test_classes_that_are_missing(folder):
    (folder / "train/ant").mkdir()
    (folder / "test/ant").mkdir()
    (folder / "train/ant/.hidden").write_bytes(b"")
    assert shown(folder / "train" / "ant") in refusal(folder) and "no images" in refusal(folder)
    save(folder / "train/ant/1.png")
    assert shown(folder / "test" / "ant") in refusal(folder)
    (folder / "test/ant").rmdir()
    assert refusal(folder).endswith(": 'ant'")
    (folder / "train/dog").rename(folder.parent / "dog")
    (folder / "train/ant").rename(folder.parent / "ant")
    assert "1 class folder" in refusal(folder)
    (folder / "train/cat").rename(folder.parent / "cat")
    assert "0 class folders" in refusal(folder)


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on POSIX alone")
def test_a_class_whose_name_is_not_text(folder):
    for split in (b"train", b"test"):
        name = os.fsencode(folder) + b"/" + split + b"/caf\xe9"
        try:
            os.mkdir(name)
        except OSError:
            pytest.skip("this file system refuses such names")
        with open(name + b"/1.png", "wb") as file:
            file.write(png())
    message = refusal(folder)
    assert "UTF-8" in message
    message.encode()  # can be printed


def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    closed = str(folder / "train/cat/closed")
    os.mkdir(closed)
    scandir = os.scandir

    def deny(path):
        if path == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)  # chmod would not stop root
    assert shown(closed) in refusal(folder) and "Permission denied" in refusal(folder)


# --- Images of every kind


def png(size: tuple[int, int] = (32, 32), color: str = "red") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def read(tmp_path: Path, picture: Image.Image, name: str, **options) -> np.ndarray:
    picture.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_image(str(tmp_path / name), 32)


def plain(color: tuple[int, int, int]) -> np.ndarray:
    return np.full((32, 32, 3), color, np.uint8)


PALETTE = Image.new("RGB", (40, 40), (10, 200, 30)).quantize(8)
ORANGE = (255, 128, 0)


@pytest.mark.parametrize(
    ("picture", "name", "expected"),
    [
        (Image.new("RGB", (32, 32), ORANGE), "a.png", ORANGE),
        (Image.new("RGB", (50, 20), ORANGE), "a.bmp", ORANGE),
        (Image.new("RGB", (7, 300), ORANGE), "a.webp", ORANGE),
        (Image.new("RGB", (1, 1), ORANGE), "a.ppm", ORANGE),
        (Image.new("RGB", (900, 700), ORANGE), "a.jpg", ORANGE),
        (Image.new("L", (40, 40), 77), "a.jpg", (77, 77, 77)),
        (Image.new("1", (40, 40), 1), "a.png", (255, 255, 255)),
        (Image.new("1", (40, 40), 0), "a.tif", (0, 0, 0)),
        (PALETTE, "a.png", (10, 200, 30)),
        (PALETTE, "a.gif", (10, 200, 30)),
        (Image.new("CMYK", (40, 40), (0, 255, 0, 0)), "a.tif", (255, 0, 255)),
        (Image.new("CMYK", (40, 40), (0, 255, 0, 0)), "a.jpg", (255, 0, 255)),
        (Image.new("RGBA", (40, 40), (255, 0, 0, 255)), "a.png", (255, 0, 0)),
        (Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "a.png", (255, 255, 255)),
        (Image.new("RGBA", (40, 40), (0, 0, 0, 51)), "a.png", (204, 204, 204)),
        (Image.new("LA", (40, 40), (0, 51)), "a.png", (204, 204, 204)),
        (Image.new("I;16", (40, 40), 0), "a.png", (0, 0, 0)),
        (Image.new("I;16", (40, 40), 65535), "a.png", (255, 255, 255)),
        (Image.new("I;16", (40, 40), 257 * 200), "a.tif", (200, 200, 200)),
        (Image.new("I", (40, 40), 257 * 100), "a.pgm", (100, 100, 100)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_every_kind_of_image_is_read_in_its_colours(tmp_path, picture, name, expected):
    image = read(tmp_path, picture, name)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert abs(image.astype(int) - plain(expected)).max() <= (
        3 if name[2:] in ("jpg", "webp") else 0
    )


def test_an_image_of_the_right_size_is_not_changed(tmp_path):
    pixels = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(read(tmp_path, Image.fromarray(pixels), "a.png"), pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_become_the_nearest_eight(tmp_path, name):
    ramp = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    expected = [[[int(value / 65535 * 255 + 0.5)] * 3 for value in row] for row in ramp]
    assert np.array_equal(read(tmp_path, Image.fromarray(ramp), name), expected)


def test_what_is_half_transparent_lets_white_through(tmp_path):
    pixels = RNG.integers(0, 256, (32, 32, 4), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    image = read(tmp_path, Image.fromarray(pixels), "a.png")
    assert abs(image - expected).max() <= 1


def test_a_transparent_palette_colour_becomes_white(tmp_path):
    picture = Image.new("P", (32, 32), 0)
    picture.putpalette([200, 0, 0, 0, 0, 200])
    picture.paste(1, (16, 0, 32, 32))
    for name in ("a.gif", "a.png"):
        image = read(tmp_path, picture, name, transparency=0)
        assert image[5, 5].tolist() == [255, 255, 255] and image[5, 25].tolist() == [0, 0, 200]


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
def test_the_rotation_in_exif_is_honoured(tmp_path, extension):
    picture = Image.new("RGB", (64, 64), "black")
    picture.paste("white", (0, 0, 64, 32))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me to the right by a quarter to see me upright"
    image = read(tmp_path, picture, f"a.{extension}", exif=exif).astype(int)
    assert image[:, 20:].min() > 200 and image[:, :12].max() < 55  # now the right half


def test_the_first_picture_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    for name in ("a.gif", "a.png", "a.webp"):
        image = read(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        assert abs(image.astype(int) - plain((255, 0, 0))).max() <= 3


def test_large_photographs_are_shrunk_smoothly(tmp_path):
    fine = np.indices((1024, 1024)).sum(0) % 2 * 255  # a chessboard of single pixels is grey
    picture = Image.fromarray(fine.astype(np.uint8)).convert("RGB")
    for name in ("a.png", "a.jpg"):
        assert abs(read(tmp_path, picture, name).astype(int) - 127).max() <= 3


def png_that_claims(side: int) -> bytes:
    """A small file whose header says that it is a square of that many pixels a side."""
    content = png()
    header = content[12:16] + side.to_bytes(4, "big") * 2 + content[24:29]
    return content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]


def broken_files() -> dict[str, bytes]:
    photo = BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(photo, "JPEG")
    floats = BytesIO()
    Image.new("F", (8, 8), 0.5).save(floats, "TIFF")
    return {
        "empty.png": b"",
        "text.png": b"this is no image",
        "cut.jpg": photo.getvalue()[:1500],
        "cut.png": png()[:60],
        "floats.tif": floats.getvalue(),
        "bomb.png": png_that_claims(20_000),  # 400 million pixels
        "warned.png": png_that_claims(10_000),  # 100 million: Pillow only warns
    }


@pytest.mark.parametrize(("name", "content"), broken_files().items(), ids=broken_files())
def test_a_broken_file_is_named(folder, name, content):
    file = folder / "test/dog" / name
    file.write_bytes(content)
    message = refusal(folder)
    assert shown(file) in message and "remove or replace it" in message


def test_decompression_bombs_are_recognised_as_such(folder):
    for name in ("bomb.png", "warned.png"):
        file = folder / "train/cat" / name
        file.write_bytes(broken_files()[name])
        assert "decompression bomb" in refusal(folder)
        file.unlink()


def test_links_to_nothing_and_pipes_are_named(folder):
    if os.name == "nt":
        pytest.skip("POSIX alone has named pipes")
    file = folder / "train/cat/odd.png"
    for make in (lambda: file.symlink_to("nothing"), lambda: file.symlink_to(file.name)):
        make()
        assert shown(file) in refusal(folder)
        file.unlink()
    os.mkfifo(file)
    assert shown(file) in refusal(folder)


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Image, "open", deny)
    assert "1.png" in refusal(folder) and "Permission denied" in refusal(folder)


# --- Anything at all

VALID = png((4, 4))
CONTENT = st.one_of(
    st.just(VALID),
    st.binary(max_size=64),
    st.integers(0, len(VALID)).map(lambda end: VALID[:end]),  # cut off
    st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)).map(  # one byte changed
        lambda change: VALID[: change[0]] + bytes([change[1]]) + VALID[change[0] + 1 :]
    ),
)
PART = st.sampled_from(
    ["train", "test", "a", "b", "猫", " ", "two\nlines", ".x", "Thumbs.db", "1.png"]
)
LAYOUT = st.dictionaries(st.lists(PART, min_size=1, max_size=4).map("/".join), CONTENT, max_size=8)
SOUND = {f"{split}/{name}/1.png": VALID for split in ("train", "test") for name in "ab"}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(extra=LAYOUT, sound=st.booleans())
def test_any_folder_gives_data_or_a_data_error(tmp_path_factory, extra, sound):
    root = tmp_path_factory.mktemp("any")
    for name, content in (SOUND | extra if sound else extra).items():
        try:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        except OSError:  # a file where a folder is needed, or the other way round
            continue
    try:
        loaded = load_data(str(root))
    except InputError as error:
        assert str(error) and "\n" not in str(error)
    else:
        images, labels = next(iter(loaded.test_loader))
        assert images.shape[1:] == (3, 32, 32) and images.abs().max() <= 1
        assert labels.max() < len(loaded.classes)


@pytest.mark.skipif("CIFAR10_IMAGES" not in os.environ, reason="CIFAR10_IMAGES names no folder")
def test_the_real_images():
    root = Path(os.environ["CIFAR10_IMAGES"])
    loaded = load_data(str(root))
    train, test = loaded.train_loader.dataset, loaded.test_loader.dataset
    assert loaded.classes == cifar_server.CLASSES
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    oracle = ImageFolder(root / "train", transforms.PILToTensor())
    for index in random.Random(0).sample(range(50_000), 50):
        image, label = oracle[index]
        assert torch.equal(train.images[index], image) and train.labels[index] == label
