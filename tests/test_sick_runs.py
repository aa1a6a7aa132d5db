"""docs/sick-runs.md beside what was measured; its signs in small real runs and in TensorBoard."""

import json
import re
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import figures
import numpy as np
import pytest
import sick_runs
from conftest import ROOT, call_main, read_scalars, run_tiny, settings
from pages import CODE, draw_nothing, find_table, read_page
from PIL import Image

import viz

RESULTS = json.loads(sick_runs.RESULTS.read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------- commands and figures


@pytest.mark.parametrize("name", ["docs/sick-runs.md", "docs/sick-runs.zh-CN.md"])
def test_the_page_is_about_the_runs_that_were_measured(name):
    page = read_page(name)
    code = "".join(block.code for block in page.blocks)
    assert RESULTS["runs"] == sick_runs.RUNS
    assert re.findall("^python train_cifar.py .*", code, re.M) == [
        f"python train_cifar.py {settings} --run-name {name}"
        for name, settings in (sick_runs.RUNS | {"by-heart": sick_runs.BY_HEART}).items()
    ]
    (quoted,) = (block.code for block in page.blocks if block.language == "text")
    assert quoted == RESULTS["photographs"]["exploding"]["0"]["said"]
    for (first, *cells), run in zip(find_table([page], "too-low"), sick_runs.RUNS, strict=True):
        assert CODE.findall(first) == [run]
        paths = [path for cell in cells for _, _, path in figures.FIGURE.findall(cell)]
        assert paths and all(path.split(".")[1] == run for path in paths), run


@pytest.mark.parametrize("kind", ["photographs", "shapes"])
def test_all_was_measured_and_every_sign_was_seen_more_often_than_not(kind):
    seeds = RESULTS[kind]["seeds"]
    for name in sick_runs.RUNS:
        measured = RESULTS[kind][name]
        assert measured["runs"] == seeds >= 3
        assert measured["seen"] > seeds / 2, name


# ------------------------------------------------------------------------- signs in small real runs

TINY = {  # name: settings that make a run on the tiny images sick in the same way
    "dead": "--lr 1 --epochs 1",
    "overfit": "--wrong-labels 0.5 --train-images 10 --batch-size 1 --epochs 10",
    "wrong-labels": "--wrong-labels 0.3 --epochs 3",
}
EXPLODING = {"after its first report": "--lr 1e6 --report-every 8", "before it": "--lr 1e9"}


@pytest.fixture(scope="module")
def log_dir(image_folder, tiny_run, tmp_path_factory) -> Path:
    """A folder with a small run for each entry of TINY, and a healthy one."""
    log_dir = tmp_path_factory.mktemp("sick")
    shutil.copytree(tiny_run, log_dir / "healthy")
    with pytest.MonkeyPatch.context() as patch:
        for name, words in TINY.items():
            run_tiny(image_folder, log_dir, "--run-name", name, *words.split())
            draw_nothing(patch)  # of those after the first one, which is pictured below
    return log_dir


def test_figures_and_signs_are_those_of_the_run(log_dir):
    scalars = read_scalars(log_dir / "healthy")
    healthy = sick_runs.figures(log_dir / "healthy")
    assert (healthy["steps"], healthy["training_loss"]) == scalars["training loss"][-1]
    assert healthy["test_accuracy"] == scalars["test/accuracy"][-1][1]
    assert healthy["lowest_test_loss"] == min(loss for _, loss in scalars["test/loss"])
    assert healthy["lowest_test_loss_epoch"] == 2
    assert 0 < healthy["conv1_gradient"] < healthy["gradient_norm"]
    for name in ("dead", "overfit"):
        assert sick_runs.SIGNS[name](sick_runs.figures(log_dir / name), healthy), name
        assert not sick_runs.SIGNS[name](healthy, healthy), name


def test_an_exploding_run_is_stopped(image_folder, tmp_path, monkeypatch, capsys):
    draw_nothing(monkeypatch)
    for name, words in EXPLODING.items():
        status = call_main(*settings(image_folder, tmp_path, "--run-name", name, *words.split()))
        assert status == 1 and "the loss became nan" in capsys.readouterr().err
    found = sick_runs.figures(tmp_path / "after its first report")
    assert sick_runs.SIGNS["exploding"](found, {})
    assert found["loss_digits"] == len(str(int(found["highest_training_loss"])))
    assert sick_runs.figures(tmp_path / "before it") == {}
    healthy = {"test_accuracy": 0.5}
    assert not [name for name in sick_runs.SIGNS if sick_runs.is_seen(name, {}, healthy)]


def test_the_surest_mistakes_are_those_of_the_labels(log_dir):
    found = sick_runs.compare_labels(log_dir / "wrong-labels")
    assert found["mislabelled_of_8_mistakes"] >= 6
    assert 0 < found["mislabelled_of_16_images"] < 10
    assert found["right_labels_accuracy"] > 0.6
    right = sick_runs.compare_labels(log_dir / "healthy")
    assert right["mislabelled_of_8_mistakes"] == right["mislabelled_of_16_images"] == 0


def test_signs_failures_and_ranges_are_counted_over_the_seeds():
    measured = {}
    for name, lowest in (("healthy", 1.0), ("overfit", 0.9)):
        for seed in range(4):
            found = {"test_loss": 1.0 + seed, "lowest_test_loss": lowest, "said": ""}
            measured[f"shapes {name} {seed}"] = found | {"status": seed % 2}
    results = sick_runs.summarise(measured)
    healthy, overfit = (results["shapes"][name] for name in ("healthy", "overfit"))
    assert (healthy["seen"], overfit["seen"]) == (1, 3)
    assert healthy["failed"] == overfit["failed"] == 2
    assert overfit["0"]["test_loss"] == 1.0
    assert [overfit["test_loss"][key] for key in figures.OVER_SEEDS] == [2.5, 1.0, 4.0]


def test_event_files_are_kept_of_the_pictured_runs_only(tmp_path):
    kinds, seeds = {"photographs": "images", "shapes": "shapes"}, {"photographs": 5, "shapes": 3}
    found = sick_runs.tasks(kinds, seeds, tmp_path)
    assert next(iter(found)) == "photographs by-heart 0"  # as COMMANDS has them
    for name in sick_runs.COMMANDS:
        once = name in sick_runs.HEARTS
        assert sum(task.split()[1] == name for task in found) == (1 if once else 8)
    kept = {task for task, do in found.items() if do.args[-1]}
    assert kept == {f"photographs {name} 0" for name in sick_runs.COMMANDS}
    assert found["shapes dead 2"].args == ("dead", "shapes", 2, tmp_path / "shapes/seed-2", False)


def test_a_run_that_is_refused_or_killed_ends_the_measurement(monkeypatch, tmp_path):
    for status in (2, -15):
        done = subprocess.CompletedProcess([], status, "", "why\n")
        monkeypatch.setattr(sick_runs.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(SystemExit, match=f"dead: ended with status {status}: why"):
            sick_runs.run("dead", "shapes", 0, tmp_path)


# ----------------------------------------------------------------------------- signs in TensorBoard


@pytest.fixture(scope="module")
def capture(browser):
    """The module that makes the pictures: it can be imported where there is a browser."""
    import capture

    return capture


@pytest.fixture(scope="module")
def url(capture, log_dir):
    with capture.start_tensorboard(log_dir) as url:
        yield url


@pytest.fixture
def tab(capture, browser):
    with capture.new_page(browser) as tab:
        yield tab


def heights(path) -> list[float]:
    """How high the points of an SVG path stand, from the top of the picture downwards."""
    return [float(y) for y in re.findall(r"[ML][^,]+,([^LM]+)", path.get_attribute("d"))]


def test_the_test_loss_of_an_overfit_run_ends_above_its_lowest_point(capture, tab, url):
    (names,), (cards,) = capture.charts(tab, url, "overfit", "training loss|test/loss")
    assert "overfit" in " ".join(names.all_inner_texts())
    test, training = (
        heights(cards.filter(has_text=f"tag: {tag}").locator("path.line[d*=L]"))
        for tag in ("test/loss", "training loss")
    )
    assert max(test) - test[-1] > 50  # pixels, counted from the top: it has climbed again
    assert training[-1] > training[0]  # it has fallen


def test_the_gradients_of_a_dead_run_are_a_needle(capture, tab, url):
    cards = capture.histograms_of(tab, url, "dead|healthy", "gradients/conv1.weight")
    wide = {}
    for name in ("dead", "healthy"):
        points = heights(cards.filter(has_text=name).locator("g.histogram path").last)
        wide[name] = sum(y < max(points) for y in points)
    assert wide["dead"] == 1 and wide["healthy"] > 5


def test_a_dead_run_predicts_one_class(capture, tab, url):
    cards = capture.images_of(tab, url, "dead|healthy", "test/confusion matrix")
    columns = {}
    for name in ("dead", "healthy"):
        source = cards.filter(has_text=name).locator("img").evaluate("image => image.src")
        pixels = np.asarray(Image.open(BytesIO(tab.request.get(source).body())).convert("RGB"))
        blue = abs(pixels - 255 * viz.BLUE.numpy()).max(axis=2) < 2  # all images of their class
        columns[name] = blue.any(axis=0).sum() / 44  # pixels of a cell
    assert columns == {"dead": 1, "healthy": 3}


def test_every_run_is_a_row_and_a_line(capture, tab, url):
    table = capture.table(tab, url, "")
    for name in ("healthy", *TINY):
        capture.expect(table.filter(has_text=re.compile(rf"^\s*{name}\s*$"))).to_have_count(1)
    plot = capture.parallel_coordinates(tab, url, "")
    assert plot.locator(".foreground path").count() == 1 + len(TINY)


def test_pictures_are_those_of_the_pages_and_need_their_own_runs_only(
    capture, log_dir, tmp_path, capsys
):
    for folder, only, runs in (
        (tmp_path / "none", [], "augmented, big-batch"),
        (log_dir, ["--only", "sick/restless_loss"], "healthy, restless, restless-cured:"),
    ):
        assert capture.main(["--compare", str(folder), "--out", str(tmp_path), *only]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"capture.py: error: {str(folder)!r} lacks runs of {runs}")
    with capture.copies_of([log_dir / "dead", log_dir / "healthy"]) as folder:
        assert {path.name for path in folder.iterdir()} == {"dead", "healthy"}
    assert not folder.exists()
    assert capture.SICK.split("|") == list(sick_runs.RUNS)
    files = ROOT.glob("screenshots/*/*.png")
    assert {*capture.COMPARISONS} == {f"{path.parent.name}/{path.stem}" for path in files}
