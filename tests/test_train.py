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
from conftest import CLASSES, TEST_IMAGES, read_events, read_scalars, run_tiny, same_weights
from PIL import Image
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader

import data
import support.run_dir
import train_cifar
from model import Net
from support.checkpoint import load_checkpoint
from support.errors import InputError, Stopped
from support.run import Run
from support.terminal import PATIENCE_NOTE, note_chance, notes

SCRIPT = Path(train_cifar.__file__)
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


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run_dir)["net"]


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
    assert same_weights(run_dir, tiny_run)  # the views do not touch the training


def test_images_held_back_are_watched_and_the_test_images_once(image_folder, tmp_path, capsys):
    run_dir = run_tiny(image_folder, tmp_path, "--validation", "30", "--train-images", "80")
    steps = steps_by_tag(run_dir)
    mistakes = [steps.pop(f"{part}/worst mistakes", []) for part in ("validation", "test")]
    assert set(mistakes[0]) <= {10, 20} and not mistakes[1]
    reports, epochs = [5, 10, 15, 20], [10, 20]
    moved = {
        tag.replace("test/", "validation/").replace("pr curve/", "validation/pr curve/"): {
            tuple(REPORTS): reports, tuple(EPOCHS): epochs, tuple(TESTS): [0, *epochs],
            (30,): [20], (5,): [5],
        }.get(tuple(at), at)
        for tag, at in ALL_VIEWS.items()
    }  # fmt: skip
    del moved["where the time goes/text_summary"]  # epochs are too short for ten steps in a row
    assert steps == moved | {"test/loss": [20], "test/accuracy": [20]}

    loaded = data.load_data(str(image_folder))
    rest, held = loaded.train_loader.dataset.hold_back(30, seed=0)
    net = Net(3)
    net.load_state_dict(weights(run_dir))
    scalars = read_scalars(run_dir)
    for part, images in (("validation", held), ("test", loaded.test_loader.dataset)):
        with torch.no_grad():
            preds = net(images.batch(range(len(images)))[0]).argmax(dim=1)
        right = (preds == images.labels).double().mean().item()
        assert scalars[f"{part}/accuracy"][-1][1] == pytest.approx(right)
        assert f"{part} accuracy {right:.1%}" in capsys.readouterr().out or part == "test"
    (_, curve) = read_events(run_dir)[f"validation/pr curve/{CLASSES[0]}"][-1]
    positives = np.array(
        curve.tensor.float_val or np.frombuffer(curve.tensor.tensor_content, "<f4")
    )
    assert positives.reshape(6, -1)[0, 0] == (held.labels == 0).sum()  # true ones at threshold 0
    ((_, layout),) = read_events(run_dir)["custom_scalars__config__"]
    assert b"^validation/loss$" in layout.SerializeToString()


def test_every_report_averages_as_many_batches_over_the_end_of_an_epoch(image_folder, tmp_path):
    """The reports at the end of an epoch, too: 15 is no multiple of 6."""
    each = run_tiny(image_folder, tmp_path, "--report-every", "8", "--views", "notes")
    losses = [loss for _, loss in read_scalars(each)["training loss"]]
    run_dir = run_tiny(image_folder, tmp_path, "--report-every", "48", "--views", "notes")
    reports = read_scalars(run_dir)["training loss"]
    assert [step for step, _ in reports] == [6, 12, 15, 21, 27, 30]
    for step, loss in reports:
        assert loss == pytest.approx(np.mean(losses[step - 6 : step]), rel=1e-6)


def test_the_losses_are_those_of_the_plain_loop_of_the_notes(image_folder, tmp_path):
    """The reference: images one by one, no fused optimizer, other kernels, per-step .item()."""
    settings = ["--batch-size", "4", "--epochs", "10", "--report-every", "4"]
    run_dir = run_tiny(image_folder, tmp_path, *settings, "--views", "notes")
    logged = [loss for _, loss in read_scalars(run_dir)["training loss"]]

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
    assert len(plain) == 300
    np.testing.assert_allclose(logged, plain, rtol=1e-3, atol=1e-4)


def test_the_test_scalars_are_those_of_the_final_weights(tiny_run, image_folder):
    net = Net(3)
    net.load_state_dict(weights(tiny_run))
    test_set = data.load_data(str(image_folder)).test_loader.dataset
    images = test_set.images.float() / 255 * 2 - 1
    with torch.no_grad():
        probs = net(images).double().softmax(dim=1)
    right = probs.gather(1, test_set.labels[:, None])
    scalars = read_scalars(tiny_run)
    assert scalars["test/loss"][-1][1] == pytest.approx(-right.log().mean().item(), rel=1e-4)
    accuracy = (probs.argmax(dim=1) == test_set.labels).double().mean().item()
    assert scalars["test/accuracy"][-1][1] == pytest.approx(accuracy)


def test_the_net_learns(tiny_run):
    losses = [loss for _, loss in read_scalars(tiny_run)["training loss"]]
    assert losses[-1] < 0.7 * losses[0]


def test_onecycle_rises_to_the_learning_rate_and_falls(image_folder, tmp_path):
    run_dir = run_tiny(image_folder, tmp_path, "--schedule", "onecycle", "--report-every", "8")
    rates = [lr for _, lr in read_scalars(run_dir)["training progress/learning rate"]]
    assert max(rates) == pytest.approx(0.02, rel=1e-2)
    peak = rates.index(max(rates))
    assert 0 < peak < len(rates) / 2
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-5
    (group,) = load_checkpoint(run_dir)["optimizer"]["param_groups"]
    assert group["momentum"] == 0.9  # PyTorch's default would take another one at every step


# --------------------------------------------------------------------------------------- repeats


def test_the_same_seed_gives_the_same_run_bit_for_bit(image_folder, tmp_path, tiny_run):
    again = run_tiny(image_folder, tmp_path)
    assert same_weights(again, tiny_run)
    changing = {"training progress/images per second"}
    one, other = read_scalars(again), read_scalars(tiny_run)
    assert {t: one[t] for t in one.keys() - changing} == {
        t: other[t] for t in other.keys() - changing
    }


def test_another_seed_gives_another_run(image_folder, tmp_path, tiny_run):
    assert not same_weights(run_tiny(image_folder, tmp_path, "--seed", "1"), tiny_run)


def test_augmented_runs_repeat_too(image_folder, tmp_path, tiny_run):
    one, other = (run_tiny(image_folder, tmp_path, "--augment") for _ in range(2))
    assert same_weights(one, other)
    assert not same_weights(one, tiny_run)


def test_two_runs_of_the_same_second_get_two_directories(tmp_path, monkeypatch):
    class Clock(support.run_dir.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(support.run_dir, "datetime", Clock)
    made = [support.run_dir.make_run_dir(str(tmp_path), None, "") for _ in range(3)]  # and locked
    assert [run_dir.name for run_dir, _ in made] == [
        "0102-030405",
        "0102-030405_2",
        "0102-030405_3",
    ]


# ------------------------------------------------------------------------ shapes for CIFAR-10


def test_shapes_are_never_taken_for_cifar10(tmp_path, monkeypatch, capsys):
    def no_network(*_):
        raise InputError("no mirror answers")

    def few(count: int, seed: int):
        return original(count // 500, seed)

    original = data.shapes.draw_shapes
    monkeypatch.setattr(data, "read_cifar10", no_network)
    monkeypatch.setattr(data.shapes, "draw_shapes", few)
    arguments = ["--log-dir", str(tmp_path), "--run-name", "mine", "--data-dir", str(tmp_path)]
    assert train_cifar.main([*arguments, "--epochs", "1"]) == 0
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
    *(["--batch-size", text] for text in ("0", "-4", "x")),
    *(["--lr", text] for text in ("0", "-0.1", "nan", "inf", "fast")),
    *(["--momentum", text] for text in ("1", "-0.5", "nan")),
    *(["--report-every", text] for text in ("0", "-1", "often")),
    *(["--seed", text] for text in ("-1", "1.5", str(2**63))),
    *(["--run-name", text] for text in ("a/b", "..", "", "a\\b", "nul\0", "\udcff", "x" * 300)),
    *(["--run-name", text] for text in ("CON", "nul.txt", "Com1", "abc. ", "abc.", "a:b", " ")),
    *(["--device", text] for text in ("tpu", "cuda:99", "")),
    *(["--train-images", text] for text in ("0", "-1", "some", "121")),
    *(["--wrong-labels", text] for text in ("1", "-0.1", "nan", "all")),
    ["--data", "no/such/folder"],
    ["--views", "some"],
    ["--schedule", "cosine"],
    ["--no-such-flag"],
    ["--epo", "3"],  # no abbreviations: they would change meaning when a flag is added
    ["stray"],
    ["--resume", "no/such/run"],
    ["--resume", "x", "--lr", "0.1"],
    ["--data", "cifar10", "--mirror", "ftp://example.org/"],
]


def run_main(arguments: list[str], capsys) -> tuple[int, str]:
    """Call main as the command line would; returns the exit status and stderr."""
    try:
        status = train_cifar.main(arguments)
    except SystemExit as exit:  # argparse
        status = exit.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: " ".join(bad)[:30].encode("unicode_escape"))
def test_bad_input_gets_one_line_and_status_2(bad, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    usual = [] if "--resume" in bad else ["--data", str(image_folder)]
    status, errors = run_main([*usual, *bad], capsys)
    assert status == 2
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("train_cifar.py: error: ")
    value = "--lr" if bad == ["--resume", "x", "--lr", "0.1"] else bad[-1]
    assert repr(value)[1:40] in errors or value in errors
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_cuda_where_there_is_none_says_what_there_is(image_folder, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    where = ["--data", str(image_folder), "--log-dir", str(tmp_path / "runs")]
    status, errors = run_main([*where, "--device", "cuda"], capsys)
    assert status == 2 and "'cuda'" in errors and "cpu" in errors
    assert not (tmp_path / "runs").exists()


def test_a_batch_larger_than_the_images_is_refused(image_folder, tmp_path, capsys):
    where = ["--data", str(image_folder), "--log-dir", str(tmp_path / "runs")]
    status, errors = run_main([*where, "--batch-size", "121"], capsys)
    assert status == 2 and "121" in errors and "120" in errors
    assert not (tmp_path / "runs").exists()


def test_a_batch_larger_than_the_images_asked_for_is_refused(image_folder, tmp_path, capsys):
    where = ["--data", str(image_folder), "--log-dir", str(tmp_path / "runs")]
    status, errors = run_main([*where, "--train-images", "8", "--batch-size", "9"], capsys)
    assert status == 2 and "--batch-size 9" in errors and "8 training images" in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("log_dir", ["file", "file/runs", "/proc/runs"])
def test_a_log_dir_that_cannot_be_written_is_refused(log_dir, image_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    if log_dir.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc on this system")
    path = str(tmp_path / log_dir)
    status, errors = run_main(["--data", str(image_folder), "--log-dir", path], capsys)
    assert status == 2 and path in errors and len(errors.splitlines()) == 1


def test_a_run_name_that_is_there_is_refused_and_left_alone(image_folder, tiny_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    where = ["--data", str(image_folder), "--log-dir", str(tiny_run.parent)]
    status, errors = run_main([*where, "--run-name", tiny_run.name], capsys)
    assert status == 2 and str(tiny_run) in errors and "--resume" in errors
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(image_folder, tmp_path, capsys):
    where = ["--data", str(image_folder), "--log-dir", str(tmp_path)]
    arguments = [*where, "--lr", "1e30", "--batch-size", "8", "--report-every", "40"]
    status, errors = run_main(arguments, capsys)
    assert status == 1 and len(errors.splitlines()) == 1
    step = int(re.search(r"the loss became (nan|inf) at step (\d+):", errors)[2])
    assert 2 <= step <= 5 and "--lr" in errors
    (run_dir,) = tmp_path.iterdir()
    state = load_checkpoint(run_dir)
    assert state["progress"]["step"] == 0  # the last good one
    assert all(w.isfinite().all() for w in state["net"].values())


def test_a_run_whose_loss_is_no_number_is_shown_as_failed(image_folder, tmp_path, tiny_run, capsys):
    words = ["--data", image_folder, "--log-dir", tmp_path, "--lr", "1e30", "--report-every", "40"]
    assert train_cifar.main([str(word) for word in words]) == 1
    (run_dir,) = tmp_path.iterdir()
    assert status_in_hparams(run_dir) == "STATUS_FAILURE"
    assert status_in_hparams(tiny_run) == "STATUS_SUCCESS"


def status_in_hparams(run_dir: Path) -> str:
    ((_, value),) = read_events(run_dir)["_hparams_/session_end_info"]
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    return Status.Name(content.session_end_info.status)


# ------------------------------------------------------------------------ where the time goes


def test_some_steps_are_profiled_as_a_table_and_a_trace(tiny_run):
    ((_, value),) = read_events(tiny_run)["where the time goes/text_summary"]
    head, _, *rows = value.tensor.string_val[0].decode().splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")][-1] == "calls"
    found = {}
    for row in rows:
        name, share, _, calls = (cell.strip() for cell in row.strip("|").split("|"))
        found[html.unescape(name)] = float(share.removesuffix("%")), int(calls)
    assert len(found) == 10
    shares = [share for share, _ in found.values()]
    assert shares == sorted(shares, reverse=True) and 50 < sum(shares) <= 100.5
    (convolution,) = (n for name, (_, n) in found.items() if "conv2d_backward" in name)
    assert convolution == 2 * 10  # two layers, ten steps
    trace = json.loads((tiny_run / "trace.json").read_text(encoding="utf-8"))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"aten::conv2d", "Optimizer.step#SGD.step"} <= names


def test_a_stop_while_steps_are_profiled_leaves_no_profile_running(image_folder, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "stop_if_asked", stop_at_step_7)
        arguments = ["--data", image_folder, "--log-dir", tmp_path, "--batch-size", 8]
        arguments += ["--report-every", 40, "--run-name", "stopped"]
        assert train_cifar.main([str(word) for word in arguments]) == 128 + signal.SIGTERM
    run_tiny(image_folder, tmp_path)  # profiles again, which fails while another profile runs


def test_a_stop_before_the_report_that_shows_it_does_not_lose_the_table(image_folder, tmp_path):
    def stop_at_step_16(run: Run) -> None:
        run.signals += [signal.SIGTERM] * (run.progress.step == 16)
        original(run)

    original = Run.stop_if_asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "stop_if_asked", stop_at_step_16)
        arguments = ["--data", image_folder, "--log-dir", tmp_path, "--batch-size", 8]
        arguments += ["--report-every", 40, "--run-name", "stopped"]
        assert train_cifar.main([str(word) for word in arguments]) == 128 + signal.SIGTERM
    assert train_cifar.main(["--resume", str(tmp_path / "stopped")]) == 0
    assert len(read_events(tmp_path / "stopped")["where the time goes/text_summary"]) == 1


def stop_at_step_7(run: Run) -> None:
    if run.progress.step == 7:
        raise Stopped(signal.SIGTERM, "stopped")


# --------------------------------------------------------------------------- the command line


def test_the_command_line_as_a_reader_uses_it(image_folder, tmp_path):
    """In a pipe: no bar, no traceback; the last line is the command for TensorBoard."""
    command = [sys.executable, SCRIPT, "--data", image_folder, "--epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\r" not in done.stdout
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d{6}", run_dir.name)
    assert f"run     {Path('runs') / run_dir.name}" in done.stdout
    assert done.stdout.splitlines()[-1].split() == [
        *"tensorboard --logdir runs --samples_per_plugin images=100".split()
    ]
    for name in CLASSES:
        assert re.search(rf"^\| {name} +\| {TEST_IMAGES} ", done.stdout, re.MULTILINE)


def test_help_names_every_flag_with_its_default():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    for flag, default in vars(train_cifar.parse_args([])).items():
        assert f"--{flag.replace('_', '-')} " in text
        if default not in (None, [], False):
            assert f"(default: {default})" in text


def test_the_defaults_are_the_notes():
    args = train_cifar.parse_args([])
    assert (args.epochs, args.batch_size, args.lr, args.momentum) == (2, 4, 0.001, 0.9)
    assert args.report_every == 2000 * 4
    assert (args.schedule, args.augment, args.views) == ("constant", False, "all")


# ---------------------------------------------------------------------------------------- notes


@pytest.mark.parametrize(
    ("labels", "accuracy", "noted"),
    [
        (torch.arange(100) % 10, 0.19, True),  # a share of 0.1, with a standard error of 0.03
        (torch.arange(100) % 10, 0.20, False),
        (torch.arange(100) // 60, 0.74, True),  # 0.6 and 0.049
        (torch.arange(100) // 60, 0.75, False),
    ],
)
def test_a_net_no_better_than_chance_is_noted(capsys, labels, accuracy, noted):
    note_chance(accuracy, labels)
    assert ("NOTE: a test accuracy of" in capsys.readouterr().out) == noted


@pytest.mark.parametrize("more", [[], ["--batch-size=32"], ["--lr=0.1"], ["--schedule=onecycle"]])
def test_patience_is_asked_for_with_the_defaults_only(more):
    loader = [None] * 25_000
    shapes = data.Data(loader, loader, [], "shapes", True, loader)
    run = SimpleNamespace(args=train_cifar.parse_args(more), data=shapes, is_new=True)
    assert (PATIENCE_NOTE in notes(run)) == (more == [])


# ------------------------------------------------------------------------------- small sets


@pytest.mark.parametrize(
    ("count", "suited"), [(60, (40, 4, 0.01)), (600, (40, 16, 0.02)), (2100, (20, 16, 0.02))]
)
def test_a_short_run_is_told_the_command_that_suits(tmp_path, capsys, monkeypatch, count, suited):
    monkeypatch.setattr(sys, "argv", ["train_cifar.py"])
    images = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 3), np.uint8)
    for index, pixels in enumerate(images):
        path = tmp_path / "my set" / ("train" if index % 50 else "test") / "ab"[index // 2 % 2]
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / f"{index}.png")
    words = ["--data", str(tmp_path / "my set"), "--log-dir", str(tmp_path), "--views", "notes"]
    monkeypatch.setattr(train_cifar, "train", lambda run: None)
    assert train_cifar.main(words) == 0
    (note,) = re.findall("NOTE: .* steps are too few .*; better: (.*)", capsys.readouterr().out)
    args = train_cifar.parse_args(shlex.split(note)[2:])
    assert (args.epochs, args.batch_size, args.lr) == suited
    assert (args.data, args.schedule, args.augment) == (words[1], "onecycle", True)
    enough = [["--lr", "0.002"], ["--schedule", "onecycle"], ["--epochs", "400"]]
    for more in enough if count == 60 else []:
        assert train_cifar.main([*words, *more]) == 0
        assert "too few" not in capsys.readouterr().out
