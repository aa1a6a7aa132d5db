"""All pages against the program: excerpts, commands, flags, figures, names, pictures, links."""

import json
import re
import shutil
import textwrap
import time
import warnings
from collections import Counter
from pathlib import Path

import figures
import pytest
from conftest import ROOT, call_main, read_events, read_scalars
from pages import (
    CHINESE,
    CODE,
    COMMENT,
    ENGLISH,
    SETTINGS,
    Page,
    Reader,
    defined,
    draw_nothing,
    find_table,
    read_page,
    sources,
    tensorboard_flags,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import data
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
RELOAD_S = tensorboard_flags(["--logdir", "runs"]).reload_interval
QUANTITIES = {  # that were not measured by a benchmark, and what they are
    (f"{cifar10.ARCHIVE_SIZE / 2**20:.0f}", "MB"): "the archive of CIFAR-10",
    ("30", "seconds"): "the download's patience: see the test",
    (f"{RELOAD_S:.0f}", "seconds"): "how often TensorBoard looks for new data",
    (f"{processes.STEP_SECONDS}", "s"): "how long a step waits for another process",
    ("60", "%"): "100 % less the share of wrong labels: see the test",
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


@pytest.fixture(params=[ENGLISH, CHINESE], ids=["English", "Chinese"])
def pages(request) -> list[Page]:
    """All pages of a language, the README first."""
    return [read_page(name) for name in request.param]


@pytest.fixture(scope="module")
def results() -> list[dict]:
    """What was measured, for all pages."""
    return figures.load_results()


# ------------------------------------------------------------------------------------------ code


def test_a_page_is_short_and_every_block_and_comment_of_a_kind_that_is_checked(page):
    assert page.text.count("\n") <= MAX_LINES.get(page.name, 600)
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


RUNS = [("first",), ("first-again", "--seed", "1"), ("other", "--lr", "0.01")]


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    """A folder in which programs of the pages were run, one with fewer shapes, and RUNS."""
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(ROOT / "docs", folder / "docs")
    draw = shapes.draw_shapes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "draw_shapes", lambda count, seed: draw(count // 500, seed))
        patch.setattr(data, "read_cifar10", no_network)
        patch.chdir(folder)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit")
            for program in (*marked("runs"), *marked("runs alone")):
                run(program.replace("% 2000", "% 20"))
        draw_nothing(patch)
        for name, *more in RUNS:
            assert call_main("--data", "shapes", "--run-name", name, "--epochs", 1, *more) == 0
    return folder


def marked(marker: str) -> list[str]:
    """The code of the blocks that run as they stand and have this marker."""
    blocks = (block for name in ENGLISH for block in read_page(name).blocks)
    return [block.code for block in blocks if block.marker == marker]


def run(code: str) -> None:
    exec(compile(code, "page", "exec"), {"__name__": __name__})


def no_network(*_: object) -> None:
    raise InputError("no mirror answers")


def test_programs_run_as_printed_and_show_their_views(walk):
    run_dir = walk / "runs" / "short"
    events = read_events(run_dir)
    views = {"training images", "training loss", "predictions vs. actuals"}
    curves = {f"pr curve/{name}" for name in shapes.CLASSES}
    assert set(events) - {"__run_graph__", "step1"} == views | curves
    assert [step for step, _ in events["training loss"]] == [20, 40, 50]  # the last, too
    assert EventAccumulator(str(run_dir)).Reload().Tags()["graph"]
    views = {"weights/1.weight", "gradients/1.weight", "predictions vs. actuals"}
    assert views <= set(read_events(walk / "runs" / "mine"))  # of a net that is not ours


def test_blocks_about_a_finished_run_run_as_printed(walk, monkeypatch, capsys):
    monkeypatch.chdir(walk)
    picture, table = marked("runs after first")
    run(picture)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(re.fullmatch(r"\w+: \d+\.\d%", line) for line in lines)
    assert {line.split(":")[0] for line in lines} <= set(shapes.CLASSES)
    later = time.time() + 3600
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        with SummaryWriter("runs/first") as writer:  # resumed
            writer.add_scalar("training progress/speed", 1.0, 26)
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


# -------------------------------------------------------------------------- commands and flags


def test_every_command_is_understood_by_its_program(pages, results):
    """The README comes first: it makes the run that other pages speak of."""
    reader, said = Reader(), json.dumps(results)
    for page in pages:
        for block in page.blocks:
            if block.language == "text" and json.dumps(block.code) in said:
                continue  # no command: a measured run has said it
            if block.language in ("bash", "powershell", "text"):
                for line in filter(None, block.code.splitlines()):
                    reader.read_line(line)
        for code in filter(reader.is_command, page.codes):
            reader.read_line(code)
    assert "runs/first" in reader.runs


def test_every_flag_named_in_the_text_exists(page):
    of_tensorboard = {f"--{name}" for name in vars(tensorboard_flags(["--logdir", "runs"]))}
    known = set(SETTINGS) | (TENSORBOARD_FLAGS & of_tensorboard)
    for code in page.codes:
        if not Reader().is_command(code):
            assert set(re.findall(r"(?<!\S)--[\w-]+", code)) <= known, code
    outside = CODE.sub("", COMMENT.sub("", page.prose))
    assert re.findall(r"--[A-Za-z]\S*", outside) == []  # flags stand in backticks


def test_what_is_not_known_is_refused():
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
            Reader().read_line(line)


def test_settings_table_has_every_flag_with_its_default(pages):
    shown = {}
    for flags, defaults, _ in find_table(pages, "--run-name"):
        values = re.split(r", |、", defaults)
        shown |= dict(zip(CODE.findall(flags), values, strict=True))
    chinese = pages[0].is_chinese
    words = {"None": "", "[]": "", "False": "关" if chinese else "off"}
    defaults = {flag: words.get(str(value), str(value)) for flag, value in SETTINGS.items()}
    assert shown == defaults | {"--run-name": "当前时间" if chinese else "the time"}


# --------------------------------------------------------------------------------------- figures


def test_every_figure_is_what_was_measured(page, results):
    """Rounded to as many digits as the page shows; " %" is a share times 100."""
    filled = figures.fill_in(page.text, results)
    shown, measured = (figures.FIGURE.findall(text) for text in (page.text, filled))
    assert [pair for pair in zip(shown, measured, strict=True) if pair[0] != pair[1]] == []
    pictured = json.loads((ROOT / "screenshots" / "run.json").read_text(encoding="utf-8"))
    first = figures.look_up(results, "seeds.ours.test_accuracy.seeds.0")
    assert f"{pictured['test/accuracy']:.3f}" == f"{first:.3f}"
    for number, unit, path in page.figures:
        assert unit == figures.unit_of(path) or (unit == "" and path.endswith(".low")), path
        if path.endswith(".median"):  # five seeds on the photographs, three on the shapes
            seeds = figures.look_up(results, path.replace(".median", ".seeds"))
            assert len(seeds) >= (3 if "shapes" in path else 5), path
        if path.endswith(("precision", "recall")):  # the pictures are of the run that was measured
            _, class_name, measure = path.split(".")
            assert f"{pictured['classes'][class_name][measure]:.3f}" == number, path


def test_a_figure_that_is_in_no_file_or_in_two_is_refused():
    for path in ("a.twice", "a.none"):
        with pytest.raises(KeyError, match=f"{path} is in . files"):
            figures.look_up([{"a": {"twice": 1}}, {"a": {"twice": 2}}], path)


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


def test_figures_were_measured_with_what_the_pages_say(pages):
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    text = "\n".join(page.prose for page in pages)
    named = re.findall(r"(\d+) (?:cores of an|核) (\w+ \w+).*(PyTorch [\d.]+\d)", text)
    assert named, "no page names cores, processor and version"
    for cores, processor, version in named:
        assert results["hardware"].startswith(f"{cores} cores of")
        assert all(word in results["hardware"] for word in processor.split())
        assert re.search(rf"{re.escape(version)}(?![.\d])", results["versions"])
    assert results["images"] == "folder"


def test_other_quantities_are_known(pages):
    """A number with a unit was measured, or somebody has said where it comes from."""
    text = "\n".join(figures.FIGURE.sub("", page.prose) for page in pages)
    found = QUANTITY.findall(CODE.sub("", COMMENT.sub("", text)))
    assert {(number, TRANSLATED.get(unit, unit)) for number, unit in found} == set(QUANTITIES)
    assert mirrors.PATIENCE_S + mirrors.WINDOW_S <= 30
    assert set(re.findall(r"--wrong-labels (0\.\d+)", text)) == {"0.4"}  # 60 % are right


def test_precision_and_recall_follow_from_the_counts(pages, results):
    for name, counts in figures.look_up(results, "classes").items():
        assert sum(counts[kind] for kind in ("TP", "FN", "FP", "TN")) == 10_000, name
        for measure, other in (("precision", "FP"), ("recall", "FN")):
            share = counts["TP"] / (counts["TP"] + counts[other])
            assert counts[measure] == round(share, 4), name
    text = "\n".join(page.prose for page in pages)
    named = re.findall(r"([TF][PN]) = [\d,]+<!-- figure: classes\.cat\.(\w+) -->", text)
    assert sorted(named) == [(kind, kind) for kind in ("FN", "FP", "TN", "TP")]


ONE_RUN = re.compile(
    r"(?i)this run|one run|the pictures?\b|seed 0|这次运行|一次运行|图中|图上|种子 0"
)
SENTENCE = re.compile(r"(?<=[.!?]) |(?<=[。！？])|\n(?=\||\n)")  # or a row of a table


def test_an_accuracy_has_a_range_or_is_said_to_be_of_one_run(page):
    for sentence in SENTENCE.split(page.prose):
        paths = [path for _, _, path in figures.FIGURE.findall(sentence) if "_accuracy" in path]
        bare = re.sub(r"(\S+)\.median \1\.low \1\.high", "", " ".join(paths))
        assert not bare.strip() or ONE_RUN.search(sentence), sentence


# ----------------------------------------------------------------------------------------- names


def test_names_in_the_text_are_those_of_the_program(pages):
    names, text = defined(), "\n".join(page.prose for page in pages)
    everywhere = set().union(*names.values())
    tables = [  # by a name in it: the column of functions, and what they are among
        ("add_test_scalars", 3, names["viz.py"]),
        ("add_pr_curve_raw", 1, names["viz.py"] | names["train_cifar.py"] | names["data.py"]),
        ("plot_classes_preds", 1, everywhere | names.keys()),
    ]
    for name, column, known in tables:
        cells = "".join(row[column] for row in find_table(pages, name))
        assert set(CODE.findall(cells)) <= known, name
    pairs = re.findall(r"`(\w+)` in `(\w+\.py)`", text)
    pairs += [(name, file) for file, name in re.findall(r"`(\w+\.py)` 的 `(\w+)`", text)]
    assert pairs and [(name, file) for name, file in pairs if name not in names[file]] == []

    codes = {code for page in pages for code in page.codes}
    assert {name for name in names["viz.py"] if name.startswith("add_")} <= codes  # every view
    files = {code for code in codes if re.fullmatch(r"[\w/]+\.(py|json|txt|toml)", code)}
    assert [name for name in files - {TRACE_NAME} if not (ROOT / name).is_file()] == []
    methods = "".join(row[0] for row in find_table(pages, "add_pr_curve_raw"))
    assert sorted(CODE.findall(methods)) == [n for n in dir(SummaryWriter) if n.startswith("add_")]


# ---------------------------------------------------------------------------- pictures and links


def test_every_picture_is_shown_and_small(pages):
    shown = {page.path(target).resolve() for page in pages for _, target in page.pictures}
    pictures = {path for kind in ("png", "gif") for path in ROOT.glob(f"screenshots/**/*.{kind}")}
    assert shown == pictures
    for path in shown:
        limit = MAX_MOVIE_BYTES if path.suffix == ".gif" else MAX_PICTURE_BYTES
        assert path.stat().st_size < limit, path
    assert all(alt for page in pages for alt, _ in page.pictures)


def test_links_lead_somewhere_and_to_the_other_language_and_the_readme(page):
    led_to = set()
    for link in page.links:
        if not re.match(r"https?://", link):
            target, _, place = link.partition("#")
            path = page.path(target).resolve() if target else ROOT / page.name
            assert path.exists(), link
            name = path.relative_to(ROOT).as_posix()
            led_to.add(name)
            assert not place or place in read_page(name).anchors(), link
    same, others = (CHINESE, ENGLISH) if page.is_chinese else (ENGLISH, CHINESE)
    assert {others[same.index(page.name)], same[0]} - {page.name} <= led_to


# --------------------------------------------------------------------------------- two languages


SAME = {
    "sections": lambda page: [re.match(r"[#\d. ]*", "".join(h))[0] for h in page.headings],
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
@pytest.mark.parametrize(("english", "chinese"), list(zip(ENGLISH, CHINESE, strict=True)))
def test_both_languages_have_the_same(what, english, chinese):
    assert SAME[what](read_page(english)) == SAME[what](read_page(chinese))


def test_headings_and_pictures_are_described_in_the_language_of_the_page(page):
    texts = [title for _, title in page.headings] + [alt for alt, _ in page.pictures]
    chinese = [text for text in texts if re.search(r"[\u4e00-\u9fff]", text)]
    assert chinese == (texts if page.is_chinese else [])
