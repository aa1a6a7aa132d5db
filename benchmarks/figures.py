"""The figures on the pages: measured once, kept in benchmarks/*.json, and filled in from there.

On a page, `52.4 %<!-- figure: seeds.ours.test_accuracy.median -->` is the value at that path in
one of the files. What is shared by the programs that measure stands at the end.
"""

import datetime
import importlib.metadata
import json
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # where the lesson is
FIGURE = re.compile(
    r"(?P<number>-?\d[\d,.]*)(?P<unit> %| s| ms| MB)?<!-- figure: (?P<path>.+?) -->"
)
OVER_SEEDS = ("median", "low", "high")
UNITS = {"ms": " ms", "s": " s", "mb": " MB", "accuracy": " %"}  # by the end of a measure's name


def pages() -> list[Path]:
    """Every page of the project, in both languages."""
    return sorted(
        path for folder in (".", "docs", "practice") for path in ROOT.glob(f"{folder}/*.md")
    )


def over_seeds(by_seed: Mapping[str, float]) -> dict:
    """What a results file says of a measure that was taken with several seeds."""
    values = by_seed.values()
    found = statistics.median(values), min(values), max(values)
    return dict(zip(OVER_SEEDS, found, strict=True)) | {"seeds": dict(by_seed)}


def load_results() -> list[dict]:
    """What was measured: the contents of benchmarks/*.json."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in ROOT.glob("benchmarks/*.json")]


def look_up(results: list[dict], path: str) -> Any:
    """What stands at a dotted path; raises KeyError unless it is in one of the files only."""
    found = []
    for value in results:
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found.append(value)
    if len(found) != 1:
        raise KeyError(f"{path} is in {len(found)} files of benchmarks/*.json")
    return found[0]


def unit_of(path: str) -> str:
    """The unit of a figure: " %" of `seeds.ours.test_accuracy.median`."""
    measures = [name for name in path.split(".") if "_" in name]
    return UNITS.get(measures[-1].rpartition("_")[2], "") if measures else ""


def fill_in(page: str, results: list[dict]) -> str:
    """Replace every figure on a page by the value that was measured, with as many digits."""

    def figure(found: re.Match[str]) -> str:
        value = look_up(results, found["path"]) * (100 if unit_of(found["path"]) == " %" else 1)
        digits = len(found["number"].partition(".")[2])
        value = round(value, digits) + 0.0  # never -0.00
        return f"{value:,.{digits}f}{found['unit'] or ''}<!-- figure: {found['path']} -->"

    return FIGURE.sub(figure, page)


def write_pages(file: Path, measured: dict, quote: Callable[[str], str] = str) -> None:
    """Write a results file, then the figures of all pages; `quote` changes a page further."""
    file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    results = load_results()
    for path in pages():
        page = path.read_text(encoding="utf-8")
        path.write_text(quote(fill_in(page, results)), encoding="utf-8")


# --------------------------------------------------------------------------------- measuring


def conditions(cores: str) -> dict[str, str]:
    """Where and when all this is measured."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    pytorch = importlib.metadata.version("torch")
    return {
        "hardware": f"{cores} of {named[1] if named else platform.processor()}",
        "versions": f"Python {platform.python_version()}, PyTorch {pytorch}",
        "date": datetime.date.today().isoformat(),
    }


def command(script: str, settings: str, data: str, seed: int, run_dir: Path) -> list[str]:
    """The command line of a run, by a script that takes the flags of train_cifar.py."""
    words = [sys.executable, str(ROOT / script), *settings.split(), "--data", data]
    words += ["--seed", str(seed), "--log-dir", str(run_dir.parent), "--run-name", run_dir.name]
    return words


def read_events(run_dir: Path) -> list[Event]:
    """All that a run has written, in order."""
    (path,) = run_dir.glob("events.*")
    return list(LegacyEventFileLoader(str(path)).Load())  # the newer one changes histograms


def measure_all(
    tasks: Mapping[str, Callable[[], dict]], folder: Path, jobs: int = 1
) -> dict[str, dict]:
    """Do what has no file in the folder yet, so many tasks at once; returns all results.

    Each result is a file as soon as it is there: what was stopped goes on where it was.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def measure(name: str) -> dict:
        path = folder / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(tasks[name]()), encoding="utf-8")
            print(f"{name}: measured", file=sys.stderr)
        return json.loads(path.read_text(encoding="utf-8"))

    with ThreadPoolExecutor(jobs) as pool:  # if one fails, `map` drops those that have not begun
        return dict(zip(tasks, pool.map(measure, tasks), strict=True))
