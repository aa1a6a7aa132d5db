"""The network: its size, its shapes, what it refuses, and the same logits sooner."""

import pytest
import torch

from data import ImageDataset, make_loaders
from model import Net
from support.device import predict_all
from support.processes import Processes


def test_layers_have_the_names_and_shapes_of_the_notes():
    parameters = dict(Net().named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 62_006
    assert {name: tuple(p.shape) for name, p in parameters.items() if "weight" in name} == {
        "conv1.weight": (6, 3, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (10, 84),
    }


@pytest.mark.parametrize("batch, classes", [(1, 2), (7, 37)])
def test_a_batch_of_any_size_gives_logits_for_each_class(batch, classes):
    net = Net(classes)
    images = torch.randn(batch, 3, 32, 32)
    assert net(images).shape == (batch, classes)
    assert net.features(images).shape == (batch, 84)
    assert torch.equal(net.fc3(net.features(images)), net(images))


def test_forward_is_the_notes_formula():
    """Written out with functions only, from the weights."""
    net, images = Net(), torch.randn(3, 3, 32, 32)
    w = net.state_dict()
    x = images
    for layer in ("conv1", "conv2"):
        x = torch.nn.functional.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"])
        x = torch.nn.functional.max_pool2d(x.clamp(min=0), 2)
    x = x.reshape(3, 400)
    for layer in ("fc1", "fc2"):
        x = (x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]).clamp(min=0)
    x = x @ w["fc3.weight"].T + w["fc3.bias"]
    torch.testing.assert_close(net(images), x)


def test_images_of_another_size_are_refused():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Net()(torch.randn(4, 3, 64, 64))  # with view(-1, 400) this would be 27 images


@pytest.mark.parametrize("count", [1, 250])
def test_the_logits_of_all_test_images_are_the_nets(count):
    """In order, the last batch being smaller, in evaluation mode, with the labels."""
    net = torch.nn.Sequential(Net(), torch.nn.Dropout(0.9))
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (count,))
    dataset = ImageDataset(images, labels, [str(digit) for digit in range(10)])
    loader = make_loaders(dataset, dataset, "test", batch_size=1).test_loader
    logits, found = predict_all(net, loader, Processes(0, 1, torch.device("cpu")))
    with torch.no_grad():
        torch.testing.assert_close(logits, net[0](images / 127.5 - 1), rtol=1e-4, atol=1e-5)
    assert torch.equal(found, labels)
    assert net.training
