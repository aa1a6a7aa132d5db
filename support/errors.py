"""The few ways in which a run ends early; each message is one line, written for the reader."""


class InputError(ValueError):
    """Something that was given cannot work: a setting, a folder, a checkpoint (exit status 2).

    The message names the value, says what was expected and what to do next.
    """


class RunError(RuntimeError):
    """The run failed (exit status 1); the message says where, and the likely cause."""
