"""Imported before anything large: Ctrl-C while the rest is imported ends in one line."""

import sys
from types import TracebackType


def on_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what Python prints about an error that nobody caught; of Ctrl-C, one line."""
    if issubclass(kind, KeyboardInterrupt):
        print("train_cifar.py: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = on_error
