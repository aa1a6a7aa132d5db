"""The notebooks: made from today's pages, and run from top to bottom."""

import base64
import os
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import make_notebook as maker
import nbformat
import numpy as np
import pytest
from conftest import ROOT, read_events, read_scalars
from nbclient import NotebookClient
from PIL import Image

notebooks = pytest.mark.parametrize("name", maker.SECTIONS)
ENGLISH = "train_cifar.ipynb"


def read_notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / name, as_version=4)


def sources(name: str, kind: str) -> list[str]:
    """The text of all cells that are code, or Markdown."""
    return [cell.source for cell in read_notebook(name).cells if cell.cell_type == kind]


SETUP, TRAIN, *_ = sources(ENGLISH, "code")


# ---------------------------------------------------------------------------- made from the pages


@notebooks
def test_the_notebook_is_what_the_program_makes_of_the_pages(name):
    text = (ROOT / name).read_text(encoding="utf-8")  # whatever git makes of its ends
    made = maker.make_notebook(name)
    assert text == made, "python docs/make_notebook.py makes the notebooks anew"
    nbformat.validate(read_notebook(name))


@notebooks
def test_the_sections_stand_in_the_notebook_word_for_word(name):
    """Everything but pictures, comments and links, of which a notebook has its own."""
    code, words = sources(name, "code"), "\n".join(sources(name, "markdown"))
    known = {*without_targets("\n".join([*code, words])).splitlines(), "```python", "```"}
    walk, after = (maker.find_section(*section) for section in maker.SECTIONS[name])
    for section in (walk, after):
        assert len(section.splitlines()) > 30
        text = re.sub(r"^!\[.*$", "", re.sub(r"<!--.*?-->", "", section), flags=re.M)
        assert [line for line in without_targets(text).splitlines() if line not in known] == []
    captions = re.findall(r"^!\[(.+)\]", walk, re.M)
    assert len(captions) == len(maker.PICTURES)
    first_lines = [source.splitlines()[0] for source in code]
    assert [line[2:] for line in first_lines if line.startswith("# ")] == captions
    targets = re.findall(r"\]\((?!\w+:)([^)#]+)", words)
    assert targets and [target for target in targets if not (ROOT / target).is_file()] == []


def without_targets(text: str) -> str:
    return re.sub(r"\]\([^)]*\)", "]", text)


def test_both_languages_have_the_same_code():
    """But for the captions: so what runs in English runs in Chinese."""
    english, chinese = (
        [re.sub("^# .*\n", "", source) for source in sources(name, "code")]
        for name in maker.SECTIONS
    )
    assert english == chinese


def test_a_section_that_has_got_another_title_is_missed():
    with pytest.raises(SystemExit, match="no section 'A walk' in README.md"):
        maker.find_section("README.md", "A walk")


# ------------------------------------------------------------------------- run from top to bottom


ASK_TENSORBOARD = """\
# While it runs: it ends with the notebook's kernel.
from urllib.request import urlopen
from tensorboard import manager

(server,) = manager.get_all()
print(server.port, urlopen(f"http://localhost:{server.port}/data/runs", timeout=60).read())"""
KILLED = TRAIN.replace(
    "train_cifar.py", "-c 'import os, sys; print(*sys.argv, flush=True); os.kill(os.getpid(), 9)'"
)


def replace(text: str, part: str, other: str) -> str:
    """The text with a part, which stands in one place, replaced."""
    assert text.count(part) == 1, part
    return text.replace(part, other)


@pytest.fixture(scope="module")
def folder(image_folder, tmp_path_factory) -> Path:
    """A copy of what the notebooks need, which takes a few images by default."""
    folder = tmp_path_factory.mktemp("notebook")
    for path in [ROOT / "requirements.txt", *ROOT.glob("*.py")]:
        shutil.copy(path, folder)
    for name in ("docs", "support"):
        shutil.copytree(ROOT / name, folder / name)
    data = folder / "data.py"
    tiny = replace(data.read_text(encoding="utf-8"), '= "auto"', '= "images"')
    data.write_text(tiny, encoding="utf-8")
    test = shutil.copytree(image_folder, folder / "images") / "test"
    (test / "leaf" / "00.png").rename(test / "sky" / "leaf.png")  # no net is without a mistake
    return folder


@pytest.fixture(scope="module")
def executed(folder, tmp_path_factory) -> dict[str, list[nbformat.NotebookNode]]:
    """The outputs of each cell of code, and of two more at the end of the notebook."""
    notebook = read_notebook(ENGLISH)
    for cell in notebook.cells:
        if cell.source == TRAIN:
            shorter = "--batch-size 8 --epochs 2 --report-every 40"
            cell.source = replace(cell.source, "--batch-size 64", shorter)
    killed = {"tags": ["raises-exception"]}
    notebook.cells += [
        nbformat.v4.new_code_cell(ASK_TENSORBOARD),
        nbformat.v4.new_code_cell(KILLED, metadata=killed),
    ]
    env = os.environ | {
        "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(tmp_path_factory.mktemp("temporary")),  # no other TensorBoard is found in it
    }
    env.pop("TENSORBOARD_PROXY_URL", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this Python
        NotebookClient(notebook, timeout=600).execute(cwd=folder, env=env)
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def shown(executed: dict[str, list], part: str) -> str:
    """What the cell with this part of code has printed, or shows as HTML."""
    (outputs,) = (outputs for code, outputs in executed.items() if part in code)
    return "".join(out.get("text") or out.get("data", {}).get("text/html", "") for out in outputs)


def test_every_view_is_on_the_page(executed):
    for view in maker.PICTURES.values():
        page = shown(executed, view)
        pictures = re.findall('src="data:image/png;base64,(.*?)"', page)
        assert pictures or re.search("<td>[^<]", page), f"{view}: neither pictures nor a table"
        for picture in pictures:
            image = Image.open(BytesIO(base64.b64decode(picture))).convert("L")
            assert np.asarray(image).std() > 5, f"{view}: a blank picture"


def test_the_training_the_program_and_the_snippets_have_run(executed, folder):
    failed = [code for code, outputs in executed.items() for out in outputs if "ename" in out]
    assert failed == [KILLED]
    # So a PyTorch that a service has is left alone: the first cell has called no pip.
    assert executed[SETUP] == []
    tests = read_scalars(folder / "runs" / "first")["test/accuracy"]
    assert tests[-1][1] > 0.9  # the pictures are those of a net that has learned something
    assert {"predictions vs. actuals", "training loss"} < {*read_events(folder / "runs" / "short")}
    picture = shown(executed, "my_star.png").splitlines()
    assert len(picture) == 3 and all(re.fullmatch(r"[\w ]+: \d+\.\d%", line) for line in picture)
    table = shown(executed, "HParamsPluginData")
    assert f"\n| first | 0.05 | {tests[-1][1]:.1%} | " in table


def test_the_calls_of_the_views_have_run(executed, folder):
    (calls,) = folder.glob("runs/*-*")  # named by the time
    assert {
        *("training images", "training loss", "predictions vs. actuals", "settings/text_summary"),
        *("test/confusion matrix", "test/worst mistakes", "what the net sees/filters"),
    } < {*read_events(calls)}
    assert list(calls.glob("*/features"))


def test_a_second_training_resumes_the_first_and_is_said_to_have_been_killed(executed):
    assert "-c --resume runs/first" in shown(executed, KILLED)
    error = executed[KILLED][-1]
    assert error.ename == "RuntimeError" and "ended with status -9: killed" in error.evalue


def test_tensorboard_is_in_the_page_and_has_the_run(executed):
    frame = shown(executed, "%load_ext")
    assert "<iframe" in frame
    port = re.search(r"port = (\d+)", frame)[1]
    answer = shown(executed, ASK_TENSORBOARD)
    assert answer.startswith(f"{port} ") and '"first"' in answer


# ---------------------------------------------------------------------------- the first cell alone


def test_the_first_cell_installs_missing_packages_only_and_needs_its_files(tmp_path, monkeypatch):
    asked_for = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked_for.extend(command[3:]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    first_cell = compile(SETUP, "first cell", "exec")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("torch>=99\n")  # an older one that is there stays
    with pytest.raises(FileNotFoundError, match="no train_cifar.py in .*whole folder"):
        exec(first_cell, {})
    Path("train_cifar.py").touch()
    exec(first_cell, {})
    assert asked_for == []
    requirements.write_text("# A comment.\ntorch>=99\nno-such-package>=1.2  # why\npillow>=11\n")
    exec(first_cell, {})
    assert asked_for == ["install", "-q", "no-such-package>=1.2"]
