"""One function per TensorBoard view; each takes the writer, what it shows, and the step.

Nothing here reads a global or a file: writer, net, images and class names are passed in, so that
every function can be lifted into another training script. Shapes: B images in a batch, N samples,
C classes. Images are normalised to [-1, 1], as `data.py` makes them.
"""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid

RIGHT, WRONG = "green", "red"
BLUE = torch.tensor([0.02, 0.29, 0.62])
DPI = 100  # pixels per inch, by which Matplotlib measures

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
INSTALLED_FONTS = {font.name for font in font_manager.fontManager.ttflist}
FONTS = ["DejaVu Sans", *(name for name in CJK_FONTS if name in INSTALLED_FONTS)]


def images_to_probs(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted class (B,) of each image (B, 3, 32, 32) and its probability (B,)."""
    was_training = net.training
    net.eval()  # nothing changes in this Net, but much where there is dropout or batch norm
    with torch.no_grad():
        probs, preds = net(images).softmax(dim=1).max(dim=1)
    net.train(was_training)
    return preds, probs


def show_pixels(pixels: torch.Tensor, scale: int) -> Figure:
    """Return a figure of just this picture (3, H, W) with values in [0, 1], `scale` times as large.

    It has no axes: those take several times as long to draw as the picture itself.
    """
    pixels = F.interpolate(pixels[None], scale_factor=scale)[0].permute(1, 2, 0)  # (H, W, 3)
    height, width, _ = pixels.shape
    fig = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    fig.figimage(pixels.numpy())
    return fig


def matplotlib_imshow(image: torch.Tensor, scale: int = 4) -> Figure:
    """Return a figure of a normalised image (3, H, W) in its own colours, enlarged."""
    pixels = image.cpu() / 2 + 0.5  # [-1, 1] -> [0, 1]
    return show_pixels(pixels, scale)


def plot_images(
    images: torch.Tensor, titles: Sequence[str], colors: Sequence[str] | None = None
) -> Figure:
    """Draw normalised images (B, 3, H, W) in rows of up to eight, each below its title."""
    count, _, height, _ = images.shape
    columns = min(count, 8)
    title_height, gap = round(height * 0.45), 2
    padded = F.pad(images.cpu(), (gap, gap, title_height, gap), value=1.0)  # a white margin
    grid = make_grid(padded, nrow=columns, padding=0, pad_value=1.0)  # (3, rows * H, columns * W)
    fig = matplotlib_imshow(grid)
    rows = math.ceil(count / columns)
    bottom = (title_height - gap) / padded.shape[2]  # of a title, in its cell
    for index, title in enumerate(titles):
        row, column = divmod(index, columns)
        color = colors[index] if colors else "black"
        add_text(fig, (column + 0.5) / columns, (row + bottom) / rows, title, color=color, size=8)
    return fig


def add_text(fig: Figure, x: float, y: float, text: str, va: str = "bottom", **style) -> None:
    """Write text into a figure: x from its left and y from its top edge, both from 0 to 1."""
    style = {"ha": "center", "va": va, "family": FONTS} | style
    fig.text(x, 1 - y, text, parse_math=False, **style)  # a class name may hold a dollar sign


def shorten(name: str, limit: int = 16) -> str:
    """Cut a long class name so that titles in a grid do not run into each other."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def add_figure(writer: SummaryWriter, tag: str, figure: Figure, step: int) -> None:
    """IMAGES: a Matplotlib figure."""
    # Most of a figure's time goes into its letters; without hinting they take a third less.
    with warnings.catch_warnings(), rc_context({"text.hinting": "none"}):
        # Without a Chinese font, Chinese names become boxes; a warning for each sign helps nobody.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        writer.add_figure(tag, figure, step)


def add_image_grid(
    writer: SummaryWriter,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int = 0,
) -> None:
    """IMAGES: training images (B, 3, 32, 32) with the names of their labels (B,)."""
    titles = [shorten(classes[label]) for label in labels]
    add_figure(writer, "training images", plot_images(images, titles), step)


def add_net_graph(writer: SummaryWriter, net: nn.Module, images: torch.Tensor) -> None:
    """GRAPHS: the layers of `net`, traced with one batch of images on the net's device.

    A net that cannot be traced gives a warning: the picture is never worth the training.
    """
    modes = [(module, module.training) for module in net.modules()]
    with warnings.catch_warnings():
        # add_graph still goes through torch.jit.trace, which announces its own retirement.
        warnings.filterwarnings("ignore", ".*torch.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", ".*torch.jit", category=FutureWarning)
        try:
            writer.add_graph(net, images)
        except Exception as error:
            warnings.warn(f"the graph of the net could not be drawn: {error}", stacklevel=2)
    for module, mode in modes:  # add_graph sets every layer to the mode of the whole net
        module.training = mode


def add_layout(writer: SummaryWriter) -> None:
    """CUSTOM SCALARS: training and test loss on one chart, the learning rate on another.

    Call it once for a writer: a second layout replaces the first.
    """
    writer.add_custom_scalars(
        {
            "training": {
                "training and test loss": ["Multiline", ["^training loss$", "^test loss$"]],
                "learning rate": ["Multiline", ["^learning rate$"]],
            }
        }
    )


def add_table(
    writer: SummaryWriter, tag: str, rows: Sequence[Sequence[str]], step: int = 0
) -> None:
    """TEXT: rows of strings as a Markdown table; the first row is the heading."""
    writer.add_text(tag, markdown_table(rows), step)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of strings as a Markdown table, readable in TensorBoard and in a terminal."""
    rows = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = (
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    )
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([head, rule, *body])


def add_hparams_start(writer: SummaryWriter, settings: Mapping[str, object]) -> None:
    """HPARAMS: the settings of this run (str, bool, int or float), one row of the table.

    `SummaryWriter.add_hparams` would open a second run and an Experiment record, which hides runs
    with other settings; the session alone makes TensorBoard unite all keys and take every scalar
    of the run as a metric.
    """
    _, session_start, _ = hparams(dict(settings), {})
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
    writer.add_scalar("learning rate", lr, step)
    writer.add_scalar("images per second", images_per_second, step)
    writer.add_scalar("gradient norm", nn.utils.get_total_norm(grads).item(), step)


def add_test_scalars(writer: SummaryWriter, loss: float, accuracy: float, step: int) -> None:
    """SCALARS: mean loss and accuracy (0 to 1) over the test images."""
    writer.add_scalar("test loss", loss, step)
    writer.add_scalar("test accuracy", accuracy, step)


def add_histograms(writer: SummaryWriter, net: nn.Module, step: int) -> None:
    """HISTOGRAMS and DISTRIBUTIONS: weights and gradients of every layer."""
    for name, parameter in net.named_parameters():
        add_histogram(writer, f"weights/{name}", parameter.detach(), step)
        if parameter.grad is not None:
            add_histogram(writer, f"gradients/{name}", parameter.grad, step)


def add_histogram(
    writer: SummaryWriter, tag: str, values: torch.Tensor, step: int, bins: int = 64
) -> None:
    """HISTOGRAMS: one tensor of any shape, in equal bins.

    `SummaryWriter.add_histogram` does the same with NumPy, several times slower, and raises where
    all values are NaN; those that are NaN or infinite are left out here.
    """
    values = values.flatten().cpu()
    values = values[values.isfinite()]
    if values.numel() == 0:
        return
    low, high = values.min().item(), values.max().item()
    if low == high:
        low, high = low - 0.5, high + 0.5  # a bin needs a width
    writer.add_histogram_raw(
        tag,
        min=low,
        max=high,
        num=values.numel(),
        sum=values.sum().item(),
        sum_squares=values.square().sum().item(),
        bucket_limits=torch.linspace(low, high, bins + 1)[1:].tolist(),  # right edges
        bucket_counts=values.histc(bins, low, high).tolist(),
        global_step=step,
    )


def plot_classes_preds(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> Figure:
    """Draw images (B, 3, 32, 32) with predicted class, its probability, and label (B,).

    The title is green where the prediction is right and red where it is wrong.
    """
    preds, probs = images_to_probs(net, images)
    colors = [RIGHT if right else WRONG for right in (preds == labels).tolist()]
    return plot_images(images, prediction_titles(preds, probs, labels, classes), colors)


def prediction_titles(
    preds: torch.Tensor, probs: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> list[str]:
    """Say of each image the predicted class (B,), its probability (B,), and the label (B,)."""
    return [
        f"{shorten(classes[pred])}, {prob:.1%}\n(label: {shorten(classes[label])})"
        for pred, prob, label in zip(preds.tolist(), probs.tolist(), labels.tolist(), strict=True)
    ]


def add_predictions(
    writer: SummaryWriter,
    net: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
) -> None:
    """IMAGES: what the net says now of a batch of images, and what they are."""
    figure = plot_classes_preds(net, images, labels, classes)
    add_figure(writer, "predictions vs. actuals", figure, step)


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
    curve without meaning.
    """
    truth = test_labels == class_index
    writer.add_pr_curve(classes[class_index], truth, test_probs[:, class_index], step)


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

    probs (N, C) and labels (N,) are those of the test images.
    """
    counts = count_confusions(probs.argmax(dim=1), labels, len(classes))
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    pixels = 1 - shares * (1 - BLUE[:, None, None])  # (3, C, C): one for a cell
    margin = 4  # cells at the top and the left, for the names
    fig = show_pixels(F.pad(pixels, (margin, 0, margin, 0), value=1.0), scale=44)
    cells = margin + len(classes)
    for index, name in enumerate(map(shorten, classes)):
        edge, middle = (margin - 0.2) / cells, (margin + index + 0.5) / cells
        add_text(fig, edge, middle, name, va="center", ha="right")
        add_text(fig, middle, edge, name, rotation=90)
    add_text(fig, 0.2 / cells, 0.2 / cells, "true class ↓\npredicted class →", "top", ha="left")
    for true, pred in (shares >= 0.01).nonzero().tolist():  # smaller ones would only distract
        x, y = (margin + pred + 0.5) / cells, (margin + true + 0.5) / cells
        color = "white" if shares[true, pred] > 0.6 else "black"
        add_text(fig, x, y, str(counts[true, pred].item()), va="center", color=color, size=8)
    add_figure(writer, "confusion matrix", fig, step)


def add_mistakes(
    writer: SummaryWriter,
    images: torch.Tensor,
    probs: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
) -> None:
    """IMAGES: wrongly classified images (B, 3, 32, 32) with predicted and true class.

    probs (B, C) and labels (B,) are those of the images. Without a mistake there is no picture.
    """
    if len(images) == 0:
        return
    highest, preds = probs.max(dim=1)
    titles = prediction_titles(preds, highest, labels, classes)
    add_figure(writer, "worst mistakes", plot_images(images, titles, [WRONG] * len(titles)), step)


def add_filters(writer: SummaryWriter, conv: nn.Conv2d, step: int) -> None:
    """IMAGES: the filters (K, 3, H, W) of a convolution over RGB, each in its own contrast."""
    filters = F.interpolate(conv.weight.detach().cpu(), scale_factor=16)  # 5x5 is hard to see
    grid = make_grid(filters, nrow=8, normalize=True, scale_each=True, padding=8, pad_value=1.0)
    writer.add_image("filters", grid, step)


def add_feature_maps(
    writer: SummaryWriter, conv: nn.Conv2d, image: torch.Tensor, step: int
) -> None:
    """IMAGES: one image (3, H, W), then what each filter of `conv` (no padding) answers to it."""
    with torch.no_grad():
        maps = F.relu(conv(image[None]))[0].cpu()  # (K, H - 4, W - 4)
    top, left = (size // 2 for size in conv.kernel_size)
    height, width = maps.shape[1:]
    seen = image.cpu()[:, top : top + height, left : left + width] / 2 + 0.5
    maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)  # each in its own contrast
    tiles = torch.cat([seen[None], maps[:, None].expand(-1, 3, -1, -1)])
    tiles = F.interpolate(tiles, scale_factor=4)
    writer.add_image("feature maps", make_grid(tiles, nrow=7, padding=8, pad_value=1.0), step)


def add_projector(
    writer: SummaryWriter,
    features: torch.Tensor,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    step: int,
) -> None:
    """PROJECTOR: features (N, D) with class names, and images (N, 3, 32, 32) as thumbnails.

    Call it once for a run: a second call is listed beside the first, even for the same step.
    """
    names = [classes[label] for label in labels.tolist()]
    # Packing the thumbnails into a PNG takes most of the time: smaller ones save half of it.
    thumbnails = F.interpolate(images.cpu() / 2 + 0.5, size=20, mode="area")
    writer.add_embedding(features.cpu(), names, thumbnails, global_step=step, tag="features")


def class_report(
    probs: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]
) -> list[tuple[str, str, str, str, str]]:
    """Rows of precision, recall and average precision per class, from probs (N, C), labels (N,).

    With TP, FP, FN the true positives, false positives and false negatives of a class, precision is
    TP / (TP + FP) and recall TP / (TP + FN); a class that is never predicted has precision 0.
    """
    counts = count_confusions(probs.argmax(dim=1), labels, len(classes))
    rows = [("class", "images", "precision", "recall", "average precision")]
    for index, name in enumerate(classes):
        hits = counts[index, index].item()
        actual, predicted = counts[index].sum().item(), counts[:, index].sum().item()
        precision, recall = hits / max(predicted, 1), hits / max(actual, 1)
        ap = average_precision(probs[:, index].numpy(), (labels == index).numpy())
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


def worst_mistakes(probs: torch.Tensor, labels: torch.Tensor, count: int) -> list[int]:
    true_probs = probs.gather(1, labels[:, None])[:, 0]
    wrong = (probs.argmax(dim=1) != labels).nonzero()[:, 0]
    return wrong[true_probs[wrong].argsort()][:count].tolist()
