"""The plan of the house: imports run one way, and the lesson stays short enough to be read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LESSON = {"train_cifar", "model", "data", "viz"}  # the files at the top level
STOREYS = [  # a module imports from earlier storeys only
    {"support.errors", "support.interrupt", "support.profiler"},
    {"support.checkpoint", "support.processes", "support.settings", "support.shapes"},
    {"support.device", "support.folder", "support.streams", "support.terminal"},
    {"support.mirrors"},
    {"support.transfer"},
    {"support.download"},
    {"support.run_dir"},
    {"support.state"},
    {"support.run"},
    {"support.session"},
    {"support.description"},
    {"model", "viz", "data"},
    {"train_cifar"},
]
ALONE = {"model", "viz"}  # import nothing of this project: they can be lifted as they are


def modules() -> dict[str, Path]:
    """All modules of the program, by the name that imports them."""
    found = {path.stem: path for path in ROOT.glob("*.py")}
    found |= {f"support.{path.stem}": path for path in ROOT.glob("support/*.py")}
    del found["support.__init__"]
    return found


def imports(path: Path) -> dict[str, list[str]]:
    """The project's modules that a file imports, each with the names that are taken from it."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                found.setdefault(name.name, []).append(name.name)
        elif isinstance(node, ast.ImportFrom) and node.module == "support":
            for name in node.names:
                found.setdefault(f"support.{name.name}", []).append(name.name)
        elif isinstance(node, ast.ImportFrom):
            found.setdefault(node.module, []).extend(name.name for name in node.names)
    return {module: names for module, names in found.items() if module in modules()}


def line_count(name: str) -> int:
    return len(modules()[name].read_text(encoding="utf-8").splitlines())


def test_four_files_are_at_the_top():
    assert {name for name in modules() if "." not in name} == LESSON


def test_every_module_has_its_storey():
    assert sorted(modules()) == sorted(name for storey in STOREYS for name in storey)


@pytest.mark.parametrize("name", modules())
def test_imports_run_one_way(name):
    (level,) = (level for level, storey in enumerate(STOREYS) if name in storey)
    below = set().union(*STOREYS[:level])
    assert set(imports(modules()[name])) <= (set() if name in ALONE else below)


def test_the_script_is_short_and_imports_little():
    assert line_count("train_cifar") <= 230
    assert sum(map(len, imports(modules()["train_cifar"]).values())) <= 25


def test_the_training_loop_is_one_paragraph():
    tree = ast.parse(modules()["train_cifar"].read_text(encoding="utf-8"))
    (train,) = (node for node in tree.body if getattr(node, "name", "") == "train")
    assert train.end_lineno - train.lineno + 1 <= 30


def test_no_module_of_support_is_a_cupboard():
    long = [name for name in modules() if name.startswith("support.") and line_count(name) > 300]
    assert long == []


def test_a_line_on_the_terminal_needs_no_images():
    check = "import support.terminal, sys; assert not {'torchvision', 'data'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
