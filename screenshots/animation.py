"""The animated picture of a run: what the net says of eight test images, and how the loss falls."""

import io
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.append(str(Path(__file__).parents[1]))
from viz import GAP, RIGHT, TILE, TITLE, WRONG  # noqa: E402

WIDTH = 830  # pixels: as wide as GitHub shows a page
EACH, LAST = 1000, 4000  # milliseconds; the last report comes first: it is also the still picture
LINE = 4  # pixels: the frame around an image
TRAINING, TEST = "tab:blue", "tab:orange"


class Story(NamedTuple):
    """What an animated picture tells, each a list of (step, value)."""

    predictions: list[tuple[int, Image.Image]]  # one for each report
    training_loss: list[tuple[int, float]]
    test_loss: list[tuple[int, float]]
    test_accuracy: list[tuple[int, float]]  # 0 to 1


def read_story(run_dir: Path) -> Story:
    """Read it from the event files of a run."""
    log = EventAccumulator(str(run_dir), size_guidance={"images": 0, "scalars": 0})  # 0: all
    log.Reload()
    pictures = [
        (event.step, Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))
        for event in log.Images("predictions vs. actuals")
    ]
    tags = ("training loss", "test/loss", "test/accuracy")
    return Story(pictures, *([(e.step, e.value) for e in log.Scalars(tag)] for tag in tags))


def draw_frame(story: Story, index: int) -> Image.Image:
    """Draw one report: its test images in two rows, beside all curves up to its step."""
    step, picture = story.predictions[index]
    picture = with_frames(picture)
    half, height = picture.width // 2, picture.height
    frame = Image.new("RGB", (WIDTH, 2 * height + 2 * GAP), "white")
    frame.paste(picture.crop((0, 0, half, height)), (0, 0))
    frame.paste(picture.crop((half, 0, picture.width, height)), (0, height + GAP))
    frame.paste(draw_curves(story, step, WIDTH - half, frame.height), (half, 0))
    return frame


def with_frames(picture: Image.Image) -> Image.Image:
    """Put each image of a row into a frame in the colour of its title: right or wrong."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    for left in range(0, picture.width, TILE + 2 * GAP):
        title = np.asarray(picture.crop((left, 0, left + TILE + 2 * GAP, TITLE - GAP)))
        red, green, _ = title.mean(axis=(0, 1))  # on white, letters lack the other colour
        x, y = left + GAP - LINE, TITLE - LINE
        box = (x, y, x + TILE + 2 * LINE - 1, y + TILE + 2 * LINE - 1)  # its last pixels, too
        draw.rectangle(box, outline=RIGHT if green > red else WRONG, width=LINE)
    return picture


def draw_curves(story: Story, step: int, width: int, height: int) -> Image.Image:
    """Draw losses and test accuracy up to a step, on axes that have room for the whole run."""
    fig = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    fig.get_layout_engine().set(h_pad=0.1)
    fig.suptitle(f"step {step:,}", fontsize=12)
    losses, accuracy = fig.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    plot_until(losses, story.training_loss, step, color=TRAINING, label="training loss", marker=".")
    plot_until(losses, story.test_loss, step, color=TEST, label="test loss", marker="o")
    losses.set_ylim(0, 1.1 * max(value for _, value in story.training_loss + story.test_loss))
    losses.legend(loc="lower left", fontsize=9, frameon=False)

    percent = [(at, 100 * value) for at, value in story.test_accuracy]
    plot_until(accuracy, percent, step, color=TEST, marker="o")
    for at, value in percent:
        if at <= step:
            accuracy.annotate(f"{value:.1f}", (at, value + 8), ha="center", fontsize=9)
    accuracy.set_title("test accuracy, %", fontsize=9)
    accuracy.set_ylim(0, 100)
    last = story.predictions[-1][0]
    accuracy.set_xlim(-0.1 * last, 1.1 * last)
    accuracy.set_xticks([0, last // 2, last], ["0", f"{last // 2:,}", f"{last:,}"])
    for ax in (losses, accuracy):
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.3)

    pixels = io.BytesIO()
    fig.savefig(pixels)
    return Image.open(pixels).convert("RGB")


def plot_until(ax: Axes, points: list[tuple[int, float]], step: int, **style) -> None:
    """Plot the points up to a step."""
    ax.plot(*zip(*(point for point in points if point[0] <= step), strict=True), **style)


def save_animation(story: Story, path: Path) -> None:
    """Write all reports as an animated GIF that loops; the last one comes first."""
    count = len(story.predictions)
    frames = [draw_frame(story, index) for index in (count - 1, *range(count - 1))]
    # One palette for all, or the photographs would flicker. This method keeps rare colours too.
    palette = frames[0].quantize(255, Image.Quantize.MAXCOVERAGE, kmeans=1)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    durations = [LAST, *[EACH] * (count - 1)]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
