"""The run as a whole: what it logs and when, that it repeats, and what it refuses."""

import html
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import (
    CLASSES,
    TEST_IMAGES,
    call_main,
    read_events,
    read_scalars,
    refuse,
    run_tiny,
    same_weights,
    settings,
)
from tensorboard.util import tensor_util
from torch.utils.data import DataLoader

import data
import train_cifar
from model import Net
from support.checkpoint import load_checkpoint
from support.errors import InputError
from support.run import Run
from support.terminal import PATIENCE_NOTE, note_chance, notes

REPORTS = [5, 10, 15, 20, 25, 30]  # 15 batches an epoch, a report every 5
EPOCHS = [15, 30]
TESTS = [0, *EPOCHS]  # before training, too
NOTES_VIEWS = {
    "training images": [0],
    "training loss": REPORTS,
    "predictions vs. actuals": REPORTS,
    "test/loss": TESTS,
    "test/accuracy": TESTS,
    **{f"pr curve/{name}": EPOCHS for name in CLASSES},
}
LARGE = [name for name, p in Net().named_parameters() if p.numel() >= 64]  # have histograms
ALL_VIEWS = NOTES_VIEWS | {
    "training progress/learning rate": REPORTS,
    "training progress/images per second": REPORTS,
    "training progress/gradient norm": REPORTS,
    "training progress/zero gradients": REPORTS,
    **{f"weights/{name}": REPORTS for name in LARGE},
    **{f"gradients/{name}": REPORTS for name in LARGE},
    "training batch": [5],  # the first report's
    "test/confusion matrix": EPOCHS,
    "what the net sees/filters": EPOCHS,
    "what the net sees/feature maps": EPOCHS,
    "settings/text_summary": [0],
    "per class/text_summary": [30],
    "where the time goes/text_summary": [20],  # profiled after the first report, at 10 steps
    "custom_scalars__config__": [0],
    "_hparams_/session_start_info": [0],
    "_hparams_/session_end_info": [0],
}
GRAPH = {"__run_graph__", "step1"}  # add_graph writes its devices under these tags


def steps_by_tag(run_dir: Path) -> dict[str, list[int]]:
    events = read_events(run_dir)
    return {tag: [step for step, _ in events[tag]] for tag in events.keys() - GRAPH}


# ------------------------------------------------------------------------------- what is logged


def test_every_view_is_logged_at_its_steps(tiny_run):
    steps = steps_by_tag(tiny_run)
    mistakes = steps.pop("test/worst mistakes", [])  # none where the net makes none
    assert steps == ALL_VIEWS
    assert set(mistakes) <= set(EPOCHS)
    assert (tiny_run / "projector_config.pbtxt").exists()


def test_one_flag_turns_it_down_to_the_notes_five_views(image_folder, tmp_path, tiny_run):
    run_dir = run_tiny(image_folder, tmp_path, "--views", "notes")
    assert steps_by_tag(run_dir) == NOTES_VIEWS
    # The same seed gives the same run, bit for bit, and the views do not touch the training.
    assert same_weights(run_dir, tiny_run)
    scalars = read_scalars(run_dir)
    assert scalars == {tag: read_scalars(tiny_run)[tag] for tag in scalars}


def test_images_held_back_are_watched_and_the_test_images_once(image_folder, tmp_path, capsys):
    words = "--validation", 6, "--train-images", 113  # these are 15 batches, too
    run_dir = run_tiny(image_folder, tmp_path, *words)
    steps = steps_by_tag(run_dir)
    assert set(steps.pop("validation/worst mistakes", [])) <= set(EPOCHS)
    moved = {
        tag.replace("test/", "validation/").replace("pr curve/", "validation/pr curve/"): at
        for tag, at in ALL_VIEWS.items()
    }
    assert steps == moved | {"test/loss": [30], "test/accuracy": [30]}

    loaded = data.load_data(str(image_folder))
    _, held = loaded.train_loader.dataset.hold_back(6, seed=0)
    net = Net(3)
    net.load_state_dict(load_checkpoint(run_dir)["net"])
    scalars, said = read_scalars(run_dir), capsys.readouterr().out
    for part, images in (("validation", held), ("test", loaded.test_loader.dataset)):
        with torch.no_grad():
            probs = net(images.images.float() / 255 * 2 - 1).double().softmax(dim=1)
        loss = -probs.gather(1, images.labels[:, None]).log().mean().item()
        assert scalars[f"{part}/loss"][-1][1] == pytest.approx(loss, rel=1e-4)
        right = (probs.argmax(dim=1) == images.labels).double().mean().item()
        assert scalars[f"{part}/accuracy"][-1][1] == pytest.approx(right)
        assert f"{part} accuracy {right:.1%}" in said
    (_, curve) = read_events(run_dir)[f"validation/pr curve/{CLASSES[0]}"][-1]
    true_ones = tensor_util.make_ndarray(curve.tensor)[0, 0]  # at threshold 0
    assert true_ones == (held.labels == 0).sum()
    ((_, layout),) = read_events(run_dir)["custom_scalars__config__"]
    assert b"^validation/loss$" in layout.SerializeToString()


def test_the_losses_are_those_of_the_plain_loop_of_the_notes(image_folder, tmp_path, monkeypatch):
    """The reference: images one by one, no fused optimizer, other kernels, per-step .item().

    Every report averages 14 batches, over the end of an epoch of 30, too.
    """
    logged, record = [], Run.record

    def keep_and_record(run, loss):
        logged.append(loss.item())
        return record(run, loss)

    monkeypatch.setattr(Run, "record", keep_and_record)
    words = "--batch-size", 4, "--epochs", 10, "--report-every", 56, "--views", "notes"
    run_dir = run_tiny(image_folder, tmp_path, *words)

    train_set = data.load_data(str(image_folder)).train_loader.dataset
    one_by_one = [train_set[index] for index in range(120)]
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(one_by_one, batch_size=4, shuffle=True, generator=order)
    torch.manual_seed(0)
    net = Net(3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, fused=False)
    criterion, plain = torch.nn.CrossEntropyLoss(), []
    for _ in range(10):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            plain.append(loss.item())
    np.testing.assert_allclose(logged, plain, rtol=1e-3, atol=1e-4)
    reports = read_scalars(run_dir)["training loss"]
    assert [step for step, _ in reports[:6]] == [14, 28, 30, 44, 58, 60]
    for step, loss in reports:
        assert loss == pytest.approx(np.mean(logged[step - 14 : step]), rel=1e-6)


def test_the_defaults_are_the_notes():
    args = train_cifar.parse_args([])
    assert (args.epochs, args.batch_size, args.lr, args.momentum) == (2, 4, 0.001, 0.9)
    assert args.report_every == 2000 * args.batch_size


@pytest.mark.parametrize("more", [["--seed", 1], ["--augment"]])
def test_another_seed_and_augmentation_give_another_run(image_folder, tmp_path, tiny_run, more):
    assert not same_weights(run_tiny(image_folder, tmp_path, "--views", "notes", *more), tiny_run)


# ------------------------------------------------------------------------ shapes for CIFAR-10


def test_shapes_are_never_taken_for_cifar10(tmp_path, monkeypatch, capsys):
    def no_network(*_):
        raise InputError("no mirror answers")

    draw = data.shapes.draw_shapes
    monkeypatch.setattr(data, "read_cifar10", no_network)
    monkeypatch.setattr(data.shapes, "draw_shapes", lambda count, seed: draw(count // 500, seed))
    where = "--log-dir", tmp_path, "--data-dir", tmp_path
    assert call_main(*where, "--run-name", "mine", "--epochs", 1, "--batch-size", 8) == 0
    run_dir = tmp_path / "mine-shapes"
    (_, value), *_ = read_events(run_dir)["settings/text_summary"]
    assert b"not CIFAR-10" in value.tensor.string_val[0]
    captured = capsys.readouterr()
    assert "no mirror answers" in captured.err
    before, after = captured.out.split("step")[0], captured.out.split("step")[-1]
    assert "not CIFAR-10" in before and "not CIFAR-10" in after


# ------------------------------------------------------------------------------------ bad input

BAD = [
    *(["--epochs", text] for text in ("0", "-1", "two", "1.5", "nan", "9" * 5000, "")),
    *(["--batch-size", text] for text in ("0", "-4", "x", "121")),
    *(["--lr", text] for text in ("0", "-0.1", "nan", "inf", "fast")),
    *(["--momentum", text] for text in ("1", "-0.5", "nan")),
    *(["--report-every", text] for text in ("0", "-1", "often")),
    *(["--seed", text] for text in ("-1", "1.5", str(2**63))),
    *(["--run-name", text] for text in ("a/b", "..", "", "a\\b", "nul\0", "\udcff", "x" * 300)),
    *(["--run-name", text] for text in ("CON", "nul.txt", "Com1", "abc. ", "abc.", "a:b", " ")),
    *(["--device", text] for text in ("tpu", "cuda", "cuda:99", "")),
    *(["--log-dir", text] for text in ("file", "file/runs", "/proc/runs")),
    *(["--train-images", text] for text in ("0", "-1", "some", "121")),
    *(["--wrong-labels", text] for text in ("1", "-0.1", "nan", "all")),
    *(["--resume", text] for text in ("no/such/run", "", "x" * 5000, "file")),
    *(text.split() for text in ("stray", "--no-such-flag", "--views some", "--schedule cosine")),
    *(text.split() for text in ("--train-images 8 --batch-size 9", "--data no/such/folder")),
    *(text.split() for text in ("--resume x --lr 0.1", "--data cifar10 --mirror ftp://a.org/")),
    ["--epo", "3"],  # no abbreviations: they would change meaning when a flag is added
]
THERE_IS = {"121": "120", "9": "8 training images", "cuda": "cpu"}  # which is named, too


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: " ".join(bad)[:30].encode("unicode_escape"))
def test_bad_input_gets_one_line_and_status_2(bad, image_folder, tmp_path, monkeypatch, capsys):
    if bad[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "runs").mkdir()
    usual = [] if "--resume" in bad else ["--data", image_folder]
    line = refuse(capsys, tmp_path, *usual, *bad)
    value = "--lr" if bad == ["--resume", "x", "--lr", "0.1"] else bad[-1]
    assert (repr(value)[1:40] in line or value in line) and THERE_IS.get(value, "") in line
    assert "no checkpoint.pt" in line or bad[0] != "--resume" or value == "--lr"


def test_a_run_name_that_is_there_is_refused_and_left_alone(image_folder, tiny_run, capsys):
    words = settings(image_folder, tiny_run.parent, "--run-name", tiny_run.name)
    line = refuse(capsys, tiny_run.parent, *words)
    assert str(tiny_run) in line and "--resume" in line


# ------------------------------------------------------------------------ where the time goes


def test_some_steps_are_profiled_as_a_table_and_a_trace(tiny_run):
    ((_, value),) = read_events(tiny_run)["where the time goes/text_summary"]
    table = value.tensor.string_val[0].decode().splitlines()
    head, _, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert head[-1] == "calls" and len(rows) == 10
    shares = [float(share.removesuffix("%")) for _, share, _, _ in rows]
    assert shares == sorted(shares, reverse=True) and 50 < sum(shares) <= 100.5
    (calls,) = (calls for name, *_, calls in rows if "conv2d_backward" in html.unescape(name))
    assert int(calls) == 2 * 10  # two layers, ten steps
    trace = json.loads((tiny_run / "trace.json").read_text(encoding="utf-8"))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"aten::conv2d", "Optimizer.step#SGD.step"} <= names


@pytest.mark.parametrize(("step", "tables"), [(7, 0), (16, 1)])
def test_a_stop_near_the_profile_loses_nothing(image_folder, tmp_path, monkeypatch, step, tables):
    """At step 7 it is running, and must not go on; at step 16 its table waits for a report."""

    def stop_if_asked(run: Run) -> None:
        run.signals += [signal.SIGTERM] * (run.progress.step == step and not run.args.resume)
        original(run)

    original = Run.stop_if_asked
    monkeypatch.setattr(Run, "stop_if_asked", stop_if_asked)
    words = settings(image_folder, tmp_path, "--report-every", 40, "--run-name", "run")
    assert call_main(*words) == 128 + signal.SIGTERM
    assert call_main("--resume", tmp_path / "run") == 0
    assert len(read_events(tmp_path / "run").get("where the time goes/text_summary", [])) == tables
    torch.profiler.profile().__enter__().stop()  # fails while another profile runs


# --------------------------------------------------------------------------- the command line


def test_the_command_line_as_a_reader_uses_it(image_folder, tmp_path):
    """In a pipe: no bar, no traceback; the last line is the command for TensorBoard."""
    command = [sys.executable, train_cifar.__file__, "--data", image_folder, "--batch-size", "40"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\r" not in done.stdout
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d{6}", run_dir.name)
    assert f"run     {Path('runs') / run_dir.name}" in done.stdout
    watch = "tensorboard --logdir runs --samples_per_plugin images=100"
    assert done.stdout.splitlines()[-1].strip() == watch
    for name in CLASSES:
        assert re.search(rf"^\| {name} +\| {TEST_IMAGES} ", done.stdout, re.MULTILINE)


def test_help_names_every_flag_with_its_default(capsys):
    assert call_main("--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag, default in vars(train_cifar.parse_args([])).items():
        assert f"--{flag.replace('_', '-')} " in text
        if default not in (None, [], False):
            assert f"(default: {default})" in text


# ---------------------------------------------------------------------------------------- notes


def test_a_net_no_better_than_chance_is_noted(capsys):
    tenths, sixty = torch.arange(100) % 10, torch.arange(100) // 60
    # The largest class has a share of 0.1 or 0.6, with a standard error of 0.03 or 0.049.
    for labels, highest in ((tenths, 0.19), (sixty, 0.74)):
        note_chance(highest, labels)
        assert "NOTE: a test accuracy of" in capsys.readouterr().out
        note_chance(highest + 0.01, labels)
        assert capsys.readouterr().out == ""


def note_of(source: str, count: int, *words: str) -> str:
    """What is said before a run of `count` images in batches of four."""
    loader = DataLoader(range(count), batch_size=4)
    images = data.Data(loader, loader, [], source, source == "shapes", loader)
    args = train_cifar.parse_args(["--data", source, *words])
    return "\n".join(notes(SimpleNamespace(args=args, data=images, is_new=True)))


@pytest.mark.parametrize(
    ("count", "suited"), [(60, (40, 4, 0.01)), (600, (40, 16, 0.02)), (2100, (20, 16, 0.02))]
)
def test_a_short_run_is_told_the_command_that_suits(monkeypatch, count, suited):
    monkeypatch.setattr(sys, "argv", ["train_cifar.py"])
    (note,) = re.findall("NOTE: .* steps are too few .*; better: (.*)", note_of("my set", count))
    args = train_cifar.parse_args(shlex.split(note)[2:])
    assert (args.epochs, args.batch_size, args.lr) == suited
    assert (args.data, args.schedule, args.augment) == ("my set", "onecycle", True)


def test_other_than_default_settings_get_no_notes():
    assert PATIENCE_NOTE in note_of("shapes", 100_000)
    for more in ("--batch-size=32", "--lr=0.1", "--schedule=onecycle"):
        assert PATIENCE_NOTE not in note_of("shapes", 100_000, more)
    for more in ("--lr=0.002", "--schedule=onecycle", "--epochs=400"):
        assert note_of("my set", 60, more) == ""
