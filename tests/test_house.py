"""The rules of the house: the lesson is short and alone above, the machinery small and below.

And GitHub Actions runs the README's commands, and a warning that we cause is an error.
"""

import ast
import graphlib
import inspect
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
from conftest import ROOT

import train_cifar

LESSON = {"train_cifar", "model", "data", "viz"}  # the files at the top level
MODULES = {path.stem: path for path in ROOT.glob("*.py")}
MODULES |= {f"support.{path.stem}": path for path in ROOT.glob("support/[!_]*.py")}


def imports(name: str) -> list[tuple[str, str]]:
    """What one of the modules takes from the others when it runs: (module, name)."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # TYPE_CHECKING
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"  # as in `from support import shapes`
                found.append((module if module in MODULES else node.module, alias.name))
    return [(module, taken) for module, taken in found if module in MODULES]


def test_the_lesson_stands_above_the_machinery():
    assert {name for name in MODULES if "." not in name} == LESSON
    needs = {name: {module for module, _ in imports(name)} for name in MODULES}
    for name in MODULES.keys() - LESSON:
        assert not LESSON & needs[name], name
    assert needs["model"] == needs["viz"] == set()  # they can be lifted as they are
    graphlib.TopologicalSorter(needs).prepare()  # fails where imports run in a circle


def test_lesson_and_machinery_are_short():
    files = [path.read_text(encoding="utf-8") for path in ROOT.glob("support/*.py")]
    assert sum(len(text.splitlines()) for text in files) <= 1890
    assert len(MODULES["train_cifar"].read_text(encoding="utf-8").splitlines()) <= 230
    assert len(imports("train_cifar")) <= 23
    assert len(inspect.getsourcelines(train_cifar.train)[0]) <= 30  # one paragraph


# ---------------------------------------------------------------------------------------- imports


def programs() -> Iterator[tuple[str, str]]:
    """Every program that a reader runs or copies: where it stands, and its text."""
    for path in (*ROOT.glob("*.py"), *ROOT.glob("docs/*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            yield path.name, code
    for path in ROOT.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            yield path.name, "".join(cell["source"])


def test_torchvision_is_imported_before_tensorboards_writer():
    """Where TensorFlow is installed, torchvision after the writer is a segmentation fault."""
    with_writer = 0
    for name, code in programs():
        order = re.findall(
            r"^ *(?:from|import) (torchvision|viz|torch\.utils\.tensorboard)\b", code, re.M
        )
        if "torch.utils.tensorboard" in order:
            with_writer += 1
            assert order[0] in ("torchvision", "viz"), name  # viz, which is checked too, brings it
    assert with_writer >= 5  # train_cifar.py, viz.py, two READMEs, a notebook


def test_a_fresh_python_imports_no_images_for_a_line_and_torchvision_before_the_writer():
    check = """
import sys
import support.terminal
assert not {"torchvision", "data"} & sys.modules.keys()
class Guard:
    def find_spec(self, name, path, target=None):
        assert name != "torch.utils.tensorboard" or "torchvision" in sys.modules
sys.meta_path.insert(0, Guard())
import train_cifar
assert "torch.utils.tensorboard" in sys.modules
"""
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


# ---------------------------------------------------------------------------------- GitHub Actions

WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
ONLY_HERE = {
    "playwright install --with-deps chromium",  # a reader has a browser
    "pip install tensorflow-cpu",
    "python -m pytest tests/test_train.py tests/test_pages.py",  # the first runs, beside TensorFlow
}
SUITE = {  # what must not be lost of it
    "pip install -r requirements.txt -r tests/requirements.txt",
    "python -m pytest",
    "ruff check . && ruff format --check .",
}


@pytest.mark.parametrize("language", ["", ".zh-CN"])
def test_the_commands_are_those_of_the_pages(language):
    commands = set(re.findall(r"run: (.+)", WORKFLOW))
    assert SUITE <= commands
    pages = (ROOT / f"{page}{language}.md" for page in ("README", "docs/reference"))
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert [command for command in commands - ONLY_HERE if command not in text] == []


def test_the_oldest_python_is_the_one_that_the_readme_and_ruff_name():
    oldest = re.search(r'python: \["([\d.]+)"', WORKFLOW)[1]
    assert f"Python {oldest} or later" in (ROOT / "README.md").read_text(encoding="utf-8")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'target-version = "py{oldest.replace(".", "")}"' in settings


@pytest.mark.parametrize("module", ["viz", "support.run", "capture", "test_viz"])
def test_a_warning_that_our_call_causes_is_an_error(module):
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("this is old", DeprecationWarning, "file.py", 1, module)


def test_a_warning_of_others_is_no_error():
    with pytest.warns(FutureWarning):
        warnings.warn_explicit("this is old", FutureWarning, "file.py", 1, "matplotlib.data")
