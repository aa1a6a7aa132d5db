"""The notebook: made from today's README, run from top to bottom, and what its pictures show."""

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
from conftest import CLASSES, TEST_IMAGES, read_events, read_scalars
from PIL import Image
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

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


# --------------------------------------------------------------------------- made from the README


def test_the_notebook_is_what_the_program_makes_of_the_readme(maker):
    made = maker.make_notebook((ROOT / "README.md").read_text(encoding="utf-8"))
    text = NOTEBOOK.read_text(encoding="utf-8")  # git may have changed the ends of lines
    assert text == made, "python docs/make_notebook.py makes the notebook anew"


def test_a_word_changed_in_the_walk_changes_the_notebook(maker):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for heading in ("### 3.1 Images", "## 8. After"):
        changed = maker.make_notebook(readme.replace(heading, f"{heading} again"))
        assert f"{heading} again" in changed
    assert "Settings" not in re.findall(r"^## \d+\. (\w+)", all_text(changed), re.M)


def all_text(notebook: str) -> str:
    return "\n".join(map(source, cells(notebook, "markdown")))


def test_the_walk_stands_in_the_notebook_word_for_word(maker):
    """Everything but pictures and comments, which the reader of a notebook has no use for."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    walk = readme[readme.index("## 3. ") : readme.index("## 4. ")]
    walk += readme[readme.index("## 8. ") : readme.index("## 9. ")]
    walk = re.sub(r"^!\[.*$", "", re.sub(r"<!--.*?-->", "", walk), flags=re.M)
    notebook = NOTEBOOK.read_text(encoding="utf-8")
    told = all_text(notebook).splitlines()
    run = [line for cell in cells(notebook, "code") for line in source(cell).splitlines()]
    known = {*told, *run, "```python", "```"}
    assert [line for line in walk.splitlines() if line not in known] == []


def test_every_picture_of_the_walk_has_a_cell(maker):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    walk = readme[readme.index("## 3. ") : readme.index("## 4. ")]
    notebook = NOTEBOOK.read_text(encoding="utf-8")
    captions = re.findall(r"^!\[(.+)\]", walk, re.M)
    assert len(captions) == len(maker.PICTURES)
    first_lines = [source(cell).splitlines()[0] for cell in cells(notebook, "code")]
    assert [line[2:] for line in first_lines if line.startswith("# ")] == captions


def test_what_the_program_cannot_make_is_refused(maker):
    with pytest.raises(SystemExit, match="result_new.png.*PICTURES"):
        maker.make_notebook("## 3. The walk\n\n![new](screenshots/result_new.png)\n")
    with pytest.raises(SystemExit, match="no section 8"):
        maker.make_notebook("## 3. The walk\n")


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
        cell = find_cell(notebook, view)
        expected = len(re.findall(r"^views\.show_", view, re.M))
        pictures = outputs(cell, "image/png")
        tables = [text for text in outputs(cell, "text/markdown") if "".join(text)[:1] == "|"]
        assert len(pictures) + len(tables) == expected, view
        for picture in pictures:
            image = Image.open(BytesIO(base64.b64decode(picture))).convert("L")
            assert np.asarray(image).std() > 5, f"{view}: a blank picture"
        assert all("".join(text).count("\n") >= 2 for text in tables), f"{view}: an empty table"


@needs_jupyter
def test_the_training_and_the_snippets_have_run(executed):
    folder, notebook = executed
    errors = [o for cell in cells(notebook, "code") for o in cell["outputs"] if "ename" in o]
    assert errors == []
    tests = read_scalars(folder / "runs" / "first")["test/accuracy"]
    assert tests[-1][1] > 0.4  # the pictures are those of a net that has learned something
    picture = printed(find_cell(notebook, "my_star.png")).splitlines()
    assert len(picture) == 3 and all(re.fullmatch(r"\w+: \d+\.\d%", line) for line in picture)
    best = max(accuracy for _, accuracy in tests)
    table = printed(find_cell(notebook, "best test accuracy"))
    assert f"\n| first | 0.05 | {best:.1%} | " in table


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


# ------------------------------------------------------------------------ what the pictures show


class Page:
    """The functions that draw the views, and what they have shown instead of showing it."""

    def __init__(self, monkeypatch, run_dir: Path):
        self.views, self.shown = load("notebook_views"), []
        monkeypatch.setattr(self.views, "show", self.shown.append)
        monkeypatch.setattr(self.views, "display", lambda *shown: self.shown.extend(shown))
        self.run = self.views.read_run(str(run_dir))

    def axes(self) -> list:
        """The charts of the only figure."""
        (figure,) = self.shown
        return figure.axes


@pytest.fixture
def page(tiny_run, monkeypatch):
    pytest.importorskip("IPython", reason="needs IPython, which ipykernel brings")
    return Page(monkeypatch, tiny_run)


def test_a_chart_has_the_points_that_were_logged(page, tiny_run):
    page.views.show_scalars(page.run, ["training loss", "test/loss"], ["test/accuracy"])
    losses, accuracy = page.axes()
    drawn = {line.get_label(): line.get_xydata() for line in [*losses.lines, *accuracy.lines]}
    assert [line.get_label() for line in losses.lines] == ["training loss", "test/loss"]
    assert set(drawn) == {"training loss", "test/loss", "test/accuracy"}
    logged = read_scalars(tiny_run)
    for tag, points in drawn.items():
        assert points.tolist() == pytest.approx(np.array(logged[tag]), rel=1e-6), tag


def test_a_picture_is_the_one_that_was_logged(page, tiny_run):
    logged = read_events(tiny_run)["predictions vs. actuals"]
    assert len(logged) > 2
    page.views.show_image(page.run, "predictions vs. actuals", report=0)
    page.views.show_image(page.run, "predictions vs. actuals")
    _, first, caption, last = page.shown
    for shown, (_, value) in ((first, logged[0]), (last, logged[-1])):
        assert shown.data == value.tensor.string_val[2]
    assert caption.data == f"*predictions vs. actuals*, step {logged[-1][0]}"


def test_pr_curves_are_those_of_the_last_epoch(page, tiny_run):
    page.views.show_pr_curves(page.run)
    (chart,) = page.axes()
    assert [line.get_label() for line in chart.lines] == CLASSES
    for line in chart.lines:
        _, value = read_events(tiny_run)[f"pr curve/{line.get_label()}"][-1]
        tp, fp, _, fn, _, _ = make_ndarray(value.tensor)
        some = tp + fp > 0
        recall, precision = tp[some] / (tp + fn)[some], tp[some] / (tp + fp)[some]
        assert line.get_xdata() == pytest.approx(recall, abs=1e-6)
        assert line.get_ydata() == pytest.approx(precision, abs=1e-6)


def test_the_graph_has_the_layers_in_order_and_their_shapes(page):
    page.views.show_graph(page.run)
    (chart,) = page.axes()
    texts = {-text.get_position()[1]: text.get_text() for text in chart.texts}
    in_order = [texts[row] for row in sorted(texts)]
    assert in_order[0] == "images  →  3×32×32"
    layers = [text for text in in_order if re.match(r"conv|fc", text)]
    expected = ["conv1 .*6×28×28", "conv2 .*16×10×10", "fc1 .*120", "fc2 .*84", "fc3 .*3"]
    assert all(re.match(f"{e}$", text) for e, text in zip(expected, layers, strict=True))


def test_histograms_and_distributions_have_a_slice_for_each_report(page, tiny_run):
    tags = ["weights/conv1.weight", "gradients/fc3.weight"]
    page.views.show_histograms(page.run, tags)
    page.views.show_distributions(page.run, tags)
    histograms, distributions = (figure.axes for figure in page.shown)
    events = read_events(tiny_run)
    for tag, slices, bands in zip(tags, histograms, distributions, strict=True):
        assert slices.get_title() == bands.get_title() == tag
        assert len(slices.collections) == len(events[tag])
        median = bands.lines[0].get_xydata()
        assert median[:, 0].tolist() == [step for step, _ in events[tag]]
        lowest, highest = bands.dataLim.intervaly  # the outer band: the smallest and largest value
        assert lowest < median[:, 1].min() and median[:, 1].max() < highest
        heights = [c.get_paths()[0].get_extents().height for c in slices.collections]
        largest = [make_ndarray(value.tensor)[:, 2].max() for _, value in events[tag]]
        assert heights == pytest.approx(largest)


def test_the_newest_slice_lies_lowest_and_in_front(page):
    page.views.show_histograms(page.run, ["weights/conv1.weight"])
    (chart,) = page.axes()
    bottoms = [c.get_paths()[0].get_extents().y0 for c in chart.collections]
    assert bottoms == sorted(bottoms, reverse=True)
    assert [c.get_zorder() for c in chart.collections] == [*range(len(bottoms))]


def test_the_projector_has_every_test_image_by_its_label(page):
    page.views.show_projector(page.run)
    (chart,) = page.axes()
    assert {c.get_label(): len(c.get_offsets()) for c in chart.collections} == dict.fromkeys(
        CLASSES, TEST_IMAGES
    )
    points = np.concatenate([c.get_offsets() for c in chart.collections])
    spread = points.std(axis=0)
    assert spread[0] > spread[1] > 0 and abs(np.corrcoef(points.T)[0, 1]) < 1e-6  # PCA


def test_tables_have_the_settings_and_results(page, tiny_run, tmp_path):
    log_dir = tmp_path / "runs"
    shutil.copytree(tiny_run, log_dir / "tiny")
    with SummaryWriter(log_dir / "other") as writer:  # of a program that logs no settings
        writer.add_scalar("test/accuracy", 0.5, 1)
    page.views.show_hparams(str(log_dir))
    page.views.show_text(page.run, "settings")
    hparams, settings = (shown.data for shown in page.shown)
    head, rule, row = (line.strip("| ").split(" | ") for line in hparams.splitlines())
    assert rule == ["---"] * len(head)
    accuracy = read_scalars(tiny_run)["test/accuracy"][-1][1]
    named = dict(zip(head, row, strict=True))
    assert (named["run"], named["lr"], named["batch size"]) == ("tiny", "0.02", "8")
    assert named["test/accuracy"] == f"{accuracy:.3f}"
    assert re.search(r"^\| lr +\| 0.02 +\|$", settings, re.M)


def test_a_run_that_is_not_there_is_named(page):
    with pytest.raises(FileNotFoundError, match="no run in 'runs/nothing': run the cell"):
        page.views.read_run("runs/nothing")
