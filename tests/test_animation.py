"""The animated picture of a run, beside what the run's own net says, and the one of the READMEs."""

import json

import animation
import numpy as np
import pytest
import torch
from conftest import CLASSES, ROOT, read_events, read_scalars
from PIL import Image

import viz
from data import read_source
from model import Net
from support.checkpoint import load_checkpoint

GREEN, RED = (0, 128, 0), (255, 0, 0)


@pytest.fixture(scope="module")
def story(tiny_run) -> animation.Story:
    return animation.read_story(tiny_run)


def test_every_report_has_a_frame_and_the_last_comes_first(story, tiny_run, tmp_path):
    animation.save_animation(story, tmp_path / "run.gif")
    steps = [step for step, _ in read_events(tiny_run)["predictions vs. actuals"]]
    drawn = [np.asarray(animation.draw_frame(story, i), dtype=int) for i in range(len(steps))]
    assert [step for step, _ in story.predictions] == steps
    with Image.open(tmp_path / "run.gif") as movie:
        assert movie.n_frames == len(steps) > 2
        assert movie.info["loop"] == 0  # for ever
        for frame, index in enumerate([len(steps) - 1, *range(len(steps) - 1)]):
            movie.seek(frame)
            assert movie.info["duration"] == (1000 if frame else 4000)
            shown = np.asarray(movie.convert("RGB"), dtype=int)
            far = [np.abs(shown - other).mean() for other in drawn]  # not 0: it has 255 colours
            assert np.argmin(far) == index and min(far) < 5


def test_frames_are_green_where_the_net_is_right(story, tiny_run):
    saved = load_checkpoint(tiny_run)
    _, test, _ = read_source(saved["settings"]["data"], "", [])
    images, labels = test.sample(8, saved["settings"]["seed"])
    net = Net(len(CLASSES))
    net.load_state_dict(saved["net"])
    with torch.no_grad():
        right = (net(images).argmax(dim=1) == labels).tolist()
    assert frame_colors(animation.draw_frame(story, -1)) == [GREEN if r else RED for r in right]


def test_a_frame_has_the_color_of_its_title():
    right = [True, False] * 3 + [False, True]
    colors = [viz.RIGHT if r else viz.WRONG for r in right]
    titles = ["cat, 9.9%\n(label: dog)"] * 8
    figure = viz.matplotlib_imshow(torch.zeros(8, 3, 32, 32), titles, colors)
    figure.savefig(pixels := animation.io.BytesIO())
    points = [(2, 0.5)]
    story = animation.Story([(2, Image.open(pixels).convert("RGB"))], points, points, points)
    assert frame_colors(animation.draw_frame(story, 0)) == [GREEN if r else RED for r in right]


def frame_colors(frame: Image.Image) -> list[tuple[int, int, int]]:
    """The colours around the eight images: four in a row, each 144 pixels wide and 128 high."""
    return [frame.getpixel((144 * (i % 4) + 72, 200 * (i // 4) + 54)) for i in range(8)]


def test_curves_grow_up_to_their_step(story, tiny_run, monkeypatch):
    """A frame has no point that its report could not have known."""
    drawn, plot = {}, animation.Axes.plot

    def record(ax, x, y, **style):
        drawn[style.get("label")] = list(zip(x, y, strict=True))
        return plot(ax, x, y, **style)

    monkeypatch.setattr(animation.Axes, "plot", record)
    scalars = read_scalars(tiny_run)
    expected = {"training loss": scalars["training loss"], "test loss": scalars["test/loss"]}
    expected[None] = [(step, 100 * value) for step, value in scalars["test/accuracy"]]
    for index, (now, _) in enumerate(story.predictions):
        animation.draw_frame(story, index)
        assert drawn == {
            label: [point for point in points if point[0] <= now]
            for label, points in expected.items()
        }


def test_the_movie_of_the_page_is_small_and_of_the_pictures_run():
    with Image.open(ROOT / "screenshots" / "training.gif") as movie:
        assert movie.width == 830 and movie.n_frames == 14
    assert (ROOT / "screenshots" / "training.gif").stat().st_size < 1_500_000
    run = json.loads((ROOT / "screenshots" / "run.json").read_text(encoding="utf-8"))
    assert "/" not in run["settings"]["images"] + run["settings"]["command"]
