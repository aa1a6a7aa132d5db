"""The network: its size, its shapes, what it refuses, and the same logits sooner."""

import pytest
import torch

from model import Net
from support.device import predict


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


class WithView(Net):
    """A net with a layer that oneDNN's tensors lack."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return super().features(images.view(-1, 3, 32, 32))


class Watched(Net):
    """A net that remembers whether images came in oneDNN's format."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.saw_onednn = images.is_mkldnn
        return super().forward(images)


@pytest.mark.parametrize("net", [Net(), WithView()], ids=["Net", "with view"])
@pytest.mark.parametrize("count", [1, 10, 100])
def test_predicted_logits_are_the_nets(net, count):
    images = torch.randn(count, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(predict(net, images), net(images))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")
def test_predictions_are_made_in_the_format_of_onednn():
    net = Watched()
    with torch.no_grad():
        predict(net, torch.randn(10, 3, 32, 32))
    assert net.saw_onednn


def test_a_net_that_fails_fails_in_predictions_too():
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict(Net(), torch.randn(4, 3, 64, 64))
