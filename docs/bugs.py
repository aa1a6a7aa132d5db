"""Run the lesson with one of the bugs that everyone makes: a single line is changed.

    python docs/bugs.py                        lists the bugs
    python docs/bugs.py no-zero-grad           trains with one of them
    python docs/bugs.py NAME --data shapes     flags are those of train_cifar.py

The lesson is copied to a temporary folder, and the line is changed there, so that your own files
stay as they are. The run goes where any other goes: runs/NAME. See docs/bugs.md.
"""

import difflib
import functools
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LESSON = ("train_cifar.py", "data.py", "model.py", "viz.py", "support")
CANNOT_RESUME = "a run with a bug cannot be resumed: it would go on without the bug"
FLAGS = "--batch-size 32 --lr 0.01 --epochs 3"  # of the healthy run; yours come after them


class Bug(NamedTuple):
    """One change in one file of the lesson."""

    file: str
    old: str  # what stands there, in one place
    new: str


LOSS = "criterion(net(images), labels)"
STEP = "            optimizer.step()\n"
ZERO_GRAD = "            optimizer.zero_grad()\n"
ROLL = "            labels = labels.roll(1)\n"
TO_DEVICE = "    train, test = train.to(device), test.to(device)\n"
SCALED = "images.float().div_(127.5).sub_(1)"
RELU = "F.relu(self.fc2(x))"
FEATURES = f"return {RELU}"
BUGS = {
    "no-zero-grad": Bug("train_cifar.py", ZERO_GRAD, ""),
    "no-step": Bug("train_cifar.py", STEP, ""),
    "other-net": Bug(
        "train_cifar.py", "make_optimizer(net, args", "make_optimizer(Net(len(data.classes)), args"
    ),
    "double-softmax": Bug("train_cifar.py", LOSS, "criterion(net(images).softmax(dim=1), labels)"),
    "softmax-over-batch": Bug(
        "train_cifar.py", LOSS, "criterion(net(images).softmax(dim=0), labels)"
    ),
    "rolled-labels": Bug("train_cifar.py", ZERO_GRAD, ROLL + ZERO_GRAD),
    "sorted": Bug("data.py", "shuffle=True", "sampler=train.labels.argsort().tolist()"),
    "pixels-to-255": Bug("data.py", SCALED, "images.float()"),
    "scaled-twice": Bug("data.py", SCALED, "images.float().div_(255).div_(127.5).sub_(1)"),
    "test-in-bgr": Bug(
        "data.py", TO_DEVICE, TO_DEVICE + "    test.images = test.images.flip(1)  # BGR\n"
    ),
    "dropout-at-test": Bug("model.py", FEATURES, f"return F.dropout({RELU})"),
    # no bug, but how the one before it ought to look
    "dropout": Bug("model.py", FEATURES, f"return F.dropout({RELU}, training=self.training)"),
}


def apply(bug: Bug, lesson: Path) -> str:
    """Change the line in a folder with the lesson's files; returns the diff.

    Raises ValueError if what is to be changed does not stand there, in one place.
    """
    path = lesson / bug.file
    healthy = path.read_text(encoding="utf-8")
    if healthy.count(bug.old) != 1:
        raise ValueError(f"{bug.file} has {healthy.count(bug.old)} places with {bug.old.strip()!r}")
    sick = healthy.replace(bug.old, bug.new)
    path.write_text(sick, encoding="utf-8")
    lines = (text.splitlines(keepends=True) for text in (healthy, sick))
    return "".join(difflib.unified_diff(*lines, bug.file, bug.file, n=2))


def main() -> None:
    """Run the command line."""
    if len(sys.argv) == 1:
        print("\n".join(BUGS))
        return
    name, *flags = sys.argv[1:]
    if name not in BUGS:
        print(f"bugs.py: error: no bug {name!r}: python docs/bugs.py lists them", file=sys.stderr)
        sys.exit(2)
    with tempfile.TemporaryDirectory() as folder:
        for part in map(ROOT.joinpath, LESSON):
            copy = shutil.copytree if part.is_dir() else shutil.copy
            copy(part, Path(folder, part.name))
        print(apply(BUGS[name], Path(folder)), flush=True)
        sys.exit(run_lesson(folder, name, flags))


def run_lesson(folder: str, name: str, flags: list[str]) -> int:
    """Run the lesson of a folder in this process; returns its status. Nothing can be resumed."""
    sys.path[0] = folder
    from support import checkpoint, terminal  # of that folder

    terminal.start_command = functools.partial(terminal.start_command, name)
    terminal.resume_command = lambda run_dir: CANNOT_RESUME
    checkpoint.save_checkpoint = lambda run_dir, state: None
    import train_cifar

    sys.argv[1:] = [*FLAGS.split(), "--run-name", name, *flags]
    return train_cifar.main()


if __name__ == "__main__":
    main()
