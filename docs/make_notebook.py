"""Make the notebooks anew, one in each language, from the README and the reference.

    python docs/make_notebook.py

The walk and "After the training" come word for word, without what only their tests need. Programs
that run as they stand, and the views' calls, are cells of code; where the page shows a picture,
the notebook has a cell that draws it from the reader's own run. The other cells are a notebook's
own and stand nowhere else: edit them there, with the same code in both languages.
"""

import json
import re
from itertools import groupby
from pathlib import Path
from urllib.parse import urljoin

ROOT = Path(__file__).parent.parent
SECTIONS = {  # of each notebook: the pages that it takes them from, and their titles
    "train_cifar.ipynb": [("README.md", "The walk"), ("docs/reference.md", "After the training")],
    "train_cifar.zh-CN.ipynb": [
        ("README.zh-CN.md", "逐个视图看一遍"),
        ("docs/reference.zh-CN.md", "训练之后"),
    ],
}
FROM_PAGES = "cell-"  # how the ids of cells from the pages begin; a notebook's own have others

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

PART = re.compile(  # of a section: what becomes a cell of code, or begins a new cell of text
    r"^(?:!\[(?P<alt>.+)\]\(screenshots/result_(?P<picture>\w+)\.png\)$"
    r"|(?P<runs><!-- runs(?: after first)? -->\n)?```python\n(?P<code>(?s:.*?))\n```$"
    r"|(?=### ))",
    re.M,
)
COMMENT = re.compile(r"<!-- .*? -->")
LINK = re.compile(r"\]\(([^)]+)\)")


def find_section(page: str, title: str) -> str:
    """The section of this title on a page, with its links as seen from the notebook."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.search(rf"^## (?:\d+\. )?{title}\n.*?(?=^## |\Z)", text, re.M | re.S)
    if not section:
        raise SystemExit(f"no section {title!r} in {page}: adapt make_notebook.py")
    return LINK.sub(lambda link: f"]({urljoin(page, link[1])})", section[0])


def section_cells(section: str) -> list[dict]:
    """The cells of a section: its text, and code where it has a picture or code that runs."""
    cells, position = [], 0
    for part in PART.finditer(section):
        if part["code"] and not (part["runs"] or re.search(r"^viz\.add_", part["code"], re.M)):
            continue  # an excerpt that runs as part of its program only
        cells.append(markdown(section[position : part.start()]))
        if part["picture"]:
            cells.append(code(f"# {part['alt']}\n{PICTURES[part['picture']]}"))
        elif part["code"]:
            cells.append(code(part["code"]))
        position = part.end()
    return [cell for cell in [*cells, markdown(section[position:])] if cell["source"]]


def markdown(text: str) -> dict:
    """A cell of text, without the comments that the tests of the pages read."""
    return {"cell_type": "markdown", "metadata": {}, "source": lines(COMMENT.sub("", text))}


def code(text: str) -> dict:
    """A cell of code that has not run."""
    not_run = {"execution_count": None, "metadata": {}, "outputs": []}
    return {"cell_type": "code", **not_run, "source": lines(text)}


def lines(text: str) -> list[str]:
    """The lines of a cell, as the file has them."""
    return text.strip("\n").splitlines(keepends=True)


def own(cell: dict) -> dict:
    """A cell of a notebook's own, without what a run has left in it."""
    make = code if cell["cell_type"] == "code" else markdown
    return {"id": cell["id"]} | make("".join(cell["source"]))


def make_notebook(name: str) -> str:
    """The text of a notebook: its own cells as they are, and those from the pages of today."""
    walk, after = (find_section(page, title) for page, title in SECTIONS[name])
    intro, *views = re.split(r"^(?=### )", walk, flags=re.M)
    old = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
    groups = groupby(old, key=lambda cell: cell["id"].startswith(FROM_PAGES))
    begin, calls, end = (
        [own(cell) for cell in cells] for from_pages, cells in groups if not from_pages
    )
    cells = [
        *begin,
        *section_cells(intro),
        *calls,
        *section_cells("".join(views)),
        *section_cells(after),
        *end,
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": [{"id": f"{FROM_PAGES}{index}"} | cell for index, cell in enumerate(cells)],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in SECTIONS:
        text = make_notebook(name)
        (ROOT / name).write_text(text, encoding="utf-8", newline="\n")
