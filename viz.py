"""One function per TensorBoard view; each takes the writer, what it shows, and the step.

Nothing here reads a global, a file or a run: every function can be lifted into the training of any
image classifier. Tensors may be on any device and of any type; `take_in` says what else is wanted.
Shapes: B images in a batch, N samples, C classes; images are (B, 1 or 3, H, W) of any size. `norm`
is the mean and standard deviation that they were normalised with, numbers or one for each channel.
The file goes from tab to tab; then come what is taken in, how figures, and how the graph is drawn.
"""

import contextlib
import functools
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
import torchvision  # before TensorBoard's writer: where TensorFlow is installed it crashes after it
from matplotlib import font_manager, rc_context, rcParamsDefault
from matplotlib.figure import Figure
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter as Writer
from torch.utils.tensorboard.summary import hparams

RIGHT, WRONG = "green", "red"
BLUE = torch.tensor([0.02, 0.29, 0.62], dtype=torch.float32, device="cpu")
MAX_TILES = 64  # images, filters or maps in one picture
COLUMNS = 8  # of them in a row
TILE, GAP, TITLE = 128, 8, 56  # pixels: an image's longer side, around it, above it
DPI = 100  # pixels per inch, by which Matplotlib measures
STYLE = {name: value for name, value in rcParamsDefault.items() if name != "backend"}
BINS = 64  # of a histogram
MARKUP = re.compile(r"[\\`*_\[\]<>&|]")  # what Markdown would interpret

Channels = float | Sequence[float]  # one number for all channels, or one for each
Norm = tuple[Channels, Channels]  # mean and standard deviation
HALF = (0.5, 0.5)  # those of Normalize(0.5, 0.5)
Names = Sequence[str]  # of the classes in the order of the labels, of colours

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
def add_training_loss(writer: Writer, loss: float, step: int) -> None:
    """SCALARS: the mean loss of the last batches, as many as lie between two reports."""
    writer.add_scalar("training loss", loss, step)


def add_training_scalars(
    writer: Writer, net: nn.Module, lr: float, images_per_second: float, step: int
) -> None:
    """SCALARS: what explains the course of the loss, and how fast it goes.

    Gradients are those of the last batch: call this after `backward` (and `unscale_` of a
    GradScaler), before `zero_grad`. In a dead net nearly all of them are exactly zero.
    """
    writer.add_scalar("training progress/learning rate", lr, step)
    writer.add_scalar("training progress/images per second", images_per_second, step)
    grads = [p.grad.cpu().double() for p in net.parameters() if p.grad is not None]
    norm = math.hypot(*(grad.norm().item() for grad in grads))
    if norm == 0:
        warnings.warn("no gradients: call this after backward and before zero_grad", stacklevel=2)
    else:
        zeros = sum((grad == 0).sum().item() for grad in grads) / sum(map(torch.numel, grads))
        writer.add_scalar("training progress/gradient norm", norm, step)
        writer.add_scalar("training progress/zero gradients", zeros, step)


def add_test_scalars(
    writer: Writer, loss: float, accuracy: float, step: int, part: str = "test"
) -> None:
    """SCALARS: mean loss and accuracy (0 to 1) over images of this part: test or validation."""
    writer.add_scalar(f"{part}/loss", loss, step)
    writer.add_scalar(f"{part}/accuracy", accuracy, step)


def add_layout(writer: Writer, part: str = "test") -> None:
    """CUSTOM SCALARS: training and test loss on one chart, the learning rate on another.

    TensorBoard gives a run one colour: its two losses differ by the marks on their points. Call it
    once for a writer: a second layout replaces the first.
    """
    charts = {
        f"training and {part} loss": ["Multiline", ["^training loss$", f"^{part}/loss$"]],
        "learning rate": ["Multiline", ["^training progress/learning rate$"]],
    }
    writer.add_custom_scalars({"training": charts})


# --------------------------------------------------------------------------------------- IMAGES
def add_image_grid(
    writer: Writer, images: Tensor, labels: Tensor, classes: Names, step: int = 0, norm: Norm = HALF
) -> None:
    """IMAGES: training images (B, 1 or 3, H, W) with the names of their labels (B,)."""
    names, images, labels = take_in(classes, images=images, labels=labels)
    titles = [shorten(names[label]) for label in labels.tolist()]
    figure = matplotlib_imshow(images, titles, norm=norm)
    add_figure(writer, "training images", figure, step)


def add_batch(
    writer: Writer, images: Tensor, labels: Tensor, classes: Names, step: int, norm: Norm = HALF
) -> None:
    """IMAGES: a batch (B, 1 or 3, H, W) with labels (B,), as the training loop has it.

    What goes wrong on the way to the net shows here, not in the data set: pixels on another scale,
    labels of other images, batches in order. Up to 16 images are drawn.
    """
    names, images, labels = take_in(classes, images=images, labels=labels)
    pixels = images.float()
    heading = f"least {pixels.min():.3g}, greatest {pixels.max():.3g},\nmean {pixels.mean():.3g}"
    titles = [shorten(names[label]) for label in labels[:16].tolist()]
    figure = matplotlib_imshow(images[:16], titles, norm=norm, heading=heading)
    add_figure(writer, "training batch", figure, step)


def images_to_probs(net: nn.Module, images: Tensor, classes: Names = ()) -> tuple[Tensor, Tensor]:
    """Return the predicted class (B,) of each image (B, ...) and its probability (B,), on the CPU.

    The net predicts as in a test, without dropout; every layer's mode is then as it was.
    """
    with as_in_a_test(net, images) as (net, images):
        logits = net(images)
    _, logits = take_in(classes, logits=logits)
    probs, preds = logits.softmax(dim=1).max(dim=1)
    return preds, probs


def plot_classes_preds(
    net: nn.Module, images: Tensor, labels: Tensor, classes: Names, norm: Norm = HALF
) -> Figure:
    """Draw images (B, 1 or 3, H, W) titled with prediction and label (B,), green where right."""
    preds, probs = images_to_probs(net, images, classes)
    names, images, labels = take_in(classes, images=images, labels=labels)
    return plot_predictions(images, preds, probs, labels, names, norm=norm)


def plot_predictions(images, preds, probs, labels, names: list[str], **style) -> Figure:
    """Draw images with predicted classes (B,), their probabilities (B,), and labels (B,)."""
    titles, colors = [], []
    for pred, prob, label in zip(preds.tolist(), probs.tolist(), labels.tolist(), strict=True):
        name, actual = shorten(names[pred], 14), shorten(names[label], 14)
        titles.append(f"{name}, {prob:.1%}\n(label: {actual})")
        colors.append(RIGHT if pred == label else WRONG)
    return matplotlib_imshow(images, titles, colors, **style)


def add_predictions(
    writer: Writer,
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    classes: Names,
    step: int,
    norm: Norm = HALF,
) -> None:
    """IMAGES: what the net now predicts for a batch of images, and what they are."""
    figure = plot_classes_preds(net, images, labels, classes, norm)
    add_figure(writer, "predictions vs. actuals", figure, step)


def worst_mistakes(probs: Tensor, labels: Tensor, count: int) -> list[int]:
    """Up to `count` indices of wrong predictions, surest first; probs (N, C), labels (N,)."""
    _, probs, labels = take_in((), probs=probs, labels=labels)
    highest, preds = probs.max(dim=1)
    wrong = (preds != labels).nonzero()[:, 0]
    surest = highest[wrong].argsort(descending=True, stable=True)
    return wrong[surest][:count].tolist()


def add_mistakes(
    writer: Writer,
    images: Tensor,
    probs: Tensor,
    labels: Tensor,
    classes: Names,
    step: int,
    norm: Norm = HALF,
    part: str = "test",
) -> None:
    """IMAGES: wrongly classified images (B, 1 or 3, H, W) with predicted and true class.

    probs (B, C) and labels (B,) are those of the images. Without a mistake there is no picture.
    """
    if len(images) == 0:
        return
    names, images, probs, labels = take_in(classes, images=images, probs=probs, labels=labels)
    highest, preds = probs.max(dim=1)
    style = {"norm": norm, "heading": "surest mistakes first"}
    figure = plot_predictions(images, preds, highest, labels, names, **style)
    add_figure(writer, f"{part}/worst mistakes", figure, step)


@rc_context(STYLE)
def add_confusion_matrix(
    writer: Writer, probs: Tensor, labels: Tensor, classes: Names, step: int, part: str = "test"
) -> None:
    """IMAGES: how many images of each true class (row) were taken for each class (column).

    probs (N, C), or logits, and labels (N,) are those of the test images. The picture has at most
    1,200 pixels a side: cells shrink with many classes, up to 40 have numbers in them, up to 100
    have names. Of more than 1,000 classes, as many neighbours as it takes share a cell.
    """
    names, probs, labels = take_in(classes, scores=probs, labels=labels)
    shared = math.ceil(len(names) / 1000)
    preds, labels = probs.argmax(dim=1) // shared, labels // shared
    size = math.ceil(len(names) / shared)
    counts = (labels * size + preds).bincount(minlength=size**2).view(size, size)
    shares = counts.float() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    pixels = 1 - shares * (1 - BLUE[:, None, None])  # (3, C, C): one for a cell
    cell, margin = min(44, 1000 // size), 176  # pixels; the names are in the margin
    pixels = F.interpolate(pixels[None], scale_factor=cell)[0]
    fig = pixel_figure(F.pad(pixels, (margin, 0, margin, 0), value=1.0))

    corner = "true class ↓\npredicted class →"
    corner += "" if cell >= 10 else f"\n{len(names):,} classes,\ntoo many for names"
    write_text(fig, GAP, GAP, corner, va="top", ha="left")
    middles = [margin + cell * (index + 0.5) for index in range(size)]
    named = map(shorten, names) if cell >= 10 else ()
    for middle, name in zip(middles, named, strict=False):
        points = min(10, 0.6 * cell)
        write_text(fig, margin - GAP, middle, name, va="center", ha="right", size=points)
        write_text(fig, middle, margin - GAP, name, rotation=90, size=points)
    numbered = (shares >= 0.01).nonzero().tolist() if cell >= 25 else []  # smaller ones distract
    for true, pred in numbered:
        color = "white" if shares[true, pred] > 0.6 else "black"
        number = str(counts[true, pred].item())
        write_text(fig, middles[pred], middles[true], number, va="center", color=color, size=8)
    add_figure(writer, f"{part}/confusion matrix", fig, step)


def add_filters(writer: Writer, conv: nn.Conv2d, step: int) -> None:
    """IMAGES: the filters (K, 1 or 3, H, W) of a convolution, each in its own contrast.

    Where it has other than 1 or 3 input channels, each channel of a filter is an image of its own.
    """
    filters = conv.weight.detach().cpu().float()
    if filters.shape[1] not in (1, 3):
        filters = filters.flatten(0, 1)[:, None]
    tiles = fit(filters[:MAX_TILES], 80)
    grid = torchvision.utils.make_grid(
        tiles, nrow=8, normalize=True, scale_each=True, padding=8, pad_value=1.0
    )
    writer.add_image("what the net sees/filters", grid, step)


def add_feature_maps(
    writer: Writer, conv: nn.Conv2d, image: Tensor, step: int, norm: Norm = HALF
) -> None:
    """IMAGES: one image (1 or 3, H, W), then what each filter of a first layer answers to it.

    The image is shown in the size of the maps, whatever the stride, and without the edges that
    they lack: a filter without padding has its middle in none of them.
    """
    _, seen = take_in((), images=image[None])
    with torch.no_grad():
        maps = F.relu(conv(seen.to(conv.weight)))[0, : MAX_TILES - 1].cpu().float()
    maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)  # each in its own contrast
    tiles = fit(maps[:, None], 112)  # (K, 1, H', W')
    for dim, stride in enumerate(conv.stride, start=2):
        covered = min(maps.shape[dim - 1] * stride, seen.shape[dim])
        seen = seen.narrow(dim, (seen.shape[dim] - covered) // 2, covered)
    seen = unnormalize(F.interpolate(seen.float(), size=tiles.shape[2:], mode="area"), norm)
    tiles = torch.cat([seen, tiles.expand(-1, 3, -1, -1)])
    grid = torchvision.utils.make_grid(tiles, nrow=COLUMNS, padding=8, pad_value=1.0)
    writer.add_image("what the net sees/feature maps", grid, step)


# ---------------------------------------------- GRAPHS, HISTOGRAMS, DISTRIBUTIONS, PR CURVES
def add_net_graph(writer: Writer, net: nn.Module, images: Tensor) -> None:
    """GRAPHS: the layers of `net` and the shapes between them, for images (B, ...).

    Where it cannot be drawn, a warning says why: no picture is worth a training run.
    """
    try:
        graph = net_graph(net, images)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"the graph of the net could not be drawn: {reason}", stacklevel=2)
    else:
        writer._get_file_writer().add_event(Event(graph_def=graph.SerializeToString()))


def add_histograms(writer: Writer, net: nn.Module, step: int) -> None:
    """HISTOGRAMS and DISTRIBUTIONS: weights and gradients of every layer.

    Left out are parameters with fewer values than a histogram has bins, such as the six biases of
    a convolution: they would be single spikes, not a distribution.
    """
    for name, parameter in net.named_parameters():
        if parameter.numel() >= BINS:
            add_histogram(writer, f"weights/{name}", parameter, step)
            if parameter.grad is not None:
                add_histogram(writer, f"gradients/{name}", parameter.grad, step)


def add_histogram(writer: Writer, tag: str, values: Tensor, step: int) -> None:
    """HISTOGRAMS: the finite values of a tensor; the writer's own method fails where one is NaN."""
    values = values.detach().cpu()
    finite = values[values.isfinite()]
    if finite.numel() > 0:
        # In half precision not even the counts would be right.
        writer.add_histogram(tag, finite.double(), step, bins=BINS)


def add_pr_curve_tensorboard(
    writer: Writer,
    class_index: int,
    test_probs: Tensor,
    test_labels: Tensor,
    classes: Names,
    step: int,
) -> None:
    """PR CURVES: precision against recall of one class, at 127 thresholds.

    Of the probabilities (N, C) and labels (N,) the curve takes the truth (is it this class?) and
    the probability given to this class. Logits, or predictions instead of labels, would give a
    curve without meaning. In a group of their own, classes may have the name of another view.
    """
    names, probs, labels = take_in(classes, probs=test_probs, labels=test_labels)
    tag, truth = f"pr curve/{names[class_index]}", labels == class_index
    writer.add_pr_curve(tag, truth, probs[:, class_index], step)


def add_pr_curves(
    writer: Writer, probs: Tensor, labels: Tensor, classes: Names, step: int, part: str = "test"
) -> None:
    """PR CURVES: one curve for each class."""
    names, probs, labels = take_in(classes, probs=probs, labels=labels)
    group = "pr curve" if part == "test" else f"{part}/pr curve"
    for index, name in enumerate(names):
        writer.add_pr_curve(f"{group}/{name}", labels == index, probs[:, index], step)


# --------------------------------------------------------------------- TEXT, HPARAMS, PROJECTOR
def add_table(writer: Writer, tag: str, rows: Sequence[Sequence[object]], step: int = 0) -> None:
    """TEXT: rows of anything as a table; the first row is the heading.

    Every cell appears as it is: what Markdown would format, such as `__init__`, is escaped.
    """
    as_text = functools.partial(MARKUP.sub, lambda character: f"&#{ord(character[0])};")
    rows = [[as_text(readable(cell)) for cell in row] for row in rows]
    writer.add_text(tag, markdown_table(rows), step)


def readable(value: object) -> str:
    """Its text in UTF-8, also where Python has read it (a path) in an encoding without Chinese."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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


def class_report(probs: Tensor, labels: Tensor, classes: Names) -> list[tuple[str, ...]]:
    """Rows of precision, recall and average precision per class, from probs (N, C), labels (N,).

    With TP, FP, FN the true positives, false positives and false negatives of a class, precision is
    TP / (TP + FP) and recall TP / (TP + FN); a class that is never predicted has precision 0.
    """
    names, probs, labels = take_in(classes, probs=probs, labels=labels)
    preds = probs.argmax(dim=1)
    rows = [("class", "images", "precision", "recall", "average precision")]
    for index, name in enumerate(names):
        truth, taken = labels == index, preds == index
        hits, actual, predicted = (x.sum().item() for x in (truth & taken, truth, taken))
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
    (last,) = np.append(np.diff(scores[order]) != 0, True).nonzero()  # of each score
    hits = truth[order].cumsum()[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / max(truth.sum(), 1))


def add_hparams_start(writer: Writer, settings: Mapping[str, object]) -> None:
    """HPARAMS: the settings of this run, one row of the table; what is no number is shown as text.

    `SummaryWriter.add_hparams` would open a second run, and its Experiment record hides runs with
    other settings; the session alone makes TensorBoard unite all keys, every scalar a metric.
    """
    rows = {}
    for name, value in settings.items():
        value = value.item() if getattr(value, "ndim", None) == 0 else value  # NumPy's, a tensor
        rows[readable(name)] = value if isinstance(value, int | float) else readable(value)
    _, session_start, _ = hparams(rows, {})
    writer._get_file_writer().add_summary(session_start)  # opened again, if it was closed


def add_hparams_end(writer: Writer, failed: bool = False) -> None:
    """HPARAMS: mark this run's row as finished, or as failed."""
    _, _, session_end = hparams({}, {})
    if failed:  # PyTorch knows success only
        (value,) = session_end.value
        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        data.session_end_info.status = Status.Value("STATUS_FAILURE")
        value.metadata.plugin_data.content = data.SerializeToString()
    writer._get_file_writer().add_summary(session_end)


def add_projector(
    writer: Writer,
    features: Tensor,
    images: Tensor,
    labels: Tensor,
    classes: Names,
    step: int,
    norm: Norm = HALF,
) -> None:
    """PROJECTOR: features (N, D) with class names, and images (N, 1 or 3, H, W) as thumbnails.

    Call it once for a run: a second call is listed beside the first, even for the same step.
    """
    names, images, labels, rows = take_in(classes, images=images, labels=labels, features=features)
    # Packing the thumbnails into a PNG takes most of the time: smaller ones save half of it.
    thumbnails = unnormalize(fit(images, 20), norm)
    height, width = thumbnails.shape[2:]  # TensorBoard takes squares only
    squares = F.pad(thumbnails, (0, 20 - width, 0, 20 - height), value=1.0)
    metadata = [names[label] for label in labels.tolist()]
    writer.add_embedding(rows, metadata, squares, global_step=step, tag="features")


# ------------------------------------------------------------------------------ what is taken in
KINDS = {  # of what is taken in: what is wanted, and its check, for C classes
    "images": ("(N, 1 or 3, H, W)", lambda x, c: x.dim() == 4 and x.shape[1] in (1, 3)),
    "labels": ("(N,) 0 to C - 1", lambda x, c: x.dim() == 1 and x.equal(x.round().clamp(0, c - 1))),
    "probs": ("(N, C) from 0 to 1", lambda x, c: x.shape[1:] == (c,) and x.equal(x.clamp(0, 1))),
    "scores": ("(N, C) without NaN", lambda x, c: x.shape[1:] == (c,) and not x.isnan().any()),
    "logits": ("(N, C)", lambda x, c: x.shape[1:] == (c,)),
    "features": ("(N, D)", lambda x, c: x.dim() == 2),
}


def take_in(classes: Names, **given: object) -> list:
    """The door: return the names of the classes, no two alike, and each of `given` as in KINDS.

    Tensors, or numbers in arrays and lists, come out on the CPU without a graph: labels as int64,
    images as they are, all else as float32. N is the length of the first; C the number of classes
    or, if none are given, of columns, at least two. Raises ValueError for all that does not fit.
    """
    names, taken, columns = distinct(classes), [], len(classes)
    for kind, value in given.items():
        wanted, fits = KINDS[kind]
        try:
            tensor = torch.as_tensor(value, device="cpu").detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            tensor = torch.empty(0, 0)  # which is never right
        tensor = tensor if kind == "images" else tensor.float()
        count = len(taken[0]) if taken else max([1, *tensor.shape[:1]])
        columns = columns or max([2, *tensor.shape[1:]])
        if not (fits(tensor, columns) and len(tensor) == count):
            seen = f"given is a {type(value).__name__}"
            if tensor.numel() > 0:
                low, high = tensor.min(), tensor.max()
                seen += f" of shape {tuple(tensor.shape)} from {low:.6g} to {high:.6g}"
            raise ValueError(f"{kind}: {seen}; wanted is {wanted}, N = {count}, C = {columns}")
        taken.append(tensor.long() if kind == "labels" else tensor)
    return [names, *taken]


def distinct(classes: Names) -> list[str]:
    """Names on one line, no two of them alike: the second "crane" is "crane (2)"."""
    times = {}
    for index in range(len(classes)):
        name = unique = readable(" ".join(str(classes[index]).split()))
        while unique in times:
            times[name] += 1
            unique = f"{name} ({times[name]})"
        times[unique] = 1
    return list(times)


@contextlib.contextmanager
def as_in_a_test(net: nn.Module, images: Tensor) -> Iterator[tuple[nn.Module, Tensor]]:
    """In the block the net is in evaluation mode, and images are on its device, in its precision.

    After it every layer has the mode, hooks and attributes that it had. It is the net itself, not
    DistributedDataParallel around it, which would wait for processes that draw nothing.
    """
    if isinstance(net, nn.parallel.DistributedDataParallel | nn.DataParallel):
        net = net.module
    weights = next((p for p in net.parameters() if p.is_floating_point()), images)
    dtype = weights.dtype if images.is_floating_point() else images.dtype
    before = [(layer, layer.__dict__.copy()) for layer in net.modules()]
    try:
        net.eval()
        with torch.no_grad():
            yield net, images.to(weights.device, dtype)
    finally:
        for layer, attributes in before:
            layer.__dict__.clear()
            layer.__dict__.update(attributes)


# ------------------------------------------------------------------------ how figures are drawn
@rc_context(STYLE)
def matplotlib_imshow(
    images: Tensor, titles: Names = (), colors: Names = (), norm: Norm = HALF, heading: str = ""
) -> Figure:
    """Draw images (B, 1 or 3, H, W) in their own colours, 64 at most, in rows of up to eight.

    The notes' function of this name draws a single image into the current axes of Matplotlib.
    """
    tiles = unnormalize(fit(images[:MAX_TILES], TILE), norm)
    below, beside = TILE - tiles.shape[2], TILE - tiles.shape[3]
    margins = (GAP + beside // 2, GAP + beside - beside // 2, TITLE, GAP + below)
    cells = F.pad(tiles, margins, value=1.0)  # in white
    fig = pixel_figure(torchvision.utils.make_grid(cells, nrow=COLUMNS, padding=0, pad_value=1.0))
    if heading:
        write_text(fig, GAP, GAP / 2, heading, va="top", ha="left", size=8)
    for index, title in enumerate(titles[:MAX_TILES]):
        row, column = divmod(index, COLUMNS)
        x = (column + 0.5) * (TILE + 2 * GAP)
        y = row * (TITLE + TILE + GAP) + TITLE - GAP
        color, size = colors[index] if colors else "black", 8 if "\n" in title else 10
        write_text(fig, x, y, title, color=color, size=size)
    return fig


def unnormalize(images: Tensor, norm: Norm) -> Tensor:
    """Turn normalised images (B, 1 or 3, H, W) into RGB (B, 3, H, W) in [0, 1]; check `norm`."""
    mean, std = (torch.as_tensor(v, device="cpu").float().view(-1, 1, 1) for v in norm)
    pixels = images * std + mean
    low, high = images.min().item(), images.max().item()
    are_pixels = 0 <= low < 0.02 and 0.5 < high <= 1 and pixels.min() > 0.1
    if are_pixels or not pixels.equal(pixels.clamp(-0.25, 1.25)):
        text = (
            f"images from {low:.3g} to {high:.3g} were not normalised with {norm}: pass the right"
        )
        warnings.warn(f"{text} norm, (0, 1) for pixels, (0, 1 / 255) for bytes", stacklevel=2)
    return pixels.clamp(0, 1).expand(-1, 3, -1, -1)


def fit(images: Tensor, side: int) -> Tensor:
    """Scale images (B, C, H, W) to at most `side` pixels a side, small ones by a whole number."""
    longest = max(images.shape[2:])
    scale = side // longest or side / longest
    size = [max(1, round(length * scale)) for length in images.shape[2:]]
    one_by_one = images.split(1)  # large ones take several times their memory
    return torch.cat([F.interpolate(one.float(), size=size, mode="area") for one in one_by_one])


def pixel_figure(pixels: Tensor) -> Figure:
    """Return a figure of just this picture (3, H, W) from 0 to 1; axes would take most time."""
    fig = Figure(figsize=(pixels.shape[2] / DPI, pixels.shape[1] / DPI), dpi=DPI)
    fig.figimage(pixels.permute(1, 2, 0).numpy())
    return fig


def write_text(fig: Figure, x: float, y: float, text: str, va: str = "bottom", **style) -> None:
    """Write text into a figure: x pixels from its left and y from its top edge."""
    family = ["DejaVu Sans", *(chinese_fonts() if display_width(text) > len(text) else [])]
    style = {"ha": "center", "va": va, "family": family} | style
    # A class name may hold a dollar sign.
    fig.text(x / fig.bbox.width, 1 - y / fig.bbox.height, text, parse_math=False, **style)


@rc_context(STYLE)
def add_figure(writer: Writer, tag: str, figure: Figure, step: int) -> None:
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
        text = (
            "no font with Chinese characters is installed, so figures show boxes instead: install"
        )
        warnings.warn(
            f"{text} one, such as the package fonts-noto-cjk, and start again", stacklevel=2
        )
    return found


def shorten(name: str, limit: int = 16) -> str:
    """Cut a class name to `limit` columns, so that titles in a grid do not run into each other."""
    if display_width(name) <= limit:
        return name
    while display_width(name) >= limit:
        name = name[:-1]
    return name + "…"


def display_width(text: str) -> int:
    """The columns that a text takes: a Chinese character takes two."""
    return len(text) + sum(unicodedata.east_asian_width(c) in "WF" for c in text)


# ----------------------------------------------------------------------- how the graph is drawn
def net_graph(net: nn.Module, images: Tensor) -> GraphDef:
    """Draw the operations of `net` that torch.export finds, each in the box of its layer.

    Only shapes are computed, no numbers. `SummaryWriter.add_graph` uses torch.jit.trace, which is
    deprecated, leaves functions such as relu nameless, and draws a layer used twice as a loop.
    """
    with as_in_a_test(net, images) as (net, images), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attribute.* assigned during export")
        for layer in net.modules():  # what has no numbers is not for hooks, but torch's own
            for table in ("_forward_hooks", "_forward_pre_hooks"):
                hooks = getattr(layer, table).items()
                own = {k: h for k, h in hooks if getattr(h, "__module__", "").startswith("torch.")}
                setattr(layer, table, own)
        program = torch.export.export(net, (images,), strict=False)
    # Of the nodes that are the net's own tensors: their names, such as "conv1.weight"; else None.
    weights = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    # What nothing uses is left out, such as the counter of a batch norm.
    nodes = [node for node in program.graph.nodes if node.op != "placeholder" or node.users]
    # Of relu_1, relu_2 and so on TensorBoard would make one node; "relu (2)" stays in its place.
    names = distinct([graph_name(net, node, weights.get(node.name)) for node in nodes])
    names, graph = dict(zip(nodes, names, strict=True)), GraphDef()
    for node in nodes:
        value = node.meta.get("val")  # a tensor without numbers, or several, or none
        tensors = value if isinstance(value, tuple | list) else [value]
        sizes = [tensor.shape for tensor in tensors if isinstance(tensor, Tensor)]
        shapes = [TensorShapeProto(dim=[{"size": n} for n in size]) for size in sizes]
        graph.node.add(
            name=names[node],
            op=str(node.target) if node.op == "call_function" else node.op,
            input=[names[source] for source in node.all_input_nodes],
            attr={"_output_shapes": AttrValue(list=AttrValue.ListValue(shape=shapes))},
        )
    closed = ", ".join(name for node, name in names.items() if node.op == "get_attr")
    if closed:  # a graph in the graph
        text = f"layers that run under autocast, or such, are not in the graph but inside {closed}"
        warnings.warn(text, stacklevel=3)
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
