"""The scalars of a run as TensorBoard's two readers of event files give them out."""

import subprocess
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import TENSORS, EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.data import server_ingester
from tensorboard.util import grpc_util, tensor_util

SPEED = "training progress/images per second"  # the one scalar that differs from run to run
ALL = 10**6  # points of a tag that TensorBoard is to keep


def open_run(run_dir: Path) -> EventAccumulator:
    """What TensorBoard with --load_fast=false reads a run with; it may follow a run under way."""
    return EventAccumulator(str(run_dir), {TENSORS: ALL})


def in_python_loader(accumulator: EventAccumulator) -> dict[str, list]:
    """The scalars by tag, with what has come since it was asked before: (step, value)."""
    accumulator.Reload()
    return {
        tag: [
            (event.step, tag == SPEED or tensor_util.make_ndarray(event.tensor_proto).item())
            for event in accumulator.Tensors(tag)
        ]
        for tag in accumulator.Tags()[TENSORS]
        if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }


def in_rust_loader(run_dir: Path, expected: dict[str, list]) -> dict[str, list]:
    """The same, as TensorBoard's data server gives them out; it reads in the background.

    It is asked again until it has what is expected, or seems to have nothing more.
    """
    try:
        program = server_ingester.get_server_binary().path
    except server_ingester.NoDataServerError as error:
        pytest.skip(str(error))
    options = ["--reload=once", "--port=0", "--samples-per-plugin=scalars=all"]
    command = [program, f"--logdir={run_dir}", *options, "--die-after-stdin"]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as server:
        address = server.stderr.readline().removeprefix("listening on ").strip()
        provider = server_ingester.ExistingServerDataIngester(
            address, channel_creds_type=grpc_util.ChannelCredsType.LOCAL
        ).data_provider
        context, wanted = RequestContext(), {"plugin_name": "scalars", "downsample": ALL}
        found, give_up = {}, time.monotonic() + 10
        while found != expected and time.monotonic() < give_up:
            by_run = provider.read_scalars(context, experiment_id="", **wanted)
            found = {
                tag: [(point.step, tag == SPEED or point.value) for point in points]
                for tag, points in by_run.get(".", {}).items()
            }
        server.stdin.close()  # ends it
    return found
