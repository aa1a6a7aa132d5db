"""The views of a run as HTML, one function for each: the notebook and report.py show them.

All are read from the run's event files with TensorBoard's own reader (the projector's points from
the files beside them), so they show what TensorBoard shows, also where its page is blocked. A view
that the run has not logged raises KeyError.
"""

import itertools
import warnings
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from support.errors import InputError
from viz import chinese_fonts, markdown_table

KINDS = ("scalars", "images", "histograms", "distributions", "tensors")
RESULTS = ("validation/accuracy", "validation/loss", "test/accuracy", "test/loss")
DPI = 80  # of a chart on the page; its picture has twice as many, for sharp screens


class View(str):
    """A view as HTML: a notebook shows it where it is a cell's last line, or goes to display."""

    def _repr_html_(self) -> str:
        return str(self)


def read_run(run_dir: str) -> EventAccumulator:
    """Read all that a run has logged; raises InputError if there is no such run."""
    if not any(Path(run_dir).glob("events.out.tfevents.*")):
        raise InputError(f"no run in {run_dir!r}: give the folder of a run, such as runs/first")
    return EventAccumulator(run_dir, size_guidance=dict.fromkeys(KINDS, 0)).Reload()  # 0: all steps


def picture(png: bytes, name: str, width: float, least: float = 0) -> View:
    """A PNG inside the page itself, `width` pixels wide; as the window, but not below `least`."""
    style = f"width: {width:.0f}px; max-width: 100%; min-width: {least:.0f}px"
    data = b64encode(png).decode()
    return View(f'<img alt="{escape(name)}" style="{style}" src="data:image/png;base64,{data}">\n')


def chart(axes: Axes, name: str) -> View:
    """The figure of these axes, drawn alike whatever Matplotlib is set to in a notebook."""
    png = BytesIO()
    with warnings.catch_warnings():  # `chinese_fonts` has given one for all signs
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        axes.figure.savefig(png, format="png", dpi=2 * DPI)
    return picture(png.getvalue(), name, DPI * axes.figure.get_figwidth())


def images(log: EventAccumulator, *tags: str, reports: Sequence[int] = (-1,)) -> View:
    """IMAGES: pictures as they were logged; at the last report, or at others."""
    views = []
    for tag, report in itertools.product(tags, reports):
        logged = log.Images(tag)[report]
        views.append(f"<p><em>{escape(tag)}</em>, step {logged.step:,}</p>\n")
        # A long row with names in it is to be swiped on a phone: shrunk, it could not be read.
        least = 0.75 * logged.width if logged.width > 2 * logged.height else 0
        views.append(picture(logged.encoded_image_string, tag, logged.width, least))
    return View("".join(views))


def graph(log: EventAccumulator) -> View:
    """GRAPHS: the operations from the images to the output, and the shapes between them."""
    if not log.Tags()["graph"]:
        raise KeyError("graph")
    nodes = {node.name: node for node in log.Graph().node}
    (name,) = (name for name in nodes if name.startswith("output/"))
    chain = []
    while nodes[name].input:  # the first input is what flows, the others are weights
        name = nodes[name].input[0]
        (shape,) = nodes[name].attr["_output_shapes"].list.shape
        chain.append((name.split("/", 1)[1], "×".join(str(dim.size) for dim in shape.dim[1:])))
    axes = Figure(figsize=(4.5, 0.4 * len(chain))).add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(-1, 1), ylim=(0.5 - len(chain), 0.5))
    box = {"boxstyle": "round", "facecolor": "lightsteelblue"}
    for row, (label, shape) in enumerate(reversed(chain)):
        axes.text(0, -row, f"{label}  →  {shape}", ha="center", va="center", bbox=box)
    return chart(axes, "graph")


def scalars(log: EventAccumulator, *charts: list[str]) -> View:
    """SCALARS, CUSTOM SCALARS: a chart for each list of tags, with a curve for each tag."""
    views = []
    for tags in charts:
        axes = Figure(figsize=(4.5, 3.2), layout="constrained").subplots()
        for tag in tags:
            points = log.Scalars(tag)
            axes.plot([p.step for p in points], [p.value for p in points], marker=".", label=tag)
        axes.set_xlabel("step")
        axes.legend()
        axes.grid(alpha=0.3)
        views.append(chart(axes, ", ".join(tags)))
    return View("".join(views))


def pr_curves(log: EventAccumulator) -> View:
    """PR CURVES: precision over recall for each class, after the last epoch."""
    axes = Figure(figsize=(6, 4.5), layout="constrained").subplots()
    for tag in log.PluginTagToContent("pr_curves"):
        # A value for each threshold.
        tp, fp, _, _, precision, recall = make_ndarray(log.Tensors(tag)[-1].tensor_proto)
        some = tp + fp > 0  # else there is no precision
        axes.plot(recall[some], precision[some], label=tag.partition("pr curve/")[2])
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    name_classes(axes)
    return chart(axes, "PR curves")


def name_classes(axes: Axes) -> None:
    """Name the classes at the right; their names may be Chinese, or hold a dollar sign."""
    _, names = axes.get_legend_handles_labels()
    fonts = [] if "".join(names).isascii() else chinese_fonts()
    prop = {"family": ["DejaVu Sans", *fonts]}
    legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), prop=prop)
    for text in legend.get_texts():
        text.set_parse_math(False)


def histograms(log: EventAccumulator, tags: list[str]) -> View:
    """HISTOGRAMS: a slice for each report, the newest in front."""
    views = []
    for tag in tags:
        axes = Figure(figsize=(4.5, 3.5), layout="constrained").subplots()
        slices = log.Histograms(tag)
        highest = max(max(event.histogram_value.bucket) for event in slices)
        for depth, event in enumerate(slices):
            histogram = event.histogram_value
            base = -0.3 * highest * depth
            order = {"color": "darkorange", "zorder": depth, "edgecolor": "white", "linewidth": 0.8}
            heights = base + np.array(histogram.bucket)
            axes.fill_between(histogram.bucket_limit, base, heights, **order)
        axes.set(title=tag, yticks=[])
        views.append(chart(axes, tag))
    return View("".join(views))


def distributions(log: EventAccumulator, tags: list[str]) -> View:
    """DISTRIBUTIONS: the median of each report, and bands that hold 38, 68, 87 and 100 %."""
    views = []
    for tag in tags:
        axes = Figure(figsize=(4.5, 3.2), layout="constrained").subplots()
        events = log.CompressedHistograms(tag)
        steps = [event.step for event in events]
        lines = np.array([[v for _, v in event.compressed_histogram_values] for event in events]).T
        middle = len(lines) // 2  # 9 percentiles, from the smallest value to the largest
        for band in range(middle):
            axes.fill_between(steps, lines[band], lines[-1 - band], color="darkorange", alpha=0.25)
        axes.plot(steps, lines[middle], color="black")
        axes.set(title=tag, xlabel="step")
        views.append(chart(axes, tag))
    return View("".join(views))


def projector(log: EventAccumulator) -> View:
    """PROJECTOR: the features in the two directions in which they differ most (PCA), by label."""
    folders = [*Path(log.path).glob("*/features")]
    if not folders:
        raise KeyError("features")
    features = np.loadtxt(folders[0] / "tensors.tsv", delimiter="\t")  # (N, 84)
    labels = np.array((folders[0] / "metadata.tsv").read_text(encoding="utf-8").splitlines())
    centred = features - features.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    x, y = (centred @ directions[:2].T).T
    axes = Figure(figsize=(6, 4.5), layout="constrained").subplots()
    for label in np.unique(labels):
        axes.scatter(x[labels == label], y[labels == label], s=8, label=label)
    name_classes(axes)
    return chart(axes, "projector")


def hparams(log_dir: str) -> View:
    """HPARAMS: every run in a folder as a row, with its settings, its last accuracy and loss."""
    rows = []
    for run_dir in sorted({path.parent for path in Path(log_dir).glob("*/events.out.tfevents.*")}):
        log = EventAccumulator(str(run_dir)).Reload()
        try:
            content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        except KeyError:
            continue  # logged by another program, or with `--views notes`
        settings = HParamsPluginData.FromString(content).session_start_info.hparams
        row = {"run": run_dir.name}
        for name, value in sorted(settings.items()):
            setting = getattr(value, value.WhichOneof("kind"))
            row[name] = f"{setting:g}" if isinstance(setting, float) else setting
        for tag in RESULTS:
            if tag in log.Tags()["scalars"]:
                row[tag] = f"{log.Scalars(tag)[-1].value:.3f}"
        rows.append(row)
    names = list(dict.fromkeys(["run", *(name for row in rows for name in row)]))
    table = markdown_table([names, *([row.get(name, "") for name in names] for row in rows)])
    return View(markdown_to_safe_html(table))


def text(log: EventAccumulator, tag: str) -> View:
    """TEXT: a table as it was logged."""
    (markdown,) = log.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val
    return View(markdown_to_safe_html(markdown))
