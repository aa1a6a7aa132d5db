"""The views: what is written to the event file, against independent calculations."""

import contextlib
import functools
import inspect
import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torchvision
from conftest import read_events
from matplotlib import rc_context
from PIL import Image
from sklearn import metrics
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torchvision import transforms

import viz
from model import Net

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of its own libraries
    from tensorboard.plugin_util import markdown_to_safe_html

TEN = [f"class {index}" for index in range(10)]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def writer(tmp_path):
    with SummaryWriter(tmp_path / "run") as writer:
        yield writer


def written(writer: SummaryWriter) -> dict[str, list]:
    writer.flush()
    return read_events(Path(writer.log_dir))


def only(writer: SummaryWriter, tag: str) -> tuple[int, np.ndarray]:
    """Step and numbers of the one value of a tag."""
    ((step, value),) = written(writer)[tag]
    return step, tensor_util.make_ndarray(value.tensor)


def graph_nodes(writer: SummaryWriter) -> dict:
    """The nodes of the graph in the event files, by name."""
    writer.flush()
    paths = Path(writer.log_dir).glob("events.out.tfevents.*")
    graphs = [e.graph_def for p in paths for e in EventFileLoader(str(p)).Load() if e.graph_def]
    return {node.name: node for graph in graphs for node in GraphDef.FromString(graph).node}


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are drawn from now on, instead of writing them."""
    drawn = []
    monkeypatch.setattr(viz, "add_figure", lambda writer, tag, figure, step: drawn.append(figure))
    return drawn


@pytest.fixture
def tiles(monkeypatch) -> list[torch.Tensor]:
    """The tiles of the pictures from now on, before they are put side by side."""
    drawn = []
    monkeypatch.setattr(
        torchvision.utils, "make_grid", lambda tiles, **_: drawn.append(tiles) or tiles[0]
    )
    return drawn


def predictions(samples: int, classes: int):
    """Probabilities (N, C) that are better than chance, and labels (N,)."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=random)
    logits = torch.randn(samples, classes, generator=random)
    logits[torch.arange(samples), labels] += 1
    return logits.softmax(dim=1), labels


class SmallNet(nn.Module):
    """A net for images of any size."""

    def __init__(self, outputs: int = 10, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.fc = nn.Linear(4, outputs)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean(dim=(2, 3)))


def fixed(output: torch.Tensor) -> SmallNet:
    """A net that gives the same to whatever it sees."""
    net = SmallNet()
    net.forward = lambda images: output
    return net


def eight(classes: int = 10, shape: tuple[int, int, int] = (3, 16, 16)):
    """Images (8, *shape) in [-1, 1], labels (8,), and probabilities (8, C) that are all wrong."""
    images = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(8) % classes
    return images, labels, torch.eye(classes)[(labels + 1) % classes]


OF_IMAGES = {"training images", "training batch", "predictions vs. actuals"}
FIGURES = OF_IMAGES | {"test/worst mistakes", "test/confusion matrix"}
OTHERS = {"what the net sees/filters", "what the net sees/feature maps", "probabilities"}


def add_all(writer, net, images, labels, probs, names, norm=viz.HALF) -> dict[str, list]:
    """Add every view of images or their classes, and return what has been written."""
    viz.add_image_grid(writer, images, labels, names, norm=norm)
    viz.add_batch(writer, images, labels, names, 1, norm)
    viz.add_predictions(writer, net, images, labels, names, 1, norm)
    viz.add_mistakes(writer, images, probs, labels, names, 1, norm)
    viz.add_confusion_matrix(writer, probs, labels, names, 1)
    viz.add_pr_curves(writer, probs, labels, names, 1)
    viz.add_filters(writer, net.conv, 1)
    viz.add_feature_maps(writer, net.conv, images[0], 1, norm)
    viz.add_histogram(writer, "probabilities", probs, 1)
    viz.add_projector(writer, probs, images, labels, names, 1, norm)
    return written(writer)


# ------------------------------------------------------- all views, with whatever people bring


@pytest.mark.parametrize(
    "classes, shape", [(2, (3, 128, 64)), (120, (1, 28, 28)), (3, (3, 7, 300))]
)
def test_every_view_takes_any_images_and_any_classes(writer, monkeypatch, classes, shape):
    """Torch's defaults, of another device and type here, change nothing of it."""
    asked, original = [], viz.unnormalize
    monkeypatch.setattr(viz, "unnormalize", lambda *args: asked.append(args[1]) or original(*args))
    names = ["种类", *FIGURES, *OTHERS, *map(str, range(120))][:classes]  # those of views, too
    net, batch, norm = SmallNet(classes, shape[0]), eight(classes, shape), ((0.5,), (0.5,))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            events = add_all(writer, net, *batch, names, norm)
    finally:
        torch.set_default_dtype(torch.float32)
    assert asked == [norm] * 6
    assert set(events) == FIGURES | OTHERS | {f"pr curve/{name}" for name in names}
    for tag, ((step, value),) in events.items():
        assert step == (0 if tag == "training images" else 1)
        assert (value.metadata.plugin_data.plugin_name == "pr_curves") == ("pr curve/" in tag)
        width_and_height = [int(text) for text in value.tensor.string_val[:2]]  # of a picture
        if tag in FIGURES:
            assert 50 < min(width_and_height) and max(width_and_height) < 1200
        if tag == "what the net sees/filters":
            assert width_and_height == [4 * (3 * 26 + 8) + 8, 3 * 26 + 2 * 8]


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


@pytest.mark.parametrize("move", [lambda given: given.as_subclass(Elsewhere), torch.Tensor.cuda])
def test_tensors_on_another_device_are_moved(writer, move):
    if move is torch.Tensor.cuda and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    images, labels, probs = eight()
    net = fixed(move(probs * 5))
    expected = viz.class_report(probs, labels, TEN), viz.worst_mistakes(probs, labels, 4)
    images, moved, probs = map(move, (images, labels, probs))
    for given in (labels, moved):
        assert viz.class_report(probs, given, TEN) == expected[0]
        assert viz.worst_mistakes(probs, given, 4) == expected[1]
    assert len(add_all(writer, net, images, moved, probs, TEN)) == len(FIGURES | OTHERS) + 10


def test_the_readers_matplotlib_style_changes_no_pixel(writer):
    style = {"figure.facecolor": "black", "text.color": "white", "font.size": 20}
    style |= {"image.origin": "lower", "figure.dpi": 50, "savefig.dpi": 300}
    style |= {"text.usetex": True, "text.hinting": "none", "text.antialiased": False}
    _, labels, probs = eight(3)
    images = torch.linspace(-1, 1, 16).view(1, 1, 16, 1).expand(8, 3, 16, 16)
    for context in (contextlib.nullcontext(), rc_context(style)):
        with context:
            viz.add_confusion_matrix(writer, probs, labels, TEN[:3], 1)
            viz.add_mistakes(writer, images, probs, labels, TEN[:3], 1)
    for (_, usual), (_, styled) in written(writer).values():
        assert styled.tensor.string_val == usual.tensor.string_val


TAKEN_BY = {  # the views that refuse, by what they take
    "images": (viz.add_image_grid, viz.add_mistakes, viz.add_projector),
    "probs": (viz.add_mistakes, viz.add_pr_curves, viz.class_report),
    "logits": (viz.add_predictions,),
    "labels": (viz.add_image_grid, viz.add_mistakes, viz.add_projector, viz.add_confusion_matrix)
    + (viz.add_pr_curves, viz.class_report, viz.worst_mistakes),
}


@pytest.mark.parametrize(
    "kind, wrong, message",
    [
        ("labels", lambda x: nn.functional.one_hot(x, 3), r"a Tensor of shape \(8, 3\) from 0 to"),
        ("labels", lambda x: x + 1, r"from 1 to 3; wanted is \(N,\) 0 to C - 1, N = 8, C = 3"),
        ("labels", lambda x: torch.where(x == 0, -100, x), "from -100 to 2"),
        ("labels", lambda x: x + 0.5, "from 0.5 to 2.5"),
        ("labels", lambda x: x[:7], r"shape \(7,\) .* N = 8"),
        ("labels", lambda x: {"labels": x}, "given is a dict; wanted"),
        ("probs", lambda x: x.log(), r"from -inf.*; wanted is \(N, C\) from 0 to 1"),
        ("probs", lambda x: x[:, :2], r"\(8, 2\) .* C = 3"),
        ("probs", lambda x: x / 0 * 0, "from nan to nan"),
        ("probs", lambda x: (x, x), "given is a tuple; wanted"),
        ("logits", lambda x: x.repeat(1, 300), r"\(8, 900\) .* C = 3"),
        ("images", lambda x: x[:, [0, 1, 2, 0]], r"a Tensor of shape \(8, 4, 16, 16\)"),
        ("images", lambda x: x[0], r"a Tensor of shape \(3, 16, 16\)"),
    ],
)
def test_what_does_not_fit_is_refused(writer, kind, wrong, message):
    images, labels, probs = eight(3)
    given = {"images": images, "labels": labels, "probs": probs, "logits": probs}
    given |= {"features": probs, "writer": writer, "classes": TEN[:3], "step": 1, "count": 4}
    given[kind] = wrong(given[kind])
    given["net"] = fixed(given["logits"])
    for view in TAKEN_BY[kind]:
        taken = inspect.signature(view).parameters.keys() & given.keys()
        with pytest.raises(ValueError, match=f"{kind}: .*{message}"):
            view(**{name: given[name] for name in taken})
    assert not written(writer)


@pytest.mark.parametrize("third", ["crane", " crane\n"])
def test_classes_of_one_name_are_numbered(writer, third):
    probs, labels = predictions(60, 3)
    names = ["crane", "crane (2)", third]
    viz.add_pr_curves(writer, probs, labels, names, 1)
    expected = ["crane", "crane (2)", "crane (3)"]
    assert set(written(writer)) == {f"pr curve/{name}" for name in expected}
    assert [row[0] for row in viz.class_report(probs, labels, names)[1:]] == expected


# --------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("batch", [1, 20])
def test_predictions_are_titled_and_coloured_for_the_batch_they_get(batch):
    probs, labels = predictions(batch, 10)
    images = torch.rand(batch, 3, 32, 32) * 2 - 1
    texts = viz.plot_classes_preds(fixed(probs.log()), images, labels, TEN).texts
    for text, p, label in zip(texts, probs, labels, strict=True):
        best = int(p.argmax())
        assert text.get_text() == f"{TEN[best]}, {p[best]:.1%}\n(label: {TEN[label]})"
        assert text.get_color() == ("green" if best == label else "red")


BYTES = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
PIXELS = BYTES / 255


@pytest.mark.parametrize(
    "images, norm",
    [
        (BYTES, (0, 1 / 255)),
        (PIXELS, (0, 1)),
        (transforms.Normalize(*IMAGENET)(PIXELS), IMAGENET),
        (PIXELS * 2 - 1, viz.HALF),  # the default
    ],
)
def test_images_are_drawn_in_their_own_colours_below_their_titles(images, norm, recwarn):
    """Where they were not normalised as said, there is a warning."""
    figure = viz.matplotlib_imshow(images, ["one", "two", "three"], norm=norm)
    drawn = np.asarray(figure.images[0].get_array())
    height, width, _ = drawn.shape
    for text, image in zip(figure.texts, PIXELS, strict=True):
        x, y = round(text.get_position()[0] * width), round((1 - text.get_position()[1]) * height)
        tile = drawn[y + 8 : y + 8 + 128 : 8, x - 64 : x + 64 : 8]
        np.testing.assert_allclose(tile, image.permute(1, 2, 0), atol=1e-6)
        assert (drawn[:y, x - 64 : x + 64] == 1).all()  # white behind the title
    assert not recwarn.list
    if norm != viz.HALF:
        said = f"images from {images.min():.3g} to {images.max():.3g} were not normalised with .0.5"
        with pytest.warns(match=said):
            viz.matplotlib_imshow(images)


@pytest.mark.parametrize("size, count", [((1000, 30), 1), ((224, 224), 16), ((3, 4), 65)])
def test_a_grid_of_any_images_has_a_sensible_size(size, count):
    figure = viz.matplotlib_imshow(torch.zeros(count, 3, *size), ["a title"] * count)
    columns, rows = min(count, 8), -(-min(count, 64) // 8)
    size = round(figure.bbox.width), round(figure.bbox.height)
    assert size == (columns * 144, rows * 192)
    assert len(figure.texts) == min(count, 64)


def test_a_batch_is_shown_as_the_loop_has_it(writer, figures):
    images = torch.rand(32, 3, 32, 32) * 255  # never normalised
    labels = torch.arange(32) % 10
    with pytest.warns(match="not normalised"):
        viz.add_batch(writer, images, labels, TEN, 1)
    (figure,) = figures
    heading, *titles = [text.get_text() for text in figure.texts]
    numbers = [float(n) for n in re.findall(r"\d[\d.e+-]*", heading)]
    np.testing.assert_allclose(numbers, [images.min(), images.max(), images.mean()], rtol=5e-3)
    assert titles == [TEN[label] for label in labels[:16]]
    assert (figure.images[0].get_array()[56 + 20 : 56 + 120, 28:128] > 0.9).mean() > 0.95  # white


def test_class_names_are_cut_by_the_room_that_they_take():
    for name in ("automobile", "一二三四五六七八"):  # 16 columns
        assert viz.shorten(name) == name
    assert viz.shorten("a name that goes on and on") == "a name that goe…"
    assert viz.shorten("a一二三四五六七八") == "a一二三四五六七…"


def test_chinese_names_are_drawn_with_the_fonts_that_are_installed(monkeypatch):
    """Where there are none, that is said once, with the cure."""
    find = viz.chinese_fonts.__wrapped__
    with pytest.warns(match="no font with Chinese.*install one, such as") as warned:
        for installed in [], ["DejaVu Serif"]:
            monkeypatch.setattr(viz, "CJK_FONTS", ["No Such Font", *installed])
            monkeypatch.setattr(viz, "chinese_fonts", functools.cache(find))  # looked for anew
            figure = viz.matplotlib_imshow(torch.zeros(3, 3, 32, 32), ["cat", "猫", "狗"])
            families = [text.get_fontfamily()[1:] for text in figure.texts]
            assert families == [[], installed, installed]  # beside DejaVu Sans
    assert len(warned) == 1


@pytest.mark.parametrize(
    "classes, side, names, numbers",
    [(2, 264, 2, 2), (40, 1176, 40, 40), (100, 1176, 100, 0), (101, 1085, 0, 0)]
    + [(1000, 1176, 0, 0), (5001, 1010, 0, 0)],
)
def test_a_confusion_matrix_is_bounded_and_readable(writer, figures, classes, side, names, numbers):
    labels = torch.arange(classes).to(torch.bool if classes == 2 else torch.int32)
    probs = torch.eye(classes)
    viz.add_confusion_matrix(writer, probs, labels, [f"n{i}" for i in range(classes)], 1)
    (figure,) = figures
    assert (round(figure.bbox.width), round(figure.bbox.height)) == (side, side)
    texts = [text.get_text() for text in figure.texts]
    assert sum(text.startswith("n") for text in texts) == 2 * names  # beside rows and columns
    assert texts.count("1") == numbers
    assert (f"{classes:,} classes,\ntoo many for names" in texts[0]) == (names == 0)
    pixels = figure.images[0].get_array()[176:, 176:]
    blue = (abs(pixels - viz.BLUE.numpy()) < 1e-6).all(axis=2)
    cells = classes if classes <= 1000 else 834  # of six classes each
    assert blue.diagonal().all() and blue.sum() * cells == blue.size


def test_confusions_are_scikit_learns(writer, figures):
    probs, labels = predictions(400, 6)
    expected = metrics.confusion_matrix(labels, probs.argmax(dim=1))
    expected[expected < 0.01 * expected.sum(axis=1, keepdims=True)] = 0  # too small to be shown
    for scores in (probs, probs.log()):
        viz.add_confusion_matrix(writer, scores, labels, TEN[:6], 1)
        figure, shown = figures.pop(), np.zeros((6, 6), int)
        for text in figure.texts:
            if text.get_text().isdigit():
                x, y = text.get_position()
                column, row = x * figure.bbox.width - 176, (1 - y) * figure.bbox.height - 176
                shown[int(row // 44), int(column // 44)] = int(text.get_text())
        np.testing.assert_array_equal(shown, expected)
    with pytest.raises(ValueError, match="scores: .* without NaN"):
        viz.add_confusion_matrix(writer, probs * float("nan"), labels, TEN[:6], 1)


def test_the_worst_mistakes_are_the_surest(writer):
    probs, labels = predictions(300, 5)
    wrong = [index for index in range(300) if probs[index].argmax() != labels[index]]
    surest = sorted(wrong, key=lambda index: -probs[index].max())
    assert viz.worst_mistakes(probs, labels, 8) == surest[:8]
    assert viz.worst_mistakes(probs, labels, 1000) == surest
    none = viz.worst_mistakes(probs, probs.argmax(dim=1), 8)
    viz.add_mistakes(writer, torch.zeros(0, 3, 8, 8), probs[none], labels[none], TEN[:5], 0)
    assert none == [] and not written(writer)


@pytest.mark.parametrize(
    "conv, shape, edge",
    [
        (nn.Conv2d(3, 6, 5), (3, 32, 32), 2),
        (nn.Conv2d(1, 4, 3, padding="same"), (1, 28, 28), 0),
        (nn.Conv2d(3, 64, 7, stride=2, padding=3), (3, 224, 160), 0),  # ResNet's first layer
    ],
)
def test_maps_lie_beside_the_part_of_the_image_they_answer_to(writer, tiles, conv, shape, edge):
    middle, stride = conv.kernel_size[0] // 2, conv.stride[0]
    conv.weight.data.zero_()
    conv.bias.data.zero_()
    conv.weight.data[1, 0, middle, middle] = 1  # it hands through its middle pixel, in red
    image = torch.rand(shape) * 2 - 1
    viz.add_feature_maps(writer, conv, image, 0)
    seen = image[:, edge : shape[1] - edge, edge : shape[2] - edge]
    means = nn.functional.avg_pool2d(seen, stride) / 2 + 0.5
    enlarged = 112 // means.shape[1]
    shown = tiles[0][:, :, ::enlarged, ::enlarged]
    assert len(shown) == min(1 + conv.out_channels, 64)
    torch.testing.assert_close(shown[0], means.expand(3, -1, -1))
    red = seen[0, ::stride, ::stride].clip(0)
    torch.testing.assert_close(shown[2, 0], red / red.max())


@pytest.mark.parametrize("channels, filters, shown", [(1, 6, 6), (3, 200, 64), (16, 3, 48)])
def test_filters_of_any_convolution_are_drawn(writer, tiles, channels, filters, shown):
    conv = nn.Conv2d(channels, filters, 5)
    viz.add_filters(writer, conv, 0)
    drawn = tiles[0][..., ::16, ::16]  # undo the enlargement
    assert len(drawn) == shown
    expected = conv.weight if channels in (1, 3) else conv.weight.view(-1, 1, 5, 5)
    torch.testing.assert_close(drawn, expected[:shown].detach())


# --------------------------------------------------------------------- text, settings, projector


def test_tables_are_aligned_markdown_of_anything():
    rows = [("class", "n"), ("a|b", 1), ("line\nbreak", 0.25)]
    assert viz.markdown_table(rows).splitlines() == [
        "| class      | n    |",
        "|------------|------|",
        r"| a\|b       | 1    |",
        "| line break | 0.25 |",
    ]


ODD_NAMES = [
    *("__init__", "*star*", "**a**", "a|b", "`code`", "[a](http://b.c)", "![a](b)", "<b>bold</b>"),
    *("a & b", "&amp;", "&#95;", "\\", "\\|", "a\\_b", "_a_", "# 1", "- x", "1. x", "http://a.b"),
    *("~~~", "```", "<a@b.c>", "$x$", "---", ":-:", "狗", "two\nlines", "<script>", "{: #id}"),
]
MISREAD = "/狗/".encode().decode("ascii", "surrogateescape")  # a path, as under LC_ALL=C


def test_any_name_appears_in_text_as_it_is(writer):
    """In the HTML that TensorBoard makes of a table."""
    rows = [["name", "again"], *([name, f"x {name} x"] for name in ODD_NAMES)]
    expected = [[" ".join(cell.split()) for cell in row] for row in rows]
    viz.add_table(writer, "table", [*rows, [MISREAD, 1]])
    ((_, value),) = written(writer)["table/text_summary"]
    page = ElementTree.fromstring(markdown_to_safe_html(value.tensor.string_val[0]))
    tags = {element.tag for element in page.iter()}
    assert tags <= {"table", "thead", "tbody", "tr", "th", "td"}  # and no formatting
    cells = [["".join(cell.itertext()) for cell in row] for row in page.iter("tr")]
    assert [[" ".join(cell.split()) for cell in row] for row in cells] == [*expected, ["/狗/", "1"]]


def test_hparams_are_one_session_of_numbers_and_text_without_an_experiment(writer):
    settings = {
        "lr": (0.1, 0.1),
        "augment": (True, 1.0),  # PyTorch writes True as 1
        "path": (Path(MISREAD), "/狗"),
        "none": (None, "None"),
        "two values": (torch.tensor([1.0, 2.0]), "tensor([1., 2.])"),
        "float32": (np.float32(0.5), 0.5),
        "tensor": (torch.tensor(0.25, requires_grad=True), 0.25),
        7: ("a number as name", "a number as name"),
    }
    writer.close()  # it opens again, as for its own methods
    viz.add_hparams_start(writer, {name: given for name, (given, _) in settings.items()})
    writer.close()
    viz.add_hparams_end(writer)
    ((_, start),) = written(writer)["_hparams_/session_start_info"]
    content = HParamsPluginData.FromString(start.metadata.plugin_data.content)
    stored = content.session_start_info.hparams
    shown = {name: getattr(stored[name], stored[name].WhichOneof("kind")) for name in stored}
    assert shown == {str(name): expected for name, (_, expected) in settings.items()}
    assert set(written(writer)) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    assert list(Path(writer.log_dir).parent.iterdir()) == [Path(writer.log_dir)]  # no second run


def test_the_layout_puts_both_losses_on_one_chart(writer):
    viz.add_layout(writer)
    ((_, value),) = written(writer)["custom_scalars__config__"]
    layout = Layout.FromString(value.tensor.string_val[0])
    losses, rate = (list(chart.multiline.tag) for chart in layout.category[0].chart)
    assert losses == ["^training loss$", "^test/loss$"]
    assert rate == ["^training progress/learning rate$"]


@pytest.mark.parametrize("height, width", [(40, 20), (20, 40)])
def test_the_projector_gets_features_names_and_thumbnails(writer, height, width):
    features, labels = torch.randn(30, 84), torch.arange(30) % 3
    images = torch.rand(30, 3, height, width) * 2 - 1
    viz.add_projector(writer, features, images, labels, ["a", "b", "雪"], 12)
    (folder,) = Path(writer.log_dir).glob("00012/*")
    np.testing.assert_allclose(np.loadtxt(folder / "tensors.tsv"), features, rtol=1e-5)
    assert (folder / "metadata.tsv").read_text(encoding="utf-8").split() == ["a", "b", "雪"] * 10
    second = np.asarray(Image.open(folder / "sprite.png"))[:20, 20:40] / 255
    pixels = (images[1].permute(1, 2, 0) / 2 + 0.5).numpy()
    means = pixels.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(second[: height // 2, : width // 2], means, atol=0.01)
    assert (second[height // 2 :] == 1).all() and (second[:, width // 2 :] == 1).all()  # white


# -------------------------------------------------------------------------------------- the graph


class Mixed(SmallNet):
    """It goes into mixed precision by itself."""

    def forward(self, images):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = self.conv(images).relu()
        return self.fc(maps.float().mean(dim=(2, 3)))


class Twice(nn.Module):
    """Uses a layer and a function twice, has a layer in layers, and adds what goes two ways.

    Its first layers are frozen, and it keeps what they compute.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.skip = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Sequential(nn.Dropout()), nn.Linear(8 * 7 * 7, 5))

    def forward(self, images):
        with torch.no_grad():
            x = self.kept = torch.relu(self.norm(self.conv(images)))
        x += self.skip(images)
        x = self.pool(torch.relu(self.pool(x)))
        return self.head(x.flatten(1))


def test_the_graph_is_the_way_of_the_images_and_all_weights_with_their_shapes(writer, recwarn):
    net = Twice()
    writer.close()  # it opens again
    viz.add_net_graph(writer, net, torch.zeros(2, 3, 32, 32))
    nodes = graph_nodes(writer)
    way = {  # from the images to the output
        "input/images": [2, 3, 32, 32],
        "Twice/conv Conv2d/conv2d": [2, 8, 30, 30],
        "Twice/norm BatchNorm2d/batch_norm": [2, 8, 30, 30],
        "Twice/relu": [2, 8, 30, 30],
        "Twice/add_": [2, 8, 30, 30],
        "Twice/pool MaxPool2d/max_pool2d": [2, 8, 15, 15],
        "Twice/relu (2)": [2, 8, 15, 15],
        "Twice/pool (2) MaxPool2d/max_pool2d": [2, 8, 7, 7],
        "Twice/flatten": [2, 392],
        "Twice/head Sequential/0 Sequential/0 Dropout/dropout": [2, 392],
        "Twice/head Sequential/1 Linear/linear": [2, 5],
    }
    for name, source in zip([*way, "output/output"], [None, *way], strict=True):
        assert next(iter(nodes[name].input), None) == source  # the weights come after it
    beside = {"Twice/skip Conv2d/conv2d": [2, 8, 30, 30]}
    assert list(nodes["Twice/add_"].input) == ["Twice/relu", *beside]
    boxes = {"conv Conv2d": net.conv, "skip Conv2d": net.skip, "norm BatchNorm2d": net.norm}
    for box, layer in {**boxes, "head Sequential/1 Linear": net.head[1]}.items():
        for name, tensor in layer.state_dict().items():
            if name != "num_batches_tracked":  # nothing uses it
                beside[f"Twice/{box}/{name}"] = list(tensor.shape)
    shapes = {name: node.attr["_output_shapes"].list.shape for name, node in nodes.items()}
    assert not shapes.pop("output/output")
    shown = {name: [dim.size for dim in shape.dim] for name, (shape,) in shapes.items()}
    assert shown == way | beside
    assert not recwarn.list


def test_views_see_the_net_as_in_a_test_and_change_nothing_of_it(writer, recwarn):
    """Its hooks see no image, and it keeps nothing, while the graph is drawn."""
    net, images, seen = Twice(), torch.randn(4, 3, 32, 32), []
    net.norm.eval()  # frozen by its owner
    net.conv.register_forward_hook(lambda *given: seen.append(given[-1].mean()))
    net.head.register_forward_pre_hook(lambda *given: seen.append(given[-1][0].mean()))
    nn.utils.spectral_norm(net.conv)  # a hook, too, but of torch's own: a part of the layer
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random_state = torch.get_rng_state()
    viz.add_net_graph(writer, net, images)
    assert "Twice/conv Conv2d/weight_orig" in graph_nodes(writer)
    assert not seen and not hasattr(net, "kept") and not recwarn.list
    first, second = (viz.images_to_probs(net, images)[1] for _ in range(2))
    assert torch.equal(first, second)  # without dropout
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [name for name, layer in net.named_modules() if not layer.training] == ["norm"]
    net(images).sum().backward()
    assert len(seen) == 3 * 2 and torch.stack(seen).isfinite().all()  # the hooks are on again


def test_a_net_that_cannot_be_traced_costs_a_warning_only(writer, monkeypatch):
    def forward(net, images):
        raise RuntimeError("no graph of me\nand many more lines")

    monkeypatch.setattr(SmallNet, "forward", forward)
    with pytest.warns(UserWarning, match="could not be drawn: no graph of me$"):
        viz.add_net_graph(writer, SmallNet(), eight()[0])
    assert not graph_nodes(writer)


def test_what_the_graph_does_not_show_is_said(writer):
    with pytest.warns(match="under autocast, or such, are not in the graph but inside Mixed/"):
        viz.add_net_graph(writer, Mixed(), eight()[0])
    assert "Mixed/fc Linear/linear" in graph_nodes(writer)


@pytest.mark.parametrize("wrapper", [nn.parallel.DistributedDataParallel, nn.DataParallel])
def test_the_first_of_several_processes_may_draw_alone(writer, monkeypatch, wrapper):
    monkeypatch.setattr(wrapper, "__init__", nn.Module.__init__)  # alone, its `forward` fails
    net = wrapper()
    net.module = SmallNet()
    images, labels, _ = eight()
    viz.add_net_graph(writer, net, images)
    viz.add_predictions(writer, net, images, labels, TEN, 1)
    assert "SmallNet/conv Conv2d/conv2d" in graph_nodes(writer)
    assert "predictions vs. actuals" in written(writer) and net.module.training


# ------------------------------------------------------------------- histograms, numbers, curves


NORMAL = torch.randn(100_000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "values",
    [
        *(NORMAL, NORMAL.half(), NORMAL.bfloat16()),
        torch.tensor([1.0, float("nan"), 2.0, float("inf")]),
        torch.linspace(-1.0, 1.0, 1000) * 3e38,
        *(torch.full((64,), value) for value in (0.0, 1e-4, -2.0, 3e6)),
    ],
)
def test_histograms_are_numpys_of_the_finite_values(writer, values):
    viz.add_histogram(writer, "some", values, 5)
    viz.add_histogram(writer, "none", torch.tensor([float("nan")]), 5)
    assert set(written(writer)) == {"some"}
    step, bins = only(writer, "some")
    left, right, counts = bins[bins[:, 2] > 0].T
    finite = values[values.isfinite()].double().numpy()
    expected, edges = np.histogram(finite, bins=64)
    edges = edges.clip(finite.min(), finite.max())  # of the one bin of values that are all alike
    (filled,) = expected.nonzero()
    assert step == 5 and counts.tolist() == expected[filled].tolist()
    np.testing.assert_allclose([left, right], [edges[filled], edges[filled + 1]], rtol=1e-5)


def test_histograms_are_of_many_values_and_of_gradients_only_where_there_are_some(writer):
    viz.add_histograms(writer, SmallNet(), 0)  # of 108 and 40 weights, 4 and 10 biases
    assert set(written(writer)) == {"weights/conv.weight"}


def test_training_scalars_are_over_all_parameters(writer):
    net = Net()
    net(torch.randn(2, 3, 32, 32)).sum().backward()
    viz.add_training_scalars(writer, net, 0.1, 1234.5, 9)
    flat = np.concatenate([p.grad.numpy().ravel() for p in net.parameters()])
    expected = {
        "training progress/gradient norm": np.linalg.norm(flat),
        "training progress/zero gradients": (flat == 0).mean(),
        "training progress/learning rate": 0.1,
        "training progress/images per second": 1234.5,
    }
    assert written(writer).keys() == expected.keys()
    for tag, number in expected.items():
        assert only(writer, tag) == (9, pytest.approx(number, rel=1e-5))
    for set_to_none in (False, True):  # gradients that are gone are not shown as zero
        net.zero_grad(set_to_none)
        with pytest.warns(match="no gradients: call this after backward and before zero_grad"):
            viz.add_training_scalars(writer, net, 0.1, 1234.5, 10)
    assert [len(written(writer)[tag]) for tag in expected] == [1, 1, 3, 3]


@pytest.mark.parametrize("value, dtype", [(1e25, torch.float32), (600, torch.float16)])
def test_a_gradient_norm_does_not_overflow(writer, value, dtype):
    net = nn.Linear(200, 200, bias=False, dtype=dtype)
    net.weight.grad = torch.full_like(net.weight, value)
    viz.add_training_scalars(writer, net, 0.1, 1.0, 1)
    _, norm = only(writer, "training progress/gradient norm")
    assert norm == pytest.approx(value * 200, rel=1e-3)


def test_pr_curves_are_scikit_learns_at_the_same_thresholds(writer):
    probs, labels = predictions(2000, 4)
    viz.add_pr_curves(writer, probs, labels, TEN[:4], 7)
    for index in range(4):
        viz.add_pr_curve_tensorboard(writer, index, probs, labels, TEN[:4], 8)
    for index, name in enumerate(TEN[:4]):
        (step, value), (next_step, alone) = written(writer)[f"pr curve/{name}"]
        assert (step, next_step) == (7, 8) and value == alone
        curve = tensor_util.make_ndarray(value.tensor)  # tp, fp, tn, fn, precision, recall
        assert curve.shape == (6, 127)
        truth = (labels == index).numpy()
        for position in (0, 10, 40, 63, 100, 126):
            # TensorBoard puts a score into the bin floor(score * 126) and counts from that bin up.
            taken = np.floor(probs[:, index].numpy() * 126) >= position
            precision = metrics.precision_score(truth, taken, zero_division=0)
            recall = metrics.recall_score(truth, taken)
            np.testing.assert_allclose(curve[4:, position], [precision, recall], rtol=1e-5)


@pytest.mark.parametrize("decimals", [1, 8])  # few decimals: many samples share a score
def test_class_report_is_scikit_learns(decimals):
    probs, labels = predictions(300, 5)
    probs = probs.round(decimals=decimals).bfloat16().float()  # which other types hold, too
    probs = nn.functional.pad(probs, (0, 2))  # two more classes, which are never predicted,
    labels[:3] = 5  # and one of them without images, too
    head, *rows = viz.class_report(probs, labels, TEN[:7])
    assert head == ("class", "images", "precision", "recall", "average precision")
    precision, recall, _, images = metrics.precision_recall_fscore_support(
        labels, probs.argmax(dim=1), labels=range(7), zero_division=0
    )
    for index, row in enumerate(rows[:6]):
        ap = metrics.average_precision_score(labels == index, probs[:, index])
        numbers = [f"{x:.3f}" for x in (precision[index], recall[index], ap)]
        assert row == (TEN[index], str(images[index]), *numbers)
    assert rows[6][1:] == ("0", "0.000", "0.000", "0.000")
    others = (probs.bfloat16(), labels.byte()), (probs.numpy(), labels.tolist())
    for same_probs, same_labels in (*others, (probs.double().requires_grad_(), labels.double())):
        assert viz.class_report(same_probs, same_labels, TEN[:7]) == [head, *rows]
