"""docs/bugs.py: each bug is one line of the lesson as it stands, and shows its sign."""

import difflib
import html
import runpy
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import bugs
import pytest
import sick_runs
import torch
from conftest import ROOT, read_events
from conftest import settings as tiny_settings
from pages import draw_nothing, read_page

HEALTHY = {part.removesuffix(".py") for part in bugs.LESSON} - {"viz"}  # modules; viz has no bug
MORE = {  # settings with which the tiny images show a sign that they do not show otherwise
    "no-zero-grad": ["--lr", "0.003"],
    "double-softmax": "--wrong-labels 0.5 --lr 0.1 --batch-size 4".split(),
    "softmax-over-batch": ["--batch-size", "32"],
    "sorted": ["--batch-size", "2"],
    "test-in-bgr": ["--batch-size", "2"],
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
            if module.partition(".")[0] in HEALTHY:
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "path", ["docs", *sys.path])
        monkeypatch.setattr(sys, "argv", ["docs/bugs.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            bugs.main()
        return end.value.code

    return start


@pytest.mark.parametrize("name", bugs.BUGS)
def test_a_bug_is_one_line_of_the_lesson_and_shown_on_the_pages(name, lesson):
    file = lesson / bugs.BUGS[name][0]
    before = file.read_text(encoding="utf-8").splitlines()
    made = changed(bugs.apply(name, lesson).splitlines()[2:])
    after = file.read_text(encoding="utf-8").splitlines()
    assert made == changed(difflib.ndiff(before, after))
    assert 1 <= len(made) <= 2 and len({line[0] for line in made}) == len(made), made
    for page in ("docs/bugs.md", "docs/bugs.zh-CN.md"):
        shown = [block.code for block in read_page(page).blocks if block.language == "diff"]
        with_diff = [name for name in bugs.BUGS if name != "dropout"]
        assert len(shown) == len(with_diff)
        if name in with_diff:
            assert changed(shown[with_diff.index(name)].splitlines()) == made


def changed(diff: Iterable[str]) -> list[str]:
    """The lines that a diff takes away and adds, without their indentation."""
    return [line[0] + line[1:].strip() for line in diff if line[0] in "+-"]


@pytest.mark.filterwarnings("ignore:images from")  # viz, of pixels-to-255
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # PyTorch, of no-step
@pytest.mark.parametrize("name", [name for name in bugs.BUGS if "dropout" not in name])
def test_a_bug_shows_its_sign(name, start, lesson, image_folder, tiny_run, monkeypatch, capsys):
    draw_nothing(monkeypatch)
    log_dir = lesson / "runs"
    flags = [*tiny_settings(image_folder, log_dir, "--report-every", 40), *MORE.get(name, ())]
    assert start(name, *flags) == 0
    found, healthy = map(sick_runs.figures, (log_dir / name, tiny_run))
    assert sick_runs.SIGNS[name](found, healthy)
    assert not sick_runs.SIGNS[name](healthy, healthy)

    assert capsys.readouterr().out.startswith(bugs.apply(name, lesson))
    assert not list(log_dir.rglob("checkpoint.pt"))
    (_, table), *_ = read_events(log_dir / name)["settings/text_summary"]
    text = html.unescape(table.tensor.string_val[0].decode())
    words = ["docs/bugs.py", name, bugs.FLAGS, "--run-name", name, *map(str, flags)]
    assert " ".join(words) in text
    assert bugs.CANNOT_RESUME in text
    assert "| epochs | 3 |" in " ".join(text.split())  # as in the healthy run


@pytest.mark.parametrize(("name", "same"), [("dropout-at-test", False), ("dropout", True)])
def test_dropout_at_test_answers_the_same_question_in_two_ways(name, same, lesson):
    bugs.apply(name, lesson)
    net = runpy.run_path(str(lesson / "model.py"))["Net"]().eval()
    images = torch.ones(1, 3, 32, 32)
    assert torch.equal(net(images), net(images)) is same


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
