"""The network: its size, its shapes, and what it refuses."""

import pytest
import torch

from model import Net


def test_ten_classes_take_62006_parameters():
    assert sum(p.numel() for p in Net().parameters()) == 62_006


def test_layers_have_the_names_and_shapes_of_the_notes():
    shapes = {name: tuple(p.shape) for name, p in Net().named_parameters() if "weight" in name}
    assert shapes == {
        "conv1.weight": (6, 3, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (10, 84),
    }


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("classes", [2, 10, 37])
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
