"""support/folder.py: pictures of every kind from folders of every kind, and what is refused."""

import os
import re
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from data import ImageDataset, load_data
from support.errors import InputError
from support.folder import class_name, read_image

RNG = np.random.default_rng(0)
posix = pytest.mark.skipif(os.name == "nt", reason="names in bytes and pipes are POSIX alone")


# ------------------------------------------------------------------------- the folder and its names


def noise(*shape: int) -> Image.Image:
    """A picture that no other is like."""
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def save(path: Path, color: str = "") -> None:
    """Save a picture of one colour, or of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (32, 32), color) if color else noise(32, 32, 3)
    path.write_bytes(encoded(picture))


@pytest.fixture
def folder(tmp_path):
    """Two classes; 3 and 2 images to train on, 1 and 1 to test on."""
    root = tmp_path / "my pictures"
    for name in ("train/cat/1", "train/cat/2", "train/cat/10", "train/dog/a", "train/dog/b"):
        save(root / f"{name}.png")
    for name in ("test/cat/1", "test/dog/1"):
        save(root / f"{name}.png")
    return root


def sets(folder: Path) -> tuple[ImageDataset, ImageDataset]:
    """The images that are read from a folder, to train and to test on."""
    loaded = load_data(str(folder))
    return loaded.train_loader.dataset, loaded.test_loader.dataset


def refusal(root: Path) -> str:
    """The message with which a folder is refused: one line."""
    with pytest.raises(InputError) as caught:
        load_data(str(root))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_is_read_as_imagefolder_reads_it(folder, monkeypatch):
    for name in ("train/cat/more/deep/3", "train/ant/1", "test/ant/1"):
        save(folder / f"{name}.png")
    monkeypatch.chdir(folder.parent)
    loaded = load_data(folder.name)
    for split, loader in (("train", loaded.train_loader), ("test", loaded.test_loader)):
        oracle = ImageFolder(folder / split, transforms.PILToTensor())
        dataset = loader.dataset
        assert torch.equal(dataset.images, torch.stack([image for image, _ in oracle]))
        assert dataset.labels.tolist() == oracle.targets and dataset.labels.dtype == torch.int64
        assert loaded.classes == dataset.classes == oracle.classes
    assert loaded.source == str(folder) and not loaded.is_stand_in  # a path from wherever one is


def test_hidden_files_are_skipped_without_a_word_others_by_their_ending_in_one_line(folder, capsys):
    (folder / "train/cat/1.png").rename(folder / "train/cat/no-extension")
    (folder / "train/cat/2.png").rename(folder / "train/cat/2.JPG")  # its content is what counts
    hidden = (".DS_Store", "._1.png", ".ipynb_checkpoints/x", "__MACOSX/1.png", "@eaDir/1.jpg")
    others = ("train/cat/labels.csv", "train/cat/in/3.jpg.part", "test/dog/a.xml", "test/dog/b.db")
    for name in (*(f"train/cat/{name}" for name in hidden), "train/readme.txt", *others):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    save(folder / "train/.hidden/1.png")
    save(folder / "__MACOSX/train/._1.png")
    train, test = sets(folder)
    assert train.classes == ["cat", "dog"] and len(train) == 5 and len(test) == 2
    first = repr(str(folder / "train/cat/labels.csv"))
    note = f"NOTE: files skipped, by their ending: 4, the first is {first}\n"
    assert capsys.readouterr().out == note


# --- Layouts


@pytest.mark.parametrize(
    ("train", "test", "unread"),
    [
        ("Training", "Validation", []),
        ("training_set", "test_set", ["single prediction"]),
        ("TRAIN_DATA", "testing", ["valid"]),
        ("train", "test", ["val", "docs"]),
        ("seg_train/seg_train", "seg_test/seg_test", ["seg_pred"]),
        ("archive/train2017", "archive/val2017", []),
    ],
)
def test_the_parts_are_found_by_what_they_are_called(tmp_path, capsys, train, test, unread):
    for name in "ab":
        save(tmp_path / train / name / "1.png", "red")
        save(tmp_path / test / name / "1.png", "blue")
        for other in unread:
            save(tmp_path / other / name / "1.png", "lime")
    colors = [part.images[..., 0, 0].tolist() for part in sets(tmp_path)]
    assert colors == [[[255, 0, 0]] * 2, [[0, 0, 255]] * 2]
    names = ", ".join(map(repr, sorted(unread)))
    note = f"NOTE: left unread in {str(tmp_path)!r}: {names}\n" if unread else ""
    assert capsys.readouterr().out == note


def test_without_a_test_part_every_fifth_picture_of_a_class_is_held_back(tmp_path, capsys):
    counts = {"ant": 11, "bee": 5, "train": 5}  # a class may be called "train"
    files = [f"{name}/{index:02}.png" for name, count in counts.items() for index in range(count)]
    for number, file in enumerate(files):
        save(tmp_path / "around" / file, f"rgb({number}, 0, 0)")
    (tmp_path / "around/ant/02.txt").write_text("does not count")
    train, test = sets(tmp_path)
    held = [4, 9, 15, 20]
    assert test.images[:, 0, 0, 0].tolist() == held and test.labels.tolist() == [0, 0, 1, 2]
    assert train.images[:, 0, 0, 0].tolist() == [n for n in range(21) if n not in held]
    assert train.labels.tolist() == [0] * 9 + [1] * 4 + [2] * 4
    assert train.classes == ["ant", "bee", "train"]
    assert "NOTE: 4 pictures, every 5th of a class, are held back" in capsys.readouterr().out


TWO = ["train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["cat/1.png", "dog/1.png"], "no test part, and fewer than 5 pictures, .* 'cat', 'dog'"),
        (["1.png", "2.png"], "class folders: 0, pictures: 2"),
        (["train/1.png", "test/1.png"], "train' holds class folders: 0, pictures: 1"),
        ([*TWO[:2], "test/1.png"], "test' holds class folders: 0, pic"),
        (["train/a/1.png", "test/a/1.png"], "train' holds class folders: 1, pictures: 0"),
        ([*TWO, "train/ant/.hidden", "test/ant/1.png"], r"train\W+ant' holds no images"),
        ([*TWO, "train/ant/1.png", "test/ant/.hidden"], r"test\W+ant' holds no images"),
        ([*TWO, "train/ant/1.png"], ": 'ant'$"),
        (["train/a/1.png", "dev/a/1.png"], "holds 'dev', 'train', but which"),
        (["test/a/1.png", "val/a/1.png"], "holds 'test', 'val', but which"),
        (["train/a/1.png", "training/a/1.png", "val/a/1.png"], "holds 'train', 'training', 'val'"),
        ([f"fold{i}/{name}/1.png" for i in "123" for name in "ab"], "holds 'fold1', 'fold2', 'f"),
        ([f"{name}/{part}/1.png" for name in "ab" for part in ("train", "test")], "holds 'a', 'b'"),
    ],
)
def test_an_unclear_layout_is_refused_with_what_was_found(tmp_path, files, expected):
    for name in files:
        save(tmp_path / "set" / name)
    assert re.search(expected, refusal(tmp_path / "set"))


def test_what_is_no_folder(folder, tmp_path):
    assert "nowhere" in refusal(tmp_path / "nowhere") and "train/" in refusal(tmp_path / "nowhere")
    assert "is not a folder" in refusal(folder / "test/cat/1.png")
    assert "is not a folder" in refusal(folder / ("long" * 1000))


# --- Names and links


def test_a_class_in_two_unicode_forms_is_one_and_may_have_a_chinese_name_with_spaces(folder):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    save(folder / "train" / composed / "1.png")
    save(folder / "train" / decomposed / "2.png")
    save(folder / "test" / decomposed / "1.png")
    for part in ("train", "test"):
        save(folder / part / "小 猫" / "第 一 张.png")
    train, _ = sets(folder)
    assert train.classes == [composed, "cat", "dog", "小 猫"]
    assert train.labels.bincount().tolist() == [2, 3, 2, 1]


@posix
def test_names_are_utf_8_in_whatever_locale(folder):
    """Under LC_ALL=C, Python takes them for ASCII, and each other byte becomes half a character."""
    assert class_name(Path("狗".encode().decode("ascii", "surrogateescape"))) == "狗"
    try:
        for split in ("train", "test"):
            save(Path(os.fsdecode(os.fsencode(folder / split) + b"/caf\xe9/1.png")))
    except OSError:
        pytest.skip("this file system refuses other names")
    message = refusal(folder)
    assert "UTF-8" in message
    message.encode()  # can be printed


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
    for part in ("train", "test"):
        (folder / part / "fox").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    loaded = load_data(str(folder))
    assert loaded.classes == ["cat", "dog", "fox"]
    assert loaded.train_loader.dataset.labels.tolist() == [0] * 5 + [1] * 2 + [2]


@posix
def test_links_to_nothing_and_pipes_are_no_images_and_all_are_counted(folder):
    loop = folder / "train/dog/y.gif"
    loop.symlink_to(loop.name)
    assert repr(str(loop)) in refusal(folder)
    loop.unlink()
    first = folder / "train/cat/x.png"
    first.symlink_to("nothing")
    os.mkfifo(folder / "test/dog/z")
    said = f"2 files cannot be read; the first: {str(first)!r} is not an image"
    assert refusal(folder).startswith(said)


@pytest.mark.parametrize(
    ("owner", "name", "named"), [(Image, "open", "train/cat/1.png"), (os, "scandir", "train/cat")]
)
def test_what_may_not_be_read_is_named(folder, monkeypatch, owner, name, named):
    def deny(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(owner, name, deny)  # chmod would not stop root
    assert re.search(re.escape(repr(str(folder / named))) + ".*Permission denied", refusal(folder))


# ------------------------------------------------------------------------- images of every kind


def read(tmp_path: Path, picture: Image.Image, name: str, **options) -> np.ndarray:
    picture.save(tmp_path / name, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_image(str(tmp_path / name), 32)


ORANGE, WHITE = (255, 128, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "size", "color", "name", "expected"),
    [
        ("RGB", (50, 20), ORANGE, "a.bmp", ORANGE),
        ("RGB", (7, 300), ORANGE, "a.webp", ORANGE),
        ("RGB", (1, 1), ORANGE, "a.ppm", ORANGE),
        ("RGB", (900, 700), ORANGE, "a.jpg", ORANGE),
        ("L", (40, 40), 77, "a.jpg", (77, 77, 77)),
        ("1", (40, 40), 1, "a.tif", WHITE),
        ("P", (40, 40), ORANGE, "a.gif", ORANGE),
        ("CMYK", (40, 40), (0, 255, 0, 0), "a.jpg", (255, 0, 255)),
        ("LA", (40, 40), (0, 51), "a.png", (204, 204, 204)),
        ("I", (40, 40), 257 * 100, "a.pgm", (100, 100, 100)),
    ],
)
def test_every_kind_of_image_is_read_in_its_colours(tmp_path, mode, size, color, name, expected):
    image = read(tmp_path, Image.new(mode, size, color), name)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    difference = abs(image.astype(int) - expected).max()
    assert difference <= (3 if name[2:] in ("jpg", "webp") else 0)


def test_pixels_of_the_right_size_are_not_changed_and_white_shines_through_them(tmp_path):
    picture = noise(32, 32, 4)
    pixels = np.asarray(picture)
    image = read(tmp_path, picture.convert("RGB"), "a.png")  # which leaves out the fourth
    assert np.array_equal(image, pixels[..., :3])
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert abs(read(tmp_path, picture, "a.png") - expected).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_become_the_nearest_eight(tmp_path, name):
    ramp = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    expected = [[[int(value / 65535 * 255 + 0.5)] * 3 for value in row] for row in ramp]
    assert np.array_equal(read(tmp_path, Image.fromarray(ramp), name), expected)


def tiff(bits: int, photometric: int, pixels: str, sample_format: int = 1) -> bytes:
    """A grey TIFF of one row, its pixels in hexadecimal, of a kind that Pillow does not write."""
    content = bytes.fromhex(pixels)
    width = len(content) * 8 // bits
    entries = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1}
    entries |= {279: len(content), 339: sample_format}
    entries[273] = 8 + 2 + 12 * len(entries) + 4  # where the pixels begin
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + fields + bytes(4) + content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(12, 1, "000fff 800101"), [0, 255, 128, 16]),
        (tiff(16, 0, "0000 ffff 0080 0101"), [255, 0, 127, 254]),  # zero is white
        (tiff(8, 0, "00 ff 80 01"), [255, 0, 127, 254]),
    ],
    ids=["12 bits", "16 bits, white first", "8 bits, white first"],
)
def test_grey_tiffs_are_read_in_their_shades(tmp_path, content, expected):
    (tmp_path / "a.tif").write_bytes(content)
    assert read_image(str(tmp_path / "a.tif"), 4)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("color", [(1000,), (0,), (1000, 2000, 3000)])
def test_a_transparent_colour_of_16_bits_becomes_white(tmp_path, color):
    pixels = np.full((32, 32, len(color)), 60000)
    pixels[:, :16] = color
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", 32, 32, 16, 0 if len(color) == 1 else 2, 0, 0, 0)
    transparent = struct.pack(f">{len(color)}H", *color)
    content = b"\x89PNG\r\n\x1a\n"  # Pillow does not write 16 bits in colour
    chunks = (b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    for name, data in chunks:
        checksum = zlib.crc32(name + data)
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
    (tmp_path / "a.png").write_bytes(content)
    image = read_image(str(tmp_path / "a.png"), 32)
    assert (image[:, :16] == 255).all() and abs(image[:, 16:].astype(int) - 233).max() <= 1


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


def test_large_photographs_are_shrunk_smoothly(tmp_path):
    fine = np.indices((1024, 1024)).sum(0) % 2 * 255  # a chessboard of single pixels is grey
    picture = Image.fromarray(fine.astype(np.uint8)).convert("RGB")
    for name in ("a.png", "a.jpg"):
        assert abs(read(tmp_path, picture, name).astype(int) - 127).max() <= 3


PNG, JPEG = encoded(noise(32, 32, 3)), encoded(noise(64, 64, 3), "JPEG")
UNKNOWN_WHITE = "not an image .*which one is white"
WEB_PAGE, HEIC = "a web page: its download failed", "a HEIC picture"
BROKEN = {  # the content of a file, and what is said of it
    "empty.png": (b"", "not an image"),
    "cut.jpg": (JPEG[:1500], "not an image"),
    "flipped.png": (PNG[:50] + bytes([PNG[50] ^ 64]) + PNG[51:], "not an image"),
    "bomb.ppm": (b"P6 20000 20000 255 ", "not an image .*decompression bomb"),
    "warned.ppm": (b"P6 10000 10000 255 ", "not an image .*decompression bomb"),  # Pillow warns
    "floats.tif": (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), UNKNOWN_WHITE),
    "32 bits.tif": (tiff(32, 1, "0000 0000 0000 0001"), UNKNOWN_WHITE),
    "signed.tif": (tiff(16, 1, "0000 0001", sample_format=2), UNKNOWN_WHITE),
    "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ".*git lfs pull"),
    "404.jpg": (b"\xef\xbb\xbf\n<!DOCTYPE html><html>404", WEB_PAGE),
    "xml.jpg": (b'<?xml version="1.0"?>\n<HTML lang="en">', WEB_PAGE),
    "heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", HEIC),
    "mif1.jpg": (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", HEIC),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_what_it_is(folder, name):
    file, (content, said) = folder / "test/dog" / name, BROKEN[name]
    file.write_bytes(content)
    cure = "(: remove or replace|, or remove) it$"
    assert re.match(f"{re.escape(repr(str(file)))} is {said}.*{cure}", refusal(folder))
