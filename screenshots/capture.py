"""Make the pictures of the README from a finished run: every TensorBoard dashboard, in Chromium.

    python screenshots/capture.py runs/2026-01-31_12-00-00

TensorBoard is started on a free port of this machine and stopped at the end. Each `show_…` function
opens one dashboard, waits until its data is drawn, and returns the elements that make the picture;
the browser tests use the same functions. Needs `pip install playwright pillow` and Chromium.
"""

import argparse
import contextlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from torch.utils.tensorboard import SummaryWriter

T = TypeVar("T")

WIDTH = 1200  # pixels of a picture
MAX_BYTES = 300_000
CARDS_WIDE = 1450  # a window in which three charts, or two PR curves, stand side by side
TIMEOUT_S = 60  # for anything to be drawn; the slowest, t-SNE, takes a quarter of it on two cores
EVENT_FILES = "events.out.tfevents.*"
MAX_COMPARED = 6  # runs in the picture of the HParams table, and these columns of it:
HPARAMS_SHOWN = ("batch size", "lr")
METRICS_SHOWN = ("test accuracy", "test loss", "training loss")

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_FLAGS = (
    "--no-sandbox",  # which containers and CI do not allow; only our own pages are opened
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # All in software, the projector's WebGL too: no graphics card is needed, or makes a difference.
    "--disable-gpu",
    "--enable-unsafe-swiftshader",
)

# Each method of the writer: its dashboard, and what it is for.
WRITER_METHODS = {
    "add_scalar": ("Scalars", "one number at a step: loss, accuracy, learning rate"),
    "add_scalars": ("Scalars", "curves on one chart, at the price of a run for each"),
    "add_custom_scalars": ("Custom Scalars", "the layout: which curves share a chart"),
    "add_custom_scalars_multilinechart": ("Custom Scalars", "the layout of a single chart"),
    "add_custom_scalars_marginchart": ("Custom Scalars", "a curve with a band around it"),
    "add_image": ("Images", "one image"),
    "add_images": ("Images", "a batch of images"),
    "add_image_with_boxes": ("Images", "an image with boxes, for object detection"),
    "add_figure": ("Images", "a Matplotlib figure"),
    "add_graph": ("Graphs", "the layers of a net"),
    "add_onnx_graph": ("Graphs", "the net in an ONNX file"),
    "add_histogram": ("Histograms, Distributions", "how the values of a tensor are spread"),
    "add_histogram_raw": ("Histograms, Distributions", "the same, counted by yourself (faster)"),
    "add_pr_curve": ("PR Curves", "precision against recall, from truth and probability"),
    "add_pr_curve_raw": ("PR Curves", "the same, counted by yourself"),
    "add_embedding": ("Projector", "points in many dimensions, seen in two or three"),
    "add_text": ("Text", "Markdown: settings, tables, notes"),
    "add_hparams": ("HParams", "settings and results of runs (viz.py writes its parts)"),
    "add_audio": ("Audio", "sound"),
    "add_video": ("Images", "a short film, as an animated GIF"),
    "add_mesh": ("Mesh", "3-D points and surfaces"),
    "add_tensor": ("none", "any tensor, for a program that reads it back"),
}


class CaptureError(RuntimeError):
    """Something is missing; the message says what, and what to do."""


# ------------------------------------------------------------------------ TensorBoard and Chromium


@contextlib.contextmanager
def start_tensorboard(logdir: Path, load_fast: bool = True) -> Iterator[str]:
    """Serve the runs in `logdir` on a free port, and give the URL once they are loaded.

    load_fast takes TensorBoard's loader in Rust, otherwise it is the one in Python.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    command += ["--host", "127.0.0.1", "--port", "0", "--samples_per_plugin", "images=100"]
    command += ["--load_fast", "true" if load_fast else "false"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)

        def look_for_url() -> str | None:
            log.seek(0)
            said = log.read()
            if server.poll() is not None:
                raise CaptureError(f"TensorBoard did not start: {said.strip().splitlines()[-1:]}")
            url = re.search(r"http://127\.0\.0\.1:\d+/", said)
            return url and url[0]

        try:
            url = poll(look_for_url, "TensorBoard did not say where it is")
            runs = {path.parent.name for path in logdir.glob(f"*/{EVENT_FILES}")}
            poll(lambda: loaded_runs(url) >= runs, f"TensorBoard did not load all of {runs}")
            yield url
        finally:
            server.terminate()
            server.wait()


def loaded_runs(url: str) -> set[str]:
    """Return the runs that TensorBoard has read up to the last thing in them."""
    with urllib.request.urlopen(url + "data/plugin/text/tags", timeout=TIMEOUT_S) as answer:
        tags = json.load(answer)
    return {run for run, texts in tags.items() if "per class/text_summary" in texts}


def poll(look: Callable[[], T], failure: str) -> T:
    """Return what `look` returns, once that is true; CaptureError(failure) after TIMEOUT_S."""
    end = time.monotonic() + TIMEOUT_S
    while not (found := look()):
        if time.monotonic() > end:
            raise CaptureError(f"{failure} in {TIMEOUT_S} s")
        time.sleep(0.1)
    return found


def find_chromium() -> str | None:
    """Return the Chromium of $CHROMIUM or of the system; None leaves it to Playwright's own."""
    named = os.environ.get("CHROMIUM")
    if named and not shutil.which(named):
        raise CaptureError(f"CHROMIUM={named!r} is no program that can be run")
    return named or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Start headless Chromium; raises CaptureError where there is none."""
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=find_chromium(), args=CHROMIUM_FLAGS
            )
        except PlaywrightError as error:
            raise CaptureError(
                f"Chromium does not start ({error.message.splitlines()[0]}): install it (apt "
                "install chromium, or playwright install chromium), or set CHROMIUM to its path"
            ) from error
        with contextlib.closing(browser):
            yield browser


def open_page(browser: Browser) -> Page:
    """Open an empty page, with twice the pixels for sharp text."""
    page = browser.new_page(device_scale_factor=2)
    page.set_default_timeout(TIMEOUT_S * 1000)
    return page


# --------------------------------------------------------------------------------- the dashboards
# The names of elements are those of TensorBoard 2.21. Playwright looks into shadow roots by itself.

Show = Callable[[Page, str], list[Locator]]


def go_to(page: Page, url: str, dashboard: str, width: int, height: int = 1400, **state) -> None:
    """Open a dashboard; `state` is what TensorBoard keeps in its address, such as `tagFilter`."""
    page.set_viewport_size({"width": width, "height": height})
    page.goto("about:blank")  # a mere change of what follows the # would not load the page anew
    page.goto(url + "#" + "&".join([dashboard, *(f"{k}={v}" for k, v in state.items())]))


def cards_of(page: Page, card: str, count: int | None = None) -> list[Locator]:
    """Wait for the first cards of a dashboard, an element each; all that there are by default."""
    cards = page.locator(f"{card}:visible")
    cards.nth((count or 1) - 1).wait_for()
    return cards.all()[:count]


def wait_for_curves(cards: Sequence[Locator]) -> None:
    """Wait until every chart has a curve: an SVG path with lines in it, none of them to nowhere."""
    for card in cards:
        curve = card.locator('path.line[d*="L"]:not([d*="NaN"])')
        curve.first.wait_for(state="attached")


def show_scalars(page: Page, url: str) -> list[Locator]:
    """SCALARS: every curve of the run, as it was measured."""
    go_to(page, url, "scalars", CARDS_WIDE, tagFilter=".", _smoothingWeight=0)
    # Of a curve of two points TensorBoard takes both for outliers, and draws nothing.
    page.get_by_text("Ignore outliers in chart scaling").click()
    cards = cards_of(page, "tf-scalar-card", 6)
    wait_for_curves(cards)
    return cards


def show_custom_scalars(page: Page, url: str) -> list[Locator]:
    """CUSTOM SCALARS: the charts of our layout, with the names of their curves."""
    go_to(page, url, "custom_scalars", 1100, _smoothingWeight=0)
    page.get_by_text("Ignore outliers in chart scaling").click()
    cards = cards_of(page, "tf-custom-scalar-multi-line-chart-card", 2)
    wait_for_curves(cards)
    for card in cards:
        card.locator("#matches-list-title paper-icon-button").click()
    return cards


def show_images(page: Page, url: str, *tags: str) -> list[Locator]:
    """IMAGES: the last step of each of these tags, every pixel of it."""
    pattern = f"^({'|'.join(map(re.escape, tags))})$".replace(r"\ ", " ")
    go_to(page, url, "images", 1650, tagFilter=pattern)
    page.get_by_text("Show actual image size").click()
    cards = cards_of(page, "tf-image-loader", len(tags))
    for card in cards:
        image = card.locator("img").element_handle()
        page.wait_for_function("i => i.complete && i.naturalWidth > 0", arg=image)
    return cards


def show_training_images(page: Page, url: str) -> list[Locator]:
    """IMAGES: the training images with the names of their classes."""
    return show_images(page, url, "training images")


def show_predictions(page: Page, url: str) -> list[Locator]:
    """IMAGES: predictions vs. actuals, with the slider of steps."""
    return show_images(page, url, "predictions vs. actuals")


def show_confusion_matrix(page: Page, url: str) -> list[Locator]:
    """IMAGES: the confusion matrix."""
    return show_images(page, url, "confusion matrix")


def show_mistakes(page: Page, url: str) -> list[Locator]:
    """IMAGES: the worst mistakes."""
    return show_images(page, url, "worst mistakes")


def show_filters(page: Page, url: str) -> list[Locator]:
    """IMAGES: the filters of conv1, and its feature maps of one image."""
    return show_images(page, url, "filters", "feature maps")


def show_graph(page: Page, url: str) -> list[Locator]:
    """GRAPHS: the net and those of its layers that would show their names cut short, all opened."""
    go_to(page, url, "graphs", 1400)
    for name in ("Net", "Net/Conv2d[conv1]", "Net/MaxPool2d[pool]", "Net/Conv2d[conv2]"):
        page.locator(f'g.node[data-name="{name}"] > .nodeshape').dblclick()
        page.locator(f'g.node.expanded[data-name="{name}"]').wait_for()
    scene = page.locator("tf-graph-scene svg#svg")
    scene.click(position={"x": 1, "y": 1})  # no node is selected any more
    page.get_by_text("Fit to screen").click()
    return [scene.locator("g#root")]


def show_distributions(page: Page, url: str) -> list[Locator]:
    """DISTRIBUTIONS: gradients and weights of three layers, over the steps."""
    go_to(page, url, "distributions", CARDS_WIDE, tagFilter="(conv1|conv2|fc3).weight")
    cards = cards_of(page, "tf-distribution-loader", 6)
    for card in cards:
        card.locator('path.area[d*="L"]:not([d*="NaN"])').first.wait_for(state="attached")
    return cards


def show_histograms(page: Page, url: str) -> list[Locator]:
    """HISTOGRAMS: gradients and weights of three layers, one curve for each step."""
    go_to(page, url, "histograms", CARDS_WIDE, tagFilter="(conv1|conv2|fc3).weight")
    cards = cards_of(page, "tf-histogram-loader", 6)
    for card in cards:
        card.locator('.histogram path[d*="L"]:not([d*="NaN"])').first.wait_for(state="attached")
    return cards


def show_text(page: Page, url: str) -> list[Locator]:
    """TEXT: the settings of the run, a Markdown table."""
    go_to(page, url, "text", 1400, tagFilter="^settings|^per class")
    cards = cards_of(page, "tf-text-loader", 2)
    for card in cards:
        card.locator("td").first.wait_for()
    return cards


def show_pr_curves(page: Page, url: str) -> list[Locator]:
    """PR CURVES: of the first four classes."""
    go_to(page, url, "pr_curves", CARDS_WIDE, tagFilter=".")
    cards = cards_of(page, "tf-pr-curve-card")[:4]
    wait_for_curves(cards)
    return cards


def show_projector(page: Page, url: str) -> list[Locator]:
    """PROJECTOR: the features of test images, coloured by class and laid out in a plane by UMAP."""
    go_to(page, url, "projector", 1400, 860)
    projector = page.frame_locator("iframe").frame_locator("iframe")
    projector.locator(".numDataPoints").filter(has_text=re.compile("[1-9]")).wait_for()
    projector.locator("#colorby").click()
    projector.locator("#colorby paper-item:visible").filter(has_text="label").click()
    projector.locator("#umap-tab").click()
    projector.locator("#umap-toggle").click()  # from three dimensions to two
    projector.locator("#run-umap").click()
    projector.locator("#run-umap:enabled").wait_for()
    return [projector.locator("#left-pane"), projector.locator("#main.ink-panel")]


def show_hparams(page: Page, url: str) -> list[Locator]:
    """HPARAMS: the table of runs, with settings and results."""
    go_to(page, url, "hparams", 1500)
    tick(page, ".hparam-checkbox", HPARAMS_SHOWN)
    tick(page, ".metric-checkbox", METRICS_SHOWN)
    table = page.locator("tf-hparams-table-view")
    return table.locator("vaadin-grid-cell-content:visible").filter(has_text=re.compile(".")).all()


def tick(page: Page, boxes: str, wanted: Sequence[str]) -> None:
    """Tick the checkboxes of these names, and no others."""
    page.locator(boxes).first.wait_for()
    for box in page.locator(boxes).all():
        if (box.get_attribute("aria-checked") == "true") != (box.inner_text() in wanted):
            box.click()


# ------------------------------------------------------------------------------------ the pictures


def show_writer_methods(page: Page, url: str) -> list[Locator]:
    """Not a dashboard: a table of the writer's `add_…` methods, grey where viz.py has no use."""
    viz = (Path(__file__).parent.parent / "viz.py").read_text(encoding="utf-8")
    rows = "".join(
        f"<tr class={'used' if f'writer.{name}(' in viz else 'unused'}>"
        f"<td><code>{name}</code><td>{dashboard}<td>{html.escape(purpose)}"
        for name, (dashboard, purpose) in writer_methods().items()
    )
    page.set_viewport_size({"width": 1000, "height": 1400})
    page.set_content(METHODS_PAGE.replace("ROWS", rows))
    return [page.locator("table")]


METHODS_PAGE = """
<style>
  table { font: 15px sans-serif; border-collapse: collapse; color: #222; }
  th { background: #ff7c00; color: white; text-align: left; }
  th, td { padding: 5px 14px; white-space: nowrap; }
  td { border-bottom: 1px solid #ddd; }
  .unused { color: #999; }
  .used code { font-weight: bold; }
</style>
<table><tr><th>SummaryWriter<th>dashboard<th>what it is for (grey: not used here)ROWS</table>
"""


def writer_methods() -> dict[str, tuple[str, str]]:
    """Return WRITER_METHODS; raises CaptureError unless they are those of the installed writer."""
    installed = {name for name in dir(SummaryWriter) if name.startswith("add_")}
    if unknown := installed ^ WRITER_METHODS.keys():
        raise CaptureError(
            f"WRITER_METHODS and the installed SummaryWriter differ in {', '.join(sorted(unknown))}"
        )
    return WRITER_METHODS


PICTURES: dict[str, Show] = {
    "writer_add_methods": show_writer_methods,
    "result_images": show_training_images,
    "result_graphs": show_graph,
    "result_predic_each_step": show_predictions,
    "result_prcurve": show_pr_curves,
    "result_scalars": show_scalars,
    "result_custom_scalars": show_custom_scalars,
    "result_confusion_matrix": show_confusion_matrix,
    "result_mistakes": show_mistakes,
    "result_filters": show_filters,
    "result_histograms": show_histograms,
    "result_distributions": show_distributions,
    "result_text": show_text,
    "result_projector": show_projector,
    "result_hparams": show_hparams,
}


def take_picture(page: Page, elements: list[Locator]) -> Image.Image:
    """Photograph the elements and what is between them, once nothing there moves any more."""
    before = None
    while (shot := page.screenshot(clip=region(elements), animations="disabled")) != before:
        before = shot
    return Image.open(io.BytesIO(shot))


def region(elements: list[Locator], margin: float = 12) -> dict[str, float]:
    """Return the rectangle of the page around all the elements."""
    boxes = [element.bounding_box() for element in elements]
    left, top = (max(0, min(box[side] for box in boxes) - margin) for side in "xy")
    right = max(box["x"] + box["width"] for box in boxes) + margin
    bottom = max(box["y"] + box["height"] for box in boxes) + margin
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def save_picture(picture: Image.Image, path: Path) -> int:
    """Save as PNG of at most WIDTH pixels and MAX_BYTES; return the number of bytes."""
    picture = picture.convert("RGB")
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    for colors in (None, 256, 128, 64):
        png = io.BytesIO()
        fewer = picture.quantize(colors) if colors else picture
        fewer.save(png, "PNG", optimize=True)
        if png.tell() <= MAX_BYTES:
            path.write_bytes(png.getvalue())
            return png.tell()
    raise CaptureError(f"{path.name} has {png.tell():,} bytes: more than {MAX_BYTES:,}")


# --------------------------------------------------------------------------------- the command line


def is_finished(run_dir: Path) -> bool:
    """Whether the folder holds a run with all views up to the last, the projector."""
    return any(run_dir.glob(EVENT_FILES)) and (run_dir / "projector_config.pbtxt").exists()


def gather(runs: Sequence[Path], folder: Path) -> Path:
    """Copy runs into an empty folder, so that TensorBoard sees no others; return the folder."""
    for run in runs:
        shutil.copytree(run, folder / run.name, ignore=shutil.ignore_patterns("checkpoint.pt"))
    return folder


def check_run(run_dir: Path) -> None:
    """Raise CaptureError unless `run_dir` is a finished run."""
    if not run_dir.is_dir():
        raise CaptureError(f"{str(run_dir)!r} is no folder")
    if not any(run_dir.glob(EVENT_FILES)):
        raise CaptureError(f"{str(run_dir)!r} holds no TensorBoard event file: is it a run?")
    if not is_finished(run_dir):
        raise CaptureError(
            f"{str(run_dir)!r} lacks the last of the views: finish it by train_cifar.py --resume, "
            "or take a run with --views all"
        )


def capture(run_dir: Path, out: Path) -> None:
    """Write every picture of the run into `out`; HParams shows the runs beside it, too."""
    check_run(run_dir)
    writer_methods()
    others = [path for path in run_dir.parent.iterdir() if path != run_dir and is_finished(path)]
    others = sorted(others, key=lambda path: path.stat().st_mtime)[-MAX_COMPARED + 1 :]
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        browser = stack.enter_context(open_browser())
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        url = stack.enter_context(start_tensorboard(gather([run_dir], folders[0])))
        all_url = stack.enter_context(start_tensorboard(gather([run_dir, *others], folders[1])))
        for name, show in PICTURES.items():
            begun = time.perf_counter()
            page = open_page(browser)
            try:
                elements = show(page, all_url if show is show_hparams else url)
                size = save_picture(take_picture(page, elements), out / f"{name}.png")
            except PlaywrightError as error:
                raise CaptureError(f"{name} was not drawn: {error.message}") from error
            page.close()
            seconds = time.perf_counter() - begun
            print(f"{out / name}.png  {size / 1000:.0f} kB  {seconds:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 if a picture could not be made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a finished run")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="folder for the pictures"
    )
    args = parser.parse_args(argv)
    try:
        capture(args.run_dir.resolve(), args.out)
    except CaptureError as error:
        print(f"capture.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
