"""The network, the device that it is on, and a pass over all test images."""

import pytest
import torch

from data import ImageDataset, make_loaders
from model import Net
from support.device import choose_device, device_errors, predict_all
from support.errors import RunError
from support.processes import Processes


@pytest.mark.parametrize("batch, classes", [(1, 2), (7, 10)])
def test_the_net_is_the_notes_formula_for_a_batch_of_any_size(batch, classes):
    """Written out with functions only, from the weights."""
    net, images = Net(classes), torch.randn(batch, 3, 32, 32)
    w, x = net.state_dict(), images
    assert sum(map(torch.numel, w.values())) == 61_156 + 85 * classes  # 62,006 for ten
    for layer in ("conv1", "conv2"):
        x = torch.nn.functional.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"])
        x = torch.nn.functional.max_pool2d(x.clamp(min=0), 2)
    x = x.reshape(batch, 400)
    for layer in ("fc1", "fc2"):
        x = (x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]).clamp(min=0)
    torch.testing.assert_close(net.features(images), x)
    assert x.shape == (batch, 84)
    torch.testing.assert_close(net(images), x @ w["fc3.weight"].T + w["fc3.bias"])


def test_images_of_another_size_are_refused():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Net()(torch.randn(4, 3, 64, 64))  # with view(-1, 400) this would be 27 images


def test_the_logits_of_all_test_images_are_the_nets():
    """In order, the last batch being of one image, in evaluation mode, with the labels."""
    net = torch.nn.Sequential(Net(), torch.nn.Dropout(0.9))
    images = torch.randint(256, (201, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (201,))
    dataset = ImageDataset(images, labels, [str(digit) for digit in range(10)])
    loader = make_loaders(dataset, dataset, "test", batch_size=1).test_loader
    logits, found = predict_all(net, loader, Processes(0, 1, torch.device("cpu")))
    with torch.no_grad():
        torch.testing.assert_close(logits, net[0](images / 127.5 - 1), rtol=1e-4, atol=1e-5)
    assert torch.equal(found, labels) and net.training


@pytest.mark.parametrize("cuda", [False, True])
def test_auto_is_cuda_where_there_is_one_and_else_the_cpu(monkeypatch, cuda):
    """MPS, too, is slower than the CPU for batches of four: it is taken on request only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))  # as if it computed there
    assert choose_device("auto") == torch.device("cuda" if cuda else "cpu")


@pytest.mark.parametrize(
    "device, error, said",
    [
        ("mps", torch.OutOfMemoryError("full\nmore"), "mps failed (full): try --device cpu"),
        ("mps", NotImplementedError("aten::x"), "mps failed (aten::x): try --device cpu"),
        ("mps", RunError("NaN"), "NaN"),
        ("cpu", RuntimeError("a bug"), "a bug"),
    ],
)
def test_an_error_of_a_gpu_alone_becomes_one_line_that_names_the_cpu(device, error, said):
    with pytest.raises(RuntimeError) as caught, device_errors(torch.device(device)):
        raise error
    assert str(caught.value) == said
    assert type(caught.value) is (RunError if device == "mps" else RuntimeError)
