"""The pages taken apart, and a reader of the commands on them that asks each program's own parser.

Every page is here, in both languages: README, docs/*.md, practice/*.md. A new one is checked as
soon as its file is there.
"""

import argparse
import functools
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import bugs
import figures
import pytest
from conftest import ROOT
from tensorboard import default as tensorboard_default
from tensorboard import program as tensorboard_program
from tensorboard.plugins.core.core_plugin import DEFAULT_PORT
from torch.distributed.run import get_args_parser as torchrun_parser

import viz
from support.errors import InputError
from train_cifar import parse_args

PAGES = [path.relative_to(ROOT).as_posix() for path in figures.pages()]
ENGLISH = [name for name in PAGES if not name.endswith(".zh-CN.md")]
ENGLISH.sort(key=lambda name: name != "README.md")  # it makes the runs that the others speak of
CHINESE = [name.replace(".md", ".zh-CN.md") for name in ENGLISH]
SETTINGS = {f"--{name}".replace("_", "-"): value for name, value in vars(parse_args([])).items()}

LOOPS = [  # of bash, and of PowerShell
    re.compile(r"for (\w+) in ([\d. ]+); do (.+?)(?: \|\| break)?; done"),
    re.compile(r"foreach \(\$(\w+) in ([\d., ]+)\) \{ (.+) \}"),
]
BLOCK = re.compile(
    r"^(?:<!-- (runs|runs alone|runs after first) -->\n)?```(.*)\n((?s:.*?))^```$", re.M
)
HEADING = re.compile(r"^(#+) (.+)$", re.M)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
COMMENT = re.compile(r"<!-- (.*?) -->")
TABLE = re.compile(r"(?:^\|.*\n)+", re.M)


# ------------------------------------------------------------------------------- what is on a page


class Block(NamedTuple):
    """A block of code, with the comment that stands before it."""

    marker: str
    language: str
    code: str


class Page:
    """One page in one language, taken apart."""

    def __init__(self, name: str):
        self.name = name  # its path from the root of the project
        self.is_chinese = name.endswith(".zh-CN.md")
        self.text = (ROOT / name).read_text(encoding="utf-8")
        self.blocks = [Block(*groups) for groups in BLOCK.findall(self.text)]
        self.prose = BLOCK.sub("", self.text)
        self.headings = HEADING.findall(self.prose)  # (signs, title with its number)
        self.figures = figures.FIGURE.findall(self.prose)
        links = LINK.findall(CODE.sub("", self.prose))
        self.pictures = [(alt, target) for picture, alt, target in links if picture]
        self.links = [target for picture, _, target in links if not picture]
        self.codes = CODE.findall(self.prose)
        self.tables = [read_table(text) for text in TABLE.findall(self.prose)]

    def path(self, target: str) -> Path:
        """Where a link or picture of this page leads."""
        return (ROOT / self.name).parent / target

    def anchors(self) -> set[str]:
        """GitHub's anchors of the headings: small letters, no punctuation, hyphens for spaces."""
        titles = (re.sub(r"[^\w\- ]", "", title.lower()) for _, title in self.headings)
        return {title.replace(" ", "-") for title in titles}


read_page = functools.cache(Page)  # each page is taken apart once


def read_table(text: str) -> list[list[str]]:
    """Its rows of cells, heading first."""
    lines = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in text.splitlines()]
    heading, _rule, *rows = [[cell.strip() for cell in cells] for cells in lines]
    return [heading, *rows]


def find_table(pages: list[Page], code: str) -> list[list[str]]:
    """The rows, without the heading, of the only table with this code, on whichever page."""
    tables = [table for page in pages for table in page.tables]
    (found,) = (rows for rows in tables if code in CODE.findall(str(rows)))
    return found[1:]


DRAWN = "image_grid batch predictions confusion_matrix mistakes filters feature_maps projector"


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Have runs without pictures and graph, which take most of the time of a small one."""
    for view in (*DRAWN.split(), "net_graph"):
        patch.setattr(viz, f"add_{view}", lambda *_, **__: None)


@functools.cache
def sources() -> dict[str, str]:
    """The text of each source file at the top level."""
    return {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")}


@functools.cache
def defined() -> dict[str, set[str]]:
    """The functions and classes at the top level of each source file."""
    return {
        name: set(re.findall(r"^(?:def|class) (\w+)", source, re.M))
        for name, source in sources().items()
    }


# -------------------------------------------------------------------------------------- commands


FIXED = {  # commands that take no arguments of the reader's
    "python -m pytest",
    "python docs/make_notebook.py",
    "python3 -m venv .venv",
    "source .venv/bin/activate",
    "py -m venv .venv",
    r".venv\Scripts\activate",
    "ruff check .",
    "ruff format --check .",
    f"ssh -L {DEFAULT_PORT}:localhost:{DEFAULT_PORT} you@remote",
}


def tensorboard_flags(words: list[str]) -> argparse.Namespace:
    """What TensorBoard makes of its flags, among them those of its plugins."""
    program = tensorboard_program.TensorBoard(tensorboard_default.get_plugins())
    program.configure(["tensorboard", *words])
    return program.flags


class Parsed(BaseException):
    """Ends a script as soon as it has read its command line."""


class Reader:
    """Reads the commands of pages one after the other, each by the parser of its program."""

    def __init__(self):
        self.runs: set[str] = set()  # made by the commands so far
        self.programs = {
            "pip": self.pip,
            "python": self.python,
            "torchrun": self.torchrun,
            "tensorboard": tensorboard_flags,
        }

    def is_command(self, code: str) -> bool:
        """Whether it is one of a program that is known here, with arguments."""
        program, *arguments = code.split()
        return code in FIXED or (program in self.programs and arguments != [])

    def read_line(self, line: str) -> None:
        """Check a line of commands joined by &&, or a loop over one; other shell is refused."""
        for loop in LOOPS:
            if found := loop.fullmatch(line):
                name, values, command = found.groups()
                for value in re.split(r"[ ,]+", values):
                    self.read_line(command.replace(f"${name}", value))
                return
        for command in line.split(" && "):
            if command not in FIXED:
                assert not re.search("[();<>|&]", re.sub('".*?"', "", command)), line
                program, *arguments = shlex.split(command)
                assert program in self.programs, f"{line}: nobody checks {program!r}"
                try:
                    self.programs[program](arguments)
                except (SystemExit, InputError):
                    pytest.fail(f"{line}: refused by {program} (see the captured output)")

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
        assert [name for name in args.r if not (ROOT / name).is_file()] == []
        required = (ROOT / "requirements.txt").read_text()
        for package in args.packages:
            assert re.search(rf"^{re.escape(package)}(?![\w-])", required, re.M), package

    def python(self, words: list[str]) -> None:
        """A script of ours, TensorBoard, or the tests."""
        script, *arguments = words
        if words[:2] == ["-m", "tensorboard.main"]:
            tensorboard_flags(words[2:])
        elif script == "train_cifar.py":
            self.train(arguments)
        elif script == "docs/bugs.py":
            if arguments:
                assert arguments[0] in bugs.BUGS, arguments[0]
                self.train([*bugs.FLAGS.split(), "--run-name", *arguments])
        else:
            args = vars(self.script(script, arguments))
            for run_dir in filter(None, map(args.get, ("run_dir", "resume"))):
                assert str(run_dir) in self.runs, f"no command makes {run_dir}"

    def train(self, words: list[str]) -> argparse.Namespace:
        """A run: new, or one that an earlier command has begun."""
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

        with pytest.MonkeyPatch.context() as patch:
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
        assert batch_size % (int(args.nproc_per_node) * int(args.nnodes.split(":")[0])) == 0
