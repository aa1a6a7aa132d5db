"""The rules of the house: the lesson is short and alone above, the machinery small and below."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LESSON = {"train_cifar", "model", "data", "viz"}  # the files at the top level


def modules() -> dict[str, Path]:
    """All modules of the program, by the name that imports them."""
    found = {path.stem: path for path in ROOT.glob("*.py")}
    found |= {f"support.{path.stem}": path for path in ROOT.glob("support/*.py")}
    del found["support.__init__"]
    return found


def imports(name: str) -> dict[str, list[str]]:
    """The project's modules that one imports when it runs, each with the names taken from it."""
    found: dict[str, list[str]] = {}
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    for_hints = [node for node in tree.body if isinstance(node, ast.If)]  # TYPE_CHECKING
    hidden = {inner for node in for_hints for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, []).append(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module == "support":
            for alias in node.names:
                found.setdefault(f"support.{alias.name}", []).append(alias.name)
        elif isinstance(node, ast.ImportFrom):
            found.setdefault(node.module, []).extend(alias.name for alias in node.names)
    return {module: names for module, names in found.items() if module in modules()}


def line_count(name: str) -> int:
    return len(modules()[name].read_text(encoding="utf-8").splitlines())


def test_four_files_are_at_the_top():
    assert {name for name in modules() if "." not in name} == LESSON


def test_the_lesson_is_never_imported_from_below():
    for name in modules():
        if name.startswith("support."):
            assert not LESSON & imports(name).keys(), name


def test_model_and_viz_can_be_lifted_as_they_are():
    assert imports("model") == imports("viz") == {}


def test_imports_run_in_no_circle():
    left = {name: set(imports(name)) for name in modules()}
    while left:
        free = {name for name, needs in left.items() if not needs & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


def test_the_machinery_is_small():
    files = ROOT.glob("support/*.py")
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 1890


def test_the_script_is_short_and_imports_little():
    assert line_count("train_cifar") <= 230
    assert sum(map(len, imports("train_cifar").values())) <= 23


def test_the_training_loop_is_one_paragraph():
    tree = ast.parse(modules()["train_cifar"].read_text(encoding="utf-8"))
    (train,) = (node for node in tree.body if getattr(node, "name", "") == "train")
    assert train.end_lineno - train.lineno + 1 <= 30


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


def test_what_the_script_imports_first_brings_torchvision_before_the_writer():
    check = """
import sys
class Guard:
    def find_spec(self, name, path, target=None):
        assert name != "torch.utils.tensorboard" or "torchvision" in sys.modules
sys.meta_path.insert(0, Guard())
import train_cifar
assert "torch.utils.tensorboard" in sys.modules
"""
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


def test_a_line_on_the_terminal_needs_no_images():
    check = "import support.terminal, sys; assert not {'torchvision', 'data'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
