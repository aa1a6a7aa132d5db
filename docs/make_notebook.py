"""Make train_cifar.ipynb from the pages, so that they say the same.

    python docs/make_notebook.py

Section 3 of README.md and section 1 of docs/reference.md come word for word; where they show a
picture, the notebook has a cell that draws it from the reader's own run. The cells before them are
written here.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README, REFERENCE = ROOT / "README.md", ROOT / "docs" / "reference.md"
NOTEBOOK = ROOT / "train_cifar.ipynb"

TITLE = """\
# Training, seen in TensorBoard

The walk of [README.md](README.md) as a notebook. Run the cells from top to bottom: they train a
small network, open TensorBoard, and draw every view on this page, too.

The run is a quick one, on built-in drawings of ten shapes that need no download. The words below,
and the figures in them, are the README's: they speak of its default run, on the photographs of
CIFAR-10."""

SETUP = """\
## Get ready

The notebook needs the files beside it. On Colab, Kaggle and the like, upload the whole folder or
`!git clone` it, and go into it with `%cd`. The cell installs what is missing; a PyTorch that is
already there stays as it is."""

SETUP_CODE = """\
import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

if not Path("train_cifar.py").is_file():
    raise FileNotFoundError(f"no train_cifar.py in {os.getcwd()}: get the whole folder, then %cd")


def is_missing(requirement: str) -> bool:
    try:
        metadata.version(re.match(r"[\\w-]+", requirement)[0])
    except metadata.PackageNotFoundError:
        return True
    return False


lines = Path("requirements.txt").read_text().splitlines()
missing = [line.split()[0] for line in lines if line[:1].isalpha() and is_missing(line)]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# %tensorboard starts the program of that name: the one that belongs to this Python.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
sys.path.append("docs")  # for notebook_views"""

TRAIN = """\
## Train

For the real thing, leave out every setting but `--run-name`: the defaults are the notes', and
CIFAR-10 is downloaded on the first run. Each run needs a name of its own."""

TRAIN_CODE = """\
settings = "--data shapes --train-images 8000 --epochs 4 --batch-size 32 --lr 0.05"
settings += " --schedule onecycle --report-every 4000 --run-name first"
!"{sys.executable}" train_cifar.py {settings}"""

TENSORBOARD = """\
## TensorBoard, inside this page

Press ↻ at the top right of the frame when there is more to see: it does not reload by itself.

**A blank frame, or error 403?** The frame is a page of its own, which some services and browsers
block. On Colab, allow third-party cookies, or try another browser. If it stays blank, go on
without it: every view is drawn below, too. Or download the folder `runs`, and look at it on your
own machine."""

TENSORBOARD_CODE = """\
%load_ext tensorboard
%tensorboard --logdir runs --samples_per_plugin images=100"""

VIEWS = """\
## The views, on this page

`docs/notebook_views.py` has a function for each tab, which draws it from the run's event files. To
see another run, change the name here."""

VIEWS_CODE = """\
import notebook_views as views

log = views.read_run("runs/first")"""

PICTURES = {  # of the README: what draws it in the notebook
    "images": 'views.images(log, "training images")',
    "graphs": "views.graph(log)",
    "scalars": 'views.scalars(log, ["training loss"], ["test/loss"], ["test/accuracy"])',
    "predic_each_step": """\
views.images(log, "predictions vs. actuals", reports=(0, -1))  # the first, the last""",
    "prcurve": "views.pr_curves(log)",
    "histograms": """\
tags = ["weights/conv1.weight", "gradients/conv1.weight", "gradients/fc3.weight"]
views.histograms(log, tags)""",
    "distributions": "views.distributions(log, tags)",
    "projector": "views.projector(log)",
    "hparams": 'views.hparams("runs")',
    "text": 'views.text(log, "settings")',
    "custom_scalars": """\
views.scalars(log, ["training loss", "test/loss"], ["training progress/learning rate"])""",
    "confusion_matrix": 'views.images(log, "test/confusion matrix")',
    "mistakes": 'views.images(log, "test/worst mistakes")',
    "filters": """\
views.images(log, "what the net sees/filters", "what the net sees/feature maps")""",
}
TIME_CODE = 'views.text(log, "where the time goes")'

FIGURE = re.compile(r"<!-- figure: .*? -->")
PART = re.compile(  # of a section: what becomes a cell of code, or begins a new cell of text
    r"^(?:!\[(?P<alt>.+)\]\(screenshots/result_(?P<picture>\w+)\.png\)$"
    r"|<!-- runs after first -->\n```python\n(?P<code>(?s:.*?))\n```$"
    r"|(?=### ))",
    re.M,
)


def section(page: str, number: int) -> str:
    """A section of a page, with its heading."""
    found = re.search(rf"^## {number}\. .*?(?=^## |\Z)", page, re.M | re.S)
    if not found:
        raise SystemExit(f"a page has no section {number}: adapt {Path(__file__).name}")
    return found[0]


def section_cells(text: str) -> list[dict]:
    """The cells of a section: its text, and code where it has a picture or a snippet to run."""
    cells, position = [], 0
    for part in PART.finditer(text):
        cells.append(markdown(text[position : part.start()]))
        if part["picture"]:
            if part["picture"] not in PICTURES:
                raise SystemExit(f"nothing draws {part[0]}: add it to PICTURES")
            cells.append(code(f"# {part['alt']}\n{PICTURES[part['picture']]}"))
        elif part["code"]:
            cells.append(code(part["code"]))
        position = part.end()
    return [cell for cell in [*cells, markdown(text[position:])] if cell["source"]]


def markdown(text: str) -> dict:
    """A cell of text, without the comments that the tests of the README read."""
    text = FIGURE.sub("", text).replace("<!-- runs -->\n", "")
    return {"cell_type": "markdown", "metadata": {}, "source": lines(text)}


def code(text: str) -> dict:
    """A cell of code that has not run."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": lines(text),
    }


def lines(text: str) -> list[str]:
    """The lines of a cell, as the file has them."""
    return text.strip("\n").splitlines(keepends=True)


def make_notebook(readme: str, reference: str) -> str:
    """The text of the notebook, from that of the pages."""
    cells = [
        *(markdown(TITLE), markdown(SETUP), code(SETUP_CODE), markdown(TRAIN), code(TRAIN_CODE)),
        *(markdown(TENSORBOARD), code(TENSORBOARD_CODE), markdown(VIEWS), code(VIEWS_CODE)),
        *section_cells(section(readme, 3)),
        *section_cells(section(reference, 1)),
        code(TIME_CODE),
    ]
    notebook = {
        "cells": [{"id": f"cell-{index}"} | cell for index, cell in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    pages = (path.read_text(encoding="utf-8") for path in (README, REFERENCE))
    notebook = make_notebook(*pages)
    NOTEBOOK.write_text(notebook, encoding="utf-8", newline="\n")
