"""What TensorBoard shows of a run, in Chromium: content that only this run can have put there."""

import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, ROOT, TEST_IMAGES, read_events, read_scalars, run_tiny
from PIL import Image
from sick_runs import predict
from sklearn.metrics import precision_recall_fscore_support
from torch.utils.tensorboard import SummaryWriter

import viz

sync_api = pytest.importorskip("playwright.sync_api", reason="needs tests/requirements.txt")
expect = sync_api.expect

import capture  # noqa: E402

# As sorted; Windows has no folders with < in their names.
NAMES = ["<b>ird" if os.name == "posix" else "&lt;ird", "a $1 cat", "雪 豹"]
LAYERS = ("conv1 Conv2d", "pool MaxPool2d", "conv2 Conv2d", "pool (2) MaxPool2d")
LAYERS += ("fc1 Linear", "fc2 Linear", "fc3 Linear")


@pytest.fixture(scope="module")
def run_dir(image_folder, tmp_path_factory) -> Path:
    """A run on the tiny images, with odd class names, that has learnt too little to be right."""
    folder = tmp_path_factory.mktemp("odd names")
    for part in ("train", "test"):
        for old, new in zip(CLASSES, NAMES, strict=True):
            shutil.copytree(image_folder / part / old, folder / part / new)
    return run_tiny(folder, tmp_path_factory.mktemp("runs"), "--run-name", "odd", "--lr", "0.001")


@pytest.fixture(scope="module")
def other_run(run_dir, tmp_path_factory) -> Path:
    """A run beside a copy of the first, with a setting that the first does not have."""
    log_dir = tmp_path_factory.mktemp("several")
    shutil.copytree(run_dir, log_dir / run_dir.name)
    with SummaryWriter(log_dir / "other") as writer:
        viz.add_hparams_start(writer, {"lr": 0.05, "dropout": 0.5})
        viz.add_test_scalars(writer, loss=0.75, accuracy=0.8125, step=30)
        viz.add_table(writer, "per class", [["class"]], step=30)
        viz.add_hparams_end(writer)
    return log_dir / "other"


@pytest.fixture(scope="module")
def urls(browser, run_dir):  # the browser first: without one, nothing is started
    """TensorBoard with either loader."""
    with capture.start_tensorboard(run_dir.parent, load_fast=True) as fast:
        with capture.start_tensorboard(run_dir.parent, load_fast=False) as slow:
            yield {"fast loader": fast, "--load_fast=false": slow}


@pytest.fixture
def url(urls) -> str:
    """TensorBoard with its fast loader: `page` sees to it that the other one says the same."""
    return urls["fast loader"]


OTHERWISE = ("images", "histograms", "distributions")  # which the two loaders do not tell alike
both_loaders = pytest.mark.parametrize("loader", ["fast loader", "--load_fast=false"])


@pytest.fixture
def page(browser, urls):
    """A new page, which must not report an error by the end of the test.

    What it asked of the one loader, the other one must answer in the same way.
    """
    errors, asked = [], []
    with capture.new_page(browser) as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: asked.append(request))
        yield page
        fast, slow = urls.values()
        for request in asked:
            plugin = request.url.partition("/data/plugin/")[2]
            if plugin and request.url.startswith(fast) and not plugin.startswith(OTHERWISE):
                expected = ask_again(page, request, request.url)
                assert ask_again(page, request, request.url.replace(fast, slow)) == expected
    assert errors == []


def ask_again(page, request, url: str) -> object:
    """What TensorBoard answers; of tags the names, for one loader repeats these as titles."""
    form = {key: value for key, value in request.headers.items() if key == "content-type"}
    data = request.post_data
    answer = page.request.fetch(url, method=request.method, data=data, headers=form)
    assert answer.ok
    if "json" not in answer.headers["content-type"]:
        return answer.body()
    if "/tags" in url:
        return {run: sorted(tags) for run, tags in answer.json().items()}
    return answer.json()


# ------------------------------------------------------- before the browser: there can be one only


@pytest.mark.parametrize("missing", ["Node.js", "Chromium"])
def test_a_browser_that_does_not_start_is_said(missing, run_dir, tmp_path, monkeypatch, capfd):
    """Its driver is a program for Node.js, which a system may lack libraries for."""
    if missing == "Node.js":
        monkeypatch.setenv("PLAYWRIGHT_NODEJS_PATH", sys.executable)
    else:
        monkeypatch.setattr(shutil, "which", lambda name: "/no/chromium")
    assert capture.main([str(run_dir), "--out", str(tmp_path)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err and not list(tmp_path.iterdir())
    *_, line = err.splitlines()
    assert line.startswith("capture.py: error: the browser does not start (")
    assert ("/no/chromium" in line) == (missing == "Chromium")
    assert "apt-get install chromium libatomic1" in line


# --------------------------------------------------------------------------------- the dashboards


@both_loaders
def test_images_are_those_of_the_last_step(page, urls, loader, run_dir):
    tags = ["training images", "predictions vs. actuals", "test/confusion matrix"]
    tags += ["test/worst mistakes", "what the net sees/filters", "what the net sees/feature maps"]
    cards = capture.images_of(page, urls[loader], capture.ANY, "|".join(tags))
    events = read_events(run_dir)
    for tag in tags:
        card = cards.filter(has_text=tag)
        step, value = events[tag][-1]
        expect(card).to_contain_text(f"step {step}")
        source = card.locator("img").evaluate("img => img.src")
        assert page.request.get(source).body() == value.tensor.string_val[2]


def test_the_picture_of_the_graph_is_cut_at_the_second_pooling(page, url):
    """In two columns, bottom to top: what is before it, and what is after it."""
    (below,), (above,) = capture.graph(page, url)
    names = [
        {node.get_attribute("data-name").removeprefix("Net/") for node in part.all()}
        for part in (below, above)
    ]
    relus = ["relu", "relu (2)", "relu (3)", "relu (4)"]
    assert names[0] == {"input", *LAYERS[:4], *relus[:2]}
    assert names[1] == {*LAYERS[3:], "flatten", *relus[2:], "output"}
    for node in [*below.all(), *above.all()]:
        expect(node).to_be_visible()


def test_scalars_have_a_point_for_each_report(page, url, run_dir):
    tags = ("training loss", "test/loss", "test/accuracy")
    cards = capture.scalars(page, url, capture.ANY, "|".join(tags))
    scalars = read_scalars(run_dir)
    for tag in tags:
        curve = cards.filter(has_text=tag).locator("path.line").first
        assert curve.get_attribute("d").count("L") == len(scalars[tag]) - 1


def test_custom_scalars_put_both_losses_on_one_chart(page, url):
    capture.custom_scalars(page, url)
    losses = page.locator("tf-custom-scalar-multi-line-chart-card", has_text="training and test")
    expect(losses.locator("path.line")).to_have_count(2)
    for tag in ("training loss", "test/loss"):
        expect(losses.locator(".match-list-entry", has_text=f"{tag} (odd)")).to_be_visible()


@both_loaders
def test_histograms_have_a_line_for_each_report(page, urls, loader, run_dir):
    cards = capture.histograms_of(page, urls[loader], capture.ANY, capture.LAYERS)
    reports = len(read_scalars(run_dir)["training loss"])
    for tag in ("weights/conv1.weight", "gradients/fc3.weight"):
        card = cards.filter(has_text=tag)
        expect(card.locator("g.histogram")).to_have_count(reports)


@both_loaders
def test_distributions_are_of_weights_and_gradients(page, urls, loader):
    cards = capture.distributions(page, urls[loader], capture.LAYERS)
    for tag in ("weights/conv1.weight", "gradients/fc3.weight"):
        expect(cards.filter(has_text=tag).locator("path.area").first).to_be_visible()


def test_text_shows_the_settings_every_class_and_where_the_time_goes(page, url, run_dir):
    (settings,), (classes, times) = capture.text(page, url)
    for name in NAMES:
        expect(classes.get_by_role("cell", name=name, exact=True)).to_be_visible()
    expect(settings).to_contain_text("tag: settings")
    rows = settings.get_by_role("row")
    expect(rows.filter(has_text="classes").last).to_contain_text(", ".join(NAMES))
    expect(rows.filter(has_text="resume").last).to_contain_text(str(run_dir))
    log = capture.EventAccumulator(str(run_dir)).Reload()
    _, *operations = capture.read_table(log, "where the time goes")
    assert operations
    for operation, *_ in operations:
        expect(times.get_by_role("cell", name=operation, exact=True)).to_be_visible()


def test_pr_curves_are_drawn_for_every_class(page, url):
    cards = capture.pr_curves(page, url)
    for name in NAMES:
        expect(cards.filter(has_text=name)).to_be_visible()


def test_pr_curves_are_pictured_of_four_classes():
    cifar10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
    assert capture.four_of(cifar10) == ["automobile", "cat", "dog", "horse"]
    assert capture.four_of(cifar10[:5]) == ["airplane", "automobile", "bird", "cat"]
    assert capture.four_of(NAMES) == NAMES


def test_the_projector_shows_every_test_image_and_marks_those_of_one_class(page, url):
    """Those of the first one, where none is called a ship."""
    capture.projector(page, url)
    frame = page.frame_locator("iframe").frame_locator("iframe")
    expect(frame.locator(".numDataPoints")).to_have_text(str(len(NAMES) * TEST_IMAGES))
    for name in NAMES:
        row = frame.locator("vz-projector-legend .item", has_text=name)
        expect(row).to_contain_text(str(TEST_IMAGES))
    expect(frame.locator("#status-bar")).to_have_text(f"Selected {TEST_IMAGES} points")
    search = frame.locator("vz-projector-inspector-panel vz-projector-input input").first
    expect(search).to_have_value(min(NAMES))


@pytest.mark.parametrize("load_fast", [True, False])
def test_hparams_show_runs_with_different_settings_the_best_first(
    page, run_dir, other_run, load_fast
):
    accuracy = read_scalars(run_dir)["test/accuracy"][-1][1]
    assert accuracy < 0.8125  # of the other run
    with capture.start_tensorboard(other_run.parent, load_fast) as url:
        (sorting,), (table,) = columns = capture.hparams_by_accuracy(page, url)
        capture.take_columns(page, columns)  # until the table stands still
        expect(sorting).to_be_visible()
        expect(table.get_by_text("test/accuracy", exact=True)).to_be_visible()
        for setting in ("momentum", "dropout"):  # each of one run only
            expect(page.locator(".hparam-checkbox", has_text=setting)).to_be_visible()
        heights = []
        for name, *values in (("other", 0.05, 0.8125), ("odd", 0.001, accuracy)):
            cells = [name, *(f"{value:#.5g}" for value in values)]
            row = [table.get_by_text(cell, exact=True).bounding_box()["y"] for cell in cells]
            assert max(row) - min(row) < 10  # they stand in the same row
            heights.append(row[0])
        assert heights == sorted(heights)


# ------------------------------------------------------------------------------------ the pictures


def test_the_methods_are_those_of_the_installed_writer(page):
    table = capture.local_page(page, capture.METHODS, "table")
    installed = [name for name in dir(SummaryWriter) if name.startswith("add_")]
    assert sorted(table.locator("code").all_inner_texts()) == installed


def test_pictures_hold_what_they_should_and_are_put_together_in_columns(page):
    page.set_content(
        "<style>p { position: fixed; width: 50px; height: 50px }</style>"
        + "".join(
            f'<p class="{color}" style="background: {color}; left: {left}px; top: {top}px">'
            for color, left, top in (("red", 100, 300), ("red", 300, 400), ("blue", 300, 300))
        )
    )
    margin = capture.MARGIN * capture.SHARPNESS
    two = np.asarray(capture.take_picture(page, page.locator(".red")))
    assert two.shape == (300 + 2 * margin, 500 + 2 * margin, 3)
    red = (two == (255, 0, 0)).all(axis=2)
    assert red[margin, margin] and red[-margin - 1, -margin - 1] and red.sum() == 2 * 100**2

    lone = [page.locator(".blue"), page.locator(".red").first]
    part, gap = 100 + 2 * margin, capture.GAP
    pixels = np.asarray(capture.take_columns(page, [lone, [page.locator(".red").last]]))
    assert pixels.shape == (2 * part + gap, 2 * part + gap, 3)
    near, far = part // 2, part + gap + part // 2
    colors = [tuple(pixels[y, x]) for x in (near, far) for y in (near, far)]
    assert colors == [(0, 0, 255), (255, 0, 0), (255, 0, 0), (255, 255, 255)]


def test_the_summary_is_what_the_run_ended_with(run_dir):
    """Each class beside scikit-learn, on what the run's own net says of the test images."""
    summary = capture.summarize(run_dir)
    scalars = read_scalars(run_dir)
    for tag in ("training loss", "test/loss", "test/accuracy"):
        assert summary[tag] == pytest.approx(scalars[tag][-1][1], abs=5e-5)
    assert summary["settings"]["lr"] == "0.001"
    assert summary["settings"]["classes"] == ", ".join(NAMES)

    _, _, test, logits = predict(run_dir)
    precision, recall, _, counts = precision_recall_fscore_support(
        test.labels, logits.argmax(dim=1), zero_division=0
    )
    assert list(summary["classes"]) == NAMES
    for index, found in enumerate(summary["classes"].values()):
        assert found["images"] == counts[index] == TEST_IMAGES
        assert found["precision"] == round(precision[index], 3)
        assert found["recall"] == round(recall[index], 3)


def test_pictures_are_saved_small_or_not_at_all(tmp_path):
    capture.save_picture(Image.new("RGB", (2400, 800), "orange"), tmp_path / "plain.png")
    with Image.open(tmp_path / "plain.png") as plain:
        assert plain.size == (1200, 400)
    noise = Image.effect_noise((1200, 1200), 100).convert("RGB")
    with pytest.raises(capture.CaptureError, match="noise.png does not fit"):
        capture.save_picture(noise, tmp_path / "noise.png")


def test_tensorboard_ends_with_its_block(run_dir):
    with pytest.raises(KeyboardInterrupt):
        with capture.start_tensorboard(run_dir.parent) as url:
            raise KeyboardInterrupt
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)


def test_what_is_no_finished_run_is_refused(tmp_path, capsys):
    with SummaryWriter(tmp_path / "begun") as writer:
        viz.add_training_loss(writer, 1.0, step=1)
    for name in (".", "begun", "none"):
        assert capture.main([str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("is not the folder of a finished run")


def test_a_missing_playwright_is_said_in_one_line(tmp_path):
    (tmp_path / "playwright.py").write_text("raise ModuleNotFoundError")  # as if not installed
    result = subprocess.run(
        [sys.executable, ROOT / "screenshots" / "capture.py", tmp_path],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("capture.py: error: ") and "pip install" in line
