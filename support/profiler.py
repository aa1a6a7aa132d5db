"""Where the time goes: torch.profiler over a few steps of training, as a table and as a trace."""

import os
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 10  # enough for steady figures, few enough to cost under 1 % of a default run
ROWS = 10  # the most expensive operations
TRACE_NAME = "trace.json"  # in the run folder; opens in https://ui.perfetto.dev


def start_profile(device: torch.device) -> profile:
    """Profile what is run from now on, until `stop` or `finish_profile`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no log lines of its C++ code on stderr
    on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    # acc_events: on a GPU some versions warn without it, though there is only one cycle.
    running = profile(activities=[ProfilerActivity.CPU, *on_gpu], acc_events=True)
    running.start()
    return running


def finish_profile(running: profile, run_dir: Path) -> list[tuple]:
    """Write the trace into the run folder; return a table of the longest operations; OSError."""
    running.stop()
    running.export_chrome_trace(str(run_dir / TRACE_NAME))
    on_gpu = ProfilerActivity.CUDA in running.activities
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = [(getattr(row, key), row.key, row.count) for row in running.key_averages()]
    total = sum(time for time, _, _ in times) or 1
    head = ("operation", "share of the time", "ms in all", "calls")
    longest = sorted(times, reverse=True)[:ROWS]
    return [head, *((name, f"{t / total:.1%}", f"{t / 1000:.2f}", n) for t, name, n in longest)]
