"""The runs to practise on: all that the pages speak of, and nothing that gives an answer away."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, read_events
from pages import read_page
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

import practice

RUNS = sorted((ROOT / "practice" / "runs").glob("*"))
TAGS = {"training loss", "test/loss", "test/accuracy", "training progress/gradient norm"}
TAGS |= {"training images", "training batch", "predictions vs. actuals", "test/confusion matrix"}
TAGS |= {"test/worst mistakes", "what the net sees/filters", "per class/text_summary"}
TAGS |= {"weights/conv1.weight", "gradients/conv1.weight"}


@pytest.fixture(scope="module")
def thinned(tiny_run, tmp_path_factory) -> Path:
    """The run folder that is made of a tiny run."""
    log_dir, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("practice") / "a"

    def run(*task: object) -> None:
        assert task == ("dead", "images", 7, log_dir)
        shutil.copytree(tiny_run, log_dir / "dead")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(practice, "run", run)
        practice.make("dead", "images", 7, out, log_dir)
    return out


@pytest.mark.parametrize("run_dir", ["thinned", *RUNS], ids=lambda run_dir: Path(run_dir).name)
def test_a_run_holds_what_the_pages_speak_of_and_no_answer(run_dir, request):
    run_dir = request.getfixturevalue("thinned") if run_dir == "thinned" else run_dir
    (path,) = run_dir.iterdir()
    assert path.name == "events.out.tfevents.1"
    events = read_events(run_dir)
    assert set(events) >= TAGS | {f"pr curve/{name}" for name in class_names(events)}
    for tag in ("training progress/learning rate", "where the time goes/text_summary"):
        assert tag not in events
    assert not [tag for tag in events if re.search("hparams|settings|second", tag)]
    content = path.read_bytes()
    names = [*practice.SICK, *practice.HEALTHY, "bugs.py", "train_cifar", str(Path.home())]
    assert not [name for name in names if name.encode() in content and len(name) > 6]
    for event in LegacyEventFileLoader(str(path)).Load():
        assert event.wall_time == 1.7e9 + event.step


def class_names(events: dict) -> list[str]:
    """The classes in the table per class."""
    _, _, *rows = events["per class/text_summary"][0][1].tensor.string_val[0].decode().splitlines()
    return [row.split("|")[1].strip() for row in rows]


def test_most_of_a_run_is_left_out_but_no_scalar(thinned):
    events = read_events(thinned)
    assert len(events["training loss"]) == 6
    assert [step for step, _ in events["weights/conv1.weight"]] == [5, 10, 20, 30]
    assert [step for step, _ in events["predictions vs. actuals"]] == [5, 30]
    assert [step for step, _ in events["test/confusion matrix"]] == [30]
    events = LegacyEventFileLoader(str(next(thinned.iterdir()))).Load()
    assert sum(event.HasField("graph_def") for event in events) == 1


def test_every_set_has_two_healthy_runs_among_eight():
    for seed in range(20):
        names = list(practice.answers(seed).values())
        assert len(set(names)) == 8 and set(practice.HEALTHY) < set(names)
    assert practice.answers(1) != practice.answers(2)


def test_the_answers_on_the_pages_are_those_of_the_maker_and_all_is_small():
    assert [run_dir.name for run_dir in RUNS] == list(practice.LETTERS)
    for name in ("practice/README.md", "practice/README.zh-CN.md"):
        answer = r"<summary>([a-h])\b.*?</summary>\s*\*\*`([\w-]+)`"
        given = dict(re.findall(answer, read_page(name).text, re.S))
        assert given == practice.answers(practice.SEED)
    files = [path for path in (ROOT / "practice").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000
