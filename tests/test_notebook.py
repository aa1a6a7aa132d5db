"""The notebook: made from today's README, and run from top to bottom."""

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

import numpy as np
import pytest
from conftest import read_scalars
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "train_cifar.ipynb"
NEEDED = ["nbclient", "ipykernel"]  # to run it; the second brings IPython, which shows its pictures
needs_jupyter = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, NEEDED)), reason="needs nbclient and ipykernel"
)


def load(name: str):
    """A module from docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def maker():
    return load("make_notebook")


def cells(text: str, kind: str) -> list[dict]:
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


# ---------------------------------------------------------------------------- made from the pages


@pytest.fixture
def walk() -> str:
    """Section 3 of the README."""
    return (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[3]


@pytest.fixture
def after() -> str:
    """Section 1 of the reference."""
    return (ROOT / "docs" / "reference.md").read_text(encoding="utf-8").split("\n## ")[1]


def test_the_notebook_is_what_the_program_makes_of_the_pages(maker):
    pages = (ROOT / name for name in ("README.md", "docs/reference.md"))
    made = maker.make_notebook(*(page.read_text(encoding="utf-8") for page in pages))
    text = NOTEBOOK.read_text(encoding="utf-8")  # git may have changed the ends of lines
    assert text == made, "python docs/make_notebook.py makes the notebook anew"


def test_a_word_changed_on_a_page_changes_the_notebook(maker, walk, after):
    for heading in ("### 3.1 Images", "1. After"):
        pages = (f"## {text}".replace(heading, f"{heading} again") for text in (walk, after))
        changed = maker.make_notebook(*pages)
        assert f"{heading} again" in changed


def all_text(notebook: str) -> str:
    return "\n".join(map(source, cells(notebook, "markdown")))


def test_the_walk_stands_in_the_notebook_word_for_word(walk, after):
    """Everything but pictures and comments, which the reader of a notebook has no use for."""
    text = re.sub(r"<!--.*?-->", "", f"## {walk}\n## {after}")
    text = re.sub(r"^!\[.*$", "", text, flags=re.M)
    notebook = NOTEBOOK.read_text(encoding="utf-8")
    told = all_text(notebook).splitlines()
    run = [line for cell in cells(notebook, "code") for line in source(cell).splitlines()]
    known = {*told, *run, "```python", "```"}
    assert [line for line in text.splitlines() if line not in known] == []


def test_every_picture_of_the_walk_has_a_cell(maker, walk):
    notebook = NOTEBOOK.read_text(encoding="utf-8")
    captions = re.findall(r"^!\[(.+)\]", walk, re.M)
    assert len(captions) == len(maker.PICTURES)
    first_lines = [source(cell).splitlines()[0] for cell in cells(notebook, "code")]
    assert [line[2:] for line in first_lines if line.startswith("# ")] == captions


def test_what_the_program_cannot_make_is_refused(maker):
    with pytest.raises(SystemExit, match="result_new.png.*PICTURES"):
        maker.make_notebook("## 3. The walk\n\n![new](screenshots/result_new.png)\n", "")
    with pytest.raises(SystemExit, match="no section 1"):
        maker.make_notebook("## 3. The walk\n", "")


def test_nothing_has_run_in_the_repository():
    code = cells(NOTEBOOK.read_text(encoding="utf-8"), "code")
    assert code and all(cell["outputs"] == [] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)


# ------------------------------------------------------------------------- run from top to bottom


ASK_TENSORBOARD = """\
# While it runs: it ends with the notebook's kernel.
from urllib.request import urlopen
from tensorboard import manager

(server,) = manager.get_all()
print(server.port, urlopen(f"http://localhost:{server.port}/data/runs", timeout=60).read())"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The folder in which a copy of the notebook has run, and the copy with its outputs.

    The copy has one cell more, which asks TensorBoard for its runs.
    """
    folder = tmp_path_factory.mktemp("notebook")
    for path in [ROOT / "requirements.txt", *ROOT.glob("*.py")]:
        shutil.copy(path, folder)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    notebook["cells"].append(load("make_notebook").code(ASK_TENSORBOARD) | {"id": "last"})
    (folder / NOTEBOOK.name).write_text(json.dumps(notebook), encoding="utf-8")
    for name in ("docs", "support"):
        shutil.copytree(ROOT / name, folder / name)
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.joinpath("kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "Python 3", "language": "python"})
    )
    information = folder / "temporary"
    information.mkdir()
    env = {key: value for key, value in os.environ.items() if key != "TENSORBOARD_PROXY_URL"} | {
        "JUPYTER_PATH": str(folder / "jupyter"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(folder / "ipython"),
        "TMPDIR": str(information),  # where TensorBoard leaves its process number
        "OMP_NUM_THREADS": "1",  # several threads wait for each other where the machine is busy
    }
    run = "from nbclient.cli import main; main()"
    try:
        command = [sys.executable, "-c", run, "--timeout=600", "--output=executed", NOTEBOOK.name]
        subprocess.run(command, cwd=folder, env=env, check=True)
        yield folder, (folder / "executed.ipynb").read_text(encoding="utf-8")
    finally:
        # TensorBoard ends with the kernel, but not where the kernel was killed.
        for path in information.glob(".tensorboard-info/*.info"):
            with contextlib.suppress(OSError):
                os.kill(json.loads(path.read_text())["pid"], signal.SIGTERM)


def outputs(cell: dict, kind: str) -> list:
    """What a cell shows as `kind`, a MIME type."""
    found = [output["data"] for output in cell["outputs"] if "data" in output]
    return [data[kind] for data in found if kind in data]


def find_cell(notebook: str, start: str) -> dict:
    (cell,) = (cell for cell in cells(notebook, "code") if start in source(cell))
    return cell


@needs_jupyter
def test_every_view_is_on_the_page(executed, maker):
    _, notebook = executed
    for view in maker.PICTURES.values():
        (page,) = ("".join(text) for text in outputs(find_cell(notebook, view), "text/html"))
        pictures = re.findall('src="data:image/png;base64,(.*?)"', page)
        assert pictures or page.count("<tr>") >= 2, f"{view}: neither pictures nor a table"
        for picture in pictures:
            image = Image.open(BytesIO(base64.b64decode(picture))).convert("L")
            assert np.asarray(image).std() > 5, f"{view}: a blank picture"


@needs_jupyter
def test_the_training_and_the_snippets_have_run(executed):
    folder, notebook = executed
    errors = [o for cell in cells(notebook, "code") for o in cell["outputs"] if "ename" in o]
    assert errors == []
    tests = read_scalars(folder / "runs" / "first")["test/accuracy"]
    assert tests[-1][1] > 0.4  # the pictures are those of a net that has learned something
    picture = printed(find_cell(notebook, "my_star.png")).splitlines()
    assert len(picture) == 3 and all(re.fullmatch(r"\w+: \d+\.\d%", line) for line in picture)
    table = printed(find_cell(notebook, "HParamsPluginData"))
    assert f"\n| first | 0.05 | {tests[-1][1]:.1%} | " in table


def printed(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


@needs_jupyter
def test_tensorboard_is_in_the_page_and_has_the_run(executed):
    _, notebook = executed
    (frame,) = outputs(find_cell(notebook, "%load_ext"), "text/html")
    assert "<iframe" in "".join(frame)
    port = re.search(r"port = (\d+)", "".join(frame))[1]
    assert printed(find_cell(notebook, ASK_TENSORBOARD)) == f"""{port} b'["first"]'\n"""


@needs_jupyter
def test_nothing_is_installed_where_all_is_there(executed):
    """So a PyTorch that a service has is left alone: the first cell has called no pip."""
    _, notebook = executed
    assert find_cell(notebook, "requirements.txt")["outputs"] == []


# ---------------------------------------------------------------------------- the first cell alone


@pytest.fixture
def setup_cell(maker, tmp_path, monkeypatch):
    """Runs the first cell of code; returns what it would have handed to pip."""

    def run(requirements: str) -> list[str]:
        calls = []
        monkeypatch.setattr(subprocess, "run", lambda command, check: calls.extend(command[3:]))
        (tmp_path / "requirements.txt").write_text(requirements)
        exec(compile(maker.SETUP_CODE, "first cell", "exec"), {})
        return calls

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    return run


def test_only_missing_packages_are_installed(setup_cell):
    Path("train_cifar.py").touch()
    required = "# A comment.\ntorch>=99\nno-such-package>=1.2  # why\npillow>=11\n"
    assert setup_cell(required) == ["install", "-q", "no-such-package>=1.2"]
    assert setup_cell("torch>=99\n") == []  # an older one that is there stays


def test_a_notebook_without_its_files_says_what_to_do(setup_cell, tmp_path):
    with pytest.raises(FileNotFoundError, match="no train_cifar.py in .*whole folder"):
        setup_cell("torch\n")
