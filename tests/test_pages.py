"""All pages against the program: excerpts, commands, flags, figures, names, pictures, links."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import figures
import pytest
from conftest import ROOT, read_events, read_scalars
from pages import (
    CHINESE,
    CODE,
    COMMENT,
    ENGLISH,
    SETTINGS,
    Page,
    Reader,
    anchor,
    anchors,
    defined,
    find_table,
    read_page,
    sources,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import data
import train_cifar
from support import cifar10, mirrors, processes, shapes
from support.errors import InputError
from support.profiler import TRACE_NAME

MAX_LINES = {"README.md": 450, "README.zh-CN.md": 450}  # of the others 600
MAX_PICTURE_BYTES, MAX_MOVIE_BYTES = 300_000, 1_500_000
TENSORBOARD_FLAGS = {"--port", "--samples_per_plugin"}  # named in the text

QUANTITY = re.compile(
    r"(\d[\d,.]*) ?(%|s|ms|[kMG]B|seconds?|minutes?|hours?|秒|分钟|小时)(?![A-Za-z])"
)
TRANSLATED = {"秒": "seconds", "分钟": "minutes", "小时": "hours"}
QUANTITIES = {  # that were not measured by a benchmark, and what they are
    ("163", "MB"): "the archive of CIFAR-10: see test_quantities_of_the_text_are_the_programs",
    ("30", "seconds"): "the download's patience: the same test",
    ("5", "seconds"): "how often TensorBoard looks for new data: the same test",
    ("120", "s"): "how long a step waits for another process: the same test",
    ("60", "%"): "100 % less the share of wrong labels: the same test",
    ("6", "GB"): "PyTorch and its CUDA packages, by `du` of a fresh environment",
    ("0.35", "GB"): "the archive and the unpacked files of CIFAR-10",
    ("1", "%"): "viz.add_confusion_matrix writes no smaller share into its cells",
    ("4", "MB"): "the folder of a default run, by `du`",
    ("78", "%"): "an example of what smoothing does to the accuracy on the shapes",
    ("10", "%"): "the accuracy and the precision by chance, with ten classes",
}


@pytest.fixture(params=[*ENGLISH, *CHINESE])
def page(request) -> Page:
    """Each page in each language."""
    return read_page(request.param)


@pytest.fixture(params=zip(ENGLISH, CHINESE, strict=True), ids=ENGLISH)
def both(request) -> list[Page]:
    """Each page in both languages."""
    return [read_page(name) for name in request.param]


@pytest.fixture(params=[ENGLISH, CHINESE], ids=["English", "Chinese"])
def pages(request) -> list[Page]:
    """All pages of a language, the README first."""
    return [read_page(name) for name in request.param]


@pytest.fixture
def reader(monkeypatch) -> Reader:
    return Reader(monkeypatch)


@pytest.fixture(scope="module")
def results() -> list[dict]:
    """What was measured, for all pages."""
    return figures.load_results()


# ------------------------------------------------------------------------------------------ code


def test_page_can_be_read_in_one_go(page):
    assert page.text.count("\n") <= MAX_LINES.get(page.name, 600)


def test_every_block_and_comment_is_of_a_kind_that_is_checked(page):
    known = {"python", "bash", "powershell", "text", "diff"}
    assert {block.language for block in page.blocks} <= known
    assert page.text.count("```") == 2 * len(page.blocks)
    others = [text for text in COMMENT.findall(page.text) if not text.startswith("figure: ")]
    assert others == [block.marker for block in page.blocks if block.marker]
    assert page.text.count("<!--") == len(others) + len(page.figures)


def test_excerpts_stand_word_for_word_in_the_source(page):
    excerpts = [b.code for b in page.blocks if b.language == "python" and not b.marker]
    excerpts += [old_lines(b.code) for b in page.blocks if b.language == "diff"]
    assert excerpts or page.name not in ("README.md", "README.zh-CN.md")
    assert [code for code in excerpts if code.startswith(" ") or not is_excerpt(code)] == []


def old_lines(diff: str) -> str:
    """What a diff changes, as it was before."""
    return textwrap.dedent("".join(f"{line[1:]}\n" for line in diff.splitlines() if line[0] != "+"))


def is_excerpt(code: str) -> bool:
    """Whether the lines stand in a source file, all of them indented by as much more."""
    indented = [textwrap.indent(code, " " * depth) for depth in range(0, 24, 4)]
    return any(f"\n{lines}" in f"\n{text}" for text in sources().values() for lines in indented)


@pytest.fixture(scope="module")
def marked() -> dict[str, list[str]]:
    """The code of the blocks that run as they stand, by their marker, of all pages."""
    found: dict = {}
    for block in (block for name in ENGLISH for block in read_page(name).blocks):
        found.setdefault(block.marker, []).append(block.code)
    return found


RUNS = [("first",), ("first-again", "--seed", "1"), ("other", "--lr", "0.01")]


@pytest.fixture(scope="module")
def short_walk(marked, tmp_path_factory) -> Path:
    """A folder in which the short program of the pages was run, with fewer shapes, and RUNS."""
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(ROOT / "docs", folder / "docs")
    (program,) = marked["runs"]
    draw = shapes.draw_shapes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "draw_shapes", lambda count, seed: draw(count // 500, seed))
        patch.setattr(data, "read_cifar10", no_network)
        patch.chdir(folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit")
            run(program.replace("% 2000", "% 8"))
        for name, *more in RUNS:
            words = ["--data", "shapes", "--run-name", name, "--epochs", "1", *more]
            assert train_cifar.main(words) == 0
    return folder


def run(code: str) -> None:
    exec(compile(code, "page", "exec"), {"__name__": __name__})


def no_network(*_: object) -> None:
    raise InputError("no mirror answers")


def test_the_short_program_runs_as_printed_and_shows_the_notes_views(short_walk):
    run_dir = short_walk / "runs" / "short"
    events = read_events(run_dir)
    views = {"training images", "training loss", "predictions vs. actuals"}
    curves = {f"pr curve/{name}" for name in shapes.CLASSES}
    assert set(events) - {"__run_graph__", "step1"} == views | curves
    assert [step for step, _ in events["training loss"]] == [*range(8, 50, 8), 50]  # the last, too
    assert EventAccumulator(str(run_dir)).Reload().Tags()["graph"]


def test_the_views_run_in_a_foreign_training(marked, tmp_path):
    """With nothing of ours beside it but viz.py."""
    (program,) = marked["runs alone"]
    shutil.copy(ROOT / "viz.py", tmp_path)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    views = {"weights/1.weight", "gradients/1.weight", "predictions vs. actuals"}
    assert views <= set(read_events(tmp_path / "runs" / "mine"))


def test_blocks_about_a_finished_run_run_as_printed(marked, short_walk, monkeypatch, capsys):
    monkeypatch.chdir(short_walk)
    picture, table = marked["runs after first"]
    run(picture)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(re.fullmatch(r"\w+: \d+\.\d%", line) for line in lines)
    assert {line.split(":")[0] for line in lines} <= set(shapes.CLASSES)
    resume_after_an_hour(Path("runs/first"), monkeypatch)
    run(table)
    _, _, row, other = capsys.readouterr().out.splitlines()
    accuracies = {
        name: read_scalars(Path("runs") / name)["test/accuracy"][-1][1] for name, *_ in RUNS
    }
    low, high = sorted(accuracies[name] for name in ("first", "first-again"))
    mean = (low + high) / 2
    assert row.startswith(f"| first, first-again | 0.001 | {mean:.1%} ({low:.1%} to {high:.1%}) | ")
    assert float(row.split(" | ")[-1].strip(" |")) < 30  # minutes: the mean would be above
    assert other.startswith(f"| other | 0.01 | {accuracies['other']:.1%} | ")


def resume_after_an_hour(run_dir: Path, monkeypatch) -> None:
    later = time.time() + 3600
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        with SummaryWriter(run_dir) as writer:
            writer.add_scalar("training progress/speed", 1.0, 26)


# -------------------------------------------------------------------------- commands and flags


def test_every_command_is_understood_by_its_program(pages, reader, results):
    """The README comes first: it makes the run that other pages speak of."""
    for page in pages:
        for line in command_lines(page, results):
            reader.read_line(line)
        for code in filter(reader.is_command, page.codes):
            reader.read_line(code)
    assert "runs/first" in reader.runs


def command_lines(page: Page, results: list[dict]) -> Iterator[str]:
    """The lines of the blocks of commands; what a measured run has said is no command."""
    said = json.dumps(results)
    for block in page.blocks:
        is_quote = block.language == "text" and json.dumps(block.code) in said
        if block.language in ("bash", "powershell", "text") and not is_quote:
            yield from filter(None, block.code.splitlines())


def test_every_flag_named_in_the_text_exists(page, reader):
    for code in page.codes:
        if not reader.is_command(code):
            flags = re.findall(r"(?<!\S)--[\w-]+", code)
            assert set(flags) <= set(SETTINGS) | TENSORBOARD_FLAGS, code
    outside = CODE.sub("", COMMENT.sub("", page.prose))
    assert re.findall(r"--[A-Za-z]\S*", outside) == []  # flags stand in backticks


def test_what_is_not_known_is_refused(reader):
    """The checks above can fail: an unknown program, flag, file, run or piece of shell."""
    wrong = [
        "conda install torch",
        "python train_cifar.py --learning-rate 1",
        "python train_cifar.py | tee log",
        "python train_cifar.py && rm -r runs",
        "python train_cifar.py --resume runs/unknown",
        "python screenshots/capture.py runs/unknown",
        "torchrun --nproc_per_node=3 train_cifar.py --batch-size 64",
        "torchrun --processes=2 train_cifar.py --batch-size 64",
        "python -m tensorboard.main --logdir runs --unknown 1",
        "python benchmarks/compare.py --slow",
        "python benchmarks/missing.py",
        "pip install -r missing.txt",
        "ssh -L 6007:localhost:6007 you@remote",
    ]
    for line in wrong:
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            reader.read_line(line)


def test_settings_table_has_every_flag_with_its_default(pages):
    shown = {}
    for flags, defaults, _ in find_table(pages, "--run-name"):
        values = re.split(r", |、", defaults)
        shown |= dict(zip(CODE.findall(flags), values, strict=True))
    assert {flag: default_as_text(flag, pages[0].is_chinese) for flag in SETTINGS} == shown


def default_as_text(flag: str, chinese: bool) -> str:
    """A default as the table gives it."""
    value = SETTINGS[flag]
    if flag == "--run-name":
        return "当前时间" if chinese else "the time"
    if value is False:
        return "关" if chinese else "off"
    return "" if value in (None, []) else str(value)


def test_tensorboards_flags_that_the_text_names_exist(reader):
    known = vars(reader.tensorboard(["--logdir", "runs"]))
    assert {flag.removeprefix("--") for flag in TENSORBOARD_FLAGS} <= set(known)


# --------------------------------------------------------------------------------------- figures


def test_figures_are_those_that_were_measured(page, results):
    """Rounded to as many digits as the page shows; " %" is a share times 100."""
    filled = figures.fill_in(page.text, results)
    shown, measured = (figures.FIGURE.findall(text) for text in (page.text, filled))
    assert [pair for pair in zip(shown, measured, strict=True) if pair[0] != pair[1]] == []


def test_a_figure_is_filled_in_with_as_many_digits_as_before():
    found = figures.over_seeds({"0": 0.5, "1": 0.54, "2": 0.53})
    results = [{"a": {"b_accuracy": found, "twice": 1}}, {"a": {"steps": 4689.0, "twice": 2}}]
    page = "1.0 %<!-- figure: a.b_accuracy.median --> (2<!-- figure: a.b_accuracy.low --> to 3), 1"
    filled = COMMENT.sub("", figures.fill_in(f"{page}<!-- figure: a.steps -->", results))
    assert filled == "53.0 % (50 to 3), 4,689"
    for unknown in ("a.twice", "a.c"):
        with pytest.raises(KeyError, match=f"{unknown} is in . files"):
            figures.fill_in(f"1<!-- figure: {unknown} -->", results)


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path):
    tasks, done = {}, []
    for name in "abc":
        tasks[name] = lambda name=name: done.append(name) or {"is": name}

    def fail() -> dict:
        raise SystemExit("killed")

    with pytest.raises(SystemExit, match="killed"):
        figures.measure_all(tasks | {"b": fail}, tmp_path / "done", jobs=1)
    before = len(done)
    found = figures.measure_all(tasks, tmp_path / "done", jobs=2)
    assert found == {name: {"is": name} for name in "abc"}
    assert before and sorted(done) == ["a", "b", "c"]


def test_figures_have_the_unit_of_their_measure(page):
    for _, unit, path in page.figures:
        assert unit == figures.unit_of(path) or (unit == "" and path.endswith(".low")), path


def test_figures_were_measured_with_what_the_pages_say(pages):
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    named = re.findall(
        r"(\d+) (?:cores of an|核) (Intel Xeon|AMD EPYC).*(PyTorch [\d.]+\d)",
        "\n".join(page.prose for page in pages),
    )
    assert named, "no page names cores, processor and version"
    for cores, processor, version in named:
        assert results["hardware"].startswith(f"{cores} cores of")
        assert all(word in results["hardware"] for word in processor.split())
        assert re.search(rf"{re.escape(version)}(?![.\d])", results["versions"])
    assert results["images"] == "folder"


def test_other_quantities_are_known(pages):
    """A number with a unit was measured, or somebody has said where it comes from."""
    texts = [CODE.sub("", COMMENT.sub("", figures.FIGURE.sub("", p.prose))) for p in pages]
    found = {
        (number, TRANSLATED.get(unit, unit))
        for text in texts
        for number, unit in QUANTITY.findall(text)
    }
    assert found == set(QUANTITIES)


def test_quantities_of_the_text_are_the_programs(reader):
    assert round(cifar10.ARCHIVE_SIZE / 2**20) == 163
    assert mirrors.PATIENCE_S + mirrors.WINDOW_S <= 30
    assert reader.tensorboard(["--logdir", "runs"]).reload_interval == 5
    assert processes.STEP_SECONDS == 120
    wrong = {
        code for name in ENGLISH for code in read_page(name).codes if "--wrong-labels 0" in code
    }
    assert wrong == {"--wrong-labels 0.4"}  # 60 % are right


def test_precision_and_recall_follow_from_the_counts_on_the_page(pages):
    found = [figure for page in pages for figure in page.figures]
    shown = {path.split(".")[-1]: text for text, _, path in found if "classes.cat." in path}
    counts = {name: int(shown[name].replace(",", "")) for name in ("TP", "FN", "FP", "TN")}
    assert sum(counts.values()) == 10_000
    for name, other in (("precision", "FP"), ("recall", "FN")):
        digits = len(shown[name].partition(".")[2])
        share = counts["TP"] / (counts["TP"] + counts[other])
        assert shown[name] == f"{share:.{digits}f}", name
    text = "\n".join(page.prose for page in pages)
    named = re.findall(r"([TF][PN]) = [\d,]+<!-- figure: classes\.cat\.(\w+) -->", text)
    assert sorted(named) == [(name, name) for name in sorted(counts)]


def test_the_pictures_are_of_a_run_with_the_figures_of_the_page(page, results):
    """capture.py writes down what the run says whose pictures it takes."""
    run = json.loads((ROOT / "screenshots" / "run.json").read_text(encoding="utf-8"))
    measured = figures.look_up(results, "seeds.ours.test_accuracy.seeds.0")
    assert f"{run['test/accuracy']:.3f}" == f"{measured:.3f}"
    for shown, _, path in page.figures:
        if path.startswith("classes.") and path.endswith(("precision", "recall")):
            _, class_name, measure = path.split(".")
            assert f"{run['classes'][class_name][measure]:.3f}" == shown


# An accuracy is a median with its range, or said to be that of one run.
RANGE = re.compile(
    r"[\d.]+ %<!-- figure: (?P<path>\S.*?)\.median --> ?[(（]"
    r"[\d.]+(?: %)?<!-- figure: (?P=path)\.low --> (?:to|至) "
    r"[\d.]+ %<!-- figure: (?P=path)\.high -->[)）]"
)
ONE_RUN = re.compile(
    r"(?i)this run|one run|the pictures?\b|seed 0|这次运行|一次运行|图中|图上|种子 0"
)
SENTENCE = re.compile(r"(?<=[.!?]) |(?<=[。！？])|\n(?=\||\n)")


def bare_accuracies(prose: str) -> list[str]:
    """The sentences, or rows of a table, with an accuracy of which nobody knows how far it goes."""
    with_accuracy = re.compile(r"<!-- figure: [^>]*_accuracy\b")
    sentences = SENTENCE.split(RANGE.sub("", prose))
    return [s for s in sentences if with_accuracy.search(s) and not ONE_RUN.search(s)]


def test_an_accuracy_has_a_range_or_is_said_to_be_of_one_run(page):
    assert bare_accuracies(page.prose) == []


def test_a_bare_accuracy_is_found():
    figure = "<!-- figure: seeds.ours.test_accuracy.{} -->".format
    median, low, high = (f"52.4 %{figure(key)}" for key in ("median", "low", "high"))
    other = high.replace("ours", "notes")
    for right in (f"It gets {median} ({low} to {high}).", f"得 {median}（{low} 至 {high}）。"):
        assert bare_accuracies(right) == []
    single = "52.4 %<!-- figure: photographs.healthy.0.test_accuracy -->"
    assert bare_accuracies(f"The run in the picture gets {single}, this run {single}.") == []
    wrong = [single, f"{single}. This run is short", median, f"{median} ({low} to {other})"]
    assert [bare_accuracies(text) != [] for text in wrong] == [True] * 4


def test_accuracies_are_of_enough_seeds(page, results):
    """Of five on the photographs, of three on the shapes; compare.py and sick_runs.py take them."""
    for _, _, path in page.figures:
        if path.endswith(".median"):
            seeds = figures.look_up(results, path.replace(".median", ".seeds"))
            assert len(seeds) >= (3 if "shapes" in path else 5), path


# ----------------------------------------------------------------------------------------- names


def test_the_table_of_methods_is_that_of_the_installed_writer(pages):
    methods = find_table(pages, "add_pr_curve_raw")
    named = [name for method, *_ in methods for name in CODE.findall(method)]
    assert sorted(named) == [name for name in dir(SummaryWriter) if name.startswith("add_")]


def test_functions_that_the_text_names_exist_where_it_says(pages):
    names, text = defined(), "\n".join(page.prose for page in pages)
    everywhere = set().union(*names.values())
    views, lesson = names["viz.py"], names["train_cifar.py"] | names["data.py"]
    by_tab = [CODE.findall(cell) for *_, cell in find_table(pages, "add_test_scalars")]
    by_method = [CODE.findall(cell) for _, cell, _ in find_table(pages, "add_pr_curve_raw")]
    by_section = [CODE.findall(cell) for _, cell, _ in find_table(pages, "plot_classes_preds")]
    assert set(sum(by_tab, [])) <= views
    assert set(sum(by_method, [])) <= views | lesson
    assert {name for name in sum(by_section, []) if not name.endswith(".py")} <= everywhere
    pairs = re.findall(r"`(\w+)` in `(\w+\.py)`", text)
    pairs += [(name, file) for file, name in re.findall(r"`(\w+\.py)` 的 `(\w+)`", text)]
    assert pairs and [(name, file) for name, file in pairs if name not in names[file]] == []


def test_files_that_the_text_names_exist(page):
    named = {code for code in page.codes if re.fullmatch(r"[\w/]+\.(py|json|txt|toml)", code)}
    assert [name for name in named - {TRACE_NAME} if not (ROOT / name).is_file()] == []


def test_every_view_is_on_a_page(pages):
    views = {name for name in defined()["viz.py"] if name.startswith("add_")}
    assert views - {code for page in pages for code in page.codes} == set()


# ---------------------------------------------------------------------------- pictures and links


def test_every_picture_is_shown_and_small(pages):
    shown = {page.path(target).resolve() for page in pages for _, target in page.pictures}
    pictures = {path for kind in ("png", "gif") for path in ROOT.glob(f"screenshots/**/*.{kind}")}
    assert shown == pictures
    for path in shown:
        limit = MAX_MOVIE_BYTES if path.suffix == ".gif" else MAX_PICTURE_BYTES
        assert path.stat().st_size < limit, path
    assert all(alt for page in pages for alt, _ in page.pictures)


def test_links_lead_somewhere(page):
    for link in page.links:
        target, _, place = link.partition("#")
        if re.match(r"https?://", link):
            continue
        path = page.path(target).resolve() if target else ROOT / page.name
        assert path.exists(), link
        name = path.relative_to(ROOT).as_posix()
        assert not place or place in anchors(read_page(name).titles()), link


def test_anchors_are_made_as_github_makes_them():
    assert anchor("3.10 Confusion matrix & `Net`") == "310-confusion-matrix--net"
    assert anchor("8. 设置（全部）") == "8-设置全部"
    assert anchors(["a", "b", "a"]) == {"a", "b", "a-1"}


# --------------------------------------------------------------------------------- two languages


def test_each_language_leads_to_the_other_and_to_its_readme(both):
    readmes = ("README.md", "README.zh-CN.md")
    for page, other, readme in zip(both, reversed(both), readmes, strict=True):
        led_to = {page.path(link).resolve() for link in page.links}
        assert {ROOT / other.name, ROOT / readme} - {ROOT / page.name} <= led_to


SAME = {
    "sections": lambda page: [heading[:2] for heading in page.headings],
    "code": lambda page: page.blocks,
    "pictures": lambda page: [target for _, target in page.pictures],
    # Without their language; of a section ("page.md#5-title") its number stays.
    "links": lambda page: [
        re.sub(r"(#\d*).*", r"\1", link.replace(".zh-CN.", ".")) for link in page.links
    ],
    "figures": lambda page: Counter(page.figures),
    "tables": lambda page: [[len(row) for row in rows] for rows in page.tables],
    "names in tables": lambda page: [
        sorted(CODE.findall(" ".join(row))) for rows in page.tables for row in rows
    ],
}


@pytest.mark.parametrize("what", SAME)
def test_both_languages_have_the_same(what, both):
    english, chinese = map(SAME[what], both)
    assert english == chinese


def test_headings_and_pictures_are_described_in_the_language_of_the_page(page):
    texts = [title for _, _, title in page.headings] + [alt for alt, _ in page.pictures]
    chinese = [text for text in texts if re.search(r"[\u4e00-\u9fff]", text)]
    assert chinese == (texts if page.is_chinese else [])
