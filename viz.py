"""One function per TensorBoard view; each takes the writer, what it shows, and the step.

Nothing here reads a global, a file or a run: writer, net, images and class names are passed in, so
that every function can be lifted into the training of any image classifier. Tensors may be on any
device. Shapes: B images in a batch, N samples, C classes; images are (B, 1 or 3, H, W) of any size.
`norm` is the mean and standard deviation that they were normalised with, numbers or one for each
channel: (0.5, 0.5) after Normalize(0.5, 0.5). The file goes from tab to tab; how figures are drawn
comes after that, and how the graph is drawn comes last.
"""

import contextlib
import functools
import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import font_manager
from matplotlib.figure import Figure
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid

RIGHT, WRONG = "green", "red"
BLUE = torch.tensor([0.02, 0.29, 0.62])
MAX_TILES = 64  # images, filters or maps in one picture
COLUMNS = 8  # of them in a row
TILE, GAP, TITLE = 128, 8, 56  # pixels: an image's longer side, around it, above it
DPI = 100  # pixels per inch, by which Matplotlib measures
BINS = 64  # of a histogram
MARKUP = re.compile(r"[\\`*_\[\]<>&|]")  # what Markdown would interpret

Channels = float | Sequence[float]  # one number for all channels, or one for each
Norm = tuple[Channels, Channels]  # mean and standard deviation

# Class names may be Chinese, for which DejaVu has no glyphs: any of these helps where installed.
# (Matplotlib before 3.11 sees only the first font of a collection: Noto's is the Japanese one.)
CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "PingFang SC",
    "WenQuanYi Zen Hei",
    "SimHei",
)


# ---------------------------------------------------------------------- SCALARS, CUSTOM SCALARS


def add_training_loss(writer: SummaryWriter, loss: float, step: int) -> None:
    """SCALARS: the mean loss of the batches since the last report."""
    writer.add_scalar("training loss", loss, step)


def add_training_scalars(
    writer: SummaryWriter, net: nn.Module, lr: float, images_per_second: float, step: int
) -> None:
    """SCALARS: what explains the course of the loss, and how fast it goes.

    The gradient norm is that of the last batch, still in the parameters' `.grad`.
    """
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(grads).item()
    writer.add_scalar("training progress/learning rate", lr, step)
    writer.add_scalar("training progress/images per second", images_per_second, step)
    writer.add_scalar("training progress/gradient norm", norm, step)


def add_test_scalars(writer: SummaryWriter, loss: float, accuracy: float, step: int) -> None:
    """SCALARS: mean loss and accuracy (0 to 1) over the test images."""
    writer.add_scalar("test/loss", loss, step)
    writer.add_scalar("test/accuracy", accuracy, step)


def add_layout(writer: SummaryWriter) -> None:
    """CUSTOM SCALARS: training and test loss on one chart, the learning rate on another.

    TensorBoard gives a run one colour: its two losses differ by the marks on their points. Call it
    once for a writer: a second layout replaces the first.
    """
    writer.add_custom_scalars(
        {
            "training": {
                "training and test loss": ["Multiline", ["^training loss$", "^test/loss$"]],
                "learning rate": ["Multiline", ["^training progress/learning rate$"]],
            }
        }
    )


# --------------------------------------------------------------------------------------- IMAGES


def add_image_grid(
    writer: SummaryWriter,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int = 0,
    norm: Norm = (0.5, 0.5),
) -> None:
    """IMAGES: training images (B, 1 or 3, H, W) with the names of their labels (B,)."""
    titles = [shorten(classes[label]) for label in labels.tolist()]
    figure = plot_images(images, titles, None, norm, size=10)
    add_figure(writer, "training images", figure, step)


def add_batch(
    writer: SummaryWriter,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
    norm: Norm = (0.5, 0.5),
) -> None:
    """IMAGES: a batch (B, 1 or 3, H, W) with labels (B,), as the training loop has it.

    What goes wrong on the way to the net shows here, not in the data set: pixels on another scale,
    labels of other images, batches in order. Up to 16 images are drawn.
    """
    pixels = images.detach().cpu().float()
    heading = f"least {pixels.min():.3g}, greatest {pixels.max():.3g},\nmean {pixels.mean():.3g}"
    titles = [shorten(classes[label]) for label in labels[:16].tolist()]
    figure = plot_images(images[:16], titles, None, norm, size=10, heading=heading)
    add_figure(writer, "training batch", figure, step)


def images_to_probs(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted class (B,) of each image (B, ...) and its probability (B,), on the CPU.

    The net predicts as in a test, without dropout; every layer's mode is then as it was.
    """
    with kept_modes(net), torch.no_grad():
        net.eval()
        probs, preds = net(images).softmax(dim=1).max(dim=1)
    return preds.cpu(), probs.cpu()


def plot_classes_preds(
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    norm: Norm = (0.5, 0.5),
) -> Figure:
    """Draw images (B, 1 or 3, H, W) with predicted class, its probability, and label (B,).

    The title is green where the prediction is right and red where it is wrong.
    """
    preds, probs = images_to_probs(net, images)
    labels = labels.cpu()
    colors = [RIGHT if right else WRONG for right in (preds == labels).tolist()]
    titles = prediction_titles(preds, probs, labels, classes)
    return plot_images(images, titles, colors, norm)


def prediction_titles(
    preds: torch.Tensor, probs: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> list[str]:
    """Say of each image the predicted class (B,), its probability (B,), and the label (B,)."""
    return [
        f"{shorten(classes[pred], 14)}, {prob:.1%}\n(label: {shorten(classes[label], 14)})"
        for pred, prob, label in zip(preds.tolist(), probs.tolist(), labels.tolist(), strict=True)
    ]


def add_predictions(
    writer: SummaryWriter,
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
    norm: Norm = (0.5, 0.5),
) -> None:
    """IMAGES: what the net now predicts for a batch of images, and what they are."""
    figure = plot_classes_preds(net, images, labels, classes, norm)
    add_figure(writer, "predictions vs. actuals", figure, step)


def worst_mistakes(probs: torch.Tensor, labels: torch.Tensor, count: int) -> list[int]:
    """Up to `count` indices of wrong predictions, from probs (N, C) and labels (N,).

    The surest come first: those with the highest probability for the wrong class.
    """
    highest, preds = probs.cpu().max(dim=1)
    wrong = (preds != labels.cpu()).nonzero()[:, 0]
    surest = highest[wrong].argsort(descending=True, stable=True)
    return wrong[surest][:count].tolist()


def add_mistakes(
    writer: SummaryWriter,
    images: torch.Tensor,
    probs: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
    norm: Norm = (0.5, 0.5),
) -> None:
    """IMAGES: wrongly classified images (B, 1 or 3, H, W) with predicted and true class.

    probs (B, C) and labels (B,) are those of the images that `worst_mistakes` found. Without a
    mistake there is no picture.
    """
    if len(images) == 0:
        return
    highest, preds = probs.max(dim=1)
    titles = prediction_titles(preds, highest, labels, classes)
    heading = "surest mistakes first"
    figure = plot_images(images, titles, [WRONG] * len(titles), norm, heading=heading)
    add_figure(writer, "test/worst mistakes", figure, step)


def count_confusions(preds: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Count (C, C): row the true class, column the predicted one; preds and labels (N,)."""
    cells = labels * num_classes + preds
    return cells.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def add_confusion_matrix(
    writer: SummaryWriter,
    probs: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
) -> None:
    """IMAGES: how many images of each true class (row) were taken for each class (column).

    probs (N, C) and labels (N,) are those of the test images. The picture has at most 1,200 pixels
    a side: cells shrink with many classes, up to 40 have numbers in them, up to 100 have names.
    Of more than 1,000 classes, as many neighbours as it takes share a cell.
    """
    shared = math.ceil(len(classes) / 1000)
    preds, labels = probs.argmax(dim=1).cpu() // shared, labels.cpu() // shared
    counts = count_confusions(preds, labels, math.ceil(len(classes) / shared))
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    pixels = 1 - shares * (1 - BLUE[:, None, None])  # (3, C, C): one for a cell
    cell, margin = min(44, 1000 // len(counts)), 176  # pixels; the names are in the margin
    pixels = F.interpolate(pixels[None], scale_factor=cell)[0]
    fig = pixel_figure(F.pad(pixels, (margin, 0, margin, 0), value=1.0))

    write_text(fig, GAP, GAP, "true class ↓\npredicted class →", va="top", ha="left")
    middles = [margin + cell * (index + 0.5) for index in range(len(counts))]
    names = map(shorten, classes) if cell >= 10 else ()
    for middle, name in zip(middles, names, strict=False):
        size = min(10, 0.6 * cell)
        write_text(fig, margin - GAP, middle, name, va="center", ha="right", size=size)
        write_text(fig, middle, margin - GAP, name, rotation=90, size=size)
    numbered = (shares >= 0.01).nonzero().tolist() if cell >= 25 else []  # smaller ones distract
    for true, pred in numbered:
        color = "white" if shares[true, pred] > 0.6 else "black"
        number = str(counts[true, pred].item())
        write_text(fig, middles[pred], middles[true], number, va="center", color=color, size=8)
    add_figure(writer, "test/confusion matrix", fig, step)


def add_filters(writer: SummaryWriter, conv: nn.Conv2d, step: int) -> None:
    """IMAGES: the filters (K, 1 or 3, H, W) of a convolution, each in its own contrast.

    Where it has other than 1 or 3 input channels, each channel of a filter is an image of its own.
    """
    filters = conv.weight.detach().cpu()
    if filters.shape[1] not in (1, 3):
        filters = filters.flatten(0, 1)[:, None]
    tiles = fit(filters[:MAX_TILES], 80)
    grid = make_grid(tiles, nrow=8, normalize=True, scale_each=True, padding=8, pad_value=1.0)
    writer.add_image("what the net sees/filters", grid, step)


def add_feature_maps(
    writer: SummaryWriter,
    conv: nn.Conv2d,
    image: torch.Tensor,
    step: int,
    norm: Norm = (0.5, 0.5),
) -> None:
    """IMAGES: one image (1 or 3, H, W), then what each filter of a first layer answers to it.

    The image is shown in the size of the maps, whatever the stride, and without the edges that
    they lack: a filter without padding has its middle in none of them.
    """
    with torch.no_grad():
        maps = F.relu(conv(image[None].to(conv.weight.device)))[0, : MAX_TILES - 1].cpu()
    maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)  # each in its own contrast
    tiles = fit(maps[:, None], 112)  # (K, 1, H', W')
    seen = image[None]
    for dim, stride in enumerate(conv.stride, start=2):
        covered = min(maps.shape[dim - 1] * stride, seen.shape[dim])
        seen = seen.narrow(dim, (seen.shape[dim] - covered) // 2, covered)
    seen = unnormalize(F.interpolate(seen, size=tiles.shape[2:], mode="area"), norm)
    tiles = torch.cat([seen, tiles.expand(-1, 3, -1, -1)])
    grid = make_grid(tiles, nrow=COLUMNS, padding=8, pad_value=1.0)
    writer.add_image("what the net sees/feature maps", grid, step)


# --------------------------------------------------------------------------------------- GRAPHS


def add_net_graph(writer: SummaryWriter, net: nn.Module, images: torch.Tensor) -> None:
    """GRAPHS: the layers of `net` and the shapes between them, for images on the net's device.

    Where it cannot be drawn, a warning says why: no picture is worth a training run.
    """
    with kept_modes(net):
        net.eval()  # drawn as it predicts, without what batch norm does in training
        try:
            graph = net_graph(net, images)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"the graph of the net could not be drawn: {reason}", stacklevel=2)
        else:
            writer.file_writer.add_event(Event(graph_def=graph.SerializeToString()))


@contextlib.contextmanager
def kept_modes(net: nn.Module) -> Iterator[None]:
    """After the block, every layer of the net is in training or evaluation mode as before."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# -------------------------------------------------------------------- HISTOGRAMS, DISTRIBUTIONS


def add_histograms(writer: SummaryWriter, net: nn.Module, step: int) -> None:
    """HISTOGRAMS and DISTRIBUTIONS: weights and gradients of every layer.

    Left out are parameters with fewer values than a histogram has bins, such as the six biases of
    a convolution: they would be single spikes, not a distribution.
    """
    for name, parameter in net.named_parameters():
        if parameter.numel() >= BINS:
            add_histogram(writer, f"weights/{name}", parameter, step)
            if parameter.grad is not None:
                add_histogram(writer, f"gradients/{name}", parameter.grad, step)


def add_histogram(writer: SummaryWriter, tag: str, values: torch.Tensor, step: int) -> None:
    """HISTOGRAMS: the finite values of a tensor of any shape; nothing where there are none.

    The writer's own method fails where a value is NaN, and counts in the precision of the values.
    """
    values = values.detach().cpu()
    finite = values[values.isfinite()]
    if finite.numel() > 0:
        writer.add_histogram(tag, finite.double(), step, bins=BINS)


# ------------------------------------------------------------------------------------ PR CURVES


def add_pr_curve_tensorboard(
    writer: SummaryWriter,
    class_index: int,
    test_probs: torch.Tensor,
    test_labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
) -> None:
    """PR CURVES: precision against recall of one class, at 127 thresholds.

    Of the probabilities (N, C) and labels (N,) the curve takes the truth (is it this class?) and
    the probability given to this class. Logits, or predictions instead of labels, would give a
    curve without meaning. In a group of their own, classes may have the name of another view.
    """
    tag, truth = f"pr curve/{classes[class_index]}", test_labels == class_index
    writer.add_pr_curve(tag, truth, test_probs[:, class_index], step)


def add_pr_curves(
    writer: SummaryWriter,
    test_probs: torch.Tensor,
    test_labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
) -> None:
    """PR CURVES: one curve for each class."""
    for class_index in range(len(classes)):
        add_pr_curve_tensorboard(writer, class_index, test_probs, test_labels, classes, step)


# ----------------------------------------------------------------------------------------- TEXT


def add_table(
    writer: SummaryWriter, tag: str, rows: Sequence[Sequence[object]], step: int = 0
) -> None:
    """TEXT: rows of anything as a table; the first row is the heading.

    Every cell appears as it is: what Markdown would format, such as `__init__`, is escaped.
    """
    rows = [[MARKUP.sub(as_entity, readable(str(cell))) for cell in row] for row in rows]
    writer.add_text(tag, markdown_table(rows), step)


def as_entity(character: re.Match[str]) -> str:
    """Write a character as HTML does by its number, in which Markdown sees only text."""
    return f"&#{ord(character[0])};"


def readable(text: str) -> str:
    """The text in UTF-8, also where Python has read it (a path) in an encoding without Chinese."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def markdown_table(rows: Sequence[Sequence[object]]) -> str:
    """Align rows as a Markdown table, readable in TensorBoard and in a terminal."""
    rows = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    columns = []
    for column in zip(*rows, strict=True):
        width = max(map(display_width, column))
        columns.append([cell + " " * (width - display_width(cell)) for cell in column])
    head, *body = ("| " + " | ".join(row) + " |" for row in zip(*columns, strict=True))
    rule = "|" + "|".join("-" * (display_width(cells[0]) + 2) for cells in columns) + "|"
    return "\n".join([head, rule, *body])


def class_report(
    probs: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> list[tuple[str, str, str, str, str]]:
    """Rows of precision, recall and average precision per class, from probs (N, C), labels (N,).

    With TP, FP, FN the true positives, false positives and false negatives of a class, precision is
    TP / (TP + FP) and recall TP / (TP + FN); a class that is never predicted has precision 0.
    """
    probs, labels = probs.cpu(), labels.cpu()
    preds = probs.argmax(dim=1)
    rows = [("class", "images", "precision", "recall", "average precision")]
    for index, name in enumerate(classes):
        truth, taken = labels == index, preds == index
        hits = (truth & taken).sum().item()
        actual, predicted = truth.sum().item(), taken.sum().item()
        precision, recall = hits / max(predicted, 1), hits / max(actual, 1)
        ap = average_precision(probs[:, index].numpy(), truth.numpy())
        rows.append((name, f"{actual:,}", f"{precision:.3f}", f"{recall:.3f}", f"{ap:.3f}"))
    return rows


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the precision-recall curve: sum of (R_n - R_{n-1}) P_n over falling scores.

    scores (N,) and 0/1 truth (N,); 0 without a positive. The definition is scikit-learn's
    `average_precision_score`; samples with the same score count as one threshold.
    """
    order = np.argsort(-scores, kind="stable")
    hits = truth[order].cumsum()
    last_of_score = np.append(np.diff(scores[order]) != 0, True)
    hits, taken = hits[last_of_score], np.flatnonzero(last_of_score) + 1
    gained = np.diff(hits, prepend=0)
    return float((gained * hits / taken).sum() / max(truth.sum(), 1))


# -------------------------------------------------------------------------------------- HPARAMS


def add_hparams_start(writer: SummaryWriter, settings: Mapping[str, object]) -> None:
    """HPARAMS: the settings of this run (str, bool, int or float), one row of the table.

    `SummaryWriter.add_hparams` would open a second run and an Experiment record, which hides runs
    with other settings; the session alone makes TensorBoard unite all keys and take every scalar
    of the run as a metric.
    """
    settings = {k: readable(v) if isinstance(v, str) else v for k, v in settings.items()}
    _, session_start, _ = hparams(settings, {})
    writer.file_writer.add_summary(session_start)


def add_hparams_end(writer: SummaryWriter, failed: bool = False) -> None:
    """HPARAMS: mark this run's row as finished, or as failed."""
    _, _, session_end = hparams({}, {})
    if failed:  # PyTorch knows success only
        (value,) = session_end.value
        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        data.session_end_info.status = Status.Value("STATUS_FAILURE")
        value.metadata.plugin_data.content = data.SerializeToString()
    writer.file_writer.add_summary(session_end)


# ------------------------------------------------------------------------------------ PROJECTOR


def add_projector(
    writer: SummaryWriter,
    features: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
    norm: Norm = (0.5, 0.5),
) -> None:
    """PROJECTOR: features (N, D) with class names, and images (N, 1 or 3, H, W) as thumbnails.

    Call it once for a run: a second call is listed beside the first, even for the same step.
    """
    names = [" ".join(classes[label].split()) for label in labels.tolist()]
    # Packing the thumbnails into a PNG takes most of the time: smaller ones save half of it.
    thumbnails = unnormalize(fit(images, 20), norm)
    writer.add_embedding(features.cpu(), names, thumbnails, global_step=step, tag="features")


# ------------------------------------------------------------------------ how figures are drawn


def plot_images(
    images: torch.Tensor,
    titles: Sequence[str],
    colors: Sequence[str] | None = None,
    norm: Norm = (0.5, 0.5),
    size: int = 8,
    heading: str = "",
) -> Figure:
    """Draw images (B, 1 or 3, H, W) in rows of up to eight, 64 at most.

    Each stands below its title, in letters of `size` points; `heading` is in the upper left corner.
    """
    fig = matplotlib_imshow(images, norm)
    if heading:
        write_text(fig, GAP, GAP / 2, heading, va="top", ha="left", size=8)
    for index, title in enumerate(titles[:MAX_TILES]):
        row, column = divmod(index, COLUMNS)
        x = (column + 0.5) * (TILE + 2 * GAP)
        y = row * (TITLE + TILE + GAP) + TITLE - GAP
        color = colors[index] if colors else "black"
        write_text(fig, x, y, title, color=color, size=size)
    return fig


def matplotlib_imshow(images: torch.Tensor, norm: Norm = (0.5, 0.5)) -> Figure:
    """Return a figure of images (B, 1 or 3, H, W) in their own colours, with room for titles.

    The notes' function of this name draws a single image into the current Matplotlib axes.
    """
    tiles = unnormalize(fit(images[:MAX_TILES], TILE), norm)
    below, beside = TILE - tiles.shape[2], TILE - tiles.shape[3]
    margins = (GAP + beside // 2, GAP + beside - beside // 2, TITLE, GAP + below)
    cells = F.pad(tiles, margins, value=1.0)  # in white
    return pixel_figure(make_grid(cells, nrow=COLUMNS, padding=0, pad_value=1.0))


def unnormalize(images: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Turn normalised images (B, 1 or 3, H, W) into RGB (B, 3, H, W) in [0, 1], on the CPU."""
    mean, std = (torch.as_tensor(value).float().view(-1, 1, 1) for value in norm)
    return (images.detach().cpu() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)


def fit(images: torch.Tensor, side: int) -> torch.Tensor:
    """Scale images (B, C, H, W) so that the longer side of them has at most `side` pixels.

    Small ones grow by a whole number: each pixel becomes a square.
    """
    longest = max(images.shape[2:])
    scale = side // longest or side / longest
    size = [max(1, round(length * scale)) for length in images.shape[2:]]
    return F.interpolate(images, size=size, mode="area")


def pixel_figure(pixels: torch.Tensor) -> Figure:
    """Return a figure of just this picture (3, H, W) with values in [0, 1].

    It has no axes: those take several times as long to draw as the picture itself.
    """
    _, height, width = pixels.shape
    fig = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    fig.figimage(pixels.permute(1, 2, 0).numpy())
    return fig


def write_text(fig: Figure, x: float, y: float, text: str, va: str = "bottom", **style) -> None:
    """Write text into a figure: x pixels from its left and y from its top edge."""
    is_chinese = display_width(text) > len(text)
    family = ["DejaVu Sans", *(chinese_fonts() if is_chinese else [])]
    style = {"ha": "center", "va": va, "family": family} | style
    # A class name may hold a dollar sign.
    fig.text(x / fig.bbox.width, 1 - y / fig.bbox.height, text, parse_math=False, **style)


def add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """IMAGES: a Matplotlib figure."""
    with warnings.catch_warnings():
        # A character that no font has becomes a box: `chinese_fonts` says so once for all.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        writer.add_figure(tag, figure, step)


@functools.cache
def chinese_fonts() -> list[str]:
    """Names of installed fonts for what DejaVu lacks; where there are none, a warning says so."""
    installed = set(font_manager.get_font_names())
    found = [name for name in CJK_FONTS if name in installed]
    if not found:
        warnings.warn(
            "no font with Chinese characters is installed: figures show boxes instead of them; "
            "install one, such as the package fonts-noto-cjk, and start again",
            stacklevel=2,
        )
    return found


def shorten(name: str, limit: int = 16) -> str:
    """Cut a class name to `limit` columns, so that titles in a grid do not run into each other."""
    name = " ".join(name.split())  # a name may hold line breaks
    if display_width(name) <= limit:
        return name
    while display_width(name) >= limit:
        name = name[:-1]
    return name + "…"


def display_width(text: str) -> int:
    """The columns that a text takes: a Chinese character takes two."""
    return len(text) + sum(unicodedata.east_asian_width(c) in "WF" for c in text)


# ----------------------------------------------------------------------- how the graph is drawn


def net_graph(net: nn.Module, images: torch.Tensor) -> GraphDef:
    """Draw the operations of `net` that torch.export finds, each in the box of its layer.

    Only shapes are computed, no numbers. `SummaryWriter.add_graph` uses torch.jit.trace, which is
    deprecated, leaves functions such as relu nameless, and draws a layer used twice as a loop.
    """
    program = torch.export.export(net, (images,), strict=False)
    signature = program.graph_signature
    weights = {  # of the nodes that are the net's own tensors: their names, such as "conv1.weight"
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    graph, names, uses = GraphDef(), {}, Counter()
    for node in program.graph.nodes:
        if node.op == "placeholder" and not node.users:
            continue  # such as the counter of a batch norm
        name = graph_name(net, node, weights.get(node.name))
        uses[name] += 1
        # Of relu_1, relu_2 and so on TensorBoard makes one node; "relu (2)" stays in its place.
        names[node] = name if uses[name] == 1 else f"{name} ({uses[name]})"
        value = node.meta.get("val")  # a tensor without numbers, or several, or none
        tensors = value if isinstance(value, tuple | list) else [value]
        sizes = [tensor.shape for tensor in tensors if isinstance(tensor, torch.Tensor)]
        shapes = [TensorShapeProto(dim=[{"size": n} for n in size]) for size in sizes]
        graph.node.add(
            name=names[node],
            op=str(node.target) if node.op == "call_function" else node.op,
            input=[names[source] for source in node.all_input_nodes],
            attr={"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes))},
        )
    return graph


def graph_name(net: nn.Module, node: torch.fx.Node, weight: str | None) -> str:
    """Name a node by the boxes it stands in: "Net/conv1 Conv2d/weight", "Net/relu", "input/x".

    A weight stands beside the operation that first uses it.
    """
    if node.op == "output":
        return "output/output"
    if node.op == "placeholder" and weight is None:
        return f"input/{node.name}"
    layers = layer_boxes(net, next(iter(node.users)) if weight else node)
    if weight is None:
        return f"{list(layers.values())[-1]}/{re.sub(r'_[0-9]+$', '', node.name)}"
    path = [path for path in layers if path == "" or weight.startswith(f"{path}.")][-1]
    return f"{layers[path]}/{weight.removeprefix(f'{path}.')}"


def layer_boxes(net: nn.Module, node: torch.fx.Node) -> dict[str, str]:
    """The layers around an operation, from the net inwards: {"conv1": "Net/conv1 Conv2d"}.

    A layer that is called again gets a box of its own, such as "Net/pool (2) MaxPool2d".
    """
    box, outer = type(net).__name__, ""
    boxes = {outer: box}
    for call, (path, _) in node.meta.get("nn_module_stack", {}).items():
        if path:
            name, again = path.removeprefix(f"{outer}."), call.partition("@")[2]  # "1": again
            name += f" ({int(again) + 1})" if again else ""
            box += f"/{name} {type(net.get_submodule(path)).__name__}"
            boxes[path], outer = box, path
    return boxes
