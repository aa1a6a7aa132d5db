"""docs/sick-runs.md beside what was measured; its signs in small real runs and in TensorBoard."""

import json
import re
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import read_scalars, run_tiny
from PIL import Image
from test_readme import (
    CODE,
    COMMENT,
    FIGURE,
    MAX_PICTURE_BYTES,
    QUANTITY,
    SETTINGS,
    TENSORBOARD_FLAGS,
    TRANSLATED,
    UNITS,
    Page,
    Reader,
    anchor,
    codes,
    look_up,
    number_repeated,
    titles,
)

import train_cifar
import viz

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "screenshots")]
import sick_runs  # noqa: E402

ENGLISH, CHINESE = "docs/sick-runs.md", "docs/sick-runs.zh-CN.md"
SLOWEST_S, PAGE_S = 60, 480  # what the page promises: a minute each; and 8 minutes all together
QUANTITIES = {  # that do not come from the runs, and what they are
    ("10", "%"): "the accuracy and the precision by chance, with ten classes",
    (
        "60",
        "%",
    ): "100 % less the share of wrong labels: see test_quantities_follow_from_the_commands",
}


@pytest.fixture(params=[ENGLISH, CHINESE])
def page(request) -> Page:
    """The page in each language."""
    return Page(request.param)


@pytest.fixture
def both() -> tuple[Page, Page]:
    """The page in both languages."""
    return Page(ENGLISH), Page(CHINESE)


@pytest.fixture(scope="module")
def results() -> dict:
    """What `python benchmarks/sick_runs.py --data FOLDER --write` measured."""
    return json.loads(sick_runs.RESULTS.read_text(encoding="utf-8"))


# ----------------------------------------------------------------------------- commands and figures


def test_the_page_prints_the_commands_that_are_measured(page, results):
    printed = [
        line
        for block in page.blocks
        for line in block.code.splitlines()
        if line.startswith("python train_cifar.py")
    ]
    assert printed == [
        f"python train_cifar.py {settings} --run-name {name}"
        for name, settings in sick_runs.RUNS.items()
    ]
    assert results["runs"] == sick_runs.RUNS


def test_every_command_is_understood_by_its_program(page, monkeypatch):
    reader = Reader(monkeypatch)
    for block in page.blocks:
        assert block.language in ("bash", "text")
        if block.language == "bash":
            for line in block.code.splitlines():
                reader.read_line(line)
    for code in page.codes:
        if code.split()[0] in reader.programs:
            reader.read_line(code)
        else:
            flags = re.findall(r"(?<!\S)--[\w-]+", code)
            assert set(flags) <= set(SETTINGS) | TENSORBOARD_FLAGS, code


def test_what_the_program_says_is_quoted_word_for_word(page, results):
    (quoted,) = (block.code for block in page.blocks if block.language == "text")
    assert quoted == results["photographs"]["exploding"]["0"]["said"]


def test_figures_are_those_that_were_measured(page, results):
    assert sick_runs.fill_in(page.text, results) == page.text
    for _, unit, path in page.figures:
        assert look_up(results, path) is not None, path
        ending = path[path.rfind("_") :] if "_" in path else ""
        assert unit == UNITS.get(ending, ""), path


def test_other_quantities_are_known(page):
    text = CODE.sub("", COMMENT.sub("", FIGURE.sub("", page.prose)))
    found = {(number, TRANSLATED.get(unit, unit)) for number, unit in QUANTITY.findall(text)}
    assert found == set(QUANTITIES)


def test_quantities_follow_from_the_commands():
    args = train_cifar.parse_args(sick_runs.RUNS["wrong-labels"].split())
    assert 1 - args.wrong_labels == 0.6


def test_all_was_measured_on_both_kinds_of_images(results):
    assert results["seeds"] >= 3
    for kind in ("photographs", "shapes"):
        for name in sick_runs.RUNS:
            by_seed = results[kind][name]
            assert sum(key.isdigit() for key in by_seed) == results["seeds"]
            assert by_seed["0"]["run_s"] < SLOWEST_S, (kind, name)
        assert results[kind]["page_s"] < PAGE_S


def test_every_sign_was_seen_more_often_than_not(results):
    for kind in ("photographs", "shapes"):
        for name in sick_runs.RUNS:
            assert results[kind][name]["seen"] > results["seeds"] / 2, (kind, name)


def test_the_table_has_every_run_with_its_own_figures(page):
    rows = page.table("11")
    assert [codes(name) for name, *_ in rows] == [[name] for name in sick_runs.RUNS]
    for (name, *cells), run in zip(rows, sick_runs.RUNS, strict=True):
        paths = [path for cell in cells for _, _, path in FIGURE.findall(cell)]
        assert paths and all(path.split(".")[1] == run for path in paths), name


# ------------------------------------------------------------------------------- pictures and links


def test_every_picture_is_shown_and_small(page):
    shown = [target for _, target in page.pictures]
    files = ROOT.glob("screenshots/sick/*.png")
    assert sorted(shown) == sorted(f"../screenshots/sick/{path.name}" for path in files)
    assert all(alt for alt, _ in page.pictures)
    for target in shown:
        assert (ROOT / "docs" / target).stat().st_size < MAX_PICTURE_BYTES


def test_links_lead_somewhere(page):
    anchors = number_repeated(anchor(title) for title in titles(page))
    for link in page.links:
        target, _, place = link.partition("#")
        if target:
            assert (ROOT / "docs" / target).is_file(), link
        else:
            assert place in anchors, link


def test_both_languages_have_the_same_sections_code_pictures_figures_and_tables(both):
    english, chinese = both
    assert [heading[:2] for heading in english.headings] == [
        heading[:2] for heading in chinese.headings
    ]
    assert english.blocks == chinese.blocks
    assert [target for _, target in english.pictures] == [target for _, target in chinese.pictures]
    assert Counter(english.figures) == Counter(chinese.figures)
    sizes = [
        [(table.section, [len(row) for row in table.rows]) for table in one.tables] for one in both
    ]
    assert sizes[0] == sizes[1]


def test_each_language_leads_to_the_other_and_to_its_readme(both):
    english, chinese = both
    assert {Path(CHINESE).name, "../README.md"} <= set(english.links)
    assert {Path(ENGLISH).name, "../README.zh-CN.md"} <= set(chinese.links)


def test_headings_and_pictures_are_described_in_the_language_of_the_page(page):
    texts = [title for _, _, title in page.headings] + [alt for alt, _ in page.pictures]
    chinese = [text for text in texts if re.search(r"[\u4e00-\u9fff]", text)]
    assert chinese == (texts if page.name == CHINESE else [])


# ------------------------------------------------------------------------- signs in small real runs

TINY = {  # name: settings that make a run on the tiny images sick in the same way
    "healthy": [],
    "dead": ["--lr", "1"],
    "too-low": ["--lr", "1e-6"],
    "overfit": "--wrong-labels 0.5 --train-images 10 --batch-size 1 --epochs 10".split(),
    "wrong-labels": ["--wrong-labels", "0.3", "--epochs", "3"],
}


@pytest.fixture(scope="module")
def log_dir(image_folder, tmp_path_factory) -> Path:
    """A folder with a small run for each entry of TINY."""
    log_dir = tmp_path_factory.mktemp("sick")
    for name, settings in TINY.items():
        run_tiny(image_folder, log_dir, "--run-name", name, *settings)
    return log_dir


def test_figures_of_a_run_are_those_of_its_event_file(log_dir):
    scalars = read_scalars(log_dir / "healthy")
    found = sick_runs.figures(log_dir / "healthy")
    assert (found["steps"], found["training_loss"]) == scalars["training loss"][-1]
    assert found["test_accuracy"] == scalars["test/accuracy"][-1][1]
    assert found["lowest_test_loss"] == min(loss for _, loss in scalars["test/loss"])
    assert found["lowest_test_loss_epoch"] == 2
    assert 0 < found["conv1_gradient"] < found["gradient_norm"]


def test_signs_are_seen_in_the_sick_run_and_not_in_the_healthy_one(log_dir):
    figures = {name: sick_runs.figures(log_dir / name) for name in TINY}
    healthy = figures["healthy"]
    for name in ("dead", "overfit"):
        assert sick_runs.SIGNS[name](figures[name], healthy), name
        assert not sick_runs.SIGNS[name](healthy, healthy), name
    assert figures["too-low"]["conv1_gradient"] > 0 and figures["dead"]["conv1_gradient"] == 0


def test_a_run_that_fails_before_its_first_report_has_shown_no_sign(image_folder, tmp_path):
    words = ["--data", image_folder, "--log-dir", tmp_path, "--run-name", "early", "--lr", "1e9"]
    assert train_cifar.main([str(word) for word in words]) == 1
    found = sick_runs.figures(tmp_path / "early")
    assert found == {}
    for name in sick_runs.SIGNS:
        assert not sick_runs.is_seen(name, found, {"test_accuracy": 0.5})


def test_an_exploding_run_is_stopped_after_its_loss_was_reported(image_folder, tmp_path, capsys):
    words = ["--data", image_folder, "--log-dir", tmp_path, "--run-name", "exploding"]
    words += ["--batch-size", "8", "--report-every", "8", "--lr", "1e6"]
    assert train_cifar.main([str(word) for word in words]) == 1
    assert "the loss became nan" in capsys.readouterr().err
    found = sick_runs.figures(tmp_path / "exploding")
    assert sick_runs.SIGNS["exploding"](found, {})
    assert found["loss_digits"] == len(str(int(found["highest_training_loss"])))


def test_the_surest_mistakes_are_those_of_the_labels(log_dir):
    found = sick_runs.compare_labels(log_dir / "wrong-labels")
    assert found["mislabelled_of_8_mistakes"] >= 6
    assert 0 < found["mislabelled_of_16_images"] < 10
    assert found["right_labels_accuracy"] > 0.6
    right = sick_runs.compare_labels(log_dir / "healthy")
    assert right["mislabelled_of_8_mistakes"] == right["mislabelled_of_16_images"] == 0


def test_signs_and_failures_are_counted_over_the_seeds(monkeypatch, tmp_path):
    def run(name: str, data: str, seed: int, log_dir: Path) -> dict:
        assert (data, log_dir) == ("shapes", tmp_path / f"seed-{seed}")
        low = {"healthy": 1.0, "overfit": 0.9}.get(name, 0.5)
        return {"test_loss": 1.0 + seed, "lowest_test_loss": low, "run_s": 2.0, "status": seed % 2}

    monkeypatch.setattr(sick_runs, "run", run)
    monkeypatch.setattr(sick_runs, "RUNS", {name: "" for name in ("healthy", "overfit")})
    results = sick_runs.run_all("shapes", range(4), tmp_path)
    assert (results["healthy"]["seen"], results["overfit"]["seen"]) == (1, 3)
    assert results["healthy"]["failed"] == results["overfit"]["failed"] == 2
    assert results["overfit"]["2"]["test_loss"] == 3.0
    assert (results["page_s"], results["total_s"]) == (4.0, 16.0)


@pytest.mark.parametrize("status", [2, -15])
def test_a_run_that_is_refused_or_killed_ends_the_measurement(monkeypatch, tmp_path, status):
    done = subprocess.CompletedProcess([], status, "", "why\n")
    monkeypatch.setattr(sick_runs.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SystemExit, match=f"dead: ended with status {status}: why"):
        sick_runs.run("dead", "shapes", 0, tmp_path)


def test_a_figure_is_filled_in_with_as_many_digits_as_before():
    page = "ends at 1.0 %<!-- figure: a.b_accuracy -->, not 12<!-- figure: a.steps -->"
    filled = sick_runs.fill_in(page, {"a": {"b_accuracy": 0.4567, "steps": 4689.0}})
    assert (
        filled == "ends at 45.7 %<!-- figure: a.b_accuracy -->, not 4,689<!-- figure: a.steps -->"
    )


# ----------------------------------------------------------------------------- signs in TensorBoard


@pytest.fixture(scope="module")
def sick():
    """The module that makes the pictures."""
    pytest.importorskip("playwright.sync_api", reason="needs tests/requirements.txt")
    import sick

    return sick


@pytest.fixture(scope="module")
def browser(sick):
    try:
        with sick.capture.open_browser() as browser:
            yield browser
    except sick.CaptureError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def url(sick, browser, log_dir):
    with sick.capture.start_tensorboard(log_dir) as url:
        yield url


@pytest.fixture
def tab(sick, browser):
    with sick.capture.new_page(browser) as tab:
        yield tab


def heights(path) -> list[float]:
    """How high the points of an SVG path stand, from the top of the picture downwards."""
    return [float(y) for y in re.findall(r"[ML][^,]+,([^LM]+)", path.get_attribute("d"))]


def test_the_pictures_are_those_of_the_page(sick):
    files = {path.stem for path in ROOT.glob("screenshots/sick/*.png")}
    assert set(sick.PICTURES) == files


def test_the_test_loss_of_an_overfit_run_ends_above_its_lowest_point(sick, tab, url):
    names, cards = sick.charts(tab, url, "overfit", "training loss|test/loss")
    assert "overfit" in " ".join(names.all_inner_texts())
    test, training = (
        heights(cards.filter(has_text=f"tag: {tag}").locator("path.line[d*=L]"))
        for tag in ("test/loss", "training loss")
    )
    assert max(test) - test[-1] > 50  # pixels, counted from the top: it has climbed again
    assert training[-1] > training[0]  # it has fallen


def test_the_gradients_of_a_dead_run_are_a_needle(sick, tab, url):
    (cards,) = sick.histograms(tab, url, "dead|healthy", "gradients/conv1.weight")
    wide = {}
    for name in ("dead", "healthy"):
        last = cards.filter(has_text=name).locator("g.histogram path").last
        points = heights(last)
        wide[name] = sum(y < max(points) for y in points)
    assert wide["dead"] == 1 and wide["healthy"] > 5


def test_a_dead_run_predicts_one_class(sick, tab, url):
    (cards,) = sick.images(tab, url, "dead|healthy", "test/confusion matrix")
    columns = {}
    for name in ("dead", "healthy"):
        source = cards.filter(has_text=name).locator("img").evaluate("image => image.src")
        pixels = np.asarray(Image.open(BytesIO(tab.request.get(source).body())).convert("RGB"))
        blue = abs(pixels - 255 * viz.BLUE.numpy()).max(axis=2) < 2  # all images of their class
        columns[name] = blue.any(axis=0).sum() / 44  # pixels of a cell
    assert columns == {"dead": 1, "healthy": 3}


def test_every_run_is_a_row_and_a_line(sick, tab, url):
    (table,) = sick.table(tab, url)
    for name in TINY:
        sick.capture.expect(table.filter(has_text=re.compile(rf"^\s*{name}\s*$"))).to_have_count(1)
    (plot,) = sick.parallel_coordinates(tab, url)
    assert plot.locator(".foreground path").count() == len(TINY)


def test_parts_are_joined_from_left_to_right(sick):
    parts = [Image.new("RGB", (3, 2), "red"), Image.new("RGB", (2, 4), "blue")]
    pixels = np.asarray(sick.side_by_side(parts))
    assert pixels.shape == (4, 5, 3)
    assert (pixels[:2, :3] == (255, 0, 0)).all() and (pixels[:, 3:] == (0, 0, 255)).all()
    assert (pixels[2:, :3] == 255).all()


def test_a_folder_without_runs_is_refused(sick, tmp_path, capsys):
    assert sick.main([str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"sick.py: error: {str(tmp_path / 'none')!r} lacks runs of *")


def test_a_picture_needs_its_own_runs_only(sick, log_dir, tmp_path, capsys):
    assert sick.main([str(log_dir), "--out", str(tmp_path), "--only", "restless_loss"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "runs of healthy, restless, restless-cured:" in line
    with sick.folder_of("dead|healthy", log_dir) as folder:
        assert {path.name for path in folder.iterdir()} == {"dead", "healthy"}
    assert not folder.exists()
    with sick.folder_of(sick.ALL, log_dir) as folder:
        assert folder == log_dir
