"""The views of a run as HTML, and the page that shows them all."""

import html
import re
import shlex
import shutil
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, TEST_IMAGES, read_events, read_scalars, run_tiny
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

import train_cifar
import viz

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))

import notebook_views  # noqa: E402
import report  # noqa: E402


class Page:
    """A run that was read, and the figures that the views drew of it."""

    def __init__(self, monkeypatch, run_dir: Path):
        self.views, self.log, self.figures = (
            notebook_views,
            notebook_views.read_run(str(run_dir)),
            [],
        )
        chart = notebook_views.chart

        def keep(figure, name):
            self.figures.append(figure)
            return chart(figure, name)

        monkeypatch.setattr(notebook_views, "chart", keep)

    def axes(self) -> list:
        """Each figure has a chart."""
        return [axes for figure in self.figures for axes in figure.axes]


@pytest.fixture
def page(tiny_run, monkeypatch):
    return Page(monkeypatch, tiny_run)


def test_a_chart_has_the_points_that_were_logged(page, tiny_run):
    page.views.scalars(page.log, ["training loss", "test/loss"], ["test/accuracy"])
    losses, accuracy = page.axes()
    drawn = {line.get_label(): line.get_xydata() for line in [*losses.lines, *accuracy.lines]}
    assert [line.get_label() for line in losses.lines] == ["training loss", "test/loss"]
    assert set(drawn) == {"training loss", "test/loss", "test/accuracy"}
    logged = read_scalars(tiny_run)
    for tag, points in drawn.items():
        assert points.tolist() == pytest.approx(np.array(logged[tag]), rel=1e-6), tag


def test_a_picture_is_the_one_that_was_logged(page, tiny_run):
    logged = read_events(tiny_run)["predictions vs. actuals"]
    assert len(logged) > 2
    view = page.views.images(page.log, "predictions vs. actuals", reports=(0, -1))
    expected = [value.tensor.string_val[2] for _, value in (logged[0], logged[-1])]
    assert pictures(view) == expected
    steps = re.findall("<em>predictions vs. actuals</em>, step (.+?)<", view)
    assert steps == [str(step) for step, _ in (logged[0], logged[-1])]


def pictures(page: str) -> list[bytes]:
    """The PNG files inside a page."""
    return [*map(b64decode, re.findall(r'src="data:image/png;base64,(.*?)"', page))]


def test_pr_curves_are_those_of_the_last_epoch(page, tiny_run):
    page.views.pr_curves(page.log)
    (chart,) = page.axes()
    assert [line.get_label() for line in chart.lines] == CLASSES
    for line in chart.lines:
        _, value = read_events(tiny_run)[f"pr curve/{line.get_label()}"][-1]
        tp, fp, _, fn, _, _ = make_ndarray(value.tensor)
        some = tp + fp > 0
        recall, precision = tp[some] / (tp + fn)[some], tp[some] / (tp + fp)[some]
        assert line.get_xdata() == pytest.approx(recall, abs=1e-6)
        assert line.get_ydata() == pytest.approx(precision, abs=1e-6)


def test_the_graph_has_the_layers_in_order_and_their_shapes(page):
    page.views.graph(page.log)
    (chart,) = page.axes()
    texts = {-text.get_position()[1]: text.get_text() for text in chart.texts}
    in_order = [texts[row] for row in sorted(texts)]
    assert in_order[0] == "images  →  3×32×32"
    layers = [text for text in in_order if re.match(r"conv|fc", text)]
    expected = ["conv1 .*6×28×28", "conv2 .*16×10×10", "fc1 .*120", "fc2 .*84", "fc3 .*3"]
    assert all(re.match(f"{e}$", text) for e, text in zip(expected, layers, strict=True))


def test_histograms_and_distributions_have_a_slice_for_each_report(page, tiny_run):
    tags = ["weights/conv1.weight", "gradients/fc3.weight"]
    page.views.histograms(page.log, tags)
    page.views.distributions(page.log, tags)
    charts = page.axes()
    histograms, distributions = charts[:2], charts[2:]
    events = read_events(tiny_run)
    for tag, slices, bands in zip(tags, histograms, distributions, strict=True):
        assert slices.get_title() == bands.get_title() == tag
        assert len(slices.collections) == len(events[tag])
        median = bands.lines[0].get_xydata()
        assert median[:, 0].tolist() == [step for step, _ in events[tag]]
        lowest, highest = bands.dataLim.intervaly  # the outer band: the smallest and largest value
        assert lowest < median[:, 1].min() and median[:, 1].max() < highest
        heights = [c.get_paths()[0].get_extents().height for c in slices.collections]
        largest = [make_ndarray(value.tensor)[:, 2].max() for _, value in events[tag]]
        assert heights == pytest.approx(largest)


def test_the_newest_slice_lies_lowest_and_in_front(page):
    page.views.histograms(page.log, ["weights/conv1.weight"])
    (chart,) = page.axes()
    bottoms = [c.get_paths()[0].get_extents().y0 for c in chart.collections]
    assert bottoms == sorted(bottoms, reverse=True)
    assert [c.get_zorder() for c in chart.collections] == [*range(len(bottoms))]


def test_the_projector_has_every_test_image_by_its_label(page):
    page.views.projector(page.log)
    (chart,) = page.axes()
    assert {c.get_label(): len(c.get_offsets()) for c in chart.collections} == dict.fromkeys(
        CLASSES, TEST_IMAGES
    )
    points = np.concatenate([c.get_offsets() for c in chart.collections])
    spread = points.std(axis=0)
    assert spread[0] > spread[1] > 0 and abs(np.corrcoef(points.T)[0, 1]) < 1e-6  # PCA


def test_tables_have_the_settings_and_results(page, tiny_run, tmp_path):
    log_dir = tmp_path / "runs"
    shutil.copytree(tiny_run, log_dir / "tiny")
    with SummaryWriter(log_dir / "other") as writer:  # of a program that logs no settings
        writer.add_scalar("test/accuracy", 0.5, 1)
    head, row = cells(page.views.hparams(str(log_dir)))
    accuracy = read_scalars(tiny_run)["test/accuracy"][-1][1]
    named = dict(zip(head, row, strict=True))
    assert (named["run"], named["lr"], named["batch size"]) == ("tiny", "0.02", "8")
    assert named["test/accuracy"] == f"{accuracy:.3f}"
    assert ["lr", "0.02"] in cells(page.views.text(page.log, "settings"))


def cells(page: str) -> list[list[str]]:
    """The rows of the tables in a page."""
    rows = re.findall("<tr>(.*?)</tr>", page, re.S)
    return [[*map(html.unescape, re.findall("<t[hd]>(.*?)</t[hd]>", row))] for row in rows]


# ------------------------------------------------------------------------------ the page of a run


def write(run_dir: Path) -> str:
    """Write the page of a run; returns its text."""
    assert report.main([str(run_dir)]) == 0
    return (run_dir / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tiny_page(tiny_run, tmp_path_factory) -> str:
    """The page of a finished run with all views."""
    return write(shutil.copytree(tiny_run, tmp_path_factory.mktemp("report") / "tiny"))


def headings(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def missing(page: str) -> list[str]:
    found = re.search("<strong>Missing</strong>: (.*?)[.] ", page)
    return found[1].split(", ") if found else []


def test_the_page_has_every_view_of_the_run(tiny_page, tiny_run):
    logged = read_events(tiny_run)
    assert missing(tiny_page) == [] and len(headings(tiny_page)) == 16
    drawn = set(pictures(tiny_page))
    images = {tag: v for tag, v in logged.items() if kind(v) == "images"}
    assert all(values[-1][1].tensor.string_val[2] in drawn for values in images.values())
    tables = [v[-1][1].tensor.string_val[0].decode() for v in logged.values() if kind(v) == "text"]
    rows = cells(tiny_page)
    for table in tables:
        for line in table.splitlines()[2:]:
            row = [html.unescape(cell.strip()) for cell in line.strip("|").split("|")]
            assert row in rows
    accuracy = read_scalars(tiny_run)["test/accuracy"][-1][1]
    assert f"test accuracy {accuracy:.1%}" in tiny_page


def kind(values: list) -> str:
    return values[0][1].metadata.plugin_data.plugin_name


def test_the_captions_are_those_of_the_readme(tiny_page):
    captions = report.CAPTION.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    walk = [caption for caption, name in captions if name not in ("hparams", "projector", "report")]
    assert len(walk) > 10 and [c for c in walk if f"<p>{html.escape(c)}</p>" not in tiny_page] == []


def test_the_page_asks_no_network_and_can_be_mailed(tiny_page):
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(.{5})""", tiny_page)
    assert links and set(links) == {"data:"}
    assert "default-src 'none'" in tiny_page  # a browser refuses what we might have overlooked
    assert len(tiny_page.encode()) < 3_000_000


def test_what_the_notes_views_lack_is_said(image_folder, tmp_path):
    text = write(run_tiny(image_folder, tmp_path / "runs", "--views", "notes", "--augment"))
    assert headings(text) == [
        *("Curves", "Predictions", "PR curves", "Training images", "Graph", "Settings")
    ]
    assert len(missing(text)) == 10
    command = html.unescape(re.search("<code>(python .*?)</code>", text)[1])
    again = train_cifar.parse_args(shlex.split(command)[2:])
    assert again.augment and again.lr == 0.02 and again.data == str(image_folder)


def test_what_an_unfinished_run_lacks_is_said(tmp_path):
    """As if it had been stopped in its first epoch: only what it shows at its start."""
    with SummaryWriter(tmp_path / "stopped") as writer:
        viz.add_test_scalars(writer, 2.3, 0.1, 0)
        viz.add_training_loss(writer, 2.2, 5)
        viz.add_table(writer, "settings", [("setting", "value"), ("lr", 0.02)])
    text = write(tmp_path / "stopped")
    assert headings(text) == ["Curves", "Settings"]
    assert {"Per class", "Projector", "Graph"} < {*missing(text)}


def test_a_run_with_validation_shows_its_validation(tmp_path, monkeypatch):
    with SummaryWriter(tmp_path / "validated") as writer:
        for tag in ("training loss", "validation/loss", "validation/accuracy"):
            writer.add_scalar(tag, 0.25, 9)
        writer.add_scalar("test/accuracy", 0.125, 10)
        viz.add_pr_curves(writer, torch.eye(2), torch.arange(2), ["a", "b"], 9, "validation")
    page = Page(monkeypatch, tmp_path / "validated")
    page.views.pr_curves(page.log)
    assert [line.get_label() for axes in page.axes() for line in axes.lines] == ["a", "b"]
    text = write(tmp_path / "validated")
    assert "Training loss, validation loss and validation accuracy" in text
    assert "validation accuracy 25.0%" in text and "test accuracy 12.5%" in text


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"report.py: error: no run in {str(tmp_path)!r}: give the folder")
    assert list(tmp_path.iterdir()) == []
