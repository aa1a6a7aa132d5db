"""Both READMEs against the program: excerpts, commands, flags, figures, names, pictures, links."""

import argparse
import ast
import json
import re
import runpy
import shlex
import shutil
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import read_events, read_scalars
from tensorboard import load_ipython_extension
from tensorboard import program as tensorboard_program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.run import get_args_parser as torchrun_parser
from torch.utils.tensorboard import SummaryWriter

import data
from support import download, mirrors, shapes, streams
from support.errors import InputError
from support.profiler import TRACE_NAME
from train_cifar import main, parse_args

with warnings.catch_warnings():
    # A part of TensorBoard warns, when it is imported, that another part of it is old.
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard import default as tensorboard_default
    from tensorboard.plugins.core.core_plugin import DEFAULT_PORT

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
RESULTS = ROOT / "benchmarks" / "results.json"
MAX_LINES, MAX_PICTURE_BYTES, MAX_MOVIE_BYTES = 600, 300_000, 1_500_000
SETTINGS = {f"--{name}".replace("_", "-"): value for name, value in vars(parse_args([])).items()}
TENSORBOARD_FLAGS = {"--port", "--samples_per_plugin"}  # named in the text

UNITS = {  # how the key of a measure ends: the unit that its figure is given in
    "_ms": " ms",
    "_s": " s",
    "_mb": " MB",
    "_accuracy": " %",
    "_share": " %",
}
FIGURE = re.compile(r"(\d[\d,.]*)( %| s| ms| MB)?<!-- figure: (.+?) -->")
QUANTITY = re.compile(
    r"(\d[\d,.]*) ?(%|s|ms|[kMG]B|seconds?|minutes?|hours?|秒|分钟|小时)(?![A-Za-z])"
)
TRANSLATED = {"秒": "seconds", "分钟": "minutes", "小时": "hours"}
QUANTITIES = {  # that do not come from the benchmark, and what they are
    ("163", "MB"): "the archive of CIFAR-10: see test_quantities_of_the_text_are_the_programs",
    ("30", "seconds"): "download.py's patience: the same test",
    ("5", "seconds"): "how often TensorBoard looks for new data: the same test",
    ("6", "GB"): "PyTorch and its CUDA packages, by `du` of a fresh environment",
    ("0.35", "GB"): "the archive and the unpacked files of CIFAR-10",
    ("1", "%"): "viz.add_confusion_matrix writes no smaller share into its cells",
    ("4", "MB"): "the folder of a default run, by `du`",
    ("78", "%"): "an example of what smoothing does to the accuracy on the shapes",
    ("10", "%"): "the accuracy by chance, with ten classes",
}

LOOPS = [  # of bash, and of PowerShell
    re.compile(r"for (\w+) in ([\d. ]+); do (.+?)(?: \|\| break)?; done"),
    re.compile(r"foreach \(\$(\w+) in ([\d., ]+)\) \{ (.+) \}"),
]
BLOCK = re.compile(
    r"^(?:<!-- (?P<marker>runs|runs after first) -->\n)?"
    r"```(?P<language>.*)\n(?P<code>(?s:.*?))^```$",
    re.M,
)
HEADING = re.compile(r"(#+) (?:(\d+(?:\.\d+)?)\.? )?(.+)")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
COMMENT = re.compile(r"<!-- (.*?) -->")


# ------------------------------------------------------------------- what a README consists of


class Block(NamedTuple):
    """A block of code, with the comment that stands before it."""

    marker: str
    language: str
    code: str


class Table(NamedTuple):
    """A table, the number of the section that it stands in, and its rows, heading first."""

    section: str
    rows: list[list[str]]


class Page:
    """One README, taken apart."""

    def __init__(self, name: str):
        self.name = name
        self.text = (ROOT / name).read_text(encoding="utf-8")
        self.blocks = [
            Block(found["marker"] or "", found["language"], found["code"])
            for found in BLOCK.finditer(self.text)
        ]
        self.prose = BLOCK.sub("", self.text)
        self.headings = [
            found.groups() for found in re.finditer(rf"^{HEADING.pattern}$", self.prose, re.M)
        ]
        self.figures = FIGURE.findall(self.prose)
        links = LINK.findall(CODE.sub("", self.prose))
        self.pictures = [(alt, target) for picture, alt, target in links if picture]
        self.links = [target for picture, _, target in links if not picture]
        self.codes = CODE.findall(self.prose)
        self.tables = list(read_tables(self.prose))

    def table(self, section: str) -> list[list[str]]:
        """The rows of the only table of a section, without its heading."""
        (rows,) = (table.rows for table in self.tables if table.section == section)
        return rows[1:]


def read_tables(prose: str):
    """The tables of a text: runs of lines that begin with a bar, without the rule."""
    section, rows = "", []
    for line in [*prose.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                rows.append(cells)
        elif rows:
            yield Table(section, rows)
            rows = []
        if heading := HEADING.fullmatch(line):
            section = heading[2]


def codes(text: str) -> list[str]:
    """What stands in `backticks`."""
    return CODE.findall(text)


@pytest.fixture(params=[ENGLISH, CHINESE])
def page(request) -> Page:
    """Each README in turn."""
    return Page(request.param)


@pytest.fixture
def both() -> tuple[Page, Page]:
    """The READMEs side by side."""
    return Page(ENGLISH), Page(CHINESE)


def sources() -> dict[str, str]:
    """The text of each source file at the top level."""
    return {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")}


def defined() -> dict[str, set[str]]:
    """The functions and classes at the top level of each source file."""
    kinds = ast.FunctionDef | ast.ClassDef
    return {
        name: {node.name for node in ast.parse(source).body if isinstance(node, kinds)}
        for name, source in sources().items()
    }


# ------------------------------------------------------------------------------------------ code


def test_page_can_be_read_in_one_go(page):
    assert page.text.count("\n") <= MAX_LINES


def test_every_block_and_comment_is_of_a_kind_that_is_checked(page):
    assert {block.language for block in page.blocks} <= {"python", "bash", "powershell", "text"}
    assert page.text.count("```") == 2 * len(page.blocks)
    others = [text for text in COMMENT.findall(page.text) if not text.startswith("figure: ")]
    assert others == [block.marker for block in page.blocks if block.marker]
    assert page.text.count("<!--") == len(others) + len(page.figures)


def test_excerpts_stand_word_for_word_in_the_source(page):
    excerpts = [b.code for b in page.blocks if b.language == "python" and not b.marker]
    assert excerpts
    assert [code for code in excerpts if not is_excerpt(code)] == []
    assert [code for code in excerpts if code.startswith(" ")] == []  # as one would type them


def is_excerpt(code: str) -> bool:
    """Whether the lines stand in a source file, all of them indented by as much more."""
    indented = [textwrap.indent(code, " " * depth) for depth in range(0, 24, 4)]
    return any(f"\n{lines}" in f"\n{text}" for text in sources().values() for lines in indented)


@pytest.fixture(scope="module")
def short_walk(tmp_path_factory) -> Path:
    """A folder in which the short program of the page was run, with fewer shapes, and `first`."""
    folder = tmp_path_factory.mktemp("walk")
    shutil.copytree(ROOT / "docs", folder / "docs")
    program, *_ = (block for block in Page(ENGLISH).blocks if block.marker == "runs")
    draw = shapes.draw_shapes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "draw_shapes", lambda count, seed: draw(count // 500, seed))
        patch.setattr(data, "read_cifar10", no_network)
        patch.chdir(folder)
        code = program.code.replace("% 2000", "% 5")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit")
            exec(compile(code, ENGLISH, "exec"), {})
        assert main(["--data", "shapes", "--run-name", "first", "--epochs", "1"]) == 0
    return folder


def no_network(*_: object) -> None:
    raise InputError("no mirror answers")


def test_the_short_program_runs_as_printed_and_shows_the_notes_views(short_walk):
    run_dir = short_walk / "runs" / "short"
    events = read_events(run_dir)
    views = {"training images", "training loss", "predictions vs. actuals", *shapes.CLASSES}
    assert set(events) - {"__run_graph__", "step1"} == views
    assert [step for step, _ in events["training loss"]] == list(range(5, 51, 5))
    assert EventAccumulator(str(run_dir)).Reload().Tags()["graph"]


def test_blocks_about_a_finished_run_run_as_printed(page, short_walk, monkeypatch, capsys):
    monkeypatch.chdir(short_walk)
    picture, table = (block.code for block in page.blocks if block.marker == "runs after first")
    exec(compile(picture, page.name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(re.fullmatch(r"\w+: \d+\.\d%", line) for line in lines)
    assert {line.split(":")[0] for line in lines} <= set(shapes.CLASSES)
    exec(compile(table, page.name, "exec"), {})
    *_, row = capsys.readouterr().out.splitlines()
    tests = read_scalars(short_walk / "runs" / "first")["test/accuracy"]
    best = max(accuracy for _, accuracy in tests)
    assert row.startswith(f"| first | 0.001 | {best:.1%} | ")


# -------------------------------------------------------------------------------------- commands


class Parsed(BaseException):
    """Ends a script as soon as it has read its command line."""


class Reader:
    """Reads the commands of a page one after the other, each by the parser of its program."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.runs: set[str] = set()  # made by the commands so far
        self.programs = {
            "pip": self.pip,
            "python": self.python,
            "torchrun": self.torchrun,
            "tensorboard": self.tensorboard,
            "%tensorboard": self.tensorboard,
            "%load_ext": self.load_ext,
            "ssh": self.ssh,
            "ruff": self.ruff,
        }

    def read_line(self, line: str) -> None:
        """Check a line of commands joined by &&, or a loop over one; other shell is refused."""
        for loop in LOOPS:
            if found := loop.fullmatch(line):
                name, values, command = found.groups()
                for value in re.split(r"[ ,]+", values):
                    self.read_line(command.replace(f"${name}", value))
                return
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters = ""
        lexer.wordchars += "%:@=,"
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word == "&&":
                self.read(words, line)
                words = []
            else:
                assert not set(word) & set("();<>|&"), f"{line}: {word!r} is not checked"
                words.append(word)

    def read(self, words: list[str], line: str) -> None:
        """Check one command; fails if its program or its arguments are unknown."""
        program, *arguments = words
        assert program in self.programs, f"{line}: nobody checks {program!r}"
        try:
            self.programs[program](arguments)
        except (SystemExit, InputError):
            pytest.fail(f"{line}: refused by the parser of {program} (see the captured output)")

    def pip(self, words: list[str]) -> None:
        """Its files exist, and its packages are among the requirements."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("command", choices=["install"])
        parser.add_argument("-r", action="append", default=[])
        parser.add_argument("-i", "--index-url")
        parser.add_argument("--upgrade", action="store_true")
        parser.add_argument("packages", nargs="*")
        args = parser.parse_intermixed_args(words)
        assert args.r or args.packages
        for name in args.r:
            assert (ROOT / name).is_file(), name
        required = (ROOT / "requirements.txt").read_text()
        for package in args.packages:
            assert re.search(rf"^{package}\b", required, re.M), package

    def python(self, words: list[str]) -> None:
        """A script of ours, or the tests."""
        if words == ["-m", "pytest"]:
            return
        script, *arguments = words
        if words == ["docs/make_notebook.py"]:  # it takes no arguments
            assert (ROOT / script).is_file()
            return
        if script == "train_cifar.py":
            self.train(arguments)
            return
        args = self.script(script, arguments)
        if script == "screenshots/capture.py":
            assert str(args.run_dir) in self.runs, f"no command makes {args.run_dir}"

    def train(self, words: list[str]) -> argparse.Namespace:
        """A run: new, or one that an earlier command of the page has begun."""
        args = parse_args(words)
        if args.resume:
            assert args.resume in self.runs, f"no command makes {args.resume}"
        elif args.run_name:
            self.runs.add(f"{args.log_dir}/{args.run_name}")
        return args

    def script(self, path: str, words: list[str]) -> argparse.Namespace:
        """The arguments of a script, as it reads them itself, and no more of it is run."""
        assert (ROOT / path).is_file(), path
        parse = argparse.ArgumentParser.parse_args

        def parse_and_stop(*args, **kwargs):
            raise Parsed(parse(*args, **kwargs))

        with self.monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
            patch.setattr(sys, "argv", [path, *words])
            patch.setattr(sys, "path", [str((ROOT / path).parent), *sys.path])
            with pytest.raises(Parsed) as parsed:
                runpy.run_path(str(ROOT / path), run_name="__main__")
        return parsed.value.args[0]

    def torchrun(self, words: list[str]) -> None:
        """Several processes, among which the batch can be shared."""
        args = torchrun_parser().parse_args(words)
        assert args.training_script == "train_cifar.py"
        batch_size = self.train(args.training_script_args).batch_size
        assert batch_size % int(args.nproc_per_node) == 0

    def tensorboard(self, words: list[str]) -> argparse.Namespace:
        """What TensorBoard makes of its flags, among them those of its plugins."""
        program = tensorboard_program.TensorBoard(tensorboard_default.get_plugins())
        program.configure(["tensorboard", *words])
        return program.flags

    def load_ext(self, words: list[str]) -> None:
        """The package has what a notebook asks for."""
        assert words == ["tensorboard"] and callable(load_ipython_extension)

    def ssh(self, words: list[str]) -> None:
        """The port is TensorBoard's."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        parser.add_argument("-L", required=True, dest="forward")
        parser.add_argument("host")
        assert parser.parse_args(words).forward == f"{DEFAULT_PORT}:localhost:{DEFAULT_PORT}"

    def ruff(self, words: list[str]) -> None:
        """As the checks of the project call it."""
        assert words in (["check", "."], ["format", "--check", "."])


@pytest.fixture
def reader(monkeypatch) -> Reader:
    return Reader(monkeypatch)


def test_every_command_is_understood_by_its_program(page, reader):
    lines = [
        line
        for block in page.blocks
        if block.language != "python"
        for line in block.code.splitlines()
        if line.strip()
    ]
    for line in lines:
        reader.read_line(line)
    assert "runs/first" in reader.runs


def test_what_is_not_known_is_refused(reader):
    """The checks above can fail: an unknown program, flag, file, run or piece of shell."""
    wrong = [
        "conda install torch",
        "python train_cifar.py --learning-rate 1",
        "python train_cifar.py --lr nothing",
        "python train_cifar.py | tee log",
        "python train_cifar.py && rm -r runs",
        "python train_cifar.py --resume runs/unknown",
        "torchrun --nproc_per_node=3 train_cifar.py --batch-size 64",
        "torchrun --processes=2 train_cifar.py --batch-size 64",
        "tensorboard --logdir runs --unknown 1",
        "python benchmarks/compare.py --slow",
        "python benchmarks/missing.py",
        "pip install -r missing.txt",
        "ssh -L 6007:localhost:6007 you@remote",
    ]
    for line in wrong:
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            reader.read_line(line)


# ----------------------------------------------------------------------------------------- flags


def test_settings_table_has_every_flag_with_its_default(page):
    shown = {}
    for flags, defaults, _ in page.table("10"):
        values = re.split(r", |、", defaults)
        shown |= dict(zip(codes(flags), values, strict=True))
    assert {flag: default_as_text(flag, page) for flag in SETTINGS} == shown


def default_as_text(flag: str, page: Page) -> str:
    """A default as the table gives it."""
    value, chinese = SETTINGS[flag], page.name == CHINESE
    if flag == "--run-name":
        return "当前时间" if chinese else "the time"
    if value is False:
        return "关" if chinese else "off"
    return "" if value in (None, []) else str(value)


def test_every_flag_named_in_the_text_exists(page, reader):
    for code in page.codes:
        flags = re.findall(r"(?<!\S)--[\w-]+", code)
        if flags and code.split()[0] in reader.programs:
            reader.read_line(code)
        else:
            assert set(flags) <= set(SETTINGS) | TENSORBOARD_FLAGS, code
    outside = CODE.sub("", COMMENT.sub("", page.prose))
    assert re.findall(r"--[A-Za-z]\S*", outside) == []  # flags stand in backticks


def test_tensorboards_flags_that_the_text_names_exist(reader):
    known = vars(reader.tensorboard(["--logdir", "runs"]))
    assert {flag.removeprefix("--") for flag in TENSORBOARD_FLAGS} <= set(known)


# --------------------------------------------------------------------------------------- figures


def load_results() -> dict:
    """The results of the benchmark that the figures are taken from."""
    if not RESULTS.is_file():
        pytest.fail(
            "benchmarks/results.json is missing: make it by "
            "python benchmarks/compare.py --data FOLDER --json benchmarks/results.json"
        )
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def look_up(results: dict, path: str):
    """The value at a dotted path, or None."""
    for key in path.split("."):
        results = results.get(key) if isinstance(results, dict) else None
    return results


def test_figures_are_those_of_the_benchmark(page):
    """Rounded to as many digits as the page shows; " %" is a share times 100."""
    results = load_results()
    wrong = []
    for shown, unit, path in page.figures:
        value = look_up(results, path)
        digits = len(shown.partition(".")[2])
        factor = 100 if unit == " %" else 1
        expected = "missing" if value is None else f"{value * factor:,.{digits}f}"
        if shown != expected:
            wrong.append(f"{path}: the page says {shown}{unit}, the benchmark {expected}")
    assert wrong == []


def test_figures_have_the_unit_of_their_measure(page):
    for _, unit, path in page.figures:
        ending = path[path.rfind("_") :] if "_" in path else ""
        assert unit == UNITS.get(ending, ""), path


def test_figures_were_measured_with_what_the_page_says(page):
    results = load_results()
    named = re.search(
        r"(\d+) (?:cores of an|核) (Intel Xeon|AMD EPYC).*(PyTorch [\d.]+\d)", page.prose
    )
    assert named, "the page names no cores, processor and version"
    cores, processor, version = named.groups()
    assert results["hardware"].startswith(f"{cores} cores of")
    assert all(word in results["hardware"] for word in processor.split())
    assert re.search(rf"{re.escape(version)}(?![.\d])", results["versions"])
    assert (results["images"], results["quick"]) == ("folder", False)


def test_other_quantities_are_known(page):
    """A number with a unit comes from the benchmark, or somebody has said where it comes from."""
    text = CODE.sub("", COMMENT.sub("", FIGURE.sub("", page.prose)))
    found = {(number, TRANSLATED.get(unit, unit)) for number, unit in QUANTITY.findall(text)}
    assert found == set(QUANTITIES)


def test_quantities_of_the_text_are_the_programs(reader):
    assert round(download.ARCHIVE_SIZE / download.MB) == 163
    assert mirrors.PATIENCE_S + streams.TIMEOUT_S <= 30
    assert reader.tensorboard(["--logdir", "runs"]).reload_interval == 5


def test_precision_and_recall_follow_from_the_counts_on_the_page(page):
    shown = {path.split(".")[-1]: text for text, _, path in page.figures if "classes." in path}
    counts = {name: int(shown[name].replace(",", "")) for name in ("TP", "FN", "FP", "TN")}
    assert sum(counts.values()) == 10_000
    for name, other in (("precision", "FP"), ("recall", "FN")):
        digits = len(shown[name].partition(".")[2])
        share = counts["TP"] / (counts["TP"] + counts[other])
        assert shown[name] == f"{share:.{digits}f}", name


def test_the_pictures_are_of_a_run_with_the_figures_of_the_page(page):
    """capture.py writes down what the run says whose pictures it takes."""
    run = json.loads((ROOT / "screenshots" / "run.json").read_text(encoding="utf-8"))
    shown = {path: text for text, _, path in page.figures}
    accuracy = shown["medians.ours.test_accuracy"]
    assert f"{100 * run['test/accuracy']:.1f}" == accuracy
    for name in ("precision", "recall"):
        assert f"{run['classes']['cat'][name]:.3f}" == shown[f"classes.cat.{name}"]


def test_counts_stand_behind_their_names(page):
    found = re.findall(r"([TF][PN]) = [\d,]+<!-- figure: classes\.(\w+)\.(\w+) -->", page.prose)
    assert sorted(name for name, _, _ in found) == ["FN", "FP", "TN", "TP"]
    assert all(name == key for name, _, key in found)
    assert {class_name for _, class_name, _ in found} == {"cat"}


# ----------------------------------------------------------------------------------------- names


def test_the_table_of_methods_is_that_of_the_installed_writer(page):
    named = [name for method, *_ in page.table("6") for name in codes(method)]
    installed = [name for name in dir(SummaryWriter) if name.startswith("add_")]
    assert sorted(named) == sorted(installed)


def test_functions_that_the_tables_name_exist(page):
    names = defined()
    everywhere = set().union(*names.values())
    by_tab = [name for *_, cell in page.table("2") for name in codes(cell)]
    assert set(by_tab) <= names["viz.py"]
    by_method = [name for _, cell, _ in page.table("6") for name in codes(cell)]
    assert set(by_method) <= names["viz.py"] | names["train_cifar.py"] | names["data.py"]
    by_section = [name for _, cell, _ in page.table("5") for name in codes(cell)]
    assert {name for name in by_section if not name.endswith(".py")} <= everywhere


def test_functions_stand_in_the_file_that_the_text_names(page):
    names = defined()
    pairs = re.findall(r"`(\w+)` in `(\w+\.py)`", page.prose)
    pairs += [(name, file) for file, name in re.findall(r"`(\w+\.py)` 的 `(\w+)`", page.prose)]
    assert pairs
    assert [(name, file) for name, file in pairs if name not in names[file]] == []


def test_files_that_the_text_names_exist(page):
    named = {code for code in page.codes if re.fullmatch(r"[\w/]+\.(py|json|txt|toml)", code)}
    assert [name for name in named - {TRACE_NAME} if not (ROOT / name).is_file()] == []


def test_every_view_is_on_the_page(page):
    views = {name for name in defined()["viz.py"] if name.startswith("add_")}
    assert views - set(page.codes) == set()


# ---------------------------------------------------------------------------- pictures and links


def test_every_picture_is_shown_and_small(page):
    shown = [target for _, target in page.pictures]
    files = [*ROOT.glob("screenshots/*.png"), *ROOT.glob("screenshots/*.gif")]
    own = {name for name in shown if not name.startswith("screenshots/sick/")}
    assert own == {f"screenshots/{path.name}" for path in files}
    for name in shown:
        limit = MAX_MOVIE_BYTES if name.endswith(".gif") else MAX_PICTURE_BYTES
        assert (ROOT / name).stat().st_size < limit, name
    assert all(alt for alt, _ in page.pictures)


def test_links_lead_somewhere(page):
    anchors = number_repeated(anchor(title) for title in titles(page))
    for link in page.links:
        target, _, place = link.partition("#")
        if not target:
            assert place in anchors, link
        elif not re.match(r"https?://", link):
            assert (ROOT / target).is_file(), link
            assert not place or place in map(anchor, titles(Page(target))), link


def titles(page: Page) -> list[str]:
    """The headings as text, their numbers included."""
    return re.findall(r"^#+ (.+)$", page.prose, re.M)


def anchor(title: str) -> str:
    """GitHub's anchor of a heading: small letters, no punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def number_repeated(anchors) -> set[str]:
    """GitHub tells the anchors of equal headings apart by a number."""
    seen: Counter = Counter()
    found = set()
    for name in anchors:
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def test_anchors_are_made_as_github_makes_them():
    assert anchor("8. Settings") == "8-settings"
    assert anchor("3.10 Confusion matrix & `Net`") == "310-confusion-matrix--net"
    assert anchor("8. 设置（全部）") == "8-设置全部"
    assert number_repeated(["a", "b", "a"]) == {"a", "b", "a-1"}


# --------------------------------------------------------------------------------- two languages


def test_each_language_leads_to_the_other(both):
    english, chinese = both
    assert CHINESE in english.links and ENGLISH in chinese.links


def test_both_languages_have_the_same_sections(both):
    english, chinese = ([heading[:2] for heading in page.headings] for page in both)
    assert english == chinese


def test_both_languages_have_the_same_code(both):
    english, chinese = (page.blocks for page in both)
    assert english == chinese


def test_both_languages_have_the_same_pictures_and_links(both):
    english, chinese = both
    assert [target for _, target in english.pictures] == [target for _, target in chinese.pictures]
    assert outside_links(english) == outside_links(chinese)


def outside_links(page: Page) -> list[str]:
    """The links to other pages than the README and its sections, whatever their language.

    Of a link to a section ("page.md#5-title") its number stays.
    """
    others = [link for link in page.links if not link.startswith(("#", "README"))]
    return [re.sub(r"(\.zh-CN)?\.md(#\d+)?.*", r".md\2", link) for link in others]


def test_both_languages_have_the_same_figures(both):
    english, chinese = (Counter(page.figures) for page in both)
    assert english == chinese


def test_both_languages_have_the_same_tables(both):
    """The same rows and columns, and the same names in the same rows."""
    english, chinese = (
        [(section, [len(row) for row in rows]) for section, rows in page.tables] for page in both
    )
    assert english == chinese
    english, chinese = (
        [sorted(codes(" ".join(row))) for _, rows in page.tables for row in rows] for page in both
    )
    assert english == chinese


def test_headings_and_pictures_are_described_in_the_language_of_the_page(page):
    texts = [title for _, _, title in page.headings] + [alt for alt, _ in page.pictures]
    chinese = [text for text in texts if re.search(r"[\u4e00-\u9fff]", text)]
    assert chinese == (texts if page.name == CHINESE else [])
