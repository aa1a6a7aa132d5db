"""What can go wrong from outside, and what becomes of the run.

A run that cannot go on ends with one line on stderr that says why, and never with a traceback. Its
last checkpoint stays whole, and `--resume` goes on from it.

| fault | what happens | test |
|---|---|---|
| **the run is killed** | | |
| SIGKILL at 20 random moments | resumed, it ends with the same weights and scalars | `test_resume.test_twenty_kills_at_random_moments_change_nothing` |
| the same with a schedule and augmentation | the same | `test_resume.test_kills_with_onecycle_augmentation_and_images_held_back` |
| SIGKILL in the middle of an event, of a checkpoint, between the two, in the last views ... | the old or the new checkpoint is whole; the same | `test_resume.test_a_kill_at_the_worst_places_changes_nothing` |
| a stop in the middle of an epoch | goes on at the next batch | `test_resume.test_a_run_goes_on_at_the_very_batch` |
| Ctrl-C or SIGTERM, in training, views, evaluation, a save | saved, flushed; the resume command; 130 or 143 | `test_faults.test_a_signal_saves_and_says_how_to_go_on` |
| a signal after the last epoch | the run ends as usual | `test_faults.test_a_signal_after_the_last_batch_lets_the_run_end` |
| a lost connection (SIGHUP), a closed terminal | saved, 129; with nohup it goes on | `test_faults.test_a_signal_saves_and_says_how_to_go_on`, `test_faults.test_a_terminal_that_is_closed_saves_the_run`, `test_faults.test_nohup_keeps_a_run_going` |
| `main()` in a notebook, or in another thread | prints commands that work; trains | `test_faults.test_in_a_notebook_the_commands_name_the_script`, `test_faults.test_another_thread_trains_without_signals` |
| a file system without locks (NFS, Lustre) | a line; the run goes on | `test_faults.test_a_file_system_without_locks_is_said` |
| PyTorch is older than 2.6 | one line, 2 | `test_faults.test_a_pytorch_that_is_too_old_is_refused` |
| a second signal | ends at once; the last checkpoint is whole | `test_faults.test_a_second_signal_ends_at_once` |
| a signal while images are read | ends; nothing was made | `test_faults.test_a_signal_while_images_are_read_leaves_nothing` |
| **what is to be resumed** | | |
| the run is finished | says so; 0; nothing is touched | `test_resume.test_a_finished_run_has_nothing_left_to_do` |
| the run directory was moved or renamed | goes on there | `test_resume.test_a_run_goes_on_from_another_directory_and_under_another_name` |
| the images or labels have changed, of training or test | refused; the folder is left as it was | `test_resume.test_other_images_are_refused` |
| a truncated checkpoint | refused, the same | `test_resume.test_a_truncated_checkpoint_is_refused` |
| a flipped bit in it | refused, the same | `test_resume.test_a_flipped_bit_in_a_checkpoint_is_refused` |
| a checkpoint of another net, or of its layers in another order | refused, the same | `test_resume.test_a_checkpoint_of_another_net_is_refused` |
| a checkpoint of another program | refused, the same | `test_resume.test_what_another_program_saved_is_refused` |
| code in it | refused, not run | `test_resume.test_code_in_a_checkpoint_is_not_run` |
| killed before its first checkpoint | the same name is free | `test_resume.test_a_run_killed_before_its_first_checkpoint_can_be_started_again` |
| settings of every kind, 0 too | resumed with them | `test_resume.test_settings_survive_save_and_resume` |
| settings of another version | refused, the same | `test_resume.test_settings_of_another_version_are_refused` |
| the printed command is pasted | it resumes the run | `test_faults.test_the_printed_command_resumes_the_run` |
| no checkpoint there | refused | `test_resume.test_a_directory_without_a_checkpoint_is_refused` |
| **the disk** | | |
| full or read-only, at an event, a checkpoint, the last views | 1 and a line; goes on when it is mended | `test_faults.test_a_disk_that_takes_no_more_ends_the_run` |
| a limit of file sizes | the same | `test_faults.test_a_file_that_may_not_grow_ends_the_run` |
| the run folder vanishes, or a file is in its place | 1 and a line that says it is gone | `test_faults.test_a_run_directory_that_vanishes_ends_the_run` |
| nobody reads stdout (`head`) | 1 and a line; can be resumed | `test_faults.test_output_that_nobody_reads_ends_the_run` |
| stdout is on a full device | 1 and a line that names it; can be resumed | `test_faults.test_output_that_cannot_be_written_is_named` |
| stdout or stderr is closed | the run goes on | `test_faults.test_closed_and_full_streams_give_no_traceback` |
| a log directory that cannot be written | refused before any work | `test_train.test_a_log_dir_that_cannot_be_written_is_refused` |
| a run of that name is there | refused; it is left alone | `test_train.test_a_run_name_that_is_there_is_refused_and_left_alone` |
| **numbers** | | |
| the loss, the weights or the test loss become NaN or infinite | 1 and a line with the step; the last good checkpoint stays | `test_faults.test_numbers_that_leave_the_floats_end_the_run` |
| extreme learning rates and momenta | trained, or the same | `test_faults.test_extreme_settings` |
| histograms of NaN and infinity | they are left out | `test_viz.test_histograms_of_odd_values_count_the_finite_ones` |
| **views** | | |
| 1,000 classes and more | pictures of bounded size | `test_viz.test_a_confusion_matrix_is_bounded_and_readable`, `test_viz.test_every_figure_takes_any_number_of_classes` |
| a class has the name of a view | both are shown | `test_viz.test_classes_may_have_the_names_of_other_views` |
| Markdown in a name or path | it appears as it is | `test_viz.test_any_name_appears_in_text_as_it_is` |
| the run diverges | HPARAMS says that it failed | `test_train.test_a_run_whose_loss_is_no_number_is_shown_as_failed` |
| a view fails | a line; the run goes on | `test_faults.test_a_view_that_fails_costs_the_view_and_not_the_run` |
| **two at once** | | |
| two resumes of a run | one goes on, the other gets 2 | `test_resume.test_of_two_resumes_at_once_one_goes_on`, `test_resume.test_a_run_in_progress_cannot_be_resumed` |
| two runs begun in the same second | a directory each | `test_faults.test_two_runs_begun_in_the_same_second_do_not_mix` |
| two processes download at once | it is downloaded once | `test_download.test_two_processes_download_once` |
| **several processes of one run** | | |
| bad input | one line, status 2 of each | `test_distributed.test_bad_input_is_told_once` |
| more processes than GPUs | refused | `test_distributed.test_more_processes_than_gpus_are_refused` |
| a process dies | the others end with a line | `test_distributed.test_a_process_that_dies_ends_the_other` |
| the same under torchrun | it ends with 1 | `test_distributed.test_torchrun_ends_with_an_error_when_a_process_dies` |
| a signal to one of them | all stop at the same batch, saved | `test_distributed.test_a_signal_to_one_process_saves_and_ends_all` |
| the first cannot write | its line; all end | `test_distributed.test_a_disk_fault_of_the_first_ends_all` |
| a loss that is NaN | one line; all end | `test_distributed.test_a_loss_that_is_no_number_ends_all` |
| **the command line** | | |
| any words | a run, or one line and 2 | `test_faults.test_any_command_line_gives_a_run_or_one_line` |
| values that cannot work | the line names the value | `test_train.test_bad_input_gets_one_line_and_status_2` |
| CUDA where there is none | the line says what there is | `test_train.test_cuda_where_there_is_none_says_what_there_is` |
| a device without memory, or without an operation | the line names `--device cpu` | `test_device.test_an_error_of_a_device_becomes_one_line_that_names_the_cpu`, `test_device.test_a_device_that_does_not_work_is_named_with_the_cure` |
| **the download** | | |
| a mirror answers 404, 500, 503, a page, wrong bytes, half of it ... | named; the next is asked | `test_download.test_a_mirror_that_fails_is_named`, `test_download.test_the_next_mirror_helps` |
| a mirror redirects, or ignores Range | it works | `test_download.test_a_mirror_that_works` |
| it redirects to nowhere | the next is asked | `test_download.test_redirect_to_nowhere` |
| it is silent, from the start or in the middle | time-out; continued elsewhere | `test_download.test_silence`, `test_download.test_silence_in_the_middle_is_continued` |
| all are silent | asked once, together; given up within 30 s | `test_download.test_ten_silent_mirrors_are_asked_once_and_together`, `test_download.test_the_real_constants_end_within_30_seconds` |
| the first mirror is slow | the fastest is found at once | `test_download.test_the_fastest_mirror_is_found_at_once`, `test_download.test_who_is_chosen` |
| a mirror becomes slow | left for one that is much faster | `test_download.test_a_mirror_that_becomes_slow_is_left` |
| all are slow | it continues | `test_download.test_a_mirror_without_a_faster_one_goes_on` |
| a mirror trickles | left | `test_download.test_a_mirror_that_trickles_is_left`, `test_download.test_a_mirror_that_only_trickles_is_no_mirror` |
| a dead address in the list | costs nobody anything | `test_download.test_a_dead_address_costs_nobody_anything` |
| wrong bytes from one of three, or of two | found and left out | `test_download.test_wrong_bytes_are_thrown_away_and_their_mirror_left`, `test_download.test_of_two_mirrors_the_wrong_one_is_found` |
| a server sends control characters | not printed | `test_download.test_control_characters_of_a_server_reach_nobody` |
| stderr is closed or broken | the download continues | `test_download.test_nobody_need_read_what_is_said` |
| ten cuts in a row | continued; at most 1.1 times the bytes | `test_download.test_ten_cuts_cost_almost_nothing` |
| nobody listens, no such name, no TLS | named | `test_download.test_nobody_listens`, `test_download.test_name_not_found`, `test_download.test_no_tls` |
| a mirror that is no address | refused | `test_download.test_a_mirror_that_is_no_url`, `test_download.test_any_text_for_a_mirror` |
| a partial file, whole, rotten or of a killed process | continued, used, thrown away | `test_download.test_part_of_an_earlier_run_is_continued`, `test_download.test_part_that_is_whole_needs_no_network`, `test_download.test_rotten_part_is_thrown_away`, `test_download.test_killed_process_is_continued_by_another` |
| an archive or files are there already | no network | `test_download.test_archive_on_disk_is_used_without_network`, `test_download.test_unpacked_files_are_found`, `test_download.test_the_archive_is_found_under_any_name` |
| an archive there is wrong, files are damaged | named and kept; mended | `test_download.test_wrong_archive_on_disk_is_named_and_kept`, `test_download.test_damaged_files_are_mended_and_others_kept` |
| CIFAR-10 is incomplete, damaged, or CIFAR-100's | said before any download, and in its error | `test_download.test_what_is_wrong_with_a_folder_is_said_before_and_after_a_download` |
| `--data` is CIFAR-10's own folder or archive | the line says what to type | `test_download.test_cifar10_given_as_a_folder_of_images_says_what_to_type` |
| an archive that writes outside, or holds something else | only the files of CIFAR-10 are unpacked | `test_download.test_only_files_of_cifar10_are_unpacked` |
| the disk is full, the folder cannot be made | named | `test_download.test_disk_full`, `test_download.test_folder_that_cannot_be_made` |
| Ctrl-C or SIGTERM, or a kill while unpacking | 130 or 143, the part is kept; the rest cleared | `test_download.test_a_signal_during_the_download_keeps_the_part`, `test_download.test_remains_of_a_killed_unpacking_are_cleared` |
| CIFAR-10 cannot be had | the shapes, said loudly | `test_data.test_auto_falls_back_to_the_shapes_loudly`, `test_train.test_shapes_are_never_taken_for_cifar10` |
| **images from anywhere** | | |
| grey, palette, RGBA, 16 bits, CMYK ... | read in their colours | `test_folder.test_every_kind_of_image_is_read_in_its_colours` |
| rotated by EXIF; animated; transparent | upright; the first picture; on white | `test_folder.test_the_rotation_in_exif_is_honoured`, `test_folder.test_the_first_picture_of_an_animation_is_taken`, `test_folder.test_what_is_half_transparent_lets_white_through` |
| truncated, empty, not an image | the file is named | `test_folder.test_a_broken_file_is_named` |
| a decompression bomb | named | `test_folder.test_decompression_bombs_are_recognised_as_such` |
| links, links in a circle, to nothing; pipes | followed; end; named | `test_folder.test_links_are_followed_and_loops_end`, `test_folder.test_links_to_nothing_and_pipes_are_named` |
| Chinese names, in whatever locale | read | `test_folder.test_chinese_classes_are_read_in_whatever_locale` |
| Chinese names and spaces | read | `test_folder.test_chinese_names_and_spaces` |
| hidden files, and what is no picture by its ending | skipped; the latter in a line | `test_folder.test_hidden_files_are_skipped_without_a_word`, `test_folder.test_what_is_no_picture_by_its_ending_is_skipped_in_one_line` |
| what may not be read or listed | named | `test_folder.test_a_file_that_may_not_be_read_is_named`, `test_folder.test_a_folder_that_cannot_be_listed` |
| parts with other names, a folder around them | found; what is left unread is said | `test_folder.test_the_parts_are_found_by_what_they_are_called` |
| no test part | every fifth picture is held back, and a line says so | `test_folder.test_without_a_test_part_every_fifth_picture_of_a_class_is_held_back` |
| a layout that may mean several things | refused: a line with what was found | `test_folder.test_a_layout_that_cannot_be_understood_is_refused_with_what_was_found` |
| a pointer of Git LFS, a web page, HEIC, named .jpg | told by its first bytes | `test_folder.test_the_first_bytes_tell_what_a_file_is` |
| many files that cannot be read | counted, the first is named | `test_folder.test_all_files_that_cannot_be_read_are_counted` |
| 12 bits, zero for white, a transparent colour of 16 bits | read in their shades | `test_folder.test_grey_tiffs_are_read_in_their_shades`, `test_folder.test_a_tiff_of_16_bits_in_which_zero_is_white`, `test_folder.test_a_transparent_colour_of_16_bits_becomes_white` |
| 32 bits, or numbers with a sign | refused: which one is white? | `test_folder.test_whole_numbers_of_which_the_white_one_is_not_known_are_refused` |
| a class in two Unicode forms | one class | `test_folder.test_a_class_in_two_unicode_forms_is_one` |
| no image left by `--validation`; a class missing from it | one line, status 2; a line | `test_data.test_holding_back_all_images_is_an_input_error`, `test_data.test_a_class_that_is_missing_is_named` |
| any folder at all | images, or one line | `test_folder.test_any_folder_gives_data_or_a_data_error` |
"""  # noqa: E501

import errno
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import filelock
import pytest
import torch
from conftest import same_weights
from forked import (
    Fault,
    Finished,
    finish,
    hang_up,
    interrupt,
    resume,
    settings,
    start,
    terminate,
    train,
)
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from loaders import in_python_loader, open_run

import data
import support.run_dir
import train_cifar
from support.checkpoint import load_checkpoint
from support.errors import NothingToDo
from support.run import Run
from support.terminal import caught_signals, exit_status, resume_command, start_command


@pytest.fixture(scope="module")
def whole(image_folder, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("whole") / "whole"
    assert train(arguments(image_folder, run_dir), run_dir).status == 0
    return run_dir


def arguments(image_folder: Path, run_dir: Path) -> list[object]:
    """One epoch of 15 batches, a report every five."""
    return settings(image_folder, run_dir.parent, "--report-every", 40, "--epochs", 1)


def assert_goes_on(run_dir: Path, whole: Path) -> None:
    """Resumed, the run ends as if nothing had happened."""
    finished = resume(run_dir)
    assert finished.status == 0, finished.output
    assert same_weights(run_dir, whole)
    assert in_python_loader(open_run(run_dir)) == in_python_loader(open_run(whole))


def complaint(finished: Finished) -> str:
    """The one line that the program says about its failure; everything else is its usual output."""
    usual = r"(reading|images|device|run|watch|epoch \d+/\d+) |NOTE: |stopped by |  python |\|"
    (line,) = (line for line in finished.output.splitlines() if not re.match(usual, line))
    assert line.startswith("train_cifar.py: ")
    return line.removeprefix("train_cifar.py: ")


# ---------------------------------------------------------------------------------------- signals

MOMENTS = {
    "before the first batch": ("viz.add_net_graph", 1, 1),
    "in an epoch": ("support.run.to_channels_last", 9, 9),
    "in a report": ("viz.add_predictions", 2, 10),
    "in a save": ("support.checkpoint.os.fsync", 3, 10),
    "in an evaluation": ("train_cifar.evaluate", 2, 15),
    "in the views of an epoch": ("viz.add_pr_curves", 1, 15),
}


@pytest.mark.parametrize(
    ("press", "moment"),
    [
        *((interrupt, moment) for moment in MOMENTS),
        (terminate, "in an epoch"),
        (hang_up, "in an epoch"),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(image_folder, tmp_path, whole, moment, press):
    place, call, step = MOMENTS[moment]
    run_dir = tmp_path / "a run"
    finished = train(arguments(image_folder, run_dir), run_dir, Fault(place, press, call))
    assert finished.status == {interrupt: 130, terminate: 143, hang_up: 129}[press]
    *_, said, command = finished.output.splitlines()
    name = {interrupt: "SIGINT", terminate: "SIGTERM", hang_up: "SIGHUP"}[press]
    assert said == f"stopped by {name}; to resume:"
    assert command == f"  python train_cifar.py --resume '{run_dir}'"
    assert "Traceback" not in finished.output
    assert load_checkpoint(run_dir)["progress"]["step"] == step
    shown, expected = (in_python_loader(open_run(path)) for path in (run_dir, whole))
    for tag, points in expected.items():  # all that was to be shown so far
        assert shown.get(tag, []) == [point for point in points if point[0] <= step], tag
    assert_goes_on(run_dir, whole)


@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="needs a terminal")
def test_a_terminal_that_is_closed_saves_the_run(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    words = [*arguments(image_folder, run_dir), "--epochs", 100, "--run-name", "run"]
    process, terminal = os.forkpty()
    if process == 0:
        command = [sys.executable, train_cifar.__file__, *map(str, words)]
        os.execv(sys.executable, command)
    shown = b""
    while b"epoch 2/100" not in shown:
        shown += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 129
    progress = load_checkpoint(run_dir)["progress"]
    assert progress["step"] >= 15 and not progress["finished"]


def test_nohup_keeps_a_run_going():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with caught_signals(caught := []):
            hang_up()
            interrupt()
        assert caught == [signal.SIGINT]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_trains_without_signals(image_folder, tmp_path):
    words, statuses = list(map(str, arguments(image_folder, tmp_path / "run"))), []
    thread = threading.Thread(target=lambda: statuses.append(train_cifar.main(words)))
    thread.start()
    thread.join()
    assert statuses == [0]


def test_in_a_notebook_the_commands_name_the_script(monkeypatch, capsys):
    @exit_status
    def main(argv: list[str]) -> None:
        print(resume_command(Path("runs/x")), start_command(*sys.argv[1:]), sep="\n")

    before = ["/usr/lib/ipykernel_launcher.py", "-f", "kernel.json"], threading.excepthook
    monkeypatch.setattr(sys, "argv", before[0])
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # xdist has none
    assert main(["--epochs", "1"]) == 0
    resume_line, command = capsys.readouterr().out.splitlines()
    assert resume_line.endswith(" train_cifar.py --resume runs/x")
    assert command.endswith(" train_cifar.py --epochs 1")
    assert (sys.argv, threading.excepthook) == before  # what it has replaced is put back


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(image_folder, tmp_path, monkeypatch, capsys, number):
    def acquire(self, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    assert train_cifar.main([*map(str, arguments(image_folder, tmp_path / "run"))]) == 0
    assert capsys.readouterr().err.count("is on a file system without locks") == 1


@pytest.mark.parametrize("version", ["2.5.1+cu124", "1.13.1"])
def test_a_pytorch_that_is_too_old_is_refused(monkeypatch, capsys, tmp_path, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert train_cifar.main(["--log-dir", str(tmp_path / "runs")]) == 2
    assert f"PyTorch {version} is too old, 2.6 or later is needed" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_signal_after_the_last_batch_lets_the_run_end(image_folder, tmp_path):
    run_dir = tmp_path / "run"
    press = Fault("viz.add_projector", terminate)
    assert train(arguments(image_folder, run_dir), run_dir, press).status == 0
    assert load_checkpoint(run_dir)["progress"]["finished"]


def press_twice() -> None:
    interrupt()
    interrupt()


def press_both() -> None:
    interrupt()
    terminate()


@pytest.mark.parametrize(
    ("press", "signum"), [(press_twice, signal.SIGINT), (press_both, signal.SIGTERM)]
)
def test_a_second_signal_ends_at_once(image_folder, tmp_path, whole, press, signum):
    run_dir = tmp_path / "run"
    fault = Fault("support.run.to_channels_last", press, 9)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == -signum
    assert "Traceback" not in finished.output
    assert load_checkpoint(run_dir)["progress"]["step"] == 5
    assert_goes_on(run_dir, whole)


@pytest.mark.parametrize(("press", "status"), [(interrupt, 130), (terminate, -signal.SIGTERM)])
def test_a_signal_while_images_are_read_leaves_nothing(image_folder, tmp_path, press, status):
    log_dir = tmp_path / "runs"
    output = tmp_path / "output"
    words = settings(image_folder, log_dir)
    finished = finish(start(words, output, Fault("support.folder.read_image", press, 30)), output)
    said = {interrupt: "train_cifar.py: interrupted\n", terminate: ""}[press]
    assert finished == (status, f"reading the images ...\n{said}")
    assert not log_dir.exists()


# ------------------------------------------------------------------------------------------- disk


class Filled(NamedTuple):
    """Fill a disk to the last byte."""

    folder: Path

    def __call__(self) -> None:
        with open(self.folder / "filler", "wb", buffering=0) as file:
            size = 2**16
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2


class ReadOnly(NamedTuple):
    """Make a disk refuse every change, although a file on it is open: mount it over itself."""

    folder: Path

    def __call__(self) -> None:
        assert mount("--bind", self.folder, self.folder)
        assert mount("-o", "remount,bind,ro", self.folder)


class Vanished(NamedTuple):
    """Move the run directory away."""

    run_dir: Path

    def __call__(self) -> None:
        self.run_dir.rename(self.run_dir.with_name("moved"))


class Replaced(NamedTuple):
    """Put a file where the run directory was."""

    run_dir: Path

    def __call__(self) -> None:
        Vanished(self.run_dir)()
        self.run_dir.write_text("in the way")


def mount(*words: object) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path) -> Path:
    """A disk of its own, of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder)
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small tmpfs cannot be mounted here (it takes root on Linux)")
    yield folder
    subprocess.run(["umount", folder], check=True)


DISK_FAULTS = {
    "full, at an event": (Filled, "viz.add_predictions", 2, "No space left on device"),
    "full, at a checkpoint": (Filled, "support.run.Run.save", 2, "No space left on device"),
    "full, at the last views": (Filled, "viz.add_projector", 1, "No space left on device"),
    "read-only, at an event": (ReadOnly, "viz.add_predictions", 2, "Read-only file system"),
    "read-only, at a checkpoint": (ReadOnly, "support.run.Run.save", 2, "Read-only file system"),
}


@pytest.mark.parametrize("fault", DISK_FAULTS)
def test_a_disk_that_takes_no_more_ends_the_run(image_folder, disk, whole, fault):
    run_dir = disk / "run"
    happen, place, call, reason = DISK_FAULTS[fault]
    finished = train(arguments(image_folder, run_dir), run_dir, Fault(place, happen(disk), call))
    assert finished.status == 1, finished.output
    line = complaint(finished)
    assert line.startswith(f"failed: cannot write to {str(run_dir)!r} ({reason})")
    assert line.endswith(f"--resume {run_dir}")
    before = load_checkpoint(run_dir)

    again = resume(run_dir)  # nothing has changed yet
    assert (again.status, complaint(again)) == (1, line)
    assert load_checkpoint(run_dir)["progress"] == before["progress"]

    if happen is Filled:
        (disk / "filler").unlink()
    else:
        subprocess.run(["umount", disk], check=True)
    assert_goes_on(run_dir, whole)


def limit_file_size() -> None:
    """Let no file grow beyond 100 kB, which a checkpoint needs, and events of two reports."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("place", ["viz.add_predictions", "support.run.Run.save"])
def test_a_file_that_may_not_grow_ends_the_run(image_folder, tmp_path, whole, place):
    """The same, for those who cannot mount a disk."""
    run_dir = tmp_path / "run"
    fault = Fault(place, limit_file_size, 2)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 1, finished.output
    assert complaint(finished).startswith(f"failed: cannot write to {str(run_dir)!r} (File too")
    assert_goes_on(run_dir, whole)


@pytest.mark.parametrize("place", ["viz.add_predictions", "support.run.Run.save"])
@pytest.mark.parametrize("happen", [Vanished, Replaced])
def test_a_run_directory_that_vanishes_ends_the_run(image_folder, tmp_path, whole, happen, place):
    run_dir = tmp_path / "run"
    fault = Fault(place, happen(run_dir), 2)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 1, finished.output
    line = complaint(finished)
    assert line.startswith(f"failed: cannot write to {str(run_dir)!r} (N")
    assert line.endswith("the run folder is gone: bring it back and resume, or start a new run")
    assert not run_dir.is_dir()
    assert_goes_on(tmp_path / "moved", whole)


def close_reader() -> None:
    """Give the program a pipe as stdout that nobody reads, as `| head` does after its ten lines."""
    read_end, write_end = os.pipe()
    os.dup2(write_end, sys.stdout.fileno())
    os.close(read_end)
    os.close(write_end)


def test_output_that_nobody_reads_ends_the_run(image_folder, tmp_path, whole):
    run_dir = tmp_path / "run"
    fault = Fault("train_cifar.evaluate", close_reader, 2)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 1
    assert complaint(finished).startswith("failed: the output cannot be written (nobody reads it)")
    assert_goes_on(run_dir, whole)


def full_output() -> None:
    """Give the program a stdout that takes nothing, as a full disk does."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), sys.stdout.fileno())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_output_that_cannot_be_written_is_named(image_folder, tmp_path, whole):
    """And not the run folder, which is in order."""
    run_dir = tmp_path / "run"
    fault = Fault("train_cifar.evaluate", full_output, 2)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 1
    assert complaint(finished).startswith("failed: the output cannot be written (No space left")
    assert_goes_on(run_dir, whole)


SHELL = shutil.which("sh")


@pytest.mark.skipif(not SHELL, reason="needs a POSIX shell")
@pytest.mark.parametrize(("streams", "status"), [(">&- 2>&-", 0), (">/dev/full 2>&-", 1)])
def test_closed_and_full_streams_give_no_traceback(image_folder, tmp_path, streams, status):
    """Where nobody wants to hear, training goes on; where a line is lost, it ends with 1."""
    words = settings(image_folder, tmp_path, "--views", "notes", "--epochs", 1)
    command = shlex.join(map(str, [sys.executable, train_cifar.__file__, *words]))
    done = subprocess.run([SHELL, "-c", f"{command} {streams}"], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
    runs = list(tmp_path.iterdir())
    assert len(runs) == (status == 0)  # the line that is lost comes before the run is made
    assert all(load_checkpoint(run_dir)["progress"]["finished"] for run_dir in runs)


# ------------------------------------------------------------------------------------------ views


def no_memory() -> None:
    raise MemoryError("of 3.2 GB")


VIEWS = ["add_net_graph", "add_histograms", "add_confusion_matrix", "add_projector"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_that_fails_costs_the_view_and_not_the_run(image_folder, tmp_path, whole, view):
    run_dir = tmp_path / "run"
    fault = Fault(f"viz.{view}", no_memory)
    finished = train(arguments(image_folder, run_dir), run_dir, fault)
    assert finished.status == 0, finished.output
    assert "WARNING: a view could not be drawn (MemoryError: of 3.2 GB)" in finished.output
    assert same_weights(run_dir, whole)
    shown, expected = (in_python_loader(open_run(path)) for path in (run_dir, whole))
    for tag in ("training loss", "test/loss", "test/accuracy"):
        assert shown[tag] == expected[tag]


# -------------------------------------------------------------------------------- what is printed


@pytest.mark.skipif(not SHELL, reason="needs a POSIX shell")
@pytest.mark.parametrize("name", ["-x", "a 'run'"])
def test_the_printed_command_resumes_the_run(image_folder, tmp_path, monkeypatch, capsys, name):
    """Pasted as it is, also where the script lies elsewhere and the folder begins with a dash."""

    def stop_at_once(run: Run) -> None:
        run.signals.append(signal.SIGINT)
        original(run)

    original = Run.stop_if_asked
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [os.path.relpath(train_cifar.__file__)])
    words = settings(image_folder, Path("."), "--views", "notes", "--epochs", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "stop_if_asked", stop_at_once)
        assert train_cifar.main([*map(str, words), f"--run-name={name}"]) == 130
    *_, said, command = capsys.readouterr().out.splitlines()
    assert said == "stopped by SIGINT; to resume:"
    python = os.path.dirname(sys.executable)
    environment = os.environ | {"PATH": os.pathsep.join([python, os.environ["PATH"]])}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / name)["progress"]["finished"]


# ---------------------------------------------------------------------------------------- numbers

BAD_NUMBERS = {
    "loss": ["--lr", "1e30", "--report-every", "40"],
    "weights": ["--lr", "1e39", "--report-every", "8"],
    "test loss": ["--lr", "1e17", "--batch-size", "120"],
}


@pytest.mark.parametrize("what", BAD_NUMBERS)
def test_numbers_that_leave_the_floats_end_the_run(image_folder, tmp_path, capsys, what):
    words = [*settings(image_folder, tmp_path, "--run-name", "run"), *BAD_NUMBERS[what]]
    assert train_cifar.main([str(word) for word in words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"train_cifar.py: failed: the {what} became .*(nan|inf) at step [1-5]: ", line)
    assert "smaller --lr" in line
    state = load_checkpoint(tmp_path / "run")
    assert state["progress"]["step"] == 0
    assert all(weights.isfinite().all() for weights in state["net"].values())


@pytest.mark.parametrize(("lr", "status"), [("5e-324", 0), ("3.4e38", 1), ("1.7e308", 1)])
@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_extreme_settings(image_folder, tmp_path, capsys, lr, status, schedule):
    words = settings(image_folder, tmp_path, "--views", "notes", "--epochs", 1, "--lr", lr)
    words += ["--schedule", schedule, "--momentum", "0.9999999999999999", "--seed", 2**63 - 1]
    assert train_cifar.main([str(word) for word in words]) == status
    assert len(capsys.readouterr().err.splitlines()) == status


# ------------------------------------------------------------------------------------ two at once


def same_second() -> None:
    """Stop the clock that names the runs."""

    class Clock(support.run_dir.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    support.run_dir.datetime = Clock


def test_two_runs_begun_in_the_same_second_do_not_mix(image_folder, tmp_path):
    log_dir, outputs = tmp_path / "runs", [tmp_path / "one", tmp_path / "other"]
    words = settings(image_folder, log_dir, "--views", "notes", "--epochs", 1)
    processes = [start(words, output, same_second) for output in outputs]
    for process, output in zip(processes, outputs, strict=True):
        assert finish(process, output).status == 0
    names = sorted(path.name for path in log_dir.iterdir())
    assert names == ["0102-030405", "0102-030405_2"]
    for name in names:
        assert load_checkpoint(log_dir / name)["progress"]["finished"]
        assert len(list((log_dir / name).glob("events.out.tfevents.*"))) == 1


# -------------------------------------------------------------------------------------- any input

FLAGS = """--epochs --batch-size --lr --momentum --schedule --augment --seed --device --data
--data-dir --mirror --train-images --wrong-labels --log-dir --run-name --report-every --views
--resume --help --""".split()
VALUES = """0 1 4 120 121 -1 1.5 1e9 1e-9 1e400 nan inf -inf 0x10 1_000 ٣ auto cpu cuda cuda:0 mps
meta onecycle constant all notes cifar10 shapes images runs file . .. ~ con nul a.b""".split()
TEXT = st.text(max_size=20).filter(lambda text: not text.startswith("/") and ".." not in text)
VALUE = st.sampled_from(VALUES) | TEXT | st.just("x" * 5000)
FLAG = st.sampled_from(FLAGS)
WORDS = (
    st.tuples(FLAG, VALUE)
    | st.tuples(FLAG | VALUE)
    | st.builds("{}={}".format, FLAG, VALUE).map(lambda word: (word,))
)


@examples(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(WORDS, max_size=4).map(lambda groups: [word for group in groups for word in group]))
def test_any_command_line_gives_a_run_or_one_line(image_folder, tmp_path, capsys, words):
    """All but the download and the training itself is done."""
    parts = read_tiny(image_folder)

    def read_source(source: str, data_dir: Path, mirrors: list[str]):
        known = source in ("auto", "cifar10", "shapes")
        return parts if known else data.read_source(source, data_dir, mirrors)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(train_cifar, "read_source", read_source)
        patch.setattr(train_cifar, "in_progress", enough)
        (tmp_path / "file").write_text("no folder")
        try:
            status = train_cifar.main(words)
        except SystemExit as exit:  # of the parser
            status = exit.code
    said = capsys.readouterr()
    if status == 0:
        assert said.err == ""
    else:
        assert status == 2
        assert re.fullmatch("train_cifar.py: error: .*\n", said.err, re.DOTALL)


def enough(run: Run) -> None:
    """Ends a program that is about to train."""
    raise NothingToDo("everything is ready to train")


@functools.cache
def read_tiny(image_folder: Path) -> tuple:
    return data.read_source(str(image_folder), Path(), ())


# ------------------------------------------------------------------------------------- this table


def test_every_test_of_the_table_is_there():
    folder = Path(__file__).parent
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", __doc__)
    assert len(named) > 50
    for module, test in named:
        assert f"\ndef {test}(" in (folder / f"{module}.py").read_text(encoding="utf-8"), test
