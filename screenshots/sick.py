"""Make the pictures of docs/sick-runs.md from the runs of that page, in a real browser.

    python screenshots/sick.py RUNS_FOLDER

The folder holds the runs that the commands of the page make; it may hold others, too. One function
for each dashboard gives the parts of it that are worth a picture, to be put side by side; the
browser tests use the same functions.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import capture
from capture import CaptureError
from PIL import Image
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Locator, Page, expect

TABLE_COLUMNS = ["batch size", "lr", "schedule", "train images", "wrong labels"]
TABLE_COLUMNS += ["test/loss", "test/accuracy"]
AXES = ["batch size", "lr", "train images", "test/accuracy"]
LOGARITHMIC_AXES = ["lr", "train images"]
ALL = "*"  # runs


def only(runs: str) -> dict[str, str]:
    """What the address of a dashboard says to show these runs ("a|b|c") alone."""
    return {"regexInput": f"^({runs})$"}


def charts(page: Page, url: str, runs: str, tags: str, log: bool = False) -> list[Locator]:
    """SCALARS: the names of the runs in their colours, and a chart for each tag ("a|b").

    `log` gives the loss a logarithmic axis.
    """
    capture.open_dashboard(
        page, url, "scalars", 1460, tagFilter=f"^({tags})$", _smoothingWeight="0", **only(runs)
    )
    cards = capture.first_cards(page, "tf-scalar-card", 1 + tags.count("|"))
    capture.show_outliers(page)
    for card in cards.all():
        expect(card.locator("path.line[d*=L]")).to_have_count(1 + runs.count("|"))
        if log:
            card.locator("[title='Toggle y-axis log scale']").click()
    page.locator("tf-runs-selector paper-button").evaluate("button => button.remove()")
    return [page.locator(".name-row").locator(".checkbox, span"), cards]


def both_losses(page: Page, url: str, run: str) -> list[Locator]:
    """CUSTOM SCALARS: training and test loss of one run on one chart."""
    charts = capture.custom_scalars(page, url, **only(run))
    return [charts.locator("tf-custom-scalar-multi-line-chart-card").first]


def histograms(page: Page, url: str, runs: str, tag: str) -> list[Locator]:
    """HISTOGRAMS: the same tag of each run."""
    capture.open_dashboard(page, url, "histograms", 1460, tagFilter=f"^{tag}$", **only(runs))
    cards = capture.first_cards(page, "tf-histogram-loader", 1 + runs.count("|"))
    capture.wait_for_shapes(cards, "g.histogram path")
    return [cards]


def images(page: Page, url: str, runs: str, tag: str) -> list[Locator]:
    """IMAGES: the last image of a tag of each run."""
    return [capture.images(page, url, tag, 1 + runs.count("|"), **only(runs))]


def table(page: Page, url: str, _runs: str = ALL) -> list[Locator]:
    """HPARAMS: a row for each run."""
    return [capture.hparams(page, url, TABLE_COLUMNS)]


def parallel_coordinates(page: Page, url: str, _runs: str = ALL) -> list[Locator]:
    """HPARAMS: a line for each run, through its settings to its test accuracy."""
    capture.hparams(page, url, AXES)
    page.set_viewport_size({"width": 1700, "height": 1200})
    page.get_by_text("Parallel Coordinates View").click()
    view = page.locator("tf-hparams-parallel-coords-view")
    for axis in LOGARITHMIC_AXES:
        view.locator(f"[id='logScaleButton_{axis}']").click()
    plot = view.locator("#svg")
    expect(plot.locator(".foreground path").first).to_have_attribute("d", re.compile("M.*L"))
    return [plot]


PAGE_WIDTH = 830  # pixels that GitHub's pages have for a picture
FLAT = "healthy|dead|too-low"
PICTURES: dict[str, tuple[str, Callable[[Page, str, str], list[Locator]]]] = {
    "flat_loss": (FLAT, partial(charts, tags="training loss|test/accuracy")),
    "flat_gradients": (FLAT, partial(histograms, tag="gradients/conv1.weight")),
    "dead_confusion": ("healthy|dead", partial(images, tag="test/confusion matrix")),
    "exploding_loss": ("exploding", partial(charts, tags="training loss", log=True)),
    "restless_loss": (
        "healthy|restless|restless-cured",
        partial(charts, tags="training loss|test/accuracy"),
    ),
    "big_batch_loss": (
        "big-batch|big-batch-cured",
        partial(charts, tags="training loss|test/accuracy"),
    ),
    "overfit_loss": ("overfit|overfit-cured", partial(charts, tags="training loss|test/loss")),
    "wrong_labels_images": ("wrong-labels", partial(images, tag="training images")),
    "wrong_labels_mistakes": ("wrong-labels", partial(images, tag="test/worst mistakes")),
    "augmented_loss": ("augmented", both_losses),
    "hparams_table": (ALL, table),
    "hparams_parallel": (ALL, parallel_coordinates),
}  # name: the runs that it is about ("a|b"), and what to show of them


def side_by_side(parts: list[Image.Image]) -> Image.Image:
    """Join pictures from left to right, on white."""
    size = sum(part.width for part in parts), max(part.height for part in parts)
    whole = Image.new("RGB", size, "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width
    return whole


def in_page_size(picture: Image.Image) -> Image.Image:
    """Shrink a picture that is narrower than others by as much as a page shrinks those."""
    if picture.width >= capture.WIDTH:
        return picture
    return picture.resize(
        [round(side * PAGE_WIDTH / capture.WIDTH) for side in picture.size],
        Image.Resampling.LANCZOS,
    )


def folder_of(runs: str, log_dir: Path) -> contextlib.AbstractContextManager[Path]:
    """A folder with these runs alone, or the folder itself for all of them.

    TensorBoard has seven colours and deals them out in the order of the runs: among many, the one
    that a picture is about may get a pale grey.
    """
    if runs == ALL:
        return contextlib.nullcontext(log_dir)
    return capture.copies_of(log_dir / name for name in runs.split("|"))


def draw(log_dir: Path, out: Path, names: Sequence[str]) -> None:
    """Write pictures of the runs in a folder; raises CaptureError if one is not drawn."""
    needed = {run for name in names for run in PICTURES[name][0].split("|")}
    if not all(any(log_dir.glob(f"{run}/events.out.tfevents.*")) for run in needed):
        raise CaptureError(
            f"{str(log_dir)!r} lacks runs of {', '.join(sorted(needed))}: make them first, "
            "as in docs/sick-runs.md"
        )
    out.mkdir(parents=True, exist_ok=True)
    with capture.open_browser() as browser:
        for name in names:
            runs, show = PICTURES[name]
            with (
                folder_of(runs, log_dir) as folder,
                capture.start_tensorboard(folder) as url,
                capture.new_page(browser) as page,
            ):
                try:
                    shots = [capture.take_picture(page, part) for part in show(page, url, runs)]
                except (PlaywrightError, AssertionError) as error:
                    first_line = str(error).partition("\n")[0]
                    raise CaptureError(f"{name} was not drawn: {first_line}") from error
            capture.save_picture(in_page_size(side_by_side(shots)), out / f"{name}.png")
            print(out / f"{name}.png", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the pictures of docs/sick-runs.md.")
    parser.add_argument("runs", type=Path, metavar="RUNS_FOLDER", help="where the runs are")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "sick", help="where to write"
    )
    parser.add_argument("--only", choices=PICTURES, help="make this picture alone")
    args = parser.parse_args(argv)
    try:
        draw(args.runs, args.out, [args.only] if args.only else list(PICTURES))
    except CaptureError as error:
        print(f"sick.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
