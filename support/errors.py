"""The few ways in which a run ends early; each message is one line, written for the reader."""


class InputError(ValueError):
    """A setting, a folder or a checkpoint cannot work; the message says what to do (status 2)."""


class RunError(RuntimeError):
    """The run failed (exit status 1); the message says where, and the likely cause."""


class LostProcessError(RunError):
    """Another of several processes has ended or does not answer; each of the others says so."""


class DivergedError(RunError):
    """A number of the run overflowed or became NaN."""


class Stopped(Exception):
    """A signal stopped the run, which is saved (exit status 128 + the signal's number)."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.status = 128 + signum


class NothingToDo(Exception):
    """The run that is to be resumed is finished (exit status 0)."""

    status = 0


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name."""
    return str(error).strip().split("\n")[0] or type(error).__name__
