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

try:  # first, for it takes no time: PyTorch takes seconds
    from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright
except ModuleNotFoundError:
    print("capture.py: error: first: pip install -r tests/requirements.txt", file=sys.stderr)
    raise SystemExit(2) from None

import animation
from PIL import Image, ImageOps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "docs"))

from report import write_report  # noqa: E402

METHODS = HERE / "writer_add_methods.html"  # a table of SummaryWriter's methods
WIDTH = 1200  # pixels of a picture
MAX_BYTES = 300_000
SHARPNESS = 2  # device pixels for each of the page's, so that text stays sharp when scaled to WIDTH
MARGIN = 8  # of the page's pixels around what is pictured
GAP = 24  # pixels between pictures that are put together
TIMEOUT = 60  # seconds, for whatever has to appear
ANY = ".*"  # run
LAST_TAG = "per class/text_summary"  # what a run shows last: once it is there, everything is
PAGE_WIDTH = 830  # pixels that GitHub's pages have for a picture
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


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
    line = "it said nothing"
    for line in output:  # noqa: B007  (the last line says why)
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            return found.group()
    raise CaptureError(f"TensorBoard did not start: {line.strip()}")


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
            chromium = stack.enter_context(sync_playwright()).chromium
            installed = filter(None, map(shutil.which, CHROMIUM_NAMES))
            path = next(installed, chromium.executable_path)  # the last one is Playwright's own
            browser = chromium.launch(executable_path=path, args=options)
        except Exception as error:  # of any kind: the driver is a program of its own
            first_line = str(error).partition("\n")[0]
            raise CaptureError(
                f"the browser does not start ({first_line}): see above, or install Chromium and "
                "what it needs (Debian, Ubuntu: apt-get install chromium libatomic1; elsewhere: "
                "playwright install --with-deps chromium)"
            ) from error
        yield stack.enter_context(browser)


def new_page(browser: Browser) -> Page:
    """Open an empty page; every dashboard gets a new one, for TensorBoard remembers its state."""
    page = browser.new_page(device_scale_factor=SHARPNESS)
    page.set_default_timeout(TIMEOUT * 1000)
    return page


# -------------------- the dashboards: (page, url, what of them) -> what to picture. Names: "a|b"


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


def open_cards(
    page: Page, url: str, name: str, kind: str, runs: str, tags: str, count: int, width: int = 1460
) -> Locator:
    """The cards of these runs and tags, once there are as many as there should be."""
    state = {"tagFilter": f"^({tags})$", "regexInput": f"^({runs})$", "_smoothingWeight": "0"}
    open_dashboard(page, url, name, width, **state)
    cards = page.locator("tf-category-paginated-view").first.locator(kind)
    expect(cards).to_have_count(count)
    return cards


def count(names: str) -> int:
    """How many there are in "a|b"."""
    return 1 + names.count("|")


def wait_for_shapes(cards: Locator, shape: str) -> None:
    """Wait until each card shows the shape: an SVG path through two points or more."""
    for card in cards.all():
        card.locator(f"{shape}[d*=L]").first.wait_for(state="attached")


def show_outliers(page: Page) -> None:
    """Let the axes hold all points: of two epochs' test losses TensorBoard would show neither."""
    page.get_by_text("Ignore outliers in chart scaling").click()


def scalars(page: Page, url: str, runs: str, tags: str, log: bool = False) -> Locator:
    """A chart for each tag. `log` gives the loss a logarithmic axis."""
    cards = open_cards(page, url, "scalars", "tf-scalar-card", runs, tags, count(tags))
    show_outliers(page)
    for card in cards.all():
        expect(card.locator("path.line[d*=L]")).to_have_count(count(runs))
        if log:
            card.locator("[title='Toggle y-axis log scale']").click()
    return cards


def charts(page: Page, url: str, runs: str, tags: str, log: bool = False) -> Columns:
    """SCALARS with the names of the runs in their colours at the left."""
    cards = scalars(page, url, runs, tags, log)
    page.locator("tf-runs-selector paper-button").evaluate("button => button.remove()")
    return [[page.locator(".name-row").locator(".checkbox, span")], [cards]]


def custom_scalars(page: Page, url: str, runs: str = ANY) -> Locator:
    """Both charts of the layout, each with its legend."""
    state = {"regexInput": f"^({runs})$", "_smoothingWeight": "0"}
    open_dashboard(page, url, "custom_scalars", 1060, 1000, **state)
    cards = page.locator("tf-custom-scalar-multi-line-chart-card")
    expect(cards).to_have_count(2)
    show_outliers(page)
    wait_for_shapes(cards, "path.line")
    for card in cards.all():
        card.locator(".toggle-matches-button").click()
        card.locator(".match-list-entry").first.wait_for()
    return page.locator("tf-category-paginated-view")


def both_losses(page: Page, url: str, run: str) -> Locator:
    """CUSTOM SCALARS: training and test loss of one run on one chart."""
    layout = custom_scalars(page, url, run)
    return layout.locator("tf-custom-scalar-multi-line-chart-card").first


def images_of(page: Page, url: str, runs: str, tags: str) -> Locator:
    """The last images of each run, each in its own size."""
    cards = open_cards(
        page, url, "images", "tf-image-loader", runs, tags, count(runs) * count(tags), width=1700
    )
    page.get_by_text("Show actual image size").click()
    for card in cards.all():
        picture = card.locator("img")
        picture.wait_for()  # it is shown once it is loaded
        expect(picture).to_have_js_property("complete", True)
        expect(picture).not_to_have_js_property("naturalWidth", 0)
        card.evaluate("card => card.style.overflow = 'visible'")  # it would cut the run's name
    return cards


def graph(page: Page, url: str) -> Columns:
    """The layers inside Net, up to the second pooling, and from there to the output.

    The graph is far higher than wide; what is left out is the empty half of the box of Net.
    """
    open_dashboard(page, url, "graphs", 1400, 1700)
    scene = page.locator("tf-graph-scene")
    scene.locator('g.node[data-name="Net"]').dblclick()
    scene.locator('g.node[data-name="Net"].expanded').wait_for()
    scene.locator("#svg").click(position={"x": 5, "y": 5})  # ends the selection of Net
    expect(scene.locator("g.node.selected")).to_have_count(0)
    page.locator("tf-graph-controls").get_by_text("Fit to screen").click()
    fitted = re.compile(r"scale\(1\.8\)$")  # TensorBoard's largest, which the window has room for
    expect(scene.locator("#root")).to_have_attribute("transform", fitted)
    # It cuts "conv1 Conv2d", of which the tooltip has all; squeezed a little it fits its box.
    scene.locator("text", has_text="…").evaluate_all(
        """labels => labels.forEach(label => {
            label.textContent = label.querySelector("title").textContent
            label.setAttribute("textLength", 54)
            label.setAttribute("lengthAdjust", "spacingAndGlyphs")
        })"""
    )
    nodes = scene.locator("g.node:not([data-name=Net]):not([data-name*='~~'])").all()
    heights = {node.get_attribute("data-name"): node.bounding_box()["y"] for node in nodes}
    (middle,) = (y for name, y in heights.items() if "pool (2)" in name)
    below = [name for name, y in heights.items() if y >= middle]
    above = [name for name, y in heights.items() if y <= middle]
    return [
        [page.locator(", ".join(f'g.node[data-name="{name}"]' for name in names))]
        for names in (below, above)
    ]


def histograms_of(page: Page, url: str, runs: str, tags: str) -> Locator:
    """How weights or gradients of each run are spread at each report."""
    kind = "tf-histogram-loader"
    cards = open_cards(page, url, "histograms", kind, runs, tags, count(runs) * count(tags))
    wait_for_shapes(cards, "g.histogram path")
    return cards


def distributions(page: Page, url: str, tags: str) -> Locator:
    """How weights and gradients spread over the steps, as bands."""
    cards = open_cards(page, url, "distributions", "tf-distribution-loader", ANY, tags, count(tags))
    wait_for_shapes(cards, "path.area")
    return cards


def text(page: Page, url: str) -> Columns:
    """The tables, each in its whole length: the settings; each class, and where the time goes."""
    open_dashboard(page, url, "text", 940, 3000)
    page.locator("button.heading", has_text="where the time").click()  # it is the third: folded
    cards = page.locator("tf-text-loader")
    expect(cards).to_have_count(3)
    for card in cards.all():
        card.locator("td").first.wait_for()
        card.locator("#steps-container").evaluate("box => box.style.maxHeight = 'none'")
    classes, settings, times = cards.all()
    return [[settings], [classes, times]]


def pr_curves(page: Page, url: str) -> Locator:
    """The curves of four classes."""
    (tags,) = page.request.get(f"{url}data/plugin/pr_curves/tags").json().values()
    classes = four_of(sorted(tags))
    pattern = "|".join(map(re.escape, classes))
    cards = open_cards(page, url, "pr_curves", "tf-pr-curve-card", ANY, pattern, len(classes))
    wait_for_shapes(cards, "path.line")
    return cards


def four_of(classes: list[str]) -> list[str]:
    """Four of the classes: of CIFAR-10 the best, the worst, and two in between."""
    return classes[1::2][:4] if len(classes) > 8 else classes[:4]


def projector(page: Page, url: str) -> Locator:
    """The images on a plane, as thumbnails; those of one class are marked with its name."""
    open_dashboard(page, url, "projector", 1240, 760)
    frame = page.frame_locator("iframe").frame_locator("iframe")
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


def hparams(page: Page, url: str, wanted: list[str]) -> Locator:
    """The table of runs: what distinguishes them, and what they came to."""
    open_dashboard(page, url, "hparams", 1700, 900)
    boxes = page.locator("paper-checkbox.hparam-checkbox, paper-checkbox.metric-checkbox")
    boxes.first.wait_for()
    boxes.evaluate_all(
        """(boxes, wanted) => boxes
            .filter(box => box.checked != wanted.includes(box.innerText.trim()))
            .forEach(box => box.click())""",
        wanted,
    )
    cells = page.locator("vaadin-grid-cell-content:visible")
    cells.filter(has_text="test/accuracy").wait_for()
    return page.locator("tf-hparams-sessions-pane paper-tabs").or_(cells)


def hparams_by_accuracy(page: Page, url: str) -> Columns:
    """What the table is sorted by, and the table, the best run first."""
    table = hparams(page, url, ["lr", "test/accuracy", "test/loss"])
    pane = page.locator("tf-hparams-query-pane")
    for menu, choice in (("Sort by", "test/accuracy"), ("Direction", "Descending")):
        menu = pane.locator(f"paper-dropdown-menu[label='{menu}']")
        menu.click()
        with page.expect_response(re.compile("session_groups")):  # the table, sorted anew
            menu.get_by_role("option", name=choice, exact=True).click()
    page.set_viewport_size({"width": 1000, "height": 2400})
    return [[pane.locator(".section", has_text="Sorting").last], [table]]


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


def local_page(page: Page, path: Path, parts: str) -> Locator:
    """Parts of a page that is a file."""
    page.set_viewport_size({"width": WIDTH, "height": 1500})
    page.goto(path.as_uri())
    return page.locator(parts)


LAYERS = "weights/conv1.weight|weights/conv2.weight|weights/fc3.weight"
LAYERS += "|gradients/conv1.weight|gradients/conv2.weight|gradients/fc3.weight"
SEEN = "what the net sees/filters|what the net sees/feature maps"
DASHBOARDS: dict[str, tuple] = {
    "result_images": (images_of, ANY, "training images"),
    "result_graphs": (graph,),
    "result_predic_each_step": (images_of, ANY, "predictions vs. actuals"),
    "result_prcurve": (pr_curves,),
    "result_scalars": (scalars, ANY, "training loss|test/loss|test/accuracy"),
    "result_histograms": (histograms_of, ANY, LAYERS),
    "result_distributions": (distributions, LAYERS),
    "result_projector": (projector,),
    "result_text": (text,),
    "result_custom_scalars": (custom_scalars,),
    "result_confusion_matrix": (images_of, ANY, "test/confusion matrix"),
    "result_mistakes": (images_of, ANY, "test/worst mistakes"),
    "result_filters": (images_of, ANY, SEEN),
}  # name: what shows it, and what of it

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
    before = b""
    while (after := still(page, target)) != before:
        if time.monotonic() > deadline:
            raise CaptureError("the page does not stand still")
        before = after
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
        picture = ImageOps.scale(picture, WIDTH / picture.width, Image.Resampling.LANCZOS)
    for colors in (256, 128, 64):
        picture.quantize(colors, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            print(path, flush=True)
            return
    raise CaptureError(f"{path.name} does not fit into {MAX_BYTES:,} bytes")


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
            name: {
                key: json.loads(cell.replace(",", ""))  # such as 1,000 or 0.296
                for key, cell in zip(heading[1:], cells, strict=True)
            }
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


def draw(browser: Browser, name: str, show: Callable, *where: object) -> Image.Image:
    """Picture what `show(page, *where)` gives; raises CaptureError if it is not drawn."""
    with new_page(browser) as page:
        try:
            target = show(page, *where)
            take = take_columns if isinstance(target, list) else take_picture
            return take(page, target)
        except (Error, AssertionError) as error:
            first_line = str(error).partition("\n")[0]
            raise CaptureError(f"{name} was not drawn: {first_line}") from error


def capture_run(run_dir: Path, out: Path) -> None:
    """Write all pictures of one run."""
    if "." not in finished_runs(run_dir):
        raise CaptureError(f"{str(run_dir)!r} is not the folder of a finished run")
    with open_browser() as browser:

        def save(name: str, show: Callable, *where: object) -> None:
            save_picture(draw(browser, name, show, *where), out / f"{name}.png")

        out.mkdir(parents=True, exist_ok=True)
        animation.save_animation(animation.read_story(run_dir), out / "training.gif")
        summary = json.dumps(summarize(run_dir), indent=2, ensure_ascii=False)
        (out / "run.json").write_text(summary + "\n", encoding="utf-8")
        save("writer_add_methods", local_page, METHODS, "table")
        with copies_of([run_dir]) as alone, start_tensorboard(alone) as url:
            for name, (show, *what) in DASHBOARDS.items():
                save(name, show, url, *what)
            report = write_report(alone / run_dir.name)
            save("result_report", local_page, report, "h1, section:nth-of-type(-n + 2)")
        with start_tensorboard(run_dir.parent) as url:  # the other runs are rows of the table too
            save("result_hparams", hparams_by_accuracy, url)


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
            if picture.width < WIDTH:  # as much smaller as a page shows the wider ones
                factor = PAGE_WIDTH / WIDTH
                picture = ImageOps.scale(picture, factor, Image.Resampling.LANCZOS)
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            save_picture(picture, out / f"{name}.png")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make the pages' pictures from finished runs.")
    add = parser.add_argument
    add("run_dir", type=Path, nargs="?", metavar="RUN_DIR", help="of a run: the README's pictures")
    add("--compare", type=Path, metavar="FOLDER", help="of runs: the pictures that compare them")
    add("--only", nargs="+", choices=COMPARISONS, metavar="NAME", help="of --compare, these alone")
    add("--out", type=Path, default=HERE, help="where to write (default: here)")
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
