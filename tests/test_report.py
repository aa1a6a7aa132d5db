"""The views of a run as HTML, and the page that shows them all."""

import html
import re
import shlex
import shutil
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import notebook_views as views
import numpy as np
import pytest
import report
import torch
from conftest import CLASSES, ROOT, TEST_IMAGES, read_events, read_scalars, run_tiny
from matplotlib.axes import Axes
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

import train_cifar
import viz


def draw(view: Callable, run_dir: Path, *args) -> list[Axes]:
    """Draw a view of a run; returns what is on it, the axes of each chart."""
    with mock.patch.object(views, "chart", return_value="") as chart:
        view(views.read_run(str(run_dir)), *args)
    return [call.args[0] for call in chart.call_args_list]


def test_a_chart_has_the_points_that_were_logged(tiny_run):
    tags = [["training loss", "test/loss"], ["test/accuracy"]]
    charts = draw(views.scalars, tiny_run, *tags)
    assert [[line.get_label() for line in chart.lines] for chart in charts] == tags
    logged = read_scalars(tiny_run)
    for line in [line for chart in charts for line in chart.lines]:
        points = np.array(logged[line.get_label()])
        assert line.get_xydata().tolist() == pytest.approx(points, rel=1e-6)


def test_a_picture_is_the_one_that_was_logged(tiny_run):
    tag = "predictions vs. actuals"
    first, *between, last = read_events(tiny_run)[tag]
    assert between
    view = views.images(views.read_run(str(tiny_run)), tag, reports=(0, -1))
    assert pictures(view) == [value.tensor.string_val[2] for _, value in (first, last)]
    assert re.findall(f"<em>{tag}</em>, step (.+?)<", view) == [str(first[0]), str(last[0])]


def pictures(page: str) -> list[bytes]:
    """The PNG files inside a page."""
    return [*map(b64decode, re.findall(r'src="data:image/png;base64,(.*?)"', page))]


def test_pr_curves_are_those_of_the_last_epoch(tiny_run):
    (chart,) = draw(views.pr_curves, tiny_run)
    assert [line.get_label() for line in chart.lines] == CLASSES
    events = read_events(tiny_run)
    for line in chart.lines:
        _, value = events[f"pr curve/{line.get_label()}"][-1]
        tp, fp, _, fn, _, _ = make_ndarray(value.tensor)
        some = tp + fp > 0
        recall, precision = tp[some] / (tp + fn)[some], tp[some] / (tp + fp)[some]
        assert line.get_xdata() == pytest.approx(recall, abs=1e-6)
        assert line.get_ydata() == pytest.approx(precision, abs=1e-6)


def test_the_graph_has_the_layers_in_order_and_their_shapes(tiny_run):
    (chart,) = draw(views.graph, tiny_run)
    texts = {-text.get_position()[1]: text.get_text() for text in chart.texts}
    in_order = [texts[row] for row in sorted(texts)]
    assert in_order[0] == "images  →  3×32×32"
    layers = [text for text in in_order if re.match(r"conv|fc", text)]
    expected = ["conv1 .*6×28×28", "conv2 .*16×10×10", "fc1 .*120", "fc2 .*84", "fc3 .*3"]
    assert all(re.match(f"{e}$", text) for e, text in zip(expected, layers, strict=True))


def test_histograms_and_distributions_have_a_slice_for_each_report(tiny_run):
    """The newest slice lies lowest and in front."""
    tags, events = ["weights/conv1.weight", "gradients/fc3.weight"], read_events(tiny_run)
    histograms = draw(views.histograms, tiny_run, tags)
    distributions = draw(views.distributions, tiny_run, tags)
    for tag, slices, bands in zip(tags, histograms, distributions, strict=True):
        assert slices.get_title() == bands.get_title() == tag
        boxes = [c.get_paths()[0].get_extents() for c in slices.collections]
        largest = [make_ndarray(value.tensor)[:, 2].max() for _, value in events[tag]]
        assert [box.height for box in boxes] == pytest.approx(largest)
        assert sorted((box.y0 for box in boxes), reverse=True) == [box.y0 for box in boxes]
        assert [c.get_zorder() for c in slices.collections] == [*range(len(boxes))]
        median = bands.lines[0].get_xydata()
        assert median[:, 0].tolist() == [step for step, _ in events[tag]]
        lowest, highest = bands.dataLim.intervaly  # the outer band: the smallest and largest value
        assert lowest < median[:, 1].min() and median[:, 1].max() < highest


def test_the_projector_has_every_test_image_by_its_label(tiny_run):
    (chart,) = draw(views.projector, tiny_run)
    counts = {c.get_label(): len(c.get_offsets()) for c in chart.collections}
    assert counts == dict.fromkeys(CLASSES, TEST_IMAGES)
    points = np.concatenate([c.get_offsets() for c in chart.collections])
    spread = points.std(axis=0)
    assert spread[0] > spread[1] > 0 and abs(np.corrcoef(points.T)[0, 1]) < 1e-6  # PCA


def test_the_table_of_runs_has_their_settings_and_results(tiny_run, tmp_path):
    assert cells(views.hparams(str(tmp_path)))[0] == ["run"]  # no run yet
    shutil.copytree(tiny_run, tmp_path / "tiny")
    with SummaryWriter(tmp_path / "other") as writer:  # of a program that logs no settings
        writer.add_scalar("test/accuracy", 0.5, 1)
    head, row = cells(views.hparams(str(tmp_path)))
    accuracy = read_scalars(tiny_run)["test/accuracy"][-1][1]
    named = dict(zip(head, row, strict=True))
    assert (named["run"], named["lr"], named["batch size"]) == ("tiny", "0.02", "8")
    assert named["test/accuracy"] == f"{accuracy:.3f}"


def cells(page: str) -> list[list[str]]:
    """The rows of the tables in a page."""
    rows = re.findall("<tr>(.*?)</tr>", page, re.S)
    return [[*map(html.unescape, re.findall("<t[hd]>(.*?)</t[hd]>", row))] for row in rows]


# ------------------------------------------------------------------------------ the page of a run


def write(run_dir: Path) -> str:
    """Write the page of a run; returns its text."""
    assert report.main([str(run_dir)]) == 0
    return (run_dir / "report.html").read_text(encoding="utf-8")


def headings(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def test_the_page_has_every_view_of_the_run_and_can_be_mailed(tiny_run, tmp_path):
    page, logged = write(shutil.copytree(tiny_run, tmp_path / "tiny")), read_events(tiny_run)
    assert len(headings(page)) == 16 and "Missing" not in page
    last = {"images": [], "text": []}
    for values in logged.values():
        _, value = values[-1]
        last.setdefault(value.metadata.plugin_data.plugin_name, []).append(value.tensor.string_val)
    assert {strings[2] for strings in last["images"]} <= {*pictures(page)}
    rows = cells(page)
    for line in [line for (table,) in last["text"] for line in table.decode().splitlines()[2:]]:
        assert [html.unescape(cell.strip()) for cell in line.strip("|").split("|")] in rows
    accuracy = read_scalars(tiny_run)["test/accuracy"][-1][1]
    assert f"test accuracy {accuracy:.1%}" in page

    captions = report.CAPTION.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    walk = [caption for caption, name in captions if name not in ("hparams", "projector", "report")]
    assert len(walk) > 10 and [c for c in walk if f"<p>{html.escape(c)}</p>" not in page] == []

    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(.{5})""", page)
    assert links and set(links) == {"data:"}
    assert "default-src 'none'" in page  # a browser refuses what we might have overlooked
    assert len(page.encode()) < 3_000_000


def test_what_the_notes_views_lack_is_said(image_folder, tmp_path):
    flags = ("--views", "notes", "--augment", "--epochs", 1)
    text = write(run_tiny(image_folder, tmp_path / "runs", *flags))
    expected = "Curves, Predictions, PR curves, Training images, Graph, Settings"
    assert headings(text) == expected.split(", ")
    missing = re.search("<strong>Missing</strong>: (.*?)[.] ", text)[1].split(", ")
    assert len(missing) == 10 and {"Per class", "Projector", "Time"} < {*missing}
    command = html.unescape(re.search("<code>(python .*?)</code>", text)[1])
    again = train_cifar.parse_args(shlex.split(command)[2:])
    assert again.augment and again.lr == 0.02 and again.data == str(image_folder)


def test_a_run_that_has_only_begun_shows_its_validation(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for tag in ("training loss", "validation/loss", "validation/accuracy"):
            writer.add_scalar(tag, 0.25, 9)
        writer.add_scalar("test/accuracy", 0.125, 10)
        writer.flush()
        text = write(tmp_path)
        viz.add_pr_curves(writer, torch.eye(2), torch.arange(2), ["a", "b"], 9, "validation")
    assert headings(text) == ["Curves"]
    assert "Training loss, validation loss and validation accuracy" in text
    assert "validation accuracy 25.0%" in text and "test accuracy 12.5%" in text
    (chart,) = draw(views.pr_curves, tmp_path)
    assert [line.get_label() for line in chart.lines] == ["a", "b"]


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"report.py: error: no run in {str(tmp_path)!r}: give the folder")
    assert list(tmp_path.iterdir()) == []
