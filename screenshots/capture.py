"""Make the pages' pictures again, in a real browser.

    python screenshots/capture.py runs/first
    python screenshots/capture.py --compare RUNS_FOLDER

The first makes those of one finished run, for the README; the second those that compare runs. Both
need Chromium and what is in tests/requirements.txt. One function for each dashboard opens it, waits
until its data is drawn, and returns what is worth a picture; the browser tests use the same
functions.
"""

import argparse
import contextlib
import html
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import animation
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

try:
    from playwright.sync_api import Browser, FrameLocator, Locator, Page, expect, sync_playwright
    from playwright.sync_api import Error as PlaywrightError
except ModuleNotFoundError:
    print("capture.py: error: first: pip install -r tests/requirements.txt", file=sys.stderr)
    raise SystemExit(2) from None

sys.path.append(str(Path(__file__).parent.parent / "docs"))

from report import write_report  # noqa: E402

WIDTH = 1200  # pixels of a picture
MAX_BYTES = 300_000
SHARPNESS = 2  # device pixels for each of the page's, so that text stays sharp when scaled to WIDTH
MARGIN = 8  # of the page's pixels around what is pictured
GAP = 24  # pixels between pictures that are put together
TIMEOUT = 60  # seconds, for whatever has to appear
LAST_TAG = "per class/text_summary"  # what a run shows last: once it is there, everything is
PAGE_WIDTH = 830  # pixels that GitHub's pages have for a picture
COLUMNS = ("lr", "test/accuracy", "test/loss")  # of HPARAMS
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

# Each add_... method of SummaryWriter: the dashboard it fills, and what it is for.
WRITER_METHODS = {
    "add_scalar": ("SCALARS", "one number per step: loss, accuracy, learning rate"),
    "add_scalars": ("SCALARS", "several numbers on one chart; opens a run for each of them"),
    "add_custom_scalars": ("CUSTOM SCALARS", "a layout that puts scalars together on charts"),
    "add_custom_scalars_multilinechart": ("CUSTOM SCALARS", "the same for a single chart"),
    "add_custom_scalars_marginchart": ("CUSTOM SCALARS", "a value between two bounds"),
    "add_image": ("IMAGES", "one picture per step"),
    "add_images": ("IMAGES", "a batch of pictures, one below the other"),
    "add_image_with_boxes": ("IMAGES", "a picture with boxes around what was detected"),
    "add_figure": ("IMAGES", "a Matplotlib figure"),
    "add_video": ("IMAGES", "a clip as animated GIF; needs moviepy"),
    "add_graph": ("GRAPHS", "the layers of a network and how data flows through them"),
    "add_onnx_graph": ("GRAPHS", "the same for a network in an ONNX file"),
    "add_histogram": ("HISTOGRAMS, DISTRIBUTIONS", "how the values of a tensor are spread"),
    "add_histogram_raw": ("HISTOGRAMS, DISTRIBUTIONS", "the same, from bins counted already"),
    "add_text": ("TEXT", "Markdown: settings, tables, samples"),
    "add_pr_curve": ("PR CURVES", "precision against recall, from truth and probabilities"),
    "add_pr_curve_raw": ("PR CURVES", "the same, from counts made already"),
    "add_hparams": ("HPARAMS", "a run's settings and results, to compare runs"),
    "add_embedding": ("PROJECTOR", "points in many dimensions with labels and thumbnails"),
    "add_audio": ("AUDIO", "a sound"),
    "add_mesh": ("MESH", "a point cloud or a surface in three dimensions"),
    "add_tensor": ("none", "any tensor, for programs that read event files"),
}


class CaptureError(RuntimeError):
    """What the reader has to put right; the message says how."""


# --------------------------------------------------------------------- TensorBoard and the browser


@contextlib.contextmanager
def start_tensorboard(logdir: Path, load_fast: bool = True) -> Iterator[str]:
    """Run TensorBoard on a free port; gives its address once the finished runs are loaded.

    `load_fast` chooses between its two loaders: one in Rust, where there is one for this system,
    and one in Python.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    command += ["--host", "127.0.0.1", "--port", "0", "--samples_per_plugin", "images=100"]
    command += ["--load_fast", "auto" if load_fast else "false"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",  # Windows has an encoding of its own
    ) as server:
        try:
            url = read_url(server.stdout)
            # A full pipe would stop the server: somebody has to read what it says later on.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            wait_until_loaded(url, finished_runs(logdir))
            yield url
        finally:
            server.kill()


@contextlib.contextmanager
def copies_of(run_dirs: Iterable[Path]) -> Iterator[Path]:
    """A folder with these runs alone, under their own names; it is gone afterwards.

    TensorBoard has seven colours and deals them out in the order of the runs: among many, the one
    that a picture is about may get a pale grey.
    """
    with tempfile.TemporaryDirectory() as folder:
        for run_dir in run_dirs:
            shutil.copytree(run_dir, Path(folder, run_dir.name))
        yield Path(folder)


def read_url(output: Iterable[str]) -> str:
    """Find the address in what TensorBoard prints at its start."""
    lines = []
    for line in output:
        lines.append(line.strip())
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            return found.group()
    raise CaptureError(f"TensorBoard did not start: {lines[-1] if lines else 'it said nothing'}")


def finished_runs(logdir: Path) -> set[str]:
    """The runs below a folder, as TensorBoard names them, that have shown everything."""
    return {
        path.parent.relative_to(logdir).as_posix()
        for path in logdir.rglob("events.out.tfevents.*")
        if LAST_TAG.encode() in path.read_bytes()
    }


def wait_until_loaded(url: str, runs: set[str]) -> None:
    """Wait until TensorBoard has read all of these runs; it reads each from start to end."""
    # A proxy for the internet has no business with this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    missing = runs
    deadline = time.monotonic() + TIMEOUT
    while missing:
        if time.monotonic() > deadline:
            raise CaptureError(f"TensorBoard does not show {LAST_TAG!r} of {', '.join(missing)}")
        time.sleep(0.1)
        with opener.open(url + "data/plugin/text/tags") as answer:
            tags = json.load(answer)
        missing = {run for run in runs if LAST_TAG not in tags.get(run, {})}


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Run Chromium without a window; raises CaptureError where it does not start."""
    expect.set_options(timeout=TIMEOUT * 1000)
    # Drawn by the processor, a page gives the same pixels each time; the projector needs WebGL all
    # the same.
    options = ["--disable-gpu", "--enable-unsafe-swiftshader"]
    with contextlib.ExitStack() as stack:
        try:
            playwright = stack.enter_context(sync_playwright())
            chromium = find_chromium(playwright.chromium.executable_path)
            browser = playwright.chromium.launch(executable_path=chromium, args=options)
        except CaptureError:
            raise
        except Exception as error:  # of any kind: the driver is a program of its own
            first_line = str(error).partition("\n")[0]
            raise CaptureError(
                f"the browser does not start ({first_line}): see above, or try playwright "
                "install-deps chromium (Debian, Ubuntu: apt-get install libatomic1)"
            ) from error
        yield stack.enter_context(browser)


def find_chromium(playwrights_own: str) -> str:
    """Return the path of Chromium; raises CaptureError where there is none."""
    for name in (*CHROMIUM_NAMES, playwrights_own):
        if found := shutil.which(name):
            return found
    raise CaptureError(
        "Chromium not found: install it (Debian, Ubuntu: apt-get install chromium; elsewhere: "
        "playwright install chromium)"
    )


def new_page(browser: Browser) -> Page:
    """Open an empty page; every dashboard gets a new one, for TensorBoard remembers its state."""
    page = browser.new_page(device_scale_factor=SHARPNESS)
    page.set_default_timeout(TIMEOUT * 1000)
    return page


# --------------------------------------------- the dashboards: (page, url) -> what to picture of it


Columns = list[list[Locator]]  # what to picture, in columns from left to right


def open_dashboard(
    page: Page, url: str, name: str, width: int, height: int = 1500, **state: str
) -> None:
    """Open a dashboard, in a window wide enough for its cards, with the state kept in its address.

    The cards of all tags that match the state `tagFilter` stand together in the first pane.
    """
    page.set_viewport_size({"width": width, "height": height})
    page.goto(f"{url}#{name}" + "".join(f"&{key}={quote(state[key])}" for key in state))
    page.add_style_tag(content="app-header { visibility: hidden }")  # not at the edge of a picture


def first_cards(page: Page, kind: str, count: int) -> Locator:
    """The cards in the first pane, once there are as many as there should be."""
    cards = page.locator("tf-category-paginated-view").first.locator(kind)
    expect(cards).to_have_count(count)
    return cards


def wait_for_shapes(cards: Locator, shape: str) -> None:
    """Wait until each card shows the shape: an SVG path through two points or more."""
    for card in cards.all():
        expect(card.locator(shape).first).to_have_attribute("d", re.compile("M.*L"))


def show_outliers(page: Page) -> None:
    """Let the axes hold all points: of two epochs' test losses TensorBoard would show neither."""
    page.get_by_text("Ignore outliers in chart scaling").click()


def scalars(page: Page, url: str) -> Locator:
    """Training loss, test loss and test accuracy."""
    tags = "training loss|test/loss|test/accuracy"
    open_dashboard(page, url, "scalars", 1460, tagFilter=tags, _smoothingWeight="0")
    cards = first_cards(page, "tf-scalar-card", 3)
    show_outliers(page)
    wait_for_shapes(cards, "path.line")
    return cards


def custom_scalars(page: Page, url: str, **state: str) -> Locator:
    """Both charts of the layout, each with its legend."""
    open_dashboard(page, url, "custom_scalars", 1060, 1000, _smoothingWeight="0", **state)
    cards = page.locator("tf-custom-scalar-multi-line-chart-card")
    expect(cards).to_have_count(2)
    show_outliers(page)
    wait_for_shapes(cards, "path.line")
    for card in cards.all():
        card.locator(".toggle-matches-button").click()
        card.locator(".match-list-entry").first.wait_for()
    return page.locator("tf-category-paginated-view")


def images(page: Page, url: str, tags: str, count: int = 1, **state: str) -> Locator:
    """The cards of the images whose tags match, each in its own size."""
    open_dashboard(page, url, "images", 1700, tagFilter=f"^({tags})$", **state)
    cards = first_cards(page, "tf-image-loader", count)
    page.get_by_text("Show actual image size").click()
    for card in cards.all():
        picture = card.locator("img")
        picture.wait_for()  # it is shown once it is loaded
        expect(picture).to_have_js_property("complete", True)
        expect(picture).not_to_have_js_property("naturalWidth", 0)
        card.evaluate("card => card.style.overflow = 'visible'")  # it would cut the run's name
    return cards


def graph(page: Page, url: str) -> Locator:
    """The graph, with the layers inside Net."""
    open_dashboard(page, url, "graphs", 1400, 1700)
    scene = page.locator("tf-graph-scene")
    scene.locator('g.node[data-name="Net"]').dblclick()
    scene.locator('g.node[data-name="Net"].expanded').wait_for()
    scene.locator("#svg").click(position={"x": 5, "y": 5})  # ends the selection of Net
    expect(scene.locator("g.node.selected")).to_have_count(0)
    page.locator("tf-graph-controls").get_by_text("Fit to screen").click()
    fitted = re.compile(r"scale\(1\.8\)$")  # TensorBoard's largest, which the window has room for
    expect(scene.locator("#root")).to_have_attribute("transform", fitted)
    # It cuts "Conv2d[conv1]", of which the tooltip has all; squeezed a little it fits its box.
    scene.locator("text", has_text="…").evaluate_all(
        """labels => labels.forEach(label => {
            label.textContent = label.querySelector("title").textContent
            label.setAttribute("textLength", 54)
            label.setAttribute("lengthAdjust", "spacingAndGlyphs")
        })"""
    )
    return scene.locator("#root")


def graph_in_columns(page: Page, url: str) -> Columns:
    """The graph, from the input up to the second pooling, and from there to the output.

    It is far higher than wide; what is left out is the empty half of the box of Net.
    """
    nodes = graph(page, url).locator("g.node:not([data-name=Net]):not([data-name*='~~'])").all()
    heights = {node.get_attribute("data-name"): node.bounding_box()["y"] for node in nodes}
    (middle,) = (y for name, y in heights.items() if "pool (2)" in name)
    columns = (
        [n for n in heights if heights[n] >= middle],
        [n for n in heights if heights[n] <= middle],
    )
    return [
        [page.locator(", ".join(f'g.node[data-name="{n}"]' for n in names))] for names in columns
    ]


def histograms(page: Page, url: str) -> Locator:
    """How the weights and gradients of three layers are spread at each report."""
    return layer_cards(page, url, "histograms", "tf-histogram-loader", "g.histogram path")


def distributions(page: Page, url: str) -> Locator:
    """How the weights and gradients of three layers spread over the steps, as bands."""
    return layer_cards(page, url, "distributions", "tf-distribution-loader", "path.area")


def layer_cards(page: Page, url: str, dashboard: str, kind: str, shape: str) -> Locator:
    """The cards of three layers' weights and gradients, with a shape drawn in each."""
    tags = "^(weights|gradients)/(conv1|conv2|fc3).weight$"
    open_dashboard(page, url, dashboard, 1460, tagFilter=tags)
    cards = first_cards(page, kind, 6)
    wait_for_shapes(cards, shape)
    return cards


def text(page: Page, url: str) -> Locator:
    """The tables: each class, the settings, where the time goes; each in its whole length."""
    open_dashboard(page, url, "text", 940, 3000)
    page.locator(
        "button.heading", has_text="where the time goes"
    ).click()  # it is the third: folded
    cards = page.locator("tf-text-loader")
    expect(cards).to_have_count(3)
    for card in cards.all():
        card.locator("td").first.wait_for()
        card.locator("#steps-container").evaluate("box => box.style.maxHeight = 'none'")
    return cards


def text_in_columns(page: Page, url: str) -> Columns:
    """The settings at the left, the other two tables at the right."""
    classes, settings, times = text(page, url).all()
    return [[settings], [classes, times]]


def pr_curves(page: Page, url: str) -> Locator:
    """The curves of four classes."""
    (tags,) = page.request.get(f"{url}data/plugin/pr_curves/tags").json().values()
    classes = four_of(sorted(tags))
    pattern = "|".join(map(re.escape, classes))
    open_dashboard(page, url, "pr_curves", 1420, tagFilter=f"^({pattern})$")
    cards = first_cards(page, "tf-pr-curve-card", len(classes))
    wait_for_shapes(cards, "path.line")
    return cards


def four_of(classes: list[str]) -> list[str]:
    """Four of the classes: of CIFAR-10 the best, the worst, and two in between."""
    return classes[1::2][:4] if len(classes) > 8 else classes[:4]


def projector(page: Page, url: str) -> Locator:
    """The images on a plane, as thumbnails; those of one class are marked with its name."""
    open_dashboard(page, url, "projector", 1240, 760)
    frame = projector_frame(page)
    expect(frame.locator(".numDataPoints")).to_have_text(re.compile("[1-9]"))
    frame.locator("#colorby").click()
    frame.locator("#colorby paper-item:not([disabled])", has_text="label").click()
    frame.locator("#z-checkbox").click()  # in three dimensions the points would turn for ever
    classes = frame.locator("vz-projector-legend .label").all_inner_texts()
    search = frame.locator("vz-projector-inspector-panel vz-projector-input input").first
    search.fill("ship" if "ship" in classes else min(classes))
    search.press("Enter")
    expect(frame.locator("#status-bar")).to_have_text(re.compile("Selected [1-9]"))
    return frame.locator("#left-pane, #main, #right-pane")


def projector_frame(page: Page) -> FrameLocator:
    """The projector is a page of its own, in a frame in a frame."""
    return page.frame_locator("iframe").frame_locator("iframe")


def hparams(page: Page, url: str, wanted: Sequence[str] = COLUMNS) -> Locator:
    """The table of runs: what distinguishes them, and what they came to."""
    open_dashboard(page, url, "hparams", 1700, 900)
    boxes = page.locator("paper-checkbox.hparam-checkbox, paper-checkbox.metric-checkbox")
    boxes.first.wait_for()
    boxes.evaluate_all(
        """(boxes, wanted) => boxes
            .filter(box => box.checked != wanted.includes(box.innerText.trim()))
            .forEach(box => box.click())""",
        list(wanted),
    )
    cells = page.locator("vaadin-grid-cell-content:visible")
    cells.filter(has_text="test/accuracy").wait_for()
    return page.locator("tf-hparams-sessions-pane paper-tabs").or_(cells)


def hparams_by_accuracy(page: Page, url: str) -> Columns:
    """What the table is sorted by, and the table, the best run first."""
    table = hparams(page, url)
    pane = page.locator("tf-hparams-query-pane")
    for menu, choice in (("Sort by", "test/accuracy"), ("Direction", "Descending")):
        menu = pane.locator(f"paper-dropdown-menu[label='{menu}']")
        menu.click()
        with page.expect_response(re.compile("session_groups")):  # the table, sorted anew
            menu.get_by_role("option", name=choice, exact=True).click()
    page.set_viewport_size({"width": 1000, "height": 2400})
    return [[pane.locator(".section", has_text="Sorting").last], [table]]


# ----------------------------------- several runs: (page, url, "their|names") -> what to picture


def only(runs: str) -> dict[str, str]:
    """What the address of a dashboard says to show these runs alone."""
    return {"regexInput": f"^({runs})$"}


def charts(page: Page, url: str, runs: str, tags: str, log: bool = False) -> Columns:
    """SCALARS: the names of the runs in their colours, and a chart for each tag ("a|b").

    `log` gives the loss a logarithmic axis.
    """
    state = {"tagFilter": f"^({tags})$", "_smoothingWeight": "0"}
    open_dashboard(page, url, "scalars", 1460, **state, **only(runs))
    cards = first_cards(page, "tf-scalar-card", 1 + tags.count("|"))
    show_outliers(page)
    for card in cards.all():
        expect(card.locator("path.line[d*=L]")).to_have_count(1 + runs.count("|"))
        if log:
            card.locator("[title='Toggle y-axis log scale']").click()
    page.locator("tf-runs-selector paper-button").evaluate("button => button.remove()")
    return [[page.locator(".name-row").locator(".checkbox, span")], [cards]]


def both_losses(page: Page, url: str, run: str) -> Locator:
    """CUSTOM SCALARS: training and test loss of one run on one chart."""
    layout = custom_scalars(page, url, **only(run))
    return layout.locator("tf-custom-scalar-multi-line-chart-card").first


def histograms_of(page: Page, url: str, runs: str, tag: str) -> Locator:
    """HISTOGRAMS: the same tag of each run."""
    open_dashboard(page, url, "histograms", 1460, tagFilter=f"^{tag}$", **only(runs))
    cards = first_cards(page, "tf-histogram-loader", 1 + runs.count("|"))
    wait_for_shapes(cards, "g.histogram path")
    return cards


def images_of(page: Page, url: str, runs: str, tag: str) -> Locator:
    """IMAGES: the last image of a tag of each run."""
    return images(page, url, tag, 1 + runs.count("|"), **only(runs))


def table(page: Page, url: str, _runs: str) -> Locator:
    """HPARAMS: a row for each run."""
    settings = ["batch size", "lr", "schedule", "train images", "wrong labels"]
    return hparams(page, url, [*settings, "test/loss", "test/accuracy"])


def parallel_coordinates(page: Page, url: str, _runs: str) -> Locator:
    """HPARAMS: a line for each run, through its settings to its test accuracy."""
    hparams(page, url, ["batch size", "lr", "train images", "test/accuracy"])
    page.set_viewport_size({"width": 1700, "height": 1200})
    page.get_by_text("Parallel Coordinates View").click()
    view = page.locator("tf-hparams-parallel-coords-view")
    for axis in ("lr", "train images"):
        view.locator(f"[id='logScaleButton_{axis}']").click()
    plot = view.locator("#svg")
    expect(plot.locator(".foreground path").first).to_have_attribute("d", re.compile("M.*L"))
    return plot


# ------------------------------------------------------------------------------------ the pictures


def writer_methods(page: Page, url: str) -> Locator:
    """A table of the installed writer's add_... methods.

    Raises CaptureError if these are not the ones that WRITER_METHODS describes.
    """
    installed = {name for name in dir(SummaryWriter) if name.startswith("add_")}
    if unlike := installed ^ set(WRITER_METHODS):
        raise CaptureError(
            f"WRITER_METHODS and the installed SummaryWriter differ in {', '.join(sorted(unlike))}"
        )
    rows = "".join(
        f"<tr><td><code>{name}</code><td>{dashboard}<td>{html.escape(purpose)}"
        for name, (dashboard, purpose) in WRITER_METHODS.items()
    )
    page.set_viewport_size({"width": WIDTH, "height": 1500})
    page.set_content(
        """<style>
        body { font: 17px/1.3 "DejaVu Sans", sans-serif; margin: 0 }
        table { border-collapse: collapse; width: 1200px }
        td, th { padding: 7px 14px; text-align: left; border-bottom: 1px solid #ddd }
        th { background: #f57c00; color: white }
        td:nth-child(2) { font-size: 14px; white-space: nowrap }
        tr:nth-child(odd) { background: #fafafa }
        </style><table><tr><th>method of SummaryWriter<th>dashboard<th>what it is for"""
        + rows
        + "</table>"
    )
    return page.locator("table")


def report_page(page: Page, url: str) -> Locator:
    """The top of the page that docs/report.py writes."""
    page.set_viewport_size({"width": WIDTH, "height": 1500})
    page.goto(url)
    return page.locator("h1, section:nth-of-type(-n + 2)")


DASHBOARDS: dict[str, Callable[[Page, str], Locator | Columns]] = {
    "result_images": lambda page, url: images(page, url, "training images"),
    "result_graphs": graph_in_columns,
    "result_predic_each_step": lambda page, url: images(page, url, "predictions vs. actuals"),
    "result_prcurve": pr_curves,
    "result_scalars": scalars,
    "result_histograms": histograms,
    "result_distributions": distributions,
    "result_projector": projector,
    "result_text": text_in_columns,
    "result_custom_scalars": custom_scalars,
    "result_confusion_matrix": lambda page, url: images(page, url, "test/confusion matrix"),
    "result_mistakes": lambda page, url: images(page, url, "test/worst mistakes"),
    "result_filters": lambda page, url: images(
        page, url, "what the net sees/(filters|feature maps)", count=2
    ),
}

LOSS_AND_ACCURACY = "training loss|test/accuracy"
LOSS_AND_NORM = "training loss|training progress/gradient norm"
FLAT = "healthy|dead|too-low"
SICK = "healthy|dead|exploding|too-low|restless|restless-cured|big-batch|big-batch-cured"
SICK += "|overfit|overfit-cured|wrong-labels|augmented"
COMPARISONS: dict[str, tuple] = {
    "sick/flat_loss": (FLAT, charts, LOSS_AND_ACCURACY),
    "sick/flat_gradients": (FLAT, histograms_of, "gradients/conv1.weight"),
    "sick/dead_confusion": ("healthy|dead", images_of, "test/confusion matrix"),
    "sick/exploding_loss": ("exploding", charts, "training loss", True),
    "sick/restless_loss": ("healthy|restless|restless-cured", charts, LOSS_AND_ACCURACY),
    "sick/big_batch_loss": ("big-batch|big-batch-cured", charts, LOSS_AND_ACCURACY),
    "sick/overfit_loss": ("overfit|overfit-cured", charts, "training loss|test/loss"),
    "sick/wrong_labels_images": ("wrong-labels", images_of, "training images"),
    "sick/wrong_labels_mistakes": ("wrong-labels", images_of, "test/worst mistakes"),
    "sick/augmented_loss": ("augmented", both_losses),
    "sick/by_heart": ("by-heart|rolled-labels-by-heart", charts, "training loss"),
    "sick/hparams_table": (SICK, table),
    "sick/hparams_parallel": (SICK, parallel_coordinates),
    "bugs/no-zero-grad": ("healthy|no-zero-grad", charts, LOSS_AND_NORM, True),
    "bugs/no-step": ("healthy|no-step", histograms_of, "weights/conv1.weight"),
    "bugs/other-net": ("no-step|other-net", charts, LOSS_AND_NORM),
    "bugs/double-softmax": ("healthy|double-softmax", charts, "test/loss|test/accuracy"),
    "bugs/softmax-over-batch": ("healthy|softmax-over-batch", charts, LOSS_AND_NORM, True),
    "bugs/rolled-labels": ("healthy|rolled-labels", images_of, "training batch"),
    "bugs/sorted": ("healthy|sorted", images_of, "test/confusion matrix"),
    "bugs/pixels-to-255": ("healthy|pixels-to-255", charts, "test/loss|training loss"),
    "bugs/scaled-twice": ("healthy|scaled-twice", images_of, "training batch"),
    "bugs/test-in-bgr": ("healthy|test-in-bgr", charts, "test/loss|training loss"),
    "bugs/test-in-bgr-images": ("healthy|test-in-bgr", images_of, "predictions vs. actuals"),
    "bugs/dropout-at-test": ("dropout|dropout-at-test", charts, "test/loss|training loss"),
}  # name: the runs that it is about ("a|b"), what shows them, and what of them


def take_picture(page: Page, target: Locator) -> Image.Image:
    """Picture the part of the page that holds all that `target` matches, once it stands still."""
    page.mouse.move(0, 0)  # nothing shall be highlighted
    deadline = time.monotonic() + TIMEOUT
    before, after = b"", still(page, target)
    while after != before:
        if time.monotonic() > deadline:
            raise CaptureError("the page does not stand still")
        before, after = after, still(page, target)
    return Image.open(io.BytesIO(after)).convert("RGB")


def take_columns(page: Page, columns: Columns) -> Image.Image:
    """Picture each part by itself, and put them together."""
    return join(
        [join([take_picture(page, part) for part in parts], down=True) for parts in columns]
    )


def join(pictures: list[Image.Image], down: bool = False) -> Image.Image:
    """Put pictures side by side, or one below the other, on white."""
    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    gap = (len(pictures) - 1) * GAP
    size = (max(widths), sum(heights) + gap) if down else (sum(widths) + gap, max(heights))
    whole = Image.new("RGB", size, "white")
    x = y = 0
    for picture in pictures:
        whole.paste(picture, (x, y))
        x, y = (0, y + picture.height + GAP) if down else (x + picture.width + GAP, 0)
    return whole


def still(page: Page, target: Locator) -> bytes:
    """Picture, as PNG, the smallest part of the page that holds all that `target` matches."""
    boxes = [box for one in target.all() if (box := one.bounding_box())]
    left, top = (max(min(box[side] for box in boxes) - MARGIN, 0) for side in ("x", "y"))
    right = max(box["x"] + box["width"] for box in boxes) + MARGIN
    bottom = max(box["y"] + box["height"] for box in boxes) + MARGIN
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return page.screenshot(clip=clip, animations="disabled")


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture of WIDTH pixels or less, in few enough colours for MAX_BYTES."""
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    for colors in (256, 128, 64):
        picture.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            print(path, flush=True)
            return
    raise CaptureError(f"{path.name} does not fit into {MAX_BYTES:,} bytes")


def in_page_size(picture: Image.Image) -> Image.Image:
    """Shrink a picture that is narrower than others by as much as a page shrinks those."""
    if picture.width >= WIDTH:
        return picture
    size = [round(side * PAGE_WIDTH / WIDTH) for side in picture.size]
    return picture.resize(size, Image.Resampling.LANCZOS)


def summarize(run_dir: Path) -> dict:
    """What a run says of itself: its settings, its last scalars, and each class.

    Written beside the pictures, so that a page with figures and these pictures can be checked.
    """
    log = EventAccumulator(str(run_dir)).Reload()
    tests = log.Scalars("test/accuracy")
    heading, *classes = read_table(log, "per class")
    return {
        "run": run_dir.name,
        "date": datetime.fromtimestamp(tests[-1].wall_time).date().isoformat(),
        "settings": dict(read_table(log, "settings")[1:]),
        **{
            tag: round(log.Scalars(tag)[-1].value, 4)
            for tag in ("training loss", "test/loss", "test/accuracy")
        },
        "classes": {
            name: dict(zip(heading[1:], map(number, cells), strict=True))
            for name, *cells in classes
        },
    }


def read_table(log: EventAccumulator, tag: str) -> list[list[str]]:
    """The cells of a table in TEXT, heading first."""
    (text,) = log.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val
    heading, _rule, *rows = text.decode().splitlines()
    return [
        [html.unescape(cell.strip()) for cell in row.strip("|").split("|")]
        for row in (heading, *rows)
    ]


def number(text: str) -> int | float:
    """A number of a table, such as 1,000 or 0.296."""
    return float(text) if "." in text else int(text.replace(",", ""))


def draw(browser: Browser, name: str, show: Callable, *where: object) -> Image.Image:
    """Picture what `show(page, *where)` gives; raises CaptureError if it is not drawn."""
    with new_page(browser) as page:
        try:
            target = show(page, *where)
            take = take_columns if isinstance(target, list) else take_picture
            return take(page, target)
        except (PlaywrightError, AssertionError) as error:
            first_line = str(error).partition("\n")[0]
            raise CaptureError(f"{name} was not drawn: {first_line}") from error


def capture_run(run_dir: Path, out: Path) -> None:
    """Write all pictures of one run."""
    if "." not in finished_runs(run_dir):
        raise CaptureError(f"{str(run_dir)!r} is not the folder of a finished run")
    with open_browser() as browser:
        out.mkdir(parents=True, exist_ok=True)
        animation.save_animation(animation.read_story(run_dir), out / "training.gif")
        summary = json.dumps(summarize(run_dir), indent=2, ensure_ascii=False)
        (out / "run.json").write_text(summary + "\n", encoding="utf-8")
        picture = draw(browser, "writer_add_methods", writer_methods, "")
        save_picture(picture, out / "writer_add_methods.png")
        with copies_of([run_dir]) as alone, start_tensorboard(alone) as url:
            for name, show in DASHBOARDS.items():
                save_picture(draw(browser, name, show, url), out / f"{name}.png")
            page = write_report(alone / run_dir.name)
            picture = draw(browser, "result_report", report_page, page.as_uri())
            save_picture(picture, out / "result_report.png")
        with start_tensorboard(run_dir.parent) as url:  # the other runs are rows of the table too
            picture = draw(browser, "result_hparams", hparams_by_accuracy, url)
            save_picture(picture, out / "result_hparams.png")


def capture_comparisons(log_dir: Path, out: Path, names: Sequence[str]) -> None:
    """Write pictures of the runs in a folder beside each other."""
    needed = {run for name in names for run in COMPARISONS[name][0].split("|")}
    if not all(any(log_dir.glob(f"{run}/events.out.tfevents.*")) for run in needed):
        raise CaptureError(
            f"{str(log_dir)!r} lacks runs of {', '.join(sorted(needed))}: make them first, "
            "as in docs/sick-runs.md"
        )
    with open_browser() as browser:
        for name in names:
            runs, show, *what = COMPARISONS[name]
            with copies_of(map(log_dir.joinpath, runs.split("|"))) as copies:
                with start_tensorboard(copies) as url:
                    picture = draw(browser, name, show, url, runs, *what)
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            save_picture(in_page_size(picture), out / f"{name}.png")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the pages' pictures from finished runs.")
    add = parser.add_argument
    add("run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="of a run: the README's pictures")
    add("--compare", type=Path, metavar="FOLDER", help="of runs: the pictures that compare them")
    add("--only", nargs="+", choices=COMPARISONS, metavar="NAME", help="of --compare, these alone")
    add("--out", type=Path, default=Path(__file__).parent, help="where to write (default: here)")
    args = parser.parse_args(argv)
    if not (args.run_dir or args.compare):
        parser.error("RUN_DIR or --compare FOLDER is missing: there is nothing to picture")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does, end TensorBoard too
    try:
        if args.run_dir:
            capture_run(args.run_dir.resolve(), args.out)  # "." has no name and no parent
        if args.compare:
            capture_comparisons(args.compare, args.out, args.only or list(COMPARISONS))
    except CaptureError as error:
        print(f"capture.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
