"""Make the notebooks, one in each language, from the README and the reference.

    python docs/make_notebook.py

The walk and "After the training" come word for word, without what only their tests need. Programs
that run as they stand, and the views' calls, are cells of code; where the page shows a picture,
the notebook has a cell that draws it from the reader's own run. The other cells are written here.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

ROOT = Path(__file__).parent.parent


class Language(NamedTuple):
    """Where the words of a notebook come from, and those that stand here."""

    notebook: str
    walk: tuple[str, str]  # of each of the two sections that it takes: the page, and the title
    after: tuple[str, str]
    title: str
    setup: str
    train: str
    tensorboard: str
    views: str
    calls: str


ENGLISH = Language(
    notebook="train_cifar.ipynb",
    walk=("README.md", "The walk"),
    after=("docs/reference.md", "After the training"),
    title="""\
# Training, seen in TensorBoard

The walk of [README.md](README.md) as a notebook. Run the cells from top to bottom: they train a
small network, open TensorBoard, and draw every view on this page, too.
· [中文](train_cifar.zh-CN.ipynb)""",
    setup="""\
## Get ready

The notebook needs the files beside it. On Colab, Kaggle and the like, upload the whole folder or
`!git clone` it, and go into it with `%cd`. The cell installs what is missing; a PyTorch that is
already there stays as it is.""",
    train="""\
## Train

The words below are of a run with the notes' settings. This one has larger batches: it takes a
fraction of the time and ends a little better. For the notes' settings, leave only `--data` in
`settings`. Another run needs another `run_name`; with the same one, the cell resumes the run where
it was stopped.

**No CIFAR-10?** Where it cannot be downloaded, a warning says so after half a minute, and the run
takes the built-in drawings of ten shapes. All views work the same, but for cat and ship read heart
and star: the accuracy is higher, other classes are mixed up, and the worst mistakes are drawings.
""",
    tensorboard="""\
## TensorBoard, inside this page

Press ↻ at the top right of the frame when there is more to see: it does not reload by itself.

**A blank frame, or error 403?** The frame is a page of its own, which some services and browsers
block. On Colab, allow third-party cookies, or try another browser. If it stays blank, go on
without it: every view is drawn below, too. Or download the folder `runs`, and look at it on your
own machine.""",
    views="""\
## The views, on this page

`docs/notebook_views.py` has a function for each tab, which draws it from the run's event files.""",
    calls="""\
**The calls below run here, too.** This cell gives them the names that they have in
`train_cifar.py`: a new run with the net that was trained above. It is named by the time, and what
the calls show is in TensorBoard after ↻. The pictures between them are those of the run above,
which made the same calls report after report.""",
)

CHINESE = Language(
    notebook="train_cifar.zh-CN.ipynb",
    walk=("README.zh-CN.md", "逐个视图看一遍"),
    after=("docs/reference.zh-CN.md", "训练之后"),
    title="""\
# 在 TensorBoard 里看懂训练过程

这是 [README.zh-CN.md](README.zh-CN.md) 中“逐个视图看一遍”的 notebook 版。
从上到下依次运行各个单元格：训练一个小网络，打开 TensorBoard，并把每个视图也画在本页上。
· [English](train_cifar.ipynb)""",
    setup="""\
## 准备

notebook 离不开和它放在一起的那些文件。在 Colab、Kaggle 等平台上，请上传整个目录，
或者先 `!git clone`，再用 `%cd` 进入目录。
下面的单元格只安装缺少的包；已经装好的 PyTorch 保持不变。""",
    train="""\
## 训练

正文讲的是用笔记的设置做的训练；这里的批大小更大，用时只是它的几分之一，结果还略好一些。
想用笔记的设置，`settings` 里只留 `--data` 就行。
再训练一次要换一个 `run_name`；名字不变，则从上次停下的地方继续。

**没有 CIFAR-10？** 下载不了的时候，半分钟后会有一条警告，然后改用内置的十种图形来训练。
所有视图照样能看，只是正文里的 cat、ship 要换成 heart、star 来读：
准确率更高，容易混淆的是另外一些类别，错得最离谱的图片也是图形。""",
    tensorboard="""\
## 在本页里打开 TensorBoard

有新内容时，按框内右上角的 ↻：它不会自己刷新。

**框里一片空白，或者报 403？** 这个框是一个独立的网页，有些平台和浏览器会拦截它。
在 Colab 上请允许第三方 cookie，或者换一个浏览器。
还是空白也没关系：下面会画出每一个视图。
也可以把 `runs` 目录下载下来，在自己的机器上看。""",
    views="""\
## 把视图画在本页上

`docs/notebook_views.py` 为每个标签页准备了一个函数，从运行的事件文件里读出数据，画成图。""",
    calls="""\
**下面的调用在这里也能运行。** 这个单元格准备好它们在 `train_cifar.py` 里用到的那些名字：
一次新的运行，网络就是上面训练好的那个。
运行以时间命名，这些调用写出的内容，在 TensorBoard 里按 ↻ 就能看到。
穿插其间的图则来自上面那次训练：它在每次报告时都做同样的调用。""",
)

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

missing = []
for requirement in re.findall(r"^\\w\\S+", Path("requirements.txt").read_text(), re.M):
    try:
        metadata.version(requirement.split(">=")[0])
    except metadata.PackageNotFoundError:
        missing.append(requirement)
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *missing], check=True)

# %tensorboard starts the program of that name: the one that belongs to this Python.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]
sys.path.append("docs")  # for notebook_views"""

TRAIN_CODE = """\
from data import load_data

source = load_data().source  # "cifar10", which is downloaded first, or "shapes"
run_name = "first"
settings = f"--data {source} --batch-size 64 --lr 0.05 --schedule onecycle"

resume = Path("runs", run_name).is_dir()
words = f"--resume runs/{run_name}" if resume else f"{settings} --run-name {run_name}"
!"{sys.executable}" train_cifar.py {words}
if _exit_code:
    why = "killed, mostly for want of memory" if _exit_code == -9 else "see what it said last"
    raise RuntimeError(f"the training ended with status {_exit_code}: {why}")"""

TENSORBOARD_CODE = """\
%load_ext tensorboard
%tensorboard --logdir runs --samples_per_plugin images=100"""

VIEWS_CODE = """\
import notebook_views as views

log = views.read_run(f"runs/{run_name}")"""

CALLS_CODE = """\
from types import SimpleNamespace

import torch

import viz
from support.checkpoint import load_checkpoint
from support.settings import settings_table
from train_cifar import SummaryWriter, evaluate, make_run, parse_args

run = make_run(parse_args(settings.split()))
run.net.load_state_dict(load_checkpoint(f"runs/{run_name}")["net"])
run.writer = writer = SummaryWriter(run.run_dir)

last = log.Scalars("training loss")[-1]
report, step = SimpleNamespace(loss=last.value), last.step
net, classes, dataset = run.net, run.data.classes, run.data.validation_loader.dataset
result = evaluate(run)
part = result.part"""

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


def make_notebook(language: Language) -> str:
    """The text of a notebook, from its pages as they are today."""
    walk, *views = re.split(r"^(?=### )", find_section(*language.walk), flags=re.M)
    cells = [
        *(markdown(language.title), markdown(language.setup), code(SETUP_CODE)),
        *(markdown(language.train), code(TRAIN_CODE)),
        *(markdown(language.tensorboard), code(TENSORBOARD_CODE)),
        *(markdown(language.views), code(VIEWS_CODE)),
        *section_cells(walk),
        *(markdown(language.calls), code(CALLS_CODE)),
        *section_cells("".join(views)),
        *section_cells(find_section(*language.after)),
        code(TIME_CODE),
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": [{"id": f"cell-{index}"} | cell for index, cell in enumerate(cells)],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for language in (ENGLISH, CHINESE):
        text = make_notebook(language)
        (ROOT / language.notebook).write_text(text, encoding="utf-8", newline="\n")
