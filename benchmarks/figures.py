"""The figures on the pages: measured once, kept in benchmarks/*.json, and filled in from there.

On a page, `52.4 %<!-- figure: seeds.ours.test_accuracy.median -->` is the value at that path in
one of the files.
"""

import functools
import json
import re
import statistics
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURE = re.compile(
    r"(?P<number>-?\d[\d,.]*)(?P<unit> %| s| ms| MB)?<!-- figure: (?P<path>.+?) -->"
)
OVER_SEEDS = ("median", "low", "high")
UNITS = {  # how the name of a measure ends: the unit of its figures
    "_ms": " ms",
    "_s": " s",
    "_mb": " MB",
    "_accuracy": " %",
    "_share": " %",
}


def pages() -> list[Path]:
    """Every page of the project, in both languages."""
    return sorted(
        path for folder in (".", "docs", "practice") for path in ROOT.glob(f"{folder}/*.md")
    )


def over_seeds(by_seed: Mapping[str, float]) -> dict:
    """What a results file says of a measure that was taken with several seeds."""
    values = by_seed.values()
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "seeds": dict(by_seed),
    }


def load_results() -> list[dict]:
    """What was measured: the contents of benchmarks/*.json."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in ROOT.glob("benchmarks/*.json")]


def look_up(results: list[dict], path: str) -> Any:
    """What stands at a dotted path; raises KeyError unless it is in one of the files only."""

    def follow(part, key: str):
        return part.get(key) if isinstance(part, dict) else None

    found = [functools.reduce(follow, path.split("."), one) for one in results]
    found = [value for value in found if value is not None]
    if len(found) != 1:
        raise KeyError(f"{path} is in {len(found)} files of benchmarks/*.json")
    return found[0]


def unit_of(path: str) -> str:
    """The unit of a figure: " %" of `seeds.ours.test_accuracy.median`."""
    parts = reversed(path.split("."))
    name = next((p for p in parts if p not in (*OVER_SEEDS, "seeds") and not p.isdigit()), "")
    return UNITS.get(name[name.rfind("_") :], "") if "_" in name else ""


def fill_in(page: str, results: list[dict]) -> str:
    """Replace every figure on a page by the value that was measured, with as many digits."""

    def figure(found: re.Match[str]) -> str:
        value = look_up(results, found["path"]) * (100 if unit_of(found["path"]) == " %" else 1)
        digits = len(found["number"].partition(".")[2])
        return f"{value:,.{digits}f}{found['unit'] or ''}<!-- figure: {found['path']} -->"

    return FIGURE.sub(figure, page)


def write_pages() -> None:
    """Fill in the figures of all pages."""
    results = load_results()
    for path in pages():
        page = path.read_text(encoding="utf-8")
        path.write_text(fill_in(page, results), encoding="utf-8")


def measure_all(
    tasks: Mapping[str, Callable[[], dict]], path: Path, jobs: int = 1
) -> dict[str, dict]:
    """Do what the file at `path` does not have yet, so many tasks at once; returns all results.

    Each result is a line of the file as soon as it is there, so that what was stopped goes on
    where it was.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done, lock = dict(map(json.loads, lines)), threading.Lock()

    def measure(name: str) -> None:
        result = tasks[name]()
        with lock:
            done[name] = result
            print(f"{len(done)}: {name}", file=sys.stderr)
            file.write(json.dumps([name, result]) + "\n")
            file.flush()

    with path.open("a", encoding="utf-8") as file, ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(measure, name) for name in tasks if name not in done]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:  # Ctrl-C, too
            pool.shutdown(cancel_futures=True)
            raise
    return {name: done[name] for name in tasks}
