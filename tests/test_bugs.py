"""docs/bugs.py: each bug is one line of the lesson as it stands, and shows its sign."""

import difflib
import html
import runpy
import shutil
import sys
from pathlib import Path

import bugs
import pytest
import sick_runs
import torch
from conftest import ROOT, read_events, run_tiny
from pages import read_page

LESSON = [part.removesuffix(".py") for part in bugs.LESSON]
SETTINGS = "--batch-size 8 --lr 0.02 --epochs 3 --report-every 40".split()
MORE = {  # settings with which the tiny images show a sign that they do not show otherwise
    "no-zero-grad": ["--lr", "0.003"],
    "double-softmax": "--wrong-labels 0.5 --epochs 4 --lr 0.1 --batch-size 4".split(),
    "softmax-over-batch": ["--batch-size", "32"],
    "sorted": "--epochs 1 --batch-size 2".split(),
    "test-in-bgr": "--epochs 1 --batch-size 2".split(),
}


@pytest.fixture
def lesson(tmp_path) -> Path:
    """A copy of the lesson's files that have bugs."""
    for file in {file for file, *_ in bugs.BUGS.values()}:
        shutil.copy(ROOT / file, tmp_path)
    return tmp_path


@pytest.fixture
def start(monkeypatch):
    """Run docs/bugs.py in this process, where the healthy lesson is forgotten meanwhile."""

    def start(*words: object) -> int:
        for module in list(sys.modules):
            if module.partition(".")[0] in LESSON:
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "path", ["docs", *sys.path])
        monkeypatch.setattr(sys, "argv", ["docs/bugs.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            bugs.main()
        return end.value.code

    return start


@pytest.fixture(scope="module")
def healthy(image_folder, tmp_path_factory) -> dict:
    """The figures of the healthy run."""
    run_dir = run_tiny(image_folder, tmp_path_factory.mktemp("healthy"), *SETTINGS)
    return sick_runs.figures(run_dir)


@pytest.mark.parametrize("name", bugs.BUGS)
def test_a_bug_is_one_line_of_the_lesson(name, lesson):
    file = lesson / bugs.BUGS[name][0]
    before = file.read_text(encoding="utf-8").splitlines()
    diff = bugs.apply(name, lesson).splitlines()[2:]
    after = file.read_text(encoding="utf-8").splitlines()
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-"]
    assert 1 <= len(changes) <= 2 and len({line[0] for line in changes}) == len(changes), changes
    assert changed(diff) == [line[0] + line[2:].strip() for line in changes]


def changed(diff: list[str]) -> list[str]:
    """The lines that a diff takes away and adds, without their indentation."""
    return [line[0] + line[1:].strip() for line in diff if line[0] in "+-"]


@pytest.mark.filterwarnings("ignore:images from")  # viz, of pixels-to-255
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # PyTorch, of no-step
@pytest.mark.parametrize("name", [name for name in bugs.BUGS if "dropout" not in name])
def test_a_bug_shows_its_sign(name, start, image_folder, healthy, tmp_path):
    words = ["--data", image_folder, "--log-dir", tmp_path, *SETTINGS, *MORE.get(name, ())]
    assert start(name, *words) == 0
    found = sick_runs.figures(tmp_path / name)
    assert sick_runs.SIGNS[name](found, healthy)
    assert not sick_runs.SIGNS[name](healthy, healthy)


@pytest.mark.parametrize(("name", "same"), [("dropout-at-test", False), ("dropout", True)])
def test_dropout_at_test_answers_the_same_question_in_two_ways(name, same, lesson):
    bugs.apply(name, lesson)
    net = runpy.run_path(str(lesson / "model.py"))["Net"]().eval()
    images = torch.ones(1, 3, 32, 32)
    assert torch.equal(net(images), net(images)) is same


@pytest.mark.parametrize("page", ["docs/bugs.md", "docs/bugs.zh-CN.md"])
def test_the_page_shows_each_bug_with_its_line(page, lesson):
    diffs = [block.code for block in read_page(page).blocks if block.language == "diff"]
    names = [name for name in bugs.BUGS if name != "dropout"]
    for name, shown in zip(names, diffs, strict=True):
        shutil.copy(ROOT / bugs.BUGS[name][0], lesson)
        made = bugs.apply(name, lesson).splitlines()[2:]
        assert changed(shown.splitlines()) == changed(made), name


def test_a_line_that_is_not_there_names_the_bug(lesson):
    (lesson / "data.py").write_text("shuffle=True, shuffle=True")
    with pytest.raises(ValueError, match="data.py has 2 places with 'shuffle=True'"):
        bugs.apply("sorted", lesson)


def test_the_names_are_listed_and_an_unknown_one_is_refused_in_a_line(start, monkeypatch, capsys):
    assert start("no-zero-grads") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "bugs.py: error: no bug 'no-zero-grads': python docs/bugs.py lists them"
    monkeypatch.setattr(sys, "argv", ["docs/bugs.py"])
    bugs.main()
    assert capsys.readouterr().out.split() == list(bugs.BUGS)


def test_a_run_shows_its_diff_and_command_and_cannot_be_resumed(
    start, image_folder, tmp_path, capsys
):
    flags = ["--data", str(image_folder), "--log-dir", str(tmp_path), "--epochs", "1"]
    assert start("rolled-labels", *flags) == 0
    said = capsys.readouterr().out
    assert said.startswith("--- train_cifar.py\n+++ train_cifar.py\n")
    assert "\n+            labels = labels.roll(1)\n" in said
    assert not list(tmp_path.rglob("checkpoint.pt"))
    (_, settings), *_ = read_events(tmp_path / "rolled-labels")["settings/text_summary"]
    text = html.unescape(settings.tensor.string_val[0].decode())
    words = ["docs/bugs.py rolled-labels", bugs.FLAGS, "--run-name rolled-labels", *flags]
    assert " ".join(words) in text
    assert bugs.CANNOT_RESUME in text
    assert "| batch size | 32 |" in " ".join(text.split())  # as in the healthy run
