"""The views: what is written to the event file, against independent calculations."""

import contextlib
import os
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, read_events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib import rc_context
from PIL import Image
from sklearn import metrics
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util
from torch.utils.tensorboard import SummaryWriter
from torchvision import transforms
from torchvision.models import resnet18

import viz
from model import Net

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its own libraries
    from tensorboard.plugin_util import markdown_to_safe_html

TEN = [f"class {index}" for index in range(10)]


@pytest.fixture
def writer(tmp_path):
    writer = SummaryWriter(tmp_path / "run")
    yield writer
    writer.close()


def written(writer: SummaryWriter) -> dict[str, list]:
    writer.flush()
    return read_events(Path(writer.log_dir))


def image_size(value) -> tuple[int, int]:
    """Width and height of an image value, which holds them as text before the PNG itself."""
    width, height = value.tensor.string_val[:2]
    return int(width), int(height)


def predictions(samples: int, classes: int):
    """Probabilities (N, C) that are better than chance, and labels (N,)."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=random)
    logits = torch.randn(samples, classes, generator=random)
    logits[torch.arange(samples), labels] += 1
    return logits.softmax(dim=1), labels


def drawn_figures(monkeypatch) -> list:
    """The figures that are drawn from now on, instead of writing them."""
    drawn = []
    monkeypatch.setattr(viz, "add_figure", lambda writer, tag, figure, step: drawn.append(figure))
    return drawn


class Fixed(torch.nn.Module):
    """A net that gives the same logits to whatever it sees."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits


# ----------------------------------------------------------------------------- probabilities, PR


def test_images_to_probs_gives_the_most_probable_class_and_its_softmax():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 0.0]])
    preds, probs = viz.images_to_probs(Fixed(logits), torch.zeros(2, 3, 32, 32))
    assert preds.tolist() == [1, 0]
    expected = [np.exp(3) / np.exp([1, 3, 2]).sum(), np.exp(5) / (np.exp(5) + 2)]
    np.testing.assert_allclose(probs.numpy(), expected, rtol=1e-6)


def test_images_to_probs_sets_dropout_aside_and_leaves_the_mode_as_it_was():
    net = torch.nn.Sequential(torch.nn.Dropout(0.99), torch.nn.Flatten(), torch.nn.Linear(3072, 5))
    images = torch.randn(4, 3, 32, 32)
    first, second = (viz.images_to_probs(net, images)[1] for _ in range(2))
    assert torch.equal(first, second)
    assert net.training


def test_images_to_probs_leaves_every_layers_mode_alone():
    net = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(3072, 5))
    net[0].eval()  # frozen by its owner
    viz.images_to_probs(net, torch.randn(4, 3, 32, 32))
    assert net.training and not net[0].training


def test_pr_curves_are_scikit_learns_at_the_same_thresholds(writer):
    probs, labels = predictions(2000, 4)
    viz.add_pr_curves(writer, probs, labels, TEN[:4], 7)
    events = written(writer)
    assert sorted(events) == [f"pr curve/{name}" for name in TEN[:4]]
    for index, name in enumerate(TEN[:4]):
        ((step, value),) = events[f"pr curve/{name}"]
        curve = tensor_util.make_ndarray(value.tensor)  # tp, fp, tn, fn, precision, recall
        assert step == 7 and curve.shape == (6, 127)
        truth = (labels == index).numpy()
        for position in (0, 10, 40, 63, 100, 126):
            # TensorBoard puts a score into the bin floor(score * 126) and counts from that bin up.
            taken = np.floor(probs[:, index].numpy() * 126) >= position
            precision = metrics.precision_score(truth, taken, zero_division=0)
            recall = metrics.recall_score(truth, taken)
            np.testing.assert_allclose(curve[4:, position], [precision, recall], rtol=1e-5)


def test_classes_may_have_the_names_of_other_views(writer):
    net, images, labels = Net(10), torch.rand(10, 3, 32, 32) * 2 - 1, torch.arange(10)
    names = ["what the net sees/filters", "test/confusion matrix", "test/worst mistakes", "test"]
    names += ["training images", "predictions vs. actuals", "training loss", "test/loss"]
    names += ["features", "pr curve"]
    probs = net(images).softmax(dim=1).detach()
    viz.add_training_loss(writer, 1.0, 1)
    viz.add_test_scalars(writer, 1.0, 0.5, 1)
    viz.add_image_grid(writer, images, labels, names, 1)
    viz.add_predictions(writer, net, images, labels, names, 1)
    viz.add_pr_curves(writer, probs, labels, names, 1)
    viz.add_confusion_matrix(writer, probs, labels, names, 1)
    viz.add_mistakes(writer, images, probs, labels, names, 1)
    viz.add_filters(writer, net.conv1, 1)
    viz.add_feature_maps(writer, net.conv1, images[0], 1)
    views = {
        tag: [v.metadata.plugin_data.plugin_name for _, v in values]
        for tag, values in written(writer).items()
    }
    assert all(len(plugins) == 1 for plugins in views.values()), views
    assert {tag for tag, (plugin,) in views.items() if plugin == "pr_curves"} == {
        f"pr curve/{name}" for name in names
    }
    assert len(views) == 3 + len(names) + 6


def test_the_pr_curve_counts_the_truth_and_not_the_predictions(writer):
    probs, labels = predictions(500, 3)
    viz.add_pr_curve_tensorboard(writer, 1, probs, labels, TEN[:3], 0)
    ((_, value),) = written(writer)["pr curve/class 1"]
    positives = tensor_util.make_ndarray(value.tensor)[0, 0]  # TP when everything is taken
    assert positives == (labels == 1).sum()
    assert positives != (probs.argmax(dim=1) == 1).sum()


def test_class_report_is_scikit_learns():
    probs, labels = predictions(300, 5)
    head, *rows = viz.class_report(probs, labels, TEN[:5])
    assert head == ("class", "images", "precision", "recall", "average precision")
    precision, recall, _, images = metrics.precision_recall_fscore_support(
        labels, probs.argmax(dim=1), zero_division=0
    )
    for index, row in enumerate(rows):
        ap = metrics.average_precision_score(labels == index, probs[:, index])
        numbers = [f"{x:.3f}" for x in (precision[index], recall[index], ap)]
        assert row == (TEN[index], str(images[index]), *numbers)


@pytest.mark.parametrize("decimals", [1, 2, 8])  # few decimals: many samples share a score
def test_average_precision_is_scikit_learns_with_ties_too(decimals):
    random = np.random.default_rng(1)
    scores, truth = random.random(200).round(decimals), random.random(200) < 0.3
    expected = metrics.average_precision_score(truth, scores)
    assert viz.average_precision(scores, truth) == pytest.approx(expected)


def test_a_class_without_test_images_or_predictions_gives_zeros():
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]])
    rows = viz.class_report(probs, torch.tensor([0, 1]), TEN[:3])
    assert rows[2][1:4] == ("1", "0.000", "0.000")
    assert rows[3][1:] == ("0", "0.000", "0.000", "0.000")


# --------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_predictions_are_titled_and_coloured_for_the_batch_they_get(batch):
    probs, labels = predictions(batch, 10)
    images = torch.rand(batch, 3, 32, 32) * 2 - 1
    figure = viz.plot_classes_preds(Fixed(probs.log()), images, labels, TEN)
    texts = figure.texts
    assert len(texts) == batch
    for text, p, label in zip(texts, probs, labels, strict=True):
        best = int(p.argmax())
        assert text.get_text() == f"{TEN[best]}, {p[best]:.1%}\n(label: {TEN[label]})"
        assert text.get_color() == ("green" if best == label else "red")


def test_images_are_drawn_in_their_own_colours_below_their_titles():
    colors = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    images = colors[:, :, None, None].expand(3, 3, 32, 32)
    figure = viz.matplotlib_imshow(images, ["red", "green", "blue"])
    pixels = figure.images[0].get_array()
    height, width, _ = pixels.shape
    for text, expected in zip(figure.texts, np.eye(3), strict=True):
        x, y = int(text.get_position()[0] * width), int((1 - text.get_position()[1]) * height)
        np.testing.assert_allclose(pixels[y + 4 * 18, x], expected, atol=1e-6)
        assert (pixels[:y, x] == 1).all()  # white behind the title


def test_a_batch_is_shown_as_the_loop_has_it(writer, monkeypatch):
    drawn = drawn_figures(monkeypatch)
    pixels = torch.rand(32, 3, 32, 32) * 2 - 1
    labels = torch.arange(32) % 10
    for images in (pixels, (pixels + 1) * 127.5):  # the second was never normalised
        with contextlib.nullcontext() if images is pixels else pytest.warns(match="not normalised"):
            viz.add_batch(writer, images, labels, TEN, 1)
        figure = drawn.pop()
        heading, *titles = [text.get_text() for text in figure.texts]
        numbers = [float(n) for n in re.findall(r"-?\d[\d.e+-]*", heading)]
        expected = [images.min(), images.max(), images.mean()]
        np.testing.assert_allclose(numbers, expected, rtol=5e-3)
        assert titles == [TEN[label] for label in labels[:16]]
    assert (figure.images[0].get_array()[56 + 20 : 56 + 120, 28:128] > 0.9).mean() > 0.95  # white


def test_long_class_names_are_cut():
    assert viz.shorten("automobile") == "automobile"
    assert viz.shorten("a name that goes on and on") == "a name that goe…"


@pytest.fixture
def fonts(monkeypatch):
    """A function that says which of these fonts Matplotlib is to take for Chinese ones."""

    def use(*names):
        monkeypatch.setattr(viz, "CJK_FONTS", names)
        viz.chinese_fonts.cache_clear()

    yield use
    viz.chinese_fonts.cache_clear()


def test_chinese_names_are_drawn_with_the_fonts_that_are_installed(fonts):
    fonts("No Such Font", "DejaVu Serif")
    figure = viz.matplotlib_imshow(torch.zeros(2, 3, 32, 32), ["cat", "猫"])
    families = [text.get_fontfamily() for text in figure.texts]
    assert families == [["DejaVu Sans"], ["DejaVu Sans", "DejaVu Serif"]]


def test_a_missing_chinese_font_is_said_once_with_the_cure(fonts, recwarn):
    fonts("No Such Font")
    viz.matplotlib_imshow(torch.zeros(1, 3, 32, 32), ["cat"])
    assert not recwarn.list
    with pytest.warns(UserWarning, match="no font with Chinese.*install one, such as"):
        viz.matplotlib_imshow(torch.zeros(1, 3, 32, 32), ["猫"])
    viz.matplotlib_imshow(torch.zeros(1, 3, 32, 32), ["狗"])  # would raise


def test_chinese_class_names_are_cut_by_the_room_that_they_take():
    assert viz.shorten("一二三四五六七八") == "一二三四五六七八"  # 16 columns
    assert viz.shorten("一二三四五六七八九") == "一二三四五六七…"
    assert viz.shorten("a一二三四五六七八") == "a一二三四五六七…"


@pytest.mark.parametrize(
    "classes, side, names, numbers",
    [(2, 264, 2, 2), (10, 616, 10, 10), (40, 1176, 40, 40), (100, 1176, 100, 0), (300, 1076, 0, 0)]
    + [(1000, 1176, 0, 0), (5001, 1010, 0, 0)],
)
def test_a_confusion_matrix_is_bounded_and_readable(
    writer, monkeypatch, classes, side, names, numbers
):
    drawn = drawn_figures(monkeypatch)
    labels = torch.arange(classes)
    probs = torch.nn.functional.one_hot(labels, classes).float()
    viz.add_confusion_matrix(writer, probs, labels, [f"n{i}" for i in range(classes)], 1)
    (figure,) = drawn
    assert (round(figure.bbox.width), round(figure.bbox.height)) == (side, side)
    texts = [text.get_text() for text in figure.texts]
    assert sum(text.startswith("n") for text in texts) == 2 * names  # beside rows and columns
    assert texts.count("1") == numbers
    pixels = figure.images[0].get_array()[176:, 176:]
    blue = (abs(pixels - viz.BLUE.numpy()) < 1e-6).all(axis=2)
    cells = classes if classes <= 1000 else 834  # of six classes each
    assert blue.diagonal().all() and blue.sum() * cells == blue.size


@pytest.mark.parametrize("classes", [2, 10, 37, 1000])
def test_every_figure_takes_any_number_of_classes(writer, classes):
    names = [f"种类 {index}" for index in range(classes)]
    probs, labels = predictions(3 * classes, classes)
    net, images = Net(classes), torch.rand(5, 3, 32, 32) * 2 - 1
    viz.add_image_grid(writer, images, labels[:5], names)
    viz.add_predictions(writer, net, images, labels[:5], names, 1)
    viz.add_mistakes(writer, images, probs[:5], labels[:5], names, 1)
    viz.add_confusion_matrix(writer, probs, labels, names, 1)
    events = written(writer)
    tags = {
        "training images",
        "predictions vs. actuals",
        "test/worst mistakes",
        "test/confusion matrix",
    }
    assert set(events) == tags
    for tag in tags:
        ((step, value),) = events[tag]
        assert step == (0 if tag == "training images" else 1)
        assert 50 < min(image_size(value)) and max(image_size(value)) < 1200


def test_the_worst_mistakes_are_the_surest():
    probs, labels = predictions(300, 5)
    wrong = [index for index in range(300) if probs[index].argmax() != labels[index]]
    surest = sorted(wrong, key=lambda index: -probs[index].max())
    assert viz.worst_mistakes(probs, labels, 8) == surest[:8]
    assert viz.worst_mistakes(probs, labels, 1000) == surest
    assert viz.worst_mistakes(probs, probs.argmax(dim=1), 8) == []


def test_no_mistakes_at_all_is_no_error(writer):
    viz.add_mistakes(
        writer, torch.zeros(0, 3, 32, 32), torch.zeros(0, 10), torch.zeros(0).long(), TEN, 0
    )
    assert "test/worst mistakes" not in written(writer)


def test_confusions_are_scikit_learns(writer, monkeypatch):
    drawn = drawn_figures(monkeypatch)
    probs, labels = predictions(400, 6)
    viz.add_confusion_matrix(writer, probs, labels, TEN[:6], 1)
    (figure,) = drawn
    numbers = [text for text in figure.texts if text.get_text().isdigit()]
    shown = np.zeros((6, 6), int)
    for text in numbers:
        x, y = text.get_position()
        column, row = x * figure.bbox.width - 176, (1 - y) * figure.bbox.height - 176
        shown[int(row // 44), int(column // 44)] = int(text.get_text())
    expected = metrics.confusion_matrix(labels, probs.argmax(dim=1))
    expected[expected < 0.01 * expected.sum(axis=1, keepdims=True)] = 0  # too small to be shown
    np.testing.assert_array_equal(shown, expected)


def test_feature_maps_answer_to_the_part_of_the_image_shown_beside_them(writer, monkeypatch):
    drawn = drawn_tiles(monkeypatch)
    conv = Net().conv1
    with torch.no_grad():  # a filter that hands through the pixel in its middle, in red
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[2, 0, 2, 2] = 1
    image = torch.rand(3, 32, 32) * 2 - 1
    viz.add_feature_maps(writer, conv, image, 0)
    tiles = drawn["tiles"][:, :, ::4, ::4]  # undo the enlargement
    torch.testing.assert_close(tiles[0], image[:, 2:30, 2:30] / 2 + 0.5)
    red = image[0, 2:30, 2:30].clamp(min=0)
    torch.testing.assert_close(tiles[3, 0], red / red.max())


def test_filters_are_an_image_of_all_six(writer):
    viz.add_filters(writer, Net().conv1, 3)
    ((step, value),) = written(writer)["what the net sees/filters"]
    assert step == 3
    assert image_size(value) == (6 * (5 * 16 + 8) + 8, 5 * 16 + 2 * 8)


# ----------------------------------------------------------- lifted: other nets, images, devices


def drawn_tiles(monkeypatch) -> dict[str, torch.Tensor]:
    """Collects the tiles of the next picture, before they are put side by side."""
    drawn = {}
    monkeypatch.setattr(
        torchvision.utils, "make_grid", lambda tiles, **_: drawn.setdefault("tiles", tiles)[0]
    )
    return drawn


class GreyNet(torch.nn.Module):
    """A net for grey images of 28x28 pixels."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding="same")
        self.fc = torch.nn.Linear(4 * 28 * 28, 10)

    def forward(self, images):
        return self.fc(self.conv(images).relu().flatten(1))


def test_every_view_takes_grey_images(writer):
    net, images, labels = GreyNet(), torch.rand(9, 1, 28, 28), torch.arange(9)
    probs = net(images).softmax(dim=1).detach()
    viz.add_image_grid(writer, images, labels, TEN, norm=(0.0, 1.0))
    viz.add_batch(writer, images, labels, TEN, 1, norm=(0.0, 1.0))
    viz.add_predictions(writer, net, images, labels, TEN, 1, norm=(0.0, 1.0))
    viz.add_mistakes(writer, images, probs, labels, TEN, 1, norm=(0.0, 1.0))
    viz.add_filters(writer, net.conv, 1)
    viz.add_feature_maps(writer, net.conv, images[0], 1, norm=(0.0, 1.0))
    viz.add_projector(writer, probs, images, labels, TEN, 1, norm=(0.0, 1.0))
    tags = {
        "training images",
        "predictions vs. actuals",
        "test/worst mistakes",
        "what the net sees/filters",
    }
    assert tags | {"training batch", "what the net sees/feature maps"} <= set(written(writer))


def test_a_grey_image_lies_beside_its_maps_in_grey(writer, monkeypatch):
    drawn = drawn_tiles(monkeypatch)
    image = torch.rand(1, 28, 28)
    viz.add_feature_maps(writer, GreyNet().conv, image, 0, norm=(0.0, 1.0))
    tiles = drawn["tiles"][:, :, ::4, ::4]  # undo the enlargement
    assert tiles.shape == (5, 3, 28, 28)
    torch.testing.assert_close(tiles[0], image.expand(3, 28, 28))


def test_maps_of_a_stride_lie_beside_the_whole_image_in_their_size(writer, monkeypatch):
    drawn = drawn_tiles(monkeypatch)
    conv = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3)  # ResNet's first layer
    with torch.no_grad():  # a filter that hands through every other pixel, in red
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[1, 0, 3, 3] = 1
    image = torch.rand(3, 224, 160) * 2 - 1
    viz.add_feature_maps(writer, conv, image, 0)
    tiles = drawn["tiles"]
    assert tiles.shape == (64, 3, 112, 80)  # the image and the first 63 maps
    halved = np.asarray(
        Image.fromarray(to_bytes(image / 2 + 0.5)).resize((80, 112), Image.Resampling.BOX)
    )
    assert np.abs(to_bytes(tiles[0]).astype(int) - halved).max() <= 1
    red = image[0, ::2, ::2].clamp(min=0)
    torch.testing.assert_close(tiles[2, 0], red / red.max())


def to_bytes(pixels: torch.Tensor) -> np.ndarray:
    """Pixels (3, H, W) from 0 to 1 as Pillow has them."""
    return (pixels * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)


@pytest.mark.parametrize("channels, filters, shown", [(1, 6, 6), (3, 200, 64), (16, 3, 48)])
def test_filters_of_any_convolution_are_drawn(writer, monkeypatch, channels, filters, shown):
    drawn = drawn_tiles(monkeypatch)
    conv = torch.nn.Conv2d(channels, filters, 5)
    viz.add_filters(writer, conv, 0)
    tiles = drawn["tiles"][..., ::16, ::16]  # undo the enlargement
    assert len(tiles) == shown
    expected = conv.weight if channels in (1, 3) else conv.weight.view(-1, 1, 5, 5)
    torch.testing.assert_close(tiles, expected[:shown].detach())


@pytest.mark.parametrize("size", [(224, 224), (1000, 30), (3, 4)])
@pytest.mark.parametrize("count", [1, 16, 500])
def test_a_grid_of_any_images_has_a_sensible_size(size, count):
    figure = viz.matplotlib_imshow(torch.zeros(count, 3, *size), ["a title"] * count)
    width, height = figure.bbox.width, figure.bbox.height
    columns, rows = min(count, 8), -(-min(count, 64) // 8)
    assert (round(width), round(height)) == (columns * 144, rows * 192)
    assert len(figure.texts) == min(count, 64)


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_images_normalised_for_imagenet_have_their_own_colours():
    pixels = torch.rand(3, 3, 16, 16)
    images = transforms.Normalize(*IMAGENET)(pixels)
    figure = viz.matplotlib_imshow(images, ["", "", ""], norm=IMAGENET)
    drawn = torch.from_numpy(np.asarray(figure.images[0].get_array()))
    for index, image in enumerate(pixels):
        left = 144 * index + 8
        tile = drawn[56 : 56 + 128 : 8, left : left + 128 : 8].permute(2, 0, 1)
        torch.testing.assert_close(tile, image)


def test_every_view_passes_norm_on(writer, monkeypatch):
    asked = []
    original = viz.unnormalize
    monkeypatch.setattr(viz, "unnormalize", lambda *args: asked.append(args[1]) or original(*args))
    images = transforms.Normalize(*IMAGENET)(torch.rand(2, 3, 32, 32))
    net, labels = Net(2), torch.tensor([0, 1])
    probs = net(images).softmax(dim=1).detach()
    viz.add_image_grid(writer, images, labels, TEN[:2], norm=IMAGENET)
    viz.add_batch(writer, images, labels, TEN[:2], 1, norm=IMAGENET)
    viz.add_predictions(writer, net, images, labels, TEN[:2], 1, norm=IMAGENET)
    viz.add_mistakes(writer, images, probs, labels, TEN[:2], 1, norm=IMAGENET)
    viz.add_feature_maps(writer, net.conv1, images[0], 1, norm=IMAGENET)
    viz.add_projector(writer, probs, images, labels, TEN[:2], 1, norm=IMAGENET)
    assert asked == [IMAGENET] * 6


def test_tables_take_numbers():
    assert viz.markdown_table([("n", "x"), (1, 0.5), (None, True)]).splitlines()[2:] == [
        "| 1    | 0.5  |",
        "| None | True |",
    ]


class Cells(HTMLParser):
    """The text in each cell of the tables in a page."""

    def __init__(self, page: str):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("td", "th") and self.rows[-1]:
            self.rows[-1][-1] += data


def shown_in_tensorboard(writer: SummaryWriter, rows) -> list[list[str]]:
    """The cells of a table as TensorBoard makes HTML of them."""
    viz.add_table(writer, "table", rows)
    _, value = written(writer)["table/text_summary"][-1]
    page = Cells(markdown_to_safe_html(value.tensor.string_val[0]))
    assert set(page.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}  # and no formatting
    return [[" ".join(cell.split()) for cell in row] for row in page.rows]


ODD_NAMES = [
    *("__init__", "*star*", "**a**", "a|b", "`code`", "[a](http://b.c)", "![a](b)", "<b>bold</b>"),
    *("a & b", "&amp;", "&#95;", "\\", "\\|", "a\\_b", "_a_", "# 1", "- x", "1. x", "http://a.b"),
    *("~~~", "```", "<a@b.c>", "$x$", "---", ":-:", "狗", "two\nlines", "<script>", "{: #id}"),
]


def test_any_name_appears_in_text_as_it_is(writer):
    rows = [["name", "again"], *([name, f"x {name} x"] for name in ODD_NAMES)]
    expected = [[" ".join(cell.split()) for cell in row] for row in rows]
    assert shown_in_tensorboard(writer, rows) == expected


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.sampled_from("a1 *_`[]()<>&|\\#!~$:-+.{}/\"'=^@猫"), min_size=1, max_size=20))
def test_any_text_appears_in_text_as_it_is(writer, cell):
    ((_,), (shown,)) = shown_in_tensorboard(writer, [["name"], [cell]])
    assert shown == " ".join(cell.split())


def test_names_read_under_another_encoding_can_be_written(writer):
    misread = os.fsencode("/狗/").decode("ascii", "surrogateescape")  # as under LC_ALL=C
    assert shown_in_tensorboard(writer, [["folder"], [misread]]) == [["folder"], ["/狗/"]]
    viz.add_hparams_start(writer, {"images": misread})
    ((_, start),) = written(writer)["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(start.metadata.plugin_data.content)
    assert content.session_start_info.hparams["images"].string_value == "/狗/"


class Elsewhere(torch.Tensor):
    """A tensor that behaves as if it lay on a GPU: it must be moved before others can use it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor).clone()
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        here = [type(arg) is torch.Tensor and arg.dim() > 0 for arg in args]
        if any(here) and func is not torch.Tensor.__getitem__:
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device")
        return super().__torch_function__(func, types, args, kwargs or {})


def elsewhere(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.as_subclass(Elsewhere) for tensor in tensors]


def on_cuda(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to("cuda") for tensor in tensors]


CUDA = pytest.param(
    on_cuda, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
)


@pytest.mark.parametrize("move", [elsewhere, CUDA])
@pytest.mark.parametrize("labels_too", [True, False])
def test_tensors_on_another_device_are_moved(writer, move, labels_too):
    probs, labels = predictions(20, 10)
    images = torch.rand(20, 3, 32, 32) * 2 - 1
    expected = viz.class_report(probs, labels, TEN), viz.worst_mistakes(probs, labels, 4)
    logits, probs, images = move(probs.log(), probs, images)
    if labels_too:
        (labels,) = move(labels)
    assert expected == (viz.class_report(probs, labels, TEN), viz.worst_mistakes(probs, labels, 4))
    viz.add_image_grid(writer, images, labels, TEN)
    viz.add_batch(writer, images, labels, TEN, 1)
    viz.add_predictions(writer, Fixed(logits), images, labels, TEN, 1)
    viz.add_mistakes(writer, images, probs, labels, TEN, 1)
    viz.add_confusion_matrix(writer, probs, labels, TEN, 1)
    viz.add_pr_curves(writer, probs, labels, TEN, 1)
    viz.add_histogram(writer, "probabilities", probs, 1)
    viz.add_projector(writer, probs, images, labels, TEN, 1)
    assert len(written(writer)) == 5 + len(TEN) + 1


# ------------------------------------------------------ lifted: what other people's training brings


class SmallNet(torch.nn.Module):
    """A net for colour images of any size."""

    def __init__(self, outputs: int = 10):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.fc = torch.nn.Linear(4, outputs)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean(dim=(2, 3)))


class Giving(SmallNet):
    """A net that gives what `form` makes of its logits."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, images):
        return self.form(super().forward(images))


def eight_images() -> torch.Tensor:
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float64, torch.bool])
def test_labels_and_probabilities_of_any_type_give_the_same_report(dtype):
    probs, labels = predictions(50, 2)
    expected = viz.class_report(probs, labels, TEN[:2])
    assert viz.class_report(probs.double().requires_grad_(), labels.to(dtype), TEN[:2]) == expected
    assert viz.class_report(probs.numpy(), labels.tolist(), TEN[:2]) == expected
    rounded = probs.bfloat16()
    assert viz.class_report(rounded, labels, TEN[:2]) == viz.class_report(
        rounded.float(), labels, TEN[:2]
    )


def test_a_hundred_classes_in_bytes_are_on_the_diagonal(writer, monkeypatch):
    drawn = drawn_figures(monkeypatch)
    labels = torch.arange(100, dtype=torch.uint8)
    viz.add_confusion_matrix(writer, torch.eye(100), labels, [str(i) for i in range(100)], 1)
    cells = drawn[0].images[0].get_array()[176 + 5 :: 10, 176 + 5 :: 10]
    np.testing.assert_allclose(cells[range(100), range(100)], viz.BLUE.expand(100, 3), atol=1e-6)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda labels: labels[:, None], r"labels: given is a Tensor of shape \(20, 1\) from 0 to"),
        (
            lambda labels: torch.nn.functional.one_hot(labels, 3),
            r"labels: .* \(20, 3\) from 0 to 1",
        ),
        (lambda labels: labels + 1, r"from 1 to 3; wanted is \(N,\) 0 to C - 1, N = 20, C = 3"),
        (lambda labels: torch.where(labels == 0, -100, labels), "from -100 to 2"),
        (lambda labels: labels + 0.5, "from 0.5 to 2.5"),
        (lambda labels: labels[:19], r"shape \(19,\) .* N = 20"),
        (lambda labels: {"labels": labels}, "labels: given is a dict; wanted"),
    ],
)
def test_labels_that_do_not_fit_are_refused(writer, wrong, message):
    probs, labels = predictions(20, 3)
    labels = wrong(labels)
    names = TEN[:3]
    for view in (
        lambda: viz.class_report(probs, labels, names),
        lambda: viz.worst_mistakes(probs, labels, 4),
        lambda: viz.add_confusion_matrix(writer, probs, labels, names, 1),
        lambda: viz.add_pr_curves(writer, probs, labels, names, 1),
        lambda: viz.add_projector(writer, probs, torch.zeros(20, 3, 8, 8), labels, names, 1),
        lambda: viz.add_image_grid(writer, torch.zeros(20, 3, 8, 8), labels, names),
    ):
        with pytest.raises(ValueError, match=message):
            view()
    assert not written(writer)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda probs: probs.log(), r"probs: .* from -.*; wanted is \(N, C\) from 0 to 1"),
        (lambda probs: probs[:, :2], r"\(20, 2\) .* C = 3"),
        (lambda probs: probs / 0 * 0, "from nan to nan"),
        (lambda probs: (probs, probs), "given is a tuple; wanted"),
    ],
)
def test_probabilities_that_do_not_fit_are_refused(writer, wrong, message):
    probs, labels = predictions(20, 3)
    with pytest.raises(ValueError, match=message):
        viz.add_pr_curves(writer, wrong(probs), labels, TEN[:3], 1)
    assert not written(writer)


def test_a_confusion_matrix_takes_logits_too_but_not_nan(writer, monkeypatch):
    drawn = drawn_figures(monkeypatch)
    probs, labels = predictions(50, 4)
    for scores in (probs, probs.log()):
        viz.add_confusion_matrix(writer, scores, labels, TEN[:4], 1)
    first, second = (figure.images[0].get_array() for figure in drawn)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match="scores: .* without NaN"):
        viz.add_confusion_matrix(writer, probs * float("nan"), labels, TEN[:4], 1)


@pytest.mark.parametrize(
    "net, message",
    [
        (SmallNet(1), r"logits: given is a Tensor of shape \(8, 1\) .* C = 10"),
        (SmallNet(1000), r"\(8, 1000\)"),
        (Giving(lambda logits: {"logits": logits}), "given is a dict"),
        (Giving(lambda logits: (logits, logits)), "given is a tuple"),
    ],
)
def test_nets_that_give_no_logits_are_refused(writer, net, message):
    with pytest.raises(ValueError, match=message):
        viz.add_predictions(writer, net, eight_images(), torch.arange(8), TEN, 1)


@pytest.mark.parametrize("shape", [(8, 16, 16, 3), (8, 4, 16, 16), (3, 16, 16)])
def test_what_is_no_batch_of_images_is_refused(writer, shape):
    with pytest.raises(ValueError, match=re.escape(f"images: given is a Tensor of shape {shape}")):
        viz.add_image_grid(writer, torch.zeros(shape), torch.arange(8), TEN)


def test_torchs_defaults_of_another_device_and_type_change_nothing(writer):
    images, labels, net = eight_images(), torch.arange(8), SmallNet()
    probs = torch.eye(10)[:8]
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        viz.add_image_grid(writer, images, labels, TEN)
        viz.add_predictions(writer, net, images, labels, TEN, 1)
        viz.add_confusion_matrix(writer, probs, labels, TEN, 1)
        viz.add_feature_maps(writer, net.conv, images[0], 1)
        viz.add_projector(writer, probs, images, labels, TEN, 1)
        viz.add_histograms(writer, net, 1)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert len(written(writer)) == 5


@pytest.mark.parametrize("low, high", [(-3e38, 3e38), (1e25, 2e25)])
def test_histograms_of_a_wide_range_count_every_value(writer, low, high):
    viz.add_histogram(writer, "wide", torch.linspace(0, 1, 1000) * (high / 2 - low / 2) + low, 0)
    ((_, value),) = written(writer)["wide"]
    assert tensor_util.make_ndarray(value.tensor)[:, 2].sum() == 1000


STYLES = [
    {"figure.facecolor": "black", "text.color": "white", "font.size": 20},
    {"image.origin": "lower", "figure.dpi": 50, "savefig.dpi": 300},
    {"text.usetex": True, "text.hinting": "none", "text.antialiased": False},
]


@pytest.mark.parametrize("style", STYLES)
def test_the_readers_matplotlib_style_changes_no_pixel(tmp_path, style):
    probs, labels = predictions(50, 10)
    images = torch.linspace(-1, 1, 16).view(1, 1, 16, 1).expand(50, 3, 16, 16)

    def draw(name):
        with SummaryWriter(tmp_path / name) as writer:
            viz.add_confusion_matrix(writer, probs, labels, TEN, 1)
            viz.add_mistakes(writer, images, probs, labels, TEN, 1)
        events = read_events(tmp_path / name)
        return {tag: value.tensor.string_val for tag, ((_, value),) in events.items()}

    usual = draw("usual")
    with rc_context(style):
        assert draw("styled") == usual


def test_a_closed_writer_opens_again_as_for_its_own_methods(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        pass
    viz.add_net_graph(writer, SmallNet(), eight_images())
    writer.close()
    viz.add_hparams_start(writer, {"lr": 0.1})
    writer.close()
    viz.add_hparams_end(writer)
    writer.close()
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= set(
        read_events(tmp_path)
    )
    files = sorted(tmp_path.iterdir())
    assert any(event.graph_def for path in files for event in EventFileLoader(str(path)).Load())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_gone_are_not_shown_as_zero(writer, set_to_none):
    net = SmallNet()
    net(eight_images()).sum().backward()
    net.zero_grad(set_to_none=set_to_none)
    with pytest.warns(match="no gradients: call this after backward and before zero_grad"):
        viz.add_training_scalars(writer, net, 0.1, 1.0, 1)
    assert set(written(writer)) == {
        "training progress/learning rate",
        "training progress/images per second",
    }


@pytest.mark.parametrize("value, dtype", [(1e25, torch.float32), (600, torch.float16)])
def test_a_gradient_norm_does_not_overflow(writer, value, dtype):
    net = torch.nn.Linear(200, 200, bias=False, dtype=dtype)
    net.weight.grad = torch.full_like(net.weight, value)
    viz.add_training_scalars(writer, net, 0.1, 1.0, 1)
    ((_, event),) = written(writer)["training progress/gradient norm"]
    assert event.tensor.float_val[0] == pytest.approx(value * 200, rel=1e-3)


class Frozen(SmallNet):
    """Its convolution is not trained, and says so in `forward`."""

    def forward(self, images):
        with torch.no_grad():
            maps = self.conv(images).relu()
        return self.fc(maps.mean(dim=(2, 3)))


class Mixed(SmallNet):
    """It goes into mixed precision by itself."""

    def forward(self, images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = self.conv(images).relu()
        return self.fc(maps.float().mean(dim=(2, 3)))


def test_frozen_layers_are_in_the_graph_as_the_others(tmp_path, recwarn):
    nodes = []
    for net in (SmallNet(), Frozen()):
        with SummaryWriter(tmp_path / type(net).__name__) as writer:
            viz.add_net_graph(writer, net, eight_images())
            nodes.append({name.partition("/")[2] for name in graph_nodes(writer)})
    assert nodes[0] == nodes[1] and "conv Conv2d/conv2d" in nodes[0]
    assert not recwarn.list


def test_what_the_graph_does_not_show_is_said(writer):
    with pytest.warns(match="under autocast, or such, are not in the graph but inside Mixed/"):
        viz.add_net_graph(writer, Mixed(), eight_images())
    assert "Mixed/fc Linear/linear" in graph_nodes(writer)


def test_drawing_the_graph_leaves_hooks_and_what_layers_keep_real(writer, recwarn):
    class Keeping(SmallNet):
        def forward(self, images):
            self.kept = self.conv(images)
            return super().forward(images)

    net, seen = Keeping(), []
    net.conv.register_forward_hook(lambda layer, inputs, output: seen.append(output.mean()))
    net.fc.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].mean()))
    viz.add_net_graph(writer, net, eight_images())
    assert graph_nodes(writer) and not seen and not hasattr(net, "kept")
    net(eight_images())
    assert len(seen) == 3 and torch.stack(seen).isfinite().all()  # the hooks are on again
    assert not recwarn.list


def test_a_hook_of_torchs_own_is_part_of_the_layer(writer):
    net = SmallNet()
    torch.nn.utils.spectral_norm(net.conv)
    net(eight_images())
    viz.add_net_graph(writer, net, eight_images())
    assert any(name.endswith("weight_orig") for name in graph_nodes(writer))
    net(eight_images()).sum().backward()
    assert net.conv.weight_orig.grad is not None


TWO_PROCESSES = """
import sys
import torch
from torch import distributed, nn
from torch.utils.tensorboard import SummaryWriter
import viz

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
net = nn.parallel.DistributedDataParallel(nn.Sequential(*layers, nn.Linear(4, 10)))
images, labels = torch.rand(8, 3, 16, 16) * 2 - 1, torch.arange(8)
for step in range(2):
    net(images).sum().backward()
    if rank == 0:
        with SummaryWriter(f"{folder}/run") as writer:
            names = [str(i) for i in range(10)]
            viz.add_net_graph(writer, net, images)
            viz.add_predictions(writer, net, images, labels, names, step)
assert net.training
distributed.destroy_process_group()
"""


def test_the_first_of_two_processes_may_draw_alone(tmp_path):
    commands = [[sys.executable, "-c", TWO_PROCESSES, str(rank), tmp_path] for rank in range(2)]
    processes = [subprocess.Popen(command, cwd=ROOT) for command in commands]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    steps = [step for step, _ in read_events(tmp_path / "run")["predictions vs. actuals"]]
    assert steps == [0, 1]


@pytest.mark.parametrize(
    "images, seen",
    [
        (((eight_images() + 1) * 127.5).byte(), "0 to 254"),
        ((eight_images() + 1) * 127.5, "to 255"),
        ((eight_images() + 1) / 2, "to 1 "),
        (transforms.Normalize(*IMAGENET)((eight_images() + 1) / 2), "-2.1"),
    ],
)
def test_images_that_were_not_normalised_as_said_bring_a_warning(images, seen):
    with pytest.warns(match=rf"images from .*{seen}.* not normalised with \(0.5, 0.5\)"):
        viz.matplotlib_imshow(images)


def test_images_of_three_types_are_drawn_alike(recwarn):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    drawn = [
        viz.matplotlib_imshow(images, norm=norm).images[0].get_array()
        for images, norm in [
            (pixels, (0, 1 / 255)),
            (pixels / 255, (0, 1)),
            (pixels / 127.5 - 1, (0.5, 0.5)),
        ]
    ]
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-6)
    np.testing.assert_allclose(drawn[0], drawn[2], atol=1e-6)
    assert not recwarn.list


@pytest.mark.parametrize("shape", [(3, 128, 64), (1, 32, 200), (3, 7, 300)])
def test_every_view_takes_tall_and_wide_images(writer, shape):
    channels, height, width = shape
    images, labels = torch.rand(8, *shape) * 2 - 1, torch.arange(8)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 4, 3),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 10),
    )
    probs = torch.eye(10)[[1, 2, 3, 4, 5, 6, 7, 8]]
    viz.add_image_grid(writer, images, labels, TEN)
    viz.add_batch(writer, images, labels, TEN, 1)
    viz.add_predictions(writer, net, images, labels, TEN, 1)
    viz.add_mistakes(writer, images, probs, labels, TEN, 1)
    viz.add_feature_maps(writer, net[0], images[0], 1)
    viz.add_projector(writer, probs, images, labels, TEN, 1)
    assert len(written(writer)) == 5
    (sprite,) = Path(writer.log_dir).glob("*/*/sprite.png")
    first = np.asarray(Image.open(sprite))[:20, :20]
    scale = 20 / max(height, width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    assert (first[rows:] == 255).all() and (first[:, columns:] == 255).all()
    assert (first[:rows, :columns] < 255).mean() > 0.9


def test_settings_are_shown_as_numbers_or_as_text(writer):
    class Odd:
        def __str__(self):
            return "odd"

    settings = {
        "list": ([32, 64], "[32, 64]"),
        "path": (Path("data"), "data"),
        "none": (None, "None"),
        "device": (torch.device("cpu"), "cpu"),
        "object": (Odd(), "odd"),
        "two values": (torch.tensor([1.0, 2.0]), "tensor([1., 2.])"),
        "float32": (np.float32(0.5), 0.5),
        "int64": (np.int64(3), 3.0),
        "array": (np.array(2.5), 2.5),
        "tensor": (torch.tensor(0.25, requires_grad=True), 0.25),
        7: ("a number as name", "a number as name"),
    }
    viz.add_hparams_start(writer, {name: given for name, (given, _) in settings.items()})
    ((_, start),) = written(writer)["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(start.metadata.plugin_data.content)
    stored = content.session_start_info.hparams
    shown = {name: getattr(stored[name], stored[name].WhichOneof("kind")) for name in stored}
    assert shown == {str(name): expected for name, (_, expected) in settings.items()}


@pytest.mark.parametrize("classes, said", [(100, False), (101, True)])
def test_a_confusion_matrix_without_names_says_so(writer, monkeypatch, classes, said):
    drawn = drawn_figures(monkeypatch)
    names = [f"class {index}" for index in range(classes)]
    viz.add_confusion_matrix(writer, torch.eye(classes), torch.arange(classes), names, 1)
    text = drawn[0].texts[0].get_text()
    assert (f"{classes} classes,\ntoo many for names" in text) == said


@pytest.mark.parametrize("third", ["crane", " crane", "crane\n"])
def test_classes_of_one_name_are_numbered(writer, third):
    probs, labels = predictions(60, 3)
    expected = ["crane", "crane (2)", "crane (3)"]
    names = ["crane", "crane (2)", third]
    viz.add_pr_curves(writer, probs, labels, names, 1)
    events = written(writer)
    assert sorted(events) == [f"pr curve/{name}" for name in expected]
    for index, name in enumerate(expected):
        ((_, value),) = events[f"pr curve/{name}"]
        assert tensor_util.make_ndarray(value.tensor)[0, 0] == (labels == index).sum()
    assert [row[0] for row in viz.class_report(probs, labels, names)[1:]] == expected


# ------------------------------------------------------------------------------ the other views


class Twice(torch.nn.Module):
    """Uses one layer twice and a function twice, and has what behaves otherwise in training."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.pool = torch.nn.MaxPool2d(2)
        self.head = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(8 * 7 * 7, 5))

    def forward(self, images):
        x = self.pool(torch.relu(self.norm(self.conv(images))))
        x = self.pool(torch.relu(x))
        return self.head(x.flatten(1))


def graph_nodes(writer: SummaryWriter) -> dict:
    """The nodes of the graph in the event file, by name."""
    writer.flush()
    (path,) = Path(writer.log_dir).glob("events.out.tfevents.*")
    graphs = [e.graph_def for e in EventFileLoader(str(path)).Load() if e.graph_def]
    return {node.name: node for graph in graphs for node in GraphDef.FromString(graph).node}


def node_shapes(node) -> list[list[int]]:
    """The shapes that TensorBoard writes on the arrows from this node."""
    shapes = node.attr["_output_shapes"].list.shape
    return [[dim.size for dim in shape.dim] for shape in shapes]


def test_the_graph_holds_every_layer_and_warns_of_nothing(writer, recwarn):
    net = Net()
    net.conv1.eval()  # frozen by its owner: must stay so
    viz.add_net_graph(writer, net, torch.zeros(1, 3, 32, 32))
    nodes = graph_nodes(writer)
    boxes = {name.rpartition("/")[0] for name in nodes}
    layers = {f"Net/{name} {type(layer).__name__}" for name, layer in net.named_children()}
    assert boxes == {"Net", "input", "output", *layers, "Net/pool (2) MaxPool2d"}
    relus = sorted(name for name in nodes if "relu" in name)
    assert relus == ["Net/relu", "Net/relu (2)", "Net/relu (3)", "Net/relu (4)"]
    for name, weights in net.named_parameters():
        layer, _, kind = name.partition(".")
        node = nodes[f"Net/{layer} {type(getattr(net, layer)).__name__}/{kind}"]
        assert node_shapes(node) == [list(weights.shape)]
    assert net.training and net.fc1.training and not net.conv1.training
    assert not recwarn.list


def test_the_graph_goes_the_way_of_the_images_with_the_shapes_of_each_step(writer):
    net, images = Twice(), torch.zeros(2, 3, 32, 32)
    viz.add_net_graph(writer, net, images)
    nodes = graph_nodes(writer)
    way, shapes = [], []
    name = "output/output"
    while name:
        way.append(name)
        shapes += node_shapes(nodes[name])
        name = next(iter(nodes[name].input), None)  # the weights come after the images
    assert way[::-1] == [
        "input/images",
        "Twice/conv Conv2d/conv2d",
        "Twice/norm BatchNorm2d/batch_norm",
        "Twice/relu",
        "Twice/pool MaxPool2d/max_pool2d",
        "Twice/relu (2)",
        "Twice/pool (2) MaxPool2d/max_pool2d",
        "Twice/flatten",
        "Twice/head Sequential/0 Dropout/dropout",
        "Twice/head Sequential/1 Linear/linear",
        "output/output",
    ]
    real = [list(images.shape)]  # what the images and functions give when they are computed
    with torch.no_grad():
        for step in (net.conv, net.norm, torch.relu, net.pool, torch.relu, net.pool):
            images = step(images)
            real.append(list(images.shape))
        for step in (torch.nn.Flatten(), net.head[0], net.head[1]):
            images = step(images)
            real.append(list(images.shape))
    assert shapes[::-1] == real


def test_drawing_the_graph_changes_nothing_of_the_net(writer):
    net = Twice()
    net.norm.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random_state = torch.get_rng_state()
    viz.add_net_graph(writer, net, torch.randn(4, 3, 32, 32, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training and net.head[0].training and not net.norm.training


def test_a_deep_net_is_drawn_block_in_block(writer):
    viz.add_net_graph(writer, resnet18(), torch.zeros(1, 3, 32, 32))  # too small to train on
    nodes = graph_nodes(writer)
    block = "ResNet/layer2 Sequential/0 BasicBlock"
    assert set(nodes[f"{block}/add_"].input) == {
        f"{block}/bn2 BatchNorm2d/batch_norm",
        f"{block}/downsample Sequential/1 BatchNorm2d/batch_norm",
    }
    assert node_shapes(nodes[f"{block}/add_"]) == [[1, 128, 4, 4]]
    assert {f"{block}/relu ReLU/relu_", f"{block}/relu (2) ReLU/relu_"} <= nodes.keys()
    assert all(source in nodes for node in nodes.values() for source in node.input)


def test_a_net_that_cannot_be_traced_costs_a_warning_only(writer):
    class Stubborn(torch.nn.Module):
        def forward(self, images):
            raise RuntimeError("no graph of me\nand many more lines")

    net = Stubborn()
    with pytest.warns(UserWarning, match="could not be drawn: no graph of me$"):
        viz.add_net_graph(writer, net, torch.zeros(1, 3, 32, 32))
    assert net.training and not graph_nodes(writer)


def test_histograms_are_numpys(writer):
    values = torch.randn(40, 25)
    viz.add_histogram(writer, "some", values, 5)
    ((step, value),) = written(writer)["some"]
    left, right, counts = tensor_util.make_ndarray(value.tensor).T
    expected, edges = np.histogram(values.double(), bins=64)
    assert step == 5 and counts.sum() == 1000
    np.testing.assert_allclose([left[0], right[-1]], edges[[0, -1]], rtol=1e-5)
    assert counts.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "values, counted",
    [([1.0, float("nan"), 2.0, float("inf")], 2), ([3.0, 3.0], 2), ([0.0], 1), ([-1e30, 1e30], 2)],
)
def test_histograms_of_odd_values_count_the_finite_ones(writer, values, counted):
    viz.add_histogram(writer, "odd", torch.tensor(values), 0)
    ((_, value),) = written(writer)["odd"]
    assert tensor_util.make_ndarray(value.tensor)[:, 2].sum() == counted


@pytest.mark.parametrize("value", [0.0, 1e-4, -2.0, 3e6])
def test_values_that_are_all_alike_lie_in_one_bin(writer, value):
    viz.add_histogram(writer, "alike", torch.full((64,), value), 0)
    ((_, event),) = written(writer)["alike"]
    left, right, counts = tensor_util.make_ndarray(event.tensor).T
    (bin_with_all,) = np.flatnonzero(counts)
    assert counts[bin_with_all] == 64
    assert left[bin_with_all] <= value <= right[bin_with_all]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_are_all_counted(writer, dtype):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    viz.add_histogram(writer, "half", values, 0)
    ((_, value),) = written(writer)["half"]
    _, _, counts = tensor_util.make_ndarray(value.tensor).T
    assert counts.tolist() == np.histogram(values.double(), bins=64)[0].tolist()


def test_histograms_of_nothing_are_left_out(writer):
    viz.add_histogram(writer, "none", torch.tensor([float("nan")]), 0)
    assert not written(writer)


FEW_VALUES = {"conv1.bias", "conv2.bias", "fc3.bias"}  # 6, 16 and 10: no distribution


def test_weights_and_gradients_of_every_layer_have_histograms(writer):
    net = Net()
    viz.add_histograms(writer, net, 0)
    names = {name for name, _ in net.named_parameters()} - FEW_VALUES
    assert set(written(writer)) == {f"weights/{name}" for name in names}  # no gradients yet
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    viz.add_histograms(writer, net, 1)
    assert set(written(writer)) == {
        f"{kind}/{name}" for name in names for kind in ("weights", "gradients")
    }


def test_the_gradient_norm_is_over_all_parameters(writer):
    net = Net()
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    viz.add_training_scalars(writer, net, 0.1, 1234.5, 9)
    events = written(writer)
    flat = np.concatenate([p.grad.numpy().ravel() for p in net.parameters()])
    values = {tag: (step, value.tensor.float_val[0]) for tag, ((step, value),) in events.items()}
    assert values["training progress/gradient norm"] == (
        9,
        pytest.approx(np.linalg.norm(flat), rel=1e-5),
    )
    assert values["training progress/learning rate"] == (9, pytest.approx(0.1))
    assert values["training progress/images per second"] == (9, 1234.5)
    zeros = values["training progress/zero gradients"]
    assert zeros == (9, pytest.approx((flat == 0).mean(), rel=1e-5))


def test_in_a_dead_net_nearly_all_gradients_are_zero(writer):
    net = Net()
    with torch.no_grad():
        net.fc2.bias.fill_(-1e3)  # the last relu lets nothing through
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    viz.add_training_scalars(writer, net, 0.1, 1.0, 1)
    ((_, value),) = written(writer)["training progress/zero gradients"]
    assert value.tensor.float_val[0] == pytest.approx(1 - 10 / 62006)  # but those of the last bias


def test_the_projector_gets_features_names_and_thumbnails(writer):
    features, labels = torch.randn(30, 84), torch.arange(30) % 3
    images = torch.rand(30, 3, 32, 32) * 2 - 1
    viz.add_projector(writer, features, images, labels, ["a", "b", "雪"], 12)
    (folder,) = Path(writer.log_dir).glob("00012/*")
    rows = np.loadtxt(folder / "tensors.tsv", delimiter="\t")
    np.testing.assert_allclose(rows, features, rtol=1e-5)
    names = (folder / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert names == ["a", "b", "雪"] * 10
    sprite = np.asarray(Image.open(folder / "sprite.png"))[:20, 20:40] / 255  # the second image
    pixels = (images[1].permute(1, 2, 0) / 2 + 0.5).numpy()
    parts = [slice(i * 32 // 20, -(-(i + 1) * 32 // 20)) for i in range(20)]  # what each covers
    means = [[pixels[rows, columns].mean(axis=(0, 1)) for columns in parts] for rows in parts]
    np.testing.assert_allclose(sprite, means, atol=0.01)
    config = (Path(writer.log_dir) / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 1


def test_hparams_are_one_session_without_an_experiment(writer):
    settings = {"lr": 0.1, "schedule": "onecycle", "augment": True, "epochs": 3}
    viz.add_hparams_start(writer, settings)
    viz.add_hparams_end(writer)
    events = written(writer)
    assert set(events) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    ((_, start),) = events["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(start.metadata.plugin_data.content)
    stored = content.session_start_info.hparams
    assert {name: stored[name].WhichOneof("kind") for name in stored} == {
        "lr": "number_value",
        "schedule": "string_value",
        "augment": "number_value",  # PyTorch writes True as 1
        "epochs": "number_value",
    }
    assert list(Path(writer.log_dir).parent.iterdir()) == [Path(writer.log_dir)]  # no second run


def test_the_layout_puts_both_losses_on_one_chart(writer):
    viz.add_layout(writer)
    ((_, value),) = written(writer)["custom_scalars__config__"]
    layout = Layout.FromString(value.tensor.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for c in layout.category for chart in c.chart}
    assert charts == {
        "training and test loss": ["^training loss$", "^test/loss$"],
        "learning rate": ["^training progress/learning rate$"],
    }


def test_tables_are_aligned_markdown_and_take_any_name():
    rows = [("class", "n"), ("a|b", "1"), ("line\nbreak", "22")]
    assert viz.markdown_table(rows).splitlines() == [
        "| class      | n  |",
        "|------------|----|",
        r"| a\|b       | 1  |",
        "| line break | 22 |",
    ]
