"""The workflow of GitHub Actions: it runs the README's commands, on the Pythons of the README.

And the suite's own rule for warnings.
"""

import re
import warnings

import pytest
from conftest import ROOT

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
    (pythons,) = re.findall(r"python: \[(.+)\]", WORKFLOW)
    oldest = re.findall(r'"([\d.]+)"', pythons)[0]
    assert f"Python {oldest} or later" in (ROOT / "README.md").read_text(encoding="utf-8")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'target-version = "py{oldest.replace(".", "")}"' in settings


@pytest.mark.parametrize("module", ["viz", "support.run", "capture", "test_viz"])
def test_a_warning_that_our_call_causes_is_an_error(module):
    with pytest.raises(DeprecationWarning, match="old"):
        warnings.warn_explicit("this is old", DeprecationWarning, "file.py", 1, module)
    warnings.warn_explicit("this is old", FutureWarning, "file.py", 1, "matplotlib.data")  # theirs
