"""Run the lesson with one of the bugs that everyone makes: a single line is changed.

    python docs/bugs.py                        lists the bugs
    python docs/bugs.py no-zero-grad           trains with one of them
    python docs/bugs.py NAME --data shapes     flags are those of train_cifar.py

The line is changed in a copy of the lesson; the run goes where any other goes. See docs/bugs.md.
"""

import difflib
import functools
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LESSON = ("train_cifar.py", "data.py", "model.py", "viz.py", "support")
FLAGS = "--batch-size 32 --lr 0.01 --epochs 3"  # of the healthy run; yours come after them
CANNOT_RESUME = "a run with a bug cannot be resumed: it would go on without the bug"

TRAIN, DATA, MODEL = LESSON[:3]
LOSS, IN_LOOP = "(net(images), labels)", " " * 12
ZERO_GRAD = f"{IN_LOOP}optimizer.zero_grad()\n"
SCALED, RELU = "images.float().div_(127.5).sub_(1)", "F.relu(self.fc2(x))"
MOVED = "    train, test = train.to(device), test.to(device)\n"
BUGS = {  # name: the file, what stands there in one place, and what in its stead
    "no-zero-grad": (TRAIN, ZERO_GRAD, ""),
    "no-step": (TRAIN, f"{IN_LOOP}optimizer.step()\n", ""),
    "other-net": (TRAIN, "(net, args, len", "(Net(len(data.classes)), args, len"),
    "double-softmax": (TRAIN, LOSS, "(net(images).softmax(dim=1), labels)"),
    "softmax-over-batch": (TRAIN, LOSS, "(net(images).softmax(dim=0), labels)"),
    "rolled-labels": (TRAIN, ZERO_GRAD, f"{IN_LOOP}labels = labels.roll(1)\n{ZERO_GRAD}"),
    "sorted": (DATA, "shuffle=True", "sampler=train.labels.argsort().tolist()"),
    "pixels-to-255": (DATA, SCALED, "images.float()"),
    "scaled-twice": (DATA, SCALED, "images.float().div_(255).div_(127.5).sub_(1)"),
    "test-in-bgr": (DATA, MOVED, f"{MOVED}    test.images = test.images.flip(1)  # BGR\n"),
    "dropout-at-test": (MODEL, RELU, f"F.dropout({RELU})"),
    # no bug, but how the one before it ought to look
    "dropout": (MODEL, RELU, f"F.dropout({RELU}, training=self.training)"),
}


def apply(name: str, lesson: Path) -> str:
    """Change the line in a folder with the lesson's files; returns the diff.

    Raises ValueError if what is to be changed does not stand there, in one place.
    """
    file, old, new = BUGS[name]
    healthy = (lesson / file).read_text(encoding="utf-8")
    if healthy.count(old) != 1:
        raise ValueError(f"{file} has {healthy.count(old)} places with {old.strip()!r}")
    sick = healthy.replace(old, new)
    (lesson / file).write_text(sick, encoding="utf-8")
    lines = (text.splitlines(keepends=True) for text in (healthy, sick))
    return "".join(difflib.unified_diff(*lines, file, file, n=2))


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
        print(apply(name, Path(folder)), flush=True)
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
