"""The views of a run as pictures on the notebook's page, one function for each.

All are read from the run's event files with TensorBoard's own reader (the projector's points from
the files beside them), so they show what TensorBoard shows, also where its page is blocked.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

ALL = {"images": 0, "histograms": 0, "distributions": 0, "tensors": 0}  # 0: keep every step


def read_run(run_dir: str) -> EventAccumulator:
    """Read all that a run has logged; raises FileNotFoundError if there is no such run."""
    if not Path(run_dir).is_dir():
        raise FileNotFoundError(f"no run in {run_dir!r}: run the cell that trains")
    return EventAccumulator(run_dir, size_guidance=ALL).Reload()


def show(figure: Figure) -> None:
    """Show a figure as a PNG, whatever Matplotlib is set to in this notebook."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=80, bbox_inches="tight")
    display(Image(png.getvalue()))


def show_image(run: EventAccumulator, tag: str, report: int = -1) -> None:
    """IMAGES: a picture as it was logged; at the last report, or at another one."""
    image = run.Images(tag)[report]
    display(Markdown(f"*{tag}*, step {image.step:,}"), Image(image.encoded_image_string))


def show_graph(run: EventAccumulator) -> None:
    """GRAPHS: the operations from the images to the output, and the shapes between them."""
    nodes = {node.name: node for node in run.Graph().node}
    (name,) = (name for name in nodes if name.startswith("output/"))
    chain = []
    while nodes[name].input:  # the first input is what flows, the others are weights
        name = nodes[name].input[0]
        (shape,) = nodes[name].attr["_output_shapes"].list.shape
        chain.append((name.split("/", 1)[1], "×".join(str(dim.size) for dim in shape.dim[1:])))
    figure = Figure(figsize=(5, 0.4 * len(chain)))
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(-1, 1), ylim=(0.5 - len(chain), 0.5))
    box = {"boxstyle": "round", "facecolor": "lightsteelblue"}
    for row, (label, shape) in enumerate(reversed(chain)):
        axes.text(0, -row, f"{label}  →  {shape}", ha="center", va="center", bbox=box)
    show(figure)


def show_scalars(run: EventAccumulator, *charts: list[str]) -> None:
    """SCALARS, CUSTOM SCALARS: a chart for each list of tags, with a curve for each tag."""
    figure = Figure(figsize=(4.5 * len(charts), 3.2), layout="constrained")
    for axes, tags in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        for tag in tags:
            points = run.Scalars(tag)
            axes.plot([p.step for p in points], [p.value for p in points], marker=".", label=tag)
        axes.set_xlabel("step")
        axes.legend()
        axes.grid(alpha=0.3)
    show(figure)


def show_pr_curves(run: EventAccumulator) -> None:
    """PR CURVES: precision over recall for each class, after the last epoch."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for tag in run.Tags()["tensors"]:
        if run.SummaryMetadata(tag).plugin_data.plugin_name == "pr_curves":
            proto = run.Tensors(tag)[-1].tensor_proto
            # Rows: TP, FP, TN, FN, precision, recall; a column for each threshold.
            values = np.reshape(proto.float_val, [dim.size for dim in proto.tensor_shape.dim])
            predicted = values[0] + values[1] > 0  # else there is no precision
            axes.plot(values[5, predicted], values[4, predicted], label=tag.split("/", 1)[1])
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    show(figure)


def show_histograms(run: EventAccumulator, tags: list[str]) -> None:
    """HISTOGRAMS: a slice for each report, the newest in front."""
    figure = Figure(figsize=(4.5 * len(tags), 3.5), layout="constrained")
    for axes, tag in zip(figure.subplots(1, len(tags), squeeze=False)[0], tags, strict=True):
        slices = run.Histograms(tag)
        highest = max(max(event.histogram_value.bucket) for event in slices)
        for depth, event in enumerate(slices):
            histogram = event.histogram_value
            base = -0.3 * highest * depth
            order = {"color": "darkorange", "zorder": depth, "edgecolor": "white", "linewidth": 0.8}
            heights = base + np.array(histogram.bucket)
            axes.fill_between(histogram.bucket_limit, base, heights, **order)
        axes.set(title=tag, yticks=[])
    show(figure)


def show_distributions(run: EventAccumulator, tags: list[str]) -> None:
    """DISTRIBUTIONS: the median of each report, and bands that hold 38, 68, 87 and 100 %."""
    figure = Figure(figsize=(4.5 * len(tags), 3.2), layout="constrained")
    for axes, tag in zip(figure.subplots(1, len(tags), squeeze=False)[0], tags, strict=True):
        events = run.CompressedHistograms(tag)
        steps = [event.step for event in events]
        lines = np.array([[v for _, v in event.compressed_histogram_values] for event in events]).T
        middle = len(lines) // 2  # 9 percentiles, from the smallest value to the largest
        for band in range(middle):
            axes.fill_between(steps, lines[band], lines[-1 - band], color="darkorange", alpha=0.25)
        axes.plot(steps, lines[middle], color="black")
        axes.set(title=tag, xlabel="step")
    show(figure)


def show_projector(run: EventAccumulator) -> None:
    """PROJECTOR: the features in the two directions in which they differ most (PCA), by label."""
    (folder,) = Path(run.path).glob("*/features")
    features = np.loadtxt(folder / "tensors.tsv", delimiter="\t")  # (N, 84)
    labels = np.array((folder / "metadata.tsv").read_text(encoding="utf-8").splitlines())
    centred = features - features.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    x, y = (centred @ directions[:2].T).T
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for label in np.unique(labels):
        axes.scatter(x[labels == label], y[labels == label], s=8, label=label)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    show(figure)


def show_hparams(log_dir: str) -> None:
    """HPARAMS: every run in a folder as a row, with its settings, its last accuracy and loss."""
    rows = []
    for run_dir in sorted({path.parent for path in Path(log_dir).glob("*/events.out.tfevents.*")}):
        run = EventAccumulator(str(run_dir)).Reload()
        try:
            content = run.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        except KeyError:
            continue  # logged by another program, or with `--views notes`
        settings = HParamsPluginData.FromString(content).session_start_info.hparams
        row = {"run": run_dir.name}
        for name, value in sorted(settings.items()):
            setting = getattr(value, value.WhichOneof("kind"))
            row[name] = f"{setting:g}" if isinstance(setting, float) else setting
        for tag in ("test/accuracy", "test/loss"):
            row[tag] = f"{run.Scalars(tag)[-1].value:.3f}"
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows)]
    lines = [f"| {' | '.join(map(str, row))} |" for row in cells]
    display(Markdown("\n".join(lines)))


def show_text(run: EventAccumulator, tag: str) -> None:
    """TEXT: a table as it was logged."""
    (text,) = run.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val
    display(Markdown(text.decode()))
