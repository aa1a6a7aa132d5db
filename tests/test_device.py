"""Which device trains, and how a device that fails is reported."""

import pytest
import torch

from support.device import choose_device, device_errors
from support.errors import InputError, RunError

CPU = torch.device("cpu")


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("mps", [False, True])
def test_auto_is_cuda_where_there_is_one_and_else_the_cpu(monkeypatch, cuda, mps):
    """MPS, too, is slower than the CPU for batches of four: it is taken on request only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))  # as if it computed there
    assert choose_device("auto") == torch.device("cuda" if cuda else "cpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_a_device_that_does_not_work_is_named_with_the_cure(monkeypatch):
    """The driver may be too old, or this PyTorch built without the device."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    said = r"--device 'mps' does not work here .*: take --device cpu"
    with pytest.raises(InputError, match=said):
        choose_device("mps")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB\nmore lines"),
        NotImplementedError("The operator 'aten::x' is not currently implemented for MPS"),
    ],
)
def test_an_error_of_a_device_becomes_one_line_that_names_the_cpu(error):
    with pytest.raises(RunError) as caught, device_errors(torch.device("mps")):
        raise error
    assert str(caught.value) == f"mps failed ({str(error).splitlines()[0]}): try --device cpu"


def test_errors_of_the_cpu_and_of_the_run_pass_as_they_are():
    for device, error in ((CPU, RuntimeError("a bug")), (torch.device("mps"), RunError("NaN"))):
        with pytest.raises(type(error)) as caught, device_errors(device):
            raise error
        assert caught.value is error
