"""Runs to practise on: eight without a name, and nothing in them that gives the answer away.

    python benchmarks/practice.py --data FOLDER --jobs 8
    python benchmarks/practice.py --data FOLDER --seed 7 --out another_class

The first makes practice/runs/a to h, the second another set, for a teacher; both print the answers.
"""

import argparse
import random
import re
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from figures import ROOT, read_events
from sick_runs import run
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

SEED = 880  # of the set in practice/
LETTERS = "abcdefgh"
HEALTHY = ("healthy", "augmented")
SICK = ("dead", "too-low", "restless", "big-batch", "overfit", "wrong-labels")
SICK += ("no-zero-grad", "no-step", "other-net", "double-softmax", "rolled-labels", "sorted")
SICK += ("pixels-to-255", "scaled-twice", "test-in-bgr")
GIVES_AWAY = re.compile("_hparams_|settings|where the time|learning rate|images per second")  # tags
FILE_NAME = "events.out.tfevents.1"  # TensorBoard's own has the time, the host and the process


def answers(seed: int) -> dict[str, str]:
    """The name of each run in the set of a seed: two that are healthy, and six that are not."""
    draw = random.Random(seed)
    names = [*HEALTHY, *draw.sample(SICK, len(LETTERS) - len(HEALTHY))]
    draw.shuffle(names)
    return dict(zip(LETTERS, names, strict=True))


def thin(events: list[Event]) -> list[Event]:
    """Leave out what gives the answer away, and most of what takes much space."""
    tags = Counter(value.tag for event in events for value in event.summary.value)
    seen: Counter = Counter()
    left = []
    for event in events:
        values = event.summary.value  # one at most: SummaryWriter writes no more
        seen.update(value.tag for value in values)
        if all(is_kept(value, seen[value.tag], tags[value.tag]) for value in values):
            event.wall_time = 1.7e9 + event.step  # when it was run is nobody's concern
            left.append(event)
    return left


def is_kept(value, number: int, count: int) -> bool:
    """Whether to keep this value, the `number`th (from 1) of `count` of its tag."""
    if GIVES_AWAY.search(value.tag):
        return False
    if value.HasField("simple_value"):
        return True
    if value.HasField("histo"):
        return number in {1, count // 3, 2 * count // 3, count}
    return number == count or (value.tag == "predictions vs. actuals" and number == 1)


def make(name: str, data: str, seed: int, folder: Path, log_dir: Path) -> None:
    """Make a run, and write what is left of its event file into a new folder."""
    run(name, data, seed, log_dir)
    folder.mkdir(parents=True)
    with open(folder / FILE_NAME, "wb") as file:
        writer = RecordWriter(file)
        for event in thin(read_events(log_dir / name)):
            writer.write(event.SerializeToString())


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make runs to practise on.")
    add = parser.add_argument
    add("--data", default="shapes", help="a folder of images, or shapes")
    add("--seed", type=int, default=SEED, help="another seed, another set")
    add("--out", type=Path, default=ROOT / "practice", help="the runs go to OUT/runs")
    add("--jobs", type=int, default=1, help="how many runs at once")
    args = parser.parse_args()

    names, first = answers(args.seed), 1000 + 10 * args.seed  # the pages show the seeds from 0 on
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        made = [
            pool.submit(make, name, args.data, seed, args.out / "runs" / letter, Path(folder))
            for seed, (letter, name) in enumerate(names.items(), first)
        ]
        for one in made:
            one.result()
    for letter, name in names.items():
        print(letter, name)


if __name__ == "__main__":
    main()
