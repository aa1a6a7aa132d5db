"""Where the time goes: torch.profiler over a few steps of training, as a table and as a trace."""

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 10  # enough for steady figures, few enough to cost under 1 % of a default run
ROWS = 10  # the most expensive operations
TRACE_NAME = "trace.json"  # in the run folder; opens in https://ui.perfetto.dev


class StepProfiler:
    """Profiles what runs between `start` and `stop`; as a context, it leaves no profile running."""

    def __init__(self, device: torch.device):
        self.activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self.activities.append(ProfilerActivity.CUDA)
        self.running: profile | None = None
        self.rows: list[tuple] | None = None  # of the table, once `stop` was called

    def start(self) -> None:
        """Profile what is run from now on."""
        # Below this level the profiler's C++ code writes log lines to stderr.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        self.running = profile(activities=self.activities)
        self.running.start()

    def stop(self, run_dir: Path) -> None:
        """Make the table, and write the trace into the run folder."""
        finished, self.running = self.running, None
        finished.stop()
        self.rows = most_expensive(finished)
        finished.export_chrome_trace(str(run_dir / TRACE_NAME))

    def take_rows(self) -> list[tuple] | None:
        """The rows of the table, once; None if there is none."""
        rows, self.rows = self.rows, None
        return rows

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *error: object) -> None:
        if self.running:
            self.running.stop()
            self.running = None


def most_expensive(finished: profile) -> list[tuple]:
    """Rows of a table: the operations with the longest time of their own, its share, and calls.

    On a GPU it is the time there that counts.
    """
    on_gpu = ProfilerActivity.CUDA in finished.activities
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = [(getattr(row, key), row.key, row.count) for row in finished.key_averages()]
    total = sum(time for time, _, _ in times) or 1
    head = ("operation", "share of the time", "ms in all", "calls")
    longest = sorted(times, reverse=True)[:ROWS]
    return [head, *((name, f"{t / total:.1%}", f"{t / 1000:.2f}", n) for t, name, n in longest)]
