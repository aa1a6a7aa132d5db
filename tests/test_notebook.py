"""The notebooks: made from today's pages, and run from top to bottom."""

import base64
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import make_notebook as maker
import numpy as np
import pytest
from conftest import ROOT, read_events, read_scalars
from PIL import Image

NEEDED = ["nbclient", "ipykernel"]  # to run it; the second brings IPython, which shows its pictures
LANGUAGES = [maker.ENGLISH, maker.CHINESE]
languages = pytest.mark.parametrize("language", LANGUAGES, ids=["English", "Chinese"])


def cells(text: str, kind: str) -> list[dict]:
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def read_notebook(language: maker.Language) -> str:
    return (ROOT / language.notebook).read_text(encoding="utf-8")  # whatever git makes of its ends


# ---------------------------------------------------------------------------- made from the pages


@languages
def test_the_notebook_is_what_the_program_makes_of_the_pages(language):
    made = maker.make_notebook(language, maker.read_pages(language))
    assert read_notebook(language) == made, "python docs/make_notebook.py makes the notebooks anew"


@languages
def test_the_sections_stand_in_the_notebook_word_for_word(language):
    """Everything but pictures, comments and links, of which a notebook has its own."""
    notebook, pages = read_notebook(language), maker.read_pages(language)
    told = "\n".join(map(source, json.loads(notebook)["cells"]))
    known = {*without_targets(told).splitlines(), "```python", "```"}
    for title in (language.walk, language.after):
        section = maker.find_section(pages, title)
        assert len(section.splitlines()) > 30
        text = re.sub(r"^!\[.*$", "", re.sub(r"<!--.*?-->", "", section), flags=re.M)
        assert [line for line in without_targets(text).splitlines() if line not in known] == []
    captions = re.findall(r"^!\[(.+)\]", maker.find_section(pages, language.walk), re.M)
    assert len(captions) == len(maker.PICTURES)
    first_lines = [source(cell).splitlines()[0] for cell in cells(notebook, "code")]
    assert [line[2:] for line in first_lines if line.startswith("# ")] == captions
    targets = re.findall(
        r"\]\((?!\w+:)([^)#]+)", "\n".join(map(source, cells(notebook, "markdown")))
    )
    assert targets and [target for target in targets if not (ROOT / target).is_file()] == []


def without_targets(text: str) -> str:
    return re.sub(r"\]\([^)]*\)", "]", text)


def test_both_languages_have_the_same_code():
    """But for the captions: what a test runs of one is so of the other."""
    english, chinese = (
        [re.sub("^# .*\n", "", source(cell)) for cell in cells(read_notebook(language), "code")]
        for language in LANGUAGES
    )
    assert english == chinese


def test_what_the_program_cannot_make_is_refused():
    new = {"README.md": "## The walk\n\n![new](screenshots/result_new.png)\n"}
    with pytest.raises(SystemExit, match="result_new.png.*PICTURES"):
        maker.make_notebook(maker.ENGLISH, new)
    with pytest.raises(SystemExit, match="not one section 'After the training'"):
        maker.make_notebook(maker.ENGLISH, {"README.md": "## 3. The walk\n"})


# ------------------------------------------------------------------------- run from top to bottom


SHORTER = {  # a part of a cell: what the tests run in its place
    "load_data().source": '"shapes"',
    "= load_data()\n": '= load_data("shapes", batch_size=64)\n',
    "--batch-size 64": "--epochs 4 --batch-size 16",
}
FEWER = {"50_000, seed": "4_000, seed", "10_000, seed": "1_000, seed"}  # shapes, in data.py
ASK_TENSORBOARD = """\
# While it runs: it ends with the notebook's kernel.
from urllib.request import urlopen
from tensorboard import manager

(server,) = manager.get_all()
print(server.port, urlopen(f"http://localhost:{server.port}/data/runs", timeout=60).read())"""
KILLED = maker.TRAIN_CODE.replace("load_data().source", '"shapes"').replace(
    "train_cifar.py {words}", "-c 'import os; os.kill(os.getpid(), 9)'"
)


def replace(text: str, parts: dict[str, str]) -> str:
    """The text with each part, which stands in one place, replaced."""
    for part, other in parts.items():
        assert text.count(part) == 1, part
        text = text.replace(part, other)
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A copy of what the notebooks need, with fewer shapes, and a kernel of this Python."""
    folder = tmp_path_factory.mktemp("notebook")
    for path in [ROOT / "requirements.txt", *ROOT.glob("*.py")]:
        shutil.copy(path, folder)
    for name in ("docs", "support"):
        shutil.copytree(ROOT / name, folder / name)
    data = folder / "data.py"
    data.write_text(replace(data.read_text(encoding="utf-8"), FEWER), encoding="utf-8")
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": command, "display_name": "Python 3", "language": "python"}
    kernel.joinpath("kernel.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module", params=LANGUAGES, ids=["English", "Chinese"])
def executed(request, folder, tmp_path_factory) -> str:
    """A notebook with its outputs, and with two cells more at its end.

    The Chinese one goes after the English one, in the same folder: its training is resumed.
    """
    if not all(map(importlib.util.find_spec, NEEDED)):
        pytest.skip("needs nbclient and ipykernel")
    as_json = {json.dumps(p)[1:-1]: json.dumps(shorter)[1:-1] for p, shorter in SHORTER.items()}
    notebook = json.loads(replace(read_notebook(request.param), as_json))
    ask, killed = maker.code(ASK_TENSORBOARD), maker.code(KILLED)
    killed["metadata"]["tags"] = ["raises-exception"]
    notebook["cells"] += [ask | {"id": "ask"}, killed | {"id": "killed"}]
    (folder / "notebook.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    information = tmp_path_factory.mktemp("temporary")  # its own: no TensorBoard is found in it
    env = os.environ | {
        "JUPYTER_PATH": str(folder / "jupyter"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(information),  # where TensorBoard leaves its process number
        "OMP_NUM_THREADS": "1",  # several threads wait for each other where the machine is busy
    }
    env.pop("TENSORBOARD_PROXY_URL", None)
    command = [sys.executable, "-c", "from nbclient.cli import main; main()"]
    command += ["--timeout=600", "--output=executed", "notebook.ipynb"]
    try:
        subprocess.run(command, cwd=folder, env=env, check=True)
        yield (folder / "executed.ipynb").read_text(encoding="utf-8")
    finally:
        # TensorBoard ends with the kernel, but not where the kernel was killed.
        for path in information.glob(".tensorboard-info/*.info"):
            with contextlib.suppress(OSError):
                os.kill(json.loads(path.read_text())["pid"], signal.SIGTERM)


def outputs(cell: dict) -> list[str]:
    """What a cell shows as HTML."""
    found = [output["data"] for output in cell["outputs"] if "data" in output]
    return ["".join(data["text/html"]) for data in found if "text/html" in data]


def find_cell(notebook: str, start: str) -> dict:
    (cell,) = (cell for cell in cells(notebook, "code") if start in source(cell))
    return cell


def printed(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_every_view_is_on_the_page(executed):
    for view in maker.PICTURES.values():
        (page,) = outputs(find_cell(executed, view))
        pictures = re.findall('src="data:image/png;base64,(.*?)"', page)
        assert pictures or page.count("<tr>") >= 2, f"{view}: neither pictures nor a table"
        for picture in pictures:
            image = Image.open(BytesIO(base64.b64decode(picture))).convert("L")
            assert np.asarray(image).std() > 5, f"{view}: a blank picture"


def test_the_training_the_program_and_the_snippets_have_run(executed, folder):
    code = cells(executed, "code")
    failed = [source(cell) for cell in code for output in cell["outputs"] if "ename" in output]
    assert failed == [KILLED]
    # So a PyTorch that a service has is left alone: the first cell has called no pip.
    assert find_cell(executed, "requirements.txt")["outputs"] == []
    tests = read_scalars(folder / "runs" / "first")["test/accuracy"]
    assert tests[-1][1] > 0.4  # the pictures are those of a net that has learned something
    assert {"predictions vs. actuals", "training loss"} < {*read_events(folder / "runs" / "short")}
    picture = printed(find_cell(executed, "my_star.png")).splitlines()
    assert len(picture) == 3 and all(re.fullmatch(r"\w+: \d+\.\d%", line) for line in picture)
    table = printed(find_cell(executed, "HParamsPluginData"))
    assert f"\n| first | 0.05 | {tests[-1][1]:.1%} | " in table


def test_the_calls_of_the_views_have_run(executed, folder):
    *_, calls = sorted(folder.glob("runs/*-shapes"))
    assert {
        *("training images", "training loss", "predictions vs. actuals", "settings/text_summary"),
        *("test/confusion matrix", "test/worst mistakes", "what the net sees/filters"),
    } < {*read_events(calls)}
    assert list(calls.glob("*/features"))


def test_a_training_that_is_killed_is_said_in_its_cell(executed):
    *_, error = find_cell(executed, KILLED)["outputs"]  # a shell may say "Killed" before it
    assert error["ename"] == "RuntimeError" and "ended with status -9: killed" in error["evalue"]


def test_tensorboard_is_in_the_page_and_has_the_run(executed):
    (frame,) = outputs(find_cell(executed, "%load_ext"))
    assert "<iframe" in frame
    port = re.search(r"port = (\d+)", frame)[1]
    answer = printed(find_cell(executed, ASK_TENSORBOARD))
    assert answer.startswith(f"{port} ") and '"first"' in answer


# ---------------------------------------------------------------------------- the first cell alone


def test_the_first_cell_installs_missing_packages_only_and_needs_its_files(tmp_path, monkeypatch):
    asked_for = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked_for.extend(command[3:]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    first_cell = compile(maker.SETUP_CODE, "first cell", "exec")
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
