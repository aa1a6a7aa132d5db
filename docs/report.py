"""Write a run as one page that can be mailed: every view, the settings, the table of the classes.

    python docs/report.py runs/first

The page is RUN_DIR/report.html. All pictures are inside it, so it needs no server, no account and
no network. It is drawn from the event files by notebook_views.py, with the README's captions.
"""

import argparse
import contextlib
import os
import re
import shlex
import sys
from datetime import datetime
from functools import partial
from html import escape
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import notebook_views as views  # noqa: E402

from support.checkpoint import load_checkpoint  # noqa: E402
from support.errors import InputError  # noqa: E402

CAPTION = re.compile(r"^!\[(.+)\]\(screenshots/result_(\w+)\.png\)$", re.M)
WHY_MISSING = (
    "A run that has not ended lacks some views, and one made with "
    "<code>--views&nbsp;notes</code> lacks most."
)
PREDICTIONS, RATE = "predictions vs. actuals", "training progress/learning rate"
FILTERS = ["what the net sees/filters", "what the net sees/feature maps"]
LAYERS = ["weights/conv1.weight", "gradients/conv1.weight", "gradients/fc3.weight"]

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1120px; margin: auto; padding: 0 16px }}
section {{ border-top: 1px solid #ccc; margin-top: 32px; overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 14px }}
th, td {{ border-bottom: 1px solid #ddd; padding: 4px 8px 4px 0; text-align: left }}
td {{ overflow-wrap: anywhere; min-width: 3em }}
td:first-child {{ min-width: 6em }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def draw_sections(log: EventAccumulator, run_dir: Path, part: str) -> list[tuple]:
    """Each section's heading, its caption or the README's picture that has it, and what draws it.

    `part` says on which images the run was evaluated: "test" or "validation".
    """
    images, text = partial(views.images, log), partial(views.text, log)
    loss, accuracy = f"{part}/loss", f"{part}/accuracy"
    return [
        ("Curves", "scalars", lambda: views.scalars(log, ["training loss"], [loss], [accuracy])),
        ("Predictions", "predic_each_step", lambda: images(PREDICTIONS, reports=(0, -1))),
        ("Confusion matrix", "confusion_matrix", lambda: images(f"{part}/confusion matrix")),
        ("Worst mistakes", "mistakes", lambda: images(f"{part}/worst mistakes")),
        ("PR curves", "prcurve", lambda: views.pr_curves(log)),
        ("Per class", "At the end of the training", lambda: text("per class")),
        ("Training images", "images", lambda: images("training images")),
        ("Training batch", "Of the first report", lambda: images("training batch")),
        ("Graph", "graphs", lambda: views.graph(log)),
        ("Losses", "custom_scalars", lambda: views.scalars(log, ["training loss", loss], [RATE])),
        ("Histograms", "histograms", lambda: views.histograms(log, LAYERS)),
        ("Distributions", "distributions", lambda: views.distributions(log, LAYERS)),
        ("Projector", "Up to 1,000 images by their features", lambda: views.projector(log)),
        ("Filters", "filters", lambda: images(*FILTERS)),
        ("Settings", "text", lambda: settings(log, run_dir)),
        ("Time", "Ten training steps, profiled", lambda: text("where the time goes")),
    ]


def settings(log: EventAccumulator, run_dir: Path) -> views.View:
    """The table of settings; of a run that logged none, the command that its checkpoint gives."""
    with contextlib.suppress(KeyError):
        return views.text(log, "settings")
    words = ["python", "train_cifar.py"]
    for name, value in load_checkpoint(run_dir)["settings"].items():
        flag = f"--{name}".replace("_", "-")
        for item in value if isinstance(value, list) else [value]:
            if item is not None and item is not False:
                words += [flag] if item is True else [flag, str(item)]
    return views.View(f"<p><code>{escape(shlex.join(words))}</code></p>")


def results(log: EventAccumulator) -> str:
    """When and after how many steps the run was last evaluated, and how well it did."""
    last = {tag: log.Scalars(tag)[-1] for tag in views.RESULTS if tag in log.Tags()["scalars"]}
    if not last:
        return "Not yet evaluated."
    point = [*last.values()][-1]
    numbers = [
        f"{tag.replace('/', ' ')} {p.value:{'.1%' if 'accuracy' in tag else '.3f'}}"
        for tag, p in last.items()
    ]
    date = datetime.fromtimestamp(point.wall_time).date().isoformat()
    return f"{date}, after step {point.step:,}: {', '.join(numbers)}."


def write_report(run_dir: Path) -> Path:
    """Write the page of a run into its folder; returns its path.

    Raises InputError if the folder holds no run, and OSError if the page cannot be written.
    """
    log = views.read_run(str(run_dir))
    part = "validation" if "validation/loss" in log.Tags()["scalars"] else "test"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    captions = {name: caption for caption, name in CAPTION.findall(readme)}
    body, missing = [], []
    for heading, caption, draw in draw_sections(log, run_dir, part):
        try:
            view = draw()
        except (KeyError, InputError):  # not logged; no checkpoint
            missing.append(heading)
            continue
        caption = escape(captions.get(caption, caption).replace("test", part))
        body.append(f"<section>\n<h2>{heading}</h2>\n<p>{caption}</p>\n{view}\n</section>")
    about = f"<p>{results(log)}</p>"
    if missing:
        about += f"<p><strong>Missing</strong>: {', '.join(missing)}. {WHY_MISSING}</p>"
    title = escape(f"Run {run_dir.resolve().name}")
    path, temporary = run_dir / "report.html", run_dir / "report.html.tmp"
    html = PAGE.format(title=title, body="\n".join([about, *body]))
    temporary.write_text(html, encoding="utf-8")
    os.replace(temporary, path)  # never half a page
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write a run as one page that can be mailed.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder of the run")
    run_dir = parser.parse_args(argv).run_dir
    try:
        path = write_report(run_dir)
    except InputError as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report.py: failed: the page cannot be written: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
